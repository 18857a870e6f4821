"""The price book finds the price that applies: the entry, the variant, the mark-up, at the instant."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalog.prices import ACCOUNTS, MODELS, NOON, PLANS, VARIANTS, instants, markup_lists, price_lists
from tollkeeper.catalog import listed_prices, price_book
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import Markup, Price
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.model_patterns import matches
from tollkeeper.domain.price_entries import variant_of
from tollkeeper.domain.pricing import (
    ModelPrice,
    cost_nanos,
    marked_up,
    price_of_entry,
    price_of_factor,
    select_markup,
    select_price,
)
from tollkeeper.domain.requests import Usage

NOON_US = to_us(NOON)
BUILT_IN = PriceBook([])

untimed = settings(deadline=None)
"""The first example imports the built-in list."""

LISTED_NAMES = {
    "anthropic/claude-sonnet-4-5": "claude-sonnet-4-5",
    "groq/whisper-large-v3": "whisper-large-v3",
}


def _price(model: str, **more: str) -> ModelPrice | None:
    return BUILT_IN.price_of(model, account_id="acme", at_us=NOON_US, **more)


def _by_the_rules(prices, markups, model, account_id, variant, plan, at_us) -> ModelPrice | None:
    """The price at one instant, without timelines: entry, else list; then the mark-up."""
    price = _before_markups(prices, model, account_id, variant_of(variant), at_us)
    names = {model, LISTED_NAMES.get(model, model)}
    of_model = [markup for markup in markups if any(matches(markup.model, name) for name in names)]
    markup = select_markup(of_model, account_id, plan, from_us(at_us))
    return price if price is None or markup is None else marked_up(price, markup)


def _before_markups(prices, model, account_id, variant, at_us) -> ModelPrice | None:
    entries = [
        entry
        for entry in prices
        if variant_of(entry.variant) == variant
        and (entry.model == model or (entry.factor is not None and matches(entry.model, model)))
        and (entry.model == model or "*" in entry.model)
    ]
    entry = select_price(entries, account_id, from_us(at_us))
    if entry is None:
        return BUILT_IN.price_of(model, account_id=account_id, at_us=at_us, variant=variant)
    if entry.factor is None:
        return price_of_entry(entry)
    below = _before_markups(prices, model, account_id, "", at_us)
    return None if below is None else price_of_factor(entry, below)


class TestCatalogEntries:
    @settings(deadline=None, max_examples=200)
    @given(
        price_lists(),
        markup_lists(),
        st.sampled_from(MODELS),
        st.sampled_from(ACCOUNTS),
        st.sampled_from(VARIANTS),
        st.sampled_from(PLANS),
        instants,
    )
    def test_the_book_finds_what_the_rules_select(
        self, prices, markups, model, account_id, variant, plan, at
    ):
        """`select_price` and `select_markup` are the rules; the book remembers their answers as spans of time."""
        book = BUILT_IN.replace(prices, markups)
        for instant in (at, *(entry.effective_at for entry in (*prices, *markups))):
            for at_us in (to_us(instant) - 1, to_us(instant)):
                expected = _by_the_rules(prices, markups, model, account_id, variant, plan, at_us)
                found = book.price_of(model, account_id=account_id, at_us=at_us, variant=variant, plan=plan)
                assert found == expected

    def test_replacing_the_entries_leaves_the_old_book_as_it_was(self):
        entry = Price(id="p1", model="gpt-4o", prompt_nanos_per_million=1)
        book = BUILT_IN.replace([entry])
        assert book.price_of("gpt-4o", account_id="acme", at_us=NOON_US) == price_of_entry(entry)
        assert _price("gpt-4o").version.startswith("genai-prices ")
        assert book.replace([]).price_of("gpt-4o", account_id="acme", at_us=NOON_US) == _price("gpt-4o")

    def test_nobodys_events_see_the_general_prices_only(self):
        own = Price(id="own", model="m", account="acme")
        general = Price(id="general", model="m")
        markup = Markup(id="own", account="acme", factor="2")
        book = PriceBook([own, general], [markup], built_in=False)
        assert book.price_of("m", account_id="", at_us=NOON_US) == price_of_entry(general)

    def test_without_the_built_in_list_only_entries_have_prices(self):
        assert PriceBook([], built_in=False).price_of("gpt-4o", account_id="acme", at_us=NOON_US) is None

    def test_what_is_remembered_is_bounded(self, monkeypatch):
        """Model names and variants are the callers': a flood of them must not fill the memory."""
        monkeypatch.setattr(price_book, "TIMELINES_MAX", 10)
        monkeypatch.setattr(listed_prices, "TIMELINES_MAX", 10)
        book = PriceBook([Price(id="p1", model="m")])
        for number in range(35):
            for model, variant in ((f"no-such-{number}", ""), ("gpt-5", f"no-such-{number}")):
                assert book.price_of(model, account_id="acme", at_us=NOON_US, variant=variant) is None
                assert len(book._timelines) <= 10
                assert len(book._built_in._timelines) <= 10
                assert len(book._built_in._of_models) <= 10
        assert book.price_of("m", account_id="acme", at_us=NOON_US).version == "prices:p1"

    def test_names_of_one_listed_model_share_one_price(self):
        assert _price("gpt-4o") is _price("openai/gpt-4o")


