"""The log of a serving process: every line can be read by a machine, whatever is in it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import pytest

from tollkeeper.cli.logs import FieldFormatter, JsonFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("tollkeeper.access", logging.INFO, "", 0, "tollkeeper.%s", ("access",), None)
    made.created = datetime(2026, 1, 31, 9, 30, 0, 250_000, UTC).timestamp()
    vars(made).update(extra)
    return made


def test_a_line_of_json_has_time_level_and_fields() -> None:
    line = JsonFormatter().format(record(status=200, path="/a"))
    assert json.loads(line) == {
        "time": "2026-01-31T09:30:00.250Z",
        "level": "info",
        "logger": "tollkeeper.access",
        "message": "tollkeeper.access",
        "status": 200,
        "path": "/a",
    }


@pytest.mark.parametrize("nasty", ["a\nERROR forged", "\x1b[31m", "\u2028", '"}', "\udcff"])
@pytest.mark.parametrize("formatter", [JsonFormatter(), FieldFormatter()])
def test_a_value_never_makes_a_line_of_its_own(nasty: str, formatter: logging.Formatter) -> None:
    line = formatter.format(record(path=nasty))
    assert len(line.splitlines()) == 1
    assert line.isprintable()


def test_a_field_never_replaces_what_the_line_has_itself() -> None:
    found = json.loads(JsonFormatter().format(record(time="never", level="none", reason=ValueError("x"))))
    assert (found["level"], found["extra_level"], found["extra_time"], found["reason"]) == (
        "info",
        "none",
        "never",
        "x",
    )


def test_an_exception_stays_in_its_line() -> None:
    made = record()
    try:
        raise ValueError("first\nsecond")
    except ValueError as exc:
        made.exc_info = (type(exc), exc, exc.__traceback__)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "first\nsecond" in json.loads(line)["exception"]
