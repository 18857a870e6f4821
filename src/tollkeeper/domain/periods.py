"""
Periods: the spans over which budgets count. A new period is a new key computed from the clock, not a
reset job.

Grammar of a period, as plans and budgets state it:

    day | week | month | quarter | year
                        calendar spans in a time zone; a week starts on a stated weekday, quarters on the first of
                        January, April, July and October
    anniversary         months counted from an anchor instant (31 January → 28 February → 31 March)
    anniversary_quarter, anniversary_year
                        three and twelve of these months (29 February 2024 → 28 February 2025 → … → 29 February 2028)
    <n>d                n-day spans counted from the anchor (from the Unix epoch without one)
    <n>h, <n>m          spans of n hours or minutes that open with the first use: see `first_use`; at most a day
    <n>h_aligned, <n>m_aligned
                        such spans counted from 00:00 of each UTC day; the day's last one is cut at midnight when n
                        does not divide the day
    total               one span that never ends
"""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])\Z")
_SECONDS_PER: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ALIGNED: Final = "_aligned"
_DAYS_MAX: Final = 36_500
"""A century: a longer span around an anchor would leave the years that a datetime holds."""
_CALENDAR: Final = frozenset({"day", "week", "month", "quarter", "year"})
_ANNIVERSARY_MONTHS: Final = {"anniversary": 1, "anniversary_quarter": 3, "anniversary_year": 12}
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FAR_FUTURE: Final = datetime(9999, 1, 1, tzinfo=UTC)


class Period(NamedTuple):
    """One half-open span `[start_at, end_at)`, aware UTC."""

    start_at: datetime
    end_at: datetime


def duration_s(text: str) -> int:
    """
    Return the seconds of a duration such as `60s`, `5m`, `1h`, `30d`, `2w`.

    Raises:
        ValueError: *text* is not a positive whole number with a unit of s, m, h, d or w.
    """
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text[:64]!r} is not a duration such as 60s, 5m, 1h, 30d or 2w")
    return int(match[1]) * _SECONDS_PER[match[2]]


def check_period(text: str) -> None:
    """Raise ValueError, saying what is allowed, unless *text* is a period of the grammar above."""
    if text in _CALENDAR or text in _ANNIVERSARY_MONTHS or text == "total":
        return
    duration = text.removesuffix(_ALIGNED)
    match = _DURATION.match(duration)
    if match is None or match[2] in ("sw" if duration == text else "swd"):
        raise ValueError(
            f"{text[:64]!r} is not a period: use day, week, month, quarter, year, anniversary, "
            "anniversary_quarter, anniversary_year, total, 30d, 5h (from the first use) "
            "or 5h_aligned (from midnight)"
        )
    if match[2] in "mh" and duration_s(duration) > 86_400:
        raise ValueError(f"{text[:64]!r} is longer than a day: state it in days, e.g. 30d")
    if match[2] == "d" and int(match[1]) > _DAYS_MAX:
        raise ValueError(f"{text[:64]!r} is longer than {_DAYS_MAX} days: use total")


def aligned(period: str) -> str:
    """Return the period of this length that the clock knows: `5h_aligned` for `5h`, all others as they are."""
    return period + _ALIGNED if first_use_s(period) else period


def first_use_s(period: str) -> int:
    """
    Return the seconds of a period that opens with the first use (`5h`, `90m`); 0 for all others.

    Such a period has no place of its own on the calendar: the ledger remembers when each one opened
    (`domain.first_use`).
    """
    return duration_s(period) if period[-1:] in ("h", "m") and period[:1].isdigit() else 0


