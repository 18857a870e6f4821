"""What the stored events of a budget's scope were charged, by counter: as verify and a budget that begins need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.quantities import quantity_of_unit
from tollkeeper.ports import CostSum, UsageStore


def spent_in(
    store: UsageStore, scope: BudgetScope, key_ids: Sequence[str] | None, start_us: int, end_us: int
) -> dict[str, int]:
    """Return what the events of a scope were charged in a span, by counter id: one, or one of each value."""
    span = events_of(scope, key_ids, start_us, end_us)
    if not scope.by:
        return {scope.counter_id: charged_in(store.charged(scope.account_id, **span), scope.unit)}
    return {
        scope.of_values(values).counter_id: charged_in(spent, scope.unit)
        for values, spent in store.charged_by(scope.account_id, scope.by, **span).items()
    }


def events_of(
    scope: BudgetScope, key_ids: Sequence[str] | None, start_us: int, end_us: int
) -> dict[str, Any]:
    """Return the arguments of `UsageStore.charged`, `charged_by` and `first_by` for the events of a scope in a span."""
    return {
        "from_us": start_us,
        "to_us": end_us,
        "project_id": scope.project_id,
        "key_ids": key_ids,
        "match": scope.match,
    }


def charged_in(spent: CostSum, unit: str) -> int:
    """Return *spent* in the unit of a budget."""
    if (quantity := quantity_of_unit(unit)) is not None:
        return spent.quantities.get(quantity, 0)
    return {
        "requests": spent.requests,
        "tokens": spent.tokens,
        "nanos": spent.cost_nanos,
        "credits": spent.credits,
    }[unit]
