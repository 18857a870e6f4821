"""Decoding meter events: both ways agree, nothing raises, every rejection says where and why."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tollkeeper.domain.events import (
    BYTES_MAX,
    COLUMN_CLASSES,
    COST_NANOS_MAX,
    FUTURE_S_MAX,
    LATENCY_MS_MAX,
    QUANTITY_CLASSES,
    TIME_MIN_US,
    TOKENS_MAX,
    Event,
    Tokens,
    latency_us,
    parse_time_us,
)
from tollkeeper.errors import BodyTooLarge, Malformed
from tollkeeper.http.wire import TokenCounts
from tollkeeper.meter import decode, exact, fast, fields, lines, rejections
from tollkeeper.meter.decode import Decoded, decode_events, decode_json, decode_ndjson
from tollkeeper.meter.exact import EVENT_BYTES_MAX
from tollkeeper.meter.fields import EVENT_SCHEMA, table_from
from tollkeeper.meter.rejections import GIVEN_UP_AFTER, REJECTIONS_SHOWN

NOW_US = parse_time_us("2026-03-01T00:00:00Z")
CODES = {
    "malformed",
    "missing_field",
    "unknown_field",
    "wrong_type",
    "out_of_range",
    "bad_value",
    "bad_time",
    "time_too_old",
    "time_in_future",
    "bad_usage",
}

GOOD: dict[str, Any] = {
    "id": "e-1",
    "time": "2026-01-31T09:30:00.125Z",
    "account": "acme",
    "method": "POST",
    "route": "/v1/chat/{model}",
    "status": 200,
    "latency_ms": 12.5,
    "tokens": {"prompt": 3, "completion": 4},
    "tags": {"team": "red"},
}


def lines_of(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def exactly(body: bytes) -> Decoded:
    """Decode *body* as `decode_ndjson` does, by the exact way alone."""
    found = lines.Lines.of(body.removeprefix(b"\xef\xbb\xbf"))
    rejected = rejections.Rejected(gives_up=True)
    return decode._assemble([exact.decode_exactly(found, NOW_US, rejected)], rejected)


def plain(decoded: Decoded) -> tuple[Any, ...]:
    assert decoded.columns.schema == EVENT_SCHEMA
    decoded.columns.validate(full=True)
    assert decoded.count == len(decoded.columns) + len(decoded.rejections)
    assert len(decoded.indexes) == len(decoded.columns)
    taken = [*decoded.indexes.tolist(), *(r.index for r in decoded.rejections)]
    assert sorted(taken) == list(range(decoded.count))
    assert decoded.indexes.tolist() == sorted(decoded.indexes.tolist())
    assert [r.index for r in decoded.rejections] == sorted(r.index for r in decoded.rejections)
    assert {r.code for r in decoded.rejections} <= CODES
    return decoded.columns.to_pylist(), decoded.indexes.tolist(), decoded.rejections, decoded.count


def decoded_both_ways(body: bytes) -> Decoded:
    decoded = decode_ndjson(body, now_us=NOW_US)
    assert plain(decoded) == plain(exactly(body))
    return decoded


def fast_takes(body: bytes) -> bool:
    rejected = rejections.Rejected(gives_up=True)
    return fast.decode_fast(lines.Lines.of(body), NOW_US, rejected, 0) is not None


# --- Generated events ---------------------------------------------------------------------------------------

texts = st.text(max_size=6) | st.sampled_from(["", "é" * 256, "é" * 257, "x" * 64, "x" * 65, "a\x00b", "😀"])
whole = st.integers(-1, 10) | st.sampled_from(
    [
        999,
        1000,
        TOKENS_MAX,
        TOKENS_MAX + 1,
        BYTES_MAX + 1,
        COST_NANOS_MAX + 1,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63) - 1,
        10**30,
    ]
)
fractions = (
    st.floats(allow_nan=True) | st.floats(0, 1000) | st.sampled_from([200.0, -0.0, LATENCY_MS_MAX, 0.0005])
)
junk = st.none() | st.booleans() | whole | fractions | texts | st.lists(st.integers(), max_size=2)
times = st.sampled_from(
    [
        "2026-01-31T09:30:00Z",
        "2026-01-31 09:30:00.1Z",
        "2026-01-31t09:30:00z",
        "2026-01-31T09:30:00.123456789Z",
        "2026-01-31T09:30:00.1234567890123Z",
        "2026-01-31T09:30:00+05:30",
        "2026-01-31T09:30:00.5-23:59",
        "2026-01-31T09:30:00+24:00",
        "2026-01-31T09:30:00+0530",
        "2026-01-31T09:30:00.12345+05",
        "2026-01-31T09:30Z",
        "2026-01-31T09Z",
        "2026-01-31",
        "2026-01-31T09:30:00",
        "2026-02-30T09:30:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "1999-12-31T23:59:59.999999Z",
        "2000-01-01T00:00:00Z",
        "2026-03-01T00:05:00Z",
        "2026-03-01T00:05:00.000001Z",
        "9999-12-31T23:59:59Z",
        "٢٠٢٦-01-31T09:30:00Z",
    ]
)
tags = st.dictionaries(
    texts | st.sampled_from(["team", "region"]), texts | st.none() | st.integers(), max_size=3
) | st.builds(lambda n: {f"tag{i}": "v" for i in range(n)}, st.sampled_from([16, 17]))
tokens = st.dictionaries(
    st.sampled_from([*Tokens.__struct_fields__, "total"]), whole | st.none() | fractions, max_size=4
)
amounts = st.sampled_from(
    [
        "61.5",
        "0",
        "0.000001",
        "1000000000000",
        "1000000000000.000001",
        "1e3",
        "-1",
        "",
        "07",
        "2.",
        ".5",
        "0.1234567",
        0,
        1,
        -1,
        10**12,
        10**12 + 1,
        2**63,
        0.5,
        61.5,
        0.1 + 0.2,
        1e-6,
        1e-7,
        1e15,
        123456789.123456,
        -0.0,
        None,
    ]
) | st.floats(0, 10**9)
quantities = st.dictionaries(
    st.sampled_from(["seconds", "images", "own_unit", "cache_write_tokens", "audio_prompt_tokens"]),
    amounts,
    max_size=4,
) | st.builds(lambda n: {f"n{i}": 1 for i in range(n)}, st.sampled_from([32, 33]))
usage_objects = st.dictionaries(
    st.sampled_from(
        ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "extra"]
    ),
    whole | st.none() | fractions | texts,
    max_size=4,
) | st.just({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}})
NAMES = [*Event.__struct_fields__, "timestamp", "", "tokens.prompt"]


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """Return a good event with up to three changes, most of which make it a bad one."""
    event = dict(GOOD)
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        likely = {
            "time": times,
            "tags": tags,
            "tokens": tokens,
            "cache": st.sampled_from(["hit", "no", ""]),
            "quantities": quantities | st.dictionaries(texts, junk, max_size=2),
            "usage": usage_objects,
            "usage_of": st.sampled_from(["openai", "anthropic", "gemini", "opanai", ""]),
        }
        action = draw(st.sampled_from(["drop", "likely", "likely", "junk"]))
        if action == "drop":
            event.pop(name, None)
        else:
            event[name] = draw(likely.get(name, whole | texts | fractions) if action == "likely" else junk)
    return event


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Return NDJSON of mostly events, some with bytes changed, and all kinds of line ends."""
    body = b""
    for event in draw(st.lists(events(), min_size=1, max_size=5)):
        ascii_only, spaced = draw(st.booleans()), draw(st.booleans())
        text = json.dumps(event, ensure_ascii=ascii_only, separators=None if spaced else (",", ":"))
        line = text.encode("utf-8", "surrogatepass")
        if draw(st.integers(0, 4)) == 0:
            at = draw(st.integers(0, len(line)))
            piece = draw(
                st.sampled_from(
                    [b"}", b"{", b'"', b"\n", b"\r", b"\\ud800", b"\xff", b"\0", b"}{", b"null", b","]
                )
            )
            line = line[:at] + piece + line[at + draw(st.integers(0, 2)) :]
        body += line + draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b" \n\t\n", b""]))
    return body


