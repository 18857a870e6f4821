"""
Every endpoint with every kind of credential: our own API, every profile, probes and metrics.

The tables are of what is good; everything else that somebody may send must be refused, everywhere.
"""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from tests.fuzz.asgi import Answer, Caller
from tests.http.conftest import Api, World
from tests.http.test_isolation import cases
from tests.security.conftest import Credentials, credentials_of
from tollkeeper.installation import Installation
from tollkeeper.profiles import names

WHO: Final = ("key", "management", "session", "login", "key of B", "management of B", "session of B")
"""The columns: of account A, and of account B about what is A's where the path names it."""

KEY: Final = (200, 401, 401, 401, 200, 401, 401)
KEY_MAKES: Final = (201, 401, 401, 401, 201, 401, 401)
KEY_OWN: Final = (200, 401, 401, 401, 404, 401, 401)
DASHBOARD: Final = (401, 200, 200, 200, 401, 200, 200)
DASHBOARD_MAKES: Final = (401, 201, 201, 201, 401, 201, 201)
DASHBOARD_OWN: Final = (401, 200, 200, 200, 401, 404, 404)
EVERYBODY: Final = (200,) * 7

TABLE: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "anylayer": {
        f"{method} {prefix}{path}": expected
        for prefix in ("", "/api")
        for method, path, expected in (
            # A key that has made no request yet has no usage to show, says the vendor.
            ("GET", "/v1/developer/usage", (404, 401, 401, 401, 404, 401, 401)),
            ("POST", "/v1/developer/keys", KEY_MAKES),
            ("GET", "/v1/developer/keys", KEY),
            ("DELETE", "/v1/developer/keys/{keyId}", KEY_OWN),
        )
    },
    "cheapestinference": {
        "GET /v1/usage": KEY,
        "GET /api/usage": DASHBOARD,
        "GET /api/usage/{keyId}": DASHBOARD_OWN,
        "GET /api/plans": EVERYBODY,
        "GET /api/keys": DASHBOARD,
        "POST /api/keys/credit": DASHBOARD_MAKES,
        "POST /api/keys/subscription": (401, 400, 400, 400, 401, 400, 400),
        "PATCH /api/keys/{keyId}": (401, 400, 400, 400, 401, 404, 404),
        "DELETE /api/keys/{keyId}": DASHBOARD_OWN,
        "GET /api/billing/status": DASHBOARD,
        "GET /api/billing/credits": DASHBOARD,
    },
    "regpilot": {
        # Without a project it is asked for one.
        "GET /api/usage": (400, 401, 401, 401, 400, 401, 401),
        "GET /api/health": KEY,
    },
    "regsn": {
        "GET /v1/usage": (200, 401, 200, 200, 200, 401, 200),
        "POST /v1/keys": (403, 401, 201, 201, 403, 401, 201),
        "GET /v1/keys": (403, 401, 200, 200, 403, 401, 200),
        "DELETE /v1/keys/{key_id}": (403, 401, 204, 204, 403, 401, 404),
    },
    "shoal": {"GET /v1/usage": KEY},
}
"""Profile → endpoint → the status that each of `WHO` gets."""

REFUSED: Final[dict[tuple[str, str], dict[str, int]]] = {
    # The vendor shows the state of a key to its holder.
    ("cheapestinference", "GET /v1/usage"): {"revoked": 403, "inactive": 403, "expired": 403, "deleted": 404},
}
"""Where a bad credential gets another status than 401."""
OPEN: Final = {("cheapestinference", "GET /api/plans")}


def test_the_table_has_every_endpoint_of_every_profile(api: Api) -> None:
    """A new endpoint, or a new profile, is decided about here."""
    served = {
        name: {f"{endpoint.method} {endpoint.path}" for endpoint in site.profile.endpoints}
        for name, site in api.app._profiles.sites.items()
    }
    assert served == {name: set(table) for name, table in TABLE.items()}
    assert set(served) == set(names())


@pytest.fixture(scope="module")
def credentials(api: Api, world: World, installation: Installation) -> dict[str, Credentials]:
    return {name: credentials_of(name, api, world, installation) for name in TABLE}


