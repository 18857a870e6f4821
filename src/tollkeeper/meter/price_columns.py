"""
Pricing over columns: the twin of `domain.pricing.cost_nanos` for a batch; a property test compares them.

One price is looked up per distinct model, account and span of the price book; the rest is integer arithmetic
over arrays. No value leaves 64 bits: with at most 1e9 tokens a class (`events.TOKENS_MAX`) and 2e12 nanos per
million (`domain.catalog.PRICE_NANOS_MAX`) the largest sum, of the remainders, is 4 × 1e6 × 2e12 = 8e18 < 9.2e18.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollkeeper.catalog.price_book import DAY_US, PriceBook, PriceTimeline
from tollkeeper.domain.pricing import TOKENS_PER_PRICE, ModelPrice, Tier

_NO_PRICE: Final = ModelPrice("", 0, (Tier(0, 0, 0, 0, 0),))
"""Stands for "no price": costs 0 and has no version."""

_NEVER: Final = 2**62
"""A tier's threshold that no request passes."""

_NO_MODEL: Final = PriceTimeline((-(2**63),), (0,), (_NO_PRICE,))


class PricedColumns(NamedTuple):
    """
    What a batch costs, row by row.

    Attributes:
        cost_nanos: int64; 0 where *known* is False.
        price_version: Dictionary of text; `""` where there is no model or no price.
        known: Whether the row has a price, or has no model and so needs none.
    """

    cost_nanos: NDArray[np.int64]
    price_version: Any
    known: NDArray[np.bool_]


class TokenColumns(NamedTuple):
    """Four int64 arrays of disjoint token counts, each within `[0, events.TOKENS_MAX]`."""

    prompt: NDArray[np.int64]
    cached_prompt: NDArray[np.int64]
    completion: NDArray[np.int64]
    reasoning: NDArray[np.int64]


def price_columns(
    models: pa.DictionaryArray | pa.ChunkedArray,
    accounts: pa.DictionaryArray | pa.ChunkedArray,
    occurred_at_us: NDArray[np.int64],
    tokens: Sequence[NDArray[np.int64]],
    book: PriceBook,
) -> PricedColumns:
    """
    Return what each row costs by *book*: the same, row by row, as `cost_nanos` of `price_of`.

    Args:
        models: Model names, text or dictionary of text; null and `""` mean that no model was used.
        accounts: Account ids, in the same form.
        occurred_at_us: int64, microseconds since the Unix epoch, without nulls.
        tokens: The four arrays of `TokenColumns`, in its order.
        book: Where prices come from.
    """
    price_index, prices = _price_per_row(models, accounts, occurred_at_us, book)
    cost = _cost(price_index, prices, TokenColumns(*tokens))
    known = np.array([price is not None for price in prices], dtype=np.bool_)[price_index]
    versions = {
        version: index for index, version in enumerate(dict.fromkeys(_version(price) for price in prices))
    }
    version_of_price = np.array([versions[_version(price)] for price in prices], dtype=np.int32)
    version = pa.DictionaryArray.from_arrays(
        pa.array(version_of_price[price_index], pa.int32()), pa.array(list(versions), pa.string())
    )
    return PricedColumns(cost, version, known)


def _version(price: ModelPrice | None) -> str:
    return "" if price is None else price.version


def _price_per_row(
    models: pa.DictionaryArray | pa.ChunkedArray,
    accounts: pa.DictionaryArray | pa.ChunkedArray,
    occurred_at_us: NDArray[np.int64],
    book: PriceBook,
) -> tuple[NDArray[np.int64], list[ModelPrice | None]]:
    """Return, per row, an index into a list of prices, and that list."""
    timeline_index, timelines = _timeline_per_row(models, accounts, book)
    prices: dict[ModelPrice | None, int] = {}
    first_price = np.zeros(len(timelines), dtype=np.int64)
    varying = np.zeros(len(timelines), dtype=np.bool_)
    for index, timeline in enumerate(timelines):
        first_price[index] = prices.setdefault(timeline.prices[0], len(prices))
        varying[index] = len(timeline.prices) > 1
    price_index = first_price[timeline_index]
    if varying.any():
        rows = np.flatnonzero(varying[timeline_index])
        rows = rows[np.argsort(timeline_index[rows], kind="stable")]
        ends = np.flatnonzero(np.diff(timeline_index[rows])) + 1
        for group in np.split(rows, ends):
            if len(group):
                timeline = timelines[timeline_index[group[0]]]
                price_index[group] = _price_at(timeline, occurred_at_us[group], prices)
    return price_index, list(prices)


