"""Money is what people wrote, to the nano, or it is refused with words that say what to write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.money import NANOS_MAX, format_nanos
from tollkeeper.domain.money_fields import (
    BadMoney,
    cent_warning,
    nanos_of_amount,
    nanos_of_money,
    nanos_of_nanos,
    stated_nanos,
    told,
    twin_of,
    with_nanos,
)

nanos = st.integers(-NANOS_MAX, NANOS_MAX)


@given(nanos)
def test_money_is_read_back_as_it_was_written(amount):
    """Decimal text, whole nanos and their text are the same amount, exactly."""
    text = format_nanos(amount)
    assert nanos_of_money("amount", text) == nanos_of_amount("amount", text) == amount
    assert nanos_of_nanos("amount_nanos", amount) == nanos_of_nanos("amount_nanos", str(amount)) == amount
    assert nanos_of_amount("amount", str(amount)) == nanos_of_amount("amount", amount) == amount


def test_a_text_of_digits_is_money_where_the_name_says_so_and_nanos_where_answers_have_it():
    assert nanos_of_money("price", "25") == 25 * 10**9
    assert nanos_of_amount("amount", "25") == 25
    assert nanos_of_amount("amount", "25.") == nanos_of_amount("amount", "25.00") == 25 * 10**9


@pytest.mark.parametrize("read", [nanos_of_money, nanos_of_nanos, nanos_of_amount])
@pytest.mark.parametrize("value", [25.0, 0.1, 1e300, float("nan"), True, None, [1], {}])
def test_a_float_is_refused_and_the_text_is_named(read, value):
    with pytest.raises(BadMoney) as refused:
        read("budgets[0].amount", value)
    assert refused.value.field == "budgets[0].amount"
    assert "nanos" in str(refused.value)
    if value == 25.0:
        assert 'amount = "25.00"' in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "-", ".", "1e3", "1,000.00", "0x10", "12.0000000001", "9" * 30, "١", "25 "]
)
def test_what_is_no_amount_is_refused(text):
    for read in (nanos_of_money, nanos_of_amount):
        with pytest.raises(BadMoney, match=r"25\.00"):
            read("amount", text)


def test_a_field_of_nanos_takes_no_decimal_and_names_its_twin():
    with pytest.raises(BadMoney, match=r'price = "25\.00"'):
        nanos_of_nanos("price_nanos", "25.00")
    assert twin_of("prompt_nanos_per_million") == "prompt_per_million"
    assert twin_of("cost_nanos") == "cost"


def test_a_field_and_its_twin_say_the_same_or_one_is_left_out():
    assert stated_nanos({}, "cost_nanos") is None
    assert stated_nanos({"cost": None, "cost_nanos": None}, "cost_nanos") is None
    assert stated_nanos({"cost": "0"}, "cost_nanos") == 0
    assert stated_nanos({"cost": "1.50", "cost_nanos": "1500000000"}, "cost_nanos") == 1_500_000_000
    with pytest.raises(BadMoney, match="leave one of them out"):
        stated_nanos({"cost": "1.50", "cost_nanos": 15}, "cost_nanos")
    plain = with_nanos({"cost": "1.50", "id": "e"}, ("cost_nanos", "estimated_cost_nanos"))
    assert plain == {"cost_nanos": 1_500_000_000, "id": "e"}


@given(nanos)
def test_less_than_a_cent_is_warned_of(amount):
    warned = cent_warning("amount", amount) is not None
    assert warned == (amount != 0 and abs(amount) < 10_000_000)


def test_people_read_money():
    assert told(630_000, "nanos") == "0.00063"
    assert told(25 * 10**9, "nanos") == "25.00"
    assert told(25, "requests") == "25 requests"
