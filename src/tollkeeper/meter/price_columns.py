"""
Pricing over columns: the twin of `domain.pricing.cost_nanos` for a batch; a property test compares them.

One price is looked up per distinct model, variant, account, plan and span of the price book; the rest is integer
arithmetic over arrays of 64 bits. Rows whose sums may not fit (billions of tokens, finely divided rates) are found
beforehand by their size in floating point, and priced one by one instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.catalog.price_timeline import DAY_US, PriceTimeline
from tollkeeper.domain.pricing import COST_NANOS_LIMIT, TOKENS_PER_PRICE, ModelPrice, Tier, cost_nanos
from tollkeeper.domain.quantities import MICROS, PROMPT_CLASSES
from tollkeeper.domain.requests import Usage

_NO_PRICE: Final = ModelPrice("", 0, (Tier(0, 0, 0, 0, 0),))
"""Stands for "no price": costs 0 and has no version."""

_NEVER: Final = 2**62
"""A tier's threshold that no request passes."""

_FITS: Final = 2**62
"""What sums may reach in 64 bits, with room for the half that rounds and for the error of an estimate."""

_NO_MODEL: Final = PriceTimeline((-(2**63),), (0,), (_NO_PRICE,))

Texts: TypeAlias = "pa.DictionaryArray | pa.ChunkedArray"


class PricedColumns(NamedTuple):
    """
    What a batch costs, row by row.

    Attributes:
        cost_nanos: int64; 0 where *known* is False.
        provider_cost_nanos: int64; the same before mark-ups.
        price_version: Dictionary of text; `""` where there is no model or no price.
        known: Whether the row has a price that covers it, or has no model and so needs none.
    """

    cost_nanos: NDArray[np.int64]
    provider_cost_nanos: NDArray[np.int64]
    price_version: Any
    known: NDArray[np.bool_]


class TokenColumns(NamedTuple):
    """Four int64 arrays of disjoint token counts, each within `[0, events.TOKENS_MAX]`."""

    prompt: NDArray[np.int64]
    cached_prompt: NDArray[np.int64]
    completion: NDArray[np.int64]
    reasoning: NDArray[np.int64]


class _Used(NamedTuple):
    """What the rows of a batch used: tokens, and micro-units by name of the quantities that have a rate somewhere."""

    tokens: TokenColumns
    quantities: Mapping[str, NDArray[np.int64]]

    def of_rows(self, rows: NDArray[np.int64]) -> _Used:
        """Return what these rows used."""
        tokens = TokenColumns(*(counts[rows] for counts in self.tokens))
        return _Used(tokens, {name: micros[rows] for name, micros in self.quantities.items()})

    def of_row(self, row: int) -> Usage:
        """Return what one row used."""
        quantities = {name: int(micros[row]) for name, micros in self.quantities.items() if micros[row]}
        prompt, cached_prompt, completion, reasoning = (int(counts[row]) for counts in self.tokens)
        return Usage(prompt, cached_prompt, completion, reasoning, quantities=quantities)


