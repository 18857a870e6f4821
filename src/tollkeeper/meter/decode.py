"""
Decodes batches of meter events (`domain.events.Event`) from JSON into Arrow columns.

There are two ways from bytes to columns, and they agree on every input (a property test says so):

* the exact way decodes one event at a time with msgspec; it decides what an event is and words every
  rejection;
* the fast way reads the whole batch with Arrow and checks the bounds column by column. It only ever accepts
  events; whatever looks odd to it (a piece that Arrow cannot read, a row out of bounds) goes the exact way.

So a bad event costs the other events of its piece (`PIECE_LINES`) some time, and nothing else.

A call costs in proportion to what was sent, whatever that is. Rejections beyond `REJECTIONS_SHOWN` are counted,
never made. Bytes are bounded before they are parsed: the events of a call (`EVENTS_MAX`) and the bytes of one
event (`EVENT_BYTES_MAX`). A body whose first `GIVEN_UP_AFTER` events are all bad is given up. Those bounds
raise; no other bad input does.

Conventions, the same both ways: null means absent, for a tag too; of a key given twice the last one counts;
tags are kept in the order of their names, and no tags at all are null; a number with a fraction or an
exponent is not an integer, even `200.0`; empty text is kept as it came, but names no account and no API key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from tollkeeper.domain.events import FUTURE_S_MAX, TIME_MIN_US, Event, Tokens, latency_us, parse_time_us
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.errors import BodyTooLarge, Malformed

REJECTIONS_SHOWN: Final = 1_000
"""A batch lists so many rejections; it counts all."""
EVENTS_MAX: Final = 1_000_000
"""Most events of one body. The smallest event has 65 bytes, so a body of 64 MiB with more holds few events."""
EVENT_BYTES_MAX: Final = 256 * 1024
"""
Most bytes of one event. The largest that is in bounds has fewer than 100,000: 16 tags of 64 and 256 characters
and all other texts, each character escaped as a pair of surrogates (12 bytes).
"""
GIVEN_UP_AFTER: Final = 10_000
"""A body whose first events, so many, are all bad is not a body of events."""
PIECE_LINES: Final = 4096
"""When Arrow cannot read a batch, it is tried again in pieces of so many lines."""
BLOCK_BYTES: Final = 1 << 20
"""Arrow's unit of parallel work; 0.5 to 2 MiB measured alike, smaller was slower."""
TAG_NAMES_MAX: Final = 64
"""Distinct tag names in a batch for which columns are made; a batch with more goes the exact way."""
ECHO_CHARS_MAX: Final = 64
"""Most of the caller's input that a rejection repeats."""

_SAMPLE_LINES: Final = 64
_BOM: Final = b"\xef\xbb\xbf"
_JSON_SPACE: Final = b" \t\r\n"
_T = TypeVar("_T")

Mask = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Rejection(NamedTuple):
    """
    One event that was not taken.

    `index` is its position in the caller's batch, from 0: the line, blank lines not counted, or the place in
    the array. `field` is the path of the field at fault (`tokens.prompt`), `""` for the event as a whole.
    `code` is one of `malformed`, `missing_field`, `unknown_field`, `wrong_type`, `out_of_range`, `bad_value`,
    `bad_time`, `time_too_old`, `time_in_future`. `reason` says what is wrong and what to do.
    """

    index: int  # type: ignore[assignment]  # Hides `tuple.index`, which nobody needs here.
    field: str
    code: str
    reason: str


class Decoded(NamedTuple):
    """
    What a batch held: `count` events, of which some are rows of `columns` (`EVENT_SCHEMA`, in order), the
    others were rejected. `indexes` is each row's position in the batch. `rejections` are the first
    `REJECTIONS_SHOWN`, in order; `rejected` counts all.
    """

    columns: pa.Table
    indexes: Int64s
    rejections: list[Rejection]
    count: int  # type: ignore[assignment]  # Hides `tuple.count`, which nobody needs here.

    @property
    def rejected(self) -> int:
        """How many events were not taken."""
        return self.count - len(self.indexes)


_TEXT_COLUMNS: Final = (
    "account",
    "project",
    "key_id",
    "method",
    "route",
    "kind",
    "error_type",
    "denied_reason",
    "model",
    "cache",
)
_PLAIN_INTS: Final = ("status", "bytes_out", "credits", "cost_nanos", "estimated_cost_nanos")
_TOKEN_CLASSES: Final = Tokens.__struct_fields__
_TAGS: Final = pa.map_(pa.string(), pa.string())

