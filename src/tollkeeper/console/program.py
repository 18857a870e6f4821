"""The command line's own name, as the reader must type it from where it stands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

NAME: Final = "tollkeeper"


def program() -> str:
    """
    Return what a shell starts this command line with: `tollkeeper` where it is on the PATH, else where it is.

    `.venv/bin/tollkeeper` after `make demo`; the interpreter with `-m tollkeeper` when started as a module.
    """
    started = Path(sys.argv[0])
    if started.name != NAME or not started.is_file():
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m {NAME}"
    found = shutil.which(NAME)
    if found is not None and os.path.realpath(found) == os.path.realpath(started):
        return NAME
    return shlex.quote(_from_here(started))


def _from_here(path: Path) -> str:
    """Return *path* relative to the working directory if it is below, else absolute. Links are not followed."""
    full = Path(os.path.abspath(path))
    try:
        return str(full.relative_to(Path.cwd()))
    except ValueError:
        return str(full)
