"""Arrow columns as NumPy arrays, and back: the small steps that every batch takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Combinations(NamedTuple):
    """The distinct values of some columns together: *codes* is, per row, the place in *values*."""

    values: list[tuple[str | None, ...]]
    codes: Int64s


def combinations(table: pa.Table, names: Sequence[str]) -> Combinations:
    """Return the combinations of values that dictionary columns of *table* have; None stands for null."""
    combined: Int64s = np.zeros(table.num_rows, np.int64)
    dictionaries: list[list[str | None]] = []
    for name in names:
        column = single(table.column(name))
        values: list[str | None] = [*column.dictionary.to_pylist(), None]
        indices = pc.fill_null(column.indices, len(values) - 1).to_numpy(zero_copy_only=False)
        combined = combined * len(values) + indices
        dictionaries.append(values)
    distinct, codes = np.unique(combined, return_inverse=True)
    combos = []
    for code in distinct.tolist():
        parts: list[str | None] = []
        for values in reversed(dictionaries):
            code, index = divmod(code, len(values))
            parts.append(values[index])
        combos.append(tuple(reversed(parts)))
    return Combinations(combos, codes.astype(np.int64))


def single(column: Any) -> Any:
    """Return a column as one array, with one dictionary if it has several."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()
    return column


def dictionary(codes: Int64s, values: Sequence[str]) -> pa.DictionaryArray:
    """Return the text column whose row *i* is `values[codes[i]]`; *values* may have repeats."""
    distinct = {value: index for index, value in enumerate(dict.fromkeys(values))}
    index_of = np.array([distinct[value] for value in values], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(index_of[codes]), pa.array(list(distinct), pa.string()))


def text(table: pa.Table, name: str) -> pa.DictionaryArray:
    """Return a text column as a dictionary without nulls: absent is `""`."""
    column = single(table.column(name))
    if column.null_count == 0:
        return column
    values = column.dictionary.to_pylist()
    empty = values.index("") if "" in values else len(values)
    indices = pc.fill_null(column.indices, empty)
    return pa.DictionaryArray.from_arrays(indices, pa.array(values if empty < len(values) else [*values, ""]))


def ints(table: pa.Table, name: str) -> Int64s:
    """Return a column of integers; absent is 0."""
    column = single(table.column(name))
    if column.null_count:
        column = pc.fill_null(column, 0)
    return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)  # type: ignore[no-any-return]


def present(table: pa.Table, name: str) -> Mask:
    """Return where a column is not null."""
    return single(table.column(name)).is_valid().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def equals(column: pa.DictionaryArray, value: str) -> Mask:
    """Return where a text column without nulls is *value*."""
    hits = np.array([text == value for text in column.dictionary.to_pylist()], dtype=np.bool_)
    return (
        hits[column.indices.to_numpy(zero_copy_only=False)] if len(hits) else np.zeros(len(column), np.bool_)
    )


def exact_sum(amounts: Int64s) -> int:
    """Return the sum of *amounts*, which may pass 64 bits: of micro-units it does."""
    return (int((amounts >> 32).sum()) << 32) + int((amounts & 0xFFFFFFFF).sum())


def plain(column: Any) -> Any:
    """Return text as text, whatever codes it has here."""
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def true(truths: Any) -> Mask:
    """Return where *truths* are true; null is not."""
    mask: Mask = pc.fill_null(truths, False).to_numpy(zero_copy_only=False).astype(bool, copy=False)
    return mask
