"""
No SQL on an event loop: while a database hangs, the loop serves everybody else.

A connection that the pool lends to a thread with a running event loop is one statement of ours on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.http.conftest import Api, World
from tollkeeper.asgi import Middleware
from tollkeeper.blocking import NOT_WAITING, WouldWait
from tollkeeper.domain.catalog import Key
from tollkeeper.embedded import Tollkeeper
from tollkeeper.http.app import build_app
from tollkeeper.installation import Installation
from tollkeeper.profiles import load, names
from tollkeeper.testing import unique


@pytest.fixture
def on_the_loop(installation: Installation) -> Iterator[list[str]]:
    """The statements that ran in a thread with a running event loop."""
    found: list[str] = []

    def look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        found.append(statement)

    sa.event.listen(installation.engine, "before_cursor_execute", look)
    yield found
    sa.event.remove(installation.engine, "before_cursor_execute", look)


@pytest.fixture
def cold(installation: Installation) -> None:
    """Nothing of the catalog is in memory."""
    installation.gate.forget()
    installation.directory.forget()


def asked(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            return await client.request(method, path, **options)

    return asyncio.run(call())


def test_a_thread_that_may_not_wait_gets_no_connection(installation: Installation) -> None:
    with NOT_WAITING, pytest.raises(WouldWait):
        installation.directory.key_by_hash("a" * 64)
    assert installation.directory.key_by_hash("a" * 64) is None


@pytest.mark.usefixtures("cold")
def test_hot_calls(api: Api, world: World, installation: Installation, on_the_loop: list[str]) -> None:
    path = f"/v1/{world.a.account}"
    for secret, status in {
        world.a.consumption_key: 200,
        world.a.revoked_key: 401,
        "tk_made_up": 401,
        "": 401,
        world.a.management_key: 401,
    }.items():
        for id_ in (None, unique("hold")):
            installation.gate.forget()
            installation.directory.forget()
            request = {"key": secret, "method": "POST", "path": path}
            answer = api("POST", "/tk/v1/authorize", request | ({} if id_ is None else {"id": id_}))
            assert answer.status_code == status, answer.text
            if status == 200:
                hold = {"hold_id": answer.json()["hold_id"]}
                ending = "settle" if id_ is None else "void"
                assert api("POST", f"/tk/v1/{ending}", hold).status_code == 200
                assert api("POST", f"/tk/v1/{ending}", hold).status_code == 200
    for key in (world.a.management_key, world.a.consumption_key, "tk_made_up", world.a.revoked_key):
        assert api("POST", "/tk/v1/events", [], key=key).status_code in (200, 401, 403)
    assert on_the_loop == []


@pytest.mark.parametrize("profile", names())
@pytest.mark.usefixtures("cold")
def test_keys_of_profiles(
    api: Api, installation: Installation, account: str, profile: str, on_the_loop: list[str]
) -> None:
    secret = installation.manage.issue_key(Key(id=unique("key"), account=account, profile=profile)).secret
    assert secret is not None
    route = {"method": "POST", "path": f"/v1/{account}", "price_nanos": 1}
    assert api("PUT", f"/tk/v1/routes/{account}", route).status_code == 201
    for key in (secret, "tk_made_up"):
        request = {"key": key, "method": "POST", "path": f"/v1/{account}", "profile": profile}
        api("POST", "/tk/v1/authorize", request)
    for endpoint in load(profile).endpoints:
        for headers in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": "tk_made_up"}, {}):
            api(endpoint.method, f"/{profile}{endpoint.path}", headers=headers, key=None)
    api("GET", f"/{profile}/nothing-there", headers={"Authorization": f"Bearer {secret}"}, key=None)
    assert on_the_loop == []


@pytest.mark.usefixtures("cold")
def test_every_other_path(api: Api, world: World, on_the_loop: list[str]) -> None:
    paths = api("GET", "/tk/v1/openapi.json").json()["paths"]
    keys = (world.a.management_key, world.a.consumption_key, world.a.revoked_key, "tk_made_up", None)
    ids = {"entry_id": "none", "event_id": world.a.event_id}
    for path, methods in paths.items():
        for method in methods:
            for key in keys:
                api(method.upper(), path.format_map(ids), {} if method in ("post", "put") else None, key=key)
    for path in ("/tk/v1/usage", "/readyz", "/healthz", "/metrics", f"/tk/v1/events/{world.a.event_id}"):
        assert api("GET", path).status_code == 200
    assert on_the_loop == []


@pytest.mark.parametrize("profile", ["native", *names()])
@pytest.mark.usefixtures("cold")
def test_the_middleware(
    api: Api, installation: Installation, account: str, profile: str, on_the_loop: list[str]
) -> None:
    secret = installation.manage.issue_key(Key(id=unique("key"), account=account, profile=profile)).secret

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    route = {"method": "POST", "path": f"/v1/{account}", "price_nanos": 1}
    assert api("PUT", f"/tk/v1/routes/{account}", route).status_code == 201
    gated = Middleware(app, Tollkeeper(installation), profile=profile)
    for _ in range(2):
        for key in (secret, "tk_made_up", None):
            headers = {} if key is None else {"Authorization": f"Bearer {key}", "X-API-Key": key}
            answer = asked(gated, "POST", f"/v1/{account}", headers=headers)
            assert (answer.status_code == 200) is (key == secret), answer.text
        # The same while the key is in memory, but not what its headers tell of it.
        installation.directory.forget()
    assert on_the_loop == []


def test_what_is_in_memory_stays_on_the_loop(api: Api, installation: Installation, world: World) -> None:
    """A thread for each admission would cost more than the admission."""
    request = {"key": world.a.consumption_key, "method": "POST", "path": f"/v1/{world.a.account}"}
    first = api("POST", "/tk/v1/authorize", request).json()
    assert api("POST", "/tk/v1/settle", {"hold_id": first["hold_id"]}).status_code == 200
    app = build_app(installation)
    app.executors.close()  # A thread would be refused from now on.
    operator = {"Authorization": "Bearer ok_operator0123456789abcdefghijklmnop"}
    answer = asked(app, "POST", "/tk/v1/authorize", json=request, headers=operator)
    assert answer.status_code == 200, answer.text
    hold = {"hold_id": answer.json()["hold_id"]}
    assert asked(app, "POST", "/tk/v1/settle", json=hold, headers=operator).status_code == 200
    app.close()