EVENT_SCHEMA: Final = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("occurred_at_us", pa.int64(), nullable=False)]
    + [pa.field(name, pa.dictionary(pa.int32(), pa.string())) for name in _TEXT_COLUMNS]
    + [pa.field(name, pa.int64()) for name in ("status", "latency_us", "bytes_out")]
    + [pa.field(f"{name}_tokens", pa.int64()) for name in _TOKEN_CLASSES]
    + [pa.field(name, pa.int64()) for name in ("credits", "cost_nanos", "estimated_cost_nanos")]
    + [pa.field("tags", _TAGS)]
)
"""An event's columns; null means absent. `*_us` are microseconds, `occurred_at_us` since the Unix epoch."""

_PLAIN_SCHEMA: Final = pa.schema(
    [pa.field(f.name, pa.string(), f.nullable) if pa.types.is_dictionary(f.type) else f for f in EVENT_SCHEMA]
)
"""`EVENT_SCHEMA` while it is being put together: text is dictionary-encoded once, last."""


def decode_ndjson(body: bytes, *, now_us: int) -> Decoded:
    """
    Decode newline-delimited JSON, one event per line.

    Blank lines, a missing last line end, CRLF line ends and a leading byte order mark are all fine.

    Args:
        body: UTF-8; any bytes at all are answered, with rejections.
        now_us: The present, microseconds since the Unix epoch; times may lie `FUTURE_S_MAX` beyond it.

    Raises:
        BodyTooLarge: It has more than `EVENTS_MAX` lines.
        Malformed: None of its first `GIVEN_UP_AFTER` events can be taken.
    """
    # Counted before anything is made of it: a line of one byte costs some hundred bytes of memory.
    if body.count(b"\n") > EVENTS_MAX:
        raise too_many()
    rejected = Rejected(gives_up=True)
    return _assemble(_decode_lines(_Lines.of(body.removeprefix(_BOM)), now_us, rejected), rejected)


def decode_json(body: bytes, *, now_us: int) -> Decoded:
    """
    Decode one event (a JSON object) or an array of events.

    A body that is not JSON at all is one rejection, `malformed` at index 0. For the arguments and errors see
    `decode_ndjson`.
    """
    body = body.removeprefix(_BOM).strip(_JSON_SPACE)
    rejected = Rejected(gives_up=True)
    if not body:
        return _assemble([], rejected)
    # The commas of an array bound its items from above; only where they may be too many, its own are counted.
    if body.count(b",") >= EVENTS_MAX and array_commas(body) >= EVENTS_MAX:
        raise too_many()
    items: list[msgspec.Raw]
    try:
        items = _RAW_ARRAY.decode(body) if body.startswith(b"[") else [_RAW.decode(body)]
    except _UNREADABLE as exc:
        rejected.add(0, exc)
        return _assemble([_Part.none_of(1)], rejected)
    # A raw item is well-formed JSON, so a line end in it is white space between tokens.
    lines = b"\n".join(items)
    if lines.count(b"\n") != len(items) - 1:
        lines = b"\n".join(bytes(item).replace(b"\n", b" ") for item in items)
    return _assemble(_decode_lines(_Lines.of(lines), now_us, rejected), rejected)


def decode_events(events: Sequence[Event | Mapping[str, Any]], *, now_us: int) -> Decoded:
    """
    Decode events given as objects; each is checked as if it had come as JSON. See `decode_ndjson`.

    Raises nothing: the caller has the objects already, so no bound protects anybody.
    """
    rejected = Rejected(gives_up=False)
    return _assemble([_decode_each(events, _from_object, now_us, rejected, range(len(events)))], rejected)


def table_from(columns: Mapping[str, Sequence[Any]], row_count: int) -> pa.Table:
    """
    Return *columns* as a table of `EVENT_SCHEMA`; those not given are null.

    Tags are mappings of name to value, or None. The caller vouches for the bounds.
    """
    return _encoded(_plain_table(columns, row_count))


# --- Putting a batch together ------------------------------------------------------------------


