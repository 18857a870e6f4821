"""
AnyLayer: usage statistics of an account or of one of its keys, with alerts, and the keys themselves.

`[C]` marks what the vendor leaves open and we chose. Rates are hundredths of a percent in integers up to the
last step, where they become JSON numbers from 0 to 100. No answer of this dialect has money.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec

from tollkeeper import errors
from tollkeeper.domain import alerts
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key, Limit, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.periods import WEEKDAYS, duration_s
from tollkeeper.domain.usage import GRANULARITIES, PAGE_SIZE_MAX, Granularity, UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.profiles.base import (
    Call,
    Endpoint,
    ErrorStatus,
    Metered,
    Places,
    ProfileContext,
    Reply,
    Weekday,
    failure,
)

TIMEFRAMES: Final[dict[str, timedelta | None]] = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
    "1y": timedelta(days=365),
    "all": None,
}
"""Rolling, ending now. None: since the first recorded request."""

SORTS: Final = ("requests", "errors", "latency", "timestamp")
"""Values of `sort`; `timestamp` is the bucket of a series and the last request of a group."""
FAILURES: Final = {"status": "failed", "status_or_type": "errors"}
"""Value of the setting `failure` → the measure."""

ORDERS: Final = ("desc", "asc")
PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1_000
OFFSET_MAX: Final = 10**9

RESOURCES: Final = frozenset(
    {"identity", "scores", "achievements", "trading", "trust", "attestations", "all"}
)
ACTIONS: Final = frozenset({"read", "write", "delete", "all"})
LEVELS: Final = frozenset({"read", "write", "admin"})
RESTRICTIONS: Final = frozenset({"identities", "chains", "ipWhitelist"})

WINDOWS: Final = {"requestsPerMinute": 60, "requestsPerHour": 3_600, "requestsPerDay": 86_400}
"""Member of `rateLimit` and of `rateLimits` → seconds of its window."""
_WINDOW_NAMES: Final = {
    "requestsPerMinute": "requests per minute",
    "requestsPerHour": "requests per hour",
    "requestsPerDay": "requests per day",
}
_LIMIT_OF: Final = {
    "requestsPerMinute": ("per-minute", "1m"),
    "requestsPerHour": ("per-hour", "1h"),
    "requestsPerDay": ("per-day", "1d"),
}
BURST: Final = "burst"
"""Name of the limit that `burstLimit` sets."""

ROUTE: Final = Route(id="anylayer-developer", method="*", path="/v1/developer/*", free=True)
"""The developer endpoints: they count against the limits of the key and are no usage themselves."""

METADATA: Final = "anylayer"
"""Where a key's metadata keeps what only this dialect knows, as JSON."""

ERROR_TYPES: Final = {
    "rate_limited": "RATE_LIMIT_EXCEEDED",
    "too_many_concurrent": "RATE_LIMIT_EXCEEDED",
    "budget_exhausted": "QUOTA_EXCEEDED",
    "credit_exhausted": "QUOTA_EXCEEDED",
    "account_inactive": "FORBIDDEN",
    "route_unknown": "NOT_FOUND",
    "layer_not_allowed": "FORBIDDEN",
}
"""Reason of our gate → the vendor's code; other error types are shown as they were reported."""
TYPE_BY_STATUS: Final = {
    400: "INVALID_PARAMETER",
    401: "UNAUTHORIZED",
    402: "QUOTA_EXCEEDED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    429: "RATE_LIMIT_EXCEEDED",
}
"""Type of an error that was reported without one."""
DESCRIPTIONS: Final = {
    "INVALID_PARAMETER": "Invalid request",
    "UNAUTHORIZED": "Invalid or missing API key",
    "QUOTA_EXCEEDED": "Quota exceeded",
    "FORBIDDEN": "Insufficient permissions",
    "NOT_FOUND": "Resource not found",
    "RATE_LIMIT_EXCEEDED": "Too many requests",
    "INTERNAL_ERROR": "Internal server error",
}

SETTINGS: Final[Mapping[str, Any]] = {
    # The answer to a window without a recorded request: 404, or 200 with zeros.
    "no_data_status": 404,
    # Of a bad parameter or member of a body, and whether its answer lists the values that are `supported`.
    "bad_parameter_status": 400,
    "supported_listed": True,
    # Of a call that a store cannot answer; 500: as any other failure.
    "unavailable_status": 500,
    # Whose usage a call without `keyId` shows: that of the "account", or of the calling "key".
    "scope_without_key_id": "account",
    # What failed: by "status" (≥ 400) alone, or what was reported with an error type too ("status_or_type").
    "failure": "status",
    # First day of a week's bucket, and of the week in the list of keys.
    "week_start": "monday",
    # Where the consumption of the running minute, hour and day comes from: the counters of the rate limits
    # ("counters"; developer calls count too), or the recorded requests ("recorded").
    "rate_limit_usage": "counters",
    # The kinds of `domain.alerts` that are shown, in this order, and when they speak.
    "alerts": ["rate_limit", "error_rate", "latency", "key_expiry"],
    "alert_thresholds": {},
    # What stands for a latency that nobody recorded; the vendor's members are numbers.
    "latency_unknown": 0,
    # Decimals of latencies; rates and percentages have 2.
    "latency_places": 2,
    # Status and code of a metered request whose budget or credit is used up.
    "quota_status": 402,
    "create_status": 201,
    # What a key may that was made without `permissions`, in the short form.
    "default_permissions": ["read"],
    # Who makes and revokes keys: "admin" keys (those that the operator made, too), or "any".
    "key_management": "admin",
    # What the short form `rateLimit: 1000` sets, and the window of `burstLimit`.
    "rate_limit_number": "requestsPerMinute",
    "burst_window": "1s",
}


