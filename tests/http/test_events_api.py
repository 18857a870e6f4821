"""Single events over HTTP: read, amend, void; totals follow, and a retry is one correction."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.http.conftest import Api


@pytest.fixture
def event(api: Api, account: str) -> str:
    """The id of an event that cost 1000 nanos."""
    event_id = f"ev-{uuid.uuid4().hex}"
    body = {
        "id": event_id,
        "time": "2026-01-31T09:30:00.125Z",
        "account": account,
        "kind": "scan",
        "latency_ms": 12.5,
        "cost_nanos": 1000,
        "tags": {"team": "a"},
    }
    assert api("POST", "/tk/v1/events", body).json()["accepted"] == 1
    return event_id


def cost(api: Api, account: str) -> tuple[int, str]:
    totals = api("GET", f"/tk/v1/usage?account={account}&from=2026-01-01").json()["totals"]
    return totals["requests"], totals["cost_nanos"]


def test_an_event_is_shown_as_it_was_booked(api: Api, account: str, event: str) -> None:
    found = api("GET", f"/tk/v1/events/{event}?account={account}").json()
    assert found["time"] == "2026-01-31T09:30:00.125000Z"
    assert (found["kind"], found["latency_ms"], found["tags"]) == ("scan", 12.5, {"team": "a"})
    assert (found["cost_nanos"], found["cost_state"]) == ("1000", "given")
    assert (found["revision"], found["voided"]) == (0, False)


def test_an_event_is_found_without_its_account(api: Api, account: str, event: str) -> None:
    """As long as no other account uses the same id."""
    assert api("GET", f"/tk/v1/events/{event}").json()["account"] == account
    amended = api("POST", f"/tk/v1/events/{event}/amend", {"cost_nanos": 5})
    assert amended.json()["event"]["cost_nanos"] == "5"
    other = f"acct-{uuid.uuid4().hex}"
    api("PUT", f"/tk/v1/accounts/{other}", {"name": "Other"})
    same_id = {"id": event, "time": "2026-01-31T00:00:00Z", "account": other, "cost_nanos": 1}
    assert api("POST", "/tk/v1/events", same_id).json()["accepted"] == 1
    refused = api("GET", f"/tk/v1/events/{event}")
    assert (refused.status_code, refused.json()["field"]) == (400, "account")


def test_an_amendment_counts_once(api: Api, account: str, event: str) -> None:
    """However often it is sent: its id names it."""
    path = f"/tk/v1/events/{event}/amend?account={account}"
    body = {"correction_id": "done", "cost_nanos": 1250, "status": 500}
    for repeated in (False, True, True):
        found = api("POST", path, body)
        assert found.status_code == 200, found.text
        assert found.json()["repeated"] is repeated
        assert found.json()["event"]["cost_nanos"] == "1250"
        assert found.json()["event"]["revision"] == 1
    assert cost(api, account) == (1, "1250")
    again = api("POST", path, {"correction_id": "more", "cost_nanos": 1}).json()
    assert again["event"]["revision"] == 2
    assert cost(api, account) == (1, "1")


def test_an_amendment_without_an_id_gets_one(api: Api, account: str, event: str) -> None:
    path = f"/tk/v1/events/{event}/amend?account={account}"
    first = api("POST", path, {"cost_nanos": 7}).json()
    second = api("POST", path, {"cost_nanos": 7}).json()
    assert first["correction_id"] != second["correction_id"]
    assert (first["repeated"], second["repeated"]) == (False, False)


def test_a_void_takes_an_event_out_of_all_totals(api: Api, account: str, event: str) -> None:
    path = f"/tk/v1/events/{event}/void?account={account}"
    assert api("POST", path, {"correction_id": "refund"}).json()["event"]["voided"] is True
    assert api("POST", path, {"correction_id": "refund"}).json()["repeated"] is True
    assert cost(api, account) == (0, "0")
    assert api("GET", f"/tk/v1/events/{event}?account={account}").json()["voided"] is True
    assert api("POST", path, {"correction_id": "again"}).status_code == 404
    amend = f"/tk/v1/events/{event}/amend?account={account}"
    assert api("POST", amend, {"correction_id": "late", "cost_nanos": 1}).status_code == 404


def test_a_correction_moves_the_budget(api: Api, account: str, event: str) -> None:
    """What an amendment gives back can be spent again, in the period of the event."""
    assert api("PUT", f"/tk/v1/budgets/b?account={account}", {"amount": "5000", "period": "total"})
    key = api("POST", "/tk/v1/keys", {"account": account}).json()["entry"]["id"]
    state = f"/tk/v1/keys/{key}/state"
    assert api("GET", state).json()["budgets"][0]["used"] == "1000"
    api("POST", f"/tk/v1/events/{event}/amend?account={account}", {"correction_id": "c", "cost_nanos": 400})
    assert api("GET", state).json()["budgets"][0]["used"] == "400"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"correction_id": "c"}, "body"),
        ({"cost_nanos": -1}, "cost_nanos"),
        ({"cost_nanos": "5.0"}, "cost_nanos"),
        ({"cost": "0.0000000001"}, "cost"),
        ({"cost": 0.5}, "cost"),
        ({"tokens": {"prompt": 1.5}}, "tokens.prompt"),
        ({"tokens": {"promt": 1}}, "tokens.promt"),
        ({"account": "other"}, "account"),
        ({"time": "2026-01-31T00:00:00Z"}, "time"),
        ({"correction_id": "", "status": 1}, "correction_id"),
        ({"correction_id": "x" * 129, "status": 1}, "correction_id"),
    ],
)
def test_a_bad_amendment_is_refused(
    api: Api, account: str, event: str, body: dict[str, Any], field: str
) -> None:
    refused = api("POST", f"/tk/v1/events/{event}/amend?account={account}", body)
    assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    assert cost(api, account) == (1, "1000")


def test_events_of_no_account_are_not_found(api: Api, account: str) -> None:
    for path in (f"/tk/v1/events/none?account={account}", "/tk/v1/events/none?account=nobody"):
        assert api("GET", path).status_code == 404
