"""
The command line: `tollkeeper …`. It translates between the shell and the rooms, and decides nothing.

Modules of this package import nothing heavy (stores, Arrow, the HTTP server) at their top, so that help and
mistakes are answered at once; a test says so.
"""

from __future__ import annotations

import sys

from tollkeeper.errors import PackageMissing
from tollkeeper.packages import needed


def main() -> None:
    """Run the `tollkeeper` command with the arguments of this process, and exit with its code."""
    try:
        with needed():
            from tollkeeper.cli.app import run

            sys.exit(run(sys.argv[1:]))
    except PackageMissing as exc:
        sys.exit(f"error: {exc}")
