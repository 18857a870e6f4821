"""`GET /v1/developer/usage`: statistics, series, breakdown, errors, limits and alerts in one answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.usage import UsageReport
from tollkeeper.profiles.anylayer.alerts import raised_alerts
from tollkeeper.profiles.anylayer.breakdown import breakdown_members, error_members
from tollkeeper.profiles.anylayer.errors import error_reply, forbidden
from tollkeeper.profiles.anylayer.key_notes import may
from tollkeeper.profiles.anylayer.limits import WINDOWS, rate_limits
from tollkeeper.profiles.anylayer.numbers import ratio, success_rate
from tollkeeper.profiles.anylayer.parameters import page_members, parse_usage_parameters
from tollkeeper.profiles.anylayer.scope import Grouped, QueriedUsage
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
    usage = read_usage(scope)
    totals = usage.totals
    if totals["requests"] <= 0 and context.settings["no_data_status"] == 404:
        return error_reply(call, 404, "NO_USAGE_DATA", "No usage data found")
    by_error = usage.groups["error_type", "status"] if parameters.breakdown or totals[scope.failed] else []
    limits = rate_limits(scope)
    body: dict[str, Any] = {
        "success": True,
        "usage": _statistics(scope, totals),
        "timeSeries": [_point(scope, row) for row in usage.series.rows],
    }
    endpoints = usage.groups["endpoint",] if parameters.breakdown or parameters.errors else []
    if parameters.breakdown:
        body["breakdown"] = breakdown_members(scope, usage.groups, totals["requests"])
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
        for alert in raised_alerts(scope, totals, by_error, limits, usage.latency_before)
    ]
    body["pagination"] = page_members(
        usage.series.row_count, parameters.limit, parameters.offset, len(usage.series.rows)
    )
    body["timestamp"] = iso_seconds(call.now)
    return Reply(200, body)


class ReadUsage(NamedTuple):
    """
    What one statement says of a usage.

    Attributes:
        groups: By the dimensions.
        latency_before: The average latency of the window before, ms; None without any, or without such a window.
    """

    series: UsageReport
    totals: Mapping[str, Any]
    groups: Mapping[tuple[str, ...], list[Grouped]]
    latency_before: float | None


def read_usage(scope: QueriedUsage) -> ReadUsage:
    """Return all that an answer needs of the usage store, by one statement where the store can."""
    parameters, settings = scope.parameters, scope.context.settings
    series = scope.query(
        granularity=parameters.granularity,
        measures=("requests", scope.failed, "latency_ms_avg", "latency_ms_max", "bytes_out"),
        sort=scope.sort("time") if settings["series_order"] == "sort" else ("time",),
        limit=parameters.limit,
        offset=parameters.offset,
    )
    # A series by the minute is read from the events, so its total is asked for apart.
    totals = scope.query(
        measures=(*series.measures, "peak_requests_per_minute", "peak_requests_per_hour", "first_at")
    )
    groups: list[tuple[str, ...]] = [("error_type", "status")]
    if parameters.breakdown or parameters.errors:
        groups.append(("endpoint",))
    if parameters.breakdown:
        groups += [("method",), ("key",)]
    queries = [totals, *map(scope.query_of_groups, groups)]
    if "latency" in settings["alerts"] and scope.span is not None:
        before_us = to_us(scope.call.now - 2 * scope.span)
        queries.append(scope.query(from_us=before_us, to_us=scope.from_us, measures=("latency_ms_avg",)))
    if parameters.granularity == "minute":
        found = [scope.context.usage(series), *scope.context.usages(queries)]
    else:
        found = scope.context.usages([series, *queries])
    before = found[2 + len(groups) :]
    return ReadUsage(
        found[0],
        found[1].totals,
        {name: scope.grouped(name, report.rows) for name, report in zip(groups, found[2:], strict=False)},
        before[0].totals["latency_ms_avg"] if before else None,
    )


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