class TestVariants:
    @pytest.mark.parametrize("variant", ["batch", "BATCH", " batch"])
    def test_an_own_price_of_a_variant_wins_over_the_list(self, variant):
        entry = Price(id="p", model="gpt-5", variant="batch", prompt_nanos_per_million=1)
        book = BUILT_IN.replace([entry])
        assert book.price_of("gpt-5", account_id="a", at_us=NOON_US, variant=variant) == price_of_entry(entry)
        assert book.price_of("gpt-5", account_id="a", at_us=NOON_US) == _price("gpt-5")

    def test_an_own_price_without_a_variant_prices_no_variant(self):
        book = PriceBook([Price(id="p", model="m", prompt_nanos_per_million=2)], built_in=False)
        assert book.price_of("m", account_id="a", at_us=NOON_US, variant="standard") is not None
        assert book.price_of("m", account_id="a", at_us=NOON_US, variant="batch") is None

    def test_a_factor_is_of_the_price_that_the_account_has_without_the_variant(self):
        entries = [
            Price(id="half", model="*", variant="batch", factor="0.5"),
            Price(id="own", model="gpt-4o", account="acme", prompt_nanos_per_million=11 * 10**6),
        ]
        book = BUILT_IN.replace(entries)
        usage = Usage(1_000_000)
        for account_id, nanos in (("acme", 5_500_000), ("globex", 1_250_000_000)):
            price = book.price_of("gpt-4o", account_id=account_id, at_us=NOON_US, variant="batch")
            assert cost_nanos(price, usage) == (nanos, nanos)
            assert price.version == "prices:half"
        assert book.price_of("no-such-model", account_id="acme", at_us=NOON_US, variant="batch") is None

    def test_a_whole_name_wins_over_a_pattern(self):
        entries = [
            Price(id="all", model="*", variant="batch", factor="0.5", effective_at=NOON - timedelta(days=1)),
            Price(id="one", model="gpt-4o", variant="batch", factor="0.25"),
        ]
        book = BUILT_IN.replace(entries)
        assert book.price_of("gpt-4o", account_id="a", at_us=NOON_US, variant="batch").version == "prices:one"
        assert (
            book.price_of("gpt-4.1", account_id="a", at_us=NOON_US, variant="batch").version == "prices:all"
        )


class TestMarkups:
    def test_a_pattern_matches_the_name_of_the_list_too(self):
        """A seller in front of the name must not be a way around the mark-up."""
        book = BUILT_IN.replace([], [Markup(id="m", model="claude-*", factor="2")])
        price = book.price_of("anthropic/claude-sonnet-4-5", account_id="a", at_us=NOON_US)
        assert price.listed == _price("anthropic/claude-sonnet-4-5")
        assert price.version == f"{price.listed.version} markups:m"

    def test_usage_before_a_mark_up_keeps_its_price(self):
        book = BUILT_IN.replace([], [Markup(id="m", factor="2", effective_at=NOON)])
        before = book.price_of("gpt-4o", account_id="a", at_us=NOON_US - 1)
        assert before == _price("gpt-4o")
        assert book.price_of("gpt-4o", account_id="a", at_us=NOON_US).listed == before

    def test_a_model_without_a_price_has_none_with_a_mark_up(self):
        book = BUILT_IN.replace([], [Markup(id="m", factor="2", request_nanos=5)])
        assert book.price_of("no-such-model", account_id="a", at_us=NOON_US) is None
