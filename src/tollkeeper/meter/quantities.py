"""
Quantities of a batch as columns: the vector twin of `domain.events.stated_quantities`; a property test compares them.

It only ever accepts: a row that it cannot take with certainty goes the exact way (`meter.exact`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.domain.quantities import (
    COLUMN_FIELDS,
    DECIMALS_MAX,
    MICROS,
    QUANTITIES_MAX,
    QUANTITY_MICROS_MAX,
    QUANTITY_UNITS_MAX,
    TOKENS_MAX,
    is_quantity_name,
)
from tollkeeper.domain.quantities import TOKEN_CLASSES as TOKEN_QUANTITIES
from tollkeeper.meter.arrays import Int64s, Mask, true
from tollkeeper.meter.fields import QUANTITIES

QUANTITY_NAMES_MAX: Final = 64
"""Distinct names in a batch for which columns are made; a batch with more goes the exact way."""

_FLOAT_MICROS_MAX: Final = 10**15
"""Below it a number of whole micro-units has at most 15 digits, which a float keeps: its shortest text is that."""
_DECIMAL_TEXT: Final = r"^[0-9]{1,12}(\.[0-9]{1,6})?$"
_TYPES: Final = {str: "text", int: "int", float: "float"}
_ARROW: Final = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}


def add_types(seen: dict[str, str], stated: Mapping[str, Any]) -> bool:
    """
    Add to *seen* (name → `text`, `int` or `float`) how an event of the sample states its quantities.

    Returns False when no columns can be made of them.
    """
    for name, value in stated.items():
        if value is None:
            kind = seen.get(name, "int")
        elif (found := _TYPES.get(type(value))) is not None:
            kind = found
        else:
            return False
        before = seen.get(name, kind)
        if "text" in (kind, before) and kind != before:
            return False
        seen[name] = "float" if "float" in (kind, before) else kind
    return (
        len(seen) <= QUANTITY_NAMES_MAX
        and all(map(is_quantity_name, stated))
        and COLUMN_FIELDS.keys().isdisjoint(stated)
    )


def struct_of(types: tuple[tuple[str, str], ...]) -> pa.StructType:
    """Return how Arrow is to read quantities of these names and kinds."""
    return pa.struct([(name, _ARROW[kind]) for name, kind in types])


def quantity_maps(
    stated: pa.StructArray | None, classes: Mapping[str, pa.Array], rows: int
) -> tuple[pa.Array, Mask]:
    """
    Return quantities as maps of micro-units, and which rows are surely in bounds.

    Args:
        stated: A field per name, text or numbers; None when no event has any.
        classes: Name of a token class → tokens (int64), as `tokens` states them.
    """
    sound = np.ones(rows, np.bool_)
    micros: dict[str, Int64s] = {}
    if stated is not None:
        for field, column in zip(stated.type, stated.flatten(), strict=True):
            if column.null_count < rows:
                micros[field.name], good = _micros(column)
                sound &= good
    for name, column in classes.items():
        if column.null_count == rows:
            continue
        tokens = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        sound &= (tokens >= 0) & (tokens <= TOKENS_MAX)
        of_class = np.where(sound, tokens, 0) * MICROS
        if name in micros:
            # Stated in both ways: an error, which the exact way words.
            both = (
                column.is_valid()
                if stated is None
                else pc.and_(column.is_valid(), stated.field(name).is_valid())
            )
            sound &= ~true(both)
            of_class += micros[name]
        micros[name] = of_class
    for name in micros.keys() & set(TOKEN_QUANTITIES):
        sound &= (micros[name] % MICROS == 0) & (micros[name] <= TOKENS_MAX * MICROS)
    names = sorted(micros)
    if not names:
        return pa.nulls(rows, QUANTITIES), sound
    values = np.column_stack([micros[name] for name in names])
    given = values > 0
    counts = given.sum(axis=1)
    columns = [*classes.values(), *(() if stated is None else stated.flatten())]
    if len(columns) > QUANTITIES_MAX:
        # What is stated counts, zeros included.
        sound &= (
            sum(column.is_valid().to_numpy(zero_copy_only=False).astype(int) for column in columns)
            <= QUANTITIES_MAX
        )
    row_of, name_of = np.nonzero(given)
    keys = pa.array(names, pa.string()).take(pa.array(name_of))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    absent = np.append(counts == 0, False)
    maps = pa.MapArray.from_arrays(pa.array(offsets, mask=absent), keys, pa.array(values[row_of, name_of]))
    return maps, sound


def _micros(column: pa.Array) -> tuple[Int64s, Mask]:
    """Return a column of quantities in micro-units, 0 where it is null or not sound."""
    missing = ~column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_string(column.type):
        good = true(pc.match_substring_regex(column, _DECIMAL_TEXT))
        texts = pc.if_else(pa.array(good), column, "0")
        decimals = texts.cast(pa.decimal128(12 + DECIMALS_MAX, DECIMALS_MAX))
        # The low half of each 128-bit number, which is below 10**18.
        words = np.frombuffer(decimals.buffers()[1], np.int64)
        micros: Int64s = words[2 * decimals.offset :: 2][: len(decimals)].copy()
        return micros, missing | (good & (micros <= QUANTITY_MICROS_MAX))
    if pa.types.is_integer(column.type):
        units = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        good = (units >= 0) & (units <= QUANTITY_UNITS_MAX)
        return np.where(good, units, 0) * MICROS, good
    numbers = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", over="ignore"):
        whole = np.rint(numbers * MICROS)
        # Equal, so that the number is the one nearest to these micro-units: their text is its own.
        good = (numbers >= 0) & (whole < _FLOAT_MICROS_MAX) & (whole / MICROS == numbers)
    return np.where(good, whole, 0).astype(np.int64), good
