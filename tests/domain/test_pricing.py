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

from tests.domain.test_events import quantities
from tests.traces import DATA, needs_traces
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Markup, Price
from tollkeeper.domain.events import TOKENS_MAX
from tollkeeper.domain.price_entries import PriceTier
from tollkeeper.domain.pricing import (
    COST_NANOS_LIMIT,
    TOKEN_COLUMNS,
    ModelPrice,
    Tier,
    cost_nanos,
    exact_price,
    marked_up,
    price_of_entry,
    select_markup,
    select_price,
    with_plain_rates,
)
from tollkeeper.domain.quantities import (
    COMPLETION_CLASSES,
    MICROS,
    PROMPT_CLASSES,
    TOKEN_CLASSES,
    parse_quantities,
)
from tollkeeper.domain.requests import Usage

rates = st.integers(0, PRICE_NANOS_MAX)
token_counts = st.integers(0, TOKENS_MAX) | st.integers(0, 5)


@st.composite
def model_prices(draw: st.DrawFn) -> ModelPrice:
    thresholds = draw(st.lists(st.integers(0, 2 * TOKENS_MAX), unique=True, max_size=3))
    tiers = [Tier(over, *(draw(rates) for _ in range(4))) for over in (0, *sorted(thresholds))]
    return ModelPrice("test", draw(st.integers(0, REQUEST_NANOS_MAX)), tuple(tiers))


def of_tokens(price: ModelPrice, *tokens: int) -> int:
    cost, listed = cost_nanos(price, Usage(*tokens))
    assert cost == listed
    return cost


class TestCost:
    @given(model_prices(), token_counts, token_counts, token_counts, token_counts)
    def test_it_is_the_exact_fraction_rounded_half_up(self, price, prompt, cached, completion, reasoning):
        """One rounding per record, and never by a float: else totals would not add up to the nano."""
        tier = [price.tiers[0], *(t for t in price.tiers[1:] if prompt + cached > t.prompt_tokens_over)][-1]
        exact = price.request_nanos + sum(
            Fraction(count * rate, 1_000_000)
            for count, rate in zip((prompt, cached, completion, reasoning), tier[1:5], strict=True)
        )
        assert of_tokens(price, prompt, cached, completion, reasoning) == floor(exact + Fraction(1, 2))

    @pytest.mark.parametrize(("tokens", "nanos"), [(0, 0), (1, 1), (2, 1), (3, 2)])
    def test_a_half_nano_is_rounded_up(self, tokens, nanos):
        price = ModelPrice("test", 0, (Tier(0, 500_000, 0, 0, 0),))
        assert of_tokens(price, tokens) == nanos

    def test_classes_are_summed_before_they_are_rounded(self):
        price = ModelPrice("test", 7, (Tier(0, 400_000, 400_000, 400_000, 400_000),))
        assert of_tokens(price, 1, 1, 1, 1) == 7 + 2

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
        assert of_tokens(price, prompt, cached, 1) == nanos


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


fractions = st.fractions(0, 10**12, max_denominator=1000)
exact_rates = st.dictionaries(
    st.sampled_from([*TOKEN_COLUMNS, *TOKEN_CLASSES, "seconds", "images", "own_unit"]), fractions, max_size=6
)
usages = st.builds(
    lambda tokens, named: Usage(*tokens, quantities=named),
    st.tuples(*[token_counts] * 4),
    quantities(),
)
factors = st.decimals(0, 1000, places=9, allow_nan=False).map(lambda factor: f"{factor:f}")


def used(usage: Usage) -> dict[str, Fraction]:
    """What a usage states, in tokens and units, by name."""
    of_columns = dict(zip(TOKEN_COLUMNS, map(Fraction, usage[:4]), strict=True))
    return of_columns | {name: Fraction(micros, MICROS) for name, micros in usage.quantities.items()}


def charged(request, tiers, minimums, usage):
    """The cost by the rule, in fractions, before it is rounded."""
    units = used(usage)
    prompt = sum(units.get(name, 0) for name in ("prompt_tokens", "cached_prompt_tokens", *PROMPT_CLASSES))
    rates = with_plain_rates([tiers[0], *(tier for tier in tiers[1:] if prompt > tier[0])][-1][1])
    return request + sum(
        max(count, Fraction(minimums.get(name, 0), MICROS)) * rates.get(name, 0) / 10**6
        for name, count in units.items()
    )


def rounded(exact: Fraction) -> int:
    return min(floor(exact + Fraction(1, 2)), COST_NANOS_LIMIT)


