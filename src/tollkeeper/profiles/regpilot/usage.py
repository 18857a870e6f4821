"""`GET /api/usage`: budget, cache and models of one project."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.money import NANOS_PER_CENT, NANOS_PER_UNIT
from tollkeeper.domain.periods import Period, period_of
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.regpilot.refusals import forbidden
from tollkeeper.profiles.toolkit import iso_millis, pages, quotient

PERIODS: Final = ("day", "week", "month")
PERIOD_DEFAULT: Final = "month"
_COST_UNITS: Final = {"dollars": NANOS_PER_UNIT, "cents": NANOS_PER_CENT}


def answer_usage(call: Call, context: ProfileContext, key: StoredKey) -> Reply:
    """Answer `GET /api/usage`."""
    settings = context.settings
    bad_status = settings["bad_parameter_status"]
    project, period = call.first("projectId"), call.first("period")
    if not project:
        return Reply(bad_status, {"error": "projectId is required", "code": "MISSING_PROJECT_ID"})
    if period is None:
        period = PERIOD_DEFAULT
    elif not settings["period_case_sensitive"]:
        period = period.lower()
    if period not in PERIODS:
        error = "Invalid period. Must be: day, week, or month"
        return Reply(bad_status, {"error": error, "code": "INVALID_PERIOD"})
    if not settings["unknown_parameters_ignored"] and not {"projectId", "period"}.issuperset(call.query):
        error = "Unknown parameter. Must be: projectId or period"
        return Reply(bad_status, {"error": error, "code": "UNKNOWN_PARAMETER"})
    if project != key.entry.project:
        return forbidden(settings["foreign_project_status"])
    window = _window(call.now, period, context, key)
    budget = _budget(context, key, project, call.now, window)
    rows, totals = _by_model(context, key, project, window)
    hits, misses = totals["cache_hits"], totals["cache_misses"]
    remaining_nanos = budget.limit_nanos - budget.used_nanos
    if not settings["negative_remaining"]:
        remaining_nanos = max(0, remaining_nanos)
    cost_unit_nanos = _COST_UNITS[settings["cost_unit"]]
    body = {
        "budget": {
            "limit": _dollars(budget.limit_nanos),
            "used": _dollars(budget.used_nanos),
            "remaining": _dollars(remaining_nanos),
        },
        "cache": {
            "hits": hits,
            "misses": misses,
            "hitRate": _percentage(hits, hits + misses, settings["hit_rate_places"]),
        },
        "models": {
            model: {
                "requests": row["requests"],
                "tokens": row["tokens"],
                "cost": quotient(row["cost_nanos"], cost_unit_nanos),
            }
            for model, row in _named(rows, settings["unnamed_model"])
        },
        "period": {"start": iso_millis(window.start_at), "end": iso_millis(window.end_at)},
    }
    return Reply(200, body)


class ProjectBudget(NamedTuple):
    limit_nanos: int
    used_nanos: int


def _budget(
    context: ProfileContext, key: StoredKey, project: str, now: datetime, window: Period
) -> ProjectBudget:
    """Return the monthly budget that bounds the project: its used amount is the gate's own counter."""
    limit_status = _monthly_limit_status(context, key)
    limit_nanos = context.settings["limit_without_budget_nanos"]
    if limit_status is not None:
        assert limit_status.allowed is not None
        limit_nanos = limit_status.allowed
    if context.settings["budget_follows_period"]:
        return ProjectBudget(limit_nanos, _cost_nanos(context, key, project, window))
    if limit_status is None:
        return ProjectBudget(
            limit_nanos, _cost_nanos(context, key, project, _window(now, "month", context, key))
        )
    return ProjectBudget(limit_nanos, limit_status.used)


def _monthly_limit_status(context: ProfileContext, key: StoredKey) -> LimitStatus | None:
    """Return the status of the project's monthly budget; without one, of any other that bounds the key [C]."""
    entitlement = context.entitlement(key)
    if entitlement is None:
        return None
    # Both list the budgets in the same order; names alone may repeat. Those with a match or values have no status here.
    whole = [scope for scope in entitlement.budgets if scope.is_whole]
    limit_statuses = [
        limit_status for limit_status in context.limit_statuses(key) if limit_status.kind == "budget"
    ]
    bounds = [
        (scope.project_id is None, limit_status.remaining, limit_status)
        for scope, limit_status in zip(whole, limit_statuses, strict=False)
        if _bounds_the_month(scope) and scope.name == limit_status.name
        if limit_status.remaining is not None
    ]
    return min(bounds, key=lambda bound: bound[:2])[2] if bounds else None


def _bounds_the_month(scope: BudgetScope) -> bool:
    return scope.unit == "nanos" and scope.period == "month" and scope.amount is not None


def _cost_nanos(context: ProfileContext, key: StoredKey, project: str, window: Period) -> int:
    query = UsageQuery(
        account_id=key.entry.account,
        from_us=to_us(window.start_at),
        to_us=to_us(window.end_at),
        filters={"project": (project,)},
        measures=("cost_nanos",),
    )
    return int(context.usage(query).totals["cost_nanos"])


def _by_model(
    context: ProfileContext, key: StoredKey, project: str, window: Period
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Return a row per model, most requested first, and the totals.

    Refused requests are left out: they reached no model.
    """
    query = UsageQuery(
        account_id=key.entry.account,
        from_us=to_us(window.start_at),
        to_us=to_us(window.end_at),
        group_by=("model",),
        filters={"project": (project,), "denied_reason": ("",)},
        measures=("requests", "tokens", "cost_nanos", "cache_hits", "cache_misses"),
        sort=("-requests",),
    )
    reports = list(pages(context, query))
    return [row for report in reports for row in report.rows], reports[-1].totals


def _named(rows: Sequence[dict[str, Any]], unnamed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in rows:
        model = row["model"] or unnamed
        if model and row["requests"]:
            yield model, row


def _window(now: datetime, period: str, context: ProfileContext, key: StoredKey) -> Period:
    zone = context.time_zone(key.entry.account)
    return period_of(now, period, time_zone=zone, week_start=context.settings["week_start"])


def _dollars(nanos: int) -> int | float:
    return quotient(nanos, NANOS_PER_UNIT)


def _percentage(part: int, whole: int, places: int) -> int | float:
    """Return *part* of *whole* as 0–100, rounded half up; 0 when there is nothing."""
    if not whole:
        return 0
    scale = 10**places
    return quotient((2 * part * 100 * scale + whole) // (2 * whole), scale)
