"""The two kinds of entry that say what models cost: prices, and the mark-ups on them."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Annotated, Final

import msgspec

from tollkeeper.domain.entry import ChargeNanos, Entry, Invalid, check_aware
from tollkeeper.domain.model_patterns import is_pattern, pattern_objection
from tollkeeper.domain.quantities import QUANTITIES_MAX, TOKEN_CLASSES, VARIANT_CHARS_MAX, is_quantity_name
from tollkeeper.domain.rates import parse_factor, parse_rate

PRICE_NANOS_MAX: Final = 2_000_000_000_000
"""2000 units of money per million tokens: more is taken for a mistake."""
PriceNanos = Annotated[int, msgspec.Meta(ge=0, le=PRICE_NANOS_MAX)]
"""Nanos per million tokens."""
TIERS_MAX: Final = 16
ModelText = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
VariantText = Annotated[str, msgspec.Meta(max_length=VARIANT_CHARS_MAX)]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

CLASSES_IN_RATES: Final = frozenset(
    {"image_cached_prompt_tokens", "video_prompt_tokens", "video_completion_tokens"}
)
"""Token classes without a field: few models have them, and a price states their rate among its `rates`."""
RATE_FIELDS: Final = {
    f"{name.removesuffix('_tokens')}_nanos_per_million": name
    for name in (
        "prompt_tokens",
        "cached_prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        *(name for name in TOKEN_CLASSES if name not in CLASSES_IN_RATES),
    )
}
"""Field of a price or of its tier → the token class whose rate it states."""
_PLAIN: Final = ("prompt_tokens", "completion_tokens")
"""Token classes whose rate is 0 where a price does not state it."""

STANDARD_VARIANTS: Final = frozenset({"", "default", "standard", "auto", "on_demand", "on-demand"})
"""Names that providers have for a model's standard service, in lower case: the price without a variant."""


def variant_of(stated: str) -> str:
    """Return a variant's name as prices are found by it, in lower case; `""` for the standard service."""
    variant = stated.strip().lower()
    return "" if variant in STANDARD_VARIANTS else variant


class PriceTier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates once a request's prompt, of all classes, has more than *over* tokens; absent ones stay as below it."""

    over: Annotated[int, msgspec.Meta(ge=1, le=10**12)]
    prompt_nanos_per_million: PriceNanos | None = None
    cached_prompt_nanos_per_million: PriceNanos | None = None
    completion_nanos_per_million: PriceNanos | None = None
    reasoning_nanos_per_million: PriceNanos | None = None
    cache_write_nanos_per_million: PriceNanos | None = None
    cache_write_1h_nanos_per_million: PriceNanos | None = None
    audio_prompt_nanos_per_million: PriceNanos | None = None
    audio_cached_prompt_nanos_per_million: PriceNanos | None = None
    image_prompt_nanos_per_million: PriceNanos | None = None
    audio_completion_nanos_per_million: PriceNanos | None = None
    image_completion_nanos_per_million: PriceNanos | None = None

    def token_rates(self) -> dict[str, Fraction]:
        """Return the rates that it states, in nanos per million tokens, by token class."""
        return _token_rates(self)


