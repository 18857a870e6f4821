"""The price book finds the price that applies, and whole columns cost what their rows cost one by one."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import floor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces import DATA, needs_traces
from tollkeeper.catalog import price_book
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Price
from tollkeeper.domain.events import TOKENS_MAX
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.pricing import ModelPrice, cost_nanos, price_of_entry, select_price
from tollkeeper.meter.price_columns import price_columns

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_US = to_us(NOON)
BUILT_IN = PriceBook([])

untimed = settings(deadline=None)
"""The first example imports the built-in list."""

MODELS = ("house-model", "gpt-4o", "deepseek-chat", "anthropic/claude-sonnet-4-5", "no-such-model-anywhere")
"""Without a listed price, with one, by time of day, tiered, and with no price unless an entry gives one."""

ACCOUNTS = ("acme", "globex", "initech")

instants = st.integers(0, 10**6).map(lambda seconds: NOON + timedelta(seconds=seconds))
rates = st.integers(0, PRICE_NANOS_MAX)


@st.composite
def price_lists(draw: st.DrawFn) -> list[Price]:
    return [
        Price(
            id=f"p{index}",
            model=draw(st.sampled_from(MODELS)),
            account=draw(st.sampled_from([None, *ACCOUNTS[:2]])),
            effective_at=draw(instants),
            prompt_nanos_per_million=draw(rates),
            cached_prompt_nanos_per_million=draw(st.none() | rates),
            completion_nanos_per_million=draw(rates),
            reasoning_nanos_per_million=draw(st.none() | rates),
            request_nanos=draw(st.integers(0, REQUEST_NANOS_MAX)),
        )
        for index in range(draw(st.integers(0, 6)))
    ]


def _price(model: str, *, at: datetime = NOON, account_id: str = "acme") -> ModelPrice | None:
    return BUILT_IN.price_of(model, account_id=account_id, at_us=to_us(at))


class TestCatalogEntries:
    @untimed
    @given(price_lists(), st.sampled_from(MODELS), st.sampled_from(ACCOUNTS), instants)
    def test_the_book_finds_what_the_rule_selects(self, prices, model, account_id, at):
        """`select_price` is the rule; the book remembers its answers as spans of time."""
        book = BUILT_IN.replace(prices)
        for instant in (at, *(entry.effective_at for entry in prices)):
            for at_us in (to_us(instant) - 1, to_us(instant)):
                entry = select_price([p for p in prices if p.model == model], account_id, from_us(at_us))
                listed = BUILT_IN.price_of(model, account_id=account_id, at_us=at_us)
                expected = listed if entry is None else price_of_entry(entry)
                assert book.price_of(model, account_id=account_id, at_us=at_us) == expected

    def test_replacing_the_entries_leaves_the_old_book_as_it_was(self):
        entry = Price(id="p1", model="gpt-4o", prompt_nanos_per_million=1)
        book = BUILT_IN.replace([entry])
        assert book.price_of("gpt-4o", account_id="acme", at_us=NOON_US) == price_of_entry(entry)
        assert _price("gpt-4o").version.startswith("genai-prices ")
        assert book.replace([]).price_of("gpt-4o", account_id="acme", at_us=NOON_US) == _price("gpt-4o")

    def test_nobodys_events_see_the_general_prices_only(self):
        own = Price(id="own", model="m", account="acme")
        general = Price(id="general", model="m")
        book = PriceBook([own, general], built_in=False)
        assert book.price_of("m", account_id="", at_us=NOON_US) == price_of_entry(general)

    def test_without_the_built_in_list_only_entries_have_prices(self):
        assert PriceBook([], built_in=False).price_of("gpt-4o", account_id="acme", at_us=NOON_US) is None

    def test_what_is_remembered_is_bounded(self, monkeypatch):
        """Model names are the callers': a flood of them must not fill the memory."""
        monkeypatch.setattr(price_book, "TIMELINES_MAX", 10)
        book = PriceBook([Price(id="p1", model="m")])
        for number in range(35):
            assert book.price_of(f"no-such-{number}", account_id="acme", at_us=NOON_US) is None
            assert len(book._timelines) <= 10
            assert len(book._built_in._timelines) <= 10
            assert len(book._built_in._snapshot._provider_misses) <= 20
        assert book.price_of("m", account_id="acme", at_us=NOON_US).version == "prices:p1"


def _is_finer_than_a_nano(listed) -> bool:
    prices = []
    for value in vars(listed).values():
        if isinstance(value, Decimal):
            prices.append(value)
        elif value is not None:
            prices.extend([value.base, *(tier.price for tier in value.tiers)])
    return any(price * 10**9 % 1 for price in prices)


