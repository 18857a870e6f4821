"""
An answer is brought up to date without the store, or it is said that this cannot be.

That the result is the store's own answer, for any question, is in `tests/contract/test_usage_store.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tollkeeper.domain.events import Record
from tollkeeper.domain.increments import apply_increment
from tollkeeper.domain.usage import MEASURES, UsageQuery, UsageReport

NOON_US = 1_773_835_200_000_000
CANNOT = {
    "latency_ms_avg",
    "latency_ms_p50",
    "latency_ms_p90",
    "latency_ms_p95",
    "latency_ms_p99",
    "kinds",
    "peak_requests_per_minute",
    "peak_requests_per_hour",
}


def record(**fields: Any) -> Record:
    return Record(
        "acme", "", "k1", NOON_US, NOON_US, "e1", 0, 1, "", "request", "GET", "/", 200, "", "",
        None, 0, "", 0, 0, 0, 0, "", 0, 5, 0, "given", "", {},
    )._replace(**fields)  # fmt: skip


def asked(**fields: Any) -> UsageQuery:
    return UsageQuery(
        **{"account_id": "acme", "from_us": 0, "to_us": 2**52, "measures": ("requests",), **fields}
    )


def answered(*rows: dict[str, Any], row_count: int | None = None, **totals: Any) -> UsageReport:
    count = len(rows) if row_count is None else row_count
    return UsageReport(rows=list(rows), totals=totals, row_count=count, as_of_us=1, complete=True)


def test_a_group_gains_another_comes_in_its_place_and_totals_follow() -> None:
    query = asked(group_by=("key",), measures=("requests", "cost_nanos"), sort=("-requests",))
    before = answered({"key": "k2", "requests": 2, "cost_nanos": 9}, requests=2, cost_nanos=9)
    coming = [record(id="1"), record(id="2"), record(id="3"), record(id="4", key_id="k2")]
    after = apply_increment(query, before, coming)
    assert after is not None
    assert after.rows == [
        {"key": "k1", "requests": 3, "cost_nanos": 15},
        {"key": "k2", "requests": 3, "cost_nanos": 14},
    ]
    assert (after.totals, after.row_count) == ({"requests": 6, "cost_nanos": 29}, 2)


def test_what_was_not_asked_changes_nothing() -> None:
    query = asked(from_us=NOON_US, to_us=NOON_US + 5, filters={"status": ("200", ""), "tag:team": ("a",)})
    tagged = {"tags": {"team": "a"}}
    passing = [record(**tagged), record(status=0, occurred_at_us=NOON_US + 4, **tagged)]
    others = [
        record(occurred_at_us=NOON_US - 1, **tagged),
        record(occurred_at_us=NOON_US + 5, **tagged),
        record(account_id="beta", **tagged),
        record(status=404, **tagged),
        record(),
        record(sign=-1),
    ]
    after = apply_increment(query, answered(requests=0), others + passing)
    assert after is not None
    assert after.rows == [{"requests": 2}]


def test_a_page_stays_as_long_as_it_was_asked() -> None:
    query = asked(group_by=("key",), limit=1)
    after = apply_increment(query, answered({"key": "k2", "requests": 1}, requests=1), [record()])
    assert after is not None
    assert (after.rows, after.row_count) == ([{"key": "k1", "requests": 1}], 2)


@pytest.mark.parametrize("measure", MEASURES)
def test_each_measure_can_be_or_not(measure: str) -> None:
    query = asked(measures=(measure,))
    assert (apply_increment(query, answered(**{measure: 0}), []) is None) == (measure in CANNOT)


@pytest.mark.parametrize(
    ("query", "before", "coming"),
    [
        (asked(granularity="day", time_zone="Europe/Berlin"), answered(requests=0), record()),
        (asked(group_by=("key",)), answered({"key": "k2", "requests": 1}, row_count=2, requests=2), record()),
        (asked(offset=1), answered(row_count=1, requests=1), record()),
        (asked(), answered({"requests": 1}, requests=1), record(sign=-1)),
        (asked(), answered({"requests": 1}, requests=1), record(revision=1)),
    ],
)
def test_the_store_must_tell(query: UsageQuery, before: UsageReport, coming: Record) -> None:
    """Buckets of another zone, rows that are not there, corrections."""
    assert apply_increment(query, before, [coming]) is None


@pytest.mark.parametrize(
    ("granularity", "week_start", "time"),
    [
        ("minute", "monday", "2026-03-18T12:34:00Z"),
        ("hour", "monday", "2026-03-18T12:00:00Z"),
        ("day", "monday", "2026-03-18T00:00:00Z"),
        ("week", "monday", "2026-03-16T00:00:00Z"),
        ("week", "wednesday", "2026-03-18T00:00:00Z"),
        ("week", "thursday", "2026-03-12T00:00:00Z"),
        ("month", "monday", "2026-03-01T00:00:00Z"),
    ],
)
def test_buckets_begin_where_they_should(granularity: Any, week_start: str, time: str) -> None:
    """2026-03-18 is a Wednesday."""
    query = asked(granularity=granularity, week_start=week_start)
    after = apply_increment(
        query, answered(requests=0), [record(occurred_at_us=NOON_US + 34 * 60_000_000 + 7)]
    )
    assert after is not None
    assert after.rows == [{"time": time, "requests": 1}]
