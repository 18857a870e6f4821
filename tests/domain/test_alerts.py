"""Alerts: each rule speaks from its threshold on, names the figure, and says nothing below."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.alerts import (
    Thresholds,
    budget_alert,
    error_rate_alert,
    expiry_alert,
    idle_alert,
    latency_alert,
    percent_hundredths,
    utilisation_alert,
)

NOW = datetime(2026, 3, 16, 12, tzinfo=UTC)
START, END = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("errors", "priority"), [(0, None), (49, None), (50, "medium"), (199, "medium"), (200, "high")]
)
def test_error_rate_speaks_from_5_percent_and_is_high_from_20(errors: int, priority: str | None) -> None:
    alert = error_rate_alert(1000, errors)
    assert (alert and alert.priority) == priority


def test_error_rate_names_the_figure_and_advises_for_the_leading_status() -> None:
    alert = error_rate_alert(1200, 60, leading_status=429)
    assert alert is not None
    assert alert.message == "Error rate is 5%: 60 of 1200 requests failed"
    assert alert.advice == "Back off on 429 responses: wait as long as Retry-After says"


def test_advice_differs_by_status() -> None:
    """Advice that is the same whatever failed would be filler."""
    alerts = [error_rate_alert(10, 5, leading_status=status) for status in (None, 400, 401, 402, 429, 500)]
    assert len({alert.advice for alert in alerts if alert}) == 6


@pytest.mark.parametrize(
    ("now_ms", "before_ms", "speaks"),
    [
        (200.0, 100.0, True),
        (199.9, 100.0, False),
        (None, 100.0, False),
        (200.0, None, False),
        (0.0, 0.0, False),
    ],
)
def test_latency_speaks_when_doubled(now_ms: float | None, before_ms: float | None, speaks: bool) -> None:
    alert = latency_alert(now_ms, before_ms)
    assert (alert is not None) == speaks
    if alert is not None:
        assert alert.message == "Average latency is 200 ms, 2 times the 100 ms of the window before"


@pytest.mark.parametrize(
    ("used", "priority"), [(239, None), (240, "medium"), (284, "medium"), (285, "high"), (300, "high")]
)
def test_utilisation_speaks_from_80_percent_and_is_high_from_95(used: int, priority: str | None) -> None:
    alert = utilisation_alert("requests per minute", used, 300)
    assert (alert and alert.priority) == priority


def test_utilisation_names_what_is_left() -> None:
    alert = utilisation_alert("requests per minute", 270, 300)
    assert alert is not None
    assert alert.message == "270 of 300 requests per minute are used: 90%"
    assert "30 more fit" in alert.advice
    assert utilisation_alert("requests per minute", 270, None) is None


@pytest.mark.parametrize(("used", "priority"), [(10, None), (80, "medium"), (95, "high")])
def test_a_nearly_used_up_budget_speaks(used: int, priority: str | None) -> None:
    alert = budget_alert("monthly", used, 100, start_at=START, end_at=END, now=NOW)
    assert (alert and alert.priority) == priority


def test_a_budget_that_runs_out_early_at_its_pace_speaks() -> None:
    """60 % after half of the month: it ends on the 26th."""
    alert = budget_alert("monthly", 60, 100, start_at=START, end_at=END, now=NOW)
    assert alert is not None
    assert alert.message == (
        "Budget monthly is 60% used and runs out at 2026-03-26T20:00:00Z, "
        "before its period ends at 2026-04-01T00:00:00Z"
    )
    assert budget_alert("monthly", 49, 100, start_at=START, end_at=END, now=NOW) is None
    first_day = START + timedelta(days=1)
    assert budget_alert("monthly", 50, 100, start_at=START, end_at=END, now=first_day) is None


@pytest.mark.parametrize(
    ("days", "speaks"), [(-1, False), (0, False), (1, True), (7, True), (8, False), (None, False)]
)
def test_a_key_that_expires_within_7_days_speaks(days: int | None, speaks: bool) -> None:
    expires_at = None if days is None else NOW + timedelta(days=days)
    alert = expiry_alert("Production", expires_at, now=NOW)
    assert (alert is not None) == speaks
    if alert is not None:
        assert alert.message.startswith(f"Key Production expires in {days} day")


def test_an_idle_key_speaks_from_30_days() -> None:
    made = NOW - timedelta(days=90)
    assert idle_alert("Old", NOW - timedelta(days=29), made, now=NOW) is None
    used = idle_alert("Old", NOW - timedelta(days=30), made, now=NOW)
    never = idle_alert("Old", None, made, now=NOW)
    assert used is not None
    assert used.message == "Key Old was last used 30 days ago"
    assert never is not None
    assert never.message == "Key Old was never used in the 90 days since it was made"


@given(st.integers(1, 10**12), st.data())
def test_a_share_and_its_rest_add_up(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole))
    share = percent_hundredths(part, whole)
    assert 0 <= share <= 10_000
    assert abs(share - 10_000 * part / whole) <= 0.500001


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 100))
def test_more_use_never_silences_an_alert(used: int, allowed: int, threshold: int) -> None:
    thresholds = Thresholds(utilisation_percent=threshold)
    if utilisation_alert("requests", used, allowed, thresholds=thresholds):
        assert utilisation_alert("requests", used + 1, allowed, thresholds=thresholds)