class TestBuiltInList:
    @pytest.mark.parametrize(
        ("model", "prompt", "cached", "completion"),
        [
            ("gpt-4o", "2.5", "1.25", "10"),
            ("openai/gpt-4o-mini", "0.15", "0.075", "0.6"),
            ("anthropic/claude-sonnet-4-5", "3", "0.3", "15"),
            ("openrouter/openai/gpt-4o", "2.5", None, "10"),
        ],
    )
    def test_models_are_found_by_the_names_that_gateways_use(self, model, prompt, cached, completion):
        tier = _price(model).tiers[0]
        assert tier.prompt == Decimal(prompt) * 10**9
        assert tier.cached_prompt == (Decimal(cached) * 10**9 if cached else tier.prompt)
        assert tier.completion == tier.reasoning == Decimal(completion) * 10**9

    def test_a_seller_in_front_of_the_name_is_heeded(self):
        """The package itself does not understand this form."""
        assert "azure/deepseek-v3.2" in _price("azure/DeepSeek-V3.2").version
        assert "openai/gpt-4o" in _price("gpt-4o").version

    @pytest.mark.parametrize(
        "model",
        [
            "",
            "no-such-model-anywhere",
            "no-such-seller/gpt-4o",
            "anthropic/gpt-4o",
            "/",
            "openai/",
            "/gpt-4o",
        ],
    )
    def test_what_no_source_knows_has_no_price(self, model):
        """Never 0: it would let callers use it for nothing. What its seller does not list is unknown too."""
        assert _price(model) is None

    def test_a_list_without_prices_is_free_only_where_the_name_says_so(self):
        assert _price("azure/mai-ds-r1:free").tiers[0][1:] == (0, 0, 0, 0)
        assert _price("github-copilot/gpt-4o") is None

    def test_a_price_by_time_of_day_changes_to_the_minute(self):
        """The list of deepseek-chat is dearer from 00:30 to 16:30 UTC."""
        day = datetime(2026, 3, 1, tzinfo=UTC)
        dear, cheap = _price("deepseek-chat", at=day.replace(hour=12)), _price("deepseek-chat", at=day)
        assert dear.tiers[0].prompt > cheap.tiers[0].prompt
        microsecond = timedelta(microseconds=1)
        for at, before, after in (
            (day.replace(minute=30), cheap, dear),
            (day.replace(hour=16, minute=30), dear, cheap),
        ):
            assert _price("deepseek-chat", at=at - microsecond) == before
            assert _price("deepseek-chat", at=at) == after

    def test_it_agrees_with_the_package_on_every_model(self):
        """Dates, times of day, tiers, absent classes: to the nano, where a list is not finer than that."""
        from genai_prices import Usage, calc_price
        from genai_prices.data import providers

        source = np.random.default_rng(7)
        compared = 0
        for provider in providers:
            for info in provider.models:
                model = f"{provider.id}/{info.id}"
                at_us = to_us(NOON) + int(source.integers(-10 * 365, 365)) * price_book.DAY_US // 7
                price = BUILT_IN.price_of(model, account_id="", at_us=at_us)
                if price is None:
                    continue
                prompt, cached, completion, reasoning = (int(n) for n in source.integers(0, 300_000, 4))
                usage = Usage(
                    input_tokens=prompt + cached,
                    cache_read_tokens=cached,
                    output_tokens=completion + reasoning,
                    output_reasoning_tokens=reasoning,
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    theirs = calc_price(
                        usage, info.id, provider_id=provider.id, genai_request_timestamp=from_us(at_us)
                    )
                ours = cost_nanos(
                    price, prompt=prompt, cached_prompt=cached, completion=completion, reasoning=reasoning
                )
                exact = theirs.total_price * 10**9
                if _is_finer_than_a_nano(theirs.model_price):
                    assert abs(exact - ours) < 2, model  # Less than a million tokens of half a nano each.
                else:
                    assert floor(exact + Decimal("0.5")) == ours, model
                compared += 1
        assert compared > 2_000

    def test_it_never_touches_the_network_and_waits_to_be_needed(self):
        """In a fresh interpreter whose sockets do not work."""
        script = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was touched")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from tollkeeper.domain.catalog import Price
from tollkeeper.catalog.price_book import PriceBook
book = PriceBook([Price(id="p1", model="m")])
assert "genai_prices" not in sys.modules
assert book.price_of("gpt-4o", account_id="a", at_us=1_772_366_400_000_000).tiers
assert "genai_prices" in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


token_counts = (
    st.integers(0, TOKENS_MAX) | st.integers(0, 400_000) | st.sampled_from([199_999, 200_000, 200_001])
)
rows = st.tuples(
    st.sampled_from([None, "", *MODELS]),
    st.sampled_from([None, "", *ACCOUNTS]),
    instants.map(to_us),
    token_counts,
    token_counts,
    token_counts,
    token_counts,
)


def _columns(cases: list[tuple]) -> tuple:
    models, accounts, at_us, *tokens = zip(*cases, strict=True) if cases else ((),) * 7
    return (
        pa.array(models, pa.string()).dictionary_encode(),
        pa.array(accounts, pa.string()).dictionary_encode(),
        np.array(at_us, dtype=np.int64),
        [np.array(counts, dtype=np.int64) for counts in tokens],
    )


def _check_row_by_row(cases: list[tuple], priced, book: PriceBook) -> None:
    versions = priced.price_version.to_pylist()
    assert len(priced.cost_nanos) == len(priced.known) == len(versions) == len(cases)
    assert priced.cost_nanos.dtype == np.int64
    for index, (model, account_id, at_us, prompt, cached, completion, reasoning) in enumerate(cases):
        price = book.price_of(model or "", account_id=account_id or "", at_us=at_us)
        cost, version = 0, ""
        if price is not None:
            version = price.version
            cost = cost_nanos(
                price, prompt=prompt, cached_prompt=cached, completion=completion, reasoning=reasoning
            )
        assert int(priced.cost_nanos[index]) == cost
        assert versions[index] == version
        assert bool(priced.known[index]) == (price is not None or not model)


class TestColumns:
    @settings(deadline=None, max_examples=200)
    @given(price_lists(), st.lists(rows, max_size=12))
    def test_columns_cost_what_their_rows_cost(self, prices, cases):
        """`price_columns` and `cost_nanos` of `price_of` are twins; this holds them together."""
        book = BUILT_IN.replace(prices)
        _check_row_by_row(cases, price_columns(*_columns(cases), book), book)

    @untimed
    @given(price_lists(), st.lists(st.lists(rows, max_size=4), max_size=3), st.booleans())
    def test_chunks_and_plain_text_are_columns_too(self, prices, chunks, encoded):
        """Decoders hand over chunks, each with a dictionary of its own."""
        book = BUILT_IN.replace(prices)
        cases = [case for chunk in chunks for case in chunk]
        _, _, at_us, tokens = _columns(cases)
        text = pa.dictionary(pa.int32(), pa.string()) if encoded else pa.string()
        models = pa.chunked_array([pa.array([row[0] for row in chunk], text) for chunk in chunks], text)
        accounts = pa.chunked_array([pa.array([row[1] for row in chunk], text) for chunk in chunks], text)
        _check_row_by_row(cases, price_columns(models, accounts, at_us, tokens, book), book)

    def test_the_largest_record_stays_inside_64_bits(self):
        entry = Price(
            id="p1",
            model="m",
            prompt_nanos_per_million=PRICE_NANOS_MAX,
            completion_nanos_per_million=PRICE_NANOS_MAX,
            request_nanos=REQUEST_NANOS_MAX,
        )
        book = PriceBook([entry], built_in=False)
        cases = [("m", "acme", NOON_US, *[count] * 4) for count in (TOKENS_MAX, TOKENS_MAX - 1, 999_999)]
        _check_row_by_row(cases, price_columns(*_columns(cases), book), book)

    def test_many_models_in_few_rows(self):
        """Then the table of possible pairs would be larger than the batch, and rows are sorted instead."""
        prices = [
            Price(id=f"p{n}", model=f"m{n}", account=f"a{n}", prompt_nanos_per_million=n * 10**6)
            for n in range(100)
        ]
        book = PriceBook(prices, built_in=False)
        cases = [(f"m{n % 101}", f"a{n * 7 % 101}", NOON_US, n, 0, 0, 0) for n in range(303)]
        priced = price_columns(*_columns(cases), book)
        assert 0 < int(priced.known.sum()) < len(cases)
        _check_row_by_row(cases, priced, book)

    @needs_traces
    @pytest.mark.parametrize(
        ("name", "model_field"), [("llm_spans", "request_model"), ("llm_turns", "model_id")]
    )
    def test_real_traces_cost_what_was_computed_elsewhere(self, name, model_field):
        """Picos per token are thousands of nanos per million: see the twin of this test in the domain."""
        expected = json.loads((DATA / "expected_totals.json").read_text())
        book = BUILT_IN.replace(
            [
                Price(
                    id=f"trace-{index}",
                    model=model,
                    prompt_nanos_per_million=picos[0] * 1000,
                    completion_nanos_per_million=picos[1] * 1000,
                )
                for index, (model, picos) in enumerate(expected["prices_pico_usd_per_token"].items())
            ]
        )
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt") as lines:
            traced = [json.loads(line) for line in lines]
        cases = [
            (row[model_field], "acme", NOON_US, row["input_tokens"], 0, row["output_tokens"], 0)
            for row in traced
        ]
        priced = price_columns(*_columns(cases), book)
        assert priced.known.all()
        assert (
            int(priced.cost_nanos.sum()) * 1000
            == expected["files"][f"{name}.jsonl.gz"]["totals"]["cost_pico_usd"]
        )
