"""Rate limits of AnyLayer: those of a minute, an hour and a day; their consumption and headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.profiles.anylayer.numbers import percent
from tollkeeper.profiles.anylayer.scope import QueriedUsage
from tollkeeper.profiles.toolkit import HeaderList, limits_over, rate_limit_headers, seconds_up

WINDOWS: Final = {"requestsPerMinute": 60, "requestsPerHour": 3_600, "requestsPerDay": 86_400}
"""Member of `rateLimit` and of `rateLimits` → seconds of its window."""


def rate_limits(scope: QueriedUsage) -> dict[str, Any]:
    """Return limits, consumption and utilisation of the key that `keyId` names; else the plan's, over all keys."""
    target = scope.target
    entitlement = scope.context.entitlement(target or scope.caller)
    limits: Sequence[Limit] = ()
    if entitlement is not None and target is not None:
        limits = [limited.limit for limited in entitlement.limits]
    elif entitlement is not None and entitlement.plan is not None:
        limits = entitlement.plan.limits
    allowed = {name: strictest_amount(limits, window_s) for name, window_s in WINDOWS.items()}
    used = _consumption(scope, [target] if target is not None else scope.keys)
    return {
        "current": allowed,
        "usage": used,
        "utilization": {name: utilization(used[name], most) for name, most in allowed.items()},
    }


def utilization(used: int, allowed: int | None) -> float | None:
    """Return *used* of *allowed* in percent; None without a limit."""
    return None if allowed is None else percent(used, allowed)


def strictest_amount(limits: Sequence[Limit], window_s: int) -> int | None:
    """Return the strictest of the limits on all requests in windows of *window_s*."""
    return min((limit.amount for limit in limits_over(limits, window_s)), default=None)


def _consumption(scope: QueriedUsage, keys: Sequence[StoredKey]) -> dict[str, int]:
    """Return the requests of the running minute, hour and day."""
    used: dict[str, int | None] = dict.fromkeys(WINDOWS)
    if scope.context.settings["rate_limit_usage"] == "counters":
        now_us = to_us(scope.call.now)
        shared: set[tuple[str, str]] = set()
        for key in keys:
            if key.state_at(now_us) != "active":
                continue
            entitlement = scope.context.entitlement(key)
            own = {} if entitlement is None else {item.limit.name: item for item in entitlement.limits}
            for limit_status in scope.context.limit_statuses(key):
                name = _window_name(limit_status)
                limited = own.get(limit_status.name)
                if name is None or limited is None or (limited.counter_id, name) in shared:
                    continue
                # Keys of one rotation, project or account may share a counter: it counts once.
                shared.add((limited.counter_id, name))
                used[name] = (used[name] or 0) + limit_status.used
    return {name: _recorded(scope, WINDOWS[name]) if count is None else count for name, count in used.items()}


def _recorded(scope: QueriedUsage, window_s: int) -> int:
    window_us = window_s * US_PER_S
    start_us = to_us(scope.call.now) // window_us * window_us
    return int(scope.report(from_us=start_us, measures=("requests",)).totals["requests"])


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
