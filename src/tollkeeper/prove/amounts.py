"""
What the traffic of a run states and what that is worth, in plain integers and fractions.

It has the prices that a run declares, draws bodies in every form, and reads each of them again for the oracle. No rule
here is Tollkeeper's code: a cost is a sum of fractions, rounded half up once.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any, Final, NamedTuple

MODEL: Final = "prove-priced"
"""The model that has a price; others state their cost."""
NANOS_PER_MILLION: Final = {
    "prompt": 1_250_000_001,
    "cached_prompt": 125_000_003,
    "completion": 10_000_000_007,
    "reasoning": 10_000_000_009,
    "cache_write": 1_562_500_011,
}
"""Odd on purpose: a rate that is cut or rounded too early gives another nano."""
UNIT_RATES: Final = {
    "seconds": ("0.007/60", Fraction(7_000_000, 60)),
    "images": ("0.04/3", Fraction(40_000_000, 3)),
}
"""As a price states them, and in nanos per unit."""
REQUEST_NANOS: Final = 17
FACTOR: Final = "1.35"
MARKUP_REQUEST_NANOS: Final = 3
MICROS: Final = 10**6


class Measures(NamedTuple):
    """
    What something uses, or many things together.

    Attributes:
        requests: How many count.
        cost_nanos, provider_nanos: With and without the mark-up.
        tokens: Of all classes.
        seconds, images: In millionths.
        adjusted_nanos: Given to the account, or taken when below 0.
    """

    requests: int = 0
    cost_nanos: int = 0
    provider_nanos: int = 0
    tokens: int = 0
    seconds: int = 0
    images: int = 0
    adjusted_nanos: int = 0

    def plus(self, other: Measures) -> Measures:
        return Measures(*map(int.__add__, self, other))

    def of(self, unit: str) -> int:
        """Return the part that a bound of *unit* counts: `nanos`, `requests` or `seconds`."""
        return {"nanos": self.cost_nanos, "requests": self.requests, "seconds": self.seconds}[unit]


def prices_declaration(account: str) -> str:
    """Return the price of the model for *account*, and its mark-up."""
    rates = "\n".join(f"{name}_nanos_per_million = {rate}" for name, rate in NANOS_PER_MILLION.items())
    units = ", ".join(f'{name} = "{text}"' for name, (text, _) in UNIT_RATES.items())
    return (
        f'[[prices]]\nid = "price-{account}"\naccount = "{account}"\nmodel = "{MODEL}"\n{rates}\n'
        f"rates = {{ {units} }}\nrequest_nanos = {REQUEST_NANOS}\n\n"
        f'[[markups]]\nid = "markup-{account}"\naccount = "{account}"\nfactor = "{FACTOR}"\n'
        f"request_nanos = {MARKUP_REQUEST_NANOS}"
    )


# -- drawing ----------------------------------------------------------------------------------------------


def draw_used(chance: Random) -> dict[str, Any]:
    """Return what a request of `MODEL` used: tokens and quantities, or a provider's usage object."""
    prompt, cached, written, completion, reasoning = (chance.randrange(1_000) for _ in range(5))
    form = chance.choice(("tokens", "openai", "anthropic"))
    if form == "tokens":
        tokens = {"prompt": prompt, "cached_prompt": cached, "completion": completion, "reasoning": reasoning}
        return {"tokens": tokens, "quantities": draw_quantities(chance) | {"cache_write_tokens": written}}
    body: dict[str, Any]
    if form == "openai":
        # Its totals include the parts.
        body = {
            "prompt_tokens": prompt + cached,
            "completion_tokens": completion + reasoning,
            "total_tokens": prompt + cached + completion + reasoning,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
    else:
        body = {
            "input_tokens": prompt,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "output_tokens": completion,
        }
    # Left out, it is found by the fields.
    return {"usage": body} | ({"usage_of": form} if chance.random() < 0.5 else {})


def draw_quantities(chance: Random) -> dict[str, Any]:
    """Return seconds to the millionth, and images."""
    seconds = chance.randrange(100 * MICROS)
    return {"seconds": f"{seconds // MICROS}.{seconds % MICROS:06d}", "images": chance.randrange(5)}


# -- reading ----------------------------------------------------------------------------------------------


def measures_of(body: Mapping[str, Any]) -> Measures:
    """Return what an event, an estimate or an outcome of *body* counts and costs."""
    tokens, units = _counts(body)
    cost = provider = body.get("cost_nanos", 0)
    if "cost_nanos" not in body and body.get("model") == MODEL:
        exact = Fraction(REQUEST_NANOS) + sum(
            Fraction(NANOS_PER_MILLION[name], MICROS) * count for name, count in tokens.items()
        )
        exact += sum(UNIT_RATES[name][1] * Fraction(micros, MICROS) for name, micros in units.items())
        cost = _half_up(exact * Fraction(FACTOR) + MARKUP_REQUEST_NANOS)
        provider = _half_up(exact)
    return Measures(1, cost, provider, sum(tokens.values()), units.get("seconds", 0), units.get("images", 0))


def _counts(body: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tokens of each class, which share none, and the units in millionths."""
    quantities = dict(body.get("quantities", {}))
    tokens = dict(body.get("tokens", {})) | {"cache_write": quantities.pop("cache_write_tokens", 0)}
    usage = body.get("usage", {})
    if "prompt_tokens" in usage:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        tokens = {
            "prompt": usage["prompt_tokens"] - cached,
            "cached_prompt": cached,
            "completion": usage["completion_tokens"] - reasoning,
            "reasoning": reasoning,
        }
    elif usage:
        tokens = {
            "prompt": usage["input_tokens"],
            "cached_prompt": usage["cache_read_input_tokens"],
            "cache_write": usage["cache_creation_input_tokens"],
            "completion": usage["output_tokens"],
        }
    return tokens, {name: int(Decimal(value) * MICROS) for name, value in quantities.items()}


def _half_up(exact: Fraction) -> int:
    return int((exact + Fraction(1, 2)) // 1)
