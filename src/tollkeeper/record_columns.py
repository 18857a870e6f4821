"""
The columnar form of records: one Arrow schema from the door to the disk.

`SCHEMA` mirrors `domain.events.Record` column by column (a test says so) and the `events` table of the
usage store. Text columns are dictionary-encoded where few values repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pyarrow as pa

from tollkeeper.domain.events import RECORD_FIELDS, Record

_FEW: Final = pa.dictionary(pa.int32(), pa.string())
_TYPES: Final[dict[str, pa.DataType]] = {
    "account_id": _FEW,
    "project_id": _FEW,
    "key_id": _FEW,
    "occurred_at_us": pa.int64(),
    "received_at_us": pa.int64(),
    "id": pa.string(),
    "revision": pa.uint16(),
    "sign": pa.int8(),
    "amendment_id": pa.string(),
    "kind": _FEW,
    "method": _FEW,
    "route": _FEW,
    "status": pa.uint16(),
    "error_type": _FEW,
    "denied_reason": _FEW,
    "latency_us": pa.int64(),
    "bytes_out": pa.int64(),
    "model": _FEW,
    "prompt_tokens": pa.int64(),
    "cached_prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
    "reasoning_tokens": pa.int64(),
    "cache": _FEW,
    "credits": pa.int64(),
    "cost_nanos": pa.int64(),
    "estimated_cost_nanos": pa.int64(),
    "cost_state": _FEW,
    "price_version": _FEW,
    "tags": pa.map_(pa.string(), pa.string()),
}

SCHEMA: Final = pa.schema([pa.field(name, _TYPES[name]) for name in RECORD_FIELDS])
"""The columns of a record batch. `*_us` are microseconds since the Unix epoch; only `latency_us` has nulls."""


def table_of(records: Sequence[Record]) -> pa.Table:
    """Return *records* as one table of `SCHEMA`."""
    if not records:
        return SCHEMA.empty_table()
    columns = zip(*records, strict=True)
    arrays = []
    for field, values in zip(SCHEMA, columns, strict=True):
        if field.name == "tags":
            arrays.append(pa.array([list(tags.items()) for tags in values], field.type))
        elif pa.types.is_dictionary(field.type):
            arrays.append(pa.array(values, pa.string()).dictionary_encode())
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def records_of(table: pa.Table) -> list[Record]:
    """Return the rows of *table* (columns of `SCHEMA`) as records."""
    columns = []
    for name in RECORD_FIELDS:
        values = table.column(name).to_pylist()
        columns.append([dict(tags or ()) for tags in values] if name == "tags" else values)
    return [Record(*row) for row in zip(*columns, strict=True)]


def to_ipc(table: pa.Table) -> bytes:
    """Return *table* as one compressed Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(payload: bytes) -> pa.Table:
    """Return the table of an Arrow IPC stream that `to_ipc` made."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def concat(tables: Iterable[pa.Table]) -> pa.Table:
    """Return *tables* as one, with one dictionary per column."""
    return pa.concat_tables(list(tables)).unify_dictionaries().combine_chunks()