class Rejected:
    """
    The rejections of one batch: the first in words, all of them in number.

    Args:
        gives_up: Whether a batch that begins with `GIVEN_UP_AFTER` bad events is given up.
    """

    def __init__(self, *, gives_up: bool) -> None:
        self.shown: list[Rejection] = []
        self._gives_up = gives_up
        self._leading_count = 0

    def add(self, index: int, error: Exception) -> None:
        """
        Take note that the event at *index* of the batch raised *error*. Indexes come in ascending order.

        Raises:
            Malformed: All events so far were bad, and they are `GIVEN_UP_AFTER`.
        """
        if len(self.shown) < REJECTIONS_SHOWN:
            self.shown.append(_rejection(index, error))
        if index != self._leading_count:
            return
        self._leading_count += 1
        if self._gives_up and self._leading_count >= GIVEN_UP_AFTER:
            first = self.shown[0]
            raise Malformed(
                f"None of the first {GIVEN_UP_AFTER:,} events can be taken, so nothing of this call was. The first: "
                f"{first.reason}."
            )


class _Part(NamedTuple):
    """A run of events of one batch; `indexes` count from the start of the run."""

    columns: pa.Table
    indexes: Int64s
    size: int

    @classmethod
    def none_of(cls, size: int) -> _Part:
        return cls(_PLAIN_SCHEMA.empty_table(), np.empty(0, np.int64), size)


def _assemble(parts: Sequence[_Part], rejected: Rejected) -> Decoded:
    """Return consecutive *parts* as the one batch that they are."""
    offset = 0
    tables, indexes = [_PLAIN_SCHEMA.empty_table()], [np.empty(0, np.int64)]
    for part in parts:
        tables.append(part.columns)
        indexes.append(part.indexes + offset)
        offset += part.size
    columns = _encoded(pa.concat_tables(tables))
    return Decoded(columns, np.concatenate(indexes), rejected.shown, offset)


def too_many() -> BodyTooLarge:
    """Return the refusal of a body with more than `EVENTS_MAX` events."""
    return BodyTooLarge(f"the body has more than {EVENTS_MAX:,} events: send fewer at once")


def array_commas(body: bytes) -> int:
    """Return how many commas separate the items of the JSON array *body*; of other bytes, some number."""
    count, depth, in_string, escaped = 0, 0, 0, False
    for start in range(0, len(body), BLOCK_BYTES):
        block = body[start : start + BLOCK_BYTES]
        # Same length, no escapes: what is left of quotes begins and ends strings.
        if escaped:
            block = b"_" + block[1:]
        block = block.replace(b"\\\\", b"__")
        escaped = block.endswith(b"\\")
        octets = np.frombuffer(block.replace(b'\\"', b"__"), np.uint8)
        inside = (np.cumsum(octets == ord('"'), dtype=np.int64) + in_string) & 1
        outside = inside == 0
        opens = outside & ((octets == ord("[")) | (octets == ord("{")))
        closes = outside & ((octets == ord("]")) | (octets == ord("}")))
        depths = np.cumsum(opens.astype(np.int64) - closes) + depth
        count += int((outside & (octets == ord(",")) & (depths == 1)).sum())
        in_string, depth = int(inside[-1]), int(depths[-1])
    return count


def _encoded(plain: pa.Table) -> pa.Table:
    """Return *plain* (`_PLAIN_SCHEMA`) as one chunk of `EVENT_SCHEMA`."""
    arrays = []
    for field in EVENT_SCHEMA:
        column = plain.column(field.name)
        if not pa.types.is_dictionary(field.type):
            arrays.append(column.combine_chunks())
        elif column.null_count == len(column):
            arrays.append(pa.nulls(len(column), field.type))
        else:
            arrays.append(column.dictionary_encode().combine_chunks())
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