def price_columns(
    models: Texts,
    accounts: Texts,
    occurred_at_us: NDArray[np.int64],
    tokens: Sequence[NDArray[np.int64]],
    book: PriceBook,
    *,
    quantities: Mapping[str, NDArray[np.int64]] | None = None,
    variants: Texts | None = None,
    plans: Texts | None = None,
) -> PricedColumns:
    """
    Return what each row costs by *book*: the same, row by row, as `cost_nanos` of `price_of`.

    Args:
        models: Model names, text or dictionary of text; null and `""` mean that no model was used.
        accounts: Account ids, in the same form.
        occurred_at_us: int64, microseconds since the Unix epoch, without nulls.
        tokens: The four arrays of `TokenColumns`, in its order.
        book: Where prices come from.
        quantities: Name → micro-units per row, int64, 0 where a row has none.
        variants: Variants of the models, in the form of *models*; None where no row has one.
        plans: Slugs of the plans, in the same form; needed only if the book has `own_plans`.
    """
    price_index, prices = _price_per_row(models, accounts, variants, plans, occurred_at_us, book)
    charged = [price or _NO_PRICE for price in prices]
    stated = quantities or {}
    rated = {name for price in charged for tier in price.tiers for name in tier.quantities}
    used = _Used(TokenColumns(*tokens), {name: stated[name] for name in stated if name in rated})
    known = np.array([price is not None for price in prices], dtype=np.bool_)[price_index]
    for index, price in enumerate(charged):
        if price.only_units:
            rows = np.flatnonzero(price_index == index)
            known[rows] = False
            for unit in price.only_units & stated.keys():
                known[rows] |= stated[unit][rows] > 0
    cost = _cost(price_index, charged, used)
    provider_cost = cost
    marked = np.array([price.listed is not None for price in charged], dtype=np.bool_)
    if marked.any():
        provider_cost = cost.copy()
        rows = np.flatnonzero(marked[price_index])
        before_markup = [price.listed or price for price in charged]
        provider_cost[rows] = _cost(price_index[rows], before_markup, used.of_rows(rows))
    if not known.all():
        cost, provider_cost = np.where(known, cost, 0), np.where(known, provider_cost, 0)
    versions = {
        version: index for index, version in enumerate(dict.fromkeys(["", *(p.version for p in charged)]))
    }
    version_of_price = np.array([versions[price.version] for price in charged], dtype=np.int32)
    version_index = np.where(known, version_of_price[price_index], 0) if len(price_index) else price_index
    version = pa.DictionaryArray.from_arrays(
        pa.array(version_index.astype(np.int32), pa.int32()), pa.array(list(versions), pa.string())
    )
    return PricedColumns(cost, provider_cost, version, known)


def _price_per_row(
    models: Texts,
    accounts: Texts,
    variants: Texts | None,
    plans: Texts | None,
    occurred_at_us: NDArray[np.int64],
    book: PriceBook,
) -> tuple[NDArray[np.int64], list[ModelPrice | None]]:
    """Return, per row, an index into a list of prices, and that list."""
    timeline_index, timelines = _timeline_per_row(models, accounts, variants, plans, book)
    prices = _Prices()
    first_price = np.zeros(len(timelines), dtype=np.int64)
    varying = np.zeros(len(timelines), dtype=np.bool_)
    for index, timeline in enumerate(timelines):
        first_price[index] = prices.place(timeline.prices[0])
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
    return price_index, prices.found or [None]


class _Prices:
    """The prices of a batch, each once. Compared by identity: the timelines that have them are kept meanwhile."""

    def __init__(self) -> None:
        self.found: list[ModelPrice | None] = []
        self._places: dict[int, int] = {}

    def place(self, price: ModelPrice | None) -> int:
        """Return the place of *price* in `found`, where it is put if need be."""
        place = self._places.setdefault(id(price), len(self.found))
        if place == len(self.found):
            self.found.append(price)
        return place


def _price_at(timeline: PriceTimeline, at_us: NDArray[np.int64], prices: _Prices) -> NDArray[np.int64]:
    """Return the index in *prices* (added to as needed) at each instant: the twin of `PriceTimeline.at`."""
    cell = np.searchsorted(np.array(timeline.starts_us, dtype=np.int64), at_us, side="right") - 1
    if len(timeline.parts_us) > 1:
        parts_us = np.array(timeline.parts_us, dtype=np.int64)
        cell = cell * len(parts_us) + np.searchsorted(parts_us, at_us % DAY_US, side="right") - 1
    index_of_cell = [prices.place(price) for price in timeline.prices]
    return np.array(index_of_cell, dtype=np.int64)[cell]


