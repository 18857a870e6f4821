"""Whole columns cost what their rows cost one by one."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalog.prices import NOON, markup_lists, price_lists, rows
from tests.effort import effort
from tests.traces import DATA, needs_traces
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Markup, Price
from tollkeeper.domain.events import TOKENS_MAX
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.pricing import cost_nanos
from tollkeeper.domain.quantities import MICROS, QUANTITY_MICROS_MAX, TOKEN_CLASSES
from tollkeeper.domain.requests import Usage
from tollkeeper.meter.price_columns import PricedColumns, price_columns

BUILT_IN = PriceBook([])


def _case(model: str, account: str, *tokens: int, **quantities: int) -> dict[str, Any]:
    tokens = (*tokens, *[0] * (4 - len(tokens)))
    return {
        "model": model,
        "account": account,
        "plan": None,
        "variant": None,
        "at": NOON,
        "tokens": tokens,
        "quantities": quantities,
    }


def _text(cases: list[dict[str, Any]], name: str) -> pa.DictionaryArray:
    return pa.array([case[name] for case in cases], pa.string()).dictionary_encode()


def _numbers(cases: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    names = sorted({name for case in cases for name in case["quantities"]})
    return (
        np.array([to_us(case["at"]) for case in cases], dtype=np.int64),
        [np.array([case["tokens"][part] for case in cases], dtype=np.int64) for part in range(4)],
        {
            name: np.array([case["quantities"].get(name, 0) for case in cases], dtype=np.int64)
            for name in names
        },
    )


def _priced(cases: list[dict[str, Any]], book: PriceBook) -> PricedColumns:
    at_us, tokens, quantities = _numbers(cases)
    return price_columns(
        _text(cases, "model"),
        _text(cases, "account"),
        at_us,
        tokens,
        book,
        quantities=quantities,
        variants=_text(cases, "variant"),
        plans=_text(cases, "plan"),
    )


def _check_row_by_row(cases: list[dict[str, Any]], priced: PricedColumns, book: PriceBook) -> None:
    versions = priced.price_version.to_pylist()
    assert len(priced.cost_nanos) == len(priced.known) == len(versions) == len(cases)
    assert priced.cost_nanos.dtype == priced.provider_cost_nanos.dtype == np.int64
    for index, case in enumerate(cases):
        # Without a model, `meter.cost_of` asks for no price.
        price = case["model"] and book.price_of(
            case["model"],
            account_id=case["account"] or "",
            at_us=to_us(case["at"]),
            variant=case["variant"] or "",
            plan=case["plan"] or "",
        )
        usage = Usage(*case["tokens"], quantities=case["quantities"])
        costs, version = (0, 0), ""
        if not price or not price.covers(usage):
            price = None
        if price is not None:
            version = price.version
            costs = cost_nanos(price, usage)
        assert (int(priced.cost_nanos[index]), int(priced.provider_cost_nanos[index])) == costs
        assert versions[index] == version
        assert bool(priced.known[index]) == (price is not None or not case["model"])


class TestColumns:
    @settings(deadline=None, max_examples=effort(60, 300))
    @given(price_lists(), markup_lists(), st.lists(rows, max_size=12))
    def test_columns_cost_what_their_rows_cost(self, prices, markups, cases):
        """`price_columns` and `cost_nanos` of `price_of` are twins; this holds them together."""
        book = BUILT_IN.replace(prices, markups)
        _check_row_by_row(cases, _priced(cases, book), book)

    @settings(deadline=None)
    @given(price_lists(), st.lists(st.lists(rows, max_size=4), max_size=3), st.booleans())
    def test_chunks_and_plain_text_are_columns_too(self, prices, chunks, encoded):
        """Decoders hand over chunks, each with a dictionary of its own."""
        book = BUILT_IN.replace(prices)
        cases = [case for chunk in chunks for case in chunk]
        kind = pa.dictionary(pa.int32(), pa.string()) if encoded else pa.string()

        def text(name: str) -> pa.ChunkedArray:
            return pa.chunked_array([pa.array([row[name] for row in chunk], kind) for chunk in chunks], kind)

        at_us, tokens, quantities = _numbers(cases)
        priced = price_columns(
            text("model"),
            text("account"),
            at_us,
            tokens,
            book,
            quantities=quantities,
            variants=text("variant"),
        )
        _check_row_by_row(cases, priced, book)

    @pytest.mark.parametrize("factor", ["1", "1.000000001", "1000"])
    def test_the_largest_record_stays_inside_64_bits(self, factor):
        """One row of a batch that is too large must not cost the others their exactness, nor wrap around."""
        entry = Price(
            id="p1",
            model="m",
            prompt_nanos_per_million=PRICE_NANOS_MAX,
            completion_nanos_per_million=PRICE_NANOS_MAX,
            rates={"seconds": "1000000/1", "images": "0.0000001/999999999989"},
            request_nanos=REQUEST_NANOS_MAX,
        )
        book = PriceBook([entry], [Markup(id="m", factor=factor)], built_in=False)
        most = dict.fromkeys(TOKEN_CLASSES, TOKENS_MAX * MICROS)
        cases = [_case("m", "acme", *[count] * 4) for count in (TOKENS_MAX, TOKENS_MAX - 1, 999_999, 1)]
        cases += [
            _case("m", "acme", 1, **named)
            for named in (
                most,
                {"seconds": QUANTITY_MICROS_MAX},
                {"seconds": 1},
                {"seconds": 999_999, "images": QUANTITY_MICROS_MAX},
                {"images": 999_999},
            )
        ]
        _check_row_by_row(cases, _priced(cases, book), book)

    def test_many_models_in_few_rows(self):
        """Then the table of possible pairs would be larger than the batch, and rows are sorted instead."""
        prices = [
            Price(id=f"p{n}", model=f"m{n}", account=f"a{n}", prompt_nanos_per_million=n * 10**6)
            for n in range(100)
        ]
        book = PriceBook(prices, built_in=False)
        cases = [_case(f"m{n % 101}", f"a{n * 7 % 101}", n) for n in range(303)]
        priced = _priced(cases, book)
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
            _case(row[model_field], "acme", row["input_tokens"], 0, row["output_tokens"]) for row in traced
        ]
        priced = _priced(cases, book)
        assert priced.known.all()
        assert (
            int(priced.cost_nanos.sum()) * 1000
            == expected["files"][f"{name}.jsonl.gz"]["totals"]["cost_pico_usd"]
        )
