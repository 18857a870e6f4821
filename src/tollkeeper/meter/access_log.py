"""
Decodes the access logs of web servers and proxies into the columns of meter events.

A line has no event id, so it gets one from what it says: of a line that occurs twice in a file both count,
and a file that is read twice, in other pieces or in another order of lines, counts once. So does its rotated copy. Two
servers can write the same line at the same time; `source` tells their files apart.

The formats: `log_text` (format strings of nginx and Apache, and those with names), `log_w3c`, `log_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from tollkeeper.domain.events import TAGS_MAX
from tollkeeper.errors import BadParameter
from tollkeeper.meter.decode import Decoded
from tollkeeper.meter.fields import CHARS_MAX, TAG_VALUE_CHARS_MAX, table_from
from tollkeeper.meter.log_json import LINE_FIELDS, JsonFormat
from tollkeeper.meter.log_lines import LineFormat, LogLine, Misfit
from tollkeeper.meter.log_recognition import recognised
from tollkeeper.meter.log_text import text_format
from tollkeeper.meter.log_w3c import W3cFormat
from tollkeeper.meter.rejections import EVENTS_MAX, Refused, Rejected, too_many

LogFormat = str
"""A name (`combined`, `nginx-main`, `w3c`, `json`, …), or a format string of nginx or Apache."""
ClientField = Literal["host", "ident", "user"]

LINE_BYTES_MAX: Final = 65_536
"""Servers bound a request line and each header to 8 KiB; a longer line is taken for another kind of file."""
ID_DIGEST_BYTES: Final = 16
HINTS_MAX: Final = 100
"""Rejected lines that are compared with the other formats: each takes up to some ms."""
NAME_FIELDS: Final = ("account", "project", "key_id", "model", "client")
"""Fields of text that a field map can take from any format, beside `tags.NAME`."""
_TAG: Final = "tags."
_TAG_NAME_CHARS_MAX: Final = 64


class AccessLog:
    """
    Decodes one log file, given in one piece or in several.

    Per line: `method`, `route` (the path, without query), `status`, `bytes_out` (`-` is 0), `latency_us` where the
    log has it, time, the `kind` `request`, and the client as tag `client`. Referer and user agent are not kept. Text
    stays as the server escaped it (`\\"`, `\\x16`). A request line that is none (`-`, or the bytes of a TLS greeting)
    counts as a request without method and route. Of a path too long for `route` the end is replaced by a digest of the
    whole: the request was answered and must count, and different paths stay different.

    It remembers each distinct line of the file, some 150 bytes each, until it is dropped.

    Args:
        format: See `LogFormat`.
        account: Who pays for what the file records.
        client_field: The field that tells the provider's clients apart; none if absent.
        source: Names the server whose log it is, where several servers can write the same line. Ids depend on it.
        field_map: Field of the event → its name in the log: `tags.team` → `http_x_team`. Of `NAME_FIELDS` and
            `tags.NAME`; for `json` also of `LINE_FIELDS`, with paths such as `request.uri`.

    Raises:
        BadParameter: The format is not known or cannot be read with certainty, or the field map is wrong for it.
    """

    def __init__(
        self,
        *,
        format: LogFormat,
        account: str | None,
        client_field: ClientField | None = None,
        source: str | None = None,
        field_map: Mapping[str, str] | None = None,
    ) -> None:
        field_map = field_map or {}
        self._named = {name: path for name, path in field_map.items() if _is_name(name)}
        of_lines = {name: path for name, path in field_map.items() if name not in self._named}
        _check_field_map(format, of_lines, self._named)
        if client_field is not None and "client" not in self._named:
            self._named["client"] = client_field
        kept = frozenset(self._named.values())
        self._name = format
        self._format: LineFormat
        if format == "json":
            self._format = JsonFormat(of_lines, kept)
        elif format == "w3c":
            self._format = W3cFormat(kept)
        else:
            self._format = text_format(format, kept)
        self._account = account
        self._salt = b"" if source is None else source.encode() + b"\0"
        self._seen: dict[bytes, int] = {}
        self._hints_left = HINTS_MAX

    def is_entry(self, line: bytes) -> bool:
        """Whether *line* is counted as an event: it is not blank, and no directive such as `#Fields:`."""
        line = line.strip()
        return bool(line) and self._format.is_entry(line)

    def decode(self, lines: bytes, *, now_us: int) -> Decoded:
        """
        Decode the next *lines* of the file: whole lines, the last with or without its line end.

        Positions in the answer count the lines of this call that `is_entry`, from 0. Lines that cannot be taken are
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
            if not self._format.is_entry(line):
                self._format.declare(line)
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
        table = table_from({**columns, "kind": ["request"] * len(indexes)}, len(indexes))
        return Decoded(table, np.array(indexes, np.int64), rejected.shown, count)

    def _row(self, line: bytes, now_us: int) -> _Row:
        if len(line) > LINE_BYTES_MAX:
            raise Refused(
                "", "malformed", f"the line has more than {LINE_BYTES_MAX} bytes; is it an access log?"
            )
        try:
            said = self._format.read(line, now_us)
        except Misfit as exc:
            raise self._with_hint(exc, line, now_us) from None
        named = self._named_values(said)
        tags = {
            name.removeprefix(_TAG): text for name, text in named.items() if name == "client" or _is_tag(name)
        }
        return _Row(
            occurred_at_us=said.occurred_at_us,
            account=named.get("account", self._account),
            project=named.get("project"),
            key_id=named.get("key_id"),
            model=named.get("model"),
            method=said.method,
            route=said.route,
            status=said.status,
            bytes_out=said.bytes_out,
            latency_us=said.latency_us,
            tags=tags or None,
            id=said.id or self._id(line),
        )

    def _with_hint(self, refused: Misfit, line: bytes, now_us: int) -> Misfit:
        if not self._hints_left:
            return refused
        self._hints_left -= 1
        other = recognised([line], now_us)
        if other is None or other.option == f"--log-format {self._name}":
            return refused
        return Misfit(f"{refused}; it is {other.title}: {other.advice}")

    def _named_values(self, said: LogLine) -> dict[str, str]:
        """Return what the line says of the named fields; `-` and no text are absent."""
        values: dict[str, str] = {}
        for name, path in self._named.items():
            text = said.names.get(path, "-")
            if text in ("-", ""):
                continue
            most = CHARS_MAX.get(name, TAG_VALUE_CHARS_MAX)
            if len(text) > most:
                field = "tags.client" if name == "client" else name
                raise Refused(field, "out_of_range", f"{path} must be text of length <= {most}")
            values[name] = text
        return values

    def _id(self, line: bytes) -> str:
        """Return the id of the next occurrence of *line*."""
        digest = blake2b(line, digest_size=ID_DIGEST_BYTES).digest()
        occurrence = self._seen[digest] = self._seen.get(digest, 0) + 1
        said = b"%b%b\n%d" % (self._salt, line, occurrence)
        return "log-" + blake2b(said, digest_size=ID_DIGEST_BYTES).hexdigest()


