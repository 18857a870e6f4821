"""
Builds both distributions into dist/, and proves that they are whole.

The wheel is made of the sdist and has every file of the package. An environment with nothing but it and the pinned
packages runs the demo from an empty directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PYTHON = sys.executable
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, check=True)


def build(directory: Path, to: Path, *kinds: str) -> None:
    run(PYTHON, "-m", "build", "--no-isolation", *kinds, "--outdir", to, directory)


def files_of(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # Would put files into the wheel that are gone.
    # The wheel is made of the sdist, so what the sdist lacks the wheel lacks too.
    build(ROOT, DIST)
    build(ROOT / "distribution", DIST, "--wheel")
    (core,) = DIST.glob("tollkeeper_core-*.whl")
    package = ROOT / "src" / "tollkeeper"
    kept = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    if kept != (found := files_of(core)):
        sys.exit(f"the wheel lacks {sorted(kept - found)} and has {sorted(found - kept)} beyond the package")
    with tempfile.TemporaryDirectory(prefix="tollkeeper-package-") as place:
        there = Path(place)
        python = there / "venv" / "bin" / "python"
        run(PYTHON, "-m", "venv", there / "venv")
        pinned = ("--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", *pinned, core, *DIST.glob("tollkeeper-*.whl"))
        run(python.with_name("tollkeeper"), "demo", "--no-serve", cwd=there)


main()