@dataclass(frozen=True, slots=True)
class _Lines:
    """The non-blank lines of a body; line i is `body[starts[i]:ends[i]]`."""

    body: bytes
    starts: Int64s
    ends: Int64s
    are_objects: bool
    """
    Whether each line begins with `{` and ends with `}`.

    Arrow also reads two objects on a line, and one object over two lines. Here a line that leaves its object
    open ends with an inner `}`, after which the `{` of the next line is an error; so each line holds whole
    objects, and as many rows as lines means one object each.
    """

    @classmethod
    def of(cls, body: bytes) -> _Lines:
        """Return the lines of *body*, without blank ones and without white space around each."""
        body = body.strip(_JSON_SPACE)
        lines = cls._cut(body)
        if lines.are_objects:
            return lines
        stripped = (line.strip(_JSON_SPACE) for line in body.split(b"\n"))
        return cls._cut(b"\n".join(line for line in stripped if line))

    @classmethod
    def _cut(cls, body: bytes) -> _Lines:
        if not body:
            return cls(body, np.empty(0, np.int64), np.empty(0, np.int64), True)
        octets = np.frombuffer(body, np.uint8)
        line_ends = np.flatnonzero(octets == ord("\n"))
        starts = np.concatenate([[0], line_ends + 1])
        ends = np.concatenate([line_ends, [len(body)]])
        # A body has no white space at its ends, so every start and every end - 1 is a place in it.
        objects = (octets[starts] == ord("{")).all() and (octets[ends - 1] == ord("}")).all()
        return cls(body, starts, ends, bool(objects))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def longest(self) -> int:
        """The bytes of the longest line."""
        return int((self.ends - self.starts).max(initial=0))

    def pick(self, indexes: Iterable[int]) -> list[bytes]:
        """Return the lines at *indexes*."""
        return [self.body[self.starts[i] : self.ends[i]] for i in indexes]

    def piece(self, start: int, stop: int) -> _Lines:
        """Return lines *start* to *stop*, stop not included."""
        return self._cut(self.body[self.starts[start] : self.ends[min(stop, len(self)) - 1]])


def _decode_lines(lines: _Lines, now_us: int, rejected: Rejected) -> list[_Part]:
    """Decode *lines* the fast way where that works, and the exact way where not."""
    if not len(lines):
        return []
    if part := _decode_fast(lines, now_us, rejected, 0):
        return [part]
    starts = range(0, len(lines), PIECE_LINES)
    return [
        _decode_piece(lines.piece(start, start + PIECE_LINES), now_us, rejected, start) for start in starts
    ]


def _decode_piece(piece: _Lines, now_us: int, rejected: Rejected, start: int) -> _Part:
    return _decode_fast(piece, now_us, rejected, start) or _decode_exactly(piece, now_us, rejected, start)


# --- The exact way -----------------------------------------------------------------------------