class TestQuantities:
    @given(
        st.fractions(0, 10**9, max_denominator=1000),
        st.lists(exact_rates, min_size=1, max_size=3),
        st.sampled_from([{}, {"seconds": 10 * MICROS}]),
        usages,
        factors,
        st.integers(0, 10**9),
    )
    def test_all_of_it_is_one_exact_fraction_rounded_half_up(
        self, request, rates, minimums, usage, factor, fixed
    ):
        """Rates that no nano divides, tiers, minimums, and the mark-up on top: still one rounding each."""
        tiers = [(index * 1000, of_tier) for index, of_tier in enumerate(rates)]
        price = exact_price("test", request, tiers, minimums)
        exact = charged(request, tiers, minimums, usage)
        assert cost_nanos(price, usage) == (rounded(exact), rounded(exact))
        marked = marked_up(price, Markup(id="m", factor=factor, request_nanos=fixed))
        assert cost_nanos(marked, usage) == (rounded(exact * Fraction(factor) + fixed), rounded(exact))
        assert marked.covers(usage) == price.covers(usage)

    def test_a_price_for_seconds_alone_prices_no_request_without_them(self):
        """Else a transcription that states its model only would be free."""
        price = price_of_entry(Price(id="p", model="w", rates={"seconds": "0.006/60"}))
        assert not price.covers(Usage(5, 0, 0, 0, "w", quantities={"pages": MICROS}))
        assert price.covers(Usage(quantities={"seconds": MICROS, "pages": MICROS}))
        for more in ({"request_nanos": 1}, {"prompt_nanos_per_million": 1}):
            entry = Price(id="p", model="w", rates={"seconds": "0.006/60"}, **more)
            assert price_of_entry(entry).covers(Usage())

    def test_a_cost_beyond_all_reason_stays_inside_64_bits(self):
        price = price_of_entry(Price(id="p", model="m", rates={"images": "1000000/1"}))
        assert cost_nanos(price, Usage(quantities={"images": 10**18}))[0] == COST_NANOS_LIMIT


