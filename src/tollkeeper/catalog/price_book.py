"""
The price book: which price applies to a model, for an account, at an instant.

The account's own catalog entry wins over the entry for all accounts, either over the built-in list (the
`genai-prices` package, compiled into its wheel: nothing here touches the network). What no source knows has
no price: never 0. Prices are resolved once per model and account into a timeline of integers, exact to the
microsecond, time-of-day prices included; after that a look-up is one dict hit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, NamedTuple

from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Price
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.pricing import ModelPrice, Tier, price_of_entry

TIMELINES_MAX: Final = 16_384
"""Timelines remembered, some 10 MB: callers choose model names, so they need a bound. Full: start afresh."""

DAY_US: Final = 86_400_000_000
ALWAYS_US: Final = -(2**63)
"""The start of a timeline's first span: before any instant that 64 bits can hold."""

_EXACT: Final = Context(prec=200)
"""Wide enough that scaling a listed price rounds nothing."""


class PriceTimeline(NamedTuple):
    """
    Every price that one model has for one account, constant in each cell of spans by parts of the day.

    Attributes:
        starts_us: Where spans begin, ascending; the first is `ALWAYS_US`.
        parts_us: Where parts of the UTC day begin, ascending from 0; one unless prices vary by time of day.
        prices: Span by span, the price of each part; None where the model has no price.
    """

    starts_us: tuple[int, ...]
    parts_us: tuple[int, ...]
    prices: tuple[ModelPrice | None, ...]

    def at(self, at_us: int) -> ModelPrice | None:
        """Return the price at *at_us*, microseconds since the Unix epoch."""
        if len(self.prices) == 1:
            return self.prices[0]
        span = bisect_right(self.starts_us, at_us) - 1
        part = bisect_right(self.parts_us, at_us % DAY_US) - 1
        return self.prices[span * len(self.parts_us) + part]


UNKNOWN: Final = PriceTimeline((ALWAYS_US,), (0,), (None,))
"""The timeline of a model that no source knows."""


class PriceBook:
    """
    Prices of models, resolved and remembered. Any thread may ask; a change of the catalog makes a new book.

    Args:
        prices: The catalog's price entries.
        built_in: Whether models without an entry are looked up in the built-in list. Its import (0.2 s) waits
            until a model first needs it.
    """

    def __init__(self, prices: Sequence[Price], *, built_in: bool = True) -> None:
        self._built_in = _BuiltInPrices() if built_in else None
        self._entries: dict[tuple[str, str], list[Price]] = {}
        for entry in prices:
            self._entries.setdefault((entry.model, entry.account or ""), []).append(entry)
        self._timelines: dict[tuple[str, str], PriceTimeline] = {}
        self.own_accounts: Final = frozenset(entry.account for entry in prices if entry.account)
        """The accounts that have an entry of their own; all others share the general prices."""

    def price_of(self, model: str, *, account_id: str, at_us: int) -> ModelPrice | None:
        """
        Return the price of *model* for an event of *account_id* at *at_us*, or None when it has none.

        Args:
            model: As a gateway names it: `gpt-4o`, or `azure/DeepSeek-V3.2` with the seller in front. Catalog
                entries match the whole name exactly.
            account_id: Whose event it is; `""` for nobody's, which sees the general prices.
            at_us: When it occurred, microseconds since the Unix epoch.
        """
        return self.timeline(model, account_id).at(at_us)

    def timeline(self, model: str, account_id: str) -> PriceTimeline:
        """Return all prices of *model* for *account_id*: what `price_of` and the columns look into."""
        key = (model, account_id if account_id in self.own_accounts else "")
        timeline = self._timelines.get(key)
        if timeline is None:
            timeline = self._resolve(*key)
            if len(self._timelines) >= TIMELINES_MAX:
                self._timelines.clear()
            self._timelines[key] = timeline
        return timeline

    def replace(self, prices: Sequence[Price]) -> PriceBook:
        """Return a book with these catalog entries and this one's built-in list. This one is unchanged."""
        book = PriceBook(prices, built_in=False)
        book._built_in = self._built_in
        return book

    def _resolve(self, model: str, account_id: str) -> PriceTimeline:
        listed = self._built_in.timeline(model) if self._built_in and model else UNKNOWN
        general = self._entries.get((model, ""), [])
        own = self._entries.get((model, account_id), []) if account_id else []
        # Lowest rank first: each layer covers what lies below it from its first entry on.
        return _covered(_covered(listed, general), own)


def _covered(below: PriceTimeline, entries: Iterable[Price]) -> PriceTimeline:
    """Return *below* until the first of *entries* is effective, from then on the latest effective entry."""
    latest = {}
    for entry in sorted(entries, key=lambda entry: (entry.effective_at, entry.id)):
        latest[to_us(entry.effective_at)] = price_of_entry(entry)  # The greatest id wins: see select_price.
    if not latest:
        return below
    first_us = min(latest)
    parts = len(below.parts_us)
    kept = [start_us for start_us in below.starts_us if start_us < first_us]
    prices = list(below.prices[: len(kept) * parts])
    for price in latest.values():
        prices.extend([price] * parts)
    return PriceTimeline((*kept, *latest), below.parts_us, tuple(prices))


