"""One real server for all tests of a module, on a port and a Unix socket; each test has an account of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.end_to_end.server import OPERATOR_KEY, Server, running_server
from tests.remote.proxy import Proxy
from tollkeeper import UsageQuery
from tollkeeper.remote import Tollkeeper

PRICE_NANOS = 1_000
ROUTES = f"""
[[routes]]
id = "chat"
method = "POST"
path = "/chat"
price_nanos = {PRICE_NANOS}
[[routes]]
id = "socket"
method = "GET"
path = "/ws"
price_nanos = {PRICE_NANOS}
"""


class Place(NamedTuple):
    """One account on a server: a key, and a budget of so many requests a day."""

    server: Server
    url: str
    account: str
    secret: str

    def toll(self, url: str | None = None, **options: Any) -> Tollkeeper:
        return Tollkeeper(url or self.url, **{"key": OPERATOR_KEY, **options})

    def totals(self) -> dict[str, Any]:
        with self.toll(self.server.url) as toll:
            query = UsageQuery(account_id=self.account, from_us=0, to_us=4 * 10**15)
            return toll.usage(query).totals

    def state(self) -> dict[str, Any]:
        """Return the budget of the key as the server has it: used, held, left."""
        return self.server.call("GET", f"/tk/v1/keys/{self.account}-k/state")

    def used(self) -> int:
        """Return the requests that the budget counts, those that are held too."""
        (budget,) = self.state()["budgets"]
        return int(budget["used"])


def place_on(server: Server, url: str, account: str, *, budget: int = 10, more: str = "") -> Place:
    """Make an account with one key."""
    text = f"""
[[accounts]]
id = "{account}"
name = "Acme"
[[keys]]
id = "{account}-k"
account = "{account}"
[[budgets]]
id = "{account}-b"
account = "{account}"
amount = {budget}
unit = "requests"
period = "day"
{ROUTES}{more}"""
    applied = server.call("POST", "/tk/v1/apply", text.encode(), {"Content-Type": "application/toml"})
    (issued,) = applied["issued"]
    return Place(server, url, account, issued["secret"])


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("remote")
    with running_server(directory / "data", "--uds", str(directory / "s")) as server:
        server.socket = f"unix:{directory / 's'}"  # type: ignore[attr-defined]
        yield server


def pytest_itemcollected(item: pytest.Item) -> None:
    """Draw the cases of what runs over TCP and a Unix socket: each of the two, and each value of other parameters."""
    if "url" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("drawn"):
        item.add_marker(pytest.mark.drawn)


@pytest.fixture(params=["tcp", "unix"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    return server.url if request.param == "tcp" else server.socket  # type: ignore[attr-defined, no-any-return]


_accounts = iter(range(1_000_000))


@pytest.fixture
def place(server: Server, url: str) -> Place:
    return place_on(server, url, f"a{next(_accounts)}")


@pytest.fixture
def tcp_place(server: Server) -> Place:
    return place_on(server, server.url, f"a{next(_accounts)}")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.url).running() as proxy:
        yield proxy


def verified(server: Server) -> bool:
    """Return whether counter = ledger = sum of events."""
    return bool(json.loads(json.dumps(server.post("/tk/v1/verify", {})))["ok"])
