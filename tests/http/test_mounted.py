"""
`toll.api()`: the API inside another application, under any prefix, over the same gate as the middleware.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from tollkeeper import Tollkeeper
from tollkeeper.domain.catalog import Account, Budget, Key, Project, Route
from tollkeeper.errors import BadParameter
from tollkeeper.http.mounted import MountedApi
from tollkeeper.installation import Installation
from tollkeeper.testing import ManualClock, set_up, unique, verify

OPERATOR = "ok_mounted0123456789abcdefghijklmnop"


class Place:
    def __init__(self, site: Installation) -> None:
        self.toll = Tollkeeper(site)
        self.api = self.toll.api(operator_key=OPERATOR)
        self.account = unique("acct")
        key = Key(id=unique("key"), account=self.account, profile="regsn")
        self.secret = set_up(
            site,
            Account(id=self.account, name="Acme"),
            key,
            Budget(id="pool", account=self.account, amount=3, unit="requests"),
            Route(id=unique("route"), method="GET", path="/v1/ping"),
        )[key.id]


@pytest.fixture
def place(site: Installation) -> Iterator[Place]:
    place = Place(site)
    yield place
    place.toll._closing.close()


def under_fastapi(api: MountedApi) -> Any:
    app = FastAPI()
    app.mount("/toll/gate", api)
    return app


def under_starlette(api: MountedApi) -> Any:
    return Starlette(routes=[Mount("/toll/gate", app=api)])


def under_litestar(api: MountedApi) -> Any:
    @asgi("/toll/gate", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await api(scope, receive, send)

    return Litestar(route_handlers=[mounted], openapi_config=None)


def behind_a_root_path(api: MountedApi) -> Any:
    """As `uvicorn --root-path /toll/gate` has it: at the head of the path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await api({**scope, "root_path": "/toll/gate"}, receive, send)

    return app


def call(app: Any, method: str, path: str, *, key: str = OPERATOR, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            headers = {"Authorization": f"Bearer {key}"}
            return await client.request(method, f"/toll/gate{path}", headers=headers, **options)

    return asyncio.run(ask())


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "host",
    [under_fastapi, under_starlette, under_litestar, behind_a_root_path],
    ids=lambda host: host.__name__,
)
def test_all_that_serve_has_is_there_under_a_prefix_over_the_same_gate(
    place: Place, site: Installation, clock: ManualClock, host: Any
) -> None:
    app = host(place.api)
    assert call(app, "GET", f"/tk/v1/accounts/{place.account}").json()["id"] == place.account
    # A slash inside of an id divides nothing.
    missing = call(app, "GET", "/tk/v1/projects/a%2Fb", params={"account": place.account})
    assert (missing.status_code, missing.json()["detail"]) == (
        404,
        "there is no such entry among the projects",
    )
    body = {"key": place.secret, "method": "GET", "path": "/v1/ping"}
    held = call(app, "POST", "/tk/v1/authorize", json=body)
    assert held.status_code == 200
    assert call(app, "POST", "/tk/v1/settle", json={"hold_id": held.json()["hold_id"]}).status_code == 200
    # The same counters as of the library: two of three are left.
    admissions: list[Any] = [place.toll.admit(place.secret, "GET", "/v1/ping") for _ in range(3)]
    assert [getattr(found, "reason", "") for found in admissions] == ["", "", "budget_exhausted"]
    for admission in admissions[:2]:
        place.toll.void(admission)
    clock.advance(seconds=1)
    assert call(app, "GET", "/regsn/v1/usage", key=place.secret).json()["totals"]["request_count"] >= 1
    assert b"tollkeeper_" in call(app, "GET", "/metrics").content
    assert call(app, "GET", "/healthz").status_code == 200
    assert call(app, "GET", "/tk/v1/accounts", key=place.secret).status_code == 403
    assert call(app, "GET", "/nothing").status_code == 404
    assert verify(site).ok


def test_an_operator_key_must_be_one(site: Installation) -> None:
    with pytest.raises(BadParameter, match="ok_"):
        Tollkeeper(site).api(operator_key="secret")


def test_without_an_operator_key_customers_are_served(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOLLKEEPER_OPERATOR_KEY", raising=False)
    toll, account = Tollkeeper(site), unique("acct")
    key = Key(id=unique("key"), account=account, role="management")
    secret = set_up(site, Account(id=account, name="Acme"), Project(id="web", account=account), key)[key.id]
    app = under_starlette(toll.api())
    assert call(app, "GET", "/tk/v1/projects", key=secret).json()["items"][0]["id"] == "web"
    assert call(app, "GET", "/tk/v1/projects", key="ok_" + "x" * 30).status_code == 401
    toll._closing.close()
