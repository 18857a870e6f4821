"""The oracle's own arithmetic: against sums that were made by hand, and the same of each form of one request."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tollkeeper.prove.amounts import MODEL, Measures, draw_used, measures_of

USED: dict[str, Any] = {
    "tokens": {"prompt": 10, "cached_prompt": 20, "completion": 3, "reasoning": 4},
    "quantities": {"cache_write_tokens": 5, "seconds": "1.5", "images": 2},
}


def test_a_cost_is_rounded_once_with_and_without_the_mark_up() -> None:
    """
    17 per request, 92,812.500182 of tokens, 175,000 of seconds, 26,666,666.66… of images: 26,934,496.1668 nanos.

    Times 1.35, plus 3: 36,361,572.825.
    """
    assert measures_of({"model": MODEL, **USED}) == Measures(
        1, 36_361_573, 26_934_496, 42, 1_500_000, 2_000_000
    )


def test_a_stated_cost_is_the_cost() -> None:
    assert measures_of({"model": MODEL, "cost_nanos": 8, **USED}) == Measures(
        1, 8, 8, 42, 1_500_000, 2_000_000
    )
    assert measures_of(USED) == Measures(1, 0, 0, 42, 1_500_000, 2_000_000), "no model, no price"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (
            {
                "prompt_tokens": 30,
                "completion_tokens": 7,
                "total_tokens": 37,
                "prompt_tokens_details": {"cached_tokens": 20},
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            {"prompt": 10, "cached_prompt": 20, "completion": 3, "reasoning": 4},
        ),
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 0,
                "output_tokens": 7,
            },
            {"prompt": 10, "cached_prompt": 20, "completion": 7},
        ),
    ],
)
def test_a_providers_body_counts_as_its_tokens(usage: dict[str, Any], tokens: dict[str, int]) -> None:
    assert measures_of({"model": MODEL, "usage": usage}) == measures_of({"model": MODEL, "tokens": tokens})


def test_every_form_is_drawn() -> None:
    chance = Random(1)
    drawn = [draw_used(chance) for _ in range(50)]
    assert {"prompt_tokens", "input_tokens"} <= {name for body in drawn for name in body.get("usage", {})}
    assert any("quantities" in body for body in drawn)
    assert {body.get("usage_of") for body in drawn} == {None, "openai", "anthropic"}
