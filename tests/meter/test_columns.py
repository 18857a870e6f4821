"""The meter of batches is the meter of requests: columns say, row by row, what `domain.meter` says of one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.domain.test_events import quantities, records
from tests.effort import effort
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Markup, Price, Route
from tollkeeper.domain.events import COST_NANOS_MAX, TOKENS_MAX, Record
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.meter import UNKNOWN_ROUTE, cost_of, recharged, units_of
from tollkeeper.domain.price_entries import PriceTier
from tollkeeper.domain.quantities import MICROS, parse_quantities
from tollkeeper.domain.requests import Usage
from tollkeeper.meter.columns import TOKEN_COLUMNS, CostColumns, cost_columns, units_columns
from tollkeeper.meter.decode import decode_json, decode_ndjson
from tollkeeper.meter.fields import table_from
from tollkeeper.meter.provider_usage import counted_usage
from tollkeeper.record_columns import table_of

START_US = 1_770_000_000_000_000
ROUTES = (
    UNKNOWN_ROUTE,
    Route(id="unknown", method="*", path="/*", price_nanos=2, credits=1),
    Route(id="chat", method="POST", path="/v1/chat", price_nanos=11, credits=3),
    Route(id="dear", method="*", path="/v1/{id}", price_nanos=10**15, credits=10**15),
    Route(id="plain", method="GET", path="/v1/plain"),
    Route(id="free", method="GET", path="/v1/status", free=True),
)
MODELS = ("", "m", "image", "other", "no-such-model")
ACCOUNTS = ("acme", "globex")

rates = st.integers(0, PRICE_NANOS_MAX) | st.integers(0, 3 * 10**6)
counts = st.integers(0, 3) | st.integers(0, TOKENS_MAX)
amounts = st.none() | st.integers(0, 3) | st.integers(0, COST_NANOS_MAX)
moments = st.integers(START_US, START_US + 9)

events = st.fixed_dictionaries(
    {
        "occurred_at_us": moments,
        "account": st.sampled_from(ACCOUNTS),
        "plan": st.sampled_from(["", "pro"]),
        "route": st.integers(0, len(ROUTES) - 1),
        "model": st.none() | st.sampled_from(MODELS),
        "status": st.none() | st.sampled_from([0, 200, 204, 399, 400, 402, 429, 500, 999]),
        "cache": st.none() | st.sampled_from(["hit", "miss", "none"]),
        "denied_reason": st.sampled_from([None, None, "", "rate_limited", "budget_exhausted"]),
        "cost_nanos": st.sampled_from([None, None]) | amounts,
        "estimated_cost_nanos": st.sampled_from([None, None]) | amounts,
        "credits": amounts,
        "provider_cost_nanos": st.sampled_from([None, None]) | amounts,
        "quantities": st.none() | quantities(),
        "variant": st.sampled_from([None, None, "batch"]),
    }
    | {name: st.none() | st.just(0) | counts for name in TOKEN_COLUMNS}
)


@st.composite
def price_books(draw: st.DrawFn) -> PriceBook:
    """Prices per token and per request, of one account or of all, that change in time."""
    prices = [
        Price(
            id=f"p{index}",
            model=draw(st.sampled_from(["m", "image", "other"])),
            account=draw(st.sampled_from([None, "acme"])),
            effective_at=from_us(draw(moments)),
            prompt_nanos_per_million=draw(rates),
            cached_prompt_nanos_per_million=draw(st.none() | rates),
            completion_nanos_per_million=draw(rates),
            reasoning_nanos_per_million=draw(st.none() | rates),
            request_nanos=draw(st.sampled_from([0, 40_000_000, REQUEST_NANOS_MAX])),
            variant=draw(st.sampled_from(["", "", "batch"])),
            audio_prompt_nanos_per_million=draw(st.none() | rates),
            rates=draw(st.sampled_from([{}, {"seconds": "0.0043/60"}, {"images": 5}])),
            tiers=draw(st.sampled_from([[], [PriceTier(over=2, prompt_nanos_per_million=10**6)]])),
        )
        for index in range(draw(st.integers(0, 5)))
    ]
    # Priced by a unit alone, and a variant by a factor.
    prices.append(Price(id="s", model="image", variant="batch", rates={"seconds": 7 * 10**6}))
    prices.append(Price(id="f", model="o*", variant="batch", factor="0.5"))
    markups = [
        Markup(
            id=f"m{index}",
            **draw(st.sampled_from([{}, {"account": "acme"}, {"plan": "pro"}])),
            model=draw(st.sampled_from(["*", "m", "o*"])),
            factor=draw(st.sampled_from(["1.2", "0.333333333", "1000"])),
            request_nanos=draw(st.sampled_from([0, 5])),
            effective_at=from_us(draw(moments)),
        )
        for index in range(draw(st.integers(0, 2)))
    ]
    return PriceBook(prices, markups, built_in=False)


def priced_by(book: PriceBook) -> Any:
    return lambda model, variant, account_id, plan, at_us: book.price_of(
        model, account_id=account_id, at_us=at_us, variant=variant, plan=plan
    )


def singly(event: dict[str, Any], book: PriceBook) -> tuple[int, int, str, int, str]:
    """What `cost_of` says of one event: a cost that is given stands, even beside an estimate."""
    usage = Usage(
        *(event[name] or 0 for name in TOKEN_COLUMNS),
        event["model"] or "",
        event["cost_nanos"],
        event["credits"],
        event["quantities"] or {},
        event["variant"] or "",
    )
    return cost_of(
        priced_by(book),
        event["account"],
        event["occurred_at_us"],
        ROUTES[event["route"]],
        usage,
        usage.model,
        event["status"] or 0,
        event["cache"] or "",
        bool(event["denied_reason"]),
        event["estimated_cost_nanos"] if event["cost_nanos"] is None else None,
        event["provider_cost_nanos"],
        event["plan"],
    )


def together(batch: list[dict[str, Any]], book: PriceBook) -> list[tuple[int, int, str, int, str]]:
    columns = {
        name: [event[name] for event in batch]
        for name in batch[0]
        if name not in ("account", "route", "plan")
    }
    columns["id"] = [str(index) for index in range(len(batch))]
    columns["account"] = accounts = [event["account"] for event in batch]
    found = cost_columns(
        table_from(columns, len(batch)),
        pa.array(accounts).dictionary_encode(),
        ROUTES,
        np.array([event["route"] for event in batch], np.int64),
        book,
        pa.array([event["plan"] for event in batch]).dictionary_encode(),
    )
    return rows_of(found)


def rows_of(found: CostColumns) -> list[tuple[int, int, str, int, str]]:
    return list(
        zip(
            found.cost_nanos.tolist(),
            found.provider_cost_nanos.tolist(),
            found.cost_state.to_pylist(),
            found.credits.tolist(),
            found.price_version.to_pylist(),
            strict=True,
        )
    )


NOTHING = dict.fromkeys(
    (
        "model",
        "status",
        "cache",
        "denied_reason",
        "cost_nanos",
        "estimated_cost_nanos",
        "credits",
        "provider_cost_nanos",
        "quantities",
        "variant",
        *TOKEN_COLUMNS,
    )
)
PLAIN = {"occurred_at_us": START_US, "account": "acme", "plan": "", **NOTHING}
IMAGES = PriceBook(
    [Price(id="p", model="image", request_nanos=40_000_000, effective_at=from_us(0))], built_in=False
)


@settings(deadline=None, max_examples=effort(60, 300))
@given(st.lists(events, min_size=1, max_size=12), price_books())
@example([PLAIN | {"route": route, "model": "image"} for route in range(len(ROUTES))], IMAGES)
@example([PLAIN | {"route": route, "denied_reason": "rate_limited"} for route in range(len(ROUTES))], IMAGES)
@example([PLAIN | {"route": route, "status": 500, "model": "image"} for route in range(len(ROUTES))], IMAGES)
@example([PLAIN | {"route": 2, "cost_nanos": 8, "estimated_cost_nanos": 9}], IMAGES)
def test_columns_cost_what_their_requests_cost(batch: list[dict[str, Any]], book: PriceBook) -> None:
    """`cost_columns` and `cost_of` are twins, over all routes, refusals, estimates, units and prices."""
    assert together(batch, book) == [singly(event, book) for event in batch]


# --- Bodies of providers -----------------------------------------------------------------------

few = st.just(0) | st.integers(0, 5) | st.integers(0, 10**6)
Body = tuple[dict[str, Any], str, dict[str, int]]
"""A usage object, whose it is, and its disjoint counts."""


@st.composite
def provider_bodies(draw: st.DrawFn) -> Body:
    """A usage object as its provider writes it, made of parts that share no token."""
    prompt, cached, written, written_1h, audio, out, reasoning, searches = (draw(few) for _ in range(8))
    parts = {
        "prompt_tokens": prompt,
        "cached_prompt_tokens": cached,
        "completion_tokens": out,
        "reasoning_tokens": reasoning,
    }
    family = draw(st.sampled_from(["openai", "openai-responses", "anthropic", "gemini", "bedrock"]))
    tier = draw(st.sampled_from([{}, {}, {"service_tier": "batch"}, {"service_tier": "default"}]))
    if family == "openai":
        whole_in, whole_out = prompt + cached + written + audio, out + reasoning
        details = {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": audio}
        body = {
            "prompt_tokens": whole_in,
            "completion_tokens": whole_out,
            "total_tokens": whole_in + whole_out,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
        parts |= {"cache_write_tokens": written, "audio_prompt_tokens": audio}
    elif family == "openai-responses":
        body = {
            "input_tokens": prompt + cached,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": out + reasoning,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + cached + out + reasoning,
        }
    elif family == "anthropic":
        body = {
            "input_tokens": prompt,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written + written_1h,
            "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": written_1h},
            "output_tokens": out,
            "server_tool_use": {"web_search_requests": searches},
        }
        parts |= {"cache_write_tokens": written, "cache_write_1h_tokens": written_1h, "searches": searches}
        parts["reasoning_tokens"] = 0
    elif family == "gemini":
        body = {
            "promptTokenCount": prompt + audio,
            "candidatesTokenCount": out,
            "thoughtsTokenCount": reasoning,
            "totalTokenCount": prompt + audio + out + reasoning,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": prompt},
                {"modality": "AUDIO", "tokenCount": audio},
            ],
        }
        parts |= {"cached_prompt_tokens": 0, "audio_prompt_tokens": audio}
    else:
        body = {
            "inputTokens": prompt,
            "outputTokens": out,
            "totalTokens": prompt + out + cached + written,
            "cacheReadInputTokens": cached,
            "cacheWriteInputTokens": written,
        }
        parts |= {"reasoning_tokens": 0, "cache_write_tokens": written}
    return {"usage": body, **tier}, family, {name: count for name, count in parts.items() if count}


sent_bodies = st.fixed_dictionaries(
    {
        "occurred_at_us": moments,
        "account": st.sampled_from(ACCOUNTS),
        "plan": st.sampled_from(["", "pro"]),
        "route": st.integers(0, len(ROUTES) - 1),
        "model": st.sampled_from(MODELS),
        "variant": st.sampled_from(["", "", "batch"]),
        "quantities": st.sampled_from([{}, {"seconds": "61.5"}, {"images": 2, "seconds": 1}]),
        "body": provider_bodies(),
        "named": st.booleans(),
    }
)


@settings(deadline=None, max_examples=effort(40, 200))
@given(st.lists(sent_bodies, min_size=1, max_size=8), price_books(), st.booleans())
def test_events_with_bodies_of_providers_cost_what_settled_requests_with_them_cost(
    batch: list[dict[str, Any]], book: PriceBook, as_lines: bool
) -> None:
    """From the bytes of events on one side and an outcome on the other, over variants, mark-ups and quantities."""
    lines, right, counted = [], [], []
    for index, sent in enumerate(batch):
        body, family, parts = sent["body"]
        usage_of = family if sent["named"] else None
        at = to_text(from_us(sent["occurred_at_us"]))
        event = {
            "id": str(index),
            "time": at,
            "account": sent["account"],
            "usage": body,
            "usage_of": usage_of,
        }
        event |= {name: sent[name] for name in ("model", "variant", "quantities") if sent[name]}
        lines.append(json.dumps(event))
        stated = Usage(
            model=sent["model"], quantities=parse_quantities(sent["quantities"]), variant=sent["variant"]
        )
        usage = counted_usage(stated, body, usage_of)
        right.append(
            cost_of(
                priced_by(book), sent["account"], sent["occurred_at_us"], ROUTES[sent["route"]], usage,
                sent["model"], 0, "", plan=sent["plan"],
            )
        )  # fmt: skip
        stated_units = {name: micros / MICROS for name, micros in stated.quantities.items()}
        counted.append({**parts, **stated_units})
    body_bytes = ("\n".join(lines) if as_lines else f"[{','.join(lines)}]").encode()
    decoded = (decode_ndjson if as_lines else decode_json)(body_bytes, now_us=START_US + 10**9)
    assert decoded.rejections == []
    found = cost_columns(
        decoded.columns,
        pa.array([sent["account"] for sent in batch]).dictionary_encode(),
        ROUTES,
        np.array([sent["route"] for sent in batch], np.int64),
        book,
        pa.array([sent["plan"] for sent in batch]).dictionary_encode(),
    )
    assert rows_of(found) == right
    for row, parts in zip(decoded.columns.to_pylist(), counted, strict=True):
        amounts = {name: micros / MICROS for name, micros in row["quantities"] or ()}
        amounts |= {name: row[name] for name in TOKEN_COLUMNS if row[name]}
        assert amounts == parts


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=8), price_books())
def test_a_correction_that_states_no_cost_finds_the_same_again(
    batch: list[dict[str, Any]], book: PriceBook
) -> None:
    """Ingest prices a batch, a correction one record: what did not change must not change its cost."""
    for event, (nanos, provider, state, credits, version) in zip(batch, together(batch, book), strict=True):
        if state in ("given", "estimated") or (
            event["provider_cost_nanos"] is not None and state != "unpriced"
        ):
            continue
        record = Record(
            event["account"], "", "", event["occurred_at_us"], 0, "e", 0, 1, "", "request", "", "",
            event["status"] or 0, "", event["denied_reason"] or "", None, 0, event["model"] or "",
            *(event[name] or 0 for name in TOKEN_COLUMNS), event["cache"] or "", credits, nanos, 0, state,
            version, {}, event["quantities"] or {}, provider, event["variant"] or "",
        )  # fmt: skip
        assert recharged(priced_by(book), record, ROUTES[event["route"]], event["plan"]) == record


@settings(deadline=None)
@given(st.lists(records, min_size=1, max_size=12))
def test_columns_count_what_their_records_count(batch: list[Record]) -> None:
    """`units_columns` and `units_of` are twins; a reversal has the sign -1, a denied request counts for none."""
    found = units_columns(table_of(batch))
    for index, record in enumerate(batch):
        units = units_of(record)
        assert {unit: int(column[index]) for unit, column in found.items()} == {
            unit: units.get(unit, 0) for unit in found
        }
        assert units.keys() <= found.keys()
