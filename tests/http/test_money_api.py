"""Money over HTTP: as people write it (M17), given and taken (M11), and what is answered is accepted again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.test_catalog_store import FULL
from tests.http.conftest import Api
from tollkeeper.domain.catalog import KINDS
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.money_fields import is_money_name, twin_of
from tollkeeper.installation import Installation
from tollkeeper.testing import verify

UNIT = 10**9
Issue = Callable[..., tuple[str, str]]


def balance(api: Api, account: str) -> dict[str, Any]:
    found: dict[str, Any] = api("GET", f"/tk/v1/accounts/{account}/balance").json()
    return found


def units(nanos: str) -> float:
    return int(nanos) / UNIT


# -- M11: taking back -----------------------------------------------------------------------------------


def test_a_chargeback_over_http(api: Api, account: str, issue: Issue, installation: Installation) -> None:
    """Top-up of 1,000.00, 50.00 spent, charged back: -50.00, and usage is as it was."""
    _, secret = issue(type="credit")
    api("PUT", f"/tk/v1/routes/r-{account}", {"method": "POST", "path": f"/{account}"})
    top_up = f"/tk/v1/grants/top-up?account={account}"
    assert api("PUT", top_up, {"amount": "1000.00", "source": "top_up"}).status_code == 201
    call = {"key": secret, "path": f"/{account}", "cost": "50.00"}
    hold = api("POST", "/tk/v1/authorize", call).json()
    assert hold["held_nanos"] == str(50 * UNIT)
    settled = api("POST", "/tk/v1/settle", {"hold_id": hold["hold_id"], "account": account, "cost": "50.00"})
    assert settled.json()["cost_nanos"] == str(50 * UNIT)
    usage = f"/tk/v1/usage?account={account}&measures=requests,cost_nanos,adjustments_nanos"
    before = api("GET", usage).json()["totals"]
    revoked = api("POST", f"/tk/v1/grants/top-up/revoke?account={account}")
    assert (revoked.status_code, revoked.json()["change"]["action"]) == (200, "changed")
    assert units(revoked.json()["balance"]["balance_nanos"]) == -50
    again = api("POST", f"/tk/v1/grants/top-up/revoke?account={account}").json()
    assert again["change"]["action"] == "unchanged"
    left = balance(api, account)
    assert (units(left["balance_nanos"]), units(left["overdraft_nanos"])) == (-50, 50)
    assert left["grants"][0]["revoked_at"] is not None
    assert api("GET", usage).json()["totals"] == before
    assert api("POST", "/tk/v1/authorize", call).status_code == 402
    # The revoked grant is shown as such, and what is shown is accepted again and changes nothing.
    shown = api("GET", top_up).json()
    assert shown["revoked_at"] is not None
    assert shown["remaining_nanos"] == "0"
    assert api("PUT", top_up, shown).json()["change"]["action"] == "unchanged"
    assert units(balance(api, account)["balance_nanos"]) == -50
    assert verify(installation).ok


def test_an_adjustment_over_http(api: Api, account: str, installation: Installation) -> None:
    body = {"id": "goodwill", "account": account, "amount": "25.00", "reason": "outage"}
    made = api("POST", "/tk/v1/adjustments", body)
    assert (made.status_code, made.json()["repeated"]) == (201, False)
    shown = made.json()["adjustment"]
    assert (shown["amount"], shown["amount_nanos"], shown["reason"]) == ("25.00", str(25 * UNIT), "outage")
    for repeat in (
        body,
        shown,
        {**body, "amount": 25 * UNIT},
        {**body, "amount": None, "amount_nanos": str(25 * UNIT)},
    ):
        again = api("POST", "/tk/v1/adjustments", repeat)
        assert (again.status_code, again.json()["repeated"]) == (200, True), again.text
        assert again.json()["adjustment"] == shown
    other = api("POST", "/tk/v1/adjustments", {**body, "amount": "26.00"})
    assert (other.status_code, other.json()["code"]) == (409, "event_conflict")
    assert units(balance(api, account)["balance_nanos"]) == 25
    event = api("GET", f"/tk/v1/events/goodwill?account={account}").json()
    assert (event["kind"], event["adjustment_nanos"], event["tags"]) == (
        "adjustment",
        str(25 * UNIT),
        {"reason": "outage"},
    )
    usage = f"/tk/v1/usage?account={account}&measures=requests,cost_nanos,adjustments_nanos"
    assert api("GET", usage).json()["totals"] == {
        "requests": 0,
        "cost_nanos": "0",
        "adjustments_nanos": str(25 * UNIT),
    }
    voided = api("POST", f"/tk/v1/events/goodwill/void?account={account}", {"correction_id": "v"})
    assert voided.json()["event"]["voided"]
    assert units(balance(api, account)["balance_nanos"]) == 0
    assert verify(installation).ok


def test_an_adjustment_of_less_than_a_cent_is_warned_of(api: Api, account: str) -> None:
    body = {"account": account, "amount": 25, "reason": "a slip"}
    made = api("POST", "/tk/v1/adjustments", body).json()
    assert made["adjustment"]["amount"] == "0.000000025"
    assert '"25.00"' in made["warnings"][0]


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"amount": 25.0}, 400, "amount"),
        ({"amount": "lots"}, 400, "amount"),
        ({"amount": None}, 400, "amount"),
        ({"amount": "0.00"}, 400, "amount"),
        ({"amount_nanos": "26000000000"}, 400, "amount"),
        ({"reason": ""}, 400, "reason"),
        ({"reason": 5}, 400, "reason"),
        ({"reason": "\ud800"}, 400, None),
        ({"event": "nothing"}, 400, "event"),
        ({"time": "yesterday"}, 400, "time"),
        ({"account": None}, 400, "account"),
        ({"account": "no-such"}, 404, None),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
def test_a_bad_adjustment_is_refused(
    api: Api, account: str, changes: dict[str, Any], status: int, field: str | None
) -> None:
    body = {"id": "a", "account": account, "amount": "25.00", "reason": "r", **changes}
    if body["reason"] == "\ud800":
        content = b'{"account": "%s", "amount": "1.00", "reason": "\\ud800"}' % account.encode()
        refused = api(
            "POST", "/tk/v1/adjustments", content=content, headers={"Content-Type": "application/json"}
        )
    else:
        refused = api("POST", "/tk/v1/adjustments", body)
    assert refused.status_code == status, refused.text
    assert field is None or refused.json()["field"] == field
    assert units(balance(api, account)["balance_nanos"]) == 0


def test_customers_neither_adjust_nor_revoke(api: Api, world: Any) -> None:
    owned = world.a
    for key in (owned.management_key, owned.consumption_key):
        body = {"account": owned.account, "amount": "1.00", "reason": "mine"}
        assert api("POST", "/tk/v1/adjustments", body, key=key).status_code == 403
        path = f"/tk/v1/grants/{owned.ids['grants']}/revoke?account={owned.account}"
        assert api("POST", path, key=key).status_code == 403
    assert api("POST", "/tk/v1/grants/x/revoke").status_code == 400
    assert api("POST", f"/tk/v1/grants/x/revoke?account={owned.account}").status_code == 404


# -- M17: money as written ------------------------------------------------------------------------------


def as_people_write_it(shown: Any) -> Any:
    if isinstance(shown, list):
        return [as_people_write_it(part) for part in shown]
    if not isinstance(shown, dict):
        return shown
    written = {}
    for name, value in shown.items():
        if is_money_name(name) and name != "remaining_nanos" and value is not None:
            written[twin_of(name)] = format_nanos(int(value))
        elif name in ("amount", "burst") and shown.get("unit") == "nanos" and value is not None:
            written[name] = format_nanos(int(value))
        else:
            written[name] = value if name == "metadata" else as_people_write_it(value)
    return written


@pytest.mark.parametrize("kind", sorted(set(KINDS) & set(FULL)))
def test_what_get_answers_put_accepts(api: Api, account: str, kind: str) -> None:
    """Of every kind, as answered and with its money as people write it: nothing changes."""
    import msgspec

    suffix = account[-8:]
    api("PUT", f"/tk/v1/projects/web?account={account}", {})
    api("PUT", f"/tk/v1/plans/pro-{suffix}", {"slug": f"pro-{suffix}"})
    body = msgspec.json.decode(msgspec.json.encode(FULL[kind]))
    id_field = KINDS[kind].id_field
    entry_id = (
        body.pop(id_field)
        if kind in ("projects", "budgets", "grants", "subscriptions", "webhooks")
        else f"{kind}-{suffix}"
    )
    body.pop(id_field, None)
    for name, value in (("account", account), ("plan", f"pro-{suffix}")):
        if body.get(name) is not None:
            body[name] = value
    if kind == "budgets":
        body |= {"unit": "nanos", "amount": "25.00"}
    if kind == "keys":
        body |= {"sha256": uuid.uuid4().hex * 2, "state": "active", "subscription": None, "profile": "native"}
        body["limits"] = [{"name": "spend", "amount": "25.00", "unit": "nanos"}]
    if kind == "plans":
        body["limits"] = [{"name": "spend", "amount": "25.00", "unit": "nanos"}]
    path = f"/tk/v1/{kind}/{entry_id}" + (
        f"?account={account}" if "account" in body and kind not in ("prices", "markups") else ""
    )
    made = api("PUT", path, body)
    assert made.status_code in (200, 201), made.text
    shown = api("GET", path).json()
    for sent in (shown, as_people_write_it(shown)):
        again = api("PUT", path, sent)
        assert again.status_code == 200, again.text
        assert again.json()["change"]["action"] == "unchanged", again.text
    if kind == "routes":
        api("DELETE", path)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    "stated",
    [
        {"cost": "0.05", "model": "gpt-5-mini"},
        {"cost": "0.05", "provider_cost": "0.02"},
        {"cost": "0.05", "provider_cost": "0.00", "credits": 3},
        {"cost": "0.00"},
        {"estimated_cost": "0.05"},
        {"model": "gpt-5-mini", "tokens": {"prompt": 5}, "provider_cost": "0.02"},
        {
            "model": "no-such-model",
            "tokens": {"prompt": 5},
            "variant": "Batch",
            "quantities": {"seconds": "1.5"},
        },
    ],
)
def test_an_event_as_operator_or_customer_sees_it_is_a_repeat(
    api: Api, account: str, issue: Issue, stated: dict[str, Any]
) -> None:
    """A customer is not shown what the provider pays; the event is its own all the same."""
    _, management = issue(role="management")
    keys: list[dict[str, str]] = [{}, {"Authorization": f"Bearer {management}"}]
    event_id = f"ev-{uuid.uuid4().hex}"
    event = {"id": event_id, "time": "2026-03-01T09:30:00Z", "account": account, **stated}
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    path = f"/tk/v1/events/{event_id}?account={account}"
    before = api("GET", path).json()
    for reader in keys:
        shown = api("GET", path, headers=reader).json()
        for sender in keys:
            again = api("POST", "/tk/v1/events", shown, headers=sender).json()
            assert (again["duplicates"], again["errors"]) == (1, [])
    assert api("GET", path).json() == before
    other = api("POST", "/tk/v1/events", {**event, "cost": "0.06"}).json()
    assert [error["code"] for error in other["errors"]] == ["event_conflict"]


def test_put_echoes_what_it_understood_and_warns(api: Api, account: str) -> None:
    path = f"/tk/v1/budgets/b?account={account}"
    change = api("PUT", path, {"amount": 25}).json()["change"]
    assert change["money"] == {"amount": "0.000000025"}
    assert '"25.00"' in change["warnings"][0]
    change = api("PUT", path, {"amount": "25.00"}).json()["change"]
    assert (change["fields"]["amount"], change["money"]) == (["25", "25000000000"], {"amount": "25.00"})
    assert "warnings" not in change
    refused = api("PUT", path, {"amount": 25.0})
    assert (refused.status_code, refused.json()["field"]) == (400, "amount")
    assert "nanos" in refused.json()["detail"]
    assert '"25.00"' in refused.json()["detail"]
    applied = api(
        "POST",
        "/tk/v1/apply",
        content=f'[[budgets]]\nid = "c"\naccount = "{account}"\namount = 25\n',
        headers={"Content-Type": "application/toml"},
    ).json()
    assert applied["changes"][0]["warnings"]


def test_a_refusal_tells_money(api: Api, account: str, issue: Issue) -> None:
    """The customer read "630000 of 25000000000 nanos"."""
    _, secret = issue()
    api("PUT", f"/tk/v1/budgets/spend?account={account}", {"amount": "25.00"})
    api("PUT", f"/tk/v1/routes/r-{account}", {"method": "POST", "path": f"/{account}"})
    call = {"key": secret, "path": f"/{account}"}
    assert api("POST", "/tk/v1/authorize", {**call, "cost": "0.00063"}).status_code == 200
    refused = api("POST", "/tk/v1/authorize", {**call, "cost": "30"})
    assert refused.status_code == 402
    assert refused.json()["detail"] == "Budget spend is used up: 0.00063 of 25.00 used, 30.00 needed."
    assert (refused.json()["unit"], refused.json()["used"]) == ("nanos", "630000")


def test_events_as_get_answers_them_are_accepted(api: Api, account: str, issue: Issue) -> None:
    """`"cost_nanos": "1500"` was refused. Of every cost state, from the gate and from ingest: a repeat."""
    key_id, secret = issue()
    model, unknown = f"m-{account}", f"u-{account}"
    api(
        "PUT", f"/tk/v1/prices/p-{account}", {"model": model, "prompt_per_million": "2.50", "request": "0.04"}
    )
    api("PUT", f"/tk/v1/routes/r-{account}", {"method": "POST", "path": f"/{account}", "price": "0.01"})
    at = {"time": "2026-01-05T00:00:00Z", "key_id": key_id}
    events = [
        {"id": "given", **at, "cost_nanos": 1500},
        {"id": "given-0", **at, "cost_nanos": 0},
        {"id": "text", **at, "cost": "0.0000015"},
        {"id": "provider", **at, "cost": "1.50", "provider_cost_nanos": "7"},
        {"id": "estimated", **at, "estimated_cost": "2.50"},
        {"id": "priced", **at, "model": model, "tokens": {"prompt": 100}, "status": 200, "tags": {"a": "b"}},
        {"id": "route", **at, "method": "POST", "route": f"/{account}"},
        {"id": "unpriced", **at, "model": unknown, "tokens": {"prompt": 100}},
        {"id": "free", **at, "denied_reason": "rate_limited"},
    ]
    result = api("POST", "/tk/v1/events", events).json()
    assert result["accepted"] == len(events), result
    hold = api("POST", "/tk/v1/authorize", {"key": secret, "path": f"/{account}", "id": "hold"}).json()
    api("POST", "/tk/v1/settle", {"hold_id": hold["hold_id"], "account": account, "latency_ms": 12.5})
    for id_ in (*(event["id"] for event in events), "hold"):
        shown = api("GET", f"/tk/v1/events/{id_}?account={account}").json()
        again = api("POST", "/tk/v1/events", shown).json()
        assert (again["duplicates"], again["errors"]) == (1, []), (shown, again)
    costs = {
        e: api("GET", f"/tk/v1/events/{e}?account={account}").json()["cost_nanos"] for e in ("given", "text")
    }
    assert costs == {"given": "1500", "text": "1500"}
    # With another cost it is another event.
    shown = api("GET", f"/tk/v1/events/given?account={account}").json()
    assert api("POST", "/tk/v1/events", {**shown, "cost_nanos": "1501"}).json()["rejected"] == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cost_nanos": "1.50"}, "cost_nanos"),
        ({"cost_nanos": 1.5}, "cost_nanos"),
        ({"cost": 1.5}, "cost"),
        ({"cost": "1.50", "cost_nanos": 1}, "cost"),
        ({"cost": "-1.00"}, "cost_nanos"),
        ({"cost_state": "cheap"}, "cost_state"),
        ({"adjustment_nanos": "5"}, "adjustment_nanos"),
    ],
)
def test_an_event_with_bad_money_is_rejected(
    api: Api, account: str, fields: dict[str, Any], field: str
) -> None:
    event = {"id": "e", "time": "2026-01-05T00:00:00Z", "account": account, **fields}
    result = api("POST", "/tk/v1/events", event).json()
    assert (result["rejected"], result["errors"][0]["field"]) == (1, field), result


def test_an_amendment_takes_money(api: Api, account: str) -> None:
    event = {"id": "job", "time": "2026-01-05T00:00:00Z", "account": account, "estimated_cost": "2.50"}
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    path = f"/tk/v1/events/job/amend?account={account}"
    amended = api("POST", path, {"correction_id": "c", "cost": "1.75"})
    assert amended.json()["event"]["cost_nanos"] == "1750000000"
    refused = api("POST", path, {"correction_id": "d", "cost": 1.75})
    assert (refused.status_code, refused.json()["field"]) == (400, "cost")
    bad = api("POST", "/tk/v1/settle", {"hold_id": "h", "cost": 1.75})
    assert (bad.status_code, bad.json()["field"]) == (400, "cost")