class Price(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What a model costs from an instant on. The entry of the account wins over the one for all, either over
    the built-in price list; among several, the latest `effective_at` that is not after the event's time.
    """

    kind = "prices"

    id: str
    model: ModelText
    """The model's name as events have it; with a `factor` also a pattern such as `gpt-*`."""
    account: str | None = None
    variant: VariantText = ""
    """Of the model (`batch`, `flex`, …): only events of this variant have this price."""
    effective_at: datetime = _EPOCH
    factor: str | None = None
    """Of a variant: the price without a variant times this decimal, e.g. `"0.5"`, instead of rates."""
    prompt_nanos_per_million: PriceNanos = 0
    cached_prompt_nanos_per_million: PriceNanos | None = None
    """As a prompt token when absent."""
    completion_nanos_per_million: PriceNanos = 0
    reasoning_nanos_per_million: PriceNanos | None = None
    """As a completion token when absent."""
    cache_write_nanos_per_million: PriceNanos | None = None
    """Of tokens written to a cache for 5 minutes; as a prompt token when absent."""
    cache_write_1h_nanos_per_million: PriceNanos | None = None
    """As `cache_write_nanos_per_million` when absent."""
    audio_prompt_nanos_per_million: PriceNanos | None = None
    """As a prompt token when absent."""
    audio_cached_prompt_nanos_per_million: PriceNanos | None = None
    """As an audio prompt token when absent; where that is absent too, as a cached prompt token."""
    image_prompt_nanos_per_million: PriceNanos | None = None
    """As a prompt token when absent."""
    audio_completion_nanos_per_million: PriceNanos | None = None
    """As a completion token when absent."""
    image_completion_nanos_per_million: PriceNanos | None = None
    """As a completion token when absent."""
    tiers: Annotated[list[PriceTier], msgspec.Meta(max_length=TIERS_MAX)] = []
    """By context length, ascending."""
    rates: dict[str, int | str] = {}
    """
    Of units (`seconds`, `images`, any name) and of `CLASSES_IN_RATES`: money per units such as `"0.006/60"`, or nanos
    per million units.
    """
    request_nanos: ChargeNanos = 0

    def check(self) -> None:
        super().check()
        check_aware(self.effective_at, "effective_at")
        for before, after in zip(self.tiers, self.tiers[1:], strict=False):
            if before.over >= after.over:
                raise Invalid("tiers", "tiers ascend by over, each threshold once")
        if len(self.rates) > QUANTITIES_MAX:
            raise Invalid("rates", f"a price has at most {QUANTITIES_MAX} rates of units")
        for name, rate in self.rates.items():
            _check_rate(name, rate)
        if self.factor is None:
            if is_pattern(self.model):
                raise Invalid("model", "model is a whole name: only a price with a factor takes a pattern")
            return
        self._check_factor(self.factor)

    def _check_factor(self, factor: str) -> None:
        try:
            parse_factor(factor)
        except ValueError as exc:
            raise Invalid("factor", str(exc)) from None
        if not variant_of(self.variant):
            raise Invalid(
                "factor",
                "factor is of the price without a variant: give the entry a variant such as batch, or make a mark-up",
            )
        objection = pattern_objection(self.model)
        if objection is not None:
            raise Invalid("model", objection)
        if self._states_rates():
            raise Invalid("factor", "a price has a factor or rates, not both: drop one")

    def _states_rates(self) -> bool:
        stated = {name: rate for name, rate in _token_rates(self).items() if rate or name not in _PLAIN}
        return bool(stated or self.tiers or self.rates or self.request_nanos)

    def token_rates(self) -> dict[str, Fraction]:
        """Return the rates that it states, in nanos per million tokens, by token class."""
        return _token_rates(self)

    def exact_unit_rates(self) -> dict[str, Fraction]:
        """Return its rates of units, in nanos per million units."""
        return {name: parse_rate(rate) for name, rate in self.rates.items()}


class Markup(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What accounts pay beyond what models cost: each price times `factor`, plus `request_nanos`, from an instant on.

    One mark-up applies to an event: that of its account, else that of its plan, else that for all; among these the more
    specific model pattern, then the latest `effective_at` that is not after the event's time.
    """

    kind = "markups"

    id: str
    account: str | None = None
    plan: str | None = None
    """Only for keys on this plan, and for events without a key of accounts on it."""
    model: ModelText = "*"
    """A model's name, or a pattern such as `claude-*`."""
    effective_at: datetime = _EPOCH
    factor: str = "1"
    """A decimal, e.g. `"1.2"` for 20 % more."""
    request_nanos: ChargeNanos = 0
    """Added once per request that has a price."""

    def check(self) -> None:
        super().check()
        check_aware(self.effective_at, "effective_at")
        if self.account is not None and self.plan is not None:
            raise Invalid("plan", "a mark-up is for an account or for a plan, not for both: drop one")
        objection = pattern_objection(self.model)
        if objection is not None:
            raise Invalid("model", objection)
        try:
            parse_factor(self.factor)
        except ValueError as exc:
            raise Invalid("factor", str(exc)) from None

    @property
    def exact_factor(self) -> Fraction:
        """Its factor, exactly."""
        return parse_factor(self.factor)


def _token_rates(holder: Price | PriceTier) -> dict[str, Fraction]:
    stated = {name: getattr(holder, field) for field, name in RATE_FIELDS.items()}
    return {name: Fraction(rate) for name, rate in stated.items() if rate is not None}


def _check_rate(name: str, rate: int | str) -> None:
    field = f"rates.{name[:64]}"
    if not is_quantity_name(name):
        raise Invalid(field, f"{name[:64]!r} is not the name of a quantity, e.g. seconds")
    by_class = {token_class: of_class for of_class, token_class in RATE_FIELDS.items()}
    if name in by_class:
        raise Invalid(field, f"{name} has a field of its own: write {by_class[name]}")
    try:
        parse_rate(rate)
    except ValueError as exc:
        raise Invalid(field, str(exc)) from None
