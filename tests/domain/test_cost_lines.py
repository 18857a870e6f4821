"""The lines of a cost add up to what is charged, whatever is used and whatever it is priced by."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.cost_lines import REQUEST, cost_lines, rounded_nanos
from tollkeeper.domain.pricing import PLAIN_CLASSES, ModelPrice, cost_nanos, exact_price, scaled
from tollkeeper.domain.quantities import MICROS, TOKEN_CLASSES
from tollkeeper.domain.requests import Usage

RATES = st.fractions(min_value=0, max_value=10**12, max_denominator=7_200)
NAMES = ("prompt_tokens", "completion_tokens", *PLAIN_CLASSES, "seconds", "images")


@st.composite
def prices(draw: st.DrawFn) -> ModelPrice:
    overs = sorted(draw(st.sets(st.integers(1, 200_000), max_size=2)))
    tiers = [(over, draw(st.dictionaries(st.sampled_from(NAMES), RATES, max_size=5))) for over in [0, *overs]]
    price = exact_price("p", draw(RATES), tiers, draw(st.just({}) | st.just({"seconds": 60 * MICROS})))
    factor = draw(st.none() | st.fractions(min_value=0, max_value=3, max_denominator=1_000))
    return price if factor is None else scaled(price, factor, "m", draw(st.integers(0, 10**9)))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    counts = st.integers(0, 10**6)
    tokens = draw(
        st.dictionaries(st.sampled_from(TOKEN_CLASSES), counts.map(lambda n: n * MICROS), max_size=3)
    )
    units = draw(st.dictionaries(st.sampled_from(["seconds", "images"]), st.integers(1, 10**12), max_size=2))
    return Usage(*(draw(counts) for _ in range(4)), quantities={**tokens, **units})


@given(prices(), usages())
def test_they_add_up_to_what_is_charged(price: ModelPrice, usage: Usage) -> None:
    lines = cost_lines(price, usage)
    assert rounded_nanos(lines) == cost_nanos(price, usage)[0]
    for line in lines:
        assert line.nanos == line.amount * line.rate_nanos / (1 if line.of == REQUEST else 10**6) > 0


def test_half_a_nano_is_rounded_up_once() -> None:
    price = exact_price(
        "p", Fraction(0), [(0, {"prompt_tokens": Fraction(250_000), "completion_tokens": Fraction(250_000)})]
    )
    lines = cost_lines(price, Usage(1, 0, 1))
    assert [line.nanos for line in lines] == [Fraction(1, 4), Fraction(1, 4)]
    assert rounded_nanos(lines) == 1 == cost_nanos(price, Usage(1, 0, 1))[0]