def period_of(
    at: datetime,
    period: str,
    *,
    time_zone: str = "UTC",
    week_start: str = "monday",
    anchor_at: datetime | None = None,
) -> Period:
    """
    Return the one period that holds *at*.

    Periods of one budget neither overlap nor leave gaps, so each instant belongs to exactly one.

    Args:
        at: An aware instant.
        period: A period of this module's grammar that does not open with the first use.
        time_zone: IANA name; calendar and anniversary periods begin at its local midnight or time.
        week_start: First day of a `week`.
        anchor_at: Where anniversary and `<n>d` periods count from.

    Raises:
        ValueError: *period* is not in the grammar, or opens with the first use.
    """
    if period == "total":
        return Period(EPOCH, FAR_FUTURE)
    if period in _CALENDAR:
        return _calendar_period(at, period, ZoneInfo(time_zone), WEEKDAYS.index(week_start))
    if period in _ANNIVERSARY_MONTHS:
        return _anniversary_period(at, anchor_at or EPOCH, ZoneInfo(time_zone), _ANNIVERSARY_MONTHS[period])
    check_period(period)
    if first_use_s(period):
        raise ValueError(f"{period!r} opens with the first use: no clock says when")
    width = timedelta(seconds=duration_s(period.removesuffix(_ALIGNED)))
    at = at.astimezone(UTC)
    if period.endswith(_ALIGNED):
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        start = midnight + (at - midnight) // width * width
        return Period(start, min(start + width, midnight + timedelta(days=1)))
    anchor = anchor_at or EPOCH
    start = anchor + (at - anchor) // width * width
    return Period(start, start + width)


def _calendar_period(at: datetime, period: str, zone: ZoneInfo, week_start: int) -> Period:
    # An instant in the second pass of an hour has fold=1, which must not reach the bounds made from it.
    local = at.astimezone(zone).replace(tzinfo=None, fold=0)
    start, end = _calendar_span(local, period, week_start)
    if _local_to_utc(end, zone) <= at:
        # Clocks went back over midnight (St. John's at 00:01, until 2011): the end of the local day came
        # twice, and the second time belongs to the period that had begun before the clocks went back.
        start, end = _calendar_span(end, period, week_start)
    return Period(_local_to_utc(start, zone), _local_to_utc(end, zone))


def _calendar_span(local: datetime, period: str, week_start: int) -> tuple[datetime, datetime]:
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return day, day + timedelta(days=1)
    if period == "week":
        start = day - timedelta(days=(day.weekday() - week_start) % 7)
        return start, start + timedelta(days=7)
    if period == "month":
        start = day.replace(day=1)
        return start, (start + timedelta(days=32)).replace(day=1)
    if period == "quarter":
        start = day.replace(month=day.month - (day.month - 1) % 3, day=1)
        return start, _plus_months(start, 3)
    start = day.replace(month=1, day=1)
    return start, start.replace(year=start.year + 1)


def _anniversary_period(at: datetime, anchor: datetime, zone: ZoneInfo, step: int) -> Period:
    """Return the period of *step* months that holds *at*; each bound is a whole number of steps from the anchor."""
    local_anchor = anchor.astimezone(zone).replace(tzinfo=None)
    local = at.astimezone(zone).replace(tzinfo=None)
    months = (local.year - local_anchor.year) * 12 + local.month - local_anchor.month
    months -= months % step
    # The day of the month may lie ahead of *at*: then the period began one step earlier.
    while _local_to_utc(_plus_months(local_anchor, months), zone) > at:
        months -= step
    while _local_to_utc(_plus_months(local_anchor, months + step), zone) <= at:
        months += step
    return Period(
        _local_to_utc(_plus_months(local_anchor, months), zone),
        _local_to_utc(_plus_months(local_anchor, months + step), zone),
    )


def _plus_months(local: datetime, months: int) -> datetime:
    year, month0 = divmod(local.year * 12 + local.month - 1 + months, 12)
    day = min(local.day, calendar.monthrange(year, month0 + 1)[1])
    return local.replace(year=year, month=month0 + 1, day=day)


def _local_to_utc(local: datetime, zone: ZoneInfo) -> datetime:
    # A local time that a clock change skips is read with the offset before the gap; one that comes twice
    # means the first (fold=0), or the anchor's. One local time is one instant, so consecutive periods meet.
    return local.replace(tzinfo=zone).astimezone(UTC)