@settings(max_examples=effort(50, 250), deadline=None)
@given(bodies())
@example(lines_of(GOOD, GOOD).replace(b'"e-1"', b'"\\u00e9"'))
@example(b'{"id":"a","time":"2026-01-31T09:30:00Z","account":"x"}{"id":"b"}\n{"id":"c",\n"time":"x"}\n')
def test_both_ways_decode_alike(body: bytes) -> None:
    """The fast way is for speed only: rows, positions and rejections are those of the exact way."""
    decoded_both_ways(body)


sound_values: dict[str, st.SearchStrategy[Any]] = {
    "id": st.text(min_size=1, max_size=4),
    "time": times,
    "account": texts,
    "key_id": texts | st.none(),
    "kind": texts,
    "status": st.sampled_from([0, 200, 999, 1000]),
    "latency_ms": st.floats(0, 1e9) | st.integers(0, 1000),
    "bytes_out": st.sampled_from([0, BYTES_MAX, BYTES_MAX + 1]),
    "cache": st.sampled_from(["hit", "miss", "none", None, "no"]),
    "credits": st.sampled_from([0, COST_NANOS_MAX, None]),
    "tokens": st.dictionaries(
        st.sampled_from(Tokens.__struct_fields__),
        st.none() | st.sampled_from([0, TOKENS_MAX, TOKENS_MAX + 1]),
    ),
    "variant": texts,
    "provider_cost_nanos": st.sampled_from([0, COST_NANOS_MAX, COST_NANOS_MAX + 1, None]),
    "quantities": quantities,
    "tags": st.dictionaries(st.sampled_from(["é", "a", "B", "😀"]), texts | st.none(), max_size=4)
    | st.builds(lambda n: {f"tag{i}": "v" for i in range(n)}, st.sampled_from([16, 17])),
}


