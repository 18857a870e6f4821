"""
The middleware sees paths, methods and credentials as the app does: mounts, HEAD, slashes, preflights, two headers.

Raw ASGI, as servers and frameworks bring it.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from tests.conftest import Install
from tollkeeper import Tollkeeper
from tollkeeper.domain.catalog import Account, Key, Route
from tollkeeper.domain.events import Record
from tollkeeper.http.asgi_types import Message, Receive, Scope, Send
from tollkeeper.testing import commit_all, set_up, unique, verify

PAGE = b"https://app.example.com"
Headers = list[tuple[bytes, bytes]]


class Place:
    """An app behind the gate with a priced route; `seen` are the paths that reached the app."""

    def __init__(self, install: Install, **settings: Any) -> None:
        self.site = install(**settings)
        self.toll = Tollkeeper(self.site)
        self.account = unique("acct")
        self.keys = [Key(id=unique("key"), account=self.account) for _ in range(2)]
        routes = [
            Route(id=unique("route"), method="GET", path="/items", price_nanos=100),
            Route(id=unique("route"), method="GET", path="/items/{id}", price_nanos=100),
        ]
        secrets = set_up(self.site, Account(id=self.account, name="Acme"), *self.keys, *routes)
        self.secret, self.other = (secrets[key.id].encode() for key in self.keys)
        self.seen: list[tuple[str, str]] = []
        self.booked: list[Record] = []
        settle = self.site.holds.settle

        def watched(*args: Any, **kwargs: Any) -> Record:
            self.booked.append(settle(*args, **kwargs))
            return self.booked[-1]

        self.site.holds.settle = watched  # type: ignore[method-assign]

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append((scope["method"], scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    def call(
        self, method: str, path: str, headers: Headers | None = None, *, root_path: str = "", **options: Any
    ) -> tuple[int, dict[bytes, bytes]]:
        """Return status and headers of one call; with the key unless *headers* are given."""
        headers = [(b"authorization", b"Bearer " + self.secret)] if headers is None else headers
        scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": headers}
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        asyncio.run(self.toll.middleware(self.app, **options)({**scope, "query_string": b""}, receive, send))
        return sent[0]["status"], dict(sent[0]["headers"])

    def check(self, count: int) -> None:
        commit_all(self.site)
        assert len(self.booked) == count
        assert all(record.cost_nanos == 100 for record in self.booked)
        assert verify(self.site).ok


@pytest.fixture
def place(install: Install) -> Place:
    return Place(install)


@pytest.mark.drawn(8)
@pytest.mark.parametrize("path", ["/items", "/items/", "/items/7", "/items/7/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("root", ["", "/api", "/api/", "/a/b"])
def test_a_path_is_the_apps_wherever_it_is_mounted(place: Place, path: str, method: str, root: str) -> None:
    """Servers with a root path leave it at the head of the path, or do not."""
    assert place.call(method, root.rstrip("/") + path, root_path=root)[0] == 200
    assert place.call(method, path, root_path=root)[0] == 200
    assert len(place.seen) == 2
    place.check(2)


def test_a_root_path_is_whole_segments(place: Place) -> None:
    assert place.call("GET", "/items", root_path="/it")[0] == 200
    assert place.call("GET", "/apiitems", root_path="/api")[0] == 403
    place.check(1)


def test_what_is_exempt_is_so_under_a_mount_too(place: Place) -> None:
    exempt = {"/healthz", "GET /docs/*"}
    for path in ("/healthz", "/docs/a"):
        assert place.call("GET", f"/api{path}", [], root_path="/api", exempt=exempt)[0] == 200
    for method, path in (("POST", "/docs/a"), ("GET", "/docs/../items"), ("GET", "/api/healthz")):
        assert place.call(method, path, [], exempt=exempt)[0] == 401
    place.check(0)


def test_a_preflight_passes_without_a_key_and_costs_nothing(place: Place) -> None:
    asks = [(b"origin", PAGE), (b"access-control-request-method", b"GET")]
    assert place.call("OPTIONS", "/items", asks)[0] == 200
    assert place.seen == [("OPTIONS", "/items")]
    for headers in ([], asks[:1], asks[1:]):
        assert place.call("OPTIONS", "/items", headers)[0] == 401
    assert place.call("GET", "/items", asks)[0] == 401
    assert len(place.seen) == 1
    place.check(0)


@pytest.mark.parametrize("profile", ["native", "shoal", "regpilot", "anylayer", "cheapestinference", "regsn"])
def test_a_page_can_read_a_refusal(install: Install, profile: str) -> None:
    place = Place(install, cors_origins=PAGE.decode())
    for origin, told in ((PAGE, True), (b"https://evil.example", False)):
        status, headers = place.call("GET", "/items", [(b"origin", origin)], profile=profile)
        assert status == 401
        assert (headers.get(b"access-control-allow-origin") == PAGE) == told


NAMES = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")


@pytest.mark.drawn(6)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", [b"Basic dXNlcjpw", b"Bearer somebody-elses", b"", b"Bearer", b"another"])
def test_the_key_counts_whatever_else_is_there_and_in_whatever_order(
    place: Place, name: bytes, other: bytes
) -> None:
    value = b"Bearer " + place.secret if name == b"authorization" else place.secret
    beside = [(one, other) for one in NAMES if one != name]
    for headers in itertools.permutations([(name, value), *beside[:2]]):
        assert place.call("GET", "/items", list(headers))[0] == 200
    place.check(6)


def test_two_keys_of_ours_are_refused_whatever_their_order(place: Place) -> None:
    headers = [(b"authorization", b"Bearer " + place.other), (b"x-api-key", place.secret)]
    for both in (headers, headers[::-1]):
        assert place.call("GET", "/items", both)[0] == 401
    assert place.call("GET", "/items", [headers[0], (b"x-api-key", place.other)])[0] == 200
    place.check(1)
