"""
Every kind of credential on every endpoint of every profile, at the root and under the prefix: who is not to
be let in is refused with the status that the vendor's pages give, and nothing that is sent is an error of ours.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Final, NamedTuple

import httpx
import jwt
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import Account, Entry, Key, Project
from tollkeeper.domain.keys import hash_secret
from tollkeeper.http.app import App, build_app
from tollkeeper.installation import Installation
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import Endpoint
from tollkeeper.testing import NOON, ManualClock, installation, set_up, unique

OPERATOR_KEY: Final = "ok_0123456789abcdefghij"
UNKNOWN_ID: Final = "6f1b7f0e-2a57-4a53-9f0d-2f6b0f6a7c11"
_NUMBERS: Final = itertools.count(1)
STATES: Final = ("active", "inactive", "expired", "revoked", "deleted")


class Site:
    """One installation, and an application per profile that has it at the root."""

    def __init__(self, site: Installation) -> None:
        self.site = site
        self.apps: dict[str, App] = {}
        for name in names():
            site.settings = msgspec.structs.replace(site.settings, root_profile=name)
            self.apps[name] = build_app(site)


class Asked(NamedTuple):
    """One request to a profile."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    params: Mapping[str, str] = {}
    body: bytes = b""


class World(NamedTuple):
    """What one test has: an account with a project, and its credentials by kind."""

    project: str
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def all_five(tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore) -> Iterator[Site]:
    with (
        installation(tmp_path_factory.mktemp("site"), clock=ManualClock(), store=usage_store) as opened,
        ExitStack() as stack,
    ):
        site = Site(opened)
        for app in site.apps.values():
            stack.callback(app.close)
        yield site


def ask(site: Site, profile: str, asked: list[Asked]) -> list[httpx.Response]:
    """
    Send each request to the root and under the prefix; return the answers of the root.

    Fails unless both answer with the same status and type, and neither with an error of ours.
    """

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url="http://toll") as client:
            answers = []
            for one in asked:
                pair = []
                for base in ("", f"/{profile}"):
                    request = client.build_request(
                        one.method,
                        base + one.path,
                        headers={name: value.encode("utf-8") for name, value in one.headers.items()},
                        params=dict(one.params) or None,
                        content=one.body or None,
                    )
                    # An address with many failures is blocked, so each request comes from its own address.
                    number = next(_NUMBERS)
                    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
                    transport = httpx.ASGITransport(site.apps[profile], client=(address, 1))
                    found = await transport.handle_async_request(request)
                    await found.aread()
                    pair.append(found)
                root, prefixed = pair
                assert root.status_code < 500, (one, root.text)
                answered = [(each.status_code, each.headers.get("content-type")) for each in pair]
                assert answered[0] == answered[1], (one, root.text, prefixed.text)
                answers.append(root)
            return answers

    return asyncio.run(send())


def carried(profile: str, credential: str) -> dict[str, str]:
    """Return the header that carries a credential to a profile."""
    if profile == "regpilot":
        return {"X-API-Key": credential}
    return {"Authorization": f"Bearer {credential}"}


def world_of(site: Installation, profile: str) -> World:
    """Make two accounts, one of them closed, with keys of every kind and state."""
    account, closed, project = unique("acct"), unique("acct"), unique("project")
    other = next(name for name in names() if name != profile)
    entries: list[Entry] = [
        Account(id=account, name="Acme"),
        Account(id=closed, name="Closed", active=False),
        Project(id=project, account=account),
    ]
    keys = {}
    for role in ("consumption", "management"):
        fields: dict[str, Any] = {"role": role}
        if role == "consumption":
            fields |= {"profile": profile, "project": project}
        for state in STATES:
            expires_at = NOON + timedelta(seconds=1) if state == "expired" else None
            keys[f"{role} {state}"] = Key(id=unique("key"), account=account, expires_at=expires_at, **fields)
        fields.pop("project", None)
        keys[f"{role} closed"] = Key(id=unique("key"), account=closed, **fields)
    keys["foreign"] = Key(id=unique("key"), account=account, profile=other)
    keys["native"] = Key(id=unique("key"), account=account)
    clock = site.clock
    assert isinstance(clock, ManualClock)
    now = clock.now()
    # A key that has ended can be made no more.
    clock.set(NOON)
    made = set_up(site, *entries, *keys.values())
    clock.set(now)
    for kind, key in keys.items():
        state = kind.partition(" ")[2]
        if state in ("inactive", "revoked", "deleted"):
            site.manage.set_key_state(key.account, key.id, state)  # type: ignore[arg-type]
    secrets = {kind: made[key.id] for kind, key in keys.items()}
    issue = site.sessions.issue
    good = issue(account, "ada")
    secrets |= {
        "session": good,
        "session expired": issue(account, "ada", -3600),
        "session closed": issue(closed, "ada"),
        "session unknown": issue(unique("acct"), "ada"),
        "session forged": jwt.encode(
            jwt.decode(good, options={"verify_signature": False}), "x" * 32, algorithm="HS256"
        ),
        "session unsigned": jwt.encode(
            jwt.decode(good, options={"verify_signature": False}), None, algorithm="none"
        ),
        "operator": OPERATOR_KEY,
        "garbage": "garbage",
        "odd": "é\u00ff" + "x" * 300,
        "long": "x" * 5000,
    }
    return World(project, secrets)


