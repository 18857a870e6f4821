"""Usage and errors of a window by endpoint, method, status, type and key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from tollkeeper.profiles.anylayer.errors import description, error_type
from tollkeeper.profiles.anylayer.numbers import percent, success_rate
from tollkeeper.profiles.anylayer.parameters import UsageParameters
from tollkeeper.profiles.anylayer.scope import Grouped, QueriedUsage


def breakdown_members(
    scope: QueriedUsage, endpoints: Sequence[Grouped], by_error: Sequence[Grouped], requests: int
) -> dict[str, Any]:
    def items(name: str, groups: Sequence[Grouped]) -> list[dict[str, Any]]:
        return [{name: group.name, **_group(scope, group)} for group in _page(scope.parameters, groups)]

    names = {key.entry.id: key.entry.name for key in scope.keys}
    statuses = _merged(scope, scope.parameters, by_error, lambda group: group.name[1])
    return {
        "byEndpoint": items("endpoint", endpoints),
        "byMethod": items("method", scope.groups(("method",))),
        "byStatusCode": [
            {
                "statusCode": group.name,
                "requests": group.requests,
                "percentage": percent(group.requests, requests),
            }
            for group in _page(scope.parameters, statuses)
        ],
        "byKey": [
            {"keyId": item["keyId"], "name": names.get(item["keyId"], ""), **item}
            for item in items("keyId", scope.groups(("key",)))
        ],
    }


def _page(parameters: UsageParameters, groups: Sequence[Grouped]) -> Sequence[Grouped]:
    """Return the page of a list: a list that fits on one page is whole on each, as `offset` pages the series [C]."""
    if len(groups) <= parameters.limit:
        return groups
    return groups[parameters.offset : parameters.offset + parameters.limit]


def _group(scope: QueriedUsage, group: Grouped) -> dict[str, Any]:
    return scope.with_latency(
        {
            "requests": group.requests,
            "successRate": success_rate(group.requests, group.errors),
            "averageLatency": scope.milliseconds(group.latency_ms),
            "dataTransferred": group.bytes_out,
        }
    )


def error_members(
    scope: QueriedUsage, endpoints: Sequence[Grouped], by_error: Sequence[Grouped], totals: Mapping[str, Any]
) -> dict[str, Any]:
    total, parameters = totals[scope.failed], scope.parameters
    failed = [group for group in by_error if group.errors > 0]
    # Of errors, the number of requests is the number of errors.
    by_count = parameters._replace(sort="errors") if parameters.sort == "requests" else parameters

    def items(name: str, groups: Sequence[Grouped]) -> list[dict[str, Any]]:
        return [
            {name: group.name, "count": group.errors, "percentage": percent(group.errors, total)}
            for group in _page(parameters, groups)
        ]

    types = items("type", _merged(scope, by_count, failed, lambda group: error_type(*group.name)))
    failing = [group for group in endpoints if group.errors > 0]
    return {
        "totalErrors": total,
        "errorRate": percent(total, totals["requests"]),
        "byType": [{**item, "description": description(item["type"])} for item in types],
        "byEndpoint": items("endpoint", _merged(scope, by_count, failing, lambda group: group.name)),
        "byStatusCode": items("statusCode", _merged(scope, by_count, failed, lambda group: group.name[1])),
    }


def _merged(
    scope: QueriedUsage,
    parameters: UsageParameters,
    groups: Sequence[Grouped],
    name_of: Callable[[Grouped], Any],
) -> list[Grouped]:
    """Return *groups* summed up by another name, in the order that `sort` asks for; ties by name."""
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
    unknown = scope.context.settings["latency_unknown"]
    if unknown is None:
        # Last.
        unknown = -inf if parameters.descending else inf
    values: dict[str, Callable[[Grouped], Any]] = {
        "requests": lambda group: group.requests,
        "errors": lambda group: group.errors,
        "latency": lambda group: unknown if group.latency_ms is None else group.latency_ms,
        "timestamp": lambda group: group.last_at,
    }
    # Stable in both directions: equal groups stay by name.
    merged.sort(key=values[parameters.sort], reverse=parameters.descending)
    return merged


def _mean(parts: Sequence[Grouped]) -> float | None:
    # Only the order of merged groups hangs on it: nearly all requests of a part have a latency, or none has.
    known = [part for part in parts if part.latency_ms is not None and part.requests > 0]
    requests = sum(part.requests for part in known)
    return sum((part.latency_ms or 0) * part.requests for part in known) / requests if requests else None
