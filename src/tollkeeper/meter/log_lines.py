"""
What a line of an access log says, and how its parts are read: times, request lines, counts, latencies.

Every format of a log (`log_text`, `log_json`, `log_w3c`) makes a `LogLine` of a line, or refuses it with the reason.
A value that cannot be read is a refusal; it is never taken for another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from tollkeeper.domain.events import FUTURE_S_MAX, LATENCY_MS_MAX, TIME_MIN_US, parse_time_us
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.meter import bounded_path
from tollkeeper.meter.fields import CHARS_MAX, INT_BOUNDS
from tollkeeper.meter.rejections import ECHO_CHARS_MAX, Refused

METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
"""A token of RFC 9110."""
US_PER_UNIT: Final[Mapping[str, Decimal]] = {
    "s": Decimal(1_000_000),
    "ms": Decimal(1_000),
    "us": Decimal(1),
    "ns": Decimal("0.001"),
}
"""Microseconds of each unit that a time or a latency may be in."""
NUMBER_CHARS_MAX: Final = 32
_VERSION: Final = re.compile(r"HTTP/\d(?:\.\d)?", re.ASCII)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ABSOLUTE: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?]*", re.ASCII | re.IGNORECASE)
_DECIMAL: Final = re.compile(r"-?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)


class Misfit(Refused):
    """A line is not in the format; it may be in another one."""

    def __init__(self, reason: str) -> None:
        super().__init__("", "malformed", reason)


class LogLine(NamedTuple):
    """
    What one line says; None for what it does not say.

    Attributes:
        names: The texts that `client_field` and a field map may ask for, under the format's own names.
        id: The id that the log itself gives the request; None for one that is made of the line.
    """

    occurred_at_us: int
    method: str | None
    route: str | None
    status: int | None
    bytes_out: int | None
    latency_us: int | None
    names: Mapping[str, str]
    id: str | None = None


class LineFormat(Protocol):
    """One format of a log. It may remember what earlier lines declared."""

    @property
    def title(self) -> str:
        """The format in the words of a rejection: `the line is not in …`."""

    def is_entry(self, line: bytes) -> bool:
        """Whether *line*, which is not blank, is a request; other lines say something about the file."""

    def declare(self, line: bytes) -> None:
        """Take note of *line*, which is no request."""

    def read(self, line: bytes, now_us: int) -> LogLine:
        """
        Return what *line* says.

        Raises:
            Refused: The line is not in this format, is ambiguous in it, or has a value out of bounds.
        """


def text_of(line: bytes) -> str:
    """Return *line* as text; bytes that are not UTF-8 are shown as servers show them, `\\xff`."""
    return line.decode("utf-8", "backslashreplace")


def echo(text: str) -> str:
    """Return as much of *text* as a rejection repeats."""
    return text if len(text) <= ECHO_CHARS_MAX else text[:ECHO_CHARS_MAX] + "…"


def method_and_route(request: str) -> tuple[str | None, str | None]:
    """
    Return both from a request line, None if it is none; one of HTTP/0.9 names no version.

    Of an absolute URL (RFC 9112, 3.2.2) the route is the path: servers route by it, and so does the gate.
    """
    method, _, rest = request.partition(" ")
    target, _, version = rest.rpartition(" ")
    if not _VERSION.fullmatch(version):
        target = rest
    route = target.strip().partition("?")[0]
    if not route or not METHOD.fullmatch(method):
        return None, None
    return method_of(method), bounded_path(without_origin(route))


def method_of(text: str) -> str | None:
    """Return an HTTP method; None for `-` and no text."""
    if text in ("", "-"):
        return None
    if len(text) > CHARS_MAX["method"]:
        reason = f"method must be text of length <= {CHARS_MAX['method']}"
        raise Refused("method", "out_of_range", reason)
    return text


def route_of(target: str) -> str | None:
    """Return the path of a request target, without its query; None for `-` and no text."""
    path = target.partition("?")[0]
    return None if path in ("", "-") else bounded_path(path)


def without_origin(target: str) -> str:
    """Return the path of an absolute URL, `/a` of `http://host:80/a`; another target stays as it is."""
    match = _ABSOLUTE.match(target)
    return target if match is None else target[match.end() :] or "/"


def status_of(text: str) -> int | None:
    """Return a status of three digits; `000`, which proxies write where none was sent, is none."""
    if text in ("", "-"):
        return None
    if not re.fullmatch(r"\d{3}|0", text, re.ASCII):
        raise Refused("status", "out_of_range", f"status must be three digits, not {echo(text)!r}")
    return int(text) or None


def count_of(text: str, name: str = "bytes_out") -> int:
    """Return a count of bytes; `-` is 0."""
    most = INT_BOUNDS[name][1]
    if text in ("", "-"):
        return 0
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise Refused(name, "wrong_type", f"{name} must be a whole number, not {echo(text)!r}")
    # By length first: Python does not read a number of thousands of digits.
    if len(text) > 20 or int(text) > most:
        raise Refused(name, "out_of_range", f"{name} must be an integer <= {most}")
    return int(text)


def latency_of(text: str, unit: str) -> int | None:
    """
    Return a latency in whole microseconds, half to even; None for `-` and no text.

    Args:
        unit: One of `US_PER_UNIT`.
    """
    if text in ("", "-"):
        return None
    return latency_us_of(_number(text, "latency_ms"), unit)


def latency_us_of(number: Decimal, unit: str) -> int:
    """Return *number* of *unit* in whole microseconds, half to even."""
    latency_us = number * US_PER_UNIT[unit]
    if not 0 <= latency_us <= LATENCY_MS_MAX * 1000:
        reason = (
            f"latency_ms must be >= 0 and <= {LATENCY_MS_MAX}; {number} was read in {unit}: is that its unit?"
        )
        raise Refused("latency_ms", "out_of_range", reason)
    return round(latency_us)


def epoch_us(text: str, unit: str, now_us: int) -> int:
    """Return the instant that is *text* of *unit* after the Unix epoch."""
    at_us = _number(text, "time") * US_PER_UNIT[unit]
    return bounded_time(int(at_us), f"{echo(text)} {unit} since 1970", now_us)


def clf_time_us(text: str, now_us: int) -> int:
    """Return the instant of `17/May/2015:10:05:03 +0000`."""
    try:
        at_us = _parse_clf_us(text)
    except ValueError:
        raise Refused(
            "time", "bad_time", f"{text} is no time; give one such as 17/May/2015:10:05:03 +0000"
        ) from None
    return bounded_time(at_us, text, now_us)


def iso_time_us(text: str, now_us: int) -> int:
    """Return the instant of `2015-05-17T10:05:03.123+00:00`; the offset may lack its colon."""
    rfc = re.sub(r"[ ]?([+-]\d\d)(\d\d)\Z", r"\1:\2", text)
    try:
        at_us = parse_time_us(rfc)
    except ValueError:
        reason = f"{echo(text)} is no time with an offset; give one such as 2015-05-17T10:05:03+00:00"
        raise Refused("time", "bad_time", reason) from None
    return bounded_time(at_us, echo(text), now_us)


def bounded_time(at_us: int, text: str, now_us: int) -> int:
    """Return *at_us*, if it is neither before the year 2000 nor in the future."""
    if at_us < TIME_MIN_US:
        reason = f"{text} is before the year 2000; check the server's clock and the unit of the time"
        raise Refused("time", "time_too_old", reason)
    if at_us > now_us + FUTURE_S_MAX * US_PER_S:
        what = "check the server's clock, the offset and the unit of the time"
        reason = f"{text} is more than {FUTURE_S_MAX} s in the future; {what}"
        raise Refused("time", "time_in_future", reason)
    return at_us


def _number(text: str, name: str) -> Decimal:
    if len(text) <= NUMBER_CHARS_MAX and _DECIMAL.fullmatch(text):
        try:
            return Decimal(text)
        except InvalidOperation:
            pass
    code = "bad_time" if name == "time" else "wrong_type"
    raise Refused(name, code, f"{name} must be a number, not {echo(text)!r}")


@lru_cache(maxsize=4096)
def _parse_clf_us(text: str) -> int:
    """
    Return the microseconds since the Unix epoch of e.g. `17/May/2015:10:05:03 +0000`.

    Month names are English whatever the locale, which is why this is not `strptime`.

    Raises:
        ValueError: No such month, day, time or offset.
    """
    date, sign, offset = text[:20], text[21], text[22:]
    if int(offset[2:]) > 59:
        raise ValueError(text)
    minutes = int(offset[:2]) * 60 + int(offset[2:])
    zone = timezone(timedelta(minutes=-minutes if sign == "-" else minutes)) if minutes else UTC
    day, month, year = int(date[:2]), _MONTHS.index(date[3:6]) + 1, int(date[7:11])
    return to_us(
        datetime(year, month, day, int(date[12:14]), int(date[15:17]), int(date[18:20]), tzinfo=zone)
    )
