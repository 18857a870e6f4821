"""The states of the limits, budgets and balance of a key. Callers hold the gate's lock; each may raise `NotRead`."""

from __future__ import annotations

from datetime import datetime, timedelta

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.periods import duration_s
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.compiled_keys import CompiledKey
from tollkeeper.gate.counter import Counter


def limit_statuses(compiled_key: CompiledKey, now_us: int) -> list[LimitStatus]:
    """Return where each counter of a key stands: its limits in the plan's order, its budgets, its credit."""
    found = [status_of_limit(limit, counter, now_us) for limit, counter in compiled_key.limits]
    found += [_status_of_budget(counter, now_us) for counter in compiled_key.budgets]
    pool = compiled_key.pool
    if pool is not None:
        allowed, used = pool.allowed_used(now_us)
        found.append(LimitStatus("credit", pool.name, pool.unit, allowed, used))
    return found


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
    )


def _window_start(limit: Limit, resets_at: datetime | None) -> datetime | None:
    """Return when a fixed window began, or one from first use; the others have no start that their requests share."""
    if resets_at is None or limit.algorithm not in ("fixed", "from_first"):
        return None
    return resets_at - timedelta(seconds=duration_s(limit.window))


def _instant(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)
