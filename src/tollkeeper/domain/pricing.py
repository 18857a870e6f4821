"""
What a request's tokens and units cost: exact prices, and the one place where money is rounded.

A rate is integer nanos per million units over a divisor that all rates of a price share, so that a price per minute
(a sixtieth) or with a mark-up of 7.5 % is exact. A usage record's cost is a sum of whole products divided once,
rounded half up. Totals sum rounded records: what is shown adds up. `meter.price_columns` computes the same over
columns; a property test holds the two together.

Each of the token classes of `domain.quantities` has a rate in every price: its own, or that of the class that it is
part of, as in genai-prices. A unit (`seconds`, `images`) has one only where the price states it; without one it is
counted and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from fractions import Fraction
from math import lcm
from typing import Any, Final, NamedTuple

from tollkeeper.domain.catalog import Markup, Price
from tollkeeper.domain.model_patterns import specificity
from tollkeeper.domain.quantities import MICROS, PROMPT_CLASSES, TOKEN_CLASSES
from tollkeeper.domain.rates import parse_factor
from tollkeeper.domain.requests import Usage

TOKENS_PER_PRICE: Final = 1_000_000
"""Prices are stated per this many tokens or units."""

COST_NANOS_LIMIT: Final = 10**16
"""
The most that one record is charged, ten million units of money: above it a price or a count is a mistake, and sums
would leave 64 bits.
"""

TOKEN_COLUMNS: Final = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens")
"""Token classes that have a column of their own, in the order of `Usage` and `Tier`."""

PLAIN_CLASSES: Final = {
    "cached_prompt_tokens": ("prompt_tokens",),
    "reasoning_tokens": ("completion_tokens",),
    "cache_write_tokens": ("prompt_tokens",),
    "cache_write_1h_tokens": ("cache_write_tokens",),
    "audio_prompt_tokens": ("prompt_tokens",),
    "audio_cached_prompt_tokens": ("audio_prompt_tokens", "cached_prompt_tokens"),
    "image_prompt_tokens": ("prompt_tokens",),
    "image_cached_prompt_tokens": ("cached_prompt_tokens",),
    "video_prompt_tokens": ("prompt_tokens",),
    "audio_completion_tokens": ("completion_tokens",),
    "image_completion_tokens": ("completion_tokens",),
    "video_completion_tokens": ("completion_tokens",),
}
"""Whose rate a class has that is not stated: the first of these that is, else that of the last. In this order."""


class Tier(NamedTuple):
    """
    Rates once a request has more than *prompt_tokens_over* of prompt.

    Attributes:
        quantities: Name → rate, of the other token classes and of units.
    """

    prompt_tokens_over: int
    prompt: int
    cached_prompt: int
    completion: int
    reasoning: int
    quantities: Mapping[str, int] = {}


class ModelPrice(NamedTuple):
    """
    Prices of one model, from one source, at one time.

    Attributes:
        version: Where it comes from, short and stable: `prices:<entry id>`, `genai-prices <release> <model>`.
        request_nanos: Charged once per request, beside the tokens, and without any.
        tiers: Ascending by threshold, at least one; the first applies from the first token on.
        divisor: A rate divided by it is in nanos per million units.
        request_rest: What a request costs beyond *request_nanos*, in nanos × 1e6 × *divisor*; less than one nano.
        minimums: Name → the least that is charged of a quantity above 0, in micro-units.
        only_units: The units without one of which it cannot price a usage, since it prices nothing else; else empty.
        listed: This price before its mark-up; None when it has none.
    """

    version: str
    request_nanos: int
    tiers: tuple[Tier, ...]
    divisor: int = 1
    request_rest: int = 0
    minimums: Mapping[str, int] = {}
    only_units: frozenset[str] = frozenset()
    listed: ModelPrice | None = None

    def covers(self, usage: Usage) -> bool:
        """Return whether it can price *usage*: a price per second does not price a request that states none."""
        return not self.only_units or not self.only_units.isdisjoint(usage.quantities)


def cost_nanos(price: ModelPrice, usage: Usage) -> tuple[int, int]:
    """
    Return what one usage record costs with and without the mark-up, each rounded once, half up to the nano.

    The tier is chosen by all prompt tokens, cached and written ones, audio and images included, and applies to the
    whole request, not only to what lies above its threshold: the rule of `TieredPrices` in genai-prices, and of the
    vendors it lists.

    Args:
        price: The price that applies to the record, which it covers.
        usage: Disjoint token counts ≥ 0, and quantities in micro-units.
    """
    cost = _cost(price, usage)
    listed = price.listed
    return (cost, cost) if listed is None else (cost, _cost(listed, usage))


def _cost(price: ModelPrice, usage: Usage) -> int:
    # Unpacked at once: every request does this twice, and each name that is looked up costs 30 ns.
    _, request_nanos, tiers, divisor, total, minimums, _, _ = price
    prompt, cached_prompt, completion, reasoning, _, _, _, quantities = usage[:8]
    tier = tiers[0]
    if len(tiers) > 1:
        prompt_tokens = prompt + cached_prompt
        if quantities:
            prompt_tokens += sum(quantities.get(name, 0) for name in PROMPT_CLASSES) // MICROS
        for higher in tiers[1:]:
            if prompt_tokens <= higher.prompt_tokens_over:
                break
            tier = higher
    _, prompt_rate, cached_rate, completion_rate, reasoning_rate, rates = tier
    total += (
        prompt * prompt_rate
        + cached_prompt * cached_rate
        + completion * completion_rate
        + reasoning * reasoning_rate
    )
    if quantities:
        # Rounded down here and half up below is rounded once: what is lost is less than one of the sum's units, and
        # both the half and the divisor are whole numbers of them.
        total += (
            sum(
                max(micros, minimums.get(name, 0)) * rates.get(name, 0) for name, micros in quantities.items()
            )
            // MICROS
        )
    per_nano = TOKENS_PER_PRICE * divisor
    nanos = request_nanos + (total + per_nano // 2) // per_nano
    return nanos if nanos < COST_NANOS_LIMIT else COST_NANOS_LIMIT


# --- Making prices ------------------------------------------------------------------------------


def exact_price(
    version: str,
    request_nanos: Fraction,
    tiers: Iterable[tuple[int, Mapping[str, Fraction]]],
    minimums: Mapping[str, int] | None = None,
) -> ModelPrice:
    """
    Return the price of exact rates, under the smallest divisor that makes all of them whole.

    Args:
        request_nanos: Per request.
        tiers: Ascending: prompt tokens that a request must exceed (0 of the first), and nanos per million units by the
            name of the token class or unit. Token classes that are not named have the rate of `PLAIN_CLASSES`; prompt
            and completion tokens, 0.
        minimums: As `ModelPrice.minimums`.
    """
    filled = [(over, with_plain_rates(rates)) for over, rates in tiers]
    request_millionths = request_nanos * TOKENS_PER_PRICE
    divisor = lcm(
        request_millionths.denominator, *(rate.denominator for _, rates in filled for rate in rates.values())
    )
    whole_nanos, rest = divmod(request_nanos, 1)
    units = frozenset(
        name for _, rates in filled for name, rate in rates.items() if rate and not is_token_class(name)
    )
    prices_more = request_nanos or any(
        rate for _, rates in filled for name, rate in rates.items() if is_token_class(name)
    )
    return ModelPrice(
        version,
        int(whole_nanos),
        tuple(_tier(over, rates, divisor) for over, rates in filled),
        divisor,
        int(rest * TOKENS_PER_PRICE * divisor),
        dict(minimums or {}),
        frozenset() if prices_more else units,
    )


def _tier(over: int, rates: Mapping[str, Fraction], divisor: int) -> Tier:
    whole = {name: int(rate * divisor) for name, rate in rates.items()}
    prompt, cached_prompt, completion, reasoning = (whole.pop(name) for name in TOKEN_COLUMNS)
    # A token class that is free says so: else it would have the rate of its plain class when the price is scaled.
    kept = {name: rate for name, rate in whole.items() if rate or is_token_class(name)}
    return Tier(over, prompt, cached_prompt, completion, reasoning, kept)


def with_plain_rates(rates: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Return *rates* with one for each token class: see `PLAIN_CLASSES`."""
    filled = {"prompt_tokens": Fraction(0), "completion_tokens": Fraction(0), **rates}
    for name, plain in PLAIN_CLASSES.items():
        if name not in filled:
            filled[name] = filled[next((other for other in plain if other in rates), plain[-1])]
    return filled


