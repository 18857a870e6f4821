"""Costs are exact integers, rounded once; prices are chosen by owner first, then by date."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces import DATA, needs_traces
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Price
from tollkeeper.domain.events import TOKENS_MAX
from tollkeeper.domain.pricing import ModelPrice, Tier, cost_nanos, price_of_entry, select_price

rates = st.integers(0, PRICE_NANOS_MAX)
token_counts = st.integers(0, TOKENS_MAX) | st.integers(0, 5)


@st.composite
def model_prices(draw: st.DrawFn) -> ModelPrice:
    thresholds = draw(st.lists(st.integers(0, 2 * TOKENS_MAX), unique=True, max_size=3))
    tiers = [Tier(over, *(draw(rates) for _ in range(4))) for over in (0, *sorted(thresholds))]
    return ModelPrice("test", draw(st.integers(0, REQUEST_NANOS_MAX)), tuple(tiers))


class TestCost:
    @given(model_prices(), token_counts, token_counts, token_counts, token_counts)
    def test_it_is_the_exact_fraction_rounded_half_up(self, price, prompt, cached, completion, reasoning):
        """One rounding per record, and never by a float: else totals would not add up to the nano."""
        tier = [price.tiers[0], *(t for t in price.tiers[1:] if prompt + cached > t.prompt_tokens_over)][-1]
        exact = price.request_nanos + sum(
            Fraction(count * rate, 1_000_000)
            for count, rate in zip((prompt, cached, completion, reasoning), tier[1:], strict=True)
        )
        assert cost_nanos(
            price, prompt=prompt, cached_prompt=cached, completion=completion, reasoning=reasoning
        ) == floor(exact + Fraction(1, 2))

    @pytest.mark.parametrize(("tokens", "nanos"), [(0, 0), (1, 1), (2, 1), (3, 2)])
    def test_a_half_nano_is_rounded_up(self, tokens, nanos):
        price = ModelPrice("test", 0, (Tier(0, 500_000, 0, 0, 0),))
        assert cost_nanos(price, prompt=tokens, cached_prompt=0, completion=0, reasoning=0) == nanos

    def test_classes_are_summed_before_they_are_rounded(self):
        price = ModelPrice("test", 7, (Tier(0, 400_000, 400_000, 400_000, 400_000),))
        assert cost_nanos(price, prompt=1, cached_prompt=1, completion=1, reasoning=1) == 7 + 2

    @pytest.mark.parametrize(
        ("prompt", "cached", "nanos"),
        [(200_000, 0, 200_001), (199_999, 1, 200_001), (200_001, 0, 400_004), (1, 200_000, 400_004)],
    )
    def test_a_tier_begins_above_its_threshold_and_covers_the_whole_request(self, prompt, cached, nanos):
        """Cached tokens count towards the threshold; completions change their price with it."""
        tiers = (
            Tier(0, 1_000_000, 1_000_000, 1_000_000, 1_000_000),
            Tier(200_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000),
        )
        price = ModelPrice("test", 0, tiers)
        assert cost_nanos(price, prompt=prompt, cached_prompt=cached, completion=1, reasoning=0) == nanos


START = datetime(2026, 1, 1, tzinfo=UTC)
instants = st.integers(0, 5).map(lambda hours: START + timedelta(hours=hours))
owners = st.sampled_from([None, "acme", "globex"])


@st.composite
def price_lists(draw: st.DrawFn) -> list[Price]:
    entries = draw(st.lists(st.tuples(owners, instants), max_size=8))
    return [
        Price(id=f"p{index}", model="m", account=owner, effective_at=at)
        for index, (owner, at) in enumerate(entries)
    ]


class TestSelection:
    @given(price_lists(), st.sampled_from(["acme", "initech"]), instants)
    def test_own_entries_win_then_the_latest_that_is_effective(self, entries, account_id, at):
        chosen = select_price(entries, account_id, at)
        own = [entry for entry in entries if entry.account == account_id and entry.effective_at <= at]
        general = [entry for entry in entries if entry.account is None and entry.effective_at <= at]
        if not own and not general:
            assert chosen is None
            return
        assert chosen in (own or general)
        assert all(entry.effective_at <= chosen.effective_at for entry in own or general)

    @given(price_lists().flatmap(lambda p: st.tuples(st.just(p), st.permutations(p))), instants)
    def test_the_order_of_entries_is_no_matter(self, lists, at):
        entries, shuffled = lists
        assert select_price(entries, "acme", at) == select_price(shuffled, "acme", at)

    def test_an_entry_is_effective_from_its_own_instant_on(self):
        entry = Price(id="p", model="m", effective_at=START)
        assert select_price([entry], "acme", START) is entry
        assert select_price([entry], "acme", START - timedelta(microseconds=1)) is None


class TestEntry:
    def test_absent_classes_cost_what_their_plain_class_costs(self):
        entry = Price(
            id="p1", model="m", prompt_nanos_per_million=3, completion_nanos_per_million=5, request_nanos=7
        )
        assert price_of_entry(entry) == ModelPrice("prices:p1", 7, (Tier(0, 3, 3, 5, 5),))

    def test_a_class_that_is_stated_free_is_free(self):
        entry = Price(
            id="p1",
            model="m",
            prompt_nanos_per_million=3,
            cached_prompt_nanos_per_million=0,
            completion_nanos_per_million=5,
            reasoning_nanos_per_million=0,
        )
        assert price_of_entry(entry).tiers == (Tier(0, 3, 0, 5, 0),)


def _azure(name: str) -> Iterator[tuple[str, int, int]]:
    with gzip.open(DATA / f"azure_llm_{name}.csv.gz", "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            yield f"azure-{name}", int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _jsonl(name: str, model_field: str) -> Iterator[tuple[str, int, int]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield row[model_field], row["input_tokens"], row["output_tokens"]


SOURCES = {
    "azure_llm_conv.csv.gz": lambda: _azure("conv"),
    "azure_llm_code.csv.gz": lambda: _azure("code"),
    "llm_spans.jsonl.gz": lambda: _jsonl("llm_spans", "request_model"),
    "llm_turns.jsonl.gz": lambda: _jsonl("llm_turns", "model_id"),
}


@needs_traces
@pytest.mark.parametrize("name", SOURCES)
def test_real_traces_cost_what_was_computed_elsewhere(name):
    """
    The expected sums are pico-USD, from prices in pico-USD per token. One pico per token is 1e-12 USD, a
    thousand nanos per million tokens. All these prices are whole thousands of picos, so each record is
    a whole number of nanos, nothing is rounded, and the sum of our records times 1000 is the expected sum.
    """
    expected = json.loads((DATA / "expected_totals.json").read_text())
    prices = {}
    for model, (prompt_picos, completion_picos) in expected["prices_pico_usd_per_token"].items():
        assert prompt_picos % 1000 == completion_picos % 1000 == 0
        entry = Price(
            id="trace",
            model=model,
            prompt_nanos_per_million=prompt_picos * 1000,
            completion_nanos_per_million=completion_picos * 1000,
        )
        prices[model] = price_of_entry(entry)
    rows = 0
    nanos = dict.fromkeys(prices, 0)
    for model, prompt, completion in SOURCES[name]():
        rows += 1
        nanos[model] += cost_nanos(
            prices[model], prompt=prompt, cached_prompt=0, completion=completion, reasoning=0
        )
    totals = expected["files"][name]
    assert rows == totals["rows"]
    assert sum(nanos.values()) * 1000 == totals["totals"]["cost_pico_usd"]
    for model, of_model in totals["per_model"].items():
        assert nanos[model] * 1000 == of_model["cost_pico_usd"]
