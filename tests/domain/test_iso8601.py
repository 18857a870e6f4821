"""What ISO 8601 writes for an instant is read, whatever its form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import effort
from tollkeeper.domain.iso8601 import parse_instant


@pytest.mark.parametrize(
    ("text", "instant"),
    [("20260415T000000Z", "2026-04-15T00:00:00"), ("20260415", "2026-04-15T00:00:00"),
     ("20260415T1030+0530", "2026-04-15T05:00:00"), ("2026-04-15T24:00:00Z", "2026-04-16T00:00:00"),
     ("2026-12-31T24:00Z", "2027-01-01T00:00:00"), ("20260415T24", "2026-04-16T00:00:00"),
     ("2026-04-15T24:00:00.000+02:00", "2026-04-15T22:00:00"), ("2026-04", "2026-04-01T00:00:00"),
     ("2026", "2026-01-01T00:00:00"), ("2026-04-15T10", "2026-04-15T10:00:00"),
     ("2026-04-15T10Z", "2026-04-15T10:00:00"), ("2026-04-15T10,5Z", "2026-04-15T10:30:00"),
     ("2026-04-15T10:30.5Z", "2026-04-15T10:30:30"), ("2026-W16-3", "2026-04-15T00:00:00"),
     ("2026W163T10Z", "2026-04-15T10:00:00"), ("2026-W16", "2026-04-13T00:00:00"),
     ("2026-105", "2026-04-15T00:00:00"), ("2026105T000000Z", "2026-04-15T00:00:00"),
     ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00"), ("2017-01-01T05:29:60+05:30", "2017-01-01T00:00:00"),
     ("2026-04-15t10:30:00z", "2026-04-15T10:30:00"), ("2026-04-15T10:30:00 02:00", "2026-04-15T08:30:00"),
     ("2026-04-15T10:30:00−02:00", "2026-04-15T12:30:00")],
)  # fmt: skip
def test_every_form_is_read(text: str, instant: str) -> None:
    assert parse_instant(text) == datetime.fromisoformat(instant).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "20", "202604", "2026-4-15", "2026-0415", "202604-15", "2026W16-3", "2026-W163", "2026-W54-1", "2026-W16-8",
     "2026-000", "2026-366", "2026-13", "20260431", "2026-04-15T25", "2026-04-15T24:01", "2026-04-15T24:00:00.1",
     "2026-04-15T10:3045", "2026-04-15T1030:45", "2026-04-15T10:60", "2026-04-15T10:30:61", "2026-04-15T10:30:60Z",
     "2026-04-15T10:30+24:00", "2026-04-15T", "2026-04-15Z", "2026-04T10:00", "+2026-04-15", "2026-04-15T10.Z"],
)  # fmt: skip
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        parse_instant(text)


@settings(max_examples=effort(40, 300), deadline=None)
@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)), st.integers(-1439, 1439))
def test_all_forms_of_an_instant_are_the_same(at: datetime, minutes: int) -> None:
    at = at.replace(microsecond=0)
    week, ordinal = at.isocalendar(), at.timetuple().tm_yday
    extended, basic = at.strftime("T%H:%M:%S"), at.strftime("T%H%M%S")
    sign, off = "-" if minutes < 0 else "+", abs(minutes)
    zone, zone_basic = f"{sign}{off // 60:02}:{off % 60:02}", f"{sign}{off // 60:02}{off % 60:02}"
    forms = [
        f"{at.year:04}-{at.month:02}-{at.day:02}{extended}{zone}",
        f"{at.year:04}{at.month:02}{at.day:02}{basic}{zone_basic}",
        f"{at.year:04}-{ordinal:03}{extended}{zone}",
        f"{week.year:04}W{week.week:02}{week.weekday}{basic}{zone_basic}",
    ]
    expected = at.replace(tzinfo=UTC) - timedelta(minutes=minutes)
    assert [parse_instant(form) for form in forms] == [expected] * len(forms)
