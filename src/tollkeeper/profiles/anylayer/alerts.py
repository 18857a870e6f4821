"""The alerts of a usage answer: the rules of `domain.alerts`, in the order that the deployment wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from tollkeeper.domain import alerts
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.usage import PAGE_SIZE_MAX
from tollkeeper.profiles.anylayer.keys import last_used_at
from tollkeeper.profiles.anylayer.limits import WINDOWS, RateLimits
from tollkeeper.profiles.anylayer.scope import Grouped, QueriedUsage

_WINDOW_NAMES: Final = {
    "requestsPerMinute": "requests per minute",
    "requestsPerHour": "requests per hour",
    "requestsPerDay": "requests per day",
}


def raised_alerts(
    scope: QueriedUsage, totals: Mapping[str, Any], by_error: Sequence[Grouped], limits: RateLimits
) -> list[alerts.Alert]:
    """Return the alerts that the deployment wants, by kind in its order."""
    context, now = scope.context, scope.call.now
    thresholds = alerts.Thresholds(**context.settings["alert_thresholds"])
    active = [
        key
        for key in ([scope.target] if scope.target else scope.keys)
        if key.state_at(to_us(now)) == "active"
    ]

    def of_kind(kind: str) -> list[alerts.Alert | None]:
        if kind == "rate_limit":
            return [
                alerts.utilisation_alert(
                    _limit_name(name, limits.keys[name], among=len(active)),
                    limits.members["usage"][name],
                    limits.members["current"][name],
                    thresholds=thresholds,
                )
                for name in WINDOWS
                # Without a counter of its own there is nothing that refuses.
                if limits.keys[name] is not None
            ]
        if kind == "error_rate":
            return [
                alerts.error_rate_alert(
                    totals["requests"],
                    totals[scope.failed],
                    leading_status=_leading_status(by_error),
                    thresholds=thresholds,
                )
            ]
        if kind == "latency":
            before = _latency_before(scope)
            return [alerts.latency_alert(totals["latency_ms_avg"], before, thresholds=thresholds)]
        if kind == "budget":
            limit_statuses = [limit_status for key in active for limit_status in context.limit_statuses(key)]
            return [
                alerts.budget_alert(
                    limit_status.name,
                    limit_status.settled,
                    limit_status.allowed,
                    start_at=limit_status.starts_at,
                    end_at=limit_status.resets_at,
                    now=now,
                    thresholds=thresholds,
                )
                for limit_status in dict.fromkeys(limit_statuses)
                if limit_status.kind in ("budget", "credit")
            ]
        if kind == "key_expiry":
            return [
                alerts.expiry_alert(_name_of(key), key.entry.expires_at, now=now, thresholds=thresholds)
                for key in active
            ]
        rows = scope.report(from_us=0, group_by=("key",), measures=("last_at",), limit=PAGE_SIZE_MAX).rows
        last_at = {row["key"]: row["last_at"] for row in rows}
        return [
            alerts.idle_alert(
                _name_of(key),
                last_used_at(key, last_at.get(key.entry.id)),
                from_us(key.created_at_us),
                now=now,
                thresholds=thresholds,
            )
            for key in active
        ]

    found = [alert for kind in context.settings["alerts"] for alert in of_kind(kind)]
    return [alert for alert in found if alert is not None]


def _limit_name(window: str, key: StoredKey | None, *, among: int) -> str:
    """Return a limit in words, with its key where there are several."""
    words = _WINDOW_NAMES[window]
    return words if key is None or among < 2 else f"{words} of key {_name_of(key)}"


def _leading_status(by_error: Sequence[Grouped]) -> int | None:
    counts: dict[int, int] = {}
    for group in by_error:
        counts[group.name[1]] = counts.get(group.name[1], 0) + group.errors
    return max(counts, key=lambda status: (counts[status], -status), default=None)


def _latency_before(scope: QueriedUsage) -> float | None:
    """Return the average latency of the window before; `all` has none before it."""
    if scope.span is None:
        return None
    before_us = to_us(scope.call.now - 2 * scope.span)
    before = scope.report(from_us=before_us, to_us=scope.from_us, measures=("latency_ms_avg",))
    return cast("float | None", before.totals["latency_ms_avg"])


def _name_of(key: StoredKey) -> str:
    return key.entry.name or key.entry.id
