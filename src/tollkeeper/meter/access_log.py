"""
Decodes the access logs of web servers, Common and Combined Log Format, into the columns of meter events.

A line has no event id, so it gets one from what it says: of a line that occurs twice in a file both count,
and a file that is read twice, in other pieces or in another order of lines, counts once.

Source of the formats: Apache `mod_log_config`, `"%h %l %u %t \\"%r\\" %>s %b"`, and for Combined also
`"\\"%{Referer}i\\" \\"%{User-agent}i\\""`; nginx writes the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from tollkeeper.domain.events import FUTURE_S_MAX, TIME_MIN_US
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.meter import bounded_path
from tollkeeper.meter.decode import Decoded
from tollkeeper.meter.fields import CHARS_MAX, INT_BOUNDS, TAG_VALUE_CHARS_MAX, table_from
from tollkeeper.meter.rejections import EVENTS_MAX, Refused, Rejected, too_many

LogFormat = Literal["common", "combined"]
ClientField = Literal["host", "ident", "user"]

LINE_BYTES_MAX: Final = 65_536
"""Servers bound a request line and each header to 8 KiB; a longer line is taken for another kind of file."""
ID_DIGEST_BYTES: Final = 16

_QUOTED: Final = r'"((?:[^"\\]|\\.)*+)"'
# The user may hold spaces; the strict form of the time keeps the search for its end linear.
_COMMON: Final = (
    r"(?P<host>\S+) (?P<ident>\S+) (?P<user>.+?) "
    r"\[(?P<time>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
    r'"(?P<request>(?:[^"\\]|\\.)*+)" (?P<status>\d{3}|-) (?P<size>\d+|-)'
)
_PATTERNS: Final[Mapping[LogFormat, re.Pattern[str]]] = {
    "common": re.compile(_COMMON, re.ASCII),
    "combined": re.compile(f"{_COMMON} {_QUOTED} {_QUOTED}", re.ASCII),
}
_FORMAT_NAMES: Final[Mapping[LogFormat, str]] = {
    "common": 'Common Log Format: host ident user [time] "request" status bytes',
    "combined": 'Combined Log Format: host ident user [time] "request" status bytes "referer" "user agent"',
}
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110."""
_VERSION: Final = re.compile(r"HTTP/\d(?:\.\d)?", re.ASCII)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLog:
    """
    Decodes one log file, given in one piece or in several.

    Per line: `method`, `route` (the path, without query), `status`, `bytes_out` (`-` is 0), time, the `kind`
    `request`, and the client as tag `client`. Referer and user agent are not kept. Text stays as the server
    escaped it (`\\"`, `\\x16`). A request line that is none (`-`, or the bytes of a TLS greeting) counts as a
    request without method and route. Of a path too long for `route` the end is replaced by a digest of the
    whole: the request was answered and must count, and different paths stay different.

    It remembers each distinct line of the file, some 150 bytes each, until it is dropped.

    Args:
        format: `common` or `combined`.
        account: Who pays for what the file records.
        client_field: The field that tells the provider's clients apart; none if absent.
    """

    def __init__(self, *, format: LogFormat, account: str, client_field: ClientField | None = None) -> None:
        self._format: LogFormat = format
        self._pattern = _PATTERNS[format]
        self._account = account
        self._client_field = client_field
        self._seen: dict[bytes, int] = {}

    def decode(self, lines: bytes, *, now_us: int) -> Decoded:
        """
        Decode the next *lines* of the file: whole lines, the last with or without its line end.

        Positions in the answer count the non-blank lines of this call, from 0. Lines that cannot be taken are
        rejections, as in `meter.decode`, whose bounds hold for a log too.

        Raises:
            BodyTooLarge: More than `EVENTS_MAX` lines.
            Malformed: None of the first `GIVEN_UP_AFTER` lines can be taken.
        """
        if lines.count(b"\n") > EVENTS_MAX:
            raise too_many()
        columns: dict[str, list[Any]] = {name: [] for name in _Row._fields}
        indexes: list[int] = []
        rejected = Rejected(gives_up=True)
        count = 0
        for line in lines.split(b"\n"):
            line = line.rstrip(b"\r")
            if not line.strip():
                continue
            try:
                row = self._row(line, now_us)
            except Refused as exc:
                rejected.add(count, exc)
            else:
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
                indexes.append(count)
            count += 1
        given = {"account": [self._account] * len(indexes), "kind": ["request"] * len(indexes)}
        table = table_from({**columns, **given}, len(indexes))
        return Decoded(table, np.array(indexes, np.int64), rejected.shown, count)

    def _row(self, line: bytes, now_us: int) -> _Row:
        if len(line) > LINE_BYTES_MAX:
            raise Refused(
                "", "malformed", f"the line has more than {LINE_BYTES_MAX} bytes; is it an access log?"
            )
        # Bytes that are not UTF-8 are shown as servers show them, \xff.
        match = self._pattern.fullmatch(line.decode("utf-8", "backslashreplace"))
        if match is None:
            raise Refused("", "malformed", self._what_is_wrong(line))
        method, route = _method_and_route(match["request"])
        client = match[self._client_field] if self._client_field else "-"
        if len(client) > TAG_VALUE_CHARS_MAX:
            reason = f"{self._client_field} must be text of length <= {TAG_VALUE_CHARS_MAX}"
            raise Refused("tags.client", "out_of_range", reason)
        return _Row(
            occurred_at_us=_time_us(match["time"], now_us),
            method=method,
            route=route,
            status=None if match["status"] == "-" else int(match["status"]),
            bytes_out=_bytes_out(match["size"]),
            tags=None if client == "-" else {"client": client},
            id=self._id(line),
        )

    def _what_is_wrong(self, line: bytes) -> str:
        other: LogFormat = "combined" if self._format == "common" else "common"
        reason = f"the line is not in {_FORMAT_NAMES[self._format]}"
        if _PATTERNS[other].fullmatch(line.decode("utf-8", "backslashreplace")):
            reason += f"; it is in the {other} format, so decode the file as that"
        return reason

    def _id(self, line: bytes) -> str:
        """Return the id of the next occurrence of *line*."""
        digest = blake2b(line, digest_size=ID_DIGEST_BYTES).digest()
        occurrence = self._seen[digest] = self._seen.get(digest, 0) + 1
        return "log-" + blake2b(b"%b\n%d" % (line, occurrence), digest_size=ID_DIGEST_BYTES).hexdigest()


