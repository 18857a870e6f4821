"""
The built-in price list: that of the `genai-prices` package, compiled into its wheel. Nothing here touches the network.

Each of our token classes and units has the listed price of the most specific unit that contains it, as the package's
own `ModelPrice.calc_price` shares a usage out; a test compares the two over the whole list. A price that the package
itself would refuse is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, Final

from tollkeeper.catalog.model_names import Listed, ModelNames, find_listed, nearest_names
from tollkeeper.catalog.price_timeline import (
    ALWAYS_US,
    DAY_US,
    TIMELINES_MAX,
    UNKNOWN,
    PriceTimeline,
    timeline_of,
)
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.pricing import ModelPrice, exact_price, is_token_class
from tollkeeper.domain.quantities import MICROS
from tollkeeper.domain.rates import UNIT_NANOS_MAX

LISTED_UNITS: Final[Mapping[str, str]] = {
    "prompt_tokens": "input_text_tokens",
    "cached_prompt_tokens": "cache_text_read_tokens",
    "completion_tokens": "output_text_tokens",
    "reasoning_tokens": "output_text_reasoning_tokens",
    "cache_write_tokens": "cache_text_write_5m_tokens",
    "cache_write_1h_tokens": "cache_text_write_1h_tokens",
    "audio_prompt_tokens": "input_audio_tokens",
    "audio_cached_prompt_tokens": "cache_audio_read_tokens",
    "image_prompt_tokens": "input_image_tokens",
    "audio_completion_tokens": "output_audio_tokens",
    "image_completion_tokens": "output_image_tokens",
    "image_cached_prompt_tokens": "cache_image_read_tokens",
    "video_prompt_tokens": "input_video_tokens",
    "video_completion_tokens": "output_video_tokens",
    "citation_tokens": "output_citation_tokens",
    "seconds": "input_audio_seconds",
    "characters": "input_characters",
    "pages": "input_document_pages",
    "annotated_pages": "input_annotated_document_pages",
    "messages": "input_text_messages",
    "searches": "web_searches",
    "social_searches": "social_searches",
    "storage_searches": "storage_searches",
    "rerank_searches": "rerank_searches",
    "code_executions": "code_executions",
}
"""Our token class or unit → the package's unit (`genai_prices.data_units`) that counts the same."""

_LEAST_SECONDS: Final = {("groq", "whisper-large-v3"), ("groq", "whisper-large-v3-turbo")}
"""Billed for 10 seconds at least: written into the package's `ModelInfo.calc_price`, not into its list."""


class ListedPrices:
    """The list as timelines. The package is imported when a model is first asked for."""

    def __init__(self) -> None:
        self._model_names: ModelNames | None = None
        self._timelines: dict[tuple[str, str], PriceTimeline] = {}
        """By the name and variant that were asked for."""
        self._of_models: dict[tuple[str, str, str], PriceTimeline] = {}

    def timeline(self, model: str, variant: str = "") -> PriceTimeline:
        """Return the listed prices of *model*, those of *variant* only; the name `""` has none."""
        at = (model, variant)
        timeline = self._timelines.get(at)
        if timeline is None:
            found = self.found(model)
            timeline = UNKNOWN if found is None else self._of_listed(found.seller, found.model, variant)
            self._timelines[at] = timeline
        return timeline

    def _of_listed(self, provider: Any, info: Any, variant: str) -> PriceTimeline:
        # One model has many names: they share one timeline.
        at = (provider.id, info.id, variant)
        timeline = self._of_models.get(at)
        if timeline is None:
            timeline = self._of_models[at] = _listed_timeline(provider, info, variant)
        return timeline

    def found(self, model: str) -> Listed | None:
        """Return which model of the list a name means, and why; None if it means none."""
        return find_listed(self._names(), model) if model else None

    def nearest(self, model: str) -> list[str]:
        """Return the names of the list that look most like *model*, the nearest first."""
        return nearest_names(self._names(), model)

    def prices(self, at_us: int) -> Iterator[tuple[str, str, ModelPrice | None]]:
        """Yield seller, model and price at *at_us* of everything on the list."""
        for provider in self._names().providers:
            for info in provider.models:
                yield provider.id, info.id, self._of_listed(provider, info, "").at(at_us)

    def names(self, model: str) -> set[str]:
        """Return the names under which the list has *model*: none, or one."""
        found = self.found(model)
        return set() if found is None else {str(found.model.id)}

    def _names(self) -> ModelNames:
        if len(self._timelines) >= TIMELINES_MAX:
            self._timelines.clear()
            self._of_models.clear()
        if self._model_names is None:
            # Our own snapshot: a program that updates the package's would change prices under us.
            self._model_names = ModelNames(_bundled_snapshot())
        return self._model_names


def _bundled_snapshot() -> Any:
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


@cache
def _registry() -> Any:
    from genai_prices.data_units import unit_data
    from genai_prices.units import UnitRegistry

    return UnitRegistry(unit_data)


