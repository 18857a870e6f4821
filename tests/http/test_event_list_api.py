"""The list of events over HTTP: its pages, parameters and cursors, and what each caller is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.http.conftest import Api
from tollkeeper.adapters.clickhouse import event_list
from tollkeeper.domain.usage import DIMENSIONS
from tollkeeper.testing import unique


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a page is whole."""
    monkeypatch.setattr(event_list, "PAGE_S", 600.0)
    monkeypatch.setattr(event_list, "EMPTY_PAGE_S", 600.0)


def sent(api: Api, account: str, count: int, **fields: Any) -> None:
    events = [
        {"id": f"e{n:03}", "time": f"2026-01-{1 + n % 28:02}T00:00:00Z", "account": account, "cost_nanos": n}
        | fields
        for n in range(count)
    ]
    assert api("POST", "/tk/v1/events", events).json()["accepted"] == count


def test_pages_join_to_the_whole_list(api: Api, account: str) -> None:
    sent(api, account, 57, provider_cost_nanos=3, tags={"team": "a"})
    whole = api("GET", f"/tk/v1/events?account={account}&limit=1000").json()
    assert (whole["next_cursor"], whole["complete"], len(whole["events"])) == (None, True, 57)
    order = [(event["time"], event["id"]) for event in whole["events"]]
    assert order == sorted(order, reverse=True)
    found: list[Any] = []
    cursor = ""
    while True:
        page = api("GET", f"/tk/v1/events?account={account}{cursor}").json()
        found += page["events"]
        if page["next_cursor"] is None:
            break
        assert len(page["events"]) == 50
        cursor = f"&cursor={page['next_cursor']}"
    assert found == whole["events"]
    january = api("GET", f"/tk/v1/events?account={account}&from=2026-01-05&to=2026-01-07&tag.team=a").json()
    assert {event["time"][:10] for event in january["events"]} == {"2026-01-05", "2026-01-06"}
    assert api("GET", f"/tk/v1/events?account={account}&tag.team=b").json()["events"] == []
    head = api("HEAD", f"/tk/v1/events?account={account}")
    assert (head.status_code, head.content, head.headers["cache-control"]) == (200, b"", "no-store")


def test_a_listed_event_is_the_single_one_with_its_price(api: Api, account: str) -> None:
    sent(api, account, 1, model="m", status=200, tokens={"prompt": 3})
    (listed,) = api("GET", f"/tk/v1/events?account={account}").json()["events"]
    single = api("GET", f"/tk/v1/events/e000?account={account}").json()
    price = listed.pop("price")
    assert listed == single
    assert price == {"why": "Stated by the sender of the event.", "lines": []}


def test_what_was_answered_just_now_is_in_it(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    """Booked, and refused."""
    path = f"/v1/{account}"
    assert api("PUT", f"/tk/v1/routes/{unique('r')}", {"method": "POST", "path": path}).status_code == 201
    key_id, secret = issue()
    asked = {"key": secret, "method": "POST", "path": path}
    for number in range(3):
        hold = api("POST", "/tk/v1/authorize", asked).json()["hold_id"]
        assert api("POST", "/tk/v1/settle", {"hold_id": hold, "status": 200}).status_code == 200
        page = api("GET", f"/tk/v1/events?account={account}").json()
        assert (page["events"][0]["id"], len(page["events"]), page["complete"]) == (hold, number + 1, True)
    budget = {"account": account, "key": key_id, "amount": "0"}
    assert api("PUT", f"/tk/v1/budgets/b?account={account}", budget).status_code == 201
    assert api("POST", "/tk/v1/authorize", asked | {"cost_nanos": 1}).status_code == 402
    page = api("GET", "/tk/v1/events?denied=true", key=secret).json()
    assert [event["denied_reason"] for event in page["events"]] == ["budget_exhausted"]
    assert page["events"][0]["price"]["why"] == "Refused: nothing is charged."
    assert len(api("GET", "/tk/v1/events?denied=false", key=secret).json()["events"]) == 3


def test_only_the_operator_sees_what_a_provider_is_paid(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    key_id, secret = issue()
    _, management = issue(role="management")
    event = {"id": "e", "time": "2026-01-01T00:00:00Z", "key_id": key_id, "cost_nanos": 9}
    assert api("POST", "/tk/v1/events", event | {"provider_cost_nanos": 3}).json()["accepted"] == 1
    change = {"correction_id": "c", "cost_nanos": 8, "provider_cost_nanos": 4}
    assert api("POST", f"/tk/v1/events/e/amend?account={account}", change).status_code == 200
    operators = api("GET", f"/tk/v1/events?account={account}").json()["events"]
    assert operators[0]["provider_cost_nanos"] == "4"
    for key in (secret, management):
        answer = api("GET", "/tk/v1/events", key=key)
        assert answer.json()["events"][0]["corrections"][0]["changed"] == {"cost_nanos": ["9", "8"]}
        assert "provider" not in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=5&limit=5", "limit"),
        ("cursor=garbage", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=a&cursor=b", "cursor"),
        ("denied=maybe", "denied"),
        ("denied=true&denied=true", "denied"),
        ("status=abc", "status"),
        ("from=2026-02-01&to=2026-01-01", "from"),
        ("group_by=model", "group_by"),
        ("offset=5", "offset"),
        ("tag.=x", "tag."),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(api: Api, query: str, field: str) -> None:
    found = api("GET", f"/tk/v1/events?{query}")
    assert (found.status_code, found.json()["field"]) == (400, field), found.text


def test_the_filters_are_those_of_usage(api: Api, account: str) -> None:
    """A number, and the events behind it, are asked alike."""
    sent(api, account, 3, method="POST", route="/v1/x", model="m", status=200, kind="scan")
    values = {"endpoint": "POST%20/v1/x", "account": account, "status": "200", "kind": "scan"}
    values |= {"method": "POST", "route": "/v1/x", "model": "m"}
    for name in DIMENSIONS:
        query = (
            f"account={account}&{name}={values.get(name, '')}" if name != "account" else f"account={account}"
        )
        counted = api("GET", f"/tk/v1/usage?{query}").json()["totals"]["requests"]
        assert len(api("GET", f"/tk/v1/events?{query}").json()["events"]) == counted == 3, name


def test_the_cursor_of_an_account_is_nothing_to_another(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    """It names a place, no right: with another key it is refused, with the same key another's place shows its own."""
    sent(api, account, 3)
    cursor = api("GET", f"/tk/v1/events?account={account}&limit=1").json()["next_cursor"]
    other = unique("other")
    assert api("PUT", f"/tk/v1/accounts/{other}", {"name": "O"}).status_code == 201
    key = api("POST", "/tk/v1/keys", {"account": other, "role": "management"}).json()["secret"]
    assert api("GET", f"/tk/v1/events?cursor={cursor}", key=key).status_code == 400
    _, own = issue(role="management")
    assert len(api("GET", f"/tk/v1/events?cursor={cursor}", key=own).json()["events"]) == 2


def test_posting_is_as_before(api: Api, account: str) -> None:
    assert api("PUT", "/tk/v1/events", {}).headers["allow"] == "GET, OPTIONS, POST"
    assert api("POST", "/tk/v1/events", {"id": "x", "time": "?"}).json()["rejected"] == 1
