"""Amounts are exact in both directions, and what cannot be exact is refused."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.money import NANOS_MAX, NANOS_PER_CENT, cents_half_up, format_nanos, parse_nanos

nanos = st.integers(-NANOS_MAX, NANOS_MAX) | st.integers(-(10**10), 10**10)


@given(nanos, st.integers(0, 9))
def test_what_is_shown_is_read_back_to_the_nano(amount, places_min):
    text = format_nanos(amount, places_min=places_min)
    assert parse_nanos(text) == amount
    assert Decimal(text) * 10**9 == amount
    assert len(text.partition(".")[2]) >= places_min


@given(nanos, st.integers(0, 40))
def test_trailing_zeros_change_nothing(amount, zeros):
    assert parse_nanos(format_nanos(amount) + "0" * zeros) == amount


@given(nanos, st.integers(0, 40), st.integers(1, 9))
def test_an_amount_finer_than_a_nano_is_refused_however_fine(amount, zeros, digit):
    """A decimal context of 28 digits would round the last digits away and accept."""
    text = format_nanos(amount, places_min=9) + "0" * zeros + str(digit)
    with pytest.raises(ValueError, match="finer than a nano"):
        parse_nanos(text)


@pytest.mark.parametrize(
    ("text", "amount"), [("12.50", 12_500_000_000), ("-.5", -500_000_000), ("3.", 3 * 10**9)]
)
def test_amounts_are_decimals_of_whole_units(text, amount):
    assert parse_nanos(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "abc",
        "1,50",
        "1_000",
        " 1",
        "1\n",
        "1e3",
        "1e999999",
        "NaN",
        "Infinity",
        "0x10",
        "١",
        "$1",
    ],
)
def test_what_is_no_plain_decimal_is_refused(text):
    with pytest.raises(ValueError, match="is not a decimal amount"):
        parse_nanos(text)


@pytest.mark.parametrize("text", [format_nanos(NANOS_MAX + 1), format_nanos(-NANOS_MAX - 1), "9" * 10_000])
def test_an_amount_beyond_64_bits_is_refused(text):
    with pytest.raises(ValueError, match="does not fit"):
        parse_nanos(text)


@given(nanos | st.integers(-1000, 1000).map(lambda halves: halves * NANOS_PER_CENT // 2))
def test_cents_are_rounded_half_away_from_zero(amount):
    """A refund shows the mirror image of its charge."""
    assert cents_half_up(amount) == (Decimal(amount) / NANOS_PER_CENT).to_integral_value(ROUND_HALF_UP)
    assert cents_half_up(-amount) == -cents_half_up(amount)
