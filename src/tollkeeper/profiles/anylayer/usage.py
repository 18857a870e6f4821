"""`GET /v1/developer/usage`: statistics, series, breakdown, errors, limits and alerts in one answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.profiles.anylayer.alerts import raised_alerts
from tollkeeper.profiles.anylayer.breakdown import breakdown_members, error_members
from tollkeeper.profiles.anylayer.errors import error_reply, forbidden
from tollkeeper.profiles.anylayer.key_notes import may
from tollkeeper.profiles.anylayer.limits import WINDOWS, rate_limits
from tollkeeper.profiles.anylayer.numbers import ratio, success_rate
from tollkeeper.profiles.anylayer.parameters import page_members, parse_usage_parameters
from tollkeeper.profiles.anylayer.scope import QueriedUsage
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.toolkit import iso_seconds


def answer_usage(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `GET /v1/developer/usage`."""
    parameters = parse_usage_parameters(call)
    if not may(caller, "read"):
        return forbidden(call)
    target = None
    if parameters.key_id is not None:
        target = context.key(parameters.key_id)
        # A deleted key keeps its usage: `byKey` lists it.
        if target is None or target.entry.account != caller.entry.account:
            return error_reply(call, 404, "NO_USAGE_DATA", "No usage data found")
    elif context.settings["scope_without_key_id"] == "key":
        target = caller
    scope = QueriedUsage(call, context, caller, target, parameters)
    series = scope.report(
        granularity=parameters.granularity,
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
        sort=scope.sort("time") if context.settings["series_order"] == "sort" else ("time",),
        limit=parameters.limit,
        offset=parameters.offset,
    )
    totals = series.totals
    if totals["requests"] <= 0 and context.settings["no_data_status"] == 404:
        return error_reply(call, 404, "NO_USAGE_DATA", "No usage data found")
    by_error = scope.groups(("error_type", "status")) if parameters.breakdown or totals[scope.failed] else []
    limits = rate_limits(scope)
    body: dict[str, Any] = {
        "success": True,
        "usage": _statistics(scope, totals),
        "timeSeries": [_point(scope, row) for row in series.rows],
    }
    endpoints = scope.groups(("endpoint",)) if parameters.breakdown or parameters.errors else []
    if parameters.breakdown:
        body["breakdown"] = breakdown_members(scope, endpoints, by_error, totals["requests"])
    if parameters.errors:
        body["errors"] = error_members(scope, endpoints, by_error, totals)
    body["rateLimits"] = limits.members
    body["alerts"] = [
        {
            "type": alert.kind,
            "message": alert.message,
            "priority": alert.priority,
            "recommendation": alert.advice,
        }
        for alert in raised_alerts(scope, totals, by_error, limits)
    ]
    body["pagination"] = page_members(series.row_count, parameters.limit, parameters.offset, len(series.rows))
    body["timestamp"] = iso_seconds(call.now)
    return Reply(200, body)


def _statistics(scope: QueriedUsage, totals: Mapping[str, Any]) -> dict[str, Any]:
    requests, errors = totals["requests"], totals[scope.failed]
    start_us = scope.from_us
    if scope.span is None:
        first = totals["first_at"]
        start_us = scope.to_us if first is None else to_us(datetime.fromisoformat(first))
    # An average per minute needs at least one minute.
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


def _point(scope: QueriedUsage, row: Mapping[str, Any]) -> dict[str, Any]:
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
