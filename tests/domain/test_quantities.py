"""Quantities are exact: what is stated comes back as the same decimal, and what cannot be kept is refused."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.quantities import (
    MICROS,
    QUANTITIES_MAX,
    QUANTITY_MICROS_MAX,
    QUANTITY_UNITS_MAX,
    TOKEN_CLASSES,
    TOKENS_MAX,
    BadQuantity,
    completion_tokens_of,
    parse_quantities,
    prompt_tokens_of,
    quantity_of_unit,
    quantity_text,
    tokens_of,
)
from tollkeeper.domain.requests import Usage


@given(st.integers(0, QUANTITY_MICROS_MAX))
@example(61_500_000)
@example(1)
@example(QUANTITY_MICROS_MAX)
def test_a_quantity_is_read_as_it_is_shown(micros: int) -> None:
    """As text and as a decimal, at every size."""
    text = quantity_text(micros)
    expected = {"seconds": micros} if micros else {}
    assert parse_quantities({"seconds": text}) == expected
    assert parse_quantities({"seconds": Decimal(text)}) == expected
    assert Decimal(text) * MICROS == micros


@given(st.integers(0, 10**15 - 1))
@example(100_000)
@example(10**14 + 1)
def test_a_float_is_read_as_its_shortest_text(micros: int) -> None:
    """Within the 15 digits that every float keeps, a JSON number says what it shows."""
    number = float(quantity_text(micros))
    assert parse_quantities({"seconds": number}).get("seconds", 0) == micros


@given(st.integers(-(10**18), -1))
def test_sums_below_zero_have_a_sign(micros: int) -> None:
    assert Decimal(quantity_text(micros)) * MICROS == micros


def test_zeros_and_nulls_are_left_out_and_names_are_in_order() -> None:
    stated = {"seconds": 1, "images": "0", "pages": None, "a": "0.000000", "bytes": 0.5}
    assert list(parse_quantities(stated).items()) == [("bytes", 500_000), ("seconds", 1_000_000)]


@pytest.mark.parametrize(
    ("stated", "field", "code"),
    [
        ({"Seconds": 1}, "quantities", "bad_value"),
        ({"": 1}, "quantities", "bad_value"),
        ({"1s": 1}, "quantities", "bad_value"),
        ({"a" * 41: 1}, "quantities", "bad_value"),
        ({"seconds\n": 1}, "quantities", "bad_value"),
        ({7: 1}, "quantities", "bad_value"),
        ({"seconds": -1}, "quantities.seconds", "out_of_range"),
        ({"seconds": "-0.5"}, "quantities.seconds", "out_of_range"),
        ({"seconds": -0.5}, "quantities.seconds", "out_of_range"),
        ({"seconds": QUANTITY_UNITS_MAX + 1}, "quantities.seconds", "out_of_range"),
        ({"seconds": f"{QUANTITY_UNITS_MAX}.000001"}, "quantities.seconds", "out_of_range"),
        ({"seconds": "9" * 5_000}, "quantities.seconds", "out_of_range"),
        ({"seconds": 1e300}, "quantities.seconds", "bad_value"),
        ({"seconds": "0.0000001"}, "quantities.seconds", "bad_value"),
        ({"seconds": 1e-7}, "quantities.seconds", "bad_value"),
        ({"seconds": 0.1 + 0.2}, "quantities.seconds", "bad_value"),
        ({"seconds": float("nan")}, "quantities.seconds", "bad_value"),
        ({"seconds": float("inf")}, "quantities.seconds", "bad_value"),
        ({"seconds": "1e3"}, "quantities.seconds", "bad_value"),
        ({"seconds": ""}, "quantities.seconds", "bad_value"),
        ({"seconds": "."}, "quantities.seconds", "bad_value"),
        ({"seconds": " 1"}, "quantities.seconds", "bad_value"),
        ({"seconds": "٣"}, "quantities.seconds", "bad_value"),
        ({"seconds": True}, "quantities.seconds", "wrong_type"),
        ({"seconds": [1]}, "quantities.seconds", "wrong_type"),
        ({"cache_write_tokens": "1.5"}, "quantities.cache_write_tokens", "bad_value"),
        ({"audio_prompt_tokens": TOKENS_MAX + 1}, "quantities.audio_prompt_tokens", "out_of_range"),
        ({f"n{index}": 1 for index in range(QUANTITIES_MAX + 1)}, "quantities", "out_of_range"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(stated: dict[Any, object], field: str, code: str) -> None:
    """Nothing is rounded, clamped or guessed; the error names the field."""
    words = {
        "bad_value": "is not a name of a quantity",
        "out_of_range": f"has {QUANTITIES_MAX + 1} names; it must have at most {QUANTITIES_MAX}",
    }
    with pytest.raises(BadQuantity, match=re.escape(field) if "." in field else words[code]) as raised:
        parse_quantities(stated)
    assert (raised.value.field, raised.value.code) == (field, code)


def test_the_most_that_is_allowed_is_taken() -> None:
    stated = {f"n{index}": QUANTITY_UNITS_MAX for index in range(QUANTITIES_MAX)}
    assert set(parse_quantities(stated).values()) == {QUANTITY_MICROS_MAX}
    assert parse_quantities({"a" * 40: "1."}) == {"a" * 40: MICROS}


@given(st.dictionaries(st.sampled_from([*TOKEN_CLASSES, "seconds", "own"]), st.integers(0, TOKENS_MAX)))
def test_token_classes_are_tokens_and_units_are_not(stated: dict[str, int]) -> None:
    quantities = parse_quantities(stated)
    total = sum(count for name, count in stated.items() if name in TOKEN_CLASSES)
    assert tokens_of(quantities) == total
    assert prompt_tokens_of(quantities) + completion_tokens_of(quantities) == total
    assert Usage(1, 2, 3, 4, quantities=quantities).tokens == 10 + total


def test_a_unit_names_a_quantity_only_with_a_good_name() -> None:
    assert quantity_of_unit("quantity.seconds") == "seconds"
    assert [quantity_of_unit(unit) for unit in ("seconds", "quantity.", "quantity.S", "tokens")] == [None] * 4
