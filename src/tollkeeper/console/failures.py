"""Failures of commands: one line on stderr and an exit code."""

from __future__ import annotations

from typing import Final

FAILED: Final = 1
"""Exit code when a command could not be carried out, or found what it looked for to be wrong."""
MISUSED: Final = 2
"""Exit code when the command line itself is wrong."""


class Failure(Exception):
    """
    A command cannot go on. `str(failure)` is the line to show: what is wrong and what to do.

    Args:
        exit_code: `FAILED` or `MISUSED`.
    """

    def __init__(self, message: str, *, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def misused(message: str) -> Failure:
    """Return the failure of a wrong command line."""
    return Failure(message, exit_code=MISUSED)
