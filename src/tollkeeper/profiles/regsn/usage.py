"""`GET /v1/usage`: the account's usage by day, endpoint or key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from tollkeeper.domain.instants import to_us
from tollkeeper.domain.iso8601 import parse_instant
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import Session
from tollkeeper.domain.money import cents_half_up
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.regsn.callers import account_of, record_usage_call
from tollkeeper.profiles.regsn.problems import InvalidParameter, invalid, success
from tollkeeper.profiles.toolkit import HeaderList, iso_millis, pages

AXES: Final = ("day", "endpoint", "key")
NO_KEY: Final = "(none)"
"""The bucket of requests under a session, which have no key."""
RANGE_DAYS_DEFAULT: Final = 30
_AT_MAX_US: Final = to_us(datetime(2100, 1, 1, tzinfo=UTC))
"""No event is later (see `domain.events`): later ends of a range mean the same."""


class UsageRange(NamedTuple):
    """The range of one call, and the axis of its buckets."""

    start: datetime
    end: datetime
    axis: str


class _Bucket:
    """The counts and cost of one day, endpoint or key."""

    __slots__ = ("cost_nanos", "export_count", "request_count", "scan_count")

    def __init__(self) -> None:
        self.request_count = self.scan_count = self.export_count = self.cost_nanos = 0


def answer_usage(
    call: Call, context: ProfileContext, caller: StoredKey | Session, headers: HeaderList
) -> Reply:
    """Answer `GET /v1/usage`."""
    try:
        parameters = parse_parameters(call, context.settings)
    except InvalidParameter as exc:
        reply = invalid(call, exc, headers)
    else:
        reply = success(call, 200, _report(context, account_of(caller), parameters), headers)
    # After the answer, so that a call does not count itself.
    record_usage_call(context, caller, reply.status)
    return reply


def _report(context: ProfileContext, account_id: str, parameters: UsageRange) -> dict[str, Any]:
    settings = context.settings
    buckets: dict[str, _Bucket] = {}
    total = _Bucket()
    for row in _rows(context, account_id, parameters):
        key = row["time"][:10] if parameters.axis == "day" else row[parameters.axis] or NO_KEY
        for bucket in (buckets.setdefault(key, _Bucket()), total):
            _add(bucket, row, settings)
    if not settings["refused_requests_counted"]:
        buckets = {
            key: bucket for key, bucket in buckets.items() if bucket.request_count or bucket.cost_nanos
        }
    shown = [_bucket(key, bucket) for key, bucket in buckets.items()]
    if parameters.axis == "day":
        shown.sort(key=lambda bucket: bucket["key"])
    else:
        shown.sort(key=lambda bucket: (-bucket["cost_cents"], -bucket["request_count"], bucket["key"]))
    total_cents = cents_half_up(total.cost_nanos)
    if settings["total_is_sum_of_buckets"]:
        total_cents = sum(bucket["cost_cents"] for bucket in shown)
    return {
        "totals": {
            "request_count": total.request_count,
            "scan_count": total.scan_count,
            "export_count": total.export_count,
            "total_cost_cents": total_cents,
        },
        "buckets": shown,
        "filters": {
            "from": iso_millis(parameters.start),
            "to": iso_millis(parameters.end),
            "group_by": parameters.axis,
        },
    }


def _rows(context: ProfileContext, account_id: str, parameters: UsageRange) -> Iterable[dict[str, Any]]:
    """Yield the counts per bucket, kind of event and reason of refusal."""
    # Before the epoch and after `_AT_MAX_US` there are no events, and the stores cannot hold such instants.
    start_us, end_us = max(0, to_us(parameters.start)), min(to_us(parameters.end), _AT_MAX_US)
    if start_us >= end_us:
        return
    query = UsageQuery(
        account_id=account_id,
        from_us=start_us,
        to_us=end_us,
        granularity="day" if parameters.axis == "day" else None,
        time_zone=context.time_zone(account_id),
        group_by=(*(() if parameters.axis == "day" else (parameters.axis,)), "kind", "denied_reason"),
        measures=("requests", "failed", "cost_nanos"),
    )
    for page in pages(context, query):
        yield from page.rows


def _add(bucket: _Bucket, row: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    requests = row["requests"]
    if row["denied_reason"]:
        bucket.request_count += requests if settings["refused_requests_counted"] else 0
        started = requests if settings["refused_scans_counted"] else 0
    else:
        bucket.request_count += requests
        started = requests if settings["failed_scans_counted"] else requests - row["failed"]
    if row["kind"] == "scan":
        bucket.scan_count += started
    elif row["kind"] == "export":
        bucket.export_count += started
    bucket.cost_nanos += row["cost_nanos"]


def _bucket(key: str, bucket: _Bucket) -> dict[str, Any]:
    return {
        "key": key,
        "request_count": bucket.request_count,
        "scan_count": bucket.scan_count,
        "export_count": bucket.export_count,
        "cost_cents": cents_half_up(bucket.cost_nanos),
    }


def parse_parameters(call: Call, settings: Mapping[str, Any]) -> UsageRange:
    start = _instant(call, "from", call.now - timedelta(days=RANGE_DAYS_DEFAULT))
    end = _instant(call, "to", call.now)
    axis = call.first("group_by")
    if axis is not None and axis not in AXES:
        raise InvalidParameter("group_by", f"group_by must be one of {', '.join(AXES)}")
    if start > end:
        raise InvalidParameter("from", "from must not be after to")
    days_max = settings["range_days_max"]
    if days_max and end - start > timedelta(days=days_max):
        raise InvalidParameter("from", f"from must be at most {days_max} days before to")
    return UsageRange(start, end, axis or "day")


def _instant(call: Call, name: str, default: datetime) -> datetime:
    text = call.first(name)
    if text is None:
        return default
    try:
        return parse_instant(text)
    except (ValueError, OverflowError):
        raise InvalidParameter(name, f"{name} must be an ISO 8601 date-time") from None
