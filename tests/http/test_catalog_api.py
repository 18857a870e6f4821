"""The catalog over HTTP: what PUT, POST, GET and DELETE do to each kind, and apply."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.http.conftest import Api
from tollkeeper.domain.catalog import KINDS
from tollkeeper.domain.keys import hash_secret


def bodies(account: str) -> dict[str, dict[str, Any]]:
    """Return an entry of each kind but keys, with a field to change."""
    return {
        "plans": {"name": "P", "budgets": [{"name": "b", "amount": "12"}], "price_nanos": "9007199254740993"},
        "accounts": {"name": "A"},
        "projects": {"name": "P"},
        "subscriptions": {"plan": f"plan-{account}", "started_at": "2026-01-31T01:00:00+01:00"},
        "budgets": {"amount": "9007199254740993", "period": "30d"},
        "routes": {"method": "GET", "path": f"/{account}", "credits": 2},
        "models": {"is": f"m-{account}"},
        "prices": {
            "model": f"m-{account}",
            "prompt_nanos_per_million": "150000000",
            "audio_prompt_nanos_per_million": "900719925474",
            "tiers": [{"over": 200_000, "prompt_nanos_per_million": "300000000"}],
            "rates": {"seconds": "0.006/60", "images": "9007199254740993"},
        },
        "markups": {"model": "claude-*", "factor": "1.35", "plan": f"plan-{account}"},
        "webhooks": {"url": "https://a.example", "actions": {"disable_keys": 100}},
    }


CHANGES: dict[str, dict[str, Any]] = {
    "plans": {"budgets": [{"name": "b", "amount": "13"}]},
    "accounts": {"name": "B"},
    "projects": {"name": "Q"},
    "subscriptions": {"status": "canceled"},
    "budgets": {"amount": "5"},
    "routes": {"credits": 3},
    "models": {"is": "azure/gpt-4o"},
    "prices": {"prompt_nanos_per_million": "5", "rates": {"seconds": 6}},
    "markups": {"factor": "1.2", "request_nanos": "7"},
    "webhooks": {"actions": {"notify_admins": 90}},
}


@pytest.mark.parametrize("kind", list(CHANGES))
def test_an_entry_is_created_read_changed_listed_and_deleted(api: Api, account: str, kind: str) -> None:
    """The same steps for every kind: to know one kind is to know all."""
    assert api("PUT", f"/tk/v1/plans/plan-{account}", {}).status_code == 201
    entry_id = f"one-{account}"
    whose = f"?account={account}" if kind in ("projects", "subscriptions", "budgets", "webhooks") else ""
    path = f"/tk/v1/{kind}/{entry_id}{whose}"
    body = bodies(account)[kind]

    made = api("PUT", path, body)
    assert made.status_code == 201, made.text
    assert made.json()["change"]["action"] == "created"
    entry = made.json()["entry"]
    assert entry[KINDS[kind].id_field] == entry_id
    again = api("PUT", path, body)
    assert (again.status_code, again.json()["change"]["action"]) == (200, "unchanged")
    assert api("GET", path).json() == entry
    # What was read can be sent back.
    assert api("PUT", path, entry).json()["change"]["action"] == "unchanged"

    changed = api("PUT", path, {**body, **CHANGES[kind]})
    assert changed.status_code == 200, changed.text
    assert changed.json()["change"]["action"] == "changed"
    assert set(changed.json()["change"]["fields"]) == set(CHANGES[kind])
    listed = api("GET", f"/tk/v1/{kind}?limit=1000{whose.replace('?', '&')}").json()["items"]
    assert changed.json()["entry"] in listed

    gone = api("DELETE", path)
    assert (gone.status_code, gone.json()["change"]["action"]) == (200, "deleted")
    assert api("GET", path).status_code == 404
    assert api("DELETE", path).status_code == 404


@pytest.mark.parametrize("kind", [*CHANGES, "grants"])
def test_post_creates_once_and_never_replaces(api: Api, account: str, kind: str) -> None:
    """A retry is safe; another entry of the same id is not overwritten by accident."""
    assert api("PUT", f"/tk/v1/plans/plan-{account}", {}).status_code == 201
    id_field = KINDS[kind].id_field
    body = {"amount_nanos": "5", id_field: f"two-{account}", "account": account}
    if kind != "grants":
        body = {**bodies(account)[kind], id_field: f"two-{account}"}
    if kind in ("projects", "subscriptions", "budgets", "webhooks"):
        body["account"] = account
    assert api("POST", f"/tk/v1/{kind}", body).status_code == 201
    again = api("POST", f"/tk/v1/{kind}", body)
    assert (again.status_code, again.json()["change"]["action"]) == (200, "unchanged")
    other = {**body, **(CHANGES[kind] if kind != "grants" else {"amount_nanos": "6"})}
    assert api("POST", f"/tk/v1/{kind}", other).status_code == 409


def test_money_is_text_and_exact(api: Api, account: str) -> None:
    """2**53 + 1 is the first integer that JavaScript gets wrong."""
    path = f"/tk/v1/budgets/exact?account={account}"
    entry = api("PUT", path, {"amount": 9_007_199_254_740_993}).json()["entry"]
    assert entry["amount"] == "9007199254740993"
    fields = api("PUT", path, {"amount": "5"}).json()["change"]["fields"]
    assert fields["amount"] == ["9007199254740993", "5"]
    counted = api("PUT", f"/tk/v1/budgets/counted?account={account}", {"amount": 5, "unit": "requests"})
    assert counted.json()["entry"]["amount"] == 5
    metadata = {"name": "Test", "metadata": {"price_nanos": "5"}}
    assert api("PUT", f"/tk/v1/accounts/{account}", metadata).json()["entry"]["metadata"] == {
        "price_nanos": "5"
    }


def test_lists_come_in_pages(api: Api, account: str) -> None:
    for index in range(5):
        api("PUT", f"/tk/v1/projects/p{index}?account={account}", {})
    found: list[str] = []
    after = ""
    for _ in range(4):
        page = api("GET", f"/tk/v1/projects?account={account}&limit=2{after}").json()
        found += [entry["id"] for entry in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == [f"p{index}" for index in range(5)]


@pytest.mark.parametrize("kind", ["grants", "subscriptions", "keys", "webhooks"])
def test_an_id_is_made_when_none_is_given(api: Api, account: str, kind: str) -> None:
    api("PUT", f"/tk/v1/plans/plan-{account}", {})
    body = {
        "grants": {"amount_nanos": "1"},
        "subscriptions": {"plan": f"plan-{account}", "started_at": "2026-01-01T00:00:00Z"},
        "keys": {},
        "webhooks": {"url": "https://a.example"},
    }[kind]
    made = api("POST", f"/tk/v1/{kind}?account={account}", body)
    assert made.status_code == 201
    assert uuid.UUID(made.json()["entry"]["id"]).version == 4


def test_a_key_lives_from_issue_to_tombstone(api: Api, account: str) -> None:
    """Its secret is in one answer; its prefix, use and end are in every later one."""
    made = api("POST", "/tk/v1/keys", {"account": account, "id": f"k-{account}", "name": "one"})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    secret = made.json()["secret"]
    assert secret.startswith("tk_")
    path = f"/tk/v1/keys/k-{account}"
    shown = api("GET", path)
    assert secret not in shown.text
    assert "sha256" not in shown.json()
    entry = shown.json()
    assert secret.startswith(entry["prefix"].rstrip("…"))
    assert entry["created_at"].endswith("Z")
    assert (entry["last_used_at"], entry["revoked_at"], entry["state"]) == (None, None, "active")
    assert api("POST", "/tk/v1/keys", {"account": account, "id": f"k-{account}"}).status_code == 409

    assert api("GET", "/tk/v1/usage", key=secret).status_code == 200
    rotated = api("POST", f"{path}/rotate", {"overlap_s": 3600})
    assert rotated.status_code == 201
    new = rotated.json()
    assert new["secret"] != secret
    assert api("GET", path).json()["replaced_by"] == new["entry"]["id"]
    assert api("GET", "/tk/v1/usage", key=secret).status_code == 200
    assert api("GET", "/tk/v1/usage", key=new["secret"]).status_code == 200

    revoked = api("POST", f"{path}/state", {"state": "revoked"})
    assert revoked.json()["entry"]["state"] == "revoked"
    assert revoked.json()["entry"]["revoked_at"] is not None
    assert api("GET", "/tk/v1/usage", key=secret).status_code == 401
    assert api("POST", f"{path}/state", {"state": "active"}).status_code == 409
    assert api("DELETE", path).json()["change"]["action"] == "deleted"
    assert api("GET", path).json()["state"] == "deleted"
    assert api("POST", "/tk/v1/keys", {"account": account, "id": f"k-{account}"}).status_code == 409


def test_an_existing_secret_is_imported_by_its_hash(api: Api, account: str) -> None:
    secret = f"legacy-{uuid.uuid4().hex}"
    sha256 = hashlib.sha256(secret.encode()).hexdigest()
    made = api("POST", "/tk/v1/keys", {"account": account, "sha256": sha256})
    assert (made.status_code, made.json()["secret"]) == (201, None)
    assert sha256 not in made.text
    assert api("GET", "/tk/v1/usage", key=secret).status_code == 200


def test_put_needs_the_secret_of_a_key_that_does_not_exist(api: Api, account: str) -> None:
    """A PUT has no place for a secret in its answer."""
    refused = api("PUT", f"/tk/v1/keys/new-{account}", {"account": account})
    assert (refused.status_code, refused.json()["field"]) == (400, "sha256")


def test_a_file_is_applied_whole_and_once(api: Api) -> None:
    """Tried first, then applied, then applied again: the second time nothing changes."""
    name = uuid.uuid4().hex
    file = f"""
        [[accounts]]
        id = "{name}"
        name = "Applied"
        [[keys]]
        id = "key-{name}"
        account = "{name}"
        [[budgets]]
        id = "b"
        account = "{name}"
        amount = 9007199254740993
    """
    toml = {"Content-Type": "application/toml"}
    tried = api("POST", "/tk/v1/apply?dry_run=true", content=file, headers=toml).json()
    assert [change["action"] for change in tried["changes"]] == ["created"] * 3
    assert tried["issued"] == []
    assert api("GET", f"/tk/v1/accounts/{name}").status_code == 404
    applied = api("POST", "/tk/v1/apply", content=file, headers=toml).json()
    assert applied["changes"] == tried["changes"]
    assert api("GET", "/tk/v1/usage", key=applied["issued"][0]["secret"]).status_code == 200
    changed = file.replace("9007199254740993", "5")
    again = api("POST", "/tk/v1/apply", content=changed, headers={"Content-Type": "text/plain"}).json()
    assert [change["action"] for change in again["changes"]] == ["unchanged", "unchanged", "changed"]
    assert again["changes"][2]["fields"]["amount"] == ["9007199254740993", "5"]
    assert again["issued"] == []


def test_a_bad_file_changes_nothing_and_says_where(api: Api) -> None:
    name = uuid.uuid4().hex
    file = f'[[accounts]]\nid = "{name}"\nname = "A"\n[[projects]]\nid = "p"\naccount = "nobody-{name}"\n'
    refused = api("POST", "/tk/v1/apply", content=file, headers={"Content-Type": "text/plain"})
    assert (refused.status_code, refused.json()["field"]) == (400, "projects[0].account")
    assert api("GET", f"/tk/v1/accounts/{name}").status_code == 404


def test_a_change_is_in_force_when_it_is_answered(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    """The gate must not decide by what it remembered."""
    _, secret = issue()
    route = f"/tk/v1/routes/r-{account}"
    call = {"key": secret, "path": f"/{account}"}
    assert api("POST", "/tk/v1/authorize", call).json()["code"] == "route_unknown"
    api("PUT", route, {"method": "POST", "path": f"/{account}"})
    assert api("POST", "/tk/v1/authorize", call).status_code == 200
    api("PUT", f"/tk/v1/accounts/{account}", {"name": "Test", "active": False})
    assert api("POST", "/tk/v1/authorize", call).json()["code"] == "account_inactive"
    assert api("DELETE", route).status_code == 200


def test_balance_and_key_state_show_what_is_left(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    plan = {
        "limits": [{"name": "rpm", "amount": 10, "window": "1d"}],
        "budgets": [{"name": "spend", "amount": "1000"}],
    }
    api("PUT", f"/tk/v1/plans/plan-{account}", plan)
    key_id, secret = issue(type="credit", plan=f"plan-{account}")
    api("PUT", f"/tk/v1/grants/g?account={account}", {"amount_nanos": "500"})
    api("PUT", f"/tk/v1/routes/r-{account}", {"method": "POST", "path": f"/{account}", "price_nanos": "100"})
    hold = api("POST", "/tk/v1/authorize", {"key": secret, "path": f"/{account}"}).json()["hold_id"]
    held = api("GET", f"/tk/v1/accounts/{account}/balance").json()
    assert (held["balance_nanos"], held["held_nanos"], held["available_nanos"]) == ("500", "100", "400")
    api("POST", "/tk/v1/settle", {"hold_id": hold, "account": account, "cost_nanos": 120})
    settled = api("GET", f"/tk/v1/accounts/{account}/balance").json()
    assert (settled["balance_nanos"], settled["held_nanos"], settled["spent_nanos"]) == ("380", "0", "120")
    assert settled["grants"][0]["remaining_nanos"] == "380"
    state = api("GET", f"/tk/v1/keys/{key_id}/state", key=secret).json()
    limit, budget, credit = state["limits"][0], state["budgets"][0], state["credit"]
    assert (limit["name"], limit["allowed"], limit["used"], limit["remaining"]) == ("rpm", 10, 1, 9)
    assert (budget["name"], budget["allowed"], budget["used"], budget["remaining"]) == (
        "spend",
        "1000",
        "120",
        "880",
    )
    assert limit["resets_at"] is not None
    assert (credit["allowed"], credit["used"], credit["remaining"]) == ("380", "0", "380")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("accounts/a", {"nam": "A"}, "nam"),
        ("accounts/a", {}, "name"),
        ("accounts/a", {"name": 5}, "name"),
        ("accounts/a", {"name": "A", "id": "b"}, "id"),
        ("accounts/..%20", {"name": "A"}, "id"),
        ("accounts/a", {"name": "A", "time_zone": "Mars/Base"}, "time_zone"),
        ("accounts/a", {"name": "A", "time_zone": "right/UTC"}, "time_zone"),
        ("budgets/b", {"amount": 5}, "account"),
        ("budgets/b?account=nobody", {"amount": 5}, "account"),
        ("budgets/b?account=x", {"amount": 5, "account": "y"}, "account"),
        ("budgets/b?account=x", {"amount": -1}, "amount"),
        ("budgets/b?account=x", {"amount": 5.5}, "amount"),
        ("budgets/b?account=x", {"amount": 1e300}, "amount"),
        ("budgets/b?account=x", {"amount": 10**40}, "amount"),
        ("budgets/b?account=x", {"amount": "1e3"}, "amount"),
        ("budgets/b?account=x", {"amount": True}, "amount"),
        ("plans/p", {"limits": [{"name": "l", "amount": 1, "window": "soon"}]}, "limits[0].window"),
        ("plans/p?account=x", {}, "account"),
        ("subscriptions/s?account=x", {"plan": "p", "started_at": "2026-01-01T00:00:00"}, "started_at"),
    ],
)
def test_a_bad_field_is_named(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    refused = api("PUT", f"/tk/v1/{path}", body)
    assert refused.status_code == 400, refused.text
    assert (refused.json()["code"], refused.json()["field"]) == ("bad_parameter", field)


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", 400, "malformed"),
        ({"Content-Type": "application/json"}, b"[1]", 400, "malformed"),
        ({"Content-Type": "application/json"}, b'{"name": "\xff"}', 400, "malformed"),
        ({"Content-Type": "application/json"}, b'{"name": "\\u0000"}', 400, "bad_parameter"),
        ({"Content-Type": "application/json"}, b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "malformed"),
        ({"Content-Type": "text/xml"}, b"<a/>", 415, "unsupported_media_type"),
        (
            {"Content-Type": "application/json", "Content-Encoding": "br"},
            b"{}",
            415,
            "unsupported_media_type",
        ),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}", 400, "malformed"),
        ({"Content-Type": "application/json"}, b" " * 1_100_000, 413, "body_too_large"),
    ],
    ids=["cut", "array", "utf8", "nul", "deep", "xml", "brotli", "not-gzip", "large"],
)
def test_a_bad_body_is_refused(
    api: Api, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    refused = api("PUT", "/tk/v1/accounts/a", content=content, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert json.dumps(refused.json())  # Whatever was sent, the problem is JSON.


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1001", "after=%00", "lim=5", "limit=1&limit=2"]
)
def test_a_bad_page_is_refused(api: Api, query: str) -> None:
    refused = api("GET", f"/tk/v1/accounts?{query}")
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_parameter")
    assert refused.json()["field"] == query.partition("=")[0]


def test_no_field_of_a_new_key_is_ignored(api: Api, account: str) -> None:
    """When it was made is imported; what only answers say is refused, and may come back for a key that exists."""
    secret, made = f"old-{account}", "2024-02-29T10:00:00.000000Z"
    body = {"account": account, "sha256": hash_secret(secret), "created_at": made}
    for name, value in (
        ("last_used_at", made),
        ("revoked_at", made),
        ("prefix", "old"),
        ("replaced_by", "k"),
    ):
        refused = api("POST", "/tk/v1/keys", {**body, name: value})
        assert (refused.status_code, refused.json()["field"]) == (400, name)
        refused = api("PUT", f"/tk/v1/keys/k-{account}", {**body, name: value})
        assert (refused.status_code, refused.json()["field"]) == (400, name)
    created = api("POST", "/tk/v1/keys", body)
    assert created.status_code == 201
    entry = created.json()["entry"]
    assert entry["created_at"] == made
    path = f"/tk/v1/keys/{entry['id']}"
    assert api("GET", path).json() == entry
    again = api("PUT", path, entry)
    assert (again.status_code, again.json()["change"]["action"]) == (200, "unchanged")
    moved = api("PUT", path, {**entry, "created_at": "2024-02-29T10:00:01Z"})
    assert moved.status_code == 409
    put = api("PUT", f"/tk/v1/keys/p-{account}", {**body, "sha256": hash_secret(secret + "p")})
    assert (put.status_code, put.json()["entry"]["created_at"]) == (201, made)
    grant = {"account": account, "amount_nanos": "5", "remaining_nanos": "5"}
    assert api("PUT", f"/tk/v1/grants/g?account={account}", grant).status_code == 400
    del grant["remaining_nanos"]
    posted = api("PUT", f"/tk/v1/grants/g?account={account}", grant)
    assert posted.status_code == 201
    assert api("PUT", f"/tk/v1/grants/g?account={account}", posted.json()["entry"]).status_code == 200
