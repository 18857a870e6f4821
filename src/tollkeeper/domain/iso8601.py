"""
Dates and times as ISO 8601 writes them: extended and basic forms, with less precision, by week or by day of the year.

Left out are the forms that ISO 8601 has by mutual agreement only, such as years of more than four digits.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Final

_DATE: Final = re.compile(
    r"(?P<year>\d{4})"
    r"(?:-(?P<month>\d\d)(?:-(?P<day>\d\d))?|(?P<month_basic>\d\d)(?P<day_basic>\d\d)"
    r"|-?W(?P<week>\d\d)(?:-?(?P<weekday>[1-7]))?|-?(?P<ordinal>\d{3}))?\Z",
    re.ASCII,
)
_TIME: Final = re.compile(
    r"(?P<hour>\d\d)(?:(?P<colon>:?)(?P<minute>\d\d)(?:(?P=colon)(?P<second>\d\d))?)?(?:[.,](?P<part>\d{1,64}))?"
    r"(?:Z|(?P<sign>[+\-\N{MINUS SIGN} ])(?P<off_hours>\d\d)(?::?(?P<off_minutes>\d\d))?)?\Z",
    re.ASCII,
)


def parse_instant(text: str) -> datetime:
    """
    Return the instant of an ISO 8601 date-time; of a date, its midnight; of a month or year, its first. UTC without an
    offset.

    A fraction is one of the last part that is given; what is finer than a microsecond is dropped. `24:00` is the next
    midnight, and second 60, a leap second, the next minute. A blank in the place of the offset's sign is a `+` that a
    URL turned into it.

    Raises:
        ValueError: It is none.
        OverflowError: In UTC it is before the year 1 or after the year 9999.
    """
    date_text, mark, time_text = text.upper().partition("T")
    day = _date_of(date_text, is_whole=bool(mark))
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return midnight + _since_midnight(time_text) if mark else midnight


def _date_of(text: str, *, is_whole: bool) -> date:
    """Return the first day of a date; of one that *is_whole*, since a time follows, the day itself."""
    match = _DATE.match(text)
    if match is None:
        raise ValueError(f"not a date: {text[:64]!r}")
    if is_whole and not any(match[name] for name in ("day", "day_basic", "weekday", "ordinal")):
        raise ValueError(f"a time must follow a day: {text[:64]!r}")
    year = int(match["year"])
    if match["week"]:
        if text.count("-") not in ((0, 2) if match["weekday"] else (0, 1)):
            raise ValueError(f"basic and extended form are mixed: {text[:64]!r}")
        return date.fromisocalendar(year, int(match["week"]), int(match["weekday"] or 1))
    if match["ordinal"]:
        day = date(year, 1, 1) + timedelta(days=int(match["ordinal"]) - 1)
        if day.year != year:
            raise ValueError(f"that year has no such day: {text[:64]!r}")
        return day
    return date(
        year, int(match["month"] or match["month_basic"] or 1), int(match["day"] or match["day_basic"] or 1)
    )


def _since_midnight(text: str) -> timedelta:
    """Return what a time of day with its offset adds to the midnight of its date in UTC."""
    match = _TIME.match(text)
    if match is None:
        raise ValueError(f"not a time: {text[:64]!r}")
    hour, minute, second = int(match["hour"]), int(match["minute"] or 0), int(match["second"] or 0)
    off_hours, off_minutes = int(match["off_hours"] or 0), int(match["off_minutes"] or 0)
    if hour > 24 or minute > 59 or second > 60 or off_hours > 23 or off_minutes > 59:
        raise ValueError(f"no such time of day: {text[:64]!r}")
    unit_us = 1_000_000 if match["second"] else 60_000_000 if match["minute"] else 3_600_000_000
    part = match["part"] or "0"
    part_us = Fraction(int(part), 10 ** len(part)) * unit_us
    at = timedelta(hours=hour, minutes=minute, seconds=second, microseconds=int(part_us))
    if hour == 24 and at != timedelta(days=1):
        raise ValueError(f"only 24:00 itself is a time of day: {text[:64]!r}")
    offset = timedelta(hours=off_hours, minutes=off_minutes)
    if match["sign"] not in ("-", "\N{MINUS SIGN}"):
        offset = -offset
    if second == 60 and (timedelta(hours=hour, minutes=minute + 1) + offset) % timedelta(days=1):
        raise ValueError(f"a leap second is at 23:59:60 UTC only: {text[:64]!r}")
    return at + offset