@settings(max_examples=effort(30, 150), deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=sound_values), min_size=1, max_size=6), st.booleans())
def test_the_fast_way_judges_values_as_the_exact_way_does(
    changes: list[dict[str, Any]], ascii_only: bool
) -> None:
    """Here the types are right, so that it is the checks of the fast way that decide."""
    batch = [json.dumps({**GOOD, **change}, ensure_ascii=ascii_only) for change in changes]
    decoded_both_ways("\n".join(batch).encode())


@settings(max_examples=effort(30, 150), deadline=None)
@given(st.lists(st.tuples(quantities, tokens), min_size=1, max_size=6))
def test_quantities_are_the_same_both_ways(stated: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Text, whole numbers and fractions, in both spellings of a token class."""
    batch = [{**GOOD, "quantities": amounts, "tokens": counts} for amounts, counts in stated]
    decoded_both_ways(lines_of(*batch))
    for event in batch:
        decoded_both_ways(lines_of(event, event))


@pytest.mark.parametrize(
    "quantities",
    [
        {"seconds": "61.5", "images": 2, "own": 0.25, "cache_write_tokens": 7},
        {"seconds": 61.5, "images": "2", "own": "0.250000", "cache_write_tokens": "7"},
        {"seconds": 61.5, "images": 2.0, "own": 0.25, "cache_write_tokens": 7.0, "zero": 0, "null": None},
    ],
)
def test_events_with_quantities_are_read_the_fast_way(quantities: dict[str, Any]) -> None:
    events = [
        {**GOOD, "quantities": quantities},
        {**GOOD, "quantities": {"seconds": quantities["seconds"]}},
        GOOD,
    ]
    assert fast_takes(lines_of(*events))
    decoded = decoded_both_ways(lines_of(*events))
    assert decoded.columns.column("quantities").to_pylist() == [
        [("cache_write_tokens", 7_000_000), ("images", 2_000_000), ("own", 250_000), ("seconds", 61_500_000)],
        [("seconds", 61_500_000)],
        None,
    ]


def test_token_classes_are_quantities_in_another_spelling() -> None:
    event = {**GOOD, "tokens": {"prompt": 3, "cache_write": 5, "audio_completion": 0, "image_prompt": 9}}
    assert fast_takes(lines_of(event))
    row = decoded_both_ways(lines_of(event)).columns.to_pylist()[0]
    assert (row["prompt_tokens"], row["quantities"]) == (
        3,
        [("cache_write_tokens", 5_000_000), ("image_prompt_tokens", 9_000_000)],
    )
    twice = {**event, "quantities": {"cache_write_tokens": 5}}
    (rejection,) = decoded_both_ways(lines_of(twice)).rejections
    assert (rejection.field, rejection.code) == ("tokens.cache_write", "bad_value")


@pytest.mark.parametrize(
    ("quantities", "field", "code"),
    [
        ({"seconds": "-1"}, "quantities.seconds", "out_of_range"),
        ({"seconds": "1e3"}, "quantities.seconds", "bad_value"),
        ({"seconds": 0.1234567}, "quantities.seconds", "bad_value"),
        ({"Seconds": 1}, "quantities", "bad_value"),
        ({"seconds": [1]}, "quantities", "wrong_type"),
        ({"seconds": True}, "quantities", "wrong_type"),
        ([1], "quantities", "wrong_type"),
        ({"cache_write_tokens": "1.5"}, "quantities.cache_write_tokens", "bad_value"),
        ({"seconds": 10**12 + 1}, "quantities.seconds", "out_of_range"),
    ],
)
def test_a_bad_quantity_names_its_field(quantities: Any, field: str, code: str) -> None:
    (rejection,) = decoded_both_ways(lines_of({**GOOD, "quantities": quantities})).rejections
    assert (rejection.field, rejection.code) == (field, code)


@settings(max_examples=effort(20, 100), deadline=None)
@given(st.lists(events(), max_size=6))
def test_every_way_in_gives_the_same_events(given_events: list[dict[str, Any]]) -> None:
    """NDJSON, a JSON array, a pretty-printed array and Python objects are one format."""
    given_events = [
        json.loads(json.dumps(event).replace("NaN", "-1").replace("Infinity", "9")) for event in given_events
    ]
    expected = plain(decode_ndjson(lines_of(*given_events), now_us=NOW_US))
    compact = json.dumps(given_events).encode()
    indented = json.dumps(given_events, indent=1).encode()
    assert plain(decode_json(compact, now_us=NOW_US)) == expected
    assert plain(decode_json(indented, now_us=NOW_US)) == expected
    rows, indexes, rejections, count = plain(decode_events(given_events, now_us=NOW_US))
    assert (rows, indexes, count) == (expected[0], expected[1], expected[3])
    # In words, an integer beyond 64 bits is a number in JSON and an integer in Python.
    assert [r[:3] for r in rejections] == [r[:3] for r in expected[2]]


@settings(max_examples=effort(20, 100), deadline=None)
@given(st.lists(events(), min_size=1, max_size=8), st.data())
def test_a_body_split_at_line_ends_gives_the_same_events(
    batch: list[dict[str, Any]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(batch)))
    whole_body = decode_ndjson(lines_of(*batch), now_us=NOW_US)
    head = decode_ndjson(lines_of(*batch[:cut]), now_us=NOW_US)
    tail = decode_ndjson(lines_of(*batch[cut:]), now_us=NOW_US)
    rows = head.columns.to_pylist() + tail.columns.to_pylist()
    assert rows == whole_body.columns.to_pylist()
    moved = [r._replace(index=r.index + head.count) for r in tail.rejections]
    assert head.rejections + moved == whole_body.rejections


@settings(max_examples=effort(40, 200), deadline=None)
@given(st.binary(max_size=80) | st.text(alphabet='{}[]",:\\\n\r0e.-ntu', max_size=40).map(str.encode))
def test_arbitrary_bytes_are_rejected_not_raised(body: bytes) -> None:
    decoded_both_ways(body)
    plain(decode_json(body, now_us=NOW_US))


@settings(max_examples=effort(40, 200), deadline=None)
@given(
    times,
    st.integers(0, 40),
    st.sampled_from(["", "0", "Z", ":", "+", " ", ".", "T", "-"]),
    st.integers(0, 2),
)
def test_times_are_read_as_the_domain_reads_them(text: str, at: int, piece: str, cut: int) -> None:
    """Arrow's parser takes other forms than RFC 3339; none of them gets through."""
    text = text[:at] + piece + text[at + cut :]
    decoded = decoded_both_ways(lines_of({**GOOD, "time": text}, GOOD))
    try:
        at_us = parse_time_us(text)
    except ValueError:
        assert decoded.rejections[0].code == "bad_time"
        return
    if TIME_MIN_US <= at_us <= NOW_US + FUTURE_S_MAX * 10**6:
        assert decoded.columns.column("occurred_at_us")[0].as_py() == at_us
    else:
        assert decoded.rejections[0].code in ("time_too_old", "time_in_future")


@settings(max_examples=effort(20, 100), deadline=None)
@given(st.lists(st.floats(0, LATENCY_MS_MAX) | st.integers(0, 10**7).map(lambda n: n / 2000), min_size=1))
@example([0.0005, 0.0015, 0.0025, 1.0005])
def test_latencies_are_rounded_as_the_domain_rounds_them(millis: list[float]) -> None:
    body = lines_of(*({**GOOD, "latency_ms": value} for value in millis))
    assert fast_takes(body)
    decoded = decode_ndjson(body, now_us=NOW_US)
    assert decoded.columns.column("latency_us").to_pylist() == [latency_us(value) for value in millis]


# --- What is taken ------------------------------------------------------------------------------------------


def test_an_event_becomes_one_row() -> None:
    decoded = decoded_both_ways(lines_of(GOOD))
    (row,) = decoded.columns.to_pylist()
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "e-1",
        "occurred_at_us": parse_time_us(GOOD["time"]),
        "account": "acme",
        "method": "POST",
        "route": "/v1/chat/{model}",
        "status": 200,
        "latency_us": 12_500,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "tags": [("team", "red")],
    }