def _timeline_per_row(
    models: Texts, accounts: Texts, variants: Texts | None, plans: Texts | None, book: PriceBook
) -> tuple[NDArray[np.int64], list[PriceTimeline]]:
    """Return, per row, an index into a list of timelines, one per distinct model, variant, owner and plan."""
    combined = _coded(models)
    distinct: list[tuple[str, ...]] = [(name,) for name in combined[1]]
    codes = combined[0]
    for texts, only in ((accounts, book.own_accounts), (variants, None), (plans, book.own_plans)):
        # Only accounts and plans with entries of their own can differ: all others are one.
        if texts is None or only == frozenset():
            distinct = [(*values, "") for values in distinct]
        else:
            codes, distinct = _joined(codes, distinct, *_coded(texts, only))
    places, codes = _distinct(codes, len(distinct))
    timelines = []
    for place in places.tolist():
        model, owner, variant, plan = distinct[place]
        timelines.append(book.timeline(model, owner, variant, plan) if model else _NO_MODEL)
    return codes, timelines


def _joined(
    codes: NDArray[np.int64],
    values: Sequence[tuple[str, ...]],
    more_codes: NDArray[np.int64],
    more_names: Sequence[str],
) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
    """Return, per row, an index into a list of values with one more part, and that list: those that occur."""
    width = len(more_names)
    places, joined = _distinct(codes * width + more_codes, len(values) * width)
    return joined, [(*values[place // width], more_names[place % width]) for place in places.tolist()]


def _distinct(codes: NDArray[np.int64], code_count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the codes that occur, ascending, and per row the place of its code among them."""
    if code_count <= max(len(codes), 1024):
        distinct = np.flatnonzero(np.bincount(codes, minlength=1))
        position = np.zeros(code_count, dtype=np.int64)
        position[distinct] = np.arange(len(distinct))
        return distinct, position[codes]
    # Many more possible codes than rows: sorting the rows is cheaper than a table of the codes.
    distinct, places = np.unique(codes, return_inverse=True)
    return distinct, places


def _coded(
    texts: pa.Array | pa.ChunkedArray, only: Set[str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return, per row, an index into a list of texts, and that list; null becomes `""`, as what is not in *only*."""
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
    if only is None:
        return codes, names
    place_of = {"": 0}
    places = [place_of.setdefault(name if name in only else "", len(place_of)) for name in names]
    return np.array(places, dtype=np.int64)[codes], list(place_of)


def _cost(price_index: NDArray[np.int64], charged: Sequence[ModelPrice], used: _Used) -> NDArray[np.int64]:
    """Return the cost of each row at its price: the twin of the scalar rule in `domain.pricing`."""
    tier_index = _tier_per_row(price_index, charged, used)
    tiers = [tier for price in charged for tier in price.tiers]
    total = _int64s([price.request_rest for price in charged])[price_index]
    for counts, rates in zip(used.tokens, zip(*(tier[1:5] for tier in tiers), strict=True), strict=True):
        total += counts * _int64s(rates)[tier_index]
    if used.quantities:
        fractions = np.zeros(len(total), dtype=np.int64)
        for name, stated in used.quantities.items():
            rows = np.flatnonzero(stated)
            rates_of_rows = _int64s(_rates(tiers, name))[tier_index[rows]]
            micros = stated[rows]
            if any(name in price.minimums for price in charged):
                least = _int64s([price.minimums.get(name, 0) for price in charged])
                micros = np.maximum(micros, least[price_index[rows]])
            total[rows] += micros // MICROS * rates_of_rows
            fractions[rows] += micros % MICROS * rates_of_rows
        total += fractions // MICROS
    per_nano = _int64s([TOKENS_PER_PRICE * price.divisor for price in charged])
    # Division by one number is several times as fast as by an array of them.
    divisor: Any = int(per_nano[0]) if (per_nano == per_nano[0]).all() else per_nano[price_index]
    request_nanos = _int64s([price.request_nanos for price in charged])[price_index]
    cost: NDArray[np.int64] = np.minimum(request_nanos + (total + divisor // 2) // divisor, COST_NANOS_LIMIT)
    if not _fits(charged, tiers, used):
        for row in _too_large(price_index, tier_index, charged, tiers, used).tolist():
            cost[row] = cost_nanos(charged[price_index[row]]._replace(listed=None), used.of_row(row))[0]
    return cost


def _tier_per_row(
    price_index: NDArray[np.int64], charged: Sequence[ModelPrice], used: _Used
) -> NDArray[np.int64]:
    """Return, per row, the place of its tier among the tiers of all prices."""
    tier_count = np.array([len(price.tiers) for price in charged], dtype=np.int64)
    first_tier = np.cumsum(tier_count) - tier_count
    tier_index: NDArray[np.int64] = first_tier[price_index]
    higher_tiers = int(tier_count.max(initial=1)) - 1
    if higher_tiers:
        prompt_tokens = used.tokens.prompt + used.tokens.cached_prompt
        for name in PROMPT_CLASSES:
            if name in used.quantities:
                prompt_tokens = prompt_tokens + used.quantities[name] // MICROS
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
    return tier_index


def _fits(charged: Sequence[ModelPrice], tiers: Sequence[Tier], used: _Used) -> bool:
    """Return whether no sum of a batch can leave 64 bits, were all counts and rates at the largest of the batch."""
    if any(_is_wide(price) for price in charged):
        return False
    size = max((price.request_rest for price in charged), default=0)
    for counts, rates in zip(used.tokens, zip(*(tier[1:5] for tier in tiers), strict=True), strict=True):
        size += int(counts.max(initial=0)) * max(rates)
    fractions = 0
    for name, micros in used.quantities.items():
        rate = max(_rates(tiers, name))
        least = max(price.minimums.get(name, 0) for price in charged)
        size += (max(int(micros.max(initial=0)), least) // MICROS + 1) * rate
        fractions += MICROS * rate
    return size < _FITS and fractions < _FITS


def _too_large(
    price_index: NDArray[np.int64],
    tier_index: NDArray[np.int64],
    charged: Sequence[ModelPrice],
    tiers: Sequence[Tier],
    used: _Used,
) -> NDArray[np.int64]:
    """Return the rows whose sums may leave 64 bits, by an estimate in floating point."""
    wide = np.array([_is_wide(price) for price in charged], dtype=np.bool_)
    size = np.where(wide[price_index], float(_FITS), 0.0)
    for counts, rates in zip(used.tokens, zip(*(tier[1:5] for tier in tiers), strict=True), strict=True):
        size += counts * np.array(rates, dtype=np.float64)[tier_index]
    fractions = np.zeros(len(size), dtype=np.float64)
    for name, micros in used.quantities.items():
        rates_of_rows = np.array(_rates(tiers, name), dtype=np.float64)[tier_index] * (micros > 0)
        least = np.array([price.minimums.get(name, 0) for price in charged], dtype=np.float64)
        size += (np.maximum(micros, least[price_index]) / MICROS + 1) * rates_of_rows
        fractions += MICROS * rates_of_rows
    rows: NDArray[np.int64] = np.flatnonzero(np.maximum(size, fractions) >= _FITS / 2)
    return rows


def _is_wide(price: ModelPrice) -> bool:
    """Return whether numbers of a price itself leave 64 bits, so that none of its rows can be priced in them."""
    return max(TOKENS_PER_PRICE * price.divisor, price.request_rest, price.request_nanos) >= _FITS


def _rates(tiers: Sequence[Tier], name: str) -> list[int]:
    return [tier.quantities.get(name, 0) for tier in tiers]


def _int64s(values: Sequence[int]) -> NDArray[np.int64]:
    """Return *values* as an array; larger ones than 64 bits hold are cut, and found by `_too_large`."""
    return np.array([min(value, _FITS) for value in values], dtype=np.int64)
