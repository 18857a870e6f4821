"""What a request costs, line by line: the parts of `pricing.cost_nanos`, exact, whose sum is rounded once."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple

from tollkeeper.domain.pricing import (
    COST_NANOS_LIMIT,
    TOKEN_COLUMNS,
    TOKENS_PER_PRICE,
    ModelPrice,
    Tier,
    exact_rates,
    exact_request_nanos,
)
from tollkeeper.domain.quantities import MICROS, PROMPT_CLASSES
from tollkeeper.domain.requests import Usage

REQUEST: Final = "request"
"""The line of what is charged once per request."""


class CostLine(NamedTuple):
    """
    One part of a cost.

    Attributes:
        of: The token class or unit, or `REQUEST`.
        amount: Tokens or units; 1 of a request. The least that is charged, where more is charged than was used.
        rate_nanos: Nanos per million of them; nanos of a request.
        nanos: What it comes to.
    """

    of: str
    amount: Fraction
    rate_nanos: Fraction
    nanos: Fraction


def cost_lines(price: ModelPrice, usage: Usage) -> list[CostLine]:
    """
    Return what *usage* costs by *price*, in parts; those that cost nothing are left out.

    Args:
        price: Of the model, with its mark-up.
        usage: As for `pricing.cost_nanos`.
    """
    rates = exact_rates(price, tier_of(price, usage))
    amounts = {name: Fraction(getattr(usage, name)) for name in TOKEN_COLUMNS}
    for name, micros in usage.quantities.items():
        amounts[name] = Fraction(max(micros, price.minimums.get(name, 0)), MICROS)
    lines = [
        CostLine(name, amount, rates[name], amount * rates[name] / TOKENS_PER_PRICE)
        for name, amount in amounts.items()
        if amount and rates.get(name)
    ]
    if of_request := exact_request_nanos(price):
        lines.insert(0, CostLine(REQUEST, Fraction(1), of_request, of_request))
    return lines


def rounded_nanos(lines: list[CostLine]) -> int:
    """Return the sum of *lines* as it is charged: rounded half up to the nano, `COST_NANOS_LIMIT` at most."""
    total = sum((line.nanos for line in lines), Fraction(0))
    return min((2 * total + 1).__floor__() // 2, COST_NANOS_LIMIT)


def tier_of(price: ModelPrice, usage: Usage) -> Tier:
    """Return the tier that *usage* is charged by: see `pricing.cost_nanos`."""
    prompt_tokens = usage.prompt_tokens + usage.cached_prompt_tokens
    prompt_tokens += sum(usage.quantities.get(name, 0) for name in PROMPT_CLASSES) // MICROS
    passed = [tier for tier in price.tiers[1:] if prompt_tokens > tier.prompt_tokens_over]
    return passed[-1] if passed else price.tiers[0]