def _check_thresholds(given: Mapping[str, Any]) -> None:
    """Raise ValueError unless *given* are thresholds of `domain.alerts`, whole numbers."""
    for name, value in given.items():
        if name not in alerts.Thresholds._fields or type(value) is not int or value < 0:
            raise ValueError(f"whole numbers under {', '.join(alerts.Thresholds._fields)}")


SETTING_TYPES: Final[Mapping[str, Any]] = {
    "no_data_status": Literal[404, 200],
    "bad_parameter_status": ErrorStatus,
    "unavailable_status": ErrorStatus,
    "scope_without_key_id": Literal["account", "key"],
    "failure": Literal["status", "status_or_type"],
    "week_start": Weekday,
    "rate_limit_usage": Literal["counters", "recorded"],
    "alerts": list[alerts.Kind],
    "alert_thresholds": _check_thresholds,
    "latency_unknown": int | float | None,
    "latency_places": Places,
    "quota_status": ErrorStatus,
    "create_status": Literal[201, 200],
    "default_permissions": list[Literal["read", "write", "admin"]],
    "key_management": Literal["admin", "any"],
    "rate_limit_number": Literal["requestsPerMinute", "requestsPerHour", "requestsPerDay"],
    "burst_window": duration_s,
}


class BadInput(Exception):
    """A 400: its code, its message, and the values that are supported, if these can be listed."""

    def __init__(self, code: str, message: str, supported: Sequence[str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.supported = supported


class Question(NamedTuple):
    """The parameters of a usage request, checked."""

    key_id: str | None
    timeframe: str
    granularity: Granularity
    breakdown: bool
    errors: bool
    latency: bool
    sort: str
    descending: bool
    limit: int
    offset: int


class Grouped(NamedTuple):
    """One group of a breakdown."""

    name: Any
    requests: int
    errors: int
    latency_ms: float | None
    bytes_out: int
    last_at: str


# -- usage ----------------------------------------------------------------------------------------


def usage(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `GET /v1/developer/usage`."""
    question = parse_question(call)
    if not may(caller, "read"):
        return _forbidden(call)
    target = None
    if question.key_id is not None:
        target = context.key(question.key_id)
        if target is None or target.entry.account != caller.entry.account or target.entry.state == "deleted":
            return error(call, 404, "NO_USAGE_DATA", "No usage data found")
    elif context.settings["scope_without_key_id"] == "key":
        target = caller
    scope = _Scope(call, context, caller, target, question)
    series = scope.report(
        granularity=question.granularity,
        measures=(
            "requests",
            scope.failed,
            "latency_ms_avg",
            "latency_ms_max",
            "bytes_out",
            "peak_requests_per_minute",
            "peak_requests_per_hour",
            "first_at",
        ),
        sort=scope.sort("time"),
        limit=question.limit,
        offset=question.offset,
    )
    totals = series.totals
    if totals["requests"] <= 0 and context.settings["no_data_status"] == 404:
        return error(call, 404, "NO_USAGE_DATA", "No usage data found")
    by_error = scope.groups(("error_type", "status")) if question.breakdown or totals[scope.failed] else []
    limits = rate_limits(scope)
    body: dict[str, Any] = {
        "success": True,
        "usage": _statistics(scope, totals),
        "timeSeries": [_point(scope, row) for row in series.rows],
    }
    endpoints = scope.groups(("endpoint",)) if question.breakdown or question.errors else []
    if question.breakdown:
        body["breakdown"] = _breakdown(scope, endpoints, by_error, totals["requests"])
    if question.errors:
        body["errors"] = _errors(scope, endpoints, by_error, totals)
    body["rateLimits"] = limits
    body["alerts"] = [
        {
            "type": alert.kind,
            "message": alert.message,
            "priority": alert.priority,
            "recommendation": alert.advice,
        }
        for alert in _alerts(scope, totals, by_error, limits)
    ]
    body["pagination"] = _pagination(series.row_count, question.limit, question.offset, len(series.rows))
    body["timestamp"] = timestamp(call.now)
    return Reply(200, body)


def parse_question(call: Call) -> Question:
    """
    Return what a usage request asks.

    Raises:
        BadInput: A parameter has a bad value.
    """
    timeframe = call.first("timeframe")
    if timeframe is not None and timeframe not in TIMEFRAMES:
        raise BadInput("INVALID_TIMEFRAME", "Invalid timeframe", list(TIMEFRAMES))
    granularity = _either(call, "granularity", "interval")[1]
    if granularity is not None and granularity not in GRANULARITIES:
        raise BadInput("INVALID_GRANULARITY", "Invalid granularity", GRANULARITIES)
    latency = _flag(call, "includeLatency")
    sorts = [name for name in SORTS if latency or name != "latency"]
    limit, offset = _page(call)
    return Question(
        key_id=call.first("keyId"),
        timeframe=timeframe or "24h",
        granularity=cast("Granularity", granularity or "hour"),
        breakdown=_flag(call, "includeBreakdown"),
        errors=_flag(call, "includeErrors"),
        latency=latency,
        sort=_choice(call, "sort", "sortBy", sorts),
        descending=_choice(call, "order", "sortOrder", ORDERS) == "desc",
        limit=limit,
        offset=offset,
    )


class _Scope:
    """Whose usage is asked, over which window, by whom."""

    def __init__(
        self,
        call: Call,
        context: ProfileContext,
        caller: StoredKey,
        target: StoredKey | None,
        question: Question,
    ) -> None:
        self.call = call
        self.context = context
        self.caller = caller
        self.target = target
        self.question = question
        self.account = caller.entry.account
        self.failed = FAILURES[context.settings["failure"]]
        """The measure that counts what failed."""
        # An event of this very microsecond belongs to the window that ends now.
        self.to_us = to_us(call.now) + 1
        self.span = TIMEFRAMES[question.timeframe]
        self.from_us = 0 if self.span is None else to_us(call.now - self.span)

    @cached_property
    def keys(self) -> list[StoredKey]:
        """The keys of the account, newest first."""
        return self.context.keys(self.account)

    def report(self, **asked: Any) -> UsageReport:
        """Return the usage report of the scope; *asked* as in `UsageQuery`."""
        given: dict[str, Any] = {
            "from_us": self.from_us,
            "to_us": self.to_us,
            "week_start": self.context.settings["week_start"],
            **asked,
        }
        filters = {} if self.target is None else {"key": (self.target.entry.id,)}
        return self.context.usage(UsageQuery(account_id=self.account, filters=filters, **given))

    def groups(self, group_by: tuple[str, ...]) -> list[Grouped]:
        """Return the groups in the order that was asked; the name of several dimensions is a tuple."""
        rows = self.report(
            group_by=group_by,
            measures=("requests", self.failed, "latency_ms_avg", "bytes_out", "last_at"),
            sort=self.sort("last_at"),
            limit=PAGE_SIZE_MAX,
        ).rows
        return [
            Grouped(
                row[group_by[0]] if len(group_by) == 1 else tuple(row[name] for name in group_by),
                row["requests"],
                row[self.failed],
                row["latency_ms_avg"],
                row["bytes_out"],
                row["last_at"] or "",
            )
            for row in rows
        ]

    def sort(self, timestamp_column: str) -> tuple[str, ...]:
        """Return the order that was asked; *timestamp_column* is what `timestamp` stands for."""
        columns = {"requests": "requests", "errors": self.failed, "latency": "latency_ms_avg"}
        column = columns.get(self.question.sort, timestamp_column)
        return (f"-{column}" if self.question.descending else column,)

    def milliseconds(self, value: float | None) -> float:
        if value is None:
            return cast("float", self.context.settings["latency_unknown"])
        return round(value, int(self.context.settings["latency_places"]))

    def with_latency(self, members: dict[str, Any]) -> dict[str, Any]:
        """Return *members* without those about latency, if they are not wanted."""
        if self.question.latency:
            return members
        return {name: value for name, value in members.items() if not name.endswith("Latency")}


def _statistics(scope: _Scope, totals: Mapping[str, Any]) -> dict[str, Any]:
    requests, errors = totals["requests"], totals[scope.failed]
    start_us = scope.from_us
    if scope.span is None:
        first = totals["first_at"]
        start_us = scope.to_us if first is None else to_us(datetime.fromisoformat(first))
    # A minute is the shortest that an average per minute can be told of.
    window_us = max(scope.to_us - 1 - start_us, 60 * US_PER_S)
    return scope.with_latency(
        {
            "totalRequests": requests,
            "successfulRequests": requests - errors,
            "failedRequests": errors,
            "successRate": success_rate(requests, errors),
            "averageLatency": scope.milliseconds(totals["latency_ms_avg"]),
            "peakLatency": scope.milliseconds(totals["latency_ms_max"]),
            **{name: ratio(requests * window_s * US_PER_S, window_us) for name, window_s in WINDOWS.items()},
            "peakRequestsPerMinute": totals["peak_requests_per_minute"],
            "peakRequestsPerHour": totals["peak_requests_per_hour"],
            "dataTransferred": totals["bytes_out"],
            "averageDataPerRequest": ratio(totals["bytes_out"], requests),
        }
    )


def _point(scope: _Scope, row: Mapping[str, Any]) -> dict[str, Any]:
    return scope.with_latency(
        {
            "timestamp": row["time"],
            "requests": row["requests"],
            "successfulRequests": row["requests"] - row[scope.failed],
            "failedRequests": row[scope.failed],
            "averageLatency": scope.milliseconds(row["latency_ms_avg"]),
            "peakLatency": scope.milliseconds(row["latency_ms_max"]),
            "dataTransferred": row["bytes_out"],
        }
    )


def _breakdown(
    scope: _Scope, endpoints: Sequence[Grouped], by_error: Sequence[Grouped], requests: int
) -> dict[str, Any]:
    def items(name: str, groups: Sequence[Grouped]) -> list[dict[str, Any]]:
        return [{name: group.name, **_group(scope, group)} for group in groups[: scope.question.limit]]

    names = {key.entry.id: key.entry.name for key in scope.keys}
    statuses = _merged(scope.question, by_error, lambda group: group.name[1])
    return {
        "byEndpoint": items("endpoint", endpoints),
        "byMethod": items("method", scope.groups(("method",))),
        "byStatusCode": [
            {
                "statusCode": group.name,
                "requests": group.requests,
                "percentage": percent(group.requests, requests),
            }
            for group in statuses[: scope.question.limit]
        ],
        "byKey": [
            {"keyId": item["keyId"], "name": names.get(item["keyId"], ""), **item}
            for item in items("keyId", scope.groups(("key",)))
        ],
    }


def _group(scope: _Scope, group: Grouped) -> dict[str, Any]:
    return scope.with_latency(
        {
            "requests": group.requests,
            "successRate": success_rate(group.requests, group.errors),
            "averageLatency": scope.milliseconds(group.latency_ms),
            "dataTransferred": group.bytes_out,
        }
    )


def _errors(
    scope: _Scope, endpoints: Sequence[Grouped], by_error: Sequence[Grouped], totals: Mapping[str, Any]
) -> dict[str, Any]:
    total, question = totals[scope.failed], scope.question
    failed = [group for group in by_error if group.errors > 0]
    # Of errors, the number of requests is the number of errors.
    by_count = question._replace(sort="errors") if question.sort == "requests" else question

    def items(name: str, groups: Sequence[Grouped]) -> list[dict[str, Any]]:
        return [
            {name: group.name, "count": group.errors, "percentage": percent(group.errors, total)}
            for group in groups[: question.limit]
        ]

    types = items("type", _merged(by_count, failed, lambda group: error_type(*group.name)))
    failing = [group for group in endpoints if group.errors > 0]
    return {
        "totalErrors": total,
        "errorRate": percent(total, totals["requests"]),
        "byType": [{**item, "description": description(item["type"])} for item in types],
        "byEndpoint": items("endpoint", _merged(by_count, failing, lambda group: group.name)),
        "byStatusCode": items("statusCode", _merged(by_count, failed, lambda group: group.name[1])),
    }


def _merged(
    question: Question, groups: Sequence[Grouped], name_of: Callable[[Grouped], Any]
) -> list[Grouped]:
    """Return *groups* summed up by another name, in the order that was asked; ties by name."""
    found: dict[Any, list[Grouped]] = {}
    for group in groups:
        found.setdefault(name_of(group), []).append(group)
    merged = [
        Grouped(
            name,
            sum(part.requests for part in parts),
            sum(part.errors for part in parts),
            _mean(parts),
            sum(part.bytes_out for part in parts),
            max(part.last_at for part in parts),
        )
        for name, parts in found.items()
    ]
    merged.sort(key=lambda group: group.name)
    values: dict[str, Callable[[Grouped], Any]] = {
        "requests": lambda group: group.requests,
        "errors": lambda group: group.errors,
        "latency": lambda group: group.latency_ms or 0,
        "timestamp": lambda group: group.last_at,
    }
    # Stable in both directions: equal groups stay by name.
    merged.sort(key=values[question.sort], reverse=question.descending)
    return merged


def _mean(parts: Sequence[Grouped]) -> float | None:
    # Only the order of merged groups hangs on it: nearly all requests of a part have a latency, or none has.
    known = [part for part in parts if part.latency_ms is not None and part.requests > 0]
    requests = sum(part.requests for part in known)
    return sum((part.latency_ms or 0) * part.requests for part in known) / requests if requests else None


def error_type(kind: str, status: int) -> str:
    """Return the vendor's code of an error that was reported with a type (or none) and a status."""
    if kind:
        return ERROR_TYPES.get(kind, kind)
    return TYPE_BY_STATUS.get(status, "INTERNAL_ERROR" if status >= 500 else f"HTTP_{status}")


def description(code: str) -> str:
    """Return an error type in words; one that we do not know is spelled out."""
    return DESCRIPTIONS.get(code) or code.replace("_", " ").strip().capitalize()


# -- rate limits and alerts -----------------------------------------------------------------------


def rate_limits(scope: _Scope) -> dict[str, Any]:
    """
    Return limits, consumption and utilisation: of the key that was asked, else of the plan and all keys.
    """
    target = scope.target
    entitlement = scope.context.entitlement(target or scope.caller)
    limits: Sequence[Limit] = ()
    if entitlement is not None and target is not None:
        limits = [limited.limit for limited in entitlement.limits]
    elif entitlement is not None and entitlement.plan is not None:
        limits = entitlement.plan.limits
    allowed = {name: _amount(limits, window_s) for name, window_s in WINDOWS.items()}
    used = _consumption(scope, [target] if target is not None else scope.keys)
    return {
        "current": allowed,
        "usage": used,
        "utilization": {name: utilization(used[name], most) for name, most in allowed.items()},
    }


def utilization(used: int, allowed: int | None) -> float | None:
    """Return *used* of *allowed* in percent; None without a limit."""
    return None if allowed is None else percent(used, allowed)


def _amount(limits: Sequence[Limit], window_s: int) -> int | None:
    """Return the strictest of the limits on all requests in windows of *window_s*."""
    amounts = [limit.amount for limit in limits if _is_general(limit, window_s)]
    return min(amounts, default=None)


def _is_general(limit: Limit, window_s: int) -> bool:
    return (
        limit.algorithm != "concurrency"
        and limit.unit == "requests"
        and limit.bucket is None
        and duration_s(limit.window) == window_s
    )


def _consumption(scope: _Scope, keys: Sequence[StoredKey]) -> dict[str, int]:
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


def _recorded(scope: _Scope, window_s: int) -> int:
    window_us = window_s * US_PER_S
    start_us = to_us(scope.call.now) // window_us * window_us
    return int(scope.report(from_us=start_us, measures=("requests",)).totals["requests"])


def _window_name(limit_status: LimitStatus) -> str | None:
    """Return the member that a rate limit on all requests belongs to."""
    if limit_status.kind != "limit" or limit_status.unit != "requests" or limit_status.bucket is not None:
        return None
    return next((name for name, window_s in WINDOWS.items() if window_s == limit_status.window_s), None)


def _alerts(
    scope: _Scope, totals: Mapping[str, Any], by_error: Sequence[Grouped], limits: Mapping[str, Any]
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
                    _WINDOW_NAMES[name],
                    limits["usage"][name],
                    limits["current"][name],
                    thresholds=thresholds,
                )
                for name in WINDOWS
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
                    limit_status.used,
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
                alerts.expiry_alert(_name(key), key.entry.expires_at, now=now, thresholds=thresholds)
                for key in active
            ]
        rows = scope.report(from_us=0, group_by=("key",), measures=("last_at",), limit=PAGE_SIZE_MAX).rows
        last_at = {row["key"]: row["last_at"] for row in rows}
        return [
            alerts.idle_alert(
                _name(key),
                _last_used(key, last_at.get(key.entry.id)),
                from_us(key.created_at_us),
                now=now,
                thresholds=thresholds,
            )
            for key in active
        ]

    found = [alert for kind in context.settings["alerts"] for alert in of_kind(kind)]
    return [alert for alert in found if alert is not None]


def _last_used(key: StoredKey, last_at: str | None) -> datetime | None:
    """Return when a key was last used, whether our gate saw it or a report (*last_at*, RFC 3339) told."""
    times = [] if key.last_used_at_us is None else [from_us(key.last_used_at_us)]
    times += [] if last_at is None else [datetime.fromisoformat(last_at)]
    return max(times, default=None)


def _leading_status(by_error: Sequence[Grouped]) -> int | None:
    counts: dict[int, int] = {}
    for group in by_error:
        counts[group.name[1]] = counts.get(group.name[1], 0) + group.errors
    return max(counts, key=lambda status: (counts[status], -status), default=None)


def _latency_before(scope: _Scope) -> float | None:
    """Return the average latency of the window before; `all` has none before it."""
    if scope.span is None:
        return None
    before_us = to_us(scope.call.now - 2 * scope.span)
    before = scope.report(from_us=before_us, to_us=scope.from_us, measures=("latency_ms_avg",))
    return cast("float | None", before.totals["latency_ms_avg"])


def _name(key: StoredKey) -> str:
    return key.entry.name or key.entry.id


# -- keys -----------------------------------------------------------------------------------------


def create_key(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `POST /v1/developer/keys`."""
    if not _manages(caller, context):
        return _forbidden(call)
    body = _object(call.body)
    name = body.get("name")
    if not isinstance(name, str) or not 0 < len(name.strip()) <= 256:
        raise _invalid("name")
    about: dict[str, Any] = {
        "description": _typed(body, "description", str, ""),
        "permissions": _permissions(body.get("permissions", list(context.settings["default_permissions"]))),
        "burstLimit": None,
        "webhooks": _webhooks(body, context),
        "metadata": _typed(body, "metadata", dict, {}),
    }
    entitlement = context.entitlement(caller)
    limits, about["burstLimit"] = _limits(body.get("rateLimit"), entitlement, context)
    parent = caller.entry
    expiry = _expiry(body.get("expiry"), call.now)
    if expiry is not None and parent.expires_at is not None:
        expiry = min(expiry, parent.expires_at)
    stored, secret = context.issue_key(
        Key(
            id=context.new_key_id(),
            account=parent.account,
            project=parent.project,
            name=name,
            type=parent.type,
            profile=PROFILE.name,
            subscription=parent.subscription,
            plan=parent.plan,
            limits=limits,
            expires_at=expiry,
            metadata={METADATA: json.dumps(about)},
        ),
        Customer(parent.account, parent.id),
    )
    key = _key_members(stored, context, call.now)
    key["usage"] = {"totalRequests": 0, "requestsToday": 0, "requestsThisMonth": 0}
    made = {
        "success": True,
        "apiKey": secret,
        "keyId": stored.entry.id,
        "key": key,
        "webhooks": [_webhook(hook) for hook in about["webhooks"]],
        "timestamp": timestamp(call.now),
    }
    return Reply(int(context.settings["create_status"]), made)


def list_keys(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `GET /v1/developer/keys`; deleted keys are not listed."""
    limit, offset = _page(call)
    if not may(caller, "read"):
        return _forbidden(call)
    keys = [key for key in context.keys(caller.entry.account) if key.entry.state != "deleted"]
    shown = keys[offset : offset + limit]
    counts = _KeyCounts(call, context, caller.entry.account)
    now_us = to_us(call.now)
    states = [key.state_at(now_us) for key in keys]
    requests = sum(counts.requests(key.entry.id, "all") for key in keys)
    body = {
        "success": True,
        "keys": [
            {
                **_key_members(key, context, call.now),
                "lastUsed": counts.last_at(key),
                "usage": counts.members(key),
                "webhooks": [_webhook(hook) for hook in _about(key).get("webhooks", [])],
                "metadata": _about(key).get("metadata", {}),
            }
            for key in shown
        ],
        "pagination": _pagination(len(keys), limit, offset, len(shown)),
        "summary": {
            "totalKeys": len(keys),
            "activeKeys": states.count("active"),
            "inactiveKeys": states.count("inactive"),
            "expiredKeys": states.count("expired"),
            "revokedKeys": states.count("revoked"),
            "totalRequests": requests,
            "requestsToday": sum(counts.requests(key.entry.id, "day") for key in keys),
            "averageRequestsPerKey": ratio(requests, len(keys)),
        },
        "timestamp": timestamp(call.now),
    }
    return Reply(200, body)


def revoke_key(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `DELETE /v1/developer/keys/{keyId}`; a repeat gives the same answer."""
    if not _manages(caller, context):
        return _forbidden(call)
    key = context.key(call.params["keyId"])
    if key is None or key.entry.account != caller.entry.account or key.entry.state == "deleted":
        return error(call, 404, "KEY_NOT_FOUND", "API key not found")
    if key.entry.state != "revoked":
        context.set_key_state(key, "revoked", Customer(caller.entry.account, caller.entry.id))
        key = context.key(key.entry.id) or key
    revoked_at = call.now if key.revoked_at_us is None else from_us(key.revoked_at_us)
    body = {
        "success": True,
        "keyId": key.entry.id,
        "status": "revoked",
        "revokedAt": timestamp(revoked_at),
        "timestamp": timestamp(call.now),
    }
    return Reply(200, body)


class _KeyCounts:
    """What the keys of an account did: all time, this day, week and month (UTC)."""

    def __init__(self, call: Call, context: ProfileContext, account: str) -> None:
        now = call.now.astimezone(UTC)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        days = (day.weekday() - WEEKDAYS.index(context.settings["week_start"])) % 7
        starts = {"day": day, "week": day - timedelta(days=days), "month": day.replace(day=1)}
        self._now = now
        to = to_us(now) + 1

        def rows(from_us: int, *measures: str) -> dict[str, dict[str, Any]]:
            query = UsageQuery(
                account_id=account,
                from_us=from_us,
                to_us=to,
                group_by=("key",),
                measures=("requests", *measures),
                limit=PAGE_SIZE_MAX,
            )
            return {row["key"]: row for row in context.usage(query).rows}

        self._rows = {span: rows(to_us(start)) for span, start in starts.items()}
        self._rows["all"] = rows(0, "peak_requests_per_hour", "first_at", "last_at")

    def requests(self, key_id: str, span: str) -> int:
        return int(self._rows[span].get(key_id, {}).get("requests", 0))

    def last_at(self, key: StoredKey) -> str | None:
        last = self._rows["all"].get(key.entry.id, {}).get("last_at")
        used_at = _last_used(key, last)
        return None if used_at is None else timestamp(used_at)

    def members(self, key: StoredKey) -> dict[str, Any]:
        row = self._rows["all"].get(key.entry.id, {})
        total, last = self.requests(key.entry.id, "all"), row.get("last_at")
        days = 1
        if row.get("first_at") is not None:
            days = max(1, -(-(self._now - datetime.fromisoformat(row["first_at"])) // timedelta(days=1)))
        return {
            "totalRequests": total,
            "requestsToday": self.requests(key.entry.id, "day"),
            "requestsThisWeek": self.requests(key.entry.id, "week"),
            "requestsThisMonth": self.requests(key.entry.id, "month"),
            "averageRequestsPerDay": ratio(total, days),
            "peakRequestsPerHour": row.get("peak_requests_per_hour", 0),
            "lastRequestAt": None if last is None else timestamp(datetime.fromisoformat(last)),
        }


def _key_members(key: StoredKey, context: ProfileContext, now: datetime) -> dict[str, Any]:
    entry, about = key.entry, _about(key)
    entitlement = context.entitlement(key)
    limits = [] if entitlement is None else [limited.limit for limited in entitlement.limits]
    rate_limit: dict[str, int | None] = {name: _amount(limits, seconds) for name, seconds in WINDOWS.items()}
    rate_limit["burstLimit"] = about.get("burstLimit")
    last_used = None if key.last_used_at_us is None else timestamp(from_us(key.last_used_at_us))
    return {
        "id": entry.id,
        "name": entry.name,
        "description": about.get("description", ""),
        "permissions": about.get("permissions", [{"resource": "all", "actions": ["all"]}]),
        "rateLimit": rate_limit,
        "status": key.state_at(to_us(now)),
        "createdAt": timestamp(from_us(key.created_at_us)),
        "expiry": None if entry.expires_at is None else timestamp(entry.expires_at),
        "lastUsed": last_used,
    }


def _about(key: StoredKey) -> dict[str, Any]:
    """Return what the dialect keeps with a key; nothing for one that the operator made."""
    kept: dict[str, Any] = json.loads(key.entry.metadata.get(METADATA, "{}"))
    return kept


def may(key: StoredKey, action: str) -> bool:
    """Return whether a key's permissions include *action* (`read`, `write`, `admin`) on anything."""
    about = _about(key)
    if "permissions" not in about:
        return True  # The operator made it.
    for permission in about["permissions"]:
        if isinstance(permission, str):
            if permission in (action, "admin"):
                return True
        else:
            # Over keys only who may do all with all.
            over_all = "all" in permission["actions"]
            if (
                (permission["resource"] == "all" and over_all)
                if action == "admin"
                else (over_all or action in permission["actions"])
            ):
                return True
    return False


def _manages(key: StoredKey, context: ProfileContext) -> bool:
    return context.settings["key_management"] == "any" or may(key, "admin")


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _invalid("body") from None
    if not isinstance(found, dict):
        raise _invalid("body")
    return found


def _typed(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise _invalid(name)
    return value


def _permissions(given: Any) -> list[Any]:
    """Return permissions in the long or the short form, checked."""
    if not isinstance(given, list) or not given:
        raise BadInput("INVALID_PERMISSIONS", "Invalid permissions")
    for permission in given:
        if not (permission in LEVELS if isinstance(permission, str) else _is_permission(permission)):
            raise BadInput("INVALID_PERMISSIONS", "Invalid permissions")
    return given


def _is_permission(given: Any) -> bool:
    if not isinstance(given, dict) or not given.keys() <= {"resource", "actions", "restrictions"}:
        return False
    actions, restrictions = given.get("actions"), given.get("restrictions", {})
    return (
        isinstance(given.get("resource"), str)
        and given["resource"] in RESOURCES
        and isinstance(actions, list)
        and bool(actions)
        and all(isinstance(action, str) and action in ACTIONS for action in actions)
        and isinstance(restrictions, dict)
        and restrictions.keys() <= RESTRICTIONS
        and all(_are_texts(values) for values in restrictions.values())
    )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _limits(
    given: Any, entitlement: Entitlement | None, context: ProfileContext
) -> tuple[list[Limit] | None, int | None]:
    """Return the limits of a new key (None: those of its plan) and its `burstLimit`."""
    if given is None:
        return None, None
    if isinstance(given, int) and not isinstance(given, bool):
        given = {context.settings["rate_limit_number"]: given}
    if not isinstance(given, dict) or not given.keys() <= {*WINDOWS, "burstLimit"}:
        raise _invalid("rateLimit")
    # Those of the caller, which it passes on: its own, its plan's, or those of the keys that made it.
    own = [] if entitlement is None else [scope.limit for scope in entitlement.limits]
    limits = list({limit.name: limit for limit in reversed(own) if limit.per == "key"}.values())[::-1]
    for name, window_s in WINDOWS.items():
        amount = _rate(given, name)
        if amount is None:
            continue
        most = _amount(limits, window_s)
        if most is not None and amount > most:
            raise BadInput("RATE_LIMIT_TOO_HIGH", "Rate limit too high")
        limit_name, window = _LIMIT_OF[name]
        limits = [limit for limit in limits if not _is_general(limit, window_s) and limit.name != limit_name]
        limits.append(Limit(name=limit_name, amount=amount, window=window))
    burst = _rate(given, "burstLimit")
    if burst is not None:
        limits = [limit for limit in limits if limit.name != BURST]
        limits.append(Limit(name=BURST, amount=burst, window=context.settings["burst_window"]))
    return limits, burst


def _rate(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
        raise _invalid(f"rateLimit.{name}" if name in given else "rateLimit")
    return value


def _expiry(given: Any, now: datetime) -> datetime | None:
    if given is None:
        return None
    try:
        at = datetime.fromisoformat(given)
        at = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise _invalid("expiry") from None
    if at <= now:
        raise _invalid("expiry")
    return at


def _webhooks(body: Mapping[str, Any], context: ProfileContext) -> list[dict[str, Any]]:
    """Return webhooks as they are kept: never with their secret."""
    kept = []
    for hook in _typed(body, "webhooks", list, []):
        if (
            not isinstance(hook, dict)
            or not hook.keys() <= {"url", "events", "secret"}
            or not isinstance(hook.get("url"), str)
            or not hook["url"].startswith(("https://", "http://"))
            or not _are_texts(hook.get("events", []))
            or not isinstance(hook.get("secret", ""), str)
        ):
            raise _invalid("webhooks")
        kept.append({"id": context.new_key_id(), "url": hook["url"], "events": hook.get("events", [])})
    return kept


def _webhook(kept: Mapping[str, Any]) -> dict[str, Any]:
    # Kept for the client's own books: nothing is delivered, and the answer says so.
    return {**kept, "status": "inactive", "lastDelivery": None, "deliveryCount": 0, "failureCount": 0}


# -- parameters, numbers, errors ------------------------------------------------------------------


def _either(call: Call, name: str, alias: str) -> tuple[str, str | None]:
    """Return the first of two spellings of a parameter that is given, and its value."""
    value = call.first(name)
    return (name, value) if value is not None else (alias, call.first(alias))


def _choice(call: Call, name: str, alias: str, values: Sequence[str]) -> str:
    spelled, value = _either(call, name, alias)
    if value is None:
        return values[0]
    if value not in values:
        raise _invalid(spelled, values)
    return value


def _flag(call: Call, name: str) -> bool:
    value = (call.first(name) or "true").lower() if call.first(name) != "" else ""
    if value not in ("true", "1", "false", "0"):
        raise _invalid(name, ("true", "false"))
    return value in ("true", "1")


def _page(call: Call) -> tuple[int, int]:
    return _number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX), _number(call, "offset", 0, 0, OFFSET_MAX)


def _number(call: Call, name: str, default: int, least: int, most: int) -> int:
    value = call.first(name)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= most:
        raise _invalid(name)
    return int(value)


def _invalid(name: str, supported: Sequence[str] | None = None) -> BadInput:
    return BadInput("INVALID_PARAMETER", f"Invalid parameter: {name}", supported)


def _pagination(total: int, limit: int, offset: int, returned: int) -> dict[str, Any]:
    return {"total": total, "limit": limit, "offset": offset, "hasMore": offset + returned < total}


def percent(part: int, whole: int) -> float:
    """Return *part* of *whole* in percent with at most 2 decimals; 0 of nothing."""
    return alerts.percent_hundredths(part, whole) / alerts.HUNDREDTHS


def success_rate(requests: int, errors: int) -> float:
    """Return what `errorRate` leaves of 100, so that the two always add up; 0 without requests."""
    if requests <= 0:
        return 0.0
    return (10_000 - alerts.percent_hundredths(errors, requests)) / alerts.HUNDREDTHS


def ratio(part: int, whole: int) -> float:
    """Return *part* per *whole* with at most 2 decimals, half up; 0 per nothing."""
    return 0.0 if whole <= 0 else (200 * part + whole) // (2 * whole) / 100


def timestamp(at: datetime) -> str:
    """Return *at* as ISO 8601 in UTC, in whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def error(
    call: Call,
    status: int,
    code: str,
    message: str,
    *,
    supported: Sequence[str] | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> Reply:
    """Return an error in the flat envelope."""
    body: dict[str, Any] = {
        "success": False,
        "error": code,
        "message": message,
        "timestamp": timestamp(call.now),
    }
    if supported is not None:
        body["supported"] = list(supported)
    return Reply(status, body, headers)


def _forbidden(call: Call) -> Reply:
    return error(call, 403, "FORBIDDEN", "Insufficient permissions for this operation")


def _unauthorized(call: Call) -> Reply:
    return error(call, 401, "UNAUTHORIZED", "Invalid or missing API key")


def _over_limit(call: Call, denial: Denial, headers: Sequence[tuple[str, str]]) -> Reply:
    retry_after = str(denial.retry_after_s or 1)
    return error(
        call,
        429,
        "RATE_LIMIT_EXCEEDED",
        "Too many requests. Please try again later.",
        headers=[*headers, ("Retry-After", retry_after)],
    )


def rate_headers(limit_statuses: Sequence[LimitStatus], limit_name: str = "") -> list[tuple[str, str]]:
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
        general = [limit for limit in limits if limit.bucket is None]
        chosen = next((limit for limit in general if limit.window_s == 60), general[0] if general else None)
    if chosen is None:
        return []
    headers = [
        ("X-RateLimit-Limit", str(chosen.allowed)),
        ("X-RateLimit-Remaining", str(chosen.remaining)),
    ]
    if chosen.resets_at is not None:
        headers.append(("X-RateLimit-Reset", str(-(-to_us(chosen.resets_at) // US_PER_S))))
    return headers


def _with_key(
    handle: Callable[[Call, ProfileContext, StoredKey], Reply],
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* behind the key and its limits: every answer to a known key has the rate headers."""

    def handled(call: Call, context: ProfileContext) -> Reply:
        key = context.find_key(PROFILE.credential(call.headers))
        if key is None or key.state_at(to_us(call.now)) != "active":
            return _unauthorized(call)
        entitlement = context.entitlement(key)
        if entitlement is None or not entitlement.account.active:
            return _forbidden(call)
        denial = context.pass_limits(key, ROUTE)
        headers = rate_headers(context.limit_statuses(key), "" if denial is None else denial.limit)
        if denial is not None:
            return _over_limit(call, denial, headers)
        try:
            reply = handle(call, context, key)
        except BadInput as exc:
            supported = exc.supported if context.settings["supported_listed"] else None
            status = context.settings["bad_parameter_status"]
            reply = error(call, status, exc.code, exc.message, supported=supported)
        except Exception as exc:
            # Here, and not in `failed` alone, since only here the key's headers are known.
            reply = failure(PROFILE, call, exc)
        return reply._replace(headers=[*headers, *reply.headers])

    return handled


CATALOG: Final = """
# AnyLayer's tiers and API. Prices and the enterprise tier's limits are a matter of contract.

[[plans]]
slug = "anylayer-free"
name = "Free"
limits = [
  { name = "per-minute", amount = 60 },
  { name = "per-hour", amount = 1_000, window = "1h" },
  { name = "per-day", amount = 10_000, window = "1d" },
]

[[plans]]
slug = "anylayer-starter"
name = "Starter"
limits = [
  { name = "per-minute", amount = 300 },
  { name = "per-hour", amount = 10_000, window = "1h" },
  { name = "per-day", amount = 100_000, window = "1d" },
]

[[plans]]
slug = "anylayer-professional"
name = "Professional"
limits = [
  { name = "per-minute", amount = 1_000 },
  { name = "per-hour", amount = 50_000, window = "1h" },
  { name = "per-day", amount = 1_000_000, window = "1d" },
]

# Its keys bring limits of their own.
[[plans]]
slug = "anylayer-enterprise"
name = "Enterprise"

[[routes]]
id = "anylayer-score"
method = "GET"
path = "/v1/score/{identity}"
event_kind = "read"
profile = "anylayer"

# The rest of the API; a route of its own splits an endpoint out in the statistics.
[[routes]]
id = "anylayer-api"
method = "*"
path = "/v1/*"
profile = "anylayer"
"""


class AnyLayer:
    """The dialect."""

    name = "anylayer"
    key_prefix = "zk_prod_"
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CATALOG
    refusals_count = True
    endpoints: Sequence[Endpoint] = tuple(
        Endpoint(method, prefix + path, _with_key(handle))
        for prefix in ("", "/api")
        for method, path, handle in (
            ("GET", "/v1/developer/usage", usage),
            ("POST", "/v1/developer/keys", create_key),
            ("GET", "/v1/developer/keys", list_keys),
            ("DELETE", "/v1/developer/keys/{keyId}", revoke_key),
        )
    )

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the key of `Authorization: Bearer <key>`; no other form is one."""
        scheme, _, secret = headers.get("authorization", "").strip().partition(" ")
        return secret.strip() if scheme.lower() == "bearer" else ""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer 404 or 405; a good key is limited here as everywhere, and told where it stands."""
        reply = error(call, 404, "NOT_FOUND", "Resource not found")
        if allowed:
            reply = error(
                call, 405, "METHOD_NOT_ALLOWED", "Method not allowed", headers=[("Allow", ", ".join(allowed))]
            )
        known = _with_key(lambda call, context, key: reply)(call, context)
        # Whoever is not known is not told that a path exists only for others.
        return reply if known.status in (401, 403) else known

    def failed(self, call: Call, error_: Exception) -> Reply:
        """Answer the one failure that the vendor documents, whatever it was of ours."""
        if isinstance(error_, errors.BadInput):
            return error(call, 400, "INVALID_REQUEST", str(error_))
        if isinstance(error_, errors.QuotaExceeded):
            return error(call, 403, "FORBIDDEN", str(error_))
        status = 500
        if isinstance(error_, Unavailable):
            status = int(call.settings.get("unavailable_status", SETTINGS["unavailable_status"]))
        return error(call, status, "INTERNAL_ERROR", "Internal server error")

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        headers = [] if metered is None else rate_headers(metered.limit_statuses, denial.limit)
        if denial.status == 401:
            reply = _unauthorized(call)
        elif denial.status == 429:
            return _over_limit(call, denial, headers)
        elif denial.status == 402:
            status = int(call.settings.get("quota_status", SETTINGS["quota_status"]))
            reply = error(call, status, "QUOTA_EXCEEDED", "Quota exceeded")
        elif denial.reason == "route_unknown":
            reply = error(call, 404, "NOT_FOUND", "Resource not found")
        elif denial.status == 403:
            reply = _forbidden(call)
        else:
            reply = error(call, 500, "INTERNAL_ERROR", "Internal server error")
        return reply._replace(headers=[*headers, *reply.headers])

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        return rate_headers(metered.limit_statuses)


PROFILE: Final = AnyLayer()
