"""Who may call what: every operation with every kind of credential, and nothing of one account to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.http.conftest import OPERATOR_KEY, Api, World
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import KINDS
from tollkeeper.domain.keys import hash_secret
from tollkeeper.http.app import build_app
from tollkeeper.http.routes.catalog import NAMED_WITHIN_ACCOUNT
from tollkeeper.http.routes.catalog_docs import READ_BY_MANAGEMENT, WRITTEN_BY_MANAGEMENT
from tollkeeper.installation import Installation


class Case(NamedTuple):
    """A call about account A, and the status that each good credential gets."""

    method: str
    template: str
    """The path of the operation in the OpenAPI document."""
    path: str
    body: Any
    operator: int
    management_a: int
    management_b: int
    consumption_a: int


def cases(world: World) -> list[Case]:
    """Return a case per operation. Its writes can be repeated by every caller that may write."""
    a = world.a
    made = [_case for kind in KINDS for _case in _catalog_cases(world, kind)]
    of_key = f"/tk/v1/keys/{a.consumption_id}"
    keys, events = "/tk/v1/keys/{entry_id}", "/tk/v1/events/{event_id}"
    event = f"/tk/v1/events/{a.event_id}"
    whose = f"?account={a.account}"
    usage = f"/tk/v1/usage{whose}&from=2026-01-01"
    balance = "/tk/v1/accounts/{entry_id}/balance"
    return [
        *made,
        Case("POST", f"{keys}/rotate", "/tk/v1/keys/none/rotate", {}, 404, 404, 404, 403),
        Case("POST", f"{keys}/state", f"{of_key}/state", {"state": "active"}, 200, 200, 404, 403),
        Case(
            "POST",
            "/tk/v1/budgets/{entry_id}/top-up",
            f"/tk/v1/budgets/none/top-up{whose}",
            {"id": "t", "amount": "1.00"},
            404,
            403,
            403,
            403,
        ),
        Case("GET", f"{keys}/state", f"{of_key}/state", None, 200, 200, 404, 200),
        Case("GET", balance, f"/tk/v1/accounts/{a.account}/balance", None, 200, 200, 404, 403),
        Case(
            "POST",
            "/tk/v1/grants/{entry_id}/revoke",
            f"/tk/v1/grants/none/revoke{whose}",
            None,
            404,
            403,
            403,
            403,
        ),
        Case("POST", "/tk/v1/adjustments", "/tk/v1/adjustments", {}, 400, 403, 403, 403),
        Case("GET", "/tk/v1/usage", usage, None, 200, 200, 404, 200),
        Case("GET", "/tk/v1/meta", "/tk/v1/meta", None, 200, 200, 200, 200),
        Case("GET", "/tk/v1/events", f"/tk/v1/events{whose}", None, 200, 200, 404, 200),
        Case("GET", events, event + whose, None, 200, 200, 404, 403),
        Case(
            "POST", f"{events}/amend", f"/tk/v1/events/none/amend{whose}", {"status": 1}, 404, 403, 403, 403
        ),
        Case("POST", f"{events}/void", f"/tk/v1/events/none/void{whose}", {}, 404, 403, 403, 403),
        Case(
            "POST",
            "/tk/v1/sessions",
            "/tk/v1/sessions",
            {"account": a.account, "user": "u"},
            201,
            403,
            403,
            403,
        ),
        Case("POST", "/tk/v1/apply", "/tk/v1/apply?dry_run=true", None, 200, 403, 403, 403),
        Case("GET", "/tk/v1/prices/show", "/tk/v1/prices/show?name=gpt-4o", None, 200, 403, 403, 403),
        Case("GET", "/tk/v1/prices/built-in", "/tk/v1/prices/built-in?seller=meta", None, 200, 403, 403, 403),
        Case("POST", "/tk/v1/prices/preview", "/tk/v1/prices/preview", None, 200, 403, 403, 403),
        Case("POST", "/tk/v1/verify", "/tk/v1/verify", None, 200, 403, 403, 403),
        Case("POST", "/tk/v1/rebuild", "/tk/v1/rebuild", None, 200, 403, 403, 403),
        Case("POST", "/tk/v1/backup", "/tk/v1/backup", {"target": "isolated"}, 200, 403, 403, 403),
        Case("POST", "/tk/v1/authorize", "/tk/v1/authorize", {}, 400, 403, 403, 403),
        Case("POST", "/tk/v1/expect", "/tk/v1/expect", {}, 400, 403, 403, 403),
        Case("POST", "/tk/v1/settle", "/tk/v1/settle", {}, 400, 403, 403, 403),
        Case("POST", "/tk/v1/void", "/tk/v1/void", {}, 400, 403, 403, 403),
        Case("GET", "/metrics", "/metrics", None, 200, 403, 403, 403),
        Case("GET", "/tk/v1/metrics", "/tk/v1/metrics", None, 200, 403, 403, 403),
        Case("GET", "/tk/v1/audit", f"/tk/v1/audit{whose}", None, 200, 200, 404, 403),
    ]


def _catalog_cases(world: World, kind: str) -> list[Case]:
    a = world.a
    may_read, may_write = kind in READ_BY_MANAGEMENT, kind in WRITTEN_BY_MANAGEMENT
    entry_id = a.ids[kind]
    path, one = f"/tk/v1/{kind}", f"/tk/v1/{kind}/{{entry_id}}"
    whose = f"?account={a.account}" if kind in NAMED_WITHIN_ACCOUNT | {"keys"} else ""
    read = (200, 200, 404, 403) if may_read else (200, 403, 403, 403)
    write = (200, 200, 404, 403) if may_write else (200, 403, 403, 403)
    delete = (404, 404, 404, 403) if may_write else (404, 403, 403, 403)
    body = _current(kind, world)
    if kind == "keys":
        new: Any = {"account": a.account, "type": "credit"}
        create = (201, 201, 404, 403)
        body = {"account": a.account, "name": "again", "type": "credit", "project": a.ids["projects"]}
    else:
        new, create = {**body, KINDS[kind].id_field: entry_id}, write
    # Its own plan is not on sale, so a customer does not see it.
    read_one = (200, 404, 404, 403) if kind == "plans" else read
    return [
        Case("GET", path, f"{path}?account={a.account}", None, *read),
        Case("GET", one, f"{path}/{entry_id}{whose}", None, *read_one),
        Case("PUT", one, f"{path}/{entry_id}", body, *write),
        Case("POST", path, path, new, *create),
        Case("DELETE", one, f"{path}/none{whose}", None, *delete),
    ]


def _current(kind: str, world: World) -> dict[str, Any]:
    a = world.a
    bodies: dict[str, dict[str, Any]] = {
        "plans": {"sellable": False, "price_nanos": "100"},
        "accounts": {"name": f"Name of {a.account}", "plan": a.ids["plans"]},
        "projects": {"account": a.account},
        "subscriptions": {
            "account": a.account,
            "plan": a.ids["plans"],
            "started_at": "2026-01-01T00:00:00Z",
        },
        "budgets": {"account": a.account, "amount": "9000000000"},
        "grants": {"account": a.account, "amount_nanos": "5000000000"},
        "routes": {"method": "POST", "path": f"/v1/{a.account}", "price_nanos": "100"},
        "models": {"is": "azure/gpt-4o"},
        "prices": {"model": f"model-of-{a.account}", "account": a.account},
        "markups": {"account": a.account, "factor": "1.2"},
        "webhooks": {"account": a.account, "url": "https://a.example"},
    }
    return bodies.get(kind, {})


def test_every_operation_asks_every_credential_for_its_right(api: Api, world: World) -> None:
    """A route that forgets its guard, or guards too much, shows here."""
    table = cases(world)
    found = []
    for case in table:
        credentials: dict[str | None, int] = {
            None: 401,
            "garbage": 401,
            "ok_0123456789garbage0123456789": 401,
            world.a.revoked_key: 401,
            OPERATOR_KEY: case.operator,
            world.a.management_key: case.management_a,
            world.b.management_key: case.management_b,
            world.a.consumption_key: case.consumption_a,
        }
        for key, expected in credentials.items():
            status = api(case.method, case.path, case.body, key=key).status_code
            if status != expected:
                found.append((case.method, case.path, (key or "")[:6], status, expected))
    assert found == []


def test_a_login_of_the_page_has_the_rights_of_its_key(api: Api, world: World) -> None:
    """Every operation by cookie: as by the key, with the token of the login; without it nothing is changed."""
    found = []
    for name, key in {
        "operator": OPERATOR_KEY,
        "management_a": world.a.management_key,
        "management_b": world.b.management_key,
        "consumption_a": world.a.consumption_key,
    }.items():
        made = api("POST", "/tk/v1/login", {"key": key}, key=None)
        cookie = made.headers["set-cookie"].partition(";")[0]
        for case in cases(world):
            # What its work is, is shown above: it takes longer than all others together.
            if case.path in ("/tk/v1/rebuild", "/tk/v1/backup") and name == "operator":
                continue
            for token in (made.json()["csrf"], None):
                headers = {"Cookie": cookie} | ({"X-CSRF-Token": token} if token else {})
                status = api(case.method, case.path, case.body, key=None, headers=headers).status_code
                expected = getattr(case, name) if token or case.method == "GET" else 403
                # Beyond `/tk/v1` it is no credential.
                if status != (401 if case.path == "/metrics" else expected):
                    found.append((name, case.method, case.path, bool(token), status, expected))
    assert found == []


def test_the_table_above_has_every_operation(api: Api, world: World) -> None:
    paths = api("GET", "/tk/v1/openapi.json", key=None).json()["paths"]
    known = {(case.method.lower(), case.template) for case in cases(world)}
    open_to_all = {("get", "/healthz"), ("get", "/readyz"), ("get", "/tk/v1/openapi.json")}
    # They take a cookie, and no key in a header: test_login.py.
    open_to_all |= {(method, "/tk/v1/login") for method in ("get", "post", "delete")}
    # Whose events a key may send is shown by `test_a_management_key_sends_events_of_its_account_only`.
    elsewhere = {("post", "/tk/v1/events")}
    assert {(m, path) for path, found in paths.items() for m in found} == known | open_to_all | elsewhere


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "203.0.113.9"])
@pytest.mark.parametrize("name", [None, "X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_metrics_take_an_operator_key_on_this_machine_too(api: Api, peer: str, name: str | None) -> None:
    """Behind a proxy that adds no header, as nginx by default, everybody comes from this machine."""
    headers = {} if name is None else {name: "203.0.113.9"}
    assert api("GET", "/metrics", key=None, peer=peer, headers=headers).status_code == 401
    assert api("GET", "/metrics", peer=peer, headers=headers).status_code == 200


def test_metrics_are_open_when_the_setting_says_so(tmp_path: Path, usage_store: ClickHouseUsageStore) -> None:
    with testing.installation(tmp_path / "data", store=usage_store, metrics_open=True) as site:
        app = build_app(site)
        assert Api(app)("GET", "/metrics", key=None, peer="203.0.113.9").status_code == 200
        app.close()


@pytest.mark.parametrize("role", ["management", "consumption"])
def test_an_account_sees_nothing_of_another(api: Api, world: World, role: str) -> None:
    """Neither by asking for everything it may ask for, nor by naming what the other has."""
    a, b = world
    key = a.management_key if role == "management" else a.consumption_key
    paths = [f"/tk/v1/{kind}?limit=1000" for kind in KINDS]
    paths += [f"/tk/v1/{kind}/{a.ids[kind]}" for kind in KINDS]
    paths += [
        "/tk/v1/usage?from=2026-01-01&group_by=account,project,key,route,model",
        "/tk/v1/usage?from=2026-01-01&group_by=account&format=csv",
        f"/tk/v1/accounts/{a.account}/balance",
        f"/tk/v1/keys/{a.consumption_id}/state",
        f"/tk/v1/events/{a.event_id}",
        "/tk/v1/events?limit=1000",
    ]
    seen = 0
    for path in paths:
        answer = api("GET", path, key=key)
        assert b.account not in answer.text, path
        seen += a.account in answer.text
    assert seen >= 3
    for path in _paths_of(world):
        answer = api("GET", path, key=key)
        assert answer.status_code in (403, 404), path
        # What it named itself may come back in `instance`; nothing else of it does.
        assert b.account not in str({**answer.json(), "instance": "", "detail": ""}), path


def test_what_is_anothers_answers_as_what_does_not_exist(api: Api, world: World) -> None:
    """An answer that differs would tell which accounts, keys and entries there are."""
    a, b = world
    for path in _paths_of(world):
        unknown = path
        for name in sorted({b.account, *b.ids.values(), b.event_id}, key=len, reverse=True):
            unknown = unknown.replace(name, "none")
        theirs, none = api("GET", path, key=a.management_key), api("GET", unknown, key=a.management_key)
        assert theirs.status_code == none.status_code, path
        assert theirs.json()["detail"].replace(b.event_id, "none") == none.json()["detail"], path


def _paths_of(world: World) -> list[str]:
    b = world.b
    return [
        *(f"/tk/v1/{kind}?account={b.account}" for kind in KINDS),
        *(
            f"/tk/v1/{kind}/{b.ids[kind]}{f'?account={b.account}' if kind in NAMED_WITHIN_ACCOUNT else ''}"
            for kind in KINDS
        ),
        f"/tk/v1/keys/{b.consumption_id}",
        f"/tk/v1/keys/{b.consumption_id}/state",
        f"/tk/v1/usage?account={b.account}",
        f"/tk/v1/events?account={b.account}",
        f"/tk/v1/accounts/{b.account}/balance",
        f"/tk/v1/events/{b.event_id}",
    ]


def test_a_management_key_changes_nothing_of_another_account(api: Api, world: World) -> None:
    a, b = world
    key = a.management_key
    before = api("GET", f"/tk/v1/keys/{b.consumption_id}").json()
    for method, path, body in (
        ("PUT", f"/tk/v1/keys/{b.consumption_id}", {"name": "mine"}),
        ("PUT", f"/tk/v1/keys/{b.consumption_id}", {"account": b.account, "name": "mine"}),
        ("POST", f"/tk/v1/keys/{b.consumption_id}/rotate", {}),
        ("POST", f"/tk/v1/keys/{b.consumption_id}/state", {"state": "revoked"}),
        ("DELETE", f"/tk/v1/keys/{b.consumption_id}", None),
        ("DELETE", f"/tk/v1/keys/{b.consumption_id}?account={b.account}", None),
        ("POST", "/tk/v1/keys", {"account": b.account, "type": "credit"}),
        ("PUT", f"/tk/v1/projects/{b.ids['projects']}", {"account": b.account, "name": "mine"}),
        ("DELETE", f"/tk/v1/projects/{b.ids['projects']}", None),
    ):
        assert api(method, path, body, key=key).status_code == 404, (method, path)
    # Of this account: another's project and subscription do not exist.
    for field in ("project", "subscription"):
        theirs = api("POST", "/tk/v1/keys", {field: b.ids[f"{field}s"], "type": "credit"}, key=key)
        assert theirs.status_code == 400, theirs.text
    assert api("GET", f"/tk/v1/keys/{b.consumption_id}").json() == before


def test_a_management_key_sends_events_of_its_account_only(api: Api, world: World) -> None:
    a, b = world
    event = {"time": "2026-01-31T09:30:00Z", "cost_nanos": 0}
    sent = [
        {"id": f"own-{a.account}", "account": a.account, **event},
        {"id": f"foreign-{a.account}", "account": b.account, **event},
        {"id": f"foreign-key-{a.account}", "key_id": b.consumption_id, **event},
    ]
    found = api("POST", "/tk/v1/events", sent, key=a.management_key).json()
    assert (found["accepted"], found["rejected"]) == (1, 2)
    # Another's account and key are told like ones that do not exist.
    sent[1]["account"], sent[2]["key_id"] = "none", "none"
    unknown = api("POST", "/tk/v1/events", sent, key=a.management_key).json()
    told = str(found["errors"]).replace(b.account, "none").replace(b.consumption_id, "none")
    assert told.replace("consumption-of-none", "none") == str(unknown["errors"])
    assert api("POST", "/tk/v1/events", sent[0], key=a.consumption_key).status_code == 403


@pytest.mark.parametrize(
    "fields",
    [
        {"plan": "x"},
        {"limits": []},
        {"role": "management"},
        {"profile": "shoal"},
        {"sha256": "0" * 64},
        {"id": "chosen"},
        {"state": "inactive"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_management_key_sets_nothing_of_a_key_that_is_the_operators(
    api: Api, world: World, fields: dict[str, Any]
) -> None:
    """With its plan or limits a customer would set its own bounds; an id or hash could be probed for."""
    key = world.a.management_key
    assert api("POST", "/tk/v1/keys", {"type": "credit", **fields}, key=key).status_code == 403
    if "id" not in fields:
        path = f"/tk/v1/keys/{world.a.consumption_id}"
        assert api("PUT", path, fields, key=key).status_code == 403


def test_a_management_key_makes_no_key_without_bounds(api: Api, account: str, issue: Any) -> None:
    """Under no plan, a key that does not draw on credit could use anything for nothing."""
    _, key = issue(role="management")
    assert api("POST", "/tk/v1/keys", {}, key=key).status_code == 403
    made = api("POST", "/tk/v1/keys", {"type": "credit", "name": "mine"}, key=key)
    assert made.status_code == 201
    entry = made.json()["entry"]
    assert (entry["account"], entry["name"], entry["role"]) == (account, "mine", "consumption")
    # What it got can be changed and sent back, without touching the operator's part.
    changed = api("PUT", f"/tk/v1/keys/{entry['id']}", {**entry, "name": "renamed"}, key=key)
    assert changed.status_code == 200
    assert changed.json()["change"]["fields"] == {"name": ["mine", "renamed"]}
    rotated = api("POST", f"/tk/v1/keys/{entry['id']}/rotate", {"overlap_s": 0}, key=key)
    assert rotated.status_code == 201
    assert api("DELETE", f"/tk/v1/keys/{rotated.json()['entry']['id']}", key=key).status_code == 200


def test_a_management_key_changes_no_management_key(api: Api, world: World) -> None:
    """A leaked one must not be able to make itself last, or lock the customer out."""
    a = world.a
    path = f"/tk/v1/keys/{a.management_id}"
    for method, of, body in (
        ("PUT", "", {"name": "x"}),
        ("POST", "/rotate", {}),
        ("POST", "/state", {"state": "revoked"}),
        ("DELETE", "", None),
    ):
        assert api(method, path + of, body, key=a.management_key).status_code == 403, of


def test_a_customer_sees_the_plans_that_are_on_sale(api: Api, world: World) -> None:
    slug = f"sold-{world.a.account}"
    assert api("PUT", f"/tk/v1/plans/{slug}", {"metadata": {"margin": "half"}}).status_code == 201
    shown = api("GET", "/tk/v1/plans?limit=1000", key=world.a.management_key).json()["items"]
    assert [plan["metadata"] for plan in shown if plan["slug"] == slug] == [{}]
    assert all(plan["sellable"] for plan in shown)


def test_a_consumption_key_asks_about_itself_only(api: Api, world: World) -> None:
    a = world.a
    other = api("POST", "/tk/v1/keys", {"account": a.account, "type": "credit"}).json()["entry"]["id"]
    event = {"id": f"other-{a.account}", "time": "2026-01-30T00:00:00Z", "key_id": other, "cost_nanos": 7}
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    key = a.consumption_key
    found = api("GET", "/tk/v1/usage?from=2026-01-01&group_by=key", key=key).json()
    assert [row["key"] for row in found["rows"]] == [a.consumption_id]
    assert api("GET", f"/tk/v1/usage?key={other}", key=key).status_code == 404
    assert api("GET", f"/tk/v1/events?key={other}", key=key).status_code == 404
    listed = api("GET", "/tk/v1/events?limit=1000", key=key).json()["events"]
    assert {found["key_id"] for found in listed} == {a.consumption_id}
    assert api("GET", f"/tk/v1/keys/{other}/state", key=key).status_code == 404


def test_no_secret_leaves_but_where_it_is_made(api: Api, world: World) -> None:
    """Not in lists, entries, states, metrics or problems, and no hash of one either."""
    a = world.a
    secrets = [a.management_key, a.consumption_key, a.revoked_key, OPERATOR_KEY]
    hidden = [*secrets, *(hash_secret(secret) for secret in secrets)]
    answers = [api(case.method, case.path, case.body) for case in cases(world) if "none" not in case.path]
    answers += [
        api(case.method, case.path, case.body, key=key) for case in cases(world) for key in (a.revoked_key,)
    ]
    answers += [
        api("GET", "/metrics"),
        api("GET", "/tk/v1/keys?limit=1000"),
        api("PUT", f"/tk/v1/keys/{a.consumption_id}", {"secret": "x", "account": a.account}),
        api("POST", "/tk/v1/authorize", {"key": a.consumption_key, "path": "/nowhere"}),
        api("POST", "/tk/v1/authorize", {"key": a.consumption_key, "path": "/nowhere", "kee": 1}),
    ]
    for answer in answers:
        assert not any(text in answer.text for text in hidden), answer.request.url


def test_a_management_key_makes_no_more_than_its_accounts_quota(
    api: Api, account: str, issue: Any, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any call that makes an entry; what is there can be changed, and the operator has no quota."""
    _, key = issue(role="management")
    monkeypatch.setattr(installation.manage, "_quotas", {"keys": 2, "projects": 1, "webhooks": 1})
    made = api("POST", "/tk/v1/keys", {"type": "credit"}, key=key)
    assert made.status_code == 201
    key_path = f"/tk/v1/keys/{made.json()['entry']['id']}"
    hook = {"url": "https://example.com/hook"}
    assert api("POST", "/tk/v1/projects", {"id": "p1"}, key=key).status_code == 201
    assert api("POST", "/tk/v1/webhooks", hook, key=key).status_code == 201
    for method, path, body in (
        ("POST", "/tk/v1/keys", {"type": "credit"}),
        ("POST", f"{key_path}/rotate", {"overlap_s": 0}),
        ("POST", "/tk/v1/projects", {"id": "p2"}),
        ("PUT", "/tk/v1/projects/p2", {}),
        ("POST", "/tk/v1/webhooks", hook),
        ("PUT", "/tk/v1/webhooks/w2", hook),
    ):
        answer = api(method, path, body, key=key)
        assert (answer.status_code, answer.json()["code"]) == (409, "quota_exceeded"), (method, path)
    assert api("PUT", "/tk/v1/projects/p1", {"name": "new"}, key=key).status_code == 200
    assert api("PUT", f"/tk/v1/projects/p2?account={account}", {}).status_code == 201
    assert api("DELETE", key_path, key=key).status_code == 200
    assert api("POST", "/tk/v1/keys", {"type": "credit"}, key=key).status_code == 201