@pytest.mark.parametrize(
    "body",
    [
        lines_of(GOOD),
        lines_of(GOOD).rstrip(),
        lines_of(GOOD).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + lines_of(GOOD),
        b"\n \r\n" + lines_of(GOOD) + b"\n\n",
        b"  " + lines_of(GOOD).replace(b", ", b" ,\t"),
    ],
    ids=["plain", "no last line end", "crlf", "byte order mark", "blank lines", "white space"],
)
def test_line_ends_and_white_space_do_not_matter(body: bytes) -> None:
    assert fast_takes(body.removeprefix(b"\xef\xbb\xbf"))
    assert plain(decoded_both_ways(body)) == plain(decode_events([GOOD], now_us=NOW_US))


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf"])
def test_an_empty_body_holds_no_events(body: bytes) -> None:
    assert plain(decode_ndjson(body, now_us=NOW_US)) == ([], [], [], 0)
    assert plain(decode_json(body, now_us=NOW_US)) == ([], [], [], 0)
    assert plain(decode_json(b"[]", now_us=NOW_US)) == ([], [], [], 0)
    assert plain(decode_events([], now_us=NOW_US)) == ([], [], [], 0)


def test_json_may_be_one_event_over_many_lines() -> None:
    expected = plain(decode_events([GOOD], now_us=NOW_US))
    assert plain(decode_json(json.dumps(GOOD, indent=2).encode(), now_us=NOW_US)) == expected


