"""
One installation per module of tests of the HTTP surface, by the machine's clock.

Tests keep apart by account. `api` calls the application in process; `world` has two accounts that own one
entry of each kind, and a secret of each kind of credential.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.http.app import App, build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation

OPERATOR_KEY = "ok_operator0123456789abcdefghijklmnop"


class Api:
    """Calls the application. Each call without a peer comes from an address of its own."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._peers = itertools.count(1)

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = OPERATOR_KEY,
        headers: dict[str, str] | None = None,
        content: bytes | str | None = None,
        peer: str | None = None,
    ) -> httpx.Response:
        number = next(self._peers)
        address = peer or f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        sent = {} if key is None else {"Authorization": f"Bearer {key}"}

        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://toll") as client:
                return await client.request(
                    method, path, json=body, content=content, headers={**sent, **(headers or {})}
                )

        return asyncio.run(call())


class Owned(NamedTuple):
    """What one account has."""

    account: str
    ids: dict[str, str]
    """Kind → the id of its entry."""
    management_key: str
    consumption_key: str
    revoked_key: str
    management_id: str
    consumption_id: str
    event_id: str


class World(NamedTuple):
    a: Owned
    b: Owned


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("http")
    with testing.installation(directory, clock=SystemClock(), store=usage_store) as installation:
        ensure_operator_key(installation, OPERATOR_KEY)
        yield installation


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    app = build_app(installation)
    yield Api(app)
    app.close()


@pytest.fixture(scope="module")
def world(api: Api) -> World:
    return World(_populate(api, "aaa"), _populate(api, "bbb"))


@pytest.fixture
def account(api: Api) -> str:
    """A fresh account of one test."""
    account = f"acct-{uuid.uuid4().hex}"
    assert api("PUT", f"/tk/v1/accounts/{account}", {"name": "Test"}).status_code == 201
    return account


@pytest.fixture
def issue(api: Api, account: str) -> Callable[..., tuple[str, str]]:
    """Makes a key of the test's account: its id and secret."""

    def issue(**fields: Any) -> tuple[str, str]:
        made = api("POST", "/tk/v1/keys", {"account": account, **fields})
        assert made.status_code == 201, made.text
        return made.json()["entry"]["id"], made.json()["secret"]

    return issue


_OWNED = ("projects", "subscriptions", "budgets", "webhooks")


def _populate(api: Api, name: str) -> Owned:
    account = f"{name}-{uuid.uuid4().hex}"
    ids = {kind: f"{kind[:-1]}-of-{account}" for kind in (*_OWNED, "grants")}
    ids |= {"plans": f"plan-of-{account}", "routes": f"route-of-{account}", "prices": f"price-of-{account}"}
    ids |= {"models": f"model-of-{account}", "markups": f"markup-of-{account}"}
    bodies = {
        f"plans/{ids['plans']}": {"sellable": False, "price_nanos": "100"},
        f"accounts/{account}": {"name": f"Name of {account}", "plan": ids["plans"]},
        f"projects/{ids['projects']}": {"account": account},
        f"subscriptions/{ids['subscriptions']}": {
            "account": account,
            "plan": ids["plans"],
            "started_at": "2026-01-01T00:00:00Z",
        },
        f"budgets/{ids['budgets']}": {"account": account, "amount": "9000000000"},
        f"grants/{ids['grants']}": {"account": account, "amount_nanos": "5000000000"},
        f"routes/{ids['routes']}": {"method": "POST", "path": f"/v1/{account}", "price_nanos": 100},
        f"models/{ids['models']}": {"is": "azure/gpt-4o"},
        f"markups/{ids['markups']}": {"account": account, "factor": "1.2"},
        f"prices/{ids['prices']}": {"model": f"model-of-{account}", "account": account},
        f"webhooks/{ids['webhooks']}": {"account": account, "url": "https://a.example"},
    }
    for path, body in bodies.items():
        made = api("PUT", f"/tk/v1/{path}", body)
        assert made.status_code == 201, made.text
    issued = [
        api("POST", "/tk/v1/keys", {"id": f"{kind}-of-{account}", "account": account, **fields}).json()
        for kind, fields in {
            "management": {"role": "management"},
            "consumption": {"type": "credit", "project": ids["projects"]},
            "revoked": {},
        }.items()
    ]
    revoked_id = issued[2]["entry"]["id"]
    assert api("POST", f"/tk/v1/keys/{revoked_id}/state", {"state": "revoked"}).status_code == 200
    event_id = f"event-of-{account}"
    event = {
        "id": event_id,
        "time": "2026-01-31T09:30:00Z",
        "account": account,
        "key_id": issued[1]["entry"]["id"],
        "route": f"/v1/{account}",
        "method": "POST",
        "cost_nanos": 1000,
    }
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    consumption_id = issued[1]["entry"]["id"]
    return Owned(
        account,
        {**ids, "accounts": account, "keys": consumption_id},
        issued[0]["secret"],
        issued[1]["secret"],
        issued[2]["secret"],
        issued[0]["entry"]["id"],
        consumption_id,
        event_id,
    )