def is_token_class(name: str) -> bool:
    """Return whether *name* counts tokens that `tokens` and context lengths include."""
    return name in TOKEN_COLUMNS or name in TOKEN_CLASSES


def exact_rates(price: ModelPrice, tier: Tier) -> dict[str, Fraction]:
    """Return the rates of one tier of *price* in nanos per million units, by name; units without one are left out."""
    of_columns = zip(TOKEN_COLUMNS, tier[1:5], strict=True)
    return {name: Fraction(rate, price.divisor) for name, rate in (*of_columns, *tier.quantities.items())}


def exact_request_nanos(price: ModelPrice) -> Fraction:
    """Return what *price* charges per request, in nanos."""
    return price.request_nanos + Fraction(price.request_rest, TOKENS_PER_PRICE * price.divisor)


def scaled(price: ModelPrice, factor: Fraction, version: str, fixed_nanos: int = 0) -> ModelPrice:
    """Return *price* times *factor*, plus *fixed_nanos* per request, exactly; it covers what *price* covers."""
    made = exact_price(
        version,
        exact_request_nanos(price) * factor + fixed_nanos,
        [
            (
                tier.prompt_tokens_over,
                {name: rate * factor for name, rate in exact_rates(price, tier).items()},
            )
            for tier in price.tiers
        ],
        price.minimums,
    )
    return made._replace(only_units=price.only_units)