def test_an_event_made_in_python_is_checked_too() -> None:
    """`Event(...)` checks nothing by itself."""
    good = Event(id="a", time="2026-01-31T09:30:00Z", account="x", tokens=Tokens(prompt=1), tags={"a": "b"})
    bad = Event(id="a", time="2026-01-31T09:30:00Z", account="x", tokens=Tokens(prompt=-1))
    decoded = decode_events([good, bad, {**GOOD, "status": math.nan}], now_us=NOW_US)
    plain(decoded)
    assert decoded.indexes.tolist() == [0]
    assert [(r.index, r.field, r.code) for r in decoded.rejections] == [
        (1, "tokens.prompt", "out_of_range"),
        (2, "status", "wrong_type"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        5,
        None,
        "x",
        object(),
        {1: 2},
        {**GOOD, "id": "\ud800"},
        {**GOOD, "\ud800": 1},
        {**GOOD, "tags": {"\ud800": "x"}},
        {**GOOD, "tags": {1: "x"}},
        {**GOOD, "status": 10**30},
        {**GOOD, "method": object()},
        Event(id=object(), time="x"),  # type: ignore[arg-type]
    ],
    # Without addresses: every process that shares the tests must name them alike.
    ids=lambda value: re.sub("0x[0-9a-f]+", "", ascii(value))[-30:],
)
def test_a_value_that_is_no_event_is_rejected_alone(value: Any) -> None:
    decoded = decode_events([GOOD, value, GOOD], now_us=NOW_US)
    plain(decoded)
    assert decoded.indexes.tolist() == [0, 2]


def test_nulls_are_absent_fields() -> None:
    optional = [name for name in Event.__struct_fields__ if name not in GOOD]
    nulls = {**GOOD, **dict.fromkeys(optional), "tags": {"team": "red", "unset": None}}
    body = lines_of(nulls)
    assert fast_takes(body)
    assert plain(decoded_both_ways(body)) == plain(decode_events([GOOD], now_us=NOW_US))


def test_of_a_field_given_twice_the_last_counts() -> None:
    """JSON leaves it open, parsers differ; ours agree."""
    body = lines_of(GOOD).replace(b'"status": 200', b'"status": 200, "status": 404')
    body = body.replace(b'"team": "red"', b'"team": "red", "team": "blue"')
    (row,) = decoded_both_ways(body).columns.to_pylist()
    assert (row["status"], row["tags"]) == (404, [("team", "blue")])


def test_tags_are_sorted_and_no_tags_are_null() -> None:
    body = lines_of(
        {**GOOD, "tags": {"b": "1", "a": ""}},
        {**GOOD, "tags": {}},
        {**GOOD, "tags": None},
        {**GOOD, "tags": {"é": "2"}},
    )
    assert fast_takes(body)
    decoded = decoded_both_ways(body)
    assert decoded.columns.column("tags").to_pylist() == [[("a", ""), ("b", "1")], None, None, [("é", "2")]]


def test_text_columns_are_dictionaries_of_the_accepted_events_only() -> None:
    body = lines_of(GOOD, {**GOOD, "method": "M" * 17}, {**GOOD, "method": "GET"})
    method = decode_ndjson(body, now_us=NOW_US).columns.column("method")
    assert method.num_chunks == 1
    assert method.chunk(0).dictionary.to_pylist() == ["POST", "GET"]


# --- What is rejected ---------------------------------------------------------------------------------------

REJECTED = [
    ({"id": ""}, "id", "out_of_range"),
    ({"id": "x" * 129}, "id", "out_of_range"),
    ({"id": 7}, "id", "wrong_type"),
    ({"id": None}, "id", "wrong_type"),
    ({"account": None}, "account", "missing_field"),
    ({"account": ""}, "account", "missing_field"),
    ({"account": "é" * 257}, "account", "out_of_range"),
    ({"method": "M" * 17}, "method", "out_of_range"),
    ({"status": 1000}, "status", "out_of_range"),
    ({"status": -1}, "status", "out_of_range"),
    ({"status": 10**30}, "status", "out_of_range"),
    ({"status": "200"}, "status", "wrong_type"),
    ({"status": True}, "status", "wrong_type"),
    ({"status": 200.0}, "status", "wrong_type"),
    ({"latency_ms": -0.001}, "latency_ms", "out_of_range"),
    ({"latency_ms": LATENCY_MS_MAX + 1}, "latency_ms", "out_of_range"),
    ({"latency_ms": "5"}, "latency_ms", "wrong_type"),
    ({"latency_ms": math.nan}, "", "malformed"),
    ({"latency_ms": math.inf}, "", "malformed"),
    ({"bytes_out": BYTES_MAX + 1}, "bytes_out", "out_of_range"),
    ({"cost_nanos": COST_NANOS_MAX + 1}, "cost_nanos", "out_of_range"),
    ({"cost_nanos": 2**64}, "cost_nanos", "out_of_range"),
    ({"cache": "maybe"}, "cache", "bad_value"),
    ({"tokens": {"prompt": -1}}, "tokens.prompt", "out_of_range"),
    ({"tokens": {"cached_prompt": TOKENS_MAX + 1}}, "tokens.cached_prompt", "out_of_range"),
    ({"tokens": {"prompt": 1.5}}, "tokens.prompt", "wrong_type"),
    ({"tokens": {"total": 1}}, "tokens.total", "unknown_field"),
    ({"tokens": 5}, "tokens", "wrong_type"),
    ({"tags": {"a": 1}}, "tags", "wrong_type"),
    ({"tags": {"a": {"b": "c"}}}, "tags", "wrong_type"),
    ({"tags": ["a"]}, "tags", "wrong_type"),
    ({"tags": {"": "x"}}, "tags", "out_of_range"),
    ({"tags": {"x" * 65: "x"}}, "tags", "out_of_range"),
    ({"tags": {"a": "x" * 257}}, "tags", "out_of_range"),
    ({"tags": {str(i): "x" for i in range(17)}}, "tags", "out_of_range"),
    ({"timestamp": 5}, "timestamp", "unknown_field"),
    ({"x" * 200: 5}, "x" * 64, "unknown_field"),
    ({"time": "yesterday"}, "time", "bad_time"),
    ({"time": "2026-01-31T09:30:00"}, "time", "bad_time"),
    ({"time": "2026-02-30T09:30:00Z"}, "time", "bad_time"),
    ({"time": "2026-02-30T09:30:00." + "1" * 5000 + "Z"}, "time", "bad_time"),
    ({"time": 1769851800}, "time", "wrong_type"),
    ({"time": "1999-12-31T23:59:59Z"}, "time", "time_too_old"),
    ({"time": "2026-03-01T00:05:00.000001Z"}, "time", "time_in_future"),
]