CASES = {
    "M3 cache writes": (
        Price(
            id="p",
            model="claude",
            prompt_nanos_per_million=3 * 10**9,
            cached_prompt_nanos_per_million=3 * 10**8,
            cache_write_nanos_per_million=3_750_000_000,
            cache_write_1h_nanos_per_million=6 * 10**9,
            completion_nanos_per_million=15 * 10**9,
        ),
        Usage(
            12,
            20_000,
            350,
            quantities=parse_quantities({"cache_write_tokens": 4000, "cache_write_1h_tokens": 6000}),
        ),
        62_286_000,
    ),
    "M4 audio by the maker's page": (
        Price(
            id="p",
            model="gpt-4o-audio-preview",
            prompt_nanos_per_million=2_500_000_000,
            completion_nanos_per_million=10 * 10**9,
            audio_prompt_nanos_per_million=40 * 10**9,
            audio_completion_nanos_per_million=80 * 10**9,
        ),
        Usage(
            100,
            0,
            50,
            quantities=parse_quantities({"audio_prompt_tokens": 1100, "audio_completion_tokens": 850}),
        ),
        112_750_000,
    ),
    "M7 searches": (
        Price(
            id="p",
            model="m",
            prompt_nanos_per_million=3 * 10**9,
            completion_nanos_per_million=15 * 10**9,
            rates={"searches": "10.00/1000"},
        ),
        Usage(1000, 0, 200, quantities=parse_quantities({"searches": 3})),
        6_000_000 + 30_000_000,
    ),
    "M10 seconds": (
        Price(id="p", model="m", rates={"seconds": "0.006/60"}),
        Usage(quantities=parse_quantities({"seconds": "61.5"})),
        6_150_000,
    ),
    "M10 characters": (
        Price(id="p", model="m", rates={"characters": "15.00/1000000"}),
        Usage(quantities=parse_quantities({"characters": 1234})),
        18_510_000,
    ),
    "M10 an own unit": (
        Price(id="p", model="m", rates={"credits_used": "1.00/1"}),
        Usage(quantities=parse_quantities({"credits_used": "0.25"})),
        250_000_000,
    ),
    "M2 a request": (
        Price(id="p", model="dall-e-3", request_nanos=40_000_000),
        Usage(),
        40_000_000,
    ),
    "a price per minute that no nano divides": (
        Price(id="p", model="m", rates={"seconds": "0.0043/60"}),
        Usage(quantities=parse_quantities({"seconds": 90})),
        6_450_000,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_entries_price_what_the_world_sends(case):
    entry, usage, nanos = CASES[case]
    entry.check()
    price = price_of_entry(entry)
    assert price.covers(usage)
    assert cost_nanos(price, usage) == (nanos, nanos)


class TestTiersOfEntries:
    ENTRY = Price(
        id="p",
        model="m",
        prompt_nanos_per_million=3 * 10**6,
        completion_nanos_per_million=5 * 10**6,
        audio_prompt_nanos_per_million=7 * 10**6,
        tiers=[
            PriceTier(over=100, prompt_nanos_per_million=6 * 10**6),
            PriceTier(over=200, completion_nanos_per_million=50 * 10**6),
        ],
    )

    @pytest.mark.parametrize(
        ("prompt", "cached", "named", "nanos"),
        [
            (100, 0, {}, 300),
            (101, 0, {}, 606),
            (50, 51, {}, 606),
            (0, 0, {"cache_write_tokens": 101}, 606),
            (94, 0, {"audio_prompt_tokens": 7}, 94 * 6 + 49),
            (0, 0, {"image_completion_tokens": 300}, 1500),
            (201, 0, {"image_completion_tokens": 1}, 201 * 6 + 50),
        ],
    )
    def test_all_prompt_classes_choose_the_tier_which_changes_what_it_states(
        self, prompt, cached, named, nanos
    ):
        """What it does not state stays, and classes without a rate of their own follow their plain class."""
        self.ENTRY.check()
        usage = Usage(prompt, cached, quantities=parse_quantities(named))
        assert cost_nanos(price_of_entry(self.ENTRY), usage)[0] == nanos


class TestMarkups:
    def test_each_account_pays_by_its_own_mark_up(self):
        """M9: 20 % more for account `a`, 35 % for plan `p` on `claude-*`, the list's price for others."""
        markups = [
            Markup(id="a20", account="a", factor="1.2"),
            Markup(id="p35", plan="p", model="claude-*", factor="1.35"),
        ]
        price = price_of_entry(Price(id="x", model="claude-x", prompt_nanos_per_million=10**9 + 1))
        usage = Usage(333_333)
        exact = Fraction(333_333 * (10**9 + 1), 10**6)
        for account, plan, factor in (
            ("a", "p", Fraction(12, 10)),
            ("a", "", Fraction(12, 10)),
            ("b", "p", Fraction(135, 100)),
        ):
            markup = select_markup(markups, account, plan, START)
            assert cost_nanos(marked_up(price, markup), usage) == (rounded(exact * factor), rounded(exact))
        assert select_markup(markups, "b", "", START) is None

    def test_the_more_specific_then_the_later_wins(self):
        markups = [
            Markup(id="all", factor="1.1"),
            Markup(id="claude", model="claude-*", factor="1.2"),
            Markup(id="sonnet", model="claude-sonnet*", factor="1.3"),
            Markup(id="exact", model="claude-sonnet", factor="1.4"),
            Markup(id="later", model="claude-*", factor="1.5", effective_at=START),
            Markup(id="plan", plan="pro", factor="1.6"),
        ]

        def chosen(*ids, at=START, plan=""):
            some = [markup for markup in markups if markup.id in ids]
            found = select_markup(some, "acme", plan, at)
            return None if found is None else found.id

        assert chosen("all", "claude") == "claude"
        assert chosen("claude", "sonnet", "later") == "sonnet"
        assert chosen("sonnet", "exact") == "exact"
        assert chosen("claude", "later") == "later"
        assert chosen("claude", "later", at=START - timedelta(microseconds=1)) == "claude"
        assert chosen("exact", "plan", plan="pro") == "plan"
        assert chosen("later", at=START - timedelta(microseconds=1)) is None

    def test_a_fixed_part_comes_once_per_request_and_is_not_multiplied(self):
        price = price_of_entry(Price(id="x", model="m", request_nanos=100))
        assert cost_nanos(marked_up(price, Markup(id="m", factor="1.5", request_nanos=7)), Usage()) == (
            157,
            100,
        )


class TestEntry:
    def test_absent_classes_cost_what_their_plain_class_costs(self):
        entry = Price(
            id="p1", model="m", prompt_nanos_per_million=3, completion_nanos_per_million=5, request_nanos=7
        )
        classes = dict.fromkeys(PROMPT_CLASSES, 3) | dict.fromkeys(COMPLETION_CLASSES, 5)
        assert price_of_entry(entry) == ModelPrice("prices:p1", 7, (Tier(0, 3, 3, 5, 5, classes),))

    def test_a_class_that_is_stated_free_is_free(self):
        entry = Price(
            id="p1",
            model="m",
            prompt_nanos_per_million=3,
            cached_prompt_nanos_per_million=0,
            completion_nanos_per_million=5,
            reasoning_nanos_per_million=0,
        )
        assert price_of_entry(entry).tiers[0][:5] == (0, 3, 0, 5, 0)


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
        nanos[model] += of_tokens(prices[model], prompt, 0, completion)
    totals = expected["files"][name]
    assert rows == totals["rows"]
    assert sum(nanos.values()) * 1000 == totals["totals"]["cost_pico_usd"]
    for model, of_model in totals["per_model"].items():
        assert nanos[model] * 1000 == of_model["cost_pico_usd"]
