"""`GET /api/usage`: budget, cache and models of one project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tollkeeper.domain.entitlements import BudgetScope, Entitlement
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
    cost_unit_nanos = _COST_UNITS[settings["cost_unit"]]
    body = {
        "budget": {
            "limit": _dollars(budget.limit_nanos),
            "used": _dollars(budget.used_nanos),
            "remaining": _dollars(_shown_remaining(budget.remaining_nanos, settings)),
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
    """The budget that an answer shows. *remaining_nanos* may be below 0, and below what is not used: see `_budget`."""

    limit_nanos: int
    used_nanos: int
    remaining_nanos: int


def _budget(
    context: ProfileContext, key: StoredKey, project: str, now: datetime, window: Period
) -> ProjectBudget:
    """
    Return the budget that bounds the project: its monthly one; without one, any other in money, then the credit.

    Used is what settled requests cost, without open holds; these lower the remainder if the deployment wants it. The
    month is that of the setting `time_zone`. Where the budget's own month is another, the remainder is the lesser one
    of the two: the gate refuses by the budget's.
    """
    settings = context.settings
    month = _window(now, "month", context, key)
    limit_statuses = context.limit_statuses(key)
    bound = _bound(context.entitlement(key), limit_statuses)
    if bound is None:
        return _without_budget(context, key, project, month, limit_statuses)
    scope, status = bound
    assert status.allowed is not None
    used_nanos = status.settled
    spent = status.used if settings["remaining_counts_holds"] else status.settled
    remaining_nanos = status.allowed - spent
    filters = _events_of(scope, project, context.rotation_chain(key))
    span = (status.starts_at, status.resets_at)
    if scope.period == "month" and filters is not None and span != (month.start_at, month.end_at):
        used_nanos = _cost_nanos(context, key, filters, month)
        remaining_nanos = min(remaining_nanos, status.allowed - used_nanos)
    if settings["budget_follows_period"]:
        used_nanos = _cost_nanos(context, key, {"project": (project,)}, window)
        remaining_nanos = status.allowed - used_nanos
    return ProjectBudget(status.allowed, used_nanos, remaining_nanos)


def _without_budget(
    context: ProfileContext,
    key: StoredKey,
    project: str,
    month: Period,
    limit_statuses: Sequence[LimitStatus],
) -> ProjectBudget:
    """Return what stands for the budget of a project that has none: the account's credit, or the setting [C]."""
    used_nanos = _cost_nanos(context, key, {"project": (project,)}, month)
    credit = next((status for status in limit_statuses if status.kind == "credit"), None)
    if credit is not None and credit.allowed is not None:
        remaining_nanos = credit.allowed - credit.used
        return ProjectBudget(max(0, used_nanos + remaining_nanos), used_nanos, remaining_nanos)
    limit_nanos = int(context.settings["limit_without_budget_nanos"])
    return ProjectBudget(limit_nanos, used_nanos, limit_nanos - used_nanos)


def _bound(
    entitlement: Entitlement | None, limit_statuses: Sequence[LimitStatus]
) -> tuple[BudgetScope, LimitStatus] | None:
    """
    Return the budget in money that the answer shows; None when none bounds the key.

    A monthly one comes before the others [C], then the project's own before those that it shares, then the one with
    the least left.
    """
    if entitlement is None:
        return None
    # Both list the budgets in the same order; names alone may repeat. Those with a match or values have no status here.
    whole = [scope for scope in entitlement.budgets if scope.is_whole]
    budgets = [status for status in limit_statuses if status.kind == "budget"]
    bounds = [
        (scope.period != "month", scope.project_id is None, status.remaining, scope, status)
        for scope, status in zip(whole, budgets, strict=False)
        if scope.unit == "nanos" and scope.name == status.name and status.remaining is not None
    ]
    return min(bounds, key=lambda bound: bound[:3])[3:] if bounds else None


def _events_of(
    scope: BudgetScope, project: str, rotation_chain: Sequence[str]
) -> Mapping[str, tuple[str, ...]] | None:
    """Return the filter of the events that a budget counts; None where it counts the keys of a plan."""
    if scope.project_id is not None:
        return {"project": (project,)}
    if scope.key_id is not None:
        return {"key": tuple(rotation_chain)}
    return {} if scope.counter_id.startswith("budget:") else None


def _shown_remaining(remaining_nanos: int, settings: Mapping[str, Any]) -> int:
    return remaining_nanos if settings["negative_remaining"] else max(0, remaining_nanos)


def _cost_nanos(
    context: ProfileContext, key: StoredKey, filters: Mapping[str, tuple[str, ...]], window: Period
) -> int:
    query = UsageQuery(
        account_id=key.entry.account,
        from_us=to_us(window.start_at),
        to_us=to_us(window.end_at),
        filters=filters,
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
