"""No dialect answers 200 with numbers that lack acknowledged requests, and such a call costs its caller nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.conftest import Install
from tests.profiles.test_one_story import call_of, secrets
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.http.profiles import ProfileSite
from tollkeeper.installation import Installation
from tollkeeper.ledger import delivery
from tollkeeper.meter.decode import decode_events
from tollkeeper.ports import ReportRows
from tollkeeper.profiles import load
from tollkeeper.profiles.base import Reply
from tollkeeper.testing import Faulty
from tollkeeper.usage import freshness

__all__ = ["secrets"]

USAGE: dict[str, tuple[str, int]] = {
    "anylayer": ("/v1/developer/usage?range=today", 500),
    "cheapestinference": ("/v1/usage", 502),
    "regpilot": ("/api/usage?projectId={account}.p", 503),
    "regsn": ("/v1/usage", 503),
    "shoal": ("/v1/usage", 503),
}
"""The usage endpoint of each dialect, and the status of its word for "not now"."""


@pytest.fixture
def store(usage_store: ClickHouseUsageStore) -> Faulty:
    return Faulty(usage_store, "append")


@pytest.fixture
def site(install: Install, store: Faulty) -> Installation:
    return install(store=store)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FLUSH_S", 0.05)


def answer(site: Installation, name: str, path: str, secret: str) -> Reply:
    profile = load(name)
    return ProfileSite(profile, site.context(profile)).answer(call_of(site, name, path, secret))


def book_more(site: Installation, account: str, store: Faulty) -> None:
    """Book more than is added to an earlier answer while the usage store takes nothing."""
    assert site.relay.flush(site.committer.outbox_seq, 30)
    store.refuse(10_000)
    events = [
        {
            "id": f"more-{name}-{n}",
            "time": site.clock.now().isoformat(),
            "key_id": f"{account}.{name}",
            "method": "POST",
            "route": "/v1/scans",
            "cost_nanos": 1,
        }
        for name in USAGE
        for n in range(freshness.WAITING_MAX)
    ]
    assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == len(events)


@pytest.mark.drawn(2)
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", USAGE)
def test_no_dialect_answers_with_old_numbers(
    name: str, site: Installation, account: str, secrets: dict[str, str], store: Faulty
) -> None:
    """A client that budgets itself by the answer would go on spending."""
    path, unavailable = USAGE[name]
    path = path.format(account=account)
    assert site.relay.flush(site.committer.outbox_seq, 30)
    assert answer(site, name, path, secrets[name]).status == 200
    book_more(site, account, store)
    refused = answer(site, name, path, secrets[name])
    assert refused.status == unavailable, refused
    assert answer(site, name, path, secrets[name]).status == unavailable
    store.refuse(0)
    assert site.relay.flush(site.committer.outbox_seq, 30)
    assert answer(site, name, path, secrets[name]).status == 200


@pytest.mark.drawn(1)
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["/api/usage", "/api/usage/{key}"])
def test_a_call_that_fails_on_our_side_costs_none_of_the_limited_ones(
    path: str, site: Installation, account: str, secrets: dict[str, str], store: Faulty
) -> None:
    """A dashboard that retries during an outage must not be locked out for the twelve hours after it."""
    name = "cheapestinference"
    manager = secrets["mk"]
    path = path.format(key=f"{account}.{name}")
    book_more(site, account, store)
    allowed = 12 if path == "/api/usage" else int(load(name).settings["single_key_per_minute"])
    assert [answer(site, name, path, manager).status for _ in range(allowed + 1)] == [502] * (allowed + 1)
    store.refuse(0)
    assert site.relay.flush(site.committer.outbox_seq, 30)
    assert [answer(site, name, path, manager).status for _ in range(allowed)] == [200] * allowed
    assert answer(site, name, path, manager).status == 429


@pytest.mark.parametrize("name", USAGE)
def test_no_dialect_answers_without_events_that_have_expired(
    name: str, site: Installation, account: str, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers would be too low for ever, and look right."""
    path, unavailable = USAGE[name]
    found = ClickHouseUsageStore.report

    def lacking(store: ClickHouseUsageStore, query: UsageQuery, pending: Sequence[Record] = ()) -> ReportRows:
        return found(store, query, pending)._replace(detail_from_us=site.clock.now_us(), lacks_detail=True)

    monkeypatch.setattr(ClickHouseUsageStore, "report", lacking)
    assert answer(site, name, path.format(account=account), secrets[name]).status == unavailable
