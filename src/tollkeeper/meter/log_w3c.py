"""
Access logs in the W3C extended format: IIS and CloudFront. `#Fields:` says which fields the lines after it have.

Times are UTC. `time-taken` is seconds for CloudFront and, as IIS writes it, milliseconds; a number with a decimal
point is seconds, which is what the format itself says.

Sources: W3C WD-logfile-960323; Microsoft "W3C Logging" (IIS: values with `+` for a space); AWS "Standard logging
reference" (CloudFront: separated by tabs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tollkeeper.errors import BadParameter
from tollkeeper.meter.log_lines import (
    LogLine,
    Misfit,
    count_of,
    iso_time_us,
    latency_of,
    method_of,
    route_of,
    status_of,
    text_of,
    without_origin,
)
from tollkeeper.meter.rejections import Refused

_FIELDS: Final = "#fields:"
"""In any case: a directive that is passed over leaves the fields of before, and lines would be misread."""
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {"host": ("c-ip",), "user": ("cs-username",)}
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME: Final = re.compile(r"\d\d:\d\d:\d\d(?:\.\d+)?", re.ASCII)
_WORD: Final = re.compile(r'"(?:[^"]|"")*"(?=\s|\Z)|[^\s"]\S*|"\S*')
"""A text in quotes, with its own doubled, or a word."""


class W3cFormat:
    """
    A file in the W3C extended format. It remembers the last `#Fields:`.

    Args:
        kept: Names of which the value is kept: `host`, `user`, or a field such as `cs-host`.

    Raises:
        BadParameter: *kept* has `ident`, which is no field of this format.
    """

    title = "the W3C extended format"

    def __init__(self, kept: frozenset[str] = frozenset()) -> None:
        if "ident" in kept:
            raise BadParameter("client_field: a W3C log has no ident; use host or user", field="client_field")
        self._kept = kept
        self._fields: tuple[str, ...] = ()
        self._is_cloudfront = False

    def is_entry(self, line: bytes) -> bool:
        return not line.startswith(b"#")

    def declare(self, line: bytes) -> None:
        text = text_of(line)
        if text.lower().startswith(_FIELDS):
            self._fields = tuple(text[len(_FIELDS) :].split())
            self._is_cloudfront = any(name.startswith("x-edge-") for name in self._fields)

    def read(self, line: bytes, now_us: int) -> LogLine:
        if not self._fields:
            reason = "no line #Fields: before it says which fields it has; keep the head of the file"
            raise Misfit(reason)
        values = self._values(text_of(line))
        path = values.get("cs-uri-stem", values.get("cs-uri"))
        if path is None:
            raise Refused("route", "missing_field", "#Fields: must name cs-uri-stem or cs-uri")
        taken = values.get("time-taken", "-")
        in_seconds = self._is_cloudfront or "." in taken
        size = values.get("sc-bytes")
        return LogLine(
            occurred_at_us=self._time_us(values, now_us),
            method=method_of(values.get("cs-method", "-")),
            route=route_of(without_origin(path)),
            status=status_of(values.get("sc-status", "-")),
            bytes_out=None if size is None else count_of(size),
            latency_us=latency_of(taken, "s" if in_seconds else "ms"),
            names={name: value for name in self._kept if (value := self._named(values, name)) is not None},
        )

    def _values(self, text: str) -> dict[str, str]:
        if "\t" in text:
            values = text.split("\t")
        else:
            values = [_unquoted(word) for word in _WORD.findall(text)]
        if len(values) != len(self._fields):
            reason = f"the line has {len(values)} fields, and #Fields: names {len(self._fields)}"
            raise Refused("", "malformed", reason)
        return dict(zip(self._fields, values, strict=True))

    @staticmethod
    def _time_us(values: Mapping[str, str], now_us: int) -> int:
        date, time = values.get("date", ""), values.get("time", "")
        if not date or not time:
            raise Refused("time", "missing_field", "#Fields: must name date and time; add them to the log")
        if not _DATE.fullmatch(date) or not _TIME.fullmatch(time):
            raise Refused("time", "bad_time", "date and time must be such as 2026-01-31 and 09:30:00")
        return iso_time_us(f"{date}T{time}Z", now_us)

    @staticmethod
    def _named(values: Mapping[str, str], name: str) -> str | None:
        for field in _NAMES.get(name, (name,)):
            if field in values:
                return values[field]
        if name in _NAMES:
            return None
        raise Refused("", "missing_field", f"#Fields: does not name {name}, which the field map names")


def _unquoted(word: str) -> str:
    if len(word) > 1 and word.startswith('"') and word.endswith('"'):
        return word[1:-1].replace('""', '"')
    return word
