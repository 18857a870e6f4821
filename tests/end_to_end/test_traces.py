"""
Real traffic through the HTTP API of a running server reproduces the exact figures: rows, tokens, cost, per
minute, hour, day, model, status, endpoint and tenant; latency percentiles within the stated error.
"""

from __future__ import annotations

import gzip
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import traces
from tests.end_to_end.server import Server, running_server
from tollkeeper.domain.rollups import RELATIVE_ERROR_MAX

pytestmark = traces.needs_traces

ALL_TIME = {"from": "2010-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("traces")) as running:
        for price in traces.prices():
            running.put(f"/tk/v1/prices/{price['id']}", price)
        for account in ("conv", "code", "spans", "turns", "rpc"):
            running.put(f"/tk/v1/accounts/{account}", {"name": account})
        for project in traces.tenants():
            running.put(f"/tk/v1/projects/{project}", {"account": "spans", "name": project})
        send(running, traces.ndjson(traces.azure("conv", "conv")), compress=True)
        send(running, traces.ndjson(traces.azure("code", "code")))
        send(running, traces.ndjson(traces.spans("spans")))
        send(running, traces.ndjson(traces.turns("turns")))
        send(running, traces.ndjson(traces.rpc("rpc")))
        yield running


def send(server: Server, body: bytes, *, compress: bool = False) -> dict[str, Any]:
    headers = {"Content-Type": "application/x-ndjson"}
    count = body.count(b"\n") + 1
    if compress:
        body = gzip.compress(body)
        headers["Content-Encoding"] = "gzip"
    answer = server.call("POST", "/tk/v1/events", body, headers)
    assert answer["rejected"] == 0, answer["errors"][:3]
    assert answer["accepted"] + answer["duplicates"] == count
    return answer


def usage(server: Server, account: str, **params: str) -> dict[str, Any]:
    query = urllib.parse.urlencode({"account": account, "limit": "5000", **ALL_TIME, **params})
    answer = server.call("GET", f"/tk/v1/usage?{query}")
    assert answer["complete"] is True
    return answer


MEASURES = "requests,prompt_tokens,completion_tokens,cost_nanos,bytes_out"


def figures(row: dict[str, Any]) -> dict[str, int]:
    return {
        "count": row["requests"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "cost_pico_usd": int(row["cost_nanos"]) * traces.PICO_PER_NANO,
        "result_payload_bytes": row["bytes_out"],
    }


def grouped(server: Server, account: str, key: str, **params: str) -> dict[str, dict[str, int]]:
    answer = usage(server, account, measures=MEASURES, **params)
    rows = {str(row[key]): figures(row) for row in answer["rows"]}
    total = figures(answer["totals"])
    for name in total:
        assert total[name] == sum(row[name] for row in rows.values()), "totals are the sum of the rows"
    return rows


def assert_matches(found: dict[str, dict[str, int]], wanted: dict[str, dict[str, int]]) -> None:
    assert set(found) == set(wanted)
    for group, numbers in wanted.items():
        ours = {name: found[group][name] for name in numbers if name in found[group]}
        theirs = {name: value for name, value in numbers.items() if name in found[group]}
        assert ours == theirs, group


TOKEN_FILES = {
    "conv": "azure_llm_conv.csv.gz",
    "code": "azure_llm_code.csv.gz",
    "spans": "llm_spans.jsonl.gz",
    "turns": "llm_turns.jsonl.gz",
    "rpc": "rpc_operations.jsonl.gz",
}


@pytest.mark.parametrize("account", TOKEN_FILES)
def test_totals_are_exact(server: Server, account: str) -> None:
    wanted = traces.expected(TOKEN_FILES[account])
    found = figures(usage(server, account, measures=MEASURES)["totals"])
    assert found["count"] == wanted["rows"]
    for name, value in wanted["totals"].items():
        if name in found:
            assert found[name] == value, name


@pytest.mark.parametrize("account", TOKEN_FILES)
@pytest.mark.parametrize(
    ("granularity", "figure", "chars"),
    [("minute", "per_minute", 16), ("hour", "per_hour", 13), ("day", "per_day", 10)],
)
def test_every_bucket_of_time_is_exact(
    server: Server, account: str, granularity: str, figure: str, chars: int
) -> None:
    wanted = traces.expected(TOKEN_FILES[account]).get(figure)
    rows = grouped(server, account, "time", granularity=granularity)
    found = {time[:chars]: numbers for time, numbers in rows.items()}
    if wanted is None:
        # The file states no figures at this granularity: the buckets must still add up.
        wanted_rows = traces.expected(TOKEN_FILES[account])["rows"]
        assert sum(numbers["count"] for numbers in found.values()) == wanted_rows
        return
    assert_matches(found, wanted)


@pytest.mark.parametrize("account", ["conv", "code", "spans", "turns"])
def test_every_model_is_exact(server: Server, account: str) -> None:
    assert_matches(
        grouped(server, account, "model", group_by="model"),
        traces.expected(TOKEN_FILES[account])["per_model"],
    )


def test_every_status_endpoint_and_error_type_is_exact(server: Server) -> None:
    wanted = traces.expected(TOKEN_FILES["rpc"])
    names = {"200": "ok", "500": "error", "499": "cancelled"}
    statuses = grouped(server, "rpc", "status", group_by="status")
    assert_matches({names[status]: row for status, row in statuses.items()}, wanted["per_status"])
    endpoints = grouped(server, "rpc", "endpoint", group_by="endpoint")
    assert_matches({e.removeprefix("POST /"): row for e, row in endpoints.items()}, wanted["per_endpoint"])
    assert_matches(grouped(server, "rpc", "error_type", group_by="error_type"), wanted["per_error_type"])


def test_every_tenant_is_exact(server: Server) -> None:
    spans = traces.expected(TOKEN_FILES["spans"])["per_tenant"]
    assert_matches(
        grouped(server, "spans", "project", group_by="project"),
        {traces.tenant_project(tenant): row for tenant, row in spans.items()},
    )
    turns = traces.expected(TOKEN_FILES["turns"])["per_tenant"]
    assert_matches(grouped(server, "turns", "tag:tenant", group_by="tag:tenant"), turns)


LATENCIES = "latency_ms_p50,latency_ms_p90,latency_ms_p95,latency_ms_p99,latency_ms_max,latency_ms_avg"


@pytest.mark.parametrize(
    ("account", "figure", "unit_ms", "params"),
    [
        ("spans", "latency_ms_ok_only", 1, {"status": "200"}),
        ("turns", "latency_s", 1000, {}),
        ("rpc", "latency_ms", 1, {}),
    ],
)
def test_latency_percentiles_are_within_the_stated_error(
    server: Server, account: str, figure: str, unit_ms: int, params: dict[str, str]
) -> None:
    """The percentiles are nearest-rank ones, off by at most one per cent; the maximum is exact to the µs."""
    wanted_file = traces.expected(TOKEN_FILES[account])
    wanted = wanted_file.get(figure) or wanted_file["quantiles"][figure]
    found = usage(server, account, measures=LATENCIES, **params)["totals"]
    for name in ("p50", "p90", "p95", "p99"):
        exact = wanted[name]["nearest_rank"] * unit_ms
        assert found[f"latency_ms_{name}"] == pytest.approx(exact, rel=RELATIVE_ERROR_MAX), name
    assert found["latency_ms_max"] == pytest.approx(wanted["max"] * unit_ms, abs=0.001)


def test_sending_everything_again_counts_nothing_twice(server: Server) -> None:
    """Reordered, split elsewhere, compressed or not: an id counts once."""
    for account, events in (("conv", traces.azure("conv", "conv")), ("spans", traces.spans("spans"))):
        lines = traces.ndjson(events).split(b"\n")
        before = usage(server, account, measures=MEASURES)["totals"]
        for piece in (lines[: len(lines) // 3][::-1], lines[len(lines) // 3 :]):
            answer = send(server, b"\n".join(piece), compress=True)
            assert answer["accepted"] == 0
        assert usage(server, account, measures=MEASURES)["totals"] == before


def test_provider_usage_bodies_add_up(server: Server) -> None:
    """What real providers answer, as they answer it, becomes the tokens that they meant."""
    bodies = json.loads(gzip.decompress((traces.DATA / "provider_usage_bodies.json.gz").read_bytes()))
    wanted = traces.expected("provider_usage_bodies.json.gz")["first_extraction"]
    server.put("/tk/v1/accounts/bodies", {"name": "bodies"})
    events = []
    for index, body in enumerate(bodies):
        read = body["extracted"][0]["usage"]
        cached = read.get("cache_read_tokens", 0)
        events.append(
            {
                "id": f"body-{index}",
                "time": "2026-05-01T12:00:00Z",
                "account": "bodies",
                "model": re.sub(r"[^ -~]", "", body.get("model") or ""),
                "tokens": {
                    "prompt": read.get("input_tokens", 0) - cached,
                    "cached_prompt": cached,
                    "completion": read.get("output_tokens", 0),
                },
            }
        )
    body = json.dumps(events).encode()
    answer = server.call("POST", "/tk/v1/events", body, {"Content-Type": "application/json"})
    assert answer["accepted"] == len(events), answer["errors"][:3]
    found = usage(
        server, "bodies", measures="requests,prompt_tokens,cached_prompt_tokens,completion_tokens,unpriced"
    )
    totals = found["totals"]
    assert totals["requests"] == wanted["count"]
    assert totals["prompt_tokens"] + totals["cached_prompt_tokens"] == wanted["input_tokens"]
    assert totals["completion_tokens"] == wanted["output_tokens"]


def test_the_books_agree_with_the_events(server: Server) -> None:
    verdict = server.call("POST", "/tk/v1/verify")
    assert verdict["ok"] is True, verdict


def test_the_traces_are_read_in_place() -> None:
    assert not list(Path(__file__).parents[2].glob("**/expected_totals.json"))