@pytest.mark.parametrize(("change", "field", "code"), REJECTED, ids=lambda value: ascii(value)[:40])
def test_a_bad_event_is_rejected_with_its_field_and_sinks_no_other(
    change: dict[str, Any], field: str, code: str
) -> None:
    decoded = decoded_both_ways(lines_of(GOOD, {**GOOD, **change}, GOOD))
    assert decoded.indexes.tolist() == [0, 2]
    (rejection,) = decoded.rejections
    assert (rejection.index, rejection.field, rejection.code) == (1, field, code)
    assert 10 < len(rejection.reason) < 200
    assert rejection.field in rejection.reason
    assert "`" not in rejection.reason


@pytest.mark.parametrize("missing", ["id", "time", "account"])
def test_a_missing_field_is_named(missing: str) -> None:
    event = {name: value for name, value in GOOD.items() if name != missing}
    (rejection,) = decoded_both_ways(lines_of(event)).rejections
    assert (rejection.field, rejection.code) == (missing, "missing_field")


def test_a_key_id_does_for_an_account() -> None:
    event = {**GOOD, "account": None, "key_id": "k"}
    assert not decoded_both_ways(lines_of(event)).rejections


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"nonsense",
        b"5",
        b"[]",
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        b'{"id": "\\udc00"}',
        b'{"id": "a\x01"}',
        b'{"id": "a",}',
        b'{"id": 01}',
        b'\xef\xbb\xbf{"id": "a"}',
        lines_of(GOOD).strip() * 2,
        lines_of(GOOD).strip() + b"\0",
        b'{"id": "a"}\0{"id": "b"}',
        b'{"id": ' + b"[" * 100_000,
        b'{"tags": ' + b'{"x":' * 100_000,
        b'{"x": ' + b'{"x":' * 100_000,
        b'{"id": "' + b"x" * 10_000_000 + b'"}',
    ],
    ids=lambda line: ascii(line[:24]),
)
def test_a_line_that_is_no_event_is_rejected_alone(line: bytes) -> None:
    good = lines_of(GOOD)
    decoded = decoded_both_ways(good + line + b"\n" + good)
    assert decoded.indexes.tolist() == [0, 2]
    assert len(decoded.rejections[0].reason) < 200


@pytest.mark.parametrize(
    "body",
    [
        b"[",
        b"[{}",
        b'[{"id": NaN}]',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'"\xff',
        lines_of(GOOD, GOOD),
        b"[] []",
    ],
    ids=lambda body: ascii(body[:20]),
)
def test_a_body_that_is_not_json_is_one_rejection(body: bytes) -> None:
    decoded = decode_json(body, now_us=NOW_US)
    plain(decoded)
    assert [(r.index, r.code) for r in decoded.rejections] == [(0, "malformed")]


def test_objects_that_make_up_for_each_other_are_still_counted_by_line() -> None:
    """Arrow reads two events from one line and one from two others: as many rows as lines."""
    good = lines_of(GOOD)
    two = good.strip() * 2 + b"\n"
    halves = good.replace(b'}, "tags"', b'}\n, "tags"')
    assert halves.count(b"\n") == 2
    # Far from the lines that are sampled for tags.
    decoded = decoded_both_ways(good * 3 + two + halves + good * 994)
    assert [(r.index, r.code) for r in decoded.rejections] == [(i, "malformed") for i in (3, 4, 5)]