_EVENT: Final = msgspec.json.Decoder(Event)
_ANY: Final = msgspec.json.Decoder()
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_RAW_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises on bytes; RecursionError on nesting that no event has."""

_INVALID: Final = re.compile(r"(?P<what>.*) - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TYPE: Final = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
_BOUND: Final = re.compile(r"Expected `(?P<type>[^`]*)` (?P<bound>.*)")

_TYPE_WORDS: Final = {
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "object": "an object",
    "array": "an array",
}


def _decode_exactly(lines: _Lines, now_us: int, rejected: Rejected, start: int = 0) -> _Part:
    """Decode *lines* one at a time; *start* is the place of the first in the batch."""
    return _decode_each(
        lines.pick(range(len(lines))), _from_json, now_us, rejected, range(start, start + len(lines))
    )


def _decode_each(
    items: Sequence[_T],
    decode: Callable[[_T], Event],
    now_us: int,
    rejected: Rejected,
    places: Sequence[int] | Int64s,
) -> _Part:
    """Decode each of *items*, whose *places* in the batch ascend, with *decode*, which raises as `Rejected` knows."""
    events: list[Event] = []
    times: list[int] = []
    indexes: list[int] = []
    for index, item in enumerate(items):
        try:
            event = decode(item)
            times.append(_time_us(event, now_us))
        except (*_UNREADABLE, Refused) as exc:
            rejected.add(int(places[index]), exc)
        else:
            events.append(event)
            indexes.append(index)
    return _Part(_table_of(events, times), np.array(indexes, np.int64), len(items))


class Refused(Exception):
    """An event is of the right types but cannot be taken."""

    def __init__(self, field: str, code: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.code = field, code


def _from_json(line: bytes) -> Event:
    if len(line) > EVENT_BYTES_MAX:
        raise Refused("", "malformed", f"an event has at most {EVENT_BYTES_MAX:,} bytes")
    try:
        return _EVENT.decode(line)
    except msgspec.ValidationError as exc:
        if not _concerns_tags(exc):
            raise
        return _without_null_tags(_ANY.decode(line), exc)


def _from_object(given: Event | Mapping[str, Any]) -> Event:
    """Return *given* after the checks that JSON would have had; an `Event` made in Python had none."""
    try:
        plain = msgspec.to_builtins(given) if isinstance(given, msgspec.Struct) else given
        try:
            event = msgspec.convert(plain, Event)
        except msgspec.ValidationError as exc:
            if not _concerns_tags(exc):
                raise
            event = _without_null_tags(plain, exc)
        msgspec.json.encode(event)  # Fails on text that is not Unicode, which no column can hold.
    except (TypeError, OverflowError) as exc:
        raise Refused("", "wrong_type", "the event must be an Event or a dict of JSON values") from exc
    return event


def _concerns_tags(error: msgspec.ValidationError) -> bool:
    if "tags" not in str(error):
        return False
    match = _INVALID.fullmatch(str(error))
    return match is not None and match["path"].startswith("tags")


def _without_null_tags(plain: Any, error: msgspec.ValidationError) -> Event:
    """Return *plain* as an event, null tags taken for absent like any null; raises *error* if it has none."""
    tags = plain.get("tags")
    if not isinstance(tags, Mapping) or None not in tags.values():
        raise error
    kept = {name: value for name, value in tags.items() if value is not None}
    return msgspec.convert({**plain, "tags": kept}, Event)


def _time_us(event: Event, now_us: int) -> int:
    """Return when *event* occurred; raises `Refused` if it has no acceptable time, or nobody who pays."""
    if not event.account and not event.key_id:
        raise Refused("account", "missing_field", "account or key_id is required, to know who pays")
    try:
        at_us = parse_time_us(event.time)
    except ValueError as exc:
        reason = str(exc)
        if len(event.time) > ECHO_CHARS_MAX:
            reason = "time is not a date-time; give one such as 2026-01-31T09:30:00.125Z"
        raise Refused("time", "bad_time", reason) from None
    if at_us < TIME_MIN_US:
        reason = "time is before the year 2000; check that it was made from the right unit"
        raise Refused("time", "time_too_old", reason)
    if at_us > now_us + FUTURE_S_MAX * US_PER_S:
        reason = f"time is more than {FUTURE_S_MAX} s in the future; check the sender's clock and offset"
        raise Refused("time", "time_in_future", reason)
    return at_us


def _rejection(index: int, error: Exception) -> Rejection:
    """Return *error*, raised for the event at *index*, in words for the caller."""
    if isinstance(error, Refused):
        return Rejection(index, error.field, error.code, str(error))
    if isinstance(error, msgspec.ValidationError):
        return _invalid(index, str(error))
    if isinstance(error, UnicodeError):
        return Rejection(index, "", "malformed", "text is not valid Unicode; send UTF-8")
    if isinstance(error, RecursionError):
        return Rejection(index, "", "malformed", "JSON is nested too deeply; an event has two levels")
    return Rejection(index, "", "malformed", f"{error}; send one complete JSON object per event")


def _invalid(index: int, message: str) -> Rejection:
    """Return what msgspec's *message* about an event's types says, with path, code and words of ours."""
    match = _INVALID.fullmatch(message)
    what, path = (match["what"], match["path"].partition("[")[0]) if match else (message, "")
    name = path or "the event"
    if found := _MISSING.fullmatch(what):
        field = _join(path, found[1])
        return Rejection(index, field, "missing_field", f"{field} is required")
    if found := _UNKNOWN.fullmatch(what):
        field = _join(path, found[1][:ECHO_CHARS_MAX])
        reason = f"{field} is not a field of an event; remove it, or send it as a tag"
        return Rejection(index, field, "unknown_field", reason)
    if found := _BOUND.fullmatch(what):
        reason = f"{name} must be {_TYPE_WORDS[found['type']]} {found['bound']}"
        return Rejection(index, path, "out_of_range", reason)
    if what == "Number out of range":
        return Rejection(index, path, "out_of_range", f"{name} is a number too large to represent")
    if what.startswith("Invalid enum value"):
        reason = f"{name} must be one of {', '.join(_CACHE_VALUES)}"
        return Rejection(index, path, "bad_value", reason)
    if path == "tags":
        return Rejection(index, path, "wrong_type", "tags must be an object whose values are text")
    if found := _TYPE.fullmatch(what):
        expected, got = found["expected"].removesuffix(" | null"), found["got"]
        reason = f"{name} must be {_TYPE_WORDS[expected]}, not {_TYPE_WORDS.get(got, got)}"
        return Rejection(index, path, "wrong_type", reason)
    return Rejection(index, path, "wrong_type", f"{name} is not of the type that an event has there")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- The fast way ------------------------------------------------------------------------------


def _bare(kind: msgspec.inspect.Type) -> Any:
    """Return *kind* without `| None`."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return next(part for part in kind.types if not isinstance(part, msgspec.inspect.NoneType))
    return kind


def _field_types(struct: type[msgspec.Struct]) -> dict[str, Any]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: _bare(field.type) for field in info.fields}