class _Row(NamedTuple):
    """What a line says, under the names of `EVENT_SCHEMA`."""

    occurred_at_us: int
    method: str | None
    route: str | None
    status: int | None
    bytes_out: int
    tags: dict[str, str] | None
    id: str


def _method_and_route(request: str) -> tuple[str | None, str | None]:
    """Return both from a request line, None if it is none; one of HTTP/0.9 names no version."""
    method, _, rest = request.partition(" ")
    target, _, version = rest.rpartition(" ")
    if not _VERSION.fullmatch(version):
        target = rest
    route = target.strip().partition("?")[0]
    if not route or not _METHOD.fullmatch(method):
        return None, None
    if len(method) > CHARS_MAX["method"]:
        reason = f"method must be text of length <= {CHARS_MAX['method']}"
        raise Refused("method", "out_of_range", reason)
    return method, bounded_path(route)


def _bytes_out(size: str) -> int:
    most = INT_BOUNDS["bytes_out"][1]
    # By length first: Python does not read a number of thousands of digits.
    if size == "-":
        return 0
    if len(size) > 20 or int(size) > most:
        raise Refused("bytes_out", "out_of_range", f"bytes_out must be an integer <= {most}")
    return int(size)


def _time_us(text: str, now_us: int) -> int:
    try:
        at_us = _parse_time_us(text)
    except ValueError:
        raise Refused(
            "time", "bad_time", f"{text} is no time; give one such as 17/May/2015:10:05:03 +0000"
        ) from None
    if at_us < TIME_MIN_US:
        raise Refused("time", "time_too_old", f"{text} is before the year 2000; check the server's clock")
    if at_us > now_us + FUTURE_S_MAX * US_PER_S:
        reason = f"{text} is more than {FUTURE_S_MAX} s in the future; check the server's clock and offset"
        raise Refused("time", "time_in_future", reason)
    return at_us


@lru_cache(maxsize=4096)
def _parse_time_us(text: str) -> int:
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
