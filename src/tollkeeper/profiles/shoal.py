"""
Shoal: request counters and the monthly credit budget of the calling key.

One endpoint, `GET /v1/usage`. It costs no credits and answers when no credits are left; the rate limit and the
counters count it. `SETTINGS` has the choices that the vendor leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.periods import period_of
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery
from tollkeeper.errors import BadInput, Unavailable
from tollkeeper.profiles.base import (
    Call,
    Endpoint,
    ErrorStatus,
    Metered,
    ProfileContext,
    Reply,
    Weekday,
    failure,
)
from tollkeeper.profiles.toolkit import (
    ACCOUNT_ZONE,
    CatalogFile,
    HeaderList,
    answered,
    bearer_token,
    check_profile_zone,
    next_hour,
    rate_limit_headers,
    request_limits,
    retry_after,
    seconds_up,
)

SETTINGS: Final[Mapping[str, Any]] = {
    # For `Invalid API key`: the vendor's pages say 401 and 403.
    "invalid_key_status": 401,
    # Of `thisWeek` and `thisMonth`; `today` is of UTC whatever is set here. The budget's month is the plan's.
    "time_zone": ACCOUNT_ZONE,
    "week_start": "monday",
    # Whether calls to the usage endpoint are in its counters.
    "usage_calls_count": True,
    # Whether requests that were answered 429 are in them.
    "refused_calls_count": False,
    # `X-Endpoint-Policy` of the usage endpoint.
    "usage_policy": "usage",
    # `X-Plan-Tier` of a key without a plan.
    "tier_without_plan": "none",
    # `budget.limit` of a key whose credits nothing bounds: the largest integer that every JSON reader holds.
    "limit_without_budget": 2**53 - 1,
    # Whether what open holds have set aside lowers `budget.remaining` and `X-Monthly-Remaining`.
    "remaining_counts_holds": True,
    # Once the month's credits are spent. Not 402, which begins the vendor's pay-per-request handshake.
    "exhausted_status": 429,
    "exhausted_text": "Monthly credit limit exceeded",
    "plan_text": "This endpoint is not available on your current plan",
    # While a store is away.
    "unavailable_status": 503,
}

SETTING_TYPES: Final[Mapping[str, Any]] = {
    "invalid_key_status": Literal[401, 403],
    "time_zone": check_profile_zone,
    "week_start": Weekday,
    "exhausted_status": ErrorStatus,
    "unavailable_status": ErrorStatus,
}

USAGE_PATH: Final = "/v1/usage"
USAGE: Final = Route(
    id="shoal-usage",
    method="GET",
    path=USAGE_PATH,
    event_kind="usage",
    free=True,
    surface="usage",
    layer="evaluation",
    policy="usage",
    profile="shoal",
)
"""The usage endpoint, as the route of its own calls."""
ELSEWHERE: Final = Route(id="shoal-elsewhere", method="*", path="/*", free=True, profile="shoal")
"""The route of calls to paths that the dialect does not have: the key's limits and counters count them too."""

_TOO_FAST: Final = frozenset({"rate_limited", "too_many_concurrent"})
_SPENT: Final = frozenset({"budget_exhausted", "credit_exhausted"})


class Counts(NamedTuple):
    """Requests of one key up to now, and the credits that its events of this month spent."""

    today: int
    this_week: int
    this_month: int
    credits_this_month: int


class MonthlyCredits(NamedTuple):
    """The credits of this month: allowed, used by settled requests, and held by open ones where these count."""

    limit: int
    used: int
    held: int = 0

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used - self.held)


