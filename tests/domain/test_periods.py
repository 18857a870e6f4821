"""Each instant belongs to exactly one period of a budget, in every zone and over every clock change."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tollkeeper.domain.periods import (
    WEEKDAYS,
    Period,
    aligned,
    check_period,
    duration_s,
    first_use_s,
    period_of,
)

MICROSECOND = timedelta(microseconds=1)
CALENDAR = ("day", "week", "month", "quarter", "year")
ANNIVERSARIES = {"anniversary": 1, "anniversary_quarter": 3, "anniversary_year": 12}
FIRST_USE = ("1m", "7m", "90m", "1440m", "1h", "5h", "7h", "12h", "24h")

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "America/Sao_Paulo",  # Until 2019 clocks changed at midnight: some days began at 01:00.
    "America/St_Johns",  # Until 2011 they went back from 00:01 to 23:01 of the day before.
    "America/Havana",  # They go back from 01:00 to 00:00: midnight comes twice.
    "Pacific/Apia",  # 30 December 2011 did not take place.
    "Asia/Khandyga",  # 2004 began at 01:00.
    "Australia/Lord_Howe",  # Half an hour.
    "Africa/Casablanca",  # Four changes a year.
)

zones = st.sampled_from(ZONES)
instants = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
counted = st.builds("{}{}".format, st.integers(1, 400), st.just("d")) | st.sampled_from(
    ["1d", "30d", "36500d", *(f"{period}_aligned" for period in FIRST_USE)]
)
any_period = st.sampled_from([*CALENDAR, *ANNIVERSARIES]) | counted


def _clock_changes(zone_name: str) -> list[datetime]:
    """Return the UTC days in 2000 to 2015 at whose end the zone's offset is another than at their start."""
    zone = ZoneInfo(zone_name)
    days = [datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(16 * 365)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    changed = [before != after for before, after in pairwise(offsets)]
    return [day for day, change in zip(days, changed, strict=False) if change]


def _check_in_one_period(at: datetime, period: Period, again) -> None:
    assert period.start_at <= at < period.end_at
    assert period.start_at.tzinfo is period.end_at.tzinfo is UTC
    assert again(period.start_at) == period, "its first instant is in it"
    assert again(period.end_at - MICROSECOND) == period, "its last instant is in it"
    assert again(period.end_at).start_at == period.end_at, "the next one meets it"
    assert again(period.start_at - MICROSECOND).end_at == period.start_at, "the one before meets it"


@given(instants, any_period, zones, st.sampled_from(WEEKDAYS), st.none() | instants)
@example(datetime(2003, 10, 25, 17, 1, tzinfo=UTC), "year", "Asia/Khandyga", "monday", None)
@example(datetime(2010, 11, 7, 2, 31, tzinfo=UTC), "day", "America/St_Johns", "monday", None)
def test_every_instant_is_in_exactly_one_period(at, period, zone, week_start, anchor_at):
    def again(instant: datetime) -> Period:
        return period_of(instant, period, time_zone=zone, week_start=week_start, anchor_at=anchor_at)

    _check_in_one_period(at, again(at), again)


@pytest.mark.parametrize("zone", ZONES)
def test_periods_meet_around_every_clock_change(zone):
    """Random instants rarely hit the hours that come twice or not at all."""
    for day in _clock_changes(zone):
        for minutes in range(-60, 25 * 60, 29):
            at = day + timedelta(minutes=minutes, seconds=30)
            for period in CALENDAR:
                found = period_of(at, period, time_zone=zone)
                assert found.start_at <= at < found.end_at
                assert period_of(found.end_at, period, time_zone=zone).start_at == found.end_at


@given(instants, st.sampled_from(CALENDAR), zones, st.sampled_from(WEEKDAYS))
def test_calendar_periods_begin_at_a_local_midnight(at, period, zone, week_start):
    start = period_of(at, period, time_zone=zone, week_start=week_start).start_at
    local = start.astimezone(ZoneInfo(zone))
    day_before = (start - MICROSECOND).astimezone(ZoneInfo(zone))
    assert local.date() > day_before.date(), "a local day begins here"
    assert (local.hour, local.minute) == (0, 0) or local.utcoffset() > day_before.utcoffset(), (
        "or it was skipped"
    )
    if period == "week":
        assume(zone != "Pacific/Apia")  # Where one Friday is missing.
        assert WEEKDAYS[local.weekday()] == week_start
    if period in ("month", "quarter", "year"):
        assert local.day == 1
    if period == "quarter":
        assert local.month in (1, 4, 7, 10)
    if period == "year":
        assert local.month == 1


@pytest.mark.parametrize(
    ("at", "hours"),
    [("2026-03-29T12:00+02:00", 23), ("2026-10-25T12:00+01:00", 25), ("2026-07-01T12:00+02:00", 24)],
)
def test_a_day_has_as_many_hours_as_its_clock_shows(at, hours):
    period = period_of(datetime.fromisoformat(at), "day", time_zone="Europe/Berlin")
    assert period.end_at - period.start_at == timedelta(hours=hours)


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1)).map(
        lambda at: at.replace(month=(1, 3, 5, 7, 8, 10, 12)[at.month % 7], day=29 + at.day % 3)
    ),
    st.integers(-40, 200),
    st.sampled_from(sorted(ANNIVERSARIES)),
)
def test_an_anniversary_on_a_day_that_a_month_lacks_is_its_last_day(anchor, steps, period):
    """31 January, 28 February, 31 March: the anchor's day is not forgotten on the way."""
    anchor = anchor.replace(tzinfo=UTC)
    months = steps * ANNIVERSARIES[period]
    year, month0 = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    day = min(anchor.day, calendar.monthrange(year, month0 + 1)[1])
    expected = anchor.replace(year=year, month=month0 + 1, day=day)
    assert period_of(expected, period, anchor_at=anchor).start_at == expected
    assert period_of(expected - MICROSECOND, period, anchor_at=anchor).end_at == expected


