"""Other names of models: the price is that of what they stand for."""

from __future__ import annotations

from typing import Final

import pytest

from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import Invalid, Markup, ModelAlias, Price
from tollkeeper.domain.model_aliases import CHAIN_MAX, alias_target
from tollkeeper.domain.pricing import ModelPrice
from tollkeeper.errors import BadParameter

AT_US: Final = 1_772_323_200_000_000
"""2026-03-01."""


def alias(name: str, target: str) -> ModelAlias:
    return ModelAlias(**{"id": name, "is": target})


def priced(book: PriceBook, model: str, account_id: str = "", variant: str = "") -> ModelPrice | None:
    return book.price_of(model, account_id=account_id, at_us=AT_US, variant=variant)


def prompt_rate(price: ModelPrice | None) -> float | None:
    return None if price is None else price.tiers[0].prompt / price.divisor


def test_an_alias_has_the_listed_price_of_what_it_stands_for() -> None:
    book = PriceBook(
        [], aliases=[alias("my-deployment", "azure/gpt-4o"), alias("team/chat:1", "my-deployment")]
    )
    listed = priced(book, "azure/gpt-4o")
    assert listed is not None
    assert priced(book, "my-deployment") == priced(book, "team/chat:1") == listed
    assert priced(book, "My-Deployment") is None
    assert priced(book, "my-deployment", variant="nightly") is None


def test_own_prices_of_the_alias_win_over_those_of_what_it_stands_for() -> None:
    prices = [
        Price(id="of-target", model="gpt-4o", prompt_nanos_per_million=1),
        Price(id="of-alias", model="chat", account="a", prompt_nanos_per_million=2),
    ]
    book = PriceBook(prices, aliases=[alias("chat", "gpt-4o")], built_in=False)
    assert prompt_rate(priced(book, "chat", "a")) == 2
    assert prompt_rate(priced(book, "chat", "b")) == prompt_rate(priced(book, "gpt-4o", "a")) == 1


def test_a_mark_up_is_found_by_either_name() -> None:
    prices = [Price(id="p", model="gpt-4o", prompt_nanos_per_million=100)]
    for pattern, rate in (("gpt-*", 150), ("chat", 150), ("other-*", 100)):
        markups = [Markup(id="m", model=pattern, factor="1.5")]
        book = PriceBook(prices, markups, [alias("chat", "gpt-4o")], built_in=False)
        assert prompt_rate(priced(book, "chat")) == rate


def test_aliases_that_name_each_other_have_no_price() -> None:
    book = PriceBook([], aliases=[alias("a", "b"), alias("b", "a")])
    assert priced(book, "a") is None
    long = {f"n{index}": f"n{index + 1}" for index in range(2 * CHAIN_MAX)}
    assert alias_target(long, "n0") == f"n{CHAIN_MAX}"


def test_a_book_with_other_entries_puts_them_over_its_own() -> None:
    book = PriceBook([Price(id="p", model="m", prompt_nanos_per_million=1)], built_in=False)
    entries = [Price(id="p", model="m", prompt_nanos_per_million=5), alias("chat", "m")]
    other = book.with_entries(entries)
    assert prompt_rate(priced(other, "m")) == prompt_rate(priced(other, "chat")) == 5
    assert prompt_rate(priced(book, "m")) == 1
    assert priced(book, "chat") is None


@pytest.mark.parametrize(
    ("name", "target", "field"),
    [
        ("a", "a", "is"),
        (" a", "b", "id"),
        ("a", "b\n", "is"),
        ("a\0b", "c", "id"),
        ("gpt-*", "b", "id"),
        ("a", "gpt-*", "is"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, target: str, field: str) -> None:
    with pytest.raises(Invalid) as raised:
        alias(name, target).check()
    assert raised.value.field == field


def test_the_file_has_a_table_of_aliases() -> None:
    (entry,) = parse_declaration('[[models]]\nid = "team/chat:1"\nis = "azure/gpt-4o"\n')
    assert entry == alias("team/chat:1", "azure/gpt-4o")
    with pytest.raises(BadParameter, match=r"models\[0\].is"):
        parse_declaration('[[models]]\nid = "x"\n')
    with pytest.raises(BadParameter, match="did you mean is"):
        parse_declaration('[[models]]\nid = "x"\niss = "y"\n')