# The bounds come from the types that the exact way decodes to, so the two ways cannot have different ones.
_TYPES: Final = _field_types(Event)
INT_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    name: (kind.ge, kind.le)
    for name, kind in (
        *((name, _TYPES[name]) for name in _PLAIN_INTS),
        *((f"{name}_tokens", kind) for name, kind in _field_types(Tokens).items()),
    )
}
CHARS_MAX: Final[dict[str, int]] = {
    name: _TYPES[name].max_length for name in _TEXT_COLUMNS if name != "cache"
}
TAG_VALUE_CHARS_MAX: Final[int] = _TYPES["tags"].value_type.max_length
_EVENT_FIELDS: Final = frozenset(_TYPES) | {f"tokens.{name}" for name in _TOKEN_CLASSES}
_CACHE_VALUES: Final[tuple[str, ...]] = tuple(_TYPES["cache"].values)


def _decode_fast(lines: _Lines, now_us: int, rejected: Rejected, start: int) -> _Part | None:
    """Decode *lines* with Arrow; None if that cannot be done, or not with certainty."""
    if not lines.are_objects or lines.longest > EVENT_BYTES_MAX or not _is_utf8(lines.body):
        return None
    table = _read(lines)
    if table is None or len(table) != len(lines):
        return None
    try:
        times = _times_us(table.column("time"))
    except pa.ArrowException:
        return None
    plain, sound = _checked(table, times, now_us)
    if sound.all():
        return _Part(plain, np.arange(len(lines), dtype=np.int64), len(lines))
    return _with_odd_rows(plain, sound, lines, now_us, rejected, start)


def _with_odd_rows(
    plain: pa.Table, sound: Mask, lines: _Lines, now_us: int, rejected: Rejected, start: int
) -> _Part:
    """Return the *sound* rows of *plain*, and for the others what the exact way makes of their lines."""
    odd_at = np.flatnonzero(~sound)
    tables, indexes = [plain.filter(pa.array(sound))], [np.flatnonzero(sound)]
    # In pieces, so that not all of a large batch is objects at once.
    for first in range(0, len(odd_at), PIECE_LINES):
        some = odd_at[first : first + PIECE_LINES]
        exact = _decode_each(lines.pick(some), _from_json, now_us, rejected, some + start)
        tables.append(exact.columns)
        indexes.append(some[exact.indexes])
    columns, at = pa.concat_tables(tables), np.concatenate(indexes)
    if len(columns) > len(tables[0]):
        order = np.argsort(at)
        columns, at = columns.take(pa.array(order)), at[order]
    return _Part(columns, at, len(lines))


def _is_utf8(body: bytes) -> bool:
    """Arrow takes text as it comes."""
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


_seen_fields: set[str] = set()
"""Fields that batches had and their samples did not; a token class is `tokens.<class>`."""


def _sample(lines: _Lines) -> tuple[frozenset[str], tuple[str, ...]] | None:
    """
    Return the fields and, sorted, the tag names that some of the lines have; None if these make no columns.

    Arrow is told the names, rather than left to find them: it makes a column of every name that it finds, so
    that a batch of 50,000 events with a name each would ask for 50,000 columns of 50,000 rows. It then fails
    on a name that the sample does not have.
    """
    fields: set[str] = set()
    tag_names: set[str] = set()
    places = np.unique(np.linspace(0, len(lines) - 1, _SAMPLE_LINES).astype(np.int64))
    for line in lines.pick(places):
        try:
            event = _ANY.decode(line)
        except _UNREADABLE:
            return None
        fields.update(event)
        tokens, tags = event.get("tokens"), event.get("tags")
        if isinstance(tokens, dict):
            fields.update(f"tokens.{name}" for name in tokens)
        if isinstance(tags, dict):
            tag_names.update(tags)
    shortest, longest = _TYPES["tags"].key_type.min_length, _TYPES["tags"].key_type.max_length
    if len(tag_names) > TAG_NAMES_MAX or not all(shortest <= len(name) <= longest for name in tag_names):
        return None
    return frozenset(fields), tuple(sorted(tag_names))


