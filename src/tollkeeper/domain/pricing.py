"""
What tokens cost: integer prices, and the one place where money is rounded.

A price is integer nanos per million tokens, so a usage record's cost is a sum of whole products divided by a
million once, rounded half up. Totals sum rounded records: what is shown adds up. `meter.price_columns`
computes the same over columns; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from tollkeeper.domain.catalog import Price

TOKENS_PER_PRICE: Final = 1_000_000
"""Prices are stated per this many tokens."""


class Tier(NamedTuple):
    """Nanos per million tokens of each class, once a request has more than *prompt_tokens_over* of prompt."""

    prompt_tokens_over: int
    prompt: int
    cached_prompt: int
    completion: int
    reasoning: int


class ModelPrice(NamedTuple):
    """
    Integer prices of one model, from one source, at one time.

    Attributes:
        version: Where it comes from, short and stable: `prices:<entry id>`, `genai-prices <release> <model>`.
        request_nanos: Charged once per request, beside the tokens, and without any.
        tiers: Ascending by threshold, at least one; the first applies from the first token on.
    """

    version: str
    request_nanos: int
    tiers: tuple[Tier, ...]


def cost_nanos(price: ModelPrice, prompt: int, cached_prompt: int, completion: int, reasoning: int) -> int:
    """
    Return what one usage record costs, rounded once, half up to the nano.

    The tier is chosen by all prompt tokens, cached ones included, and applies to the whole request, not only
    to what lies above its threshold: the rule of `TieredPrices` in genai-prices, and of the vendors it lists.

    Args:
        price: The price that applies to the record.
        prompt: Prompt tokens that no cache served; ≥ 0, as are the other three disjoint classes.
        cached_prompt: Prompt tokens that a cache served.
        completion: Completion tokens without those of reasoning.
        reasoning: Reasoning tokens.
    """
    tiers = price.tiers
    tier = tiers[0]
    if len(tiers) > 1:
        prompt_tokens = prompt + cached_prompt
        for higher in tiers[1:]:
            if prompt_tokens <= higher.prompt_tokens_over:
                break
            tier = higher
    token_price = (
        prompt * tier.prompt
        + cached_prompt * tier.cached_prompt
        + completion * tier.completion
        + reasoning * tier.reasoning
    )
    return price.request_nanos + (token_price + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE


def select_price(entries: Iterable[Price], account_id: str, at: datetime) -> Price | None:
    """
    Return the entry that prices an event of *account_id* at *at*, or None when no entry does.

    The account's own entries win over those for all accounts, however old; among equals the latest
    `effective_at` that is not after *at*, then the greatest id, so that the order of *entries* is no matter.

    Args:
        entries: Price entries of one model.
        account_id: Whose event it is.
        at: An aware instant, the event's `occurred_at`.
    """
    effective = [
        entry for entry in entries if entry.account in (None, account_id) and entry.effective_at <= at
    ]
    return max(
        effective,
        key=lambda entry: (entry.account is not None, entry.effective_at, entry.id),
        default=None,
    )


def price_of_entry(entry: Price) -> ModelPrice:
    """Return the integer prices that a catalog entry states, with its two absent classes filled in."""
    cached_prompt = entry.cached_prompt_nanos_per_million
    reasoning = entry.reasoning_nanos_per_million
    tier = Tier(
        prompt_tokens_over=0,
        prompt=entry.prompt_nanos_per_million,
        cached_prompt=entry.prompt_nanos_per_million if cached_prompt is None else cached_prompt,
        completion=entry.completion_nanos_per_million,
        reasoning=entry.completion_nanos_per_million if reasoning is None else reasoning,
    )
    return ModelPrice(version=f"prices:{entry.id}", request_nanos=entry.request_nanos, tiers=(tier,))