BAD_SESSIONS: Final = frozenset(
    {"session expired", "session closed", "session unknown", "session forged", "session unsigned"}
)
NEVER: Final = frozenset({"operator", "garbage", "odd", "long", "foreign", "native"}) | BAD_SESSIONS
"""What lets nobody in, anywhere."""


def expected(profile: str, path: str, kind: str) -> int | None:
    """Return the status of a refusal; None where the credential is good."""
    if path == "/api/plans":
        return None
    dashboard = profile == "cheapestinference" and path.startswith("/api/")
    if dashboard:
        return None if kind in ("management active", "session") else 401
    if profile == "regsn" and kind == "session":
        return None
    if kind == "consumption active":
        return 403 if profile == "regsn" and path.startswith("/v1/keys") else None
    if profile == "cheapestinference":
        by_kind = {"consumption deleted": 404}
        for state in ("inactive", "expired", "revoked", "closed"):
            by_kind[f"consumption {state}"] = 403
        return by_kind.get(kind, 401)
    if kind == "consumption closed":
        return 401 if profile == "shoal" else 403
    return 401


ENDPOINTS: Final = [(name, endpoint) for name in names() for endpoint in load(name).endpoints]


def asked_of(
    profile: str, endpoint: Endpoint, project: str, headers: Mapping[str, str], body: bytes = b"{}"
) -> Asked:
    """Return a request to an endpoint; one that is good but for what its key id names."""
    path = endpoint.path.replace("{keyId}", UNKNOWN_ID).replace("{key_id}", UNKNOWN_ID)
    params = {"projectId": project} if profile == "regpilot" else {}
    return Asked(endpoint.method, path, headers, params, b"" if endpoint.method == "GET" else body)


@pytest.mark.drawn(8)
@pytest.mark.parametrize(
    ("profile", "endpoint"), ENDPOINTS, ids=[f"{name} {e.method} {e.path}" for name, e in ENDPOINTS]
)
def test_who_is_not_to_be_let_in_is_refused(all_five: Site, profile: str, endpoint: Endpoint) -> None:
    site = all_five.site
    clock = site.clock
    assert isinstance(clock, ManualClock)
    clock.set(NOON)
    world = world_of(site, profile)
    clock.advance(seconds=1)
    kinds = list(world.secrets)
    asked = [
        asked_of(profile, endpoint, world.project, carried(profile, world.secrets[kind])) for kind in kinds
    ]
    for kind, found in zip(kinds, ask(all_five, profile, asked), strict=True):
        wanted = expected(profile, endpoint.path, kind)
        if wanted is None:
            assert found.status_code not in (401, 403), (kind, found.text)
        else:
            assert found.status_code == wanted, (kind, found.text)
            # A refusal tells nothing of the secret, nor what our own words are for it.
            assert world.secrets[kind] not in found.text or kind == "garbage"
            assert "Traceback" not in found.text
    # What an earlier request was refused for has no effect on a good one, and there is one kind at least.
    assert any(expected(profile, endpoint.path, kind) is None for kind in kinds)


MALFORMED: Final[list[dict[str, str]]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "Basic YTpi"},
    {"Authorization": "Payment x"},
    {"X-API-Key": ""},
    {"X-API-Key": " "},
    {"Cookie": "session=x"},
]


