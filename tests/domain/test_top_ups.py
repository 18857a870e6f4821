"""What top-ups add to a period follows from what was posted and used, whichever way one counts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.top_ups import TopUps, amount_text, parse_amount

OWN = 10
periods = st.integers(0, 6)
amounts = st.integers(1, 30)


def purse(
    once: list[tuple[int, int]], lasting: list[tuple[int, int]], used: dict[int, int], period: int
) -> int:
    """Spend unit by unit: first what the period has of its own, then what is of it alone, then the purse."""
    left = 0
    for number in range(period + 1):
        left += sum(amount for at, amount in lasting if at == number)
        if number == period:
            break
        alone = OWN + sum(amount for at, amount in once if at == number)
        for unit in range(used.get(number, 0)):
            if unit >= alone and left:
                left -= 1
    return left + sum(amount for at, amount in once if at == period)


@given(
    st.lists(st.tuples(periods, amounts), max_size=4),
    st.lists(st.tuples(periods, amounts), max_size=4),
    st.dictionaries(periods, st.integers(-5, 60), max_size=6),
    periods,
)
def test_what_is_added_is_what_a_purse_would_have(once, lasting, used, period):
    by_period: dict[int, int] = {}
    for at, amount in once:
        by_period[at] = by_period.get(at, 0) + amount
    top_ups = TopUps(by_period, tuple(sorted(lasting)), ((0, OWN),) if lasting else ())
    assert top_ups.added(period, OWN, used) == purse(once, lasting, used, period)


def test_a_changed_own_amount_changes_no_period_of_the_past():
    """Drawn in May was what went beyond May's 1.00, also when the budget has 3.00 since July."""
    top_ups = TopUps({}, ((5, 500),), ((5, 100), (7, 300)))
    assert top_ups.added(6, 300, {5: 250}) == 350
    assert top_ups.added(7, 300, {5: 250, 6: 100}) == 350
    assert top_ups.added(8, 300, {5: 250, 6: 100, 7: 310}) == 340


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("5.00", "nanos", 5_000_000_000),
        ("0.000000001", "nanos", 1),
        ("100", "requests", 100),
        ("7", "credits", 7),
        ("61.5", "quantity.seconds", 61_500_000),
        ("2", "quantity.images", 2_000_000),
    ],
)
def test_amounts_are_written_in_the_budgets_unit(text, unit, amount):
    assert parse_amount(text, unit) == amount
    assert parse_amount(amount_text(amount, unit), unit) == amount


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0", "nanos"),
        ("-5.00", "nanos"),
        ("0.0000000001", "nanos"),
        ("5,00", "nanos"),
        ("", "nanos"),
        ("1.5", "requests"),
        ("+1", "requests"),
        ("0", "requests"),
        ("٣", "requests"),
        (str(NANOS_MAX + 1), "tokens"),
        ("1.0000001", "quantity.seconds"),
        ("1e3", "quantity.seconds"),
        (" 1", "credits"),
    ],
)
def test_what_is_no_amount_is_refused(text, unit):
    with pytest.raises(ValueError):
        parse_amount(text, unit)
