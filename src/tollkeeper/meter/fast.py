"""
The fast way from bytes to columns: a whole batch with Arrow, its bounds checked column by column.

It only ever accepts events. Lines that it cannot take with certainty go the exact way (`meter.exact`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from tollkeeper.domain.events import FUTURE_S_MAX, TIME_MIN_US
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.meter.arrays import Mask, true
from tollkeeper.meter.exact import ANY, EVENT_BYTES_MAX, UNREADABLE, decode_each, from_json
from tollkeeper.meter.fields import (
    CACHE_VALUES,
    CHARS_MAX,
    EVENT_FIELDS,
    INT_BOUNDS,
    PLAIN_INTS,
    PLAIN_SCHEMA,
    TAG_VALUE_CHARS_MAX,
    TAGS,
    TEXT_COLUMNS,
    TOKEN_CLASSES,
    TYPES,
    Part,
)
from tollkeeper.meter.lines import BLOCK_BYTES, Lines
from tollkeeper.meter.rejections import Rejected

PIECE_LINES: Final = 4096
"""Lines of a piece when a batch that Arrow cannot read is tried again in pieces."""
TAG_NAMES_MAX: Final = 64
"""Distinct tag names in a batch for which columns are made; a batch with more goes the exact way."""

_SAMPLE_LINES: Final = 64


def decode_fast(lines: Lines, now_us: int, rejected: Rejected, start: int) -> Part | None:
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
        return Part(plain, np.arange(len(lines), dtype=np.int64), len(lines))
    return _with_odd_rows(plain, sound, lines, now_us, rejected, start)


def _with_odd_rows(
    plain: pa.Table, sound: Mask, lines: Lines, now_us: int, rejected: Rejected, start: int
) -> Part:
    """Return the *sound* rows of *plain*, and for the others what the exact way makes of their lines."""
    odd_at = np.flatnonzero(~sound)
    tables, indexes = [plain.filter(pa.array(sound))], [np.flatnonzero(sound)]
    # In pieces, so that not all of a large batch is objects at once.
    for first in range(0, len(odd_at), PIECE_LINES):
        some = odd_at[first : first + PIECE_LINES]
        exact = decode_each(lines.pick(some), from_json, now_us, rejected, some + start)
        tables.append(exact.columns)
        indexes.append(some[exact.indexes])
    columns, at = pa.concat_tables(tables), np.concatenate(indexes)
    if len(columns) > len(tables[0]):
        order = np.argsort(at)
        columns, at = columns.take(pa.array(order)), at[order]
    return Part(columns, at, len(lines))


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


def _sample(lines: Lines) -> tuple[frozenset[str], tuple[str, ...]] | None:
    """
    Return the fields and, sorted, the tag names that some of the lines have; None if these make no columns.

    Arrow is given the names, rather than left to find them: it makes a column of every name that it finds, so
    that a batch of 50,000 events with a name each would ask for 50,000 columns of 50,000 rows. It then fails
    on a name that the sample does not have.
    """
    fields: set[str] = set()
    tag_names: set[str] = set()
    places = np.unique(np.linspace(0, len(lines) - 1, _SAMPLE_LINES).astype(np.int64))
    for line in lines.pick(places):
        try:
            event = ANY.decode(line)
        except UNREADABLE:
            return None
        fields.update(event)
        tokens, tags = event.get("tokens"), event.get("tags")
        if isinstance(tokens, dict):
            fields.update(f"tokens.{name}" for name in tokens)
        if isinstance(tags, dict):
            tag_names.update(tags)
    shortest, longest = TYPES["tags"].key_type.min_length, TYPES["tags"].key_type.max_length
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
    classes = [name for name in TOKEN_CLASSES if names is None or f"tokens.{name}" in names]
    fields = [
        *((name, pa.string()) for name in TEXT_COLUMNS),
        *((name, pa.int64()) for name in PLAIN_INTS),
        ("latency_ms", pa.float64()),
        ("tokens", pa.struct([(name, pa.int64()) for name in classes])),
        ("tags", pa.struct([(name, pa.string()) for name in tag_names])),
    ]
    read = [(name, kind) for name, kind in fields if names is None or name in names]
    schema = pa.schema([("id", pa.string()), ("time", pa.string()), *read])
    return pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")


def _read(lines: Lines) -> pa.Table | None:
    """Return *lines* as Arrow reads them; None if it cannot."""
    sample = _sample(lines)
    if sample is None:
        return None
    fields, tag_names = sample
    for names in (EVENT_FIELDS & (fields | _seen_fields), None):
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
    """Return *table* as columns of `PLAIN_SCHEMA`, and which of its rows surely are acceptable events."""
    rows = len(table)
    latencies, sound = _latencies_us(_column(table, "latency_ms", pa.float64()))
    columns = {
        "id": table.column("id"),
        "occurred_at_us": times,
        "latency_us": latencies,
        **{name: _column(table, name, pa.string()) for name in TEXT_COLUMNS},
        **{name: _column(table, name, pa.int64()) for name in PLAIN_INTS},
        **{f"{name}_tokens": pa.nulls(rows, pa.int64()) for name in TOKEN_CLASSES},
        "tags": pa.nulls(rows, TAGS),
    }
    if "tokens" in table.column_names:
        tokens = table.column("tokens").combine_chunks()
        for field, column in zip(tokens.type, tokens.flatten(), strict=True):
            columns[f"{field.name}_tokens"] = column
    if "tags" in table.column_names:
        columns["tags"], tags_sound = _tags_of(table.column("tags").combine_chunks())
        sound &= tags_sound
    sound &= true(pc.greater_equal(times, TIME_MIN_US))
    sound &= true(pc.less_equal(times, now_us + FUTURE_S_MAX * US_PER_S))
    sound &= _has_text(columns["id"]) & _fits(columns["id"], TYPES["id"].max_length)
    sound &= _has_text(columns["account"]) | _has_text(columns["key_id"])
    for name, chars_max in CHARS_MAX.items():
        if columns[name].null_count < rows:
            sound &= _fits(columns[name], chars_max)
    if columns["cache"].null_count < rows:
        cache = columns["cache"]
        sound &= true(pc.or_(pc.is_null(cache), pc.is_in(cache, pa.array(CACHE_VALUES))))
    for name, (least, most) in INT_BOUNDS.items():
        if columns[name].null_count < rows:
            sound &= _within(columns[name], least, most)
    table = pa.table([columns[field.name] for field in PLAIN_SCHEMA], schema=PLAIN_SCHEMA)
    return table, sound


def _column(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    """Return a column of *table*; nulls if no event of the batch has it."""
    return table.column(name) if name in table.column_names else pa.nulls(len(table), kind)


def _has_text(column: Any) -> Mask:
    return true(pc.greater(pc.binary_length(column), 0))


def _fits(column: Any, chars_max: int) -> Mask:
    """Return where *column* is null or has at most *chars_max* characters."""
    octets = pc.max(pc.binary_length(column)).as_py()
    if octets is None or octets <= chars_max:
        return np.ones(len(column), np.bool_)
    return true(pc.fill_null(pc.less_equal(pc.utf8_length(column), chars_max), True))


def _within(column: Any, least: int, most: int) -> Mask:
    """Return where *column* is null or from *least* to *most*."""
    found = pc.min_max(column).as_py()
    if found["min"] >= least and found["max"] <= most:
        return np.ones(len(column), np.bool_)
    inside = pc.and_(pc.greater_equal(column, least), pc.less_equal(column, most))
    return true(pc.fill_null(inside, True))


def _times_us(column: pa.ChunkedArray) -> pa.Array:
    """
    Return the times of *column* as `parse_time_us` does; null where Arrow's parser is not known to agree.

    Arrow also takes times without seconds and offsets such as `+05` and `+0530`, and no more than 9 digits of
    a second. Raises `pa.ArrowInvalid` on a text that is no time.
    """
    texts = column.combine_chunks()
    lengths = pc.binary_length(texts)
    alike = pc.and_(pc.ends_with(texts, "Z"), pc.greater_equal(lengths, len("2026-01-31T09:30:00Z")))
    if not true(alike).all():
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
    sound = (millis >= TYPES["latency_ms"].ge) & (millis <= TYPES["latency_ms"].le)
    micros = np.rint(np.where(sound, millis, 0.0) * 1000).astype(np.int64)
    return pa.array(micros, mask=~given), sound


def _tags_of(structs: pa.StructArray) -> tuple[pa.Array, Mask]:
    """Return *structs* (a text field per tag name, sorted) as maps, and which of them are in bounds."""
    rows = len(structs)
    names = [field.name for field in structs.type]
    sound = np.ones(rows, np.bool_)
    if not names:
        return pa.nulls(rows, TAGS), sound
    values = structs.flatten()
    given = np.column_stack([value.is_valid().to_numpy(zero_copy_only=False) for value in values])
    counts = given.sum(axis=1)
    row_of, name_of = np.nonzero(given)
    texts = pa.concat_arrays(values).take(pa.array(name_of * rows + row_of))
    sound &= counts <= TYPES["tags"].max_length
    sound[row_of[~_fits(texts, TAG_VALUE_CHARS_MAX)]] = False
    keys = pa.array(names, pa.string()).take(pa.array(name_of))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    absent = np.append(counts == 0, False)
    return pa.MapArray.from_arrays(pa.array(offsets, mask=absent), keys, texts), sound