def _price_at(
    timeline: PriceTimeline, at_us: NDArray[np.int64], prices: dict[ModelPrice | None, int]
) -> NDArray[np.int64]:
    """Return the index in *prices* (added to as needed) at each instant: the twin of `PriceTimeline.at`."""
    cell = np.searchsorted(np.array(timeline.starts_us, dtype=np.int64), at_us, side="right") - 1
    if len(timeline.parts_us) > 1:
        parts_us = np.array(timeline.parts_us, dtype=np.int64)
        cell = cell * len(parts_us) + np.searchsorted(parts_us, at_us % DAY_US, side="right") - 1
    index_of_cell = [prices.setdefault(price, len(prices)) for price in timeline.prices]
    return np.array(index_of_cell, dtype=np.int64)[cell]


def _timeline_per_row(
    models: pa.DictionaryArray | pa.ChunkedArray,
    accounts: pa.DictionaryArray | pa.ChunkedArray,
    book: PriceBook,
) -> tuple[NDArray[np.int64], list[PriceTimeline]]:
    """Return, per row, an index into a list of timelines, one per distinct model and owner, and the list."""
    model_codes, model_names = _coded(models)
    owners = [""]
    pair_codes = model_codes
    if book.own_accounts:
        # Only accounts with entries of their own can differ: all others are one owner.
        account_codes, account_ids = _coded(accounts)
        owner_index = {"": 0}
        owner_of = [
            owner_index.setdefault(account if account in book.own_accounts else "", len(owner_index))
            for account in account_ids
        ]
        owners = list(owner_index)
        pair_codes = model_codes * len(owners) + np.array(owner_of, dtype=np.int64)[account_codes]
    if len(model_names) * len(owners) <= max(len(pair_codes), 1024):
        distinct = np.flatnonzero(np.bincount(pair_codes, minlength=1))
        position = np.zeros(len(model_names) * len(owners), dtype=np.int64)
        position[distinct] = np.arange(len(distinct))
        timeline_index = position[pair_codes]
    else:  # Many more possible pairs than rows: sorting the rows is cheaper than a table of the pairs.
        distinct, timeline_index = np.unique(pair_codes, return_inverse=True)
    timelines = []
    for pair in distinct.tolist():
        model, owner = model_names[pair // len(owners)], owners[pair % len(owners)]
        timelines.append(book.timeline(model, owner) if model else _NO_MODEL)
    return timeline_index, timelines


def _coded(texts: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Return, per row, an index into a list of texts, and that list; null becomes `""`."""
    if not pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_encode()
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.unify_dictionaries().combine_chunks()
        if isinstance(texts, pa.ChunkedArray):  # Without a chunk there is nothing to combine.
            return np.zeros(0, dtype=np.int64), [""]
    names = [name or "" for name in texts.dictionary.to_pylist()]
    indices = texts.indices
    if indices.null_count or not names:
        indices = indices.fill_null(len(names))
        names.append("")
    codes = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, names


def _cost(
    price_index: NDArray[np.int64], prices: Sequence[ModelPrice | None], tokens: TokenColumns
) -> NDArray[np.int64]:
    """Return the cost of each row at its price: the twin of `cost_nanos`."""
    charged = [price or _NO_PRICE for price in prices]
    rates = np.array([tier[1:] for price in charged for tier in price.tiers], dtype=np.int64).reshape(-1, 4)
    tier_count = np.array([len(price.tiers) for price in charged], dtype=np.int64)
    first_tier = np.cumsum(tier_count) - tier_count
    tier_index = first_tier[price_index]
    higher_tiers = int(tier_count.max(initial=1)) - 1
    if higher_tiers:
        prompt_tokens = tokens.prompt + tokens.cached_prompt
        for level in range(1, higher_tiers + 1):
            threshold = np.array(
                [
                    price.tiers[level].prompt_tokens_over if level < len(price.tiers) else _NEVER
                    for price in charged
                ],
                dtype=np.int64,
            )
            # Thresholds ascend, so counting those that are passed finds the highest one.
            tier_index += prompt_tokens > threshold[price_index]
    millions_nanos = np.array([price.request_nanos for price in charged], dtype=np.int64)[price_index]
    remainder = np.full(len(price_index), TOKENS_PER_PRICE // 2, dtype=np.int64)
    for counts, rate in zip(tokens, rates.T, strict=True):
        nanos_per_million = np.ascontiguousarray(rate)[tier_index]
        millions = counts // TOKENS_PER_PRICE
        if millions.any():
            millions_nanos += millions * nanos_per_million
            counts = counts - millions * TOKENS_PER_PRICE
        remainder += counts * nanos_per_million
    millions_nanos += remainder // TOKENS_PER_PRICE
    return millions_nanos