@pytest.mark.parametrize("profile", names())
def test_no_credential_is_401_on_every_endpoint(all_five: Site, profile: str) -> None:
    for endpoint in load(profile).endpoints:
        asked = [asked_of(profile, endpoint, "p", headers) for headers in MALFORMED]
        wanted = 200 if endpoint.path == "/api/plans" else 401
        assert {found.status_code for found in ask(all_five, profile, asked)} == {wanted}, endpoint


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", names())
def test_a_missing_path_is_refused_with_every_credential(all_five: Site, profile: str) -> None:
    clock = all_five.site.clock
    assert isinstance(clock, ManualClock)
    clock.set(NOON)
    world = world_of(all_five.site, profile)
    clock.advance(seconds=1)
    for kind, secret in world.secrets.items():
        headers = carried(profile, secret)
        known = [e.path for e in load(profile).endpoints if "{" not in e.path]
        asked = [Asked("GET", "/nope", headers), Asked("GET", "/v1/nope/%2F/%00", headers)]
        asked += [Asked("PUT", path, headers) for path in dict.fromkeys(known)]
        for one, found in zip(asked, ask(all_five, profile, asked), strict=True):
            # One vendor's pages have no 405.
            wanted = (404,) if one.method == "GET" or profile == "regsn" else (405,)
            assert found.status_code in wanted, (kind, one, found.text)


# -- parameters and bodies ------------------------------------------------------------------------------------


BAD_PARAMETERS: Final[dict[str, list[tuple[str, dict[str, str], int]]]] = {
    "regpilot": [
        ("/api/usage", {"projectId": ""}, 400),
        ("/api/usage", {"projectId": "another"}, 403),
        *(
            ("/api/usage", {"projectId": "{project}", "period": period}, 400)
            for period in ("", "year", "Day", " day", "month\x00")
        ),
        ("/api/health", {"period": "year"}, 200),
    ],
    "shoal": [("/v1/usage", {"from": "x", "limit": "-1", "": "x"}, 200)],
    "regsn": [
        *(
            ("/v1/usage", {name: text}, 422)
            for name in ("from", "to")
            for text in ("", "yesterday", "2026-13-01", "2026-04-15T25:00:00Z", "1776211200", "0000-01-01")
        ),
        *(("/v1/usage", {"group_by": text}, 422) for text in ("", "week", "Day", "day,key")),
        ("/v1/usage", {"from": "2026-02-01", "to": "2026-01-01"}, 422),
    ],
    "anylayer": [
        *(("/v1/developer/usage", {"timeframe": text}, 400) for text in ("", "2h", "24H", "ALL")),
        *(
            ("/v1/developer/usage", {name: text}, 400)
            for name in ("granularity", "interval")
            for text in ("", "second", "Hour")
        ),
        *(
            ("/v1/developer/usage", {name: text}, 400)
            for name in ("includeBreakdown", "includeErrors", "includeLatency")
            for text in ("", "yes", "2", "null")
        ),
        *(
            ("/v1/developer/usage", {name: text}, 400)
            for name in ("sort", "sortBy", "order", "sortOrder")
            for text in ("", "up", "Requests")
        ),
        *(
            (path, {"limit": text}, 400)
            for path in ("/v1/developer/usage", "/v1/developer/keys")
            for text in ("", "0", "1001", "x", "1.5", "-1", "٣", "9" * 40)
        ),
        *(
            (path, {"offset": text}, 400)
            for path in ("/v1/developer/usage", "/v1/developer/keys")
            for text in ("", "-1", "x", "1e3", "9" * 40)
        ),
        ("/v1/developer/usage", {"includeLatency": "false", "sort": "latency"}, 400),
        *(("/v1/developer/usage", {"keyId": text}, 404) for text in ("", "nope", "a/b", "\x00", "x" * 3000)),
    ],
    "cheapestinference": [
        ("/v1/usage", {"startDate": "x"}, 200),
        ("/api/usage", {"startDate": "x", "endDate": ""}, 200),
        ("/api/plans", {"limit": "x"}, 200),
    ],
}


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", names())
def test_every_bad_parameter_has_its_status(all_five: Site, profile: str) -> None:
    world = world_of(all_five.site, profile)
    for path, params, status in BAD_PARAMETERS[profile]:
        dashboard = path.startswith("/api/") and profile == "cheapestinference"
        secret = world.secrets["management active" if dashboard else "consumption active"]
        params = {name: text.replace("{project}", world.project) for name, text in params.items()}
        asked = Asked("GET", path, carried(profile, secret), params)
        (found,) = ask(all_five, profile, [asked])
        if (profile, status) == ("regsn", 422) and found.status_code == 429:
            world = world_of(all_five.site, profile)
            asked = asked._replace(headers=carried(profile, world.secrets["consumption active"]))
            (found,) = ask(all_five, profile, [asked])
        assert found.status_code == status, (path, params, found.text)