# --- How it is done -----------------------------------------------------------------------------------------


def test_a_bad_line_sends_only_its_piece_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One malformed line in a large batch must not cost the speed of all of it."""
    monkeypatch.setattr(decode, "PIECE_LINES", 4)
    exact_sizes = []
    original = decode.decode_exactly

    def counting(lines: Any, *rest: Any) -> Any:
        exact_sizes.append(len(lines))
        return original(lines, *rest)

    monkeypatch.setattr(decode, "decode_exactly", counting)
    batch = [{**GOOD, "id": str(i)} for i in range(18)]
    batch[5]["status"] = "x"
    batch[6]["status"] = 1000
    decoded = decode_ndjson(lines_of(*batch), now_us=NOW_US)
    plain(decoded)
    assert exact_sizes == [4]
    assert [r.index for r in decoded.rejections] == [5, 6]
    assert decoded.columns.column("id").to_pylist() == [str(i) for i in range(18) if i not in (5, 6)]


def test_a_row_that_the_fast_way_leaves_to_the_exact_way_keeps_its_place() -> None:
    """A time with small letters is RFC 3339, though Arrow does not know it."""
    odd = {**GOOD, "id": "odd", "time": "2026-01-31t09:30:00z"}
    bad = {**GOOD, "id": "bad", "time": "2026-01-31T09:30Z"}
    body = lines_of({**GOOD, "id": "first"}, odd, bad, {**GOOD, "id": "last", "account": "é" * 200})
    assert fast_takes(body)
    decoded = decoded_both_ways(body)
    assert decoded.columns.column("id").to_pylist() == ["first", "odd", "last"]
    assert decoded.indexes.tolist() == [0, 1, 3]


def test_many_tag_names_do_not_make_many_columns() -> None:
    """Each event naming its own tag is read, the exact way."""
    body = lines_of(*({**GOOD, "tags": {f"request-{i}": "x"}} for i in range(300)))
    assert not fast_takes(body)
    assert not decoded_both_ways(body).rejections


def test_a_tag_that_the_sample_missed_is_kept() -> None:
    batch = [dict(GOOD) for _ in range(1000)]
    batch[777]["tags"] = {"rare": "yes"}
    decoded = decoded_both_ways(lines_of(*batch))
    assert decoded.columns.column("tags")[777].as_py() == [("rare", "yes")]


def test_a_batch_of_several_blocks_keeps_its_order() -> None:
    batch = [{**GOOD, "id": f"{i:06}", "account": f"a{i % 7}"} for i in range(12_000)]
    body = lines_of(*batch)
    assert len(body) > 2 * lines.BLOCK_BYTES
    assert fast_takes(body)
    decoded = decode_ndjson(body, now_us=NOW_US)
    assert decoded.columns.column("id").to_pylist() == [event["id"] for event in batch]
    assert decoded.columns.column("account").to_pylist() == [event["account"] for event in batch]


def test_columns_can_be_given_directly() -> None:
    table = table_from({"id": ["a", "b"], "occurred_at_us": [1, 2], "tags": [{"b": "1", "a": "2"}, {}]}, 2)
    assert table.schema == EVENT_SCHEMA
    assert table.column("tags").to_pylist() == [[("a", "2"), ("b", "1")], None]
    assert table.column("route").to_pylist() == [None, None]


def test_every_field_of_an_event_has_its_column() -> None:
    """A new field of `Event` must not be dropped without notice."""
    # A provider's usage object becomes the counts that it states.
    fields = set(Event.__struct_fields__) - {"time", "latency_ms", "tokens", "usage", "usage_of"}
    fields |= {"occurred_at_us", "latency_us"} | {f"{name}_tokens" for name in COLUMN_CLASSES}
    assert set(EVENT_SCHEMA.names) == fields
    # The others are quantities. What is estimated before a request has the same classes.
    assert (
        {*COLUMN_CLASSES, *QUANTITY_CLASSES}
        == set(Tokens.__struct_fields__)
        == set(TokenCounts.__struct_fields__)
    )
    assert pa.types.is_map(EVENT_SCHEMA.field("tags").type)
    assert msgspec.json.schema(Event)


# --- What a batch costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"{}", b"1", b"{", b"\xff"])
def test_rejections_are_counted_and_only_the_first_are_made(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or 64 KB of gzip make gigabytes of them."""
    made = []
    worded = rejections.rejection_of
    monkeypatch.setattr(rejections, "rejection_of", lambda *given: made.append(1) or worded(*given))
    decoded = decode_ndjson(lines_of(GOOD) + (line + b"\n") * 9_000, now_us=NOW_US)
    assert (decoded.count, decoded.rejected, len(decoded.columns)) == (9_001, 9_000, 1)
    assert [r.index for r in decoded.rejections] == list(range(1, REJECTIONS_SHOWN + 1))
    assert len(made) == REJECTIONS_SHOWN


