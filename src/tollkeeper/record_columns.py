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
    "quantities": pa.map_(pa.string(), pa.int64()),
    "provider_cost_nanos": pa.int64(),
    "variant": _FEW,
    "adjustment_nanos": pa.int64(),
}
_FIELDS_BEFORE_QUANTITIES: Final = 29
"""Columns of a table from before records had quantities: without the last four."""
_MAPS: Final = ("tags", "quantities")

SCHEMA: Final = pa.schema([pa.field(name, _TYPES[name]) for name in RECORD_FIELDS])
"""The columns of a record batch. `*_us` are microseconds since the Unix epoch; only `latency_us` has nulls."""


def table_of(records: Sequence[Record]) -> pa.Table:
    """Return *records* as one table of `SCHEMA`."""
    if not records:
        return SCHEMA.empty_table()
    columns = zip(*records, strict=True)
    arrays = []
    for field, values in zip(SCHEMA, columns, strict=True):
        if field.name in _MAPS:
            arrays.append(pa.array([list(named.items()) for named in values], field.type))
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
        columns.append([dict(named or ()) for named in values] if name in _MAPS else values)
    return [Record(*row) for row in zip(*columns, strict=True)]


def to_ipc(table: pa.Table) -> bytes:
    """Return *table* as one compressed Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(payload: bytes) -> pa.Table:
    """
    Return the table of an Arrow IPC stream that `to_ipc` made.

    One from before records had quantities gets the columns that it lacks: none, and what the requests cost as the cost
    of their provider.
    """
    with pa.ipc.open_stream(payload) as reader:
        table = reader.read_all()
    if table.num_columns == _FIELDS_BEFORE_QUANTITIES and table.schema.equals(
        pa.schema(list(SCHEMA)[:_FIELDS_BEFORE_QUANTITIES])
    ):
        rows = table.num_rows
        added = {
            "quantities": no_quantities(rows),
            "provider_cost_nanos": table.column("cost_nanos"),
            "variant": pa.array([""] * rows, pa.string()).dictionary_encode(),
            "adjustment_nanos": pa.repeat(pa.scalar(0, pa.int64()), rows),
        }
        table = pa.Table.from_arrays([*table.columns, *added.values()], schema=SCHEMA)
    return table


def no_quantities(row_count: int) -> pa.MapArray:
    """Return a column `quantities` without any."""
    return pa.MapArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int32()), row_count + 1),
        pa.array([], pa.string()),
        pa.array([], pa.int64()),
    )


def concat(tables: Iterable[pa.Table]) -> pa.Table:
    """Return *tables* as one, with one dictionary per column."""
    return pa.concat_tables(list(tables)).unify_dictionaries().combine_chunks()
