"""
Which rollups answer a query: of the sums in `usage_rollups`, the smallest that has all that the query needs.

Each tier sums up all records, per UTC hour or day, by some of the dimensions. The view of `usage_rollups` fills them.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import gcd
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from tollkeeper.domain.events import TIME_MIN_US
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.usage import DIMENSIONS, UsageQuery

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
_YEAR_MIN: Final = from_us(TIME_MIN_US).year


class _Tier(NamedTuple):
    """One of the sums of all records in `usage_rollups`, and the dimensions and histograms that it has."""

    name: str
    width_us: int
    has: frozenset[str]


_OF_KEYS: Final = frozenset({"account", "project", "key", "latency_bins"})
_OF_KINDS: Final = frozenset(DIMENSIONS) - _OF_KEYS | {"account", "latency_bins"}
_TIERS: Final = (
    # The smallest first: keys grow with the callers, kinds of requests do not.
    _Tier("kinds_day", DAY_US, _OF_KINDS),
    _Tier("keys_day", DAY_US, _OF_KEYS),
    _Tier("day", DAY_US, frozenset(DIMENSIONS)),
    _Tier("kinds_hour", HOUR_US, _OF_KINDS | {"minutes"}),
    _Tier("keys_hour", HOUR_US, _OF_KEYS | {"minutes"}),
    _Tier("hour", HOUR_US, frozenset({*DIMENSIONS, "latency_bins", "minutes"})),
)


class Tiers(NamedTuple):
    """The tiers that answer for the whole hours and the whole days of a range; None where only records can."""

    hours: str | None
    days: str | None


def tiers_of(
    query: UsageQuery, values: Collection[str], span_us: tuple[int, int], *, in_hours: bool
) -> Tiers:
    """
    Return the smallest tiers that have all that *query* needs.

    Args:
        values: Names of `values.VALUES` that the query sums up.
        span_us: The range of the query, bounded.
        in_hours: Sums of days will not do.
    """
    width = _bucket_width_us(query, *span_us)
    if width % HOUR_US:
        return Tiers(None, None)
    needs = {*query.group_by, *query.filters, *({"latency_bins", "minutes"} & set(values))}
    if "kinds" in values:
        needs.add("kind")
    hours, days = (
        next((tier.name for tier in _TIERS if tier.width_us == tier_us and needs <= tier.has), None)
        for tier_us in (HOUR_US, DAY_US)
    )
    return Tiers(hours, None if in_hours or width % DAY_US else days)


def _bucket_width_us(query: UsageQuery, start: int, end: int) -> int:
    """Return the width of the widest UTC buckets, up to a day, of which none lies in two buckets of *query*."""
    if query.granularity is None:
        return DAY_US
    if query.granularity == "minute":
        return 60_000_000
    years = range(max(from_us(start).year, _YEAR_MIN), from_us(end).year + 1)
    width = gcd(*(_offsets_us(query.time_zone, year) for year in years))
    return gcd(width, HOUR_US) if query.granularity == "hour" else width


@lru_cache(maxsize=4096)
def _offsets_us(time_zone: str, year: int) -> int:
    """Return the greatest common divisor of a day and the zone's offsets of a year; none lasts under a week."""
    zone = ZoneInfo(time_zone)
    start = datetime(year, 1, 1, tzinfo=UTC)
    offsets = {(start + timedelta(days=day)).astimezone(zone).utcoffset() for day in range(-1, 368, 7)}
    return gcd(DAY_US, *(offset // timedelta(microseconds=1) for offset in offsets if offset is not None))
