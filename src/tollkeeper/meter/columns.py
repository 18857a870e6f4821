"""
The vector twin of `domain.meter`: the same rules for a batch at a time. A property test holds the two together.

`cost_columns` is `cost_of`, `units_columns` is `units_of`, `same_body_columns` finds most of what `same_body` finds.
A rule is changed in both places or in none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.events import RECORD_FIELDS
from tollkeeper.domain.labels import LABELS, OTHER
from tollkeeper.domain.meter import NOT_OF_BODY, PRICE_OF_BODY, UNKNOWN_ROUTE
from tollkeeper.domain.quantities import MICROS, QUANTITY_PREFIX, TOKEN_CLASSES
from tollkeeper.meter.arrays import Int64s, Mask, dictionary, equals, ints, plain, present, single, text, true
from tollkeeper.meter.price_columns import price_columns

TOKEN_COLUMNS: Final = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens")

_GIVEN, _ESTIMATED, _FREE, _UNPRICED, _PRICED = range(5)
_STATES: Final = ("given", "estimated", "free", "unpriced", "priced")


class CostColumns(NamedTuple):
    """What each request of a batch costs: the columns of a record that `domain.meter.Cost` has."""

    cost_nanos: Int64s
    provider_cost_nanos: Int64s
    cost_state: pa.DictionaryArray
    credits: Int64s
    price_version: pa.DictionaryArray


def cost_columns(
    events: pa.Table,
    account_id: pa.DictionaryArray,
    routes: Sequence[Route],
    route_codes: Int64s,
    book: PriceBook,
    plans: pa.DictionaryArray | None = None,
) -> CostColumns:
    """
    Return what each event costs: row by row the same as `domain.meter.cost_of`.

    Args:
        events: Columns of `EVENT_SCHEMA`; null means that its sender did not say.
        account_id: Who pays, per row.
        routes: Policies, `UNKNOWN_ROUTE` among them.
        route_codes: Per row, the place of its policy in *routes*.
        plans: Slug of the plan in force, per row; needed only if the book has mark-ups of plans.
    """

    def of_routes(values: list[int]) -> Int64s:
        return np.array(values, dtype=np.int64)[route_codes]

    def flags(values: list[bool]) -> Mask:
        return np.array(values, dtype=np.bool_)[route_codes]

    model = text(events, "model")
    tokens = [ints(events, name) for name in TOKEN_COLUMNS]
    refused = ~equals(text(events, "denied_reason"), "")
    failed = refused | (ints(events, "status") >= 400)
    free_route = flags([route.free for route in routes])
    given = present(events, "cost_nanos")
    estimated = present(events, "estimated_cost_nanos") & ~given
    free = free_route | refused | equals(text(events, "cache"), "hit")
    used = tokens[0] + tokens[1] + tokens[2] + tokens[3] > 0
    quantities = {}
    if events.column("quantities").null_count < events.num_rows:
        used |= _counts(single(events.column("quantities"))) > 0
        quantities = quantity_columns(events)
    has_variants = events.column("variant").null_count < events.num_rows
    by_model = (used | ~failed) & ~equals(model, "")
    # Without a model, a path that no route knows has nothing to charge.
    free |= ~by_model & flags([route is UNKNOWN_ROUTE for route in routes])
    prices = price_columns(
        model,
        account_id,
        ints(events, "occurred_at_us"),
        tokens,
        book,
        quantities=quantities,
        variants=text(events, "variant") if has_variants else None,
        plans=plans,
    )
    route_nanos = np.where(failed, 0, of_routes([route.price_nanos for route in routes]))
    nanos = np.select(
        [given, estimated, free],
        [ints(events, "cost_nanos"), ints(events, "estimated_cost_nanos"), np.int64(0)],
        route_nanos + np.where(by_model, prices.cost_nanos, 0),
    )
    by_price = ~(given | estimated | free)
    provider_nanos = np.where(by_price, np.where(by_model, prices.provider_cost_nanos, 0), nanos)
    stated = present(events, "provider_cost_nanos")
    if stated.any():
        provider_nanos = np.where(stated, ints(events, "provider_cost_nanos"), provider_nanos)
    state = np.select(
        [given, estimated, free, by_model & ~prices.known], [_GIVEN, _ESTIMATED, _FREE, _UNPRICED], _PRICED
    )
    priced = state == _PRICED
    version_of_model = pc.fill_null(pc.cast(prices.price_version, pa.string()), "")
    version_of_route = dictionary(route_codes, [f"route:{route.id}" for route in routes]).dictionary_decode()
    version = pc.if_else(
        pa.array(priced & by_model),
        version_of_model,
        pc.if_else(pa.array(priced & ~by_model), version_of_route, ""),
    )
    credits = np.where(
        present(events, "credits"),
        ints(events, "credits"),
        np.where(failed | free_route, 0, of_routes([route.credits for route in routes])),
    )
    return CostColumns(
        nanos,
        provider_nanos,
        dictionary(state.astype(np.int64), _STATES),
        credits,
        version.dictionary_encode(),
    )


def units_columns(records: pa.Table) -> dict[str, Int64s]:
    """
    Return what each record counts per unit, with its sign: row by row the same as `domain.meter.units_of`.

    Of quantities those that a record has; none counts another.
    """
    sign = ints(records, "sign")
    quantities = quantity_columns(records)
    tokens: Int64s = np.zeros(records.num_rows, np.int64)
    for name in TOKEN_COLUMNS:
        tokens += ints(records, name)
    for name in quantities.keys() & set(TOKEN_CLASSES):
        tokens += quantities[name] // MICROS
    adjustment_nanos = ints(records, "adjustment_nanos")
    is_request = equals(text(records, "denied_reason"), "") & (adjustment_nanos == 0)
    return {
        "requests": np.where(is_request, sign, 0),
        "tokens": sign * tokens,
        "nanos": sign * (ints(records, "cost_nanos") - adjustment_nanos),
        "credits": sign * ints(records, "credits"),
    } | {QUANTITY_PREFIX + name: sign * micros for name, micros in quantities.items()}


def quantity_columns(table: pa.Table) -> dict[str, Int64s]:
    """Return each quantity that a row of *table* has, in micro-units per row; 0 where it has none of the name."""
    column = single(table.column("quantities"))
    counts = _counts(column)
    if not counts.any():
        return {}
    rows = np.repeat(np.arange(len(counts)), counts)
    first, total = int(column.offsets[0].as_py()), int(counts.sum())
    # Of a map that is null the offsets may still span entries.
    if total != int(column.offsets[-1].as_py()) - first:
        column = pa.array(column.to_pylist(), column.type)
        first = 0
    names = column.keys.slice(first, total).dictionary_encode()
    micros = column.items.slice(first, total).to_numpy(zero_copy_only=False)
    codes = names.indices.to_numpy(zero_copy_only=False)
    found = {}
    for code, name in enumerate(names.dictionary.to_pylist()):
        values: Int64s = np.zeros(len(counts), np.int64)
        at = codes == code
        values[rows[at]] = micros[at]
        found[name] = values
    return found


def _counts(maps: pa.MapArray) -> Int64s:
    """Return how many entries each map of a column has."""
    counts: Int64s = np.diff(maps.offsets.to_numpy(zero_copy_only=False)).astype(np.int64)
    if maps.null_count:
        counts[~maps.is_valid().to_numpy(zero_copy_only=False)] = 0
    return counts


def same_body_columns(given: pa.Table, stored: pa.Table) -> Mask:
    """
    Return where two records have equal values wherever `domain.meter.same_body` looks.

    Where this is false, `same_body` may still be true: of credits that the sender left out, for one.
    """
    same = np.ones(given.num_rows, np.bool_)
    priced = np.ones(given.num_rows, np.bool_)
    for name in RECORD_FIELDS:
        if name in NOT_OF_BODY:
            continue
        if name in ("tags", "quantities"):
            same &= _same_maps(single(given.column(name)), single(stored.column(name)))
            continue
        one, other = (plain(table.column(name)) for table in (given, stored))
        equal = true(pc.equal(one, other)) | true(pc.and_(pc.is_null(one), pc.is_null(other)))
        if name in LABELS and not equal.all():
            # As `domain.labels.same_label`.
            equal |= true(pc.and_(pc.equal(other, OTHER), pc.not_equal(one, "")))
        if name in PRICE_OF_BODY:
            priced &= equal
        else:
            same &= equal
        if name == "cost_state":
            ours = true(pc.and_(pc.not_equal(one, "given"), pc.not_equal(other, "given")))
    return same & (priced | ours)


def _same_maps(given: pa.MapArray, stored: pa.MapArray) -> Mask:
    """Return where two columns have the same entries in the same order."""
    counts, stored_counts = (np.diff(maps.offsets.to_numpy(zero_copy_only=False)) for maps in (given, stored))
    same: Mask = counts == stored_counts
    if not same.all():
        same &= counts == 0
        return same
    equal = [
        true(pc.equal(plain(one), plain(other)))
        for one, other in ((given.keys, stored.keys), (given.items, stored.items))
    ]
    rows = np.repeat(np.arange(len(counts)), counts)
    same[rows[~(equal[0] & equal[1])]] = False
    return same