class _Row(NamedTuple):
    """What a line says, under the names of `EVENT_SCHEMA`."""

    occurred_at_us: int
    account: str | None
    project: str | None
    key_id: str | None
    model: str | None
    method: str | None
    route: str | None
    status: int | None
    bytes_out: int | None
    latency_us: int | None
    tags: dict[str, str] | None
    id: str


def _is_tag(name: str) -> bool:
    return name.startswith(_TAG)


def _is_name(name: str) -> bool:
    return name in NAME_FIELDS or _is_tag(name)


def _check_field_map(format: str, of_lines: Mapping[str, str], named: Mapping[str, str]) -> None:
    allowed = (*NAME_FIELDS, "tags.NAME", *(LINE_FIELDS if format == "json" else ()))
    for name in of_lines:
        if format != "json" or name not in LINE_FIELDS:
            reason = f"field_map: {name!r} cannot be mapped in this format; it can have {', '.join(allowed)}"
            raise BadParameter(reason, field="field_map")
    tags = [name.removeprefix(_TAG) for name in named if _is_tag(name) or name == "client"]
    if any(not 0 < len(tag) <= _TAG_NAME_CHARS_MAX for tag in tags) or len(tags) > TAGS_MAX:
        reason = f"field_map: at most {TAGS_MAX} tags, with names of 1 to {_TAG_NAME_CHARS_MAX} characters"
        raise BadParameter(reason, field="field_map")
