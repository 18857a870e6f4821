"""The log of a serving process: one line per message on stderr, with its fields."""

from __future__ import annotations

import logging
import sys
from typing import Final

_STANDARD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}


class FieldFormatter(logging.Formatter):
    """Appends what a message brings as `extra`, as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        fields = [f"{name}={value!r}" for name, value in vars(record).items() if name not in _STANDARD]
        head, line_end, traceback = text.partition("\n")
        return " ".join([head, *fields]) + line_end + traceback


def log_to_stderr(level: str) -> None:
    """Send the log of this process to stderr, from *level* (`debug` to `error`) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It tells each step of a migration; ours says what matters.
    logging.getLogger("alembic").setLevel(logging.WARNING)
