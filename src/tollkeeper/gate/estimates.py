"""The amounts that a request takes by what it may use: of the estimate, before it is known what it used."""

from __future__ import annotations

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Amounts, UnitAmounts, amounts_by_unit
from tollkeeper.domain.meter import cost_of
from tollkeeper.domain.requests import Usage
from tollkeeper.gate.compiled_keys import CompiledKey
from tollkeeper.gate.sources import Sources


def amounts_of(
    sources: Sources,
    unknown_price: str,
    compiled_key: CompiledKey,
    route: Route,
    usage: Usage,
    now_us: int,
) -> UnitAmounts | None:
    """Return what a request takes that may use *usage*; None when its model must have a price and has none."""
    if route.free:
        return _with_quantities(Amounts(1, usage.tokens, 0, 0), usage, compiled_key)
    nanos, _, state, credits, _ = cost_of(
        sources.price,
        compiled_key.account_id,
        now_us,
        route,
        usage,
        usage.model,
        200,
        "",
        plan=compiled_key.plan_slug,
    )
    if state == "unpriced" and unknown_price == "deny":
        return None
    return _with_quantities(Amounts(1, usage.tokens, nanos, credits), usage, compiled_key)


def _with_quantities(amounts: Amounts, usage: Usage, compiled_key: CompiledKey) -> UnitAmounts:
    """Return *amounts* by unit where something counts a quantity, or may do so before the request ends."""
    if usage.quantities or compiled_key.counts_quantities:
        return amounts_by_unit(amounts, usage.quantities)
    return amounts


def unpriced(usage: Usage) -> str:
    """Return why the price of *usage* is not known, and what to do."""
    variant = f" as variant {usage.variant!r}" if usage.variant else ""
    return (
        f"There is no price for model {usage.model[:128]!r}{variant}: set one, or state cost_nanos. A model that is "
        f"priced by the second, page or other unit needs that quantity in the estimate."
    )
