"""
The fields of a batch of events as Arrow columns: their types, their bounds, and how a table is made of them.

The bounds come from `domain.events.Event`, so that no way of decoding has bounds of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from tollkeeper.domain.events import COLUMN_CLASSES, Event, Tokens, latency_us, stated_quantities
from tollkeeper.meter.arrays import Int64s

TEXT_COLUMNS: Final = (
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
    "variant",
)
PLAIN_INTS: Final = (
    "status",
    "bytes_out",
    "credits",
    "cost_nanos",
    "estimated_cost_nanos",
    "provider_cost_nanos",
)
TOKEN_CLASSES: Final = COLUMN_CLASSES
TAGS: Final = pa.map_(pa.string(), pa.string())
QUANTITIES: Final = pa.map_(pa.string(), pa.int64())
"""In micro-units; null means none."""

EVENT_SCHEMA: Final = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("occurred_at_us", pa.int64(), nullable=False)]
    + [pa.field(name, pa.dictionary(pa.int32(), pa.string())) for name in TEXT_COLUMNS]
    + [pa.field(name, pa.int64()) for name in ("status", "latency_us", "bytes_out")]
    + [pa.field(f"{name}_tokens", pa.int64()) for name in TOKEN_CLASSES]
    + [pa.field(name, pa.int64()) for name in ("credits", "cost_nanos", "estimated_cost_nanos")]
    + [
        pa.field("provider_cost_nanos", pa.int64()),
        pa.field("tags", TAGS),
        pa.field("quantities", QUANTITIES),
    ]
)
"""An event's columns; null means absent. `*_us` are microseconds, `occurred_at_us` since the Unix epoch."""

PLAIN_SCHEMA: Final = pa.schema(
    [pa.field(f.name, pa.string(), f.nullable) if pa.types.is_dictionary(f.type) else f for f in EVENT_SCHEMA]
)
"""`EVENT_SCHEMA` while it is being put together: text is dictionary-encoded once, last."""


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
TYPES: Final = _field_types(Event)
INT_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    name: (kind.ge, kind.le)
    for name, kind in (
        *((name, TYPES[name]) for name in PLAIN_INTS),
        *((f"{name}_tokens", kind) for name, kind in _field_types(Tokens).items() if name in COLUMN_CLASSES),
    )
}
CHARS_MAX: Final[dict[str, int]] = {name: TYPES[name].max_length for name in TEXT_COLUMNS if name != "cache"}
TAG_VALUE_CHARS_MAX: Final[int] = TYPES["tags"].value_type.max_length
EVENT_FIELDS: Final = frozenset(TYPES) | {f"tokens.{name}" for name in Tokens.__struct_fields__}
CACHE_VALUES: Final[tuple[str, ...]] = tuple(TYPES["cache"].values)


class Part(NamedTuple):
    """A run of events of one batch; `indexes` count from the start of the run."""

    columns: pa.Table
    indexes: Int64s
    size: int

    @classmethod
    def none_of(cls, size: int) -> Part:
        return cls(PLAIN_SCHEMA.empty_table(), np.empty(0, np.int64), size)


def table_from(columns: Mapping[str, Sequence[Any]], row_count: int) -> pa.Table:
    """
    Return *columns* as a table of `EVENT_SCHEMA`; those not given are null.

    Tags are mappings of name to value, or None; quantities of name to micro-units. The caller vouches for the bounds.
    """
    return encoded(plain_table(columns, row_count))


def encoded(plain: pa.Table) -> pa.Table:
    """Return *plain* (`PLAIN_SCHEMA`) as one chunk of `EVENT_SCHEMA`."""
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


def plain_table_of(events: Sequence[Event], times: Sequence[int]) -> pa.Table:
    """Return *events* as a table of `PLAIN_SCHEMA`; *times* are when they occurred."""
    columns: dict[str, Sequence[Any]] = {
        name: [getattr(event, name) for event in events]
        for name in ("id", "tags", *TEXT_COLUMNS, *PLAIN_INTS)
    }
    columns["quantities"] = [
        stated_quantities(event.quantities, event.tokens) if event.quantities or event.tokens else None
        for event in events
    ]
    columns["occurred_at_us"] = times
    columns["latency_us"] = [None if e.latency_ms is None else latency_us(e.latency_ms) for e in events]
    for name in TOKEN_CLASSES:
        columns[f"{name}_tokens"] = [getattr(event.tokens, name, None) for event in events]
    return plain_table(columns, len(events))


def plain_table(columns: Mapping[str, Sequence[Any]], row_count: int) -> pa.Table:
    arrays = []
    for field in PLAIN_SCHEMA:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(row_count, field.type))
            continue
        if field.name in ("tags", "quantities"):
            values = [sorted(named.items()) if named else None for named in values]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=PLAIN_SCHEMA)