def _listed_timeline(provider: Any, info: Any, variant: str) -> PriceTimeline:
    from genai_prices import __version__
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

    variants: Sequence[Any] = ()
    if variant:
        # What another seller says of the variant is not said of this one: as in the package's `calc_price`.
        own = any(info is of_provider for of_provider in provider.models)
        variants = [v for v in info.price_variants or () if own and _is_variant(v, variant)]
        if not variants:
            return UNKNOWN
    conditional = info.prices if isinstance(info.prices, list) else []
    if not conditional and isinstance(info.prices, list):
        return UNKNOWN
    start_days: set[int] = set()
    parts = {0}
    for constraint in (priced.constraint for priced in (*conditional, *variants)):
        if isinstance(constraint, StartDateConstraint):
            start_days.add(_midnight_us(constraint.start_date))
        elif isinstance(constraint, TimeOfDateConstraint):
            parts |= {_time_of_day_us(constraint.start_time), _time_of_day_us(constraint.end_time)}
        elif constraint is not None:
            return UNKNOWN  # A condition of a later release, unknown to us: no price, not a wrong one.
    # Prices change only at these dates (UTC midnights) and times, so one instant per cell tells its price.
    days = [min(start_days, default=DAY_US) - DAY_US, *sorted(start_days)]
    version = f"genai-prices {__version__} {provider.id}/{info.id}{' ' + variant if variant else ''}"
    minimums = {"seconds": 10 * MICROS} if (provider.id, info.id) in _LEAST_SECONDS else {}
    context = {key: value for priced in variants for key, value in priced.when.items()}
    prices: list[ModelPrice | None] = []
    for day_us in days:
        for part_us in sorted(parts):
            at = from_us(day_us + part_us)
            in_force = not variant or any(v.constraint is None or v.constraint.active(at) for v in variants)
            prices.append(
                _exact_price(info.get_prices(at, context or None), version, minimums) if in_force else None
            )
    return timeline_of([ALWAYS_US, *days[1:]], sorted(parts), prices)


def _is_variant(listed: Any, variant: str) -> bool:
    """
    Return whether a listed variant is the one that is asked for: `{"service_tier": "flex"}` is `flex`.

    The package names the setting of the request too (`processing`, `service_tier`, `speed`); one of ours has its value.
    """
    return all(value.lower() == variant for value in listed.when.values())


def _exact_price(listed: Any, version: str, minimums: Mapping[str, int]) -> ModelPrice | None:
    """
    Return a listed price, exactly, or None when it prices nothing.

    An empty list means free only where the model's name says so (`…:free`); elsewhere it means unknown.
    """
    from genai_prices.types import TieredPrices
    from genai_prices.validation import validate_priced_units

    registry = _registry()
    stated = {key: value for key, value in vars(listed).items() if value is not None}
    if not stated:
        return exact_price(version, Fraction(0), [(0, {})]) if version.endswith(":free") else None
    try:
        units = [(registry.unit_for_price_key(key), value) for key, value in stated.items()]
        validate_priced_units([unit for unit, _ in units], registry)
    except (KeyError, ValueError):
        return None  # Of a later release, or a price that the package refuses to calculate with.
    request_nanos = Fraction(0)
    for unit, value in units:
        if unit.usage_key == "requests":
            if isinstance(value, TieredPrices):
                return None  # Listed nowhere so far; we have one price per request.
            request_nanos = _nanos(value) / unit.per
    of_ours: dict[str, tuple[Any, int]] = {}
    for name, usage_key in LISTED_UNITS.items():
        dimensions = registry.units[usage_key].dimensions.items()
        containing = [(unit, value) for unit, value in units if unit.dimensions.items() <= dimensions]
        if containing:
            nearest, value = max(containing, key=lambda priced: len(priced[0].dimensions))
            of_ours[name] = value, nearest.per
    thresholds = {tier.start for _, value in units if isinstance(value, TieredPrices) for tier in value.tiers}
    tiers = [
        (
            over or 0,
            {name: _nanos(_tier_price(value, over)) * 10**6 / per for name, (value, per) in of_ours.items()},
        )
        for over in (None, *sorted(thresholds))
    ]
    return exact_price(version, request_nanos, tiers, minimums) if _is_sane(request_nanos, tiers) else None


def _is_sane(request_nanos: Fraction, tiers: Sequence[tuple[int, Mapping[str, Fraction]]]) -> bool:
    """Return whether no price is outside what entries may state, which is taken for a mistake in the list."""
    return 0 <= request_nanos <= REQUEST_NANOS_MAX and all(
        0 <= rate <= (PRICE_NANOS_MAX if is_token_class(name) else UNIT_NANOS_MAX * 10**6)
        for _, rates in tiers
        for name, rate in rates.items()
    )


def _tier_price(listed: Any, over: int | None) -> Decimal:
    """Return the price of one class once the prompt has more than *over* tokens; its base price for None."""
    if isinstance(listed, Decimal):
        return listed
    price: Decimal = listed.base
    for tier in listed.tiers:
        if over is not None and tier.start <= over:
            price = tier.price
    return price


def _nanos(usd: Decimal) -> Fraction:
    return Fraction(usd) * 10**9


def _midnight_us(day: date) -> int:
    return to_us(datetime.combine(day, time(), UTC))


def _time_of_day_us(listed: time) -> int:
    """Return a listed time of day in microseconds since UTC midnight; without an offset it means UTC."""
    offset = listed.utcoffset() or timedelta()
    return to_us(datetime.combine(date(1970, 1, 1), listed.replace(tzinfo=UTC)) - offset) % DAY_US
