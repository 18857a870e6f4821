"""The log of a serving process on stderr, with the fields of each message: lines of text, or of JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

_STANDARD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}
_OWN: Final = ("time", "level", "logger", "message", "exception")


class FieldFormatter(logging.Formatter):
    """Appends what a message brings as `extra`, as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        fields = [f"{name}={value!r}" for name, value in _fields(record).items()]
        head, line_end, traceback = text.partition("\n")
        return " ".join([head, *fields]) + line_end + traceback


class JsonFormatter(logging.Formatter):
    """
    One JSON object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, the message's fields by name, and
    `exception` (the traceback).

    A field with one of these names becomes `extra_<name>`. A value that JSON does not have is written as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record).items():
            line[f"extra_{name}" if name in _OWN else name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(level: str, format: Literal["text", "json"] = "text") -> None:
    """Send the log of this process to stderr, from *level* (`debug` to `error`) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else FieldFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It tells each step of a migration; ours says what matters.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
