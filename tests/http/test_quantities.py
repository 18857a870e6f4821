"""Quantities over HTTP: limits, budgets, holds, events, corrections and usage count the same units, exactly."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.http.conftest import Api


class Shop:
    """An account whose keys may use 100 seconds an hour and 120 seconds in all."""

    def __init__(self, api: Api, account: str) -> None:
        self.api, self.account = api, account
        plan = f"plan-{account}"
        limit = {"name": "spm", "unit": "quantity.seconds", "amount": "100", "window": "1h"}
        assert api("PUT", f"/tk/v1/plans/{plan}", {"limits": [limit]}).status_code < 300
        assert api(
            "PUT",
            f"/tk/v1/budgets/b?account={account}",
            {"unit": "quantity.seconds", "amount": 120, "period": "total"},
        ).is_success
        made = api("POST", "/tk/v1/keys", {"account": account, "plan": plan}).json()
        self.key_id, self.secret = made["entry"]["id"], made["secret"]
        api("PUT", "/tk/v1/routes/any", {"method": "*", "path": "/*"})

    def authorize(self, **stated: Any) -> Any:
        return self.api("POST", "/tk/v1/authorize", {"key": self.secret, "path": "/v1/audio", **stated})

    def settle(self, hold_id: str, **stated: Any) -> Any:
        return self.api("POST", "/tk/v1/settle", {"hold_id": hold_id, "account": self.account, **stated})

    def send(self, **stated: Any) -> tuple[str, Any]:
        event_id = f"ev-{uuid.uuid4().hex}"
        event = {
            "id": event_id,
            "time": "2026-01-31T09:30:00Z",
            "key_id": self.key_id,
            "cost_nanos": 7,
            **stated,
        }
        return event_id, self.api("POST", "/tk/v1/events", event).json()

    def budget(self) -> dict[str, Any]:
        return dict(self.api("GET", f"/tk/v1/keys/{self.key_id}/state").json()["budgets"][0])

    def used(self) -> str:
        return str(self.budget()["used"])

    def usage(self, measures: str, **query: str) -> dict[str, Any]:
        more = "".join(f"&{name}={value}" for name, value in query.items())
        found = self.api(
            "GET", f"/tk/v1/usage?account={self.account}&from=2026-01-01&measures={measures}{more}"
        )
        assert found.status_code == 200, found.text
        return dict(found.json()["totals"])


@pytest.fixture
def shop(api: Api, account: str) -> Shop:
    return Shop(api, account)


def test_a_hold_takes_what_is_expected_and_a_settlement_what_was_used(shop: Shop) -> None:
    held = shop.authorize(quantities={"seconds": "61.5"}).json()
    budget = shop.budget()
    assert [budget[name] for name in ("name", "unit", "allowed", "used", "remaining")] == [
        "b",
        "quantity.seconds",
        "120",
        "61.5",
        "58.5",
    ]
    settled = shop.settle(held["hold_id"], quantities={"seconds": 60.25, "images": 2}).json()
    assert settled["quantities"] == {"images": "2", "seconds": "60.25"}
    assert shop.used() == "60.25"
    again = shop.settle(held["hold_id"], quantities={"seconds": "60.250"})
    assert again.status_code == 409, again.text
    assert shop.settle(held["hold_id"], quantities={"images": 2, "seconds": "60.250"}).json()["replayed"]


def test_a_refusal_says_units(shop: Shop) -> None:
    shop.settle(shop.authorize(quantities={"seconds": 60}).json()["hold_id"], quantities={"seconds": 60.25})
    refused = shop.authorize(quantities={"seconds": "60"})
    problem = refused.json()
    assert refused.status_code == 429
    assert (problem["unit"], problem["allowed"], problem["used"], problem["largest_fit"]) == (
        "quantity.seconds",
        "100",
        "60.25",
        "39.75",
    )
    assert "60.25 of 100 seconds used, 60 needed" in problem["detail"]
    assert shop.authorize(quantities={"seconds": "39.75"}).status_code == 200


def test_a_budget_that_is_used_up_refuses(shop: Shop) -> None:
    """By events too, which no limit stops; a request that does not say what it will use is refused then."""
    _, answer = shop.send(quantities={"seconds": "119.999999"})
    assert answer["accepted"] == 1
    assert shop.used() == "119.999999"
    assert shop.authorize().status_code == 200
    refused = shop.authorize(quantities={"seconds": "0.000002"})
    assert (refused.status_code, refused.json()["largest_fit"]) == (402, "0.000001")
    shop.send(quantities={"seconds": "0.000001"})
    assert shop.authorize().status_code == 402


def test_events_and_corrections_count_the_same(shop: Shop) -> None:
    event_id, _ = shop.send(
        quantities={"seconds": "10.5", "images": 3}, variant="batch", provider_cost_nanos=5
    )
    measures = "requests,quantity.seconds,quantity.images,quantity.nothing,cost_nanos,provider_cost_nanos"
    assert list(shop.usage(measures).values()) == [1, "10.5", "3", "0", "7", "5"]
    shown = shop.api("GET", f"/tk/v1/events/{event_id}").json()
    assert (shown["quantities"], shown["variant"], shown["provider_cost_nanos"]) == (
        {"images": "3", "seconds": "10.5"},
        "batch",
        "5",
    )
    path = f"/tk/v1/events/{event_id}/amend?account={shop.account}"
    # What is left out stays; 0 takes a quantity away.
    body = {"correction_id": "c", "quantities": {"seconds": "4", "images": 0}, "tokens": {"cache_write": 9}}
    amended = shop.api("POST", path, body).json()
    assert amended["event"]["quantities"] == {"cache_write_tokens": "9", "seconds": "4"}
    assert shop.api("POST", path, body).json()["repeated"]
    assert shop.used() == "4"
    assert list(shop.usage("quantity.seconds,quantity.images,tokens").values()) == ["4", "0", 9]
    void = f"/tk/v1/events/{event_id}/void?account={shop.account}"
    assert shop.api("POST", void, {"correction_id": "v"}).is_success
    assert shop.used() == "0"
    verdict = shop.api("POST", "/tk/v1/verify").json()
    assert verdict["ok"], verdict


def test_a_repeated_event_is_compared_by_its_quantities(shop: Shop) -> None:
    event_id, _ = shop.send(quantities={"seconds": "1.50"})
    for quantities, outcome in (
        ({"seconds": 1.5}, "duplicates"),
        ({"seconds": 2}, "rejected"),
        ({}, "rejected"),
    ):
        _, answer = shop.send(id=event_id, quantities=quantities)
        assert answer[outcome] == 1, (quantities, answer)


def test_token_classes_are_tokens(shop: Shop) -> None:
    held = shop.authorize(
        tokens={"prompt": 5, "cache_write": 4_000}, quantities={"audio_prompt_tokens": 3}
    ).json()
    assert held["held_tokens"] == 4_008
    shop.settle(held["hold_id"], tokens={"prompt": 5, "cache_write": 10})
    assert list(shop.usage("tokens,prompt_tokens,quantity.cache_write_tokens").values()) == [15, 5, "10"]
    twice = shop.authorize(tokens={"cache_write": 1}, quantities={"cache_write_tokens": 1})
    assert (twice.status_code, twice.json()["field"]) == (400, "tokens.cache_write")


@pytest.mark.parametrize(
    ("quantities", "field"),
    [
        ({"seconds": "-1"}, "quantities.seconds"),
        ({"seconds": "1e3"}, "quantities.seconds"),
        ({"Seconds": 1}, "quantities"),
        ({"seconds": True}, "quantities[...]"),
        ({f"n{i}": 1 for i in range(33)}, "quantities"),
    ],
)
def test_a_bad_quantity_is_refused(shop: Shop, quantities: Any, field: str) -> None:
    for refused in (shop.authorize(quantities=quantities), shop.settle("none", quantities=quantities)):
        assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text


def test_what_the_catalog_answers_it_takes_again(shop: Shop) -> None:
    """Amounts are decimal text of units, whatever form they were sent in."""
    path = f"/tk/v1/budgets/b?account={shop.account}"
    for amount, shown in ((60, "60"), ("61.5", "61.5"), (0.25, "0.25")):
        body = {"unit": "quantity.seconds", "amount": amount, "period": "total"}
        assert shop.api("PUT", path, body).is_success
        entry = shop.api("GET", path).json()
        assert entry["amount"] == shop.budget()["allowed"] == shown
        assert shop.api("PUT", path, entry).is_success
        assert shop.api("GET", path).json()["amount"] == shown
    plan = shop.api("GET", f"/tk/v1/plans/plan-{shop.account}").json()
    assert plan["limits"][0]["amount"] == "100"
    for amount in ("0.0000001", "-1", "many", 10**13, True):
        body = {"unit": "quantity.seconds", "amount": amount, "period": "total"}
        refused = shop.api("PUT", path, body)
        assert (refused.status_code, refused.json()["field"]) == (400, "amount"), refused.text
    refused = shop.api("PUT", path, {"unit": "quantity.S", "amount": 1, "period": "total"})
    assert (refused.status_code, refused.json()["field"]) == (400, "unit")


def test_usage_tells_quantities_as_text_and_by_group(shop: Shop) -> None:
    shop.send(quantities={"seconds": "1.5"}, model="a")
    shop.send(quantities={"seconds": "2"}, model="b")
    query = f"/tk/v1/usage?account={shop.account}&from=2026-01-01&group_by=model&measures=quantity.seconds"
    answer = shop.api("GET", f"{query}&sort=-quantity.seconds").json()
    assert answer["rows"] == [
        {"model": "b", "quantity.seconds": "2"},
        {"model": "a", "quantity.seconds": "1.5"},
    ]
    # The same again is served from memory, with what came since.
    shop.send(quantities={"seconds": "0.25"}, model="b")
    assert shop.api("GET", f"{query}&sort=-quantity.seconds").json()["totals"] == {"quantity.seconds": "3.75"}
    csv = shop.api("GET", f"{query}&format=csv").text
    assert csv.splitlines() == ["model,quantity.seconds", "a,1.5", "b,2.25"]
    many = ",".join(f"quantity.n{number}" for number in range(33))
    refused = shop.api("GET", f"/tk/v1/usage?account={shop.account}&measures={many}")
    assert (refused.status_code, refused.json()["field"]) == (400, "measures")
    refused = shop.api("GET", f"{query}.x")
    assert (refused.status_code, refused.json()["field"]) == (400, "measures")


def test_a_customer_is_not_told_what_its_provider_pays(shop: Shop) -> None:
    event_id, _ = shop.send(provider_cost_nanos=3)
    made = shop.api("POST", "/tk/v1/keys", {"account": shop.account, "role": "management"}).json()["secret"]
    refused = shop.api("GET", "/tk/v1/usage?from=2026-01-01&measures=provider_cost_nanos", key=made)
    assert (refused.status_code, refused.json()["field"]) == (400, "measures")
    shown = shop.api("GET", f"/tk/v1/events/{event_id}", key=made).json()
    assert shown["cost_nanos"] == "7"
    assert "provider_cost_nanos" not in shown


def test_a_retry_of_a_named_hold_is_told_by_its_quantities(shop: Shop) -> None:
    name = f"h-{uuid.uuid4().hex}"
    first = shop.authorize(id=name, quantities={"seconds": 1, "images": 2})
    assert shop.authorize(id=name, quantities={"images": "2.0", "seconds": "1"}).json() == first.json()
    assert shop.authorize(id=name, quantities={"seconds": 2, "images": 2}).status_code == 409
