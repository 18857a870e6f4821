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
from tollkeeper.meter.arrays import Int64s, Mask, dictionary, equals, ints, plain, present, single, text, true
from tollkeeper.meter.price_columns import price_columns

TOKEN_COLUMNS: Final = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens")

_GIVEN, _ESTIMATED, _FREE, _UNPRICED, _PRICED = range(5)
_STATES: Final = ("given", "estimated", "free", "unpriced", "priced")


class CostColumns(NamedTuple):
    """What each request of a batch costs: the columns of a record that `domain.meter.Cost` has."""

    cost_nanos: Int64s
    cost_state: pa.DictionaryArray
    credits: Int64s
    price_version: pa.DictionaryArray


def cost_columns(
    events: pa.Table,
    account_id: pa.DictionaryArray,
    routes: Sequence[Route],
    route_codes: Int64s,
    book: PriceBook,
) -> CostColumns:
    """
    Return what each event costs: row by row the same as `domain.meter.cost_of`.

    Args:
        events: Columns of `EVENT_SCHEMA`; null means that its sender did not say.
        account_id: Who pays, per row.
        routes: Policies, `UNKNOWN_ROUTE` among them.
        route_codes: Per row, the place of its policy in *routes*.
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
    by_model = ((tokens[0] + tokens[1] + tokens[2] + tokens[3] > 0) | ~failed) & ~equals(model, "")
    # Without a model, a path that no route knows has nothing to charge.
    free |= ~by_model & flags([route is UNKNOWN_ROUTE for route in routes])
    prices = price_columns(model, account_id, ints(events, "occurred_at_us"), tokens, book)
    route_nanos = np.where(failed, 0, of_routes([route.price_nanos for route in routes]))
    nanos = np.select(
        [given, estimated, free],
        [ints(events, "cost_nanos"), ints(events, "estimated_cost_nanos"), np.int64(0)],
        route_nanos + np.where(by_model, prices.cost_nanos, 0),
    )
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
        nanos, dictionary(state.astype(np.int64), _STATES), credits, version.dictionary_encode()
    )


def units_columns(records: pa.Table) -> dict[str, Int64s]:
    """Return what each record counts per unit, with its sign: row by row the same as `domain.meter.units_of`."""
    sign = ints(records, "sign")
    tokens = sum(ints(records, name) for name in TOKEN_COLUMNS)
    return {
        "requests": np.where(equals(text(records, "denied_reason"), ""), sign, 0),
        "tokens": sign * tokens,
        "nanos": sign * ints(records, "cost_nanos"),
        "credits": sign * ints(records, "credits"),
    }


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
        if name == "tags":
            same &= _same_tags(single(given.column(name)), single(stored.column(name)))
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


def _same_tags(given: pa.MapArray, stored: pa.MapArray) -> Mask:
    """Return where two columns have the same tags in the same order."""
    counts, stored_counts = (np.diff(tags.offsets.to_numpy(zero_copy_only=False)) for tags in (given, stored))
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
