"""
Builds both distributions into dist/, and proves that they are whole.

Each wheel is made of its sdist and has every file of the package, the built page among them. It is installed into a new
environment with the packages that it requires and no other: what is not required cannot be imported there. `tollkeeper`
runs the demo from an empty directory; `tollkeeper-core` asks a server, and says what to install for the rest.

The required packages are links to those of this environment, into which `make setup` installed them at the pinned
versions by the same requirements: 980 MB are not unpacked again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[1]
DIST: Final = ROOT / "dist"
PACKAGE: Final = ROOT / "src" / "tollkeeper"
ENVIRONMENT: Final = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
PAGE: Final = """
from tollkeeper.http.page import Page
index = Page().answer("/", [])
assert index.status == 200 and b'src="assets/' in index.body, index
script = index.body.partition(b'src="')[2].partition(b'"')[0].decode()
assert Page().answer(f"/{script}", []).status == 200, script
"""
CLIENT: Final = """
from tollkeeper import remote
with remote.Tollkeeper("http://127.0.0.1:9", key="ok_x", timeout_s=0.2) as toll:
    assert toll.admit("tk_x", "GET", "/").status == 503
"""


def main() -> None:
    # Files of an earlier build, and those that it listed, would be taken into this one.
    for old in (DIST, ROOT / "build", PACKAGE.with_name("tollkeeper.egg-info")):
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="tollkeeper-package-") as place:
        there = Path(place)
        build(ROOT)
        build(core_source(there))
        full, core = (checked_wheel(name) for name in ("tollkeeper", "tollkeeper_core"))

        commands = installed(full, there / "full")
        run(commands / "tollkeeper", "demo", "--no-serve", "--data", "demo", cwd=there)
        run(commands / "python", "-c", PAGE, cwd=there)

        client = installed(core, there / "client")
        run(client / "python", "-c", CLIENT, cwd=there)
        refused = subprocess.run(
            [client / "tollkeeper", "serve"], cwd=there, env=ENVIRONMENT, capture_output=True, text=True
        )
        print(refused.stderr, end="")
        if refused.returncode != 1 or "pip install 'tollkeeper-core[server]'" not in one_line(refused.stderr):
            sys.exit("`tollkeeper serve` of tollkeeper-core alone must say in one line what to install")

        server = installed(core, there / "server", extra="server")
        run(server / "tollkeeper", "serve", "--help", cwd=there, quiet=True)


def run(*command: str | Path, cwd: Path = ROOT, quiet: bool = False) -> None:
    """Run *command*, and say what it was and how long it took."""
    began = time.monotonic()
    subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL if quiet else None
    )
    said = " ".join(str(word).strip() for word in command)
    print(f"+ {said}   [{time.monotonic() - began:.1f} s]", flush=True)


def build(source: Path) -> None:
    """Put the sdist of *source* into dist/, and the wheel that is made of it: what one lacks, the other lacks too."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, source, quiet=True)


def core_source(place: Path) -> Path:
    """Return a copy of the sdist of `tollkeeper` with the project file and the README of `tollkeeper-core`."""
    (sdist,) = DIST.glob("tollkeeper-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    source = place / sdist.name.removesuffix(".tar.gz")
    shutil.rmtree(source / "src" / "tollkeeper.egg-info")
    for file in (ROOT / "distribution").iterdir():
        shutil.copy(file, source)
    return source


def checked_wheel(name: str) -> Path:
    """Return the wheel of the distribution *name*; its files must be those of the package."""
    (wheel,) = DIST.glob(f"{name}-*.whl")
    kept = {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {file for file in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in file}
    if "tollkeeper/page/index.html" not in kept:
        sys.exit("the page is not built: make ui")
    if kept != found:
        sys.exit(
            f"{wheel.name} lacks {sorted(kept - found)} and has {sorted(found - kept)} beyond the package"
        )
    return wheel


def installed(wheel: Path, environment: Path, extra: str = "") -> Path:
    """Return the commands' directory of a new *environment* with *wheel* and what it requires, and nothing else."""
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    commands = environment / "bin"
    pip = (sys.executable, "-m", "pip", "--python", commands / "python")
    run(*pip, "install", "--quiet", "--no-compile", "--no-index", "--no-deps", wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    (metadata,) = site.glob("tollkeeper*.dist-info")
    for required in closure(Distribution.at(metadata), extra):
        link(required, site)
    run(*pip, "check")
    return commands


def closure(package: Distribution, extra: str) -> list[Distribution]:
    """Return the packages of this environment that *package* with its *extra* requires, and those that they require."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(package, extra)]
    while waiting:
        asking, asked_extra = waiting.pop()
        for requirement in map(Requirement, asking.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": asked_extra}):
                continue
            has = distribution(requirement.name)
            if not requirement.specifier.contains(has.version, prereleases=True):
                sys.exit(f"{asking.name} requires {requirement}, and {has.version} is installed")
            found[has.name] = has
            for wanted in {"", *requirement.extras}:
                if (has.name, wanted) not in seen:
                    seen.add((has.name, wanted))
                    waiting.append((has, wanted))
    return list(found.values())


def link(package: Distribution, site: Path) -> None:
    """Put links to the top modules of *package* and to its metadata into *site*; its commands stay out."""
    for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        if not (site / name).is_symlink():  # chdb and chdb-core share a directory.
            (site / name).symlink_to(Path(str(package.locate_file(name))))


def one_line(text: str) -> str:
    """Return *text* if it is one line, otherwise nothing."""
    return text if text.count("\n") == 1 else ""


main()
