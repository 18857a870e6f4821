"""Rate limits of AnyLayer: those of a minute, an hour and a day; their consumption and headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.usage import PAGE_SIZE_MAX
from tollkeeper.profiles.anylayer.numbers import percent
from tollkeeper.profiles.anylayer.scope import QueriedUsage
from tollkeeper.profiles.toolkit import HeaderList, limits_over, rate_limit_headers, seconds_up

WINDOWS: Final = {"requestsPerMinute": 60, "requestsPerHour": 3_600, "requestsPerDay": 86_400}
"""Member of `rateLimit` and of `rateLimits` → seconds of its window."""


class RateLimits(NamedTuple):
    """The member `rateLimits`, and by window the key whose limit it shows: None where no key has one."""

    members: dict[str, Any]
    keys: dict[str, StoredKey | None]


class _Standing(NamedTuple):
    """Where one limit on all requests of a key stands."""

    window: str
    counter_id: str
    key: StoredKey
    allowed: int
    used: int


def rate_limits(scope: QueriedUsage) -> RateLimits:
    """
    Return limits, consumption and utilisation of the key that `keyId` names; else, by window, of the key that is
    nearest to its limit.

    Every figure is of one limit, so that the utilisation says how near a refusal is.
    """
    standings = _standings(scope)
    if scope.context.settings["rate_limit_usage"] == "recorded":
        standings = _as_recorded(scope, standings)
    found = {
        window: min(
            (standing for standing in standings if standing.window == window),
            key=lambda standing: (-percent(standing.used, standing.allowed), standing.allowed),
            default=None,
        )
        for window in WINDOWS
    }
    limits = _limits_of(scope)
    current = {
        window: strictest_amount(limits, WINDOWS[window]) if standing is None else standing.allowed
        for window, standing in found.items()
    }
    used = {
        window: sum(_recorded(scope, window).values()) if standing is None else standing.used
        for window, standing in found.items()
    }
    return RateLimits(
        {
            "current": current,
            "usage": used,
            "utilization": {window: utilization(used[window], most) for window, most in current.items()},
        },
        {window: None if standing is None else standing.key for window, standing in found.items()},
    )


def utilization(used: int, allowed: int | None) -> float | None:
    """Return *used* of *allowed* in percent; None without a limit."""
    return None if allowed is None else percent(used, allowed)


def strictest_amount(limits: Sequence[Limit], window_s: int) -> int | None:
    """Return the strictest of the limits on all requests in windows of *window_s*."""
    return min((limit.amount for limit in limits_over(limits, window_s)), default=None)


def _limits_of(scope: QueriedUsage) -> Sequence[Limit]:
    """Return the limits of the key that `keyId` names, else those of the caller's plan."""
    target = scope.target
    entitlement = scope.context.entitlement(target or scope.caller)
    if entitlement is None:
        return ()
    if target is not None:
        return [limited.limit for limited in entitlement.limits]
    return () if entitlement.plan is None else entitlement.plan.limits


def _standings(scope: QueriedUsage) -> list[_Standing]:
    """Return where each limit on all requests of the active keys stands, by the gate's counters."""
    found = []
    now_us = to_us(scope.call.now)
    for key in scope.keys if scope.target is None else [scope.target]:
        entitlement = scope.context.entitlement(key)
        if entitlement is None or key.state_at(now_us) != "active":
            continue
        # Both list the limits in the same order; names alone may repeat.
        whole = [limited for limited in entitlement.limits if limited.limit.is_whole]
        limits = [s for s in scope.context.limit_statuses(key) if s.kind in ("limit", "concurrency")]
        for limited, limit_status in zip(whole, limits, strict=False):
            window = _window_name(limit_status)
            if window is not None and limit_status.allowed and limited.limit.name == limit_status.name:
                found.append(
                    _Standing(window, limited.counter_id, key, limit_status.allowed, limit_status.used)
                )
    return found


def _as_recorded(scope: QueriedUsage, standings: Sequence[_Standing]) -> list[_Standing]:
    """Return *standings* with the recorded requests of the keys that share each counter."""
    recorded = {window: _recorded(scope, window) for window in WINDOWS}
    used: dict[tuple[str, str], int] = {}
    for standing in standings:
        counter = (standing.window, standing.counter_id)
        used[counter] = used.get(counter, 0) + recorded[standing.window].get(standing.key.entry.id, 0)
    return [standing._replace(used=used[standing.window, standing.counter_id]) for standing in standings]


def _recorded(scope: QueriedUsage, window: str) -> dict[str, int]:
    """Return key id → its recorded requests of the running minute, hour or day."""
    window_us = WINDOWS[window] * US_PER_S
    start_us = to_us(scope.call.now) // window_us * window_us
    rows = scope.report(from_us=start_us, group_by=("key",), measures=("requests",), limit=PAGE_SIZE_MAX).rows
    return {row["key"]: row["requests"] for row in rows}


def _window_name(limit_status: LimitStatus) -> str | None:
    """Return the member that a rate limit on all requests belongs to."""
    if limit_status.kind != "limit" or limit_status.unit != "requests" or limit_status.bucket is not None:
        return None
    return next((name for name, window_s in WINDOWS.items() if window_s == limit_status.window_s), None)


def rate_headers(limit_statuses: Sequence[LimitStatus], limit_name: str = "") -> HeaderList:
    """
    Return the headers of the limit that refused a request, else of the limit per minute.

    A key without a limit on requests has none.
    """
    limits = [
        limit_status
        for limit_status in limit_statuses
        if limit_status.kind == "limit"
        and limit_status.unit == "requests"
        and limit_status.allowed is not None
    ]
    chosen = next((limit for limit in limits if limit.name == limit_name), None)
    if chosen is None:
        general = [limit for limit in limits if limit.bucket is None and not limit.match]
        chosen = next((limit for limit in general if limit.window_s == 60), general[0] if general else None)
    if chosen is None:
        return []
    reset_s = None if chosen.resets_at is None else seconds_up(to_us(chosen.resets_at))
    return rate_limit_headers(chosen.allowed, chosen.remaining, reset_s)
