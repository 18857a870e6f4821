"""The states of the limits, budgets and balance of a key. Callers hold the gate's lock; each may raise `NotRead`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeAlias

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.matching import Facts
from tollkeeper.domain.periods import duration_s
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.compiled_keys import CompiledKey
from tollkeeper.gate.counter import Counter
from tollkeeper.gate.matched import MatchedBudget, MatchedLimit, words_of

Found: TypeAlias = tuple[
    list[tuple[MatchedLimit, "Counter | None"]], list[tuple[MatchedBudget, "BudgetCounter | None"]]
]
"""The limits and the budgets of a key that have a match or values, each with the counter that is asked for."""


def counters_for(compiled_key: CompiledKey, facts: Facts | None, now_us: int) -> Found:
    """
    Return those that count a request of these *facts*, with its counters; none without facts.

    The caller has not the gate's lock: a window may have to be read.
    """
    if facts is None:
        return [], []
    matched = compiled_key.matched
    return (
        [(m, m.counter(facts, now_us)) for m in matched.limits if m.counts(facts)],
        [(m, m.counter(facts)) for m in matched.budgets if m.counts(facts)],
    )


def every_counter(compiled_key: CompiledKey, facts: Facts | None, now_us: int) -> Found:
    """
    Return all of them, whatever they match. One with values has the counter of the values in *facts*, or None.

    As `counters_for`, without the gate's lock.
    """
    matched = compiled_key.matched
    return (
        [(m, m.whole if facts is None else m.counter(facts, now_us)) for m in matched.limits],
        [(m, m.whole if facts is None else m.counter(facts)) for m in matched.budgets],
    )


def limit_statuses(compiled_key: CompiledKey, matched: Found, now_us: int) -> list[LimitStatus]:
    """
    Return where each counter of a key stands: its limits in the plan's order, its budgets, its credit.

    Args:
        matched: Which of those that have a match or values: `counters_for` or `every_counter`.
    """
    limits, budgets = matched
    found = [status_of_limit(limit, counter, now_us) for limit, counter in compiled_key.limits]
    for of_limit, counter in limits:
        if counter is None:
            limit = of_limit.limit
            found.append(_without_value("limit", limit.name, limit.unit, limit.amount, of_limit))
        else:
            found.append(status_of_limit(of_limit.limit, counter, now_us))
    found += [_status_of_budget(budget, now_us) for budget in compiled_key.budgets]
    for of_budget, budget in budgets:
        if budget is None:
            scope = of_budget.scope
            found.append(_without_value("budget", scope.name, scope.unit, scope.amount, of_budget))
        else:
            found.append(_status_of_budget(budget, now_us))
    pool = compiled_key.pool
    if pool is not None:
        allowed, used = pool.allowed_used(now_us)
        found.append(LimitStatus("credit", pool.name, pool.unit, allowed, used))
    return found


def _without_value(
    kind: str, name: str, unit: str, allowed: int | None, matched: MatchedLimit | MatchedBudget
) -> LimitStatus:
    scope = matched.scope
    return LimitStatus(kind, name, unit, allowed, 0, match=words_of(scope), per=scope.by)


def status_of_limit(limit: Limit, counter: Counter, now_us: int) -> LimitStatus:
    """Return where a rate limit stands."""
    allowed, used = counter.allowed_used(now_us)
    has_window = limit.algorithm != "concurrency"
    resets_at = _instant(counter.resets_at_us(now_us))
    return LimitStatus(
        kind="limit" if has_window else "concurrency",
        name=counter.name,
        unit=counter.unit,
        allowed=allowed,
        used=used,
        window_s=duration_s(limit.window) if has_window else None,
        per_window=limit.amount if has_window else None,
        bucket=limit.bucket,
        starts_at=_window_start(limit, resets_at),
        resets_at=resets_at,
        match=counter.match,
    )


def _status_of_budget(counter: BudgetCounter, now_us: int) -> LimitStatus:
    allowed, used = counter.allowed_used(now_us)
    return LimitStatus(
        kind="budget",
        name=counter.name,
        unit=counter.unit,
        allowed=allowed,
        used=used,
        starts_at=from_us(counter.span[0]),
        resets_at=from_us(counter.span[1]),
        match=counter.match,
        held=counter.held(now_us),
    )


def _window_start(limit: Limit, resets_at: datetime | None) -> datetime | None:
    """Return when a fixed window began, or one from first use; the others have no start that their requests share."""
    if resets_at is None or limit.algorithm not in ("fixed", "from_first"):
        return None
    return resets_at - timedelta(seconds=duration_s(limit.window))


def _instant(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)