def ask(call: Caller, profile: str, endpoint: str, secret: str | None, key_id: str) -> Answer:
    method, _, path = endpoint.partition(" ")
    headers = [(b"content-type", b"application/json")]
    if secret is not None:
        headers.append((b"authorization", f"Bearer {secret}".encode()))
    path = re.sub(r"\{\w+\}", key_id, path)
    return call(method, f"/{profile}{path}", headers, b'{"name":"n"}' if method == "POST" else b"")


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", sorted(TABLE))
def test_every_endpoint_of_a_profile_asks_every_credential_for_its_right(
    profile: str, call: Caller, api: Api, world: World, credentials: dict[str, Credentials]
) -> None:
    """And B sees nothing of A, nor can it tell A's key from one that does not exist."""
    a, b = world
    found: list[Any] = []
    for endpoint, expected in TABLE[profile].items():
        for who, status in zip(WHO, expected, strict=True):
            key_id = "none"
            if "{" in endpoint:
                made = api(
                    "POST", "/tk/v1/keys", {"account": a.account, "profile": profile, "type": "credit"}
                )
                key_id = made.json()["entry"]["id"]
            secret = credentials[profile].good[who]
            answer = ask(call, profile, endpoint, secret, key_id)
            if answer.status != status:
                found.append((endpoint, who, answer.status, status))
            text = answer.body.decode()
            other = a if who.endswith("of B") else b
            for name in (other.account, other.consumption_id, other.management_id, *other.ids.values()):
                assert name not in text, (endpoint, who, text)
            assert secret not in text
            if who.endswith("of B") and "{" in endpoint:
                none = ask(call, profile, endpoint, secret, "00000000-0000-4000-8000-000000000000")
                assert none.status == answer.status, (endpoint, who)
        for who, bad in credentials[profile].bad.items():
            status = REFUSED.get((profile, endpoint), {}).get(who, 401)
            if (profile, endpoint) in OPEN:
                status = 200
            answer = ask(call, profile, endpoint, bad, world.a.consumption_id)
            if answer.status != status:
                found.append((endpoint, who, answer.status, status))
            # A problem's `instance` is the path that was called.
            assert a.account not in answer.body.decode().replace(a.consumption_id, "")
            assert not bad or len(bad) < 12 or bad not in answer.body.decode(), (endpoint, who)
    assert found == []


@pytest.mark.parametrize("profile", sorted(TABLE))
def test_a_path_or_method_that_a_profile_does_not_have_tells_nothing(
    profile: str, call: Caller, world: World, credentials: dict[str, Credentials]
) -> None:
    for secret in (None, *credentials[profile].good.values()):
        for method, path in (("GET", "/v1/none"), ("GET", "/"), ("PUT", "/v1/usage"), ("TRACE", "/v1/usage")):
            headers = [] if secret is None else [(b"authorization", f"Bearer {secret}".encode())]
            answer = call(method, f"/{profile}{path}", headers)
            assert 400 <= answer.status < 500, (method, path)
            assert world.a.account not in answer.body.decode()


def test_our_own_api_takes_none_of_the_rest(
    call: Caller, api: Api, world: World, credentials: dict[str, Credentials]
) -> None:
    """Session tokens are for profiles only; what has ended, or was forged, is for nothing."""
    found = []
    refused: dict[str, str | None] = {}
    for profile in ("shoal", "regsn"):
        bad = {who: secret for who, secret in credentials[profile].bad.items() if who != "operator"}
        refused |= {f"{profile}: {who}": secret for who, secret in bad.items() if "key" not in who.split()}
    refused |= {who: credentials["shoal"].good[who] for who in ("session", "login", "session of B")}
    for case in cases(world):
        for who, secret in refused.items():
            key = secret or ""
            status = call(
                case.method,
                case.path,
                [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")],
                b"{}",
            ).status
            if status != 401:
                found.append((case.method, case.path, who, status))
    assert found == []


def test_a_key_of_one_account_asks_nothing_about_another(
    call: Caller, world: World, credentials: dict[str, Credentials]
) -> None:
    """Consumption keys of whatever profile, on our own API."""
    a = world.a
    for profile, has in credentials.items():
        for path in (
            f"usage?account={a.account}",
            f"usage?key={a.consumption_id}",
            f"keys/{a.consumption_id}/state",
        ):
            headers = [(b"authorization", f"Bearer {has.good['key of B']}".encode())]
            answer = call("GET", f"/tk/v1/{path}", headers)
            assert answer.status == 404, (profile, path)
            assert "requests" not in answer.json