@lru_cache(maxsize=64)
def _parse_options(names: frozenset[str] | None, tag_names: tuple[str, ...]) -> pa_json.ParseOptions:
    """
    Return how Arrow is to read events: these columns, and an error for any other field.

    Args:
        names: The fields to read, None for all; an event has half of them, which takes three quarters of the
            time that all take.
    """
    classes = [name for name in _TOKEN_CLASSES if names is None or f"tokens.{name}" in names]
    fields = [
        *((name, pa.string()) for name in _TEXT_COLUMNS),
        *((name, pa.int64()) for name in _PLAIN_INTS),
        ("latency_ms", pa.float64()),
        ("tokens", pa.struct([(name, pa.int64()) for name in classes])),
        ("tags", pa.struct([(name, pa.string()) for name in tag_names])),
    ]
    read = [(name, kind) for name, kind in fields if names is None or name in names]
    schema = pa.schema([("id", pa.string()), ("time", pa.string()), *read])
    return pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")


def _read(lines: _Lines) -> pa.Table | None:
    """Return *lines* as Arrow reads them; None if it cannot."""
    sample = _sample(lines)
    if sample is None:
        return None
    fields, tag_names = sample
    for names in (_EVENT_FIELDS & (fields | _seen_fields), None):
        try:
            table = pa_json.read_json(
                pa.BufferReader(lines.body),
                read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=_parse_options(names, tag_names),
            )
        except pa.ArrowException:
            continue
        if names is None:
            # So that the next batch of the kind is read once.
            found = table.flatten()
            _seen_fields.update(name for name in found.column_names if found[name].null_count < len(found))
        return table
    return None


def _checked(table: pa.Table, times: pa.Array, now_us: int) -> tuple[pa.Table, Mask]:
    """Return *table* as columns of `_PLAIN_SCHEMA`, and which of its rows surely are acceptable events."""
    rows = len(table)
    latencies, sound = _latencies_us(_column(table, "latency_ms", pa.float64()))
    columns = {
        "id": table.column("id"),
        "occurred_at_us": times,
        "latency_us": latencies,
        **{name: _column(table, name, pa.string()) for name in _TEXT_COLUMNS},
        **{name: _column(table, name, pa.int64()) for name in _PLAIN_INTS},
        **{f"{name}_tokens": pa.nulls(rows, pa.int64()) for name in _TOKEN_CLASSES},
        "tags": pa.nulls(rows, _TAGS),
    }
    if "tokens" in table.column_names:
        tokens = table.column("tokens").combine_chunks()
        for field, column in zip(tokens.type, tokens.flatten(), strict=True):
            columns[f"{field.name}_tokens"] = column
    if "tags" in table.column_names:
        columns["tags"], tags_sound = _tags_of(table.column("tags").combine_chunks())
        sound &= tags_sound
    sound &= _true(pc.greater_equal(times, TIME_MIN_US))
    sound &= _true(pc.less_equal(times, now_us + FUTURE_S_MAX * US_PER_S))
    sound &= _has_text(columns["id"]) & _fits(columns["id"], _TYPES["id"].max_length)
    sound &= _has_text(columns["account"]) | _has_text(columns["key_id"])
    for name, chars_max in CHARS_MAX.items():
        if columns[name].null_count < rows:
            sound &= _fits(columns[name], chars_max)
    if columns["cache"].null_count < rows:
        cache = columns["cache"]
        sound &= _true(pc.or_(pc.is_null(cache), pc.is_in(cache, pa.array(_CACHE_VALUES))))
    for name, (least, most) in INT_BOUNDS.items():
        if columns[name].null_count < rows:
            sound &= _within(columns[name], least, most)
    table = pa.table([columns[field.name] for field in _PLAIN_SCHEMA], schema=_PLAIN_SCHEMA)
    return table, sound


