"""What `prices show`, `prices list --built-in` and `prices preview` answer, over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tollkeeper.meter.price_preview import PreviewRow


class TierAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The rates of prompts that are longer than so many tokens."""

    prompt_tokens_over: int
    rates: dict[str, str]


class PriceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Which price a model's name has."""

    name: str
    model: str
    """The model whose price it is, as the list or the catalog names it."""
    seller: str
    """Its seller in the list; `own` for a price of the catalog."""
    why: str
    version: str
    """As events of this price have it in `price_version`."""
    rates: dict[str, str]
    """Token class or unit → nanos per million units; `request_nanos` is per request."""
    request_nanos: str
    tiers: list[TierAnswer]


class NoPriceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A name that has no price."""

    name: str
    model: None = None
    why: str
    nearest: list[str]
    """Names of the catalog and of the list that look most like it, with their seller."""


class PreviewRowAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One account's use of one model."""

    account: str
    model: str
    events: int
    cost_nanos: str
    """As it is booked."""
    new_cost_nanos: str
    """As it would be under the file."""
    difference_nanos: str
    provider_cost_nanos: str
    new_provider_cost_nanos: str
    unpriced: int
    """Events without a price, as booked."""
    new_unpriced: int


class PreviewAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a span of history would cost under other prices. Nothing was changed."""

    rows: list[PreviewRowAnswer]
    totals: PreviewRowAnswer


def preview_answer(rows: Sequence[PreviewRow]) -> PreviewAnswer:
    """Return a preview as answers show it; the totals have empty account and model."""
    sums = [sum(column) for column in zip(*(row[2:] for row in rows), strict=True)] or [0] * 7
    return PreviewAnswer(
        rows=[_row(row.account_id, row.model, row[2:]) for row in rows],
        totals=_row("", "", sums),
    )


def _row(account: str, model: str, sums: Sequence[int]) -> PreviewRowAnswer:
    events, cost, new_cost, provider, new_provider, unpriced, new_unpriced = sums
    return PreviewRowAnswer(
        account=account,
        model=model,
        events=events,
        cost_nanos=str(cost),
        new_cost_nanos=str(new_cost),
        difference_nanos=str(new_cost - cost),
        provider_cost_nanos=str(provider),
        new_provider_cost_nanos=str(new_provider),
        unpriced=unpriced,
        new_unpriced=new_unpriced,
    )
