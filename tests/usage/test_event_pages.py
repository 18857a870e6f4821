"""A page of events has what was acknowledged before the call, or says that it lacks some."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tollkeeper.adapters.clickhouse import event_list
from tollkeeper.callers import CALLER, Caller
from tollkeeper.domain.catalog import Account, Price, Route
from tollkeeper.domain.event_pages import EventPage, EventQuery
from tollkeeper.domain.events import Event
from tollkeeper.errors import TooManyQueries
from tollkeeper.installation import Installation
from tollkeeper.ledger import delivery as delivery_module
from tollkeeper.ledger import relay as relay_module
from tollkeeper.meter.amend import Amend
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import Faulty, set_up, unique
from tollkeeper.usage import query_turns
from tollkeeper.usage.query_turns import Turns


@pytest.fixture(autouse=True)
def no_relay_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay delivers when the test asks it to."""
    monkeypatch.setattr(relay_module, "GATHER_S", 60.0)
    monkeypatch.setattr(Amend, "price_unpriced", lambda amend: 0)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a page is whole."""
    monkeypatch.setattr(event_list, "PAGE_S", 600.0)
    monkeypatch.setattr(event_list, "EMPTY_PAGE_S", 600.0)


def asked(account: str | None, **fields: Any) -> EventQuery:
    return EventQuery(account_id=account, from_us=0, to_us=2**52, **fields)


def send(site: Installation, account: str, *ids: str, minute: int = 0, **fields: Any) -> None:
    at = datetime(2026, 3, 18, 11, minute, tzinfo=UTC).isoformat()
    events = [{"id": id_, "time": at, "account": account, "cost_nanos": 2, **fields} for id_ in ids]
    site.manage.apply([Account(id=account, name=account)])
    assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == len(ids)


def ids(page: EventPage) -> list[str]:
    assert page.complete
    return [event["id"] for event in page.events]


def test_pending_events_are_in_their_places_without_an_insert(site: Installation, account: str) -> None:
    """Newer and older than what the store has, on every page, with filters."""
    send(site, account, "b", "d", minute=5)
    site.relay.deliver_up_to(site.committer.outbox_seq)
    appends = site.relay._store = Faulty(site.relay._store, "append")  # type: ignore[assignment]
    send(site, account, "c", minute=5)
    send(site, account, "e", minute=9, status=429, denied_reason="rate_limited")
    send(site, account, "a", minute=1)
    send(site, unique("other"), "x", minute=5)
    assert ids(site.event_pages.page(asked(account))) == ["e", "d", "c", "b", "a"]
    found: list[str] = []
    query = asked(account, limit=2)
    for size in (2, 2, 1):
        page = site.event_pages.page(query)
        assert len(page.events) == size
        found += ids(page)
        query = msgspec.structs.replace(query, cursor=page.next_cursor)
    assert (found, page.next_cursor) == (["e", "d", "c", "b", "a"], None)
    assert ids(site.event_pages.page(asked(account, denied=True))) == ["e"]
    assert ids(site.event_pages.page(asked(account, denied=False, limit=1))) == ["d"]
    assert ids(site.event_pages.page(asked(account, filters={"status": ("429",)}))) == ["e"]
    assert appends.calls == 0


def test_a_batch_that_moves_during_the_search_is_listed_once(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.relay.deliver() == 0
    send(site, account, "a")
    latest, searches = site.store.latest, []

    def relayed_meanwhile(query: EventQuery) -> Any:
        searches.append(query)
        site.relay.deliver()
        return latest(query)

    monkeypatch.setattr(site.store, "latest", relayed_meanwhile)
    assert ids(site.event_pages.page(asked(account))) == ["a"]
    assert len(searches) == 2


def test_a_page_says_that_it_lacks_what_cannot_be_delivered(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "FLUSH_S", 0.05)
    send(site, account, "a")
    monkeypatch.setattr(site.reports._freshness, "pending_records", lambda account_id: None)
    appends = site.relay._store = Faulty(site.relay._store, "append")  # type: ignore[assignment]
    appends.refuse(1_000)
    page = site.event_pages.page(asked(account))
    assert (page.events, page.complete) == ([], False)
    appends.refuse(0)


def test_an_event_is_shown_as_it_stands_with_what_its_corrections_changed(
    site: Installation, account: str
) -> None:
    send(site, account, "a", "b")
    site.amend.amend(account, "a", "c1", Event(id="a", time="", cost_nanos=5, status=500))
    site.amend.amend(account, "a", "c2", Event(id="a", time="", cost_nanos=7, tags={"team": "x"}))
    site.amend.void(account, "b", "c3")
    page = site.event_pages.page(asked(account))
    assert ids(page) == ["a"]
    (event,) = page.events
    assert (event["cost_nanos"], event["revision"], event["voided"]) == ("7", 2, False)
    assert [(found["id"], found["revision"]) for found in event["corrections"]] == [("c1", 1), ("c2", 2)]
    assert event["corrections"][0]["changed"] == {"cost_nanos": ["2", "5"], "status": [0, 500]}
    assert event["corrections"][1]["changed"] == {"cost_nanos": ["5", "7"], "tags": [None, {"team": "x"}]}


def test_the_price_of_an_event_is_told_line_by_line(site: Installation, account: str) -> None:
    model, path = unique("model"), f"/v1/{unique('path')}"
    set_up(
        site,
        Account(id=account, name=account),
        Price(id=unique("price"), model=model, prompt_nanos_per_million=150_000_001, request_nanos=3),
        Route(id=unique("route"), method="POST", path=path, price_nanos=100),
    )
    used = {"method": "POST", "route": path, "cost_nanos": None}
    send(site, account, "priced", model=model, tokens={"prompt": 3}, status=200, minute=1, **used)
    send(site, account, "route", status=200, minute=2, **used)
    send(site, account, "failed", model=model, tokens={"prompt": 3}, status=500, minute=3, **used)
    send(site, account, "unpriced", model=unique("none"), tokens={"prompt": 3}, minute=4, **used)
    send(site, account, "given", minute=5)
    events = {event["id"]: event for event in site.event_pages.page(asked(account)).events}
    assert events["priced"]["price"]["lines"] == [
        {"of": "route", "amount": "1", "rate_nanos": "100", "nanos": "100"},
        {"of": "request", "amount": "1", "rate_nanos": "3", "nanos": "3"},
        {"of": "prompt_tokens", "amount": "3", "rate_nanos_per_million": "150000001", "nanos": "450.000003"},
    ]
    assert events["priced"]["cost_nanos"] == "553"
    assert events["priced"]["price"]["why"] == f"By {events['priced']['price_version']}."
    assert [line["of"] for line in events["route"]["price"]["lines"]] == ["route"]
    assert [line["of"] for line in events["failed"]["price"]["lines"]] == ["request", "prompt_tokens"]
    assert events["unpriced"]["price"]["lines"] == events["given"]["price"]["lines"] == []
    assert "No price for model" in events["unpriced"]["price"]["why"]
    assert events["given"]["price"]["why"] == "Stated by the sender of the event."
    # What was charged stays; its lines are no longer known.
    set_up(site, Price(id=events["priced"]["price_version"][7:], model=model, prompt_nanos_per_million=7))
    (event,) = [e for e in site.event_pages.page(asked(account)).events if e["id"] == "priced"]
    assert event["cost_nanos"] == "553"
    assert event["price"]["lines"] == []
    assert "has changed since" in event["price"]["why"]


def test_expired_events_are_missing_and_the_page_says_so(
    install: Callable[..., Installation], account: str
) -> None:
    site = install(retention="10d")
    set_up(site, Account(id=account, name=account))
    events = [
        {"id": f"e{day}", "account": account, "time": f"2026-03-{day:02}T10:00:00Z", "cost_nanos": day}
        for day in range(1, 18)
    ]
    assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == 17
    site.relay.deliver_up_to(site.committer.outbox_seq)
    site.retention.run()
    page = site.event_pages.page(asked(account, limit=5))
    assert (page.complete, page.lacks_detail, len(page.events)) == (True, False, 5)
    assert page.detail_from_us is not None
    last = site.event_pages.page(asked(account, limit=50, cursor=page.next_cursor))
    assert (last.complete, last.lacks_detail, last.next_cursor) == (False, True, None)
    assert [event["id"] for event in last.events] == ["e12", "e11", "e10", "e9", "e8"]
    kept = site.event_pages.page(msgspec.structs.replace(asked(account), from_us=page.detail_from_us))
    assert (kept.complete, len(kept.events)) == (True, 10)


def test_lists_and_reports_share_their_turns(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_turns, "OF_ACCOUNT", Turns(1, 0, 0.0))
    send(site, account, "a")
    token = CALLER.set(Caller(account))
    try:
        with site.reports._turns.taken(account), pytest.raises(TooManyQueries):
            site.event_pages.page(asked(account))
        assert ids(site.event_pages.page(asked(account))) == ["a"]
    finally:
        CALLER.reset(token)