def _column(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    """Return a column of *table*; nulls if no event of the batch has it."""
    return table.column(name) if name in table.column_names else pa.nulls(len(table), kind)


def _true(truths: Any) -> Mask:
    """Return where *truths* are true; null is not."""
    mask: Mask = pc.fill_null(truths, False).to_numpy(zero_copy_only=False).astype(bool, copy=False)
    return mask


def _has_text(column: Any) -> Mask:
    return _true(pc.greater(pc.binary_length(column), 0))


def _fits(column: Any, chars_max: int) -> Mask:
    """Return where *column* is null or has at most *chars_max* characters."""
    octets = pc.max(pc.binary_length(column)).as_py()
    if octets is None or octets <= chars_max:
        return np.ones(len(column), np.bool_)
    return _true(pc.fill_null(pc.less_equal(pc.utf8_length(column), chars_max), True))


def _within(column: Any, least: int, most: int) -> Mask:
    """Return where *column* is null or from *least* to *most*."""
    found = pc.min_max(column).as_py()
    if found["min"] >= least and found["max"] <= most:
        return np.ones(len(column), np.bool_)
    inside = pc.and_(pc.greater_equal(column, least), pc.less_equal(column, most))
    return _true(pc.fill_null(inside, True))


def _times_us(column: pa.ChunkedArray) -> pa.Array:
    """
    Return the times of *column* as `parse_time_us` does; null where Arrow's parser is not known to agree.

    Arrow also takes times without seconds and offsets such as `+05` and `+0530`, and no more than 9 digits of
    a second. Raises `pa.ArrowInvalid` on a text that is no time.
    """
    texts = column.combine_chunks()
    lengths = pc.binary_length(texts)
    alike = pc.and_(pc.ends_with(texts, "Z"), pc.greater_equal(lengths, len("2026-01-31T09:30:00Z")))
    if not _true(alike).all():
        numeric = pc.match_substring_regex(texts, r"[+-]\d\d:\d\d$")
        long_enough = pc.greater_equal(lengths, len("2026-01-31T09:30:00+00:00"))
        alike = pc.or_(alike, pc.and_(numeric, long_enough))
        texts = pc.if_else(alike, texts, pa.scalar(None, pa.string()))
    try:
        return texts.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    except pa.ArrowInvalid:
        nanos = texts.cast(pa.timestamp("ns", "UTC")).cast(pa.int64())
        # Rounds towards zero, which is the cut that is wanted from 1970 on; earlier times are odd anyway.
        return pc.divide(nanos, 1000)


def _latencies_us(column: pa.ChunkedArray) -> tuple[pa.Array, Mask]:
    """Return milliseconds as `domain.events.latency_us` rounds them, and where they are null or in bounds."""
    rows = len(column)
    if column.null_count == rows:
        return pa.nulls(rows, pa.int64()), np.ones(rows, np.bool_)
    given = column.is_valid().to_numpy()
    millis = pc.fill_null(column, 0.0).to_numpy()
    sound = (millis >= _TYPES["latency_ms"].ge) & (millis <= _TYPES["latency_ms"].le)
    micros = np.rint(np.where(sound, millis, 0.0) * 1000).astype(np.int64)
    return pa.array(micros, mask=~given), sound


def _tags_of(structs: pa.StructArray) -> tuple[pa.Array, Mask]:
    """Return *structs* (a text field per tag name, sorted) as maps, and which of them are in bounds."""
    rows = len(structs)
    names = [field.name for field in structs.type]
    sound = np.ones(rows, np.bool_)
    if not names:
        return pa.nulls(rows, _TAGS), sound
    values = structs.flatten()
    given = np.column_stack([value.is_valid().to_numpy(zero_copy_only=False) for value in values])
    counts = given.sum(axis=1)
    row_of, name_of = np.nonzero(given)
    texts = pa.concat_arrays(values).take(pa.array(name_of * rows + row_of))
    sound &= counts <= _TYPES["tags"].max_length
    sound[row_of[~_fits(texts, TAG_VALUE_CHARS_MAX)]] = False
    keys = pa.array(names, pa.string()).take(pa.array(name_of))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    absent = np.append(counts == 0, False)
    return pa.MapArray.from_arrays(pa.array(offsets, mask=absent), keys, texts), sound


# --- From events to columns --------------------------------------------------------------------


def _table_of(events: Sequence[Event], times: Sequence[int]) -> pa.Table:
    """Return *events* as a table of `_PLAIN_SCHEMA`; *times* are when they occurred."""
    columns: dict[str, Sequence[Any]] = {
        name: [getattr(event, name) for event in events]
        for name in ("id", "tags", *_TEXT_COLUMNS, *_PLAIN_INTS)
    }
    columns["occurred_at_us"] = times
    columns["latency_us"] = [None if e.latency_ms is None else latency_us(e.latency_ms) for e in events]
    for name in _TOKEN_CLASSES:
        columns[f"{name}_tokens"] = [getattr(event.tokens, name, None) for event in events]
    return _plain_table(columns, len(events))


def _plain_table(columns: Mapping[str, Sequence[Any]], row_count: int) -> pa.Table:
    arrays = []
    for field in _PLAIN_SCHEMA:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(row_count, field.type))
            continue
        if field.name == "tags":
            values = [sorted(tags.items()) if tags else None for tags in values]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=_PLAIN_SCHEMA)
