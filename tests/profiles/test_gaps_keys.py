"""What belongs to a line of rotated keys, to an account that is closed, and to an id with a slash in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import pytest

from tests.conftest import Install
from tests.end_to_end.server import OPERATOR_KEY, Refused, running_server
from tests.profiles.places import OPERATOR, Local
from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Limit, Project
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import Endpoint
from tollkeeper.testing import NOON, ManualClock, set_up, unique

USAGE: Final = {
    "anylayer": "/v1/developer/usage",
    "cheapestinference": "/v1/usage",
    "regpilot": "/api/usage",
    "regsn": "/v1/usage",
    "shoal": "/v1/usage",
}
SLASHED: Final = ("a/b", "/", "a//b", "a/b/amend", "a%2Fb", "a%2Fb/c", "é/ü", "..", "a/../b", "a b+c/d?e#f")


@pytest.fixture
def place(install: Install) -> Iterator[Local]:
    site = install()
    ensure_operator_key(site, OPERATOR_KEY)
    app = build_app(site)
    yield Local(app)
    app.close()


def ask(place: Local, path: str, secret: str, **params: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    return place.request("GET", path, headers=headers, params=params or None)


# -- a line of keys -------------------------------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", names())
def test_rotating_a_key_frees_it_of_no_limit(place: Local, profile: str) -> None:
    """The usage endpoints count against the same limit before and after, as metered requests do."""
    account, project, key_id = unique("acct"), unique("project"), unique("key")
    limits = [Limit(name="requests", amount=4)]
    key = Key(id=key_id, account=account, project=project, profile=profile, limits=limits)
    secret = set_up(place.site, Account(id=account, name="A"), Project(id=project, account=account), key)[
        key_id
    ]
    path = f"/{profile}{USAGE[profile]}"
    for _ in range(2):
        assert ask(place, path, secret, projectId=project).status_code in (200, 404)
    first = place.site.manage.rotate_key(account, key_id, 3600)
    second = place.site.manage.rotate_key(account, first.entry.id, 3600)
    assert first.secret is not None
    assert second.secret is not None
    assert ask(place, path, second.secret, projectId=project).status_code in (200, 404)
    assert ask(place, path, first.secret, projectId=project).status_code in (200, 404)
    for each in (secret, first.secret, second.secret):
        assert ask(place, path, each, projectId=project).status_code == 429
    context = place.site.context(load(profile))
    ids = [key_id, first.entry.id, second.entry.id]
    for each_id in ids:
        stored = place.site.directory.key(each_id)
        assert stored is not None
        assert sorted(context.rotation_chain(stored)) == sorted(ids)
        (limit_status,) = (s for s in context.limit_statuses(stored) if s.kind == "limit")
        assert (limit_status.allowed, limit_status.used) == (4, 4)


def test_shoal_goes_on_counting_the_requests_of_a_rotated_key(place: Local) -> None:
    """Counters and budget are of the same customer's allowance: neither starts again."""
    account, key_id = unique("acct"), unique("key")
    key = Key(id=key_id, account=account, profile="shoal")
    budget = Budget(id="pool", account=account, amount=100, unit="credits", key=key_id)
    set_up(place.site, Account(id=account, name="A"), key, budget)
    place.book(key_id, NOON, *[{"status": 200, "credits": 3}] * 4)
    rotated = place.site.manage.rotate_key(account, key_id, 0)
    assert rotated.secret is not None
    place.book(rotated.entry.id, NOON, {"status": 200, "credits": 3})
    data = ask(place, "/shoal/v1/usage", rotated.secret).json()["data"]
    assert (data["today"], data["thisWeek"], data["thisMonth"]) == (5, 5, 5)
    assert data["budget"] == {"limit": 100, "used": 15, "remaining": 85}


def test_regsn_counts_the_reads_of_a_rotated_key_that_no_plan_limits(place: Local) -> None:
    account, key_id = unique("acct"), unique("key")
    secret = set_up(
        place.site, Account(id=account, name="A"), Key(id=key_id, account=account, profile="regsn")
    )[key_id]
    assert ask(place, "/regsn/v1/usage", secret).headers["ratelimit-remaining"] == "59"
    rotated = place.site.manage.rotate_key(account, key_id, 0)
    assert rotated.secret is not None
    assert ask(place, "/regsn/v1/usage", rotated.secret).headers["ratelimit-remaining"] == "58"


# -- a closed account -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/cheapestinference/api/usage",
            {"success": False, "error": "Unauthorized"},
        ),
        ("/regsn/v1/usage", {"status": 401, "code": "authentication_invalid"}),
        ("/regsn/v1/keys", {"status": 401, "code": "authentication_invalid"}),
    ],
)
def test_a_session_ends_with_its_account_and_begins_again_with_it(
    place: Local, path: str, body: dict[str, Any]
) -> None:
    account = Account(id=unique("acct"), name="A")
    set_up(place.site, account)
    token = place.site.sessions.issue(account.id, "ada")
    assert ask(place, path, token).status_code == 200
    set_up(place.site, msgspec.structs.replace(account, active=False))
    found = ask(place, path, token)
    assert found.status_code == 401
    assert found.json().items() >= body.items()
    set_up(place.site, account)
    assert ask(place, path, token).status_code == 200


# -- ids with a slash -----------------------------------------------------------------------------------------


