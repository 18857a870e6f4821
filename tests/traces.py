"""The real traces in ../shared/data as meter events, and what they must add up to."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
PICO_PER_NANO: Final = 1_000

needs_traces = pytest.mark.skipif(not DATA.exists(), reason="the real traces of ../shared/data are absent")

Event = dict[str, Any]


@cache
def expected(file: str) -> dict[str, Any]:
    """Return the exact figures of one file."""
    figures: dict[str, Any] = json.loads((DATA / "expected_totals.json").read_text())["files"][file]
    return figures


@cache
def prices() -> list[dict[str, Any]]:
    """Return the prices that the expected costs were made with, as catalog entries."""
    per_token = json.loads((DATA / "expected_totals.json").read_text())["prices_pico_usd_per_token"]
    return [
        {
            "id": model.replace("/", "."),
            "model": model,
            # pico per token × 1e6 tokens ÷ 1e3 pico per nano
            "prompt_nanos_per_million": prompt * 1_000,
            "completion_nanos_per_million": completion * 1_000,
        }
        for model, (prompt, completion) in per_token.items()
    ]


def azure(name: str, account: str) -> Iterator[Event]:
    """Yield the events of `azure_llm_<name>.csv.gz`."""
    text = gzip.decompress((DATA / f"azure_llm_{name}.csv.gz").read_bytes()).decode()
    for index, row in enumerate(csv.DictReader(io.StringIO(text, newline=""))):
        yield {
            "id": f"{account}-{name}-{index}",
            "time": row["TIMESTAMP"].replace(" ", "T") + "Z",
            "account": account,
            "model": f"azure-{name}",
            "tokens": {"prompt": int(row["ContextTokens"]), "completion": int(row["GeneratedTokens"])},
        }


def spans(account: str) -> Iterator[Event]:
    """Yield the events of `llm_spans.jsonl.gz`; the tenant is the project."""
    for row in _jsonl("llm_spans.jsonl.gz"):
        yield {
            "id": row["span_id"],
            "time": _utc(row["start_time_iso"]),
            "account": account,
            "project": tenant_project(row["session_id"]),
            "model": row["request_model"],
            "status": 200 if row["status_code"] == 1 else 500,
            "latency_ms": row["duration_ms"],
            "tokens": {"prompt": row["input_tokens"], "completion": row["output_tokens"]},
        }


def turns(account: str) -> Iterator[Event]:
    """Yield the events of `llm_turns.jsonl.gz`; the tenant is a tag, the clock starts as the figures say."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for index, row in enumerate(_jsonl("llm_turns.jsonl.gz")):
        at = start + timedelta(seconds=row["request_arrival_delta_s"])
        yield {
            "id": f"{account}-turn-{index}",
            "time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "account": account,
            "model": row["model_id"],
            "latency_ms": row["api_time_s"] * 1000,
            "tokens": {"prompt": row["input_tokens"], "completion": row["output_tokens"]},
            "tags": {"tenant": row["session_id"]},
        }


def rpc(account: str) -> Iterator[Event]:
    """Yield the events of `rpc_operations.jsonl.gz`: no model, a price per call."""
    status = {"ok": 200, "error": 500, "cancelled": 499}
    for row in _jsonl("rpc_operations.jsonl.gz"):
        event: Event = {
            "id": row["operation_id"],
            "time": _utc(row["created_at_iso"]),
            "account": account,
            "method": "POST",
            "route": f"/{row['tool_name']}",
            "status": status[row["status"]],
            "bytes_out": int(row.get("result_payload_bytes") or 0),
            "cost_nanos": 250_000,
        }
        if row.get("error_type"):
            event["error_type"] = row["error_type"]
        if row.get("duration_ms") is not None:
            event["latency_ms"] = row["duration_ms"]
        yield event


def tenant_project(session_id: str) -> str:
    """Return the project id of a tenant."""
    return f"tenant-{session_id}"


def tenants() -> list[str]:
    """Return the projects of `spans`."""
    return sorted({tenant_project(row["session_id"]) for row in _jsonl("llm_spans.jsonl.gz")})


def ndjson(events: Iterator[Event]) -> bytes:
    """Return *events* as NDJSON."""
    return "\n".join(json.dumps(event) for event in events).encode()


def _jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress((DATA / name).read_bytes()).splitlines()]


def _utc(text: str) -> str:
    # Times without an offset mean UTC, as the data's README says.
    return text if text.endswith(("Z", "+00:00")) else text + "Z"
