"""`GET /tk/v1/audit`: the operator sees all changes, a customer those of its account."""

from __future__ import annotations

from tests.http.conftest import Api, World


def test_money_is_text_and_pages_follow_each_other(api: Api, account: str) -> None:
    body = {"account": account, "amount": "5.00", "period": "month"}
    api("PUT", "/tk/v1/budgets/spend", body)
    api("PUT", "/tk/v1/budgets/spend", {**body, "amount": "7.50"})
    first = api("GET", f"/tk/v1/audit?account={account}&limit=1").json()
    assert first["items"][0]["fields"] == {"amount": ["5000000000", "7500000000"]}
    assert {name: first["items"][0][name] for name in ("actor", "account", "kind", "id", "action")} == {
        "actor": "operator",
        "account": account,
        "kind": "budgets",
        "id": "spend",
        "action": "changed",
    }
    second = api("GET", f"/tk/v1/audit?account={account}&limit=1&after={first['next']}").json()
    assert second["items"][0]["fields"]["amount"] == [None, "5000000000"]
    last = api("GET", f"/tk/v1/audit?account={account}&after={second['next']}").json()
    assert [(item["kind"], item["action"]) for item in last["items"]] == [("accounts", "created")]
    assert last["next"] is None


def test_a_customer_sees_its_own_account_alone(api: Api, world: World) -> None:
    found = api("GET", "/tk/v1/audit", key=world.a.management_key).json()["items"]
    assert {item["account"] for item in found} == {world.a.account}
    assert {item["kind"] for item in found} >= {"keys", "projects", "budgets"}
    other = f"/tk/v1/audit?account={world.b.account}"
    assert api("GET", other, key=world.a.management_key).status_code == 404
    assert api("GET", "/tk/v1/audit", key=world.a.consumption_key).status_code == 403
    assert api("GET", "/tk/v1/audit", key=None).status_code == 401


def test_who_made_a_key_is_told(api: Api, world: World) -> None:
    made = api("POST", "/tk/v1/keys", {}, key=world.a.management_key).json()
    (line,) = api("GET", f"/tk/v1/audit?id={made['entry']['id']}").json()["items"]
    assert line["actor"] == f"key:{world.a.management_id}"
    assert made["secret"] not in str(line)


def test_wrong_parameters_are_refused(api: Api) -> None:
    for query in ("limit=0", "limit=x", "after=0", "after=-1", "kind=secrets", "from=2026-01-01"):
        assert api("GET", f"/tk/v1/audit?{query}").status_code == 400, query