def marked_up(price: ModelPrice, markup: Markup) -> ModelPrice:
    """Return what an account pays for what costs its provider *price*."""
    version = f"{price.version} markups:{markup.id}"
    return scaled(price, markup.exact_factor, version, markup.request_nanos)._replace(listed=price)


def price_of_factor(entry: Price, standard: ModelPrice) -> ModelPrice:
    """Return what a catalog entry with a factor makes of the model's price without a variant."""
    assert entry.factor is not None
    return scaled(standard, parse_factor(entry.factor), f"prices:{entry.id}")


def price_of_entry(entry: Price) -> ModelPrice:
    """Return the price that a catalog entry without a factor states, with its absent classes filled in."""
    units = entry.exact_unit_rates()
    # A tier states what changes: the rest is as below it.
    stated = entry.token_rates()
    tiers = [(0, {**units, **stated})]
    for tier in entry.tiers:
        stated = {**stated, **tier.token_rates()}
        tiers.append((tier.over, {**units, **stated}))
    return exact_price(f"prices:{entry.id}", Fraction(entry.request_nanos), tiers)


# --- Choosing among entries ---------------------------------------------------------------------


def price_rank(entry: Price) -> tuple[Any, ...]:
    """
    Return what decides between entries that all price an event: the greatest wins.

    The account's own entries win over those for all accounts, those of the model's whole name over those of a pattern,
    however old; among equals the latest `effective_at`, then the greatest id, so that their order is no matter.
    """
    return entry.account is not None, specificity(entry.model), entry.effective_at, entry.id


def markup_rank(markup: Markup) -> tuple[Any, ...]:
    """
    Return what decides between mark-ups that all are for an event: the greatest wins. One applies, never two.

    That of the account wins over that of the plan, either over one for all; among these the more specific pattern;
    then the latest `effective_at`, then the greatest id.
    """
    scope = 2 if markup.account is not None else 1 if markup.plan is not None else 0
    return scope, specificity(markup.model), markup.effective_at, markup.id


def select_price(entries: Iterable[Price], account_id: str, at: datetime) -> Price | None:
    """
    Return the entry that prices an event of *account_id* at *at*, or None when no entry does.

    Args:
        entries: Price entries of one model and variant.
        account_id: Whose event it is.
        at: An aware instant, the event's `occurred_at`.
    """
    effective = [
        entry for entry in entries if entry.account in (None, account_id) and entry.effective_at <= at
    ]
    return max(effective, key=price_rank, default=None)


def select_markup(markups: Iterable[Markup], account_id: str, plan: str, at: datetime) -> Markup | None:
    """
    Return the mark-up of an event of *account_id* on *plan* at *at*, or None when it has none.

    Args:
        markups: Mark-ups whose pattern matches the model.
        plan: Slug of the plan, `""` for none.
    """
    effective = [
        markup
        for markup in markups
        if markup.account in (None, account_id) and markup.plan in (None, plan) and markup.effective_at <= at
    ]
    return max(effective, key=markup_rank, default=None)