def test_rejections_of_objects_are_counted_alike() -> None:
    decoded = decode_events([{}] * 12_000, now_us=NOW_US)
    assert (decoded.rejected, len(decoded.rejections)) == (12_000, REJECTIONS_SHOWN)


@pytest.mark.parametrize("line", [b"{}", b"1", b"{", b"[", b"\xff"])
def test_a_body_that_begins_with_no_event_is_given_up(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is taken, not even what comes later, and no line after that is looked at."""
    seen = []
    from_json = exact.from_json
    for way in (exact, fast):
        monkeypatch.setattr(way, "from_json", lambda given: seen.append(1) or from_json(given))
    body = (line + b"\n") * GIVEN_UP_AFTER + lines_of(GOOD) * 50_000
    with pytest.raises(Malformed, match=r"None of the first 10,000 events .* The first: "):
        decode_ndjson(body, now_us=NOW_US)
    assert len(seen) == GIVEN_UP_AFTER


def test_an_array_that_begins_with_no_event_is_given_up() -> None:
    with pytest.raises(Malformed, match="None of the first"):
        decode_json(b"[" + b"1," * GIVEN_UP_AFTER + b"1]", now_us=NOW_US)


@pytest.mark.parametrize("good_at", [0, 5_000, GIVEN_UP_AFTER - 1])
def test_a_body_with_an_event_among_its_first_is_not_given_up(good_at: int) -> None:
    body = b"{}\n" * good_at + lines_of(GOOD) + b"{}\n" * GIVEN_UP_AFTER
    decoded = decode_ndjson(body, now_us=NOW_US)
    assert (decoded.indexes.tolist(), decoded.rejected) == ([good_at], good_at + GIVEN_UP_AFTER)


def test_the_events_of_a_call_are_bounded_before_anything_is_made_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (decode, rejections):
        monkeypatch.setattr(module, "EVENTS_MAX", 100)
    monkeypatch.setattr(decode, "_decode_lines", lambda *given: pytest.fail("parsed"))
    with pytest.raises(BodyTooLarge, match="more than 100 events"):
        decode_ndjson(b"1\n" * 101, now_us=NOW_US)
    monkeypatch.setattr(decode, "_RAW_ARRAY", None)
    for array in (b"[" + b"1," * 100 + b"1]", b"[" + b'{"a": [1, 2, ",]"]},' * 100 + b"1]"):
        with pytest.raises(BodyTooLarge, match="more than 100 events"):
            decode_json(array, now_us=NOW_US)


def test_commas_inside_events_are_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "EVENTS_MAX", 20)
    array = json.dumps([GOOD | {"id": f'{n}, ["{{'} for n in range(20)]).encode()
    assert decode_json(array, now_us=NOW_US).rejected == 0


json_values = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('a,"\\[]{}é', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('a,"\\[', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=effort(40, 200), deadline=None)
@given(st.lists(json_values, max_size=8), st.integers(1, 9))
def test_the_commas_of_an_array_are_those_between_its_items(items: list[Any], block_bytes: int) -> None:
    """Wherever a block ends: in a string, after a backslash, in the middle of a character."""
    before, lines.BLOCK_BYTES = lines.BLOCK_BYTES, block_bytes
    try:
        assert lines.array_commas(json.dumps(items).encode()) == max(0, len(items) - 1)
    finally:
        lines.BLOCK_BYTES = before


@pytest.mark.parametrize("array", [False, True])
def test_an_event_of_many_bytes_is_not_parsed(array: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of `[[],[],…` are gigabytes of lists."""
    long = b'{"tags": [' + b"[]," * EVENT_BYTES_MAX + b"[]]}"
    parsed: list[int] = []
    for way, name in ((exact, "_EVENT"), (exact, "ANY"), (fast, "ANY")):
        decoder = getattr(way, name)

        def watched(line: bytes, decoder: Any = decoder) -> Any:
            parsed.append(len(line))
            return decoder.decode(line)

        monkeypatch.setattr(way, name, SimpleNamespace(decode=watched))
    good = lines_of(GOOD).strip()
    if array:
        decoded = decode_json(b"[" + good + b"," + long + b"]", now_us=NOW_US)
    else:
        decoded = decode_ndjson(good + b"\n" + long, now_us=NOW_US)
    assert [(r.index, r.code) for r in decoded.rejections] == [(1, "malformed")]
    assert max(parsed) < 1_000


def test_the_largest_event_is_within_the_bound_of_its_bytes() -> None:
    """The bound may refuse no event that is in bounds otherwise, however it is written."""
    wide = "\U0001f600"
    texts = {name: wide * most for name, most in fields.CHARS_MAX.items()}
    tags = {f"{n:02}" + wide * 62: wide * fields.TAG_VALUE_CHARS_MAX for n in range(16)}
    event = GOOD | texts | {"id": wide * 128, "tags": tags}
    line = lines_of(event)
    assert line.isascii()
    assert len(line) < EVENT_BYTES_MAX // 2
    assert decoded_both_ways(line).rejected == 0