class Shoal:
    """The dialect; see `profiles.base.Profile`."""

    name = "shoal"
    key_prefix = "shoal_"
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CatalogFile("shoal")
    sample = CatalogFile("shoal.sample")
    refusals_count = False

    def __init__(self) -> None:
        self.endpoints: Sequence[Endpoint] = (Endpoint("GET", USAGE_PATH, answer_usage),)

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the key of `Authorization: Bearer <key>`, or `""`."""
        return bearer_token(headers) or ""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """
        Answer 404, or 405 in the same shape, with the path and method that were asked.

        With a good key the call is limited and counted, and the answer has the key's headers.
        """
        status, own = (405, [("Allow", ", ".join(allowed))]) if allowed else (404, [])
        reply = Reply(status, _not_found(call), own)
        caller = _caller(context, self.credential(call.headers), call.now)
        if caller is None:
            return reply._replace(headers=[*own, *_policy(call), _id(call.request_id)])
        key, entitlement = caller
        counted = context.count_call(key, ELSEWHERE)
        limit_statuses = context.limit_statuses(key)
        route = msgspec.structs.replace(ELSEWHERE, method=call.method[:16])
        try:
            if isinstance(counted, Denial):
                context.record(key, route, 429, counted)
                reply = _refusal(call, counted)
            else:
                answered(context, counted, lambda: context.record(key, route, status))
        except Exception as exc:
            limit_statuses = context.limit_statuses(key)
            reply = failure(self, call, exc)._replace(headers=())
        return reply._replace(
            headers=[
                ("X-Plan-Tier", _tier(entitlement, call.settings)),
                *_policy(call),
                *_rate_headers(limit_statuses, None),
                *_month_headers(_budget_of(entitlement, limit_statuses, call.settings)),
                _id(call.request_id),
                *reply.headers,
            ]
        )

    def failed(self, call: Call, error: Exception) -> Reply:
        """Answer 503 while a store is away, 400 when the caller can mend the request, else 500."""
        headers = [*_policy(call), _id(call.request_id)]
        if isinstance(error, BadInput):
            return Reply(400, {"error": str(error)}, headers)
        if isinstance(error, Unavailable):
            return _unavailable(call)._replace(headers=headers)
        return Reply(500, {"error": "Internal Server Error"}, headers)

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """Word a refusal of the gate; without a known key there are no headers of one."""
        if denial.reason == "key_missing":
            return _without_key(call)
        if denial.reason.startswith("key_") or denial.reason == "account_inactive":
            return _invalid_key(call)
        refusal = _refusal(call, denial)
        known = [*_policy(call), _id(call.request_id)] if metered is None else self.metered_headers(metered)
        return refusal._replace(headers=[*known, *refusal.headers])

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the labels of plan and route, the remaining rate limit and the remaining credits of the month."""
        settings = {**SETTINGS, **metered.settings}
        route = metered.route
        headers = [("X-Plan-Tier", _tier(metered.entitlement, settings))]
        if route.id != "unknown":
            headers += _packaging(route, route.policy or route.id)
        budget = _budget_of(metered.entitlement, metered.limit_statuses, settings)
        return [
            *headers,
            *_rate_headers(metered.limit_statuses, route.bucket),
            *_month_headers(budget),
            _id(metered.request_id),
        ]


def answer_usage(call: Call, context: ProfileContext) -> Reply:
    """
    Answer `GET /v1/usage`: the calling key's counters and monthly credits, as they were before this call.

    The rate limit counts the call. It costs nothing and is answered when no credits are left.
    """
    secret = bearer_token(call.headers)
    if not secret:
        return _without_key(call)
    caller = _caller(context, secret, call.now)
    if caller is None:
        return _invalid_key(call)
    key, entitlement = caller
    counted = context.count_call(key, USAGE)
    limit_statuses = context.limit_statuses(key)
    budget = _budget_of(entitlement, limit_statuses, call.settings)

    def with_headers(reply: Reply, budget: MonthlyCredits | None) -> Reply:
        headers = [
            ("X-Plan-Tier", _tier(entitlement, call.settings)),
            *_packaging(USAGE, _switch(call, "usage_policy")),
            *_rate_headers(limit_statuses, USAGE.bucket),
            _id(call.request_id),
            *_month_headers(budget),
        ]
        return reply._replace(headers=[*headers, *reply.headers])

    def counters() -> Counts:
        counts = _counts(context, key, call)
        if _switch(call, "usage_calls_count"):
            context.record(key, USAGE, 200)
        return counts

    try:
        if isinstance(counted, Denial):
            if _switch(call, "usage_calls_count"):
                context.record(key, USAGE, 429, counted)
            return with_headers(_refusal(call, counted), budget)
        counts = answered(context, counted, counters)
    except Exception as exc:
        # Here, and not in `failed` alone, since only here the key's headers are known.
        limit_statuses = context.limit_statuses(key)
        return with_headers(failure(PROFILE, call, exc)._replace(headers=()), budget)
    if budget is None:
        budget = MonthlyCredits(_switch(call, "limit_without_budget"), counts.credits_this_month)
    return with_headers(Reply(200, _usage_body(counts, budget)), budget)


