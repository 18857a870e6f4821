"""Changes as people read them: money as money, in whatever part it is."""

from __future__ import annotations

from typing import Any

import pytest

from tollkeeper.catalog.change_text import change_texts, value_texts

TEN = {"name": "spend", "amount": "10000000000", "unit": "nanos", "per": None}
CALLS = {"name": "calls", "amount": 5, "unit": "requests"}


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ([TEN, CALLS], [{**TEN, "amount": 12_000_000_000}, CALLS], ["budgets.spend.amount 10.00 → 12.00"]),
        ([CALLS], [{**CALLS, "amount": 10_000_000_000}], ["budgets.calls.amount 5 → 10000000000"]),
        ([CALLS], [{**CALLS, "unit": "nanos"}], ["budgets.calls.unit requests → nanos"]),
        ([], [TEN], ["budgets.spend none → (amount 10.00, unit nanos)"]),
        ([TEN, CALLS], [TEN], ["budgets.calls (amount 5, unit requests) → none"]),
    ],
)
def test_parts_of_a_plan(old: Any, new: Any, texts: list[str]) -> None:
    assert list(change_texts("budgets", old, new)) == texts


def test_fields_of_an_entry() -> None:
    assert list(change_texts("price_nanos", "1000000000", 2_000_000_000)) == ["price 1.00 → 2.00"]
    assert list(change_texts("amount", 1, 2)) == ["amount 1 → 2"]
    assert list(change_texts("amount", 1_000_000_000, None, ("amount",))) == ["amount 1.00 → none"]
    assert list(change_texts("active", True, False)) == ["active true → false"]


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("price_nanos", 1_000_000, ["price 0.001"]),
        (
            "budgets",
            [TEN, CALLS],
            ["budgets.spend (amount 10.00, unit nanos)", "budgets.calls (amount 5, unit requests)"],
        ),
        ("models", ["gpt-4o", "o3"], ["models gpt-4o, o3"]),
        ("settings", {"zone": "UTC", "depth": {"days": 7}}, ["settings.zone UTC", "settings.depth.days 7"]),
        ("plan", None, []),
        ("tags", {}, []),
        ("amount", 0, ["amount 0"]),
    ],
)
def test_a_new_entry_shows_what_is_set(name: str, value: Any, texts: list[str]) -> None:
    assert list(value_texts(name, value)) == texts


def test_the_amount_of_a_new_budget_in_money_is_money() -> None:
    assert list(value_texts("amount", "25000000000", ("amount",))) == ["amount 25.00"]