@pytest.mark.parametrize(
    ("anchor", "period", "bounds"),
    [
        (
            "2024-02-29",
            "anniversary_year",
            ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"],
        ),
        (
            "2025-11-30",
            "anniversary_quarter",
            ["2025-11-30", "2026-02-28", "2026-05-30", "2026-08-30", "2026-11-30"],
        ),
        ("2026-01-31", "anniversary", ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]),
        ("2026-01-31", "quarter", ["2026-01-01", "2026-04-01", "2026-07-01", "2026-10-01", "2027-01-01"]),
        ("2026-01-31", "year", ["2026-01-01", "2027-01-01", "2028-01-01"]),
    ],
)
def test_quarters_and_years_are_those_of_the_calendar_or_of_the_anchor(anchor, period, bounds):
    days = [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in bounds]
    anchor_at = datetime.fromisoformat(anchor).replace(tzinfo=UTC)
    for start_at, end_at in pairwise(days):
        for at in (start_at, start_at + (end_at - start_at) / 2, end_at - MICROSECOND):
            assert period_of(at, period, anchor_at=anchor_at) == (start_at, end_at)


def test_a_quarter_begins_at_midnight_of_its_zone():
    period = period_of(datetime(2026, 5, 1, tzinfo=UTC), "quarter", time_zone="America/New_York")
    # Of New York's summer, at both ends.
    assert period == (datetime(2026, 4, 1, 4, tzinfo=UTC), datetime(2026, 7, 1, 4, tzinfo=UTC))


def test_an_anniversary_keeps_its_local_time_over_a_clock_change():
    anchor = datetime(2026, 3, 10, 9, tzinfo=ZoneInfo("Europe/Berlin"))
    period = period_of(
        datetime(2026, 4, 1, tzinfo=UTC), "anniversary", time_zone="Europe/Berlin", anchor_at=anchor
    )
    assert period == (datetime(2026, 3, 10, 8, tzinfo=UTC), datetime(2026, 4, 10, 7, tzinfo=UTC))


@pytest.mark.parametrize("text", FIRST_USE)
def test_spans_of_hours_and_minutes_open_with_the_first_use(text):
    """No clock says when: where nobody remembers the first use, the period is refused instead of cut at midnight."""
    check_period(text)
    assert first_use_s(text) == duration_s(text)
    with pytest.raises(ValueError, match="first use"):
        period_of(datetime(2026, 1, 1, tzinfo=UTC), text)


@given(any_period | st.just("total"))
def test_all_other_periods_are_known_to_the_clock(text):
    assert first_use_s(text) == 0
    assert aligned(text) == text


@given(instants, st.integers(1, 24))
def test_aligned_spans_of_hours_are_cut_at_midnight(at, hours):
    period = period_of(at, f"{hours}h_aligned")
    assert aligned(f"{hours}h") == f"{hours}h_aligned"
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    assert (period.start_at - midnight) % timedelta(hours=hours) == timedelta()
    assert period.end_at == min(period.start_at + timedelta(hours=hours), midnight + timedelta(days=1))


@given(instants, instants, st.integers(1, 36_500))
def test_day_spans_count_from_their_anchor(at, anchor, days):
    period = period_of(at, f"{days}d", anchor_at=anchor)
    assert (period.start_at - anchor) % timedelta(days=days) == timedelta()
    assert period.end_at - period.start_at == timedelta(days=days)


@given(instants, instants)
def test_total_never_changes(at, other):
    assert period_of(at, "total") == period_of(other, "total")


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("5m", 300), ("1h", 3600), ("30d", 2_592_000), ("2w", 1_209_600)]
)
def test_durations(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1h", "1.5h", "1", "h", "1y", " 1h", "1h\n", "1234567s", "١h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a duration"):
        duration_s(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "days",
        "Month",
        "1w",
        "60s",
        "0d",
        "25h",
        "1441m",
        "36501d",
        "999999d",
        "5 h",
        "month\n",
        "1d_aligned",
        "25h_aligned",
        "_aligned",
    ],
)
def test_what_is_no_period_is_refused_before_it_is_used(text):
    with pytest.raises(ValueError):
        check_period(text)
    with pytest.raises(ValueError):
        period_of(datetime(2026, 1, 1, tzinfo=UTC), text)


@given(any_period)
def test_periods_of_the_grammar_are_accepted(text):
    check_period(text)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert period_of(at, text).start_at <= at