@pytest.mark.drawn(4)
@pytest.mark.parametrize("event_id", SLASHED)
def test_an_event_is_reached_by_its_encoded_id(place: Local, clock: ManualClock, event_id: str) -> None:
    """Whatever an id has in it: percent-encoded it is one segment of the path."""
    account, key_id = unique("acct"), unique("key")
    set_up(place.site, Account(id=account, name="A"), Key(id=key_id, account=account))
    place.book(key_id, NOON, {"id": event_id, "cost_nanos": 1}, {"id": "a", "cost_nanos": 2})
    # httpx takes dots for a way up unless they are encoded too.
    path = f"/tk/v1/events/{quote(event_id, safe='').replace('.', '%2E')}"
    found = place.request("GET", f"{path}?account={account}", headers=OPERATOR)
    assert (found.status_code, found.json().get("id")) == (200, event_id), found.text
    assert found.json()["cost_nanos"] == "1"
    amended = place.operate(
        f"{path}/amend?account={account}", {"correction_id": unique("c"), "cost_nanos": 5}
    )
    assert (amended.status_code, amended.json()["event"]["cost_nanos"]) == (200, "5"), amended.text
    voided = place.operate(f"{path}/void?account={account}", {"correction_id": unique("c")})
    assert (voided.status_code, voided.json()["event"]["voided"]) == (200, True), voided.text
    other = place.request("GET", f"/tk/v1/events/a?account={account}", headers=OPERATOR)
    assert other.json()["cost_nanos"] == "2"


def test_a_path_that_is_not_there_is_named_as_it_was_meant(place: Local) -> None:
    found = place.request("GET", "/tk/v1/events/a%2Fb/c", headers=OPERATOR)
    assert (found.status_code, found.json()["instance"]) == (404, "/tk/v1/events/a/b/c")
    found = place.request("GET", "/shoal/v1/a%2Fb%252Fc%20d")
    assert (found.status_code, found.json()["path"]) == (404, "/v1/a/b%2Fc d")


KEYED: Final = [
    (name, endpoint)
    for name in names()
    for endpoint in load(name).endpoints
    if "{" in endpoint.path and not endpoint.path.startswith("/api/v1/")
]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("profile", "endpoint"), KEYED, ids=[f"{n} {e.method} {e.path}" for n, e in KEYED])
def test_a_slash_in_a_key_id_belongs_to_the_id(place: Local, profile: str, endpoint: Endpoint) -> None:
    """It is a key that is not there, not an endpoint that is not there."""
    account = unique("acct")
    keys = [
        Key(id=unique("key"), account=account, profile=profile),
        Key(id=unique("key"), account=account, role="management"),
    ]
    made = set_up(place.site, Account(id=account, name="A"), *keys)
    credential = {
        "anylayer": made[keys[0].id],
        "cheapestinference": made[keys[1].id],
        "regsn": place.site.sessions.issue(account, "ada"),
    }[profile]
    template = endpoint.path.replace("{keyId}", "{}").replace("{key_id}", "{}")
    answered = []
    for key_id in ("nobody", "no%2Fbody", "%2F", "no%2fbody%2F..%2F"):
        found = place.request(
            endpoint.method,
            f"/{profile}{template.format(key_id)}",
            headers={"Authorization": f"Bearer {credential}"},
            content=b'{"isActive": false}',
        )
        body = found.json()
        answered.append((found.status_code, body.get("error"), body.get("detail"), body.get("code")))
    assert answered[0][0] == 404
    assert set(answered) == {answered[0]}


def test_the_running_server_reaches_ids_with_a_slash(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As the in-process tests, through the real server's own reading of paths."""
    with running_server(tmp_path_factory.mktemp("slash")) as server:
        server.put("/tk/v1/accounts/acme", {"name": "Acme"})
        for event_id in ("a/b", "a%2Fb", "a%b"):
            event = {"id": event_id, "time": "2026-01-31T09:30:00Z", "account": "acme", "cost_nanos": 1}
            assert server.post("/tk/v1/events", event)["accepted"] == 1
            assert server.call("GET", f"/tk/v1/events/{quote(event_id, safe='')}")["id"] == event_id
        with pytest.raises(Refused) as caught:
            server.call("GET", "/shoal/v1/a%252Fb")
        assert (caught.value.status, caught.value.body["path"]) == (404, "/v1/a%2Fb")


# -- quotas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "path", "by_session"),
    [
        ("anylayer", "/anylayer/v1/developer/keys", False),
        ("regsn", "/regsn/v1/keys", True),
        ("cheapestinference", "/cheapestinference/api/keys/credit", True),
    ],
)
def test_a_dashboard_makes_no_more_keys_than_the_accounts_quota(
    place: Local, profile: str, path: str, by_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal in the vendor's words, and no failure of ours."""
    account, key_id = unique("acct"), unique("key")
    key = Key(id=key_id, account=account, profile=profile)
    grant = Grant(id="g", account=account, amount_nanos=10**9)
    secret = set_up(place.site, Account(id=account, name="A"), key, grant)[key_id]
    monkeypatch.setattr(place.site.manage, "_quotas", {"keys": 1})
    credential = place.site.sessions.issue(account, "user") if by_session else secret
    body = {"name": "second"}
    answer = place.request("POST", path, headers={"Authorization": f"Bearer {credential}"}, json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert "the account has 1 keys" in answer.text
    assert len(place.site.catalog.entries("keys", account)) == 1