PROFILE: Final = Shoal()


# -- who asks -------------------------------------------------------------------------------------------------


def _caller(context: ProfileContext, secret: str, now: datetime) -> tuple[StoredKey, Entitlement] | None:
    """Return the key of *secret* and its entitlement, if the key is good now."""
    key = context.find_key(secret)
    entitlement = None if key is None else context.entitlement(key)
    if key is None or entitlement is None:
        return None
    subscription = entitlement.subscription
    ends_at = None if subscription is None else subscription.expires_at
    good = (
        key.state_at(to_us(now)) == "active"
        and entitlement.account.active
        and (ends_at is None or now < ends_at)
    )
    return (key, entitlement) if good else None


def _without_key(call: Call) -> Reply:
    malformed = bearer_token(call.headers) is None
    error = "Authorization header missing or malformed" if malformed else "API key missing"
    return Reply(401, {"error": error}, [*_policy(call), _id(call.request_id)])


def _invalid_key(call: Call) -> Reply:
    status = _switch(call, "invalid_key_status")
    return Reply(status, {"error": "Invalid API key"}, [*_policy(call), _id(call.request_id)])


# -- numbers --------------------------------------------------------------------------------------------------


def _counts(context: ProfileContext, key: StoredKey, call: Call) -> Counts:
    zone, week_start = context.time_zone(key.entry.account), _switch(call, "week_start")
    day = period_of(call.now, "day").start_at
    week = period_of(call.now, "week", time_zone=zone, week_start=week_start).start_at
    month = period_of(call.now, "month", time_zone=zone).start_at
    days = _daily(context, key, call, min(week, month), zone)
    # `today` is always of UTC, so a local time zone needs a second query for it.
    today = days if zone == "UTC" else _daily(context, key, call, day, "UTC")
    return Counts(
        today=sum(requests for at, requests, _ in today if at >= day),
        this_week=sum(requests for at, requests, _ in days if at >= week),
        this_month=sum(requests for at, requests, _ in days if at >= month),
        credits_this_month=sum(credits for at, _, credits in days if at >= month),
    )


def _daily(
    context: ProfileContext, key: StoredKey, call: Call, since: datetime, zone: str
) -> list[tuple[datetime, int, int]]:
    """Return the start, counted requests and credits of each day from *since* on, some days in parts."""
    report = context.usage(
        UsageQuery(
            account_id=key.entry.account,
            from_us=to_us(since),
            to_us=to_us(next_hour(call.now)),
            granularity="day",
            time_zone=zone,
            group_by=("status", "denied_reason"),
            filters={"key": tuple(context.rotation_chain(key))},
            measures=("requests", "credits"),
            limit=PAGE_SIZE_MAX,
        )
    )
    return [
        (
            datetime.fromisoformat(row["time"]),
            row["requests"] if _counts_as_request(row, call) else 0,
            row["credits"],
        )
        for row in report.rows
    ]


def _counts_as_request(row: Mapping[str, Any], call: Call) -> bool:
    if _switch(call, "refused_calls_count"):
        return True
    if row["denied_reason"] in _SPENT:
        # The gate records 402; the dialect answered with its own status.
        return bool(_switch(call, "exhausted_status") != 429)
    return bool(row["status"] != 429)


def _budget_of(
    entitlement: Entitlement | None, limit_statuses: Sequence[LimitStatus], settings: Mapping[str, Any]
) -> MonthlyCredits | None:
    """
    Return the month's credits of a key; None when no budget counts them.

    A key without a monthly budget has the credits of the budget that it has. A budget of the key itself comes before
    one that it shares; among several, the one with the least left.
    """
    if entitlement is None:
        return None
    whole = [scope for scope in entitlement.budgets if scope.unit == "credits" and scope.is_whole]
    scopes = [scope for scope in whole if scope.period == "month"] or whole
    names = {scope.name for scope in scopes if scope.key_id is not None} or {s.name for s in scopes}
    found = [
        MonthlyCredits(
            settings["limit_without_budget"] if s.allowed is None else s.allowed,
            s.settled,
            s.held if settings["remaining_counts_holds"] else 0,
        )
        for s in limit_statuses
        if s.kind == "budget" and s.unit == "credits" and s.name in names
    ]
    return min(found, key=lambda budget: budget.remaining, default=None)


