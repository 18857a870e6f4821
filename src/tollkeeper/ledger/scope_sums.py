"""What the stored events of a budget's scope were charged, by counter: as verify and a budget that begins need it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.first_use import Span, span_at
from tollkeeper.domain.quantities import quantity_of_unit
from tollkeeper.ports import CostSum, UsageStore

CUTS_MAX: Final = 1_000
"""Parts of a span in one query: with their starts, an address of a server that takes 1 MB has 20 KB."""


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


def spent_in_parts(
    store: UsageStore, scope: BudgetScope, key_ids: Sequence[str] | None, times_us: Iterable[int]
) -> Iterator[tuple[str, int, int]]:
    """
    Yield what the events of a scope were charged between each two of some times: counter id, start, amount.

    One query for each `CUTS_MAX` of them, however many counters there are. Parts without events are absent.
    """
    cuts_us = sorted(set(times_us))
    for first in range(0, len(cuts_us) - 1, CUTS_MAX):
        some = cuts_us[first : first + CUTS_MAX + 1]
        span = events_of(scope, key_ids, some[0], some[-1])
        parts = store.charged_by(scope.account_id, scope.by, **span, cuts_us=some[:-1])
        for (*values, start_us), spent in parts.items():
            yield scope.of_values(values).counter_id, int(start_us), charged_in(spent, scope.unit)


def spent_in_spans(
    store: UsageStore,
    scope: BudgetScope,
    key_ids: Sequence[str] | None,
    spans: Mapping[str, Sequence[Span]],
) -> dict[tuple[str, int], int]:
    """
    Return what the events of a scope were charged in some periods, by counter id and start; 0 without events.

    Args:
        spans: Counter id → its periods, ascending, none of which overlaps another.
    """
    sums = {(counter_id, start_us): 0 for counter_id, some in spans.items() for start_us, _ in some}
    times_us = {us for some in spans.values() for span in some for us in span}
    for counter_id, part_us, amount in spent_in_parts(store, scope, key_ids, times_us):
        span = span_at(spans.get(counter_id, ()), part_us)
        if span is not None:
            sums[counter_id, span[0]] += amount
    return sums


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
