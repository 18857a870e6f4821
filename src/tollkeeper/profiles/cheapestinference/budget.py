"""`GET /v1/usage`: the budget of the calling key's pool, its limits, plan and credit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import BudgetScope, Entitlement
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.periods import aligned, period_of
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.cheapestinference.callers import consumption_key
from tollkeeper.profiles.cheapestinference.plans import per_minute, plan_status, slug_of
from tollkeeper.profiles.cheapestinference.wording import refusal
from tollkeeper.profiles.toolkit import answered, dollars, iso_millis, next_hour

V1_USAGE: Final = Route(id="cheapestinference-usage", method="GET", path="/v1/usage", free=True)


def answer_usage(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /v1/usage`."""
    key, entitlement = consumption_key(call, context)
    counted = context.count_call(key, V1_USAGE)
    if isinstance(counted, Denial):
        if context.settings["usage_calls_count"]:
            context.record(key, V1_USAGE, 429, counted)
        return refusal(call, counted, entitlement)
    return answered(context, counted, lambda: _usage(call, context, key, entitlement))


def _usage(call: Call, context: ProfileContext, key: StoredKey, entitlement: Entitlement) -> Reply:
    rpm, tpm = per_minute(entitlement)
    credit = key.entry.type == "credit"
    status, expires_at = plan_status(entitlement.subscription, call.now)
    reply = Reply(
        200,
        {
            "budget": _budget(call, context, key, entitlement),
            "rate_limits": {"rpm": rpm, "tpm": None if credit else tpm},
            "plan": {
                "slug": None if credit else slug_of(entitlement.plan),
                "status": None if credit else status,
                "expires_at": None if credit else expires_at,
            },
            "credits": {"balance": dollars(context.balance_nanos(key.entry.account))},
            "key": {
                "name": key.entry.name,
                "type": key.entry.type,
                "created_at": iso_millis(from_us(key.created_at_us)),
            },
        },
    )
    if context.settings["usage_calls_count"]:
        context.record(key, V1_USAGE, reply.status)
    return reply


def _budget(call: Call, context: ProfileContext, key: StoredKey, entitlement: Entitlement) -> dict[str, Any]:
    """Return the budget of the key's pool: the money spent in its period, without the holds of open requests."""
    account_id = key.entry.account
    if key.entry.type == "credit":
        # A credit key has no period: its spend of all time.
        spent_nanos = _spent_nanos(
            context, account_id, {"key": tuple(context.rotation_chain(key))}, 0, to_us(next_hour(call.now))
        )
        return _budget_of(spent_nanos, None, None, None)
    subscription = entitlement.subscription
    scope = _pool(entitlement)
    if scope is None:
        duration = str(context.settings["uncapped_duration"])
        anchor_at = subscription.started_at if subscription else from_us(key.created_at_us)
        span = period_of(call.now, aligned(duration), anchor_at=anchor_at)
        start_us, end_us = to_us(span.start_at), to_us(span.end_at)
        filters = {"key": _subscribed(context, key, None)}
        amount = None
    else:
        duration = scope.period.removesuffix("_aligned")
        status = _status_of(context, key, scope)
        assert status.starts_at is not None
        assert status.resets_at is not None
        start_us, end_us = to_us(status.starts_at), to_us(status.resets_at)
        filters = _members(context, key, scope)
        # With its top-ups.
        amount = status.allowed
    if context.settings["budget_shows"] == "key":
        filters = {"key": tuple(context.rotation_chain(key))}
    to = min(end_us, to_us(next_hour(call.now)))
    spent_nanos = _spent_nanos(context, account_id, filters, start_us, to)
    resets_at = None if duration == "total" else iso_millis(from_us(end_us))
    return _budget_of(spent_nanos, amount, duration, resets_at)


def _budget_of(
    spent_nanos: int, amount_nanos: int | None, duration: str | None, resets_at: str | None
) -> dict[str, Any]:
    return {
        "spent": dollars(spent_nanos),
        "limit": None if amount_nanos is None else dollars(amount_nanos),
        "duration": duration,
        "resets_at": resets_at,
    }


def _pool(entitlement: Entitlement) -> BudgetScope | None:
    """Return the budget in money that `/v1/usage` shows: the plan's first, else the first of any."""
    # One that counts only some requests, or values apart, is not what the key has left.
    scopes = [scope for scope in entitlement.budgets if scope.unit == "nanos" and scope.is_whole]
    scopes.sort(key=lambda scope: not scope.counter_id.startswith("plan:"))
    return scopes[0] if scopes else None


def _status_of(context: ProfileContext, key: StoredKey, scope: BudgetScope) -> LimitStatus:
    """Return where a budget of *key* stands in the running period."""
    return next(
        status
        for status in context.limit_statuses(key)
        if status.kind == "budget" and (status.name, status.unit) == (scope.name, scope.unit)
    )


def _members(context: ProfileContext, key: StoredKey, scope: BudgetScope) -> dict[str, tuple[str, ...]]:
    """Return the filter of the events that *scope*, a budget of *key*, counts."""
    if scope.key_id is not None:
        return {"key": tuple(context.rotation_chain(key))}
    if scope.subscription_id is not None:
        return {"key": _subscribed(context, key, scope)}
    filters: dict[str, tuple[str, ...]] = {}
    if scope.project_id is not None:
        filters["project"] = (scope.project_id,)
    if scope.counter_id.startswith("plan:"):
        filters["key"] = tuple(
            other.entry.id
            for other in context.keys(key.entry.account)
            if (permitted := context.entitlement(other)) is not None
            and any(budget.counter_id == scope.counter_id for budget in permitted.budgets)
        )
    return filters


def _subscribed(context: ProfileContext, key: StoredKey, scope: BudgetScope | None) -> tuple[str, ...]:
    """Return the ids of the keys, deleted ones too, that share the subscription's pool with *key*."""
    entry = key.entry
    if entry.subscription is None:
        return tuple(context.rotation_chain(key))
    return tuple(
        other.entry.id
        for other in context.keys(entry.account)
        if other.entry.subscription == entry.subscription
        # A key with its own plan belongs to that plan's pool.
        and (scope is None or other.entry.plan == entry.plan)
    )


def _spent_nanos(
    context: ProfileContext, account_id: str, filters: Mapping[str, tuple[str, ...]], from_us_: int, to: int
) -> int:
    query = UsageQuery(
        account_id=account_id, from_us=from_us_, to_us=to, filters=filters, measures=("cost_nanos",)
    )
    return int(context.usage(query).totals["cost_nanos"])