class _BuiltInPrices:
    """The list of the `genai-prices` package as timelines, imported when first asked."""

    def __init__(self) -> None:
        self._snapshot: Any = None
        self._timelines: dict[str, PriceTimeline] = {}

    def timeline(self, model: str) -> PriceTimeline:
        timeline = self._timelines.get(model)
        if timeline is None:
            if self._snapshot is None or len(self._timelines) >= TIMELINES_MAX:
                # Our own snapshot, as the package's remembers every name it was ever asked for, and a program
                # that updates it would change prices under us. Rebuilt when full, it forgets them too.
                self._snapshot = _bundled_snapshot()
                self._timelines.clear()
            timeline = _listed_timeline(self._snapshot, model)
            self._timelines[model] = timeline
        return timeline


def _bundled_snapshot() -> Any:
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


def _listed_timeline(snapshot: Any, model: str) -> PriceTimeline:
    from genai_prices import __version__
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

    found = _find_listed(snapshot, model)
    if found is None:
        return UNKNOWN
    provider, info = found
    version = f"genai-prices {__version__} {provider.id}/{info.id}"
    if not isinstance(info.prices, list):
        return PriceTimeline((ALWAYS_US,), (0,), (_integer_price(info.prices, version),))
    start_days: set[int] = set()
    parts = {0}
    for conditional in info.prices:
        constraint = conditional.constraint
        if isinstance(constraint, StartDateConstraint):
            start_days.add(_midnight_us(constraint.start_date))
        elif isinstance(constraint, TimeOfDateConstraint):
            parts |= {_time_of_day_us(constraint.start_time), _time_of_day_us(constraint.end_time)}
        elif constraint is not None:
            return UNKNOWN  # A condition of a later release, unknown to us: no price, not a wrong one.
    # Prices change only at these dates (UTC midnights) and times, so one instant per cell tells its price.
    days = [min(start_days, default=DAY_US) - DAY_US, *sorted(start_days)]
    prices = [
        _integer_price(info.get_prices(from_us(day_us + part_us)), version) if info.prices else None
        for day_us in days
        for part_us in sorted(parts)
    ]
    return PriceTimeline((ALWAYS_US, *days[1:]), tuple(sorted(parts)), tuple(prices))


def _find_listed(snapshot: Any, model: str) -> tuple[Any, Any] | None:
    """
    Return the provider and model that a reference names.

    A known provider in front (`azure/…`) is the seller: what it does not sell has no price, even if another
    sells it. Else the model's own vendor is meant, which the package tells from the name.
    """
    provider_name, slash, rest = model.partition("/")
    provider, name = None, model
    if slash and rest:
        try:
            provider, name = snapshot.find_provider(None, provider_name, None), rest
        except LookupError:
            provider = None  # No seller of that name: the slash is part of the model's name.
    try:
        provider, info = snapshot.find_provider_model(name, provider, None, None)
    except LookupError:
        return None
    return provider, info


def _integer_price(listed: Any, version: str) -> ModelPrice | None:
    """
    Return a listed price as integers, or None when it cannot price tokens.

    As in the package, cached prompt tokens without a price of their own cost what prompt tokens do, reasoning
    what completion does, and a model that lists a prompt price alone (embeddings) has free completions. An
    empty list means free only where the model's name says so (`…:free`); elsewhere it means unknown.
    """
    from genai_prices.types import TieredPrices

    if listed.input_mtok is None:
        free = version.endswith(":free") and not any(value is not None for value in vars(listed).values())
        return ModelPrice(version, 0, (Tier(0, 0, 0, 0, 0),)) if free else None
    prompt, completion = listed.input_mtok, listed.output_mtok or Decimal(0)
    cached_prompt = prompt if listed.cache_read_mtok is None else listed.cache_read_mtok
    reasoning = completion if listed.output_reasoning_mtok is None else listed.output_reasoning_mtok
    classes = (prompt, cached_prompt, completion, reasoning)
    thresholds = {
        tier.start for listed_ in classes if isinstance(listed_, TieredPrices) for tier in listed_.tiers
    }
    tiers = [Tier(0, *(_nanos(_tier_price(class_, None)) for class_ in classes))]
    for over in sorted(thresholds):
        tiers.append(Tier(over, *(_nanos(_tier_price(class_, over)) for class_ in classes)))
    requests = listed.requests_kcount or Decimal(0)
    if isinstance(requests, TieredPrices):
        return None  # Listed nowhere so far; we have one price per request.
    request_nanos = _nanos(requests.scaleb(-3, _EXACT))
    bounded = all(0 <= nanos <= PRICE_NANOS_MAX for tier in tiers for nanos in tier[1:])
    if not bounded or not 0 <= request_nanos <= REQUEST_NANOS_MAX:
        return None  # Outside what 64-bit arithmetic is made for: taken for a mistake in the list.
    return ModelPrice(version, request_nanos, tuple(tiers))


def _tier_price(listed: Any, over: int | None) -> Decimal:
    """Return the price of one class once the prompt has more than *over* tokens; its base price for None."""
    if isinstance(listed, Decimal):
        return listed
    price: Decimal = listed.base
    for tier in listed.tiers:
        if over is not None and tier.start <= over:
            price = tier.price
    return price


def _nanos(usd: Decimal) -> int:
    """Return USD in nanos; the few listed prices that are finer than a nano are rounded half to even."""
    return int(usd.scaleb(9, _EXACT).to_integral_value(ROUND_HALF_EVEN, _EXACT))


def _midnight_us(day: date) -> int:
    return to_us(datetime.combine(day, time(), UTC))


def _time_of_day_us(listed: time) -> int:
    """Return a listed time of day in microseconds since UTC midnight; without an offset it means UTC."""
    offset = listed.utcoffset() or timedelta()
    return to_us(datetime.combine(date(1970, 1, 1), listed.replace(tzinfo=UTC)) - offset) % DAY_US
