"""Records as the table `events` has them, and back as tables of `record_columns.SCHEMA`."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.domain.events import RECORD_FIELDS
from tollkeeper.record_columns import SCHEMA


def _selected(name: str) -> str:
    if name.endswith("_at_us"):
        return f"toUnixTimestamp64Micro({name.removesuffix('_us')}) AS {name}"
    if name == "provider_cost_nanos":
        return "cost_nanos - margin_nanos AS provider_cost_nanos"
    return name


RECORD_COLUMNS: Final = ", ".join(map(_selected, RECORD_FIELDS))
"""What a SELECT from `events` must name for `booked_form`, or for a `Record` of each row."""


def stored_form(records: pa.Table) -> pa.Table:
    """Return *records* as one batch with the columns of `events`; instants keep their bytes."""
    names, columns = [], []
    for name, column in zip(records.column_names, records.combine_chunks().columns, strict=True):
        if name.endswith("_at_us"):
            name, column = name.removesuffix("_us"), column.cast(pa.timestamp("us", tz="UTC"))
        elif name == "provider_cost_nanos":
            # Kept as what is earned, which is 0 for most records and then takes no room.
            name, column = "margin_nanos", pc.subtract(records.column("cost_nanos").combine_chunks(), column)
        names.append(name)
        columns.append(column)
    return pa.Table.from_arrays(columns, names=names).combine_chunks()


def booked_form(rows: pa.Table) -> pa.Table:
    """Return the engine's answer for `RECORD_COLUMNS` as a table of `record_columns.SCHEMA`."""
    arrays = []
    for field in SCHEMA:
        column = rows.column(field.name).combine_chunks()
        if pa.types.is_dictionary(column.type):
            # For few values the engine takes codes of few bytes.
            column = pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), column.dictionary)
        elif pa.types.is_dictionary(field.type):
            column = column.dictionary_encode()
        arrays.append(column.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def last_revisions(rows: pa.Table) -> pa.Table:
    """Return the last revision of each event of *rows*: its row of sign -1 if it was voided."""
    pairs = pc.binary_join_element_wise(rows.column("account_id").cast(pa.string()), rows.column("id"), "\0")
    if pc.count_distinct(pairs).as_py() == rows.num_rows:
        return rows
    order = pc.sort_indices(
        pa.table({"pair": pairs, "revision": rows.column("revision"), "sign": rows.column("sign")}),
        [("pair", "ascending"), ("revision", "descending"), ("sign", "ascending")],
    )
    ends = pc.run_end_encode(pairs.take(order).combine_chunks()).run_ends
    starts = [0, *ends.to_pylist()[:-1]]
    return rows.take(order.take(pa.array(starts)))
