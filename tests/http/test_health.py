"""Liveness, readiness, metrics and check and repair."""

from __future__ import annotations

import re

import pytest

from tests.http.conftest import Api
from tollkeeper.errors import Unavailable
from tollkeeper.http.metrics import METRICS
from tollkeeper.installation import Installation
from tollkeeper.ports import Losses

LABEL = r'[a-z]+="[^"]*"'
SAMPLE = re.compile(rf"(tollkeeper_[a-z_]+)(\{{{LABEL}(?:,{LABEL})*\}})? ([\d.e-]+)\Z")


def test_liveness_asks_nobody(api: Api) -> None:
    found = api("GET", "/healthz", key=None)
    assert (found.status_code, found.json()) == (200, {"status": "ok"})


def test_readiness_says_why_not(
    api: Api, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing that a request needs, and all of them at once."""
    installation.delivery.fresh(None)
    assert installation.store.records([("none", "none")]) == {}  # Waits until the engine is open.
    assert api("GET", "/readyz", key=None).json() == {"ready": True, "reasons": [], "warnings": []}

    def fails() -> None:
        raise Unavailable("disk full")

    monkeypatch.setattr(installation.ledger, "ping", fails)
    monkeypatch.setattr(installation.store, "ready", lambda: False)
    monkeypatch.setattr(installation.gate, "refusing", "nothing is admitted")
    monkeypatch.setattr(installation.pairing, "_losses", Losses(["events part"], ["event_ids part"]))
    found = api("GET", "/readyz", key=None)
    assert found.status_code == 503
    assert found.json()["ready"] is False
    assert found.json()["reasons"] == [
        "the ledger does not answer: disk full",
        "the usage store does not answer, or is still opening",
        "the usage store lacks what is derived from its records: event_ids part: run `tollkeeper rebuild`",
        "nothing is admitted",
    ]
    assert found.json()["warnings"] == [
        "the usage store lacks records: events part: answers are not complete"
    ]


def test_metrics_are_in_prometheus_text(api: Api, account: str) -> None:
    """Every name of the table, each with help and type, and nothing about anybody."""
    event = {"id": "m", "time": "2026-01-31T00:00:00Z", "account": account, "cost_nanos": 1}
    api("POST", "/tk/v1/events", event)
    assert api("POST", "/tk/v1/verify").status_code == 200
    found = api("GET", "/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert account not in found.text
    lines = found.text.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("# TYPE")] == [m.name for m in METRICS]
    samples = [match for line in lines if (match := SAMPLE.match(line))]
    assert len(samples) + 2 * len(METRICS) == len(lines)
    values = {match[1]: float(match[3]) for match in samples}
    assert values["tollkeeper_commit_groups_total"] > 0
    assert values["tollkeeper_reconcile_timestamp_seconds"] > 0


def test_metric_names_are_unique_and_counters_end_in_total() -> None:
    """Prometheus's conventions: a scraper merges what has one name."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric.name


def test_verify_finds_nothing_and_rebuild_changes_no_answer(api: Api, account: str) -> None:
    event = {"id": "v", "time": "2026-01-31T00:00:00Z", "account": account, "cost_nanos": 3}
    api("POST", "/tk/v1/events", event)
    query = f"/tk/v1/usage?account={account}&from=2026-01-01"
    before = api("GET", query).json()["totals"]
    rebuilt = api("POST", "/tk/v1/rebuild").json()
    assert rebuilt["rows"]["usage_rollups"] >= 1
    assert api("GET", query).json()["totals"] == before
    verified = api("POST", "/tk/v1/verify").json()
    assert (verified["ok"], verified["differences"], verified["store_differences"]) == (True, [], [])
