"""The same events, seen through all five dialects and the native answer, tell the same story."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import pytest

from tollkeeper.domain.catalog import Account, Key, Project
from tollkeeper.domain.money import NANOS_PER_CENT, NANOS_PER_UNIT
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.http.profiles import ProfileSite
from tollkeeper.installation import Installation
from tollkeeper.meter.decode import decode_events
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import Call
from tollkeeper.testing import set_up

COUNT = 40


@pytest.fixture
def secrets(site: Installation, account: str) -> dict[str, str]:
    """One account with a key per profile, and the same 40 events of this hour for each."""
    project = f"{account}.p"
    keys = [Key(id=f"{account}.{name}", account=account, project=project, profile=name) for name in names()]
    manager = Key(id=f"{account}.mk", account=account, role="management")
    made = set_up(site, Account(id=account, name="A"), Project(id=project, account=account), *keys, manager)
    events = [
        {
            "id": f"{key.id}-{n}",
            "time": "2026-03-18T11:30:00Z",
            "key_id": key.id,
            "method": "POST",
            "route": "/v1/scans",
            "kind": "scan",
            "status": 500 if n % 8 == 0 else 200,
            "error_type": "PARTIAL" if n % 5 == 1 else "",
            "latency_ms": 10 + n,
            "bytes_out": 100,
            "model": "m",
            "tokens": {"prompt": 10 * n, "completion": n},
            "cache": "hit" if n % 4 == 0 else "miss",
            "cost_nanos": n * NANOS_PER_CENT,
        }
        for key in keys
        for n in range(COUNT)
    ]
    result = site.ingest.take(decode_events(events, now_us=site.clock.now_us()))
    assert result.accepted == len(events)
    return {key_id.removeprefix(f"{account}."): secret for key_id, secret in made.items()}


def call_of(site: Installation, name: str, path: str, secret: str) -> Call:
    """Return a GET of a vendor's path with *secret* wherever a dialect looks for it."""
    where, _, query = path.partition("?")
    return Call(
        method="GET",
        path=where,
        query=parse_qs(query),
        headers={"authorization": f"Bearer {secret}", "x-api-key": secret},
        body=b"",
        params={},
        now=site.clock.now(),
        request_id="req_1",
        settings=dict(load(name).settings),
    )


def ask(site: Installation, name: str, path: str, secret: str) -> dict[str, Any]:
    """Return the body of a vendor's answer."""
    profile = load(name)
    reply = ProfileSite(profile, site.context(profile)).answer(call_of(site, name, path, secret))
    assert reply.status == 200, reply
    body: dict[str, Any] = reply.body
    return body


def test_five_dialects_and_the_native_answer_agree(
    site: Installation, account: str, secrets: dict[str, str]
) -> None:
    """Requests, failures, tokens, cost, cache, scans and bytes: each dialect says what it can say of them."""
    measures = (
        "requests",
        "errors",
        "failed",
        "tokens",
        "prompt_tokens",
        "cost_nanos",
        "cache_hits",
        "bytes_out",
        "latency_ms_max",
    )
    native = site.reports.usage(
        UsageQuery(
            account_id=account,
            from_us=0,
            to_us=2**52,
            filters={"key": (f"{account}.shoal",)},
            measures=measures,
        )
    ).totals
    assert native["requests"] == COUNT
    cost_nanos = native["cost_nanos"]

    regpilot = ask(site, "regpilot", f"/api/usage?projectId={account}.p", secrets["regpilot"])
    # RegPilot tells of a project: all five keys are in it.
    assert regpilot["models"]["m"]["requests"] == native["requests"] * 5
    assert regpilot["models"]["m"]["tokens"] == native["tokens"] * 5
    assert regpilot["models"]["m"]["cost"] * NANOS_PER_UNIT == pytest.approx(cost_nanos * 5, abs=0.5)
    assert regpilot["cache"]["hits"] == native["cache_hits"] * 5

    shoal = ask(site, "shoal", "/v1/usage", secrets["shoal"])["data"]
    assert shoal["today"] == shoal["thisWeek"] == shoal["thisMonth"] == native["requests"]

    regsn = ask(site, "regsn", "/v1/usage?group_by=key", secrets["regsn"])
    buckets = {bucket["key"]: bucket for bucket in regsn["buckets"]}
    mine = buckets[f"{account}.anylayer"]
    assert mine["request_count"] == native["requests"] == 40
    # Scans that failed are none: each eighth.
    assert mine["scan_count"] == 35
    assert mine["cost_cents"] * NANOS_PER_CENT == cost_nanos
    assert regsn["totals"]["total_cost_cents"] * NANOS_PER_CENT == cost_nanos * 5

    anylayer = ask(site, "anylayer", f"/v1/developer/usage?keyId={account}.anylayer", secrets["anylayer"])[
        "usage"
    ]
    assert anylayer["totalRequests"] == native["requests"]
    # A status below 400 is a success there, whatever type of error came along; our own `errors` tell both.
    assert anylayer["failedRequests"] == native["failed"] == COUNT // 8
    assert anylayer["successfulRequests"] == COUNT - COUNT // 8
    assert native["errors"] > native["failed"]
    assert anylayer["dataTransferred"] == native["bytes_out"]
    assert anylayer["peakLatency"] == native["latency_ms_max"]

    items = ask(site, "cheapestinference", "/api/usage", secrets["mk"])["data"]
    windows = {item["id"]: item["usage"] for item in items}[f"{account}.cheapestinference"]
    for window in windows.values():
        assert (window["requests"], window["tokens"]) == (native["requests"], native["tokens"])
        assert window["promptTokens"] == native["prompt_tokens"]