NO_OBJECTS: Final = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"[]",
    b'"x"',
    b"1",
    b"null",
    b"{",
    b"[" * 9000,
    b"x" * 70_000,
]


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    ("profile", "method", "path", "statuses"),
    [
        ("regsn", "POST", "/v1/keys", {400}),
        ("anylayer", "POST", "/v1/developer/keys", {400}),
        ("cheapestinference", "POST", "/api/keys/credit", {400}),
        ("cheapestinference", "POST", "/api/keys/subscription", {400}),
    ],
)
def test_a_body_that_is_no_object_is_400(
    all_five: Site, profile: str, method: str, path: str, statuses: set[int]
) -> None:
    world = world_of(all_five.site, profile)
    kind = {"regsn": "session", "anylayer": "consumption active"}.get(profile, "management active")
    for body in NO_OBJECTS:
        if profile == "regsn":
            # Ten calls a minute of one user.
            world = world_of(all_five.site, profile)
        asked = Asked(method, path, carried(profile, world.secrets[kind]), body=body)
        assert {found.status_code for found in ask(all_five, profile, [asked])} <= statuses, body[:20]


TEXTS: Final = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(
    max_examples=effort(4, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    params=st.dictionaries(
        st.sampled_from(
            [
                *("projectId", "period", "from", "to", "group_by", "timeframe", "granularity"),
                *("sort", "order", "limit", "offset", "keyId", "includeErrors"),
            ]
        )
        | TEXTS,
        TEXTS | st.sampled_from(["day", "hour", "1h", "2026-01-01", "1", "asc", "true", "%2F", "\x00"]),
        max_size=4,
    ),
    body=st.binary(max_size=30) | st.dictionaries(
        st.sampled_from(["name", "permissions", "rateLimit", "expiry", "webhooks", "metadata", "isActive"]),
        st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2)
        | st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2),
        max_size=4,
    ).map(lambda fields: json.dumps(fields).encode()),
)  # fmt: skip
def test_nothing_that_is_sent_is_an_error_of_ours(
    all_five: Site, params: dict[str, str], body: bytes
) -> None:
    """Whatever the parameters and the body: an answer of the dialect below 500, the same at both places."""
    for profile in names():
        world = worlds(all_five.site, profile)
        for endpoint in load(profile).endpoints:
            if endpoint.method in ("DELETE",) or (profile, endpoint.path[:4]) == ("anylayer", "/api"):
                continue
            dashboard = endpoint.path.startswith("/api/") and profile == "cheapestinference"
            kind = "management active" if dashboard else "consumption active"
            if profile == "regsn" and endpoint.path.startswith("/v1/keys"):
                kind = "session"
            one = asked_of(profile, endpoint, world.project, carried(profile, world.secrets[kind]), body)
            ask(all_five, profile, [one._replace(params={**one.params, **params})])


_WORLDS: dict[tuple[int, str], World] = {}


def worlds(site: Installation, profile: str) -> World:
    """Return one world per profile, made when it is first asked for."""
    at = (id(site), profile)
    if at not in _WORLDS:
        _WORLDS[at] = world_of(site, profile)
    return _WORLDS[at]


def test_the_secrets_that_are_made_are_no_more_than_hashes_in_the_store(all_five: Site) -> None:
    """What these tests lean on: a key is found by its hash, whatever its state."""
    world = world_of(all_five.site, "shoal")
    stored = all_five.site.directory.key_by_hash(hash_secret(world.secrets["consumption revoked"]))
    assert stored is not None
    assert stored.entry.state == "revoked"