# -- words ----------------------------------------------------------------------------------------------------


def _usage_body(counts: Counts, budget: MonthlyCredits) -> dict[str, Any]:
    return {
        "data": {
            "today": counts.today,
            "thisWeek": counts.this_week,
            "thisMonth": counts.this_month,
            "budget": {"limit": budget.limit, "used": budget.used, "remaining": budget.remaining},
        }
    }


def _refusal(call: Call, denial: Denial) -> Reply:
    """Return the refusal of a known key, with only the headers that the refusal itself brings."""
    if denial.reason in _TOO_FAST:
        return _later(429, "Rate limit exceeded", denial.retry_after_s or 1)
    if denial.reason in _SPENT:
        ends_at_us = denial.resets_at_us or to_us(period_of(call.now, "month").end_at)
        left_s = max(1, seconds_up(ends_at_us - to_us(call.now)))
        return _later(_switch(call, "exhausted_status"), _switch(call, "exhausted_text"), left_s)
    if denial.reason in ("layer_not_allowed", "model_not_allowed", "model_required"):
        return Reply(403, {"error": _switch(call, "plan_text")})
    if denial.reason == "route_unknown":
        return Reply(404, _not_found(call))
    if denial.reason == "unavailable":
        return _unavailable(call)
    return Reply(500, {"error": "Internal Server Error"})


def _unavailable(call: Call) -> Reply:
    return Reply(_switch(call, "unavailable_status"), {"error": "Service Unavailable"})


def _later(status: int, error: str, retry_after_s: int) -> Reply:
    return Reply(status, {"error": error, "retryAfter": retry_after_s}, [retry_after(retry_after_s)])


def _not_found(call: Call) -> dict[str, Any]:
    return {"error": "Not Found", "path": call.path, "method": call.method}


def _tier(entitlement: Entitlement | None, settings: Mapping[str, Any]) -> str:
    plan = None if entitlement is None else entitlement.plan
    if plan is None:
        return str(settings["tier_without_plan"])
    return plan.metadata.get("tier") or plan.slug


def _packaging(route: Route, policy: str) -> HeaderList:
    """Return the labels of a route; a label that it does not have is left out."""
    headers = [
        ("X-Api-Surface", route.surface),
        ("X-Access-Layer", route.layer),
        ("X-Endpoint-Policy", policy),
        ("X-Credit-Cost", str(route.credits)),
    ]
    return [(name, value) for name, value in headers if value]


def _rate_headers(limit_statuses: Sequence[LimitStatus], bucket: str | None) -> HeaderList:
    """Return the rate limit on requests that has the least left; nothing for a key without one."""
    found = [
        (limit_status.remaining, limit_status.allowed)
        for limit_status in request_limits(limit_statuses, bucket)
        if limit_status.remaining is not None
    ]
    if not found:
        return []
    remaining, allowed = min(found)
    return rate_limit_headers(allowed, remaining)


def _month_headers(budget: MonthlyCredits | None) -> HeaderList:
    """Return the month's credits; nothing where no budget counts them."""
    if budget is None:
        return []
    return [
        ("X-Monthly-Limit", str(budget.limit)),
        ("X-Monthly-Used", str(budget.used)),
        ("X-Monthly-Remaining", str(budget.remaining)),
    ]


def _policy(call: Call) -> HeaderList:
    """Return the policy label of the endpoint; nothing for a path that is none."""
    if call.route is not None:
        return [("X-Endpoint-Policy", call.route.policy or call.route.id)]
    return [("X-Endpoint-Policy", _switch(call, "usage_policy"))] if call.path == USAGE_PATH else []


def _id(request_id: str) -> tuple[str, str]:
    return ("X-Request-Id", request_id)


def _switch(call: Call, name: str) -> Any:
    return call.settings.get(name, SETTINGS[name])
