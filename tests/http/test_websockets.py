"""
WebSockets and the gate: a handshake is admitted like a request, before it opens, and settled at its end.

Raw ASGI shows each message; a real server shows that clients get on with it.
"""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest
import uvicorn
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Install
from tollkeeper import Tollkeeper, Usage
from tollkeeper.asgi import Middleware
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Route
from tollkeeper.domain.events import Record
from tollkeeper.http.app import build_app
from tollkeeper.http.asgi_types import Message, Receive, Send
from tollkeeper.installation import Installation
from tollkeeper.testing import commit_all, set_up, unique, verify

CONNECT: Final = {"type": "websocket.connect"}
DENIAL: Final = {"websocket.http.response": {}}


class Place:
    """An account whose key may have two sockets open and spend 1,000 nanos a month; a socket costs 100."""

    def __init__(self, site: Installation, profile: str = "native") -> None:
        self.site = site
        self.toll = Tollkeeper(site)
        self.account, self.key_id = unique("acct"), unique("key")
        key = Key(
            id=self.key_id,
            account=self.account,
            profile=profile,
            limits=[Limit(name="open", algorithm="concurrency", amount=2)],
        )
        budget = Budget(id=unique("budget"), account=self.account, amount=1_000)
        route = Route(id=unique("route"), method="GET", path="/ws", price_nanos=100)
        self.secret = set_up(site, Account(id=self.account, name="Acme"), key, budget, route)[self.key_id]
        self.booked: list[Record] = []
        settle = site.holds.settle

        def watched(*args: Any, **kwargs: Any) -> Record:
            self.booked.append(settle(*args, **kwargs))
            return self.booked[-1]

        site.holds.settle = watched  # type: ignore[method-assign]

    def booked_once(self) -> Record:
        """Return the one record that was booked, which counter, ledger and usage agree on."""
        commit_all(self.site)
        assert len(self.booked) == 1
        assert verify(self.site).ok
        return self.booked[0]


@pytest.fixture
def place(install: Install) -> Place:
    return Place(install())


class Socket:
    """One WebSocket as a server brings it: what arrives, and what was sent."""

    def __init__(self, secret: str | None, *arriving: Message, path: str = "/ws", **scope: Any) -> None:
        headers = [] if secret is None else [(b"authorization", b"Bearer " + secret.encode())]
        self.scope = {"type": "websocket", "path": path, "headers": headers, "subprotocols": [], **scope}
        self._arriving = [CONNECT, *arriving]
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return self._arriving.pop(0) if self._arriving else {"type": "websocket.disconnect", "code": 1005}

    async def send(self, message: Message) -> None:
        self.sent.append(dict(message))

    def run(self, app: Any) -> list[str]:
        """Run *app* and return the types of what was sent."""
        asyncio.run(app(self.scope, self.receive, self.send))
        return [message["type"] for message in self.sent]


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    """Answers each text until the client leaves, or says `bye`; then states three tokens for each."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    count = 0
    while (message := await receive())["type"] == "websocket.receive" and message.get("text") != "bye":
        count += 1
        await send({"type": "websocket.send", "text": message["text"] + "é"})
        await send({"type": "websocket.send", "bytes": b"12"})
    scope["state"]["tollkeeper"].usage = Usage(cost_nanos=200 + count)
    if message["type"] == "websocket.receive":
        await send({"type": "websocket.close", "code": 1000})


def text(value: str) -> Message:
    return {"type": "websocket.receive", "text": value}


# -- who passes -----------------------------------------------------------------------------------------


@pytest.mark.drawn(12)
@pytest.mark.parametrize("profile", ["native", "shoal", "regpilot", "anylayer", "cheapestinference", "regsn"])
@pytest.mark.parametrize("secret", [None, "", "tk_made_up"])
@pytest.mark.parametrize("can_answer", [True, False])
def test_a_socket_without_a_good_key_never_reaches_the_app(
    install: Install, profile: str, secret: str | None, can_answer: bool
) -> None:
    """In the words of the dialect where the server can send them, else by 403; it is never opened."""
    place = Place(install(), profile)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        raise AssertionError("reached")

    socket = Socket(secret, extensions=DENIAL if can_answer else {})
    sent = socket.run(place.toll.middleware(app, profile=profile))
    assert not place.booked
    if not can_answer:
        assert socket.sent == [{"type": "websocket.close", "code": 1008}]
        return
    assert sent == ["websocket.http.response.start", "websocket.http.response.body"]
    start, body = socket.sent
    assert 400 <= start["status"] < 500
    assert json.loads(body["body"])
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()


@pytest.mark.parametrize("state", ["revoked", "inactive", "deleted"])
def test_a_key_that_ended_opens_no_socket(place: Place, state: Any) -> None:
    place.site.manage.set_key_state(place.account, place.key_id, state)
    assert Socket(place.secret).run(place.toll.middleware(echo)) == ["websocket.close"]


def test_the_route_of_a_socket_is_that_of_its_handshake(place: Place) -> None:
    """A path without a route is refused, as for requests."""
    app = place.toll.middleware(echo)
    socket = Socket(place.secret, path="/elsewhere", extensions=DENIAL)
    socket.run(app)
    assert (socket.sent[0]["status"], json.loads(socket.sent[1]["body"])["code"]) == (403, "route_unknown")
    assert not place.booked


def test_a_budget_that_is_spent_opens_no_socket(place: Place) -> None:
    app = place.toll.middleware(echo, expect=lambda scope: Usage(cost_nanos=1_001))
    socket = Socket(place.secret, extensions=DENIAL)
    socket.run(app)
    assert socket.sent[0]["status"] == 402


def test_open_sockets_count_at_once_and_are_given_back(place: Place) -> None:
    """The third is refused while two are open; when one ends, its place is free."""

    async def story() -> None:
        leave = [asyncio.Event() for _ in range(2)]
        opened = [asyncio.Event() for _ in range(2)]
        app = place.toll.middleware(echo)

        def waiting(number: int) -> Socket:
            socket = Socket(place.secret)
            plain_receive, plain_send = socket.receive, socket.send

            async def receive() -> Message:
                if opened[number].is_set():
                    await leave[number].wait()
                return await plain_receive()

            async def send(message: Message) -> None:
                await plain_send(message)
                opened[number].set()

            socket.receive, socket.send = receive, send  # type: ignore[method-assign]
            return socket

        sockets = [waiting(number) for number in range(2)]
        tasks = [asyncio.ensure_future(app(s.scope, s.receive, s.send)) for s in sockets]
        await asyncio.gather(*(event.wait() for event in opened))
        third = Socket(place.secret, extensions=DENIAL)
        await app(third.scope, third.receive, third.send)
        assert third.sent[0]["status"] == 429
        leave[0].set()
        await tasks[0]
        fourth = Socket(place.secret)
        await app(fourth.scope, fourth.receive, fourth.send)
        assert fourth.sent[0]["type"] == "websocket.accept"
        leave[1].set()
        await tasks[1]

    asyncio.run(story())
    assert len(place.booked) == 3


@pytest.mark.parametrize("exempt", [True, False])
def test_an_exempt_path_is_open_to_sockets_too(place: Place, exempt: bool) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    wrapped = place.toll.middleware(app, exempt={"/ws"} if exempt else set())
    assert Socket(None).run(wrapped) == (["websocket.accept"] if exempt else ["websocket.close"])
    assert not place.booked


@pytest.mark.parametrize("kind", ["webtransport", "lifespan2", "", "HTTP"])
def test_a_scope_of_another_type_is_refused(place: Place, kind: str) -> None:
    """What cannot be metered must not be served by mistake, exempt or not; by the server's application too."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        raise AssertionError("reached")

    server = build_app(place.site)
    for wrapped in (place.toll.middleware(app, exempt={"/ws"}), server):
        socket = Socket(place.secret)
        socket.scope["type"] = kind
        with pytest.raises(NotImplementedError, match="must not pass Tollkeeper"):
            socket.run(wrapped)
    server.close()


def test_the_life_of_the_app_passes(place: Place) -> None:
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    socket = Socket(None)
    socket.scope = {"type": "lifespan"}
    socket.run(place.toll.middleware(app))
    assert seen == ["lifespan"]


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    "path", ["/", "/ws", "/tk/v1/authorize", "/tk/v1/usage", "/metrics", "/shoal/v1/usage"]
)
@pytest.mark.parametrize("with_key", [True, False])
def test_the_server_opens_no_socket(place: Place, path: str, with_key: bool) -> None:
    app = build_app(place.site)
    for extensions in ({}, DENIAL):
        socket = Socket(place.secret if with_key else None, path=path, extensions=extensions)
        sent = socket.run(app)
        assert sent[0] == ("websocket.http.response.start" if extensions else "websocket.close")
    app.close()


# -- what is booked -------------------------------------------------------------------------------------


def test_a_socket_is_booked_with_what_the_app_stated_when_the_client_leaves(place: Place) -> None:
    socket = Socket(place.secret, text("a"), text("b"))
    socket.run(place.toll.middleware(echo))
    record = place.booked_once()
    assert (record.status, record.method, record.route, record.cost_nanos) == (101, "GET", "/ws", 202)
    assert (record.bytes_out, record.error_type) == (2 * (3 + 2), "")


@pytest.mark.parametrize("durable", [True, False])
def test_a_socket_that_the_app_closes_is_booked_before_the_client_hears_of_it(
    place: Place, durable: bool
) -> None:
    """Durably, unless the middleware was set not to wait."""
    socket = Socket(place.secret, text("a"), text("bye"))
    groups: list[int] = []
    plain_send = socket.send

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            assert len(place.booked) == 1
            groups.append(place.site.committer.settled_count)
        await plain_send(message)

    socket.send = send  # type: ignore[method-assign]
    socket.run(place.toll.middleware(echo, durable=durable))
    assert place.booked_once().cost_nanos == 201
    assert len(groups) == 1
    if durable:
        assert groups == [1]


def test_the_middleware_takes_anything_that_has_an_installation(place: Place) -> None:
    """As frameworks build it: `app.add_middleware(Middleware, toll=toll)`."""
    holder = SimpleNamespace(installation=place.site)
    Socket(place.secret, text("a"), text("bye")).run(Middleware(echo, toll=holder))
    assert place.booked_once().cost_nanos == 201


def test_without_a_statement_the_price_of_the_route_is_booked(place: Place) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    Socket(place.secret).run(place.toll.middleware(app))
    assert place.booked_once().cost_nanos == 100


def test_an_app_that_refuses_is_booked_with_its_status(place: Place) -> None:
    async def closes(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async def answers(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 409, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"pe"})

    Socket(place.secret).run(place.toll.middleware(closes))
    Socket(place.secret).run(place.toll.middleware(answers))
    assert [(r.status, r.bytes_out) for r in place.booked] == [(403, 0), (409, 4)]


def test_an_app_can_have_its_socket_not_count(place: Place) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        scope["state"]["tollkeeper"].void = True
        await send({"type": "websocket.close"})

    for _ in range(5):
        assert Socket(place.secret).run(place.toll.middleware(app)) == ["websocket.accept", "websocket.close"]
    assert not place.booked


@pytest.mark.parametrize(
    ("opens", "reads", "status", "error"),
    [(False, 1, 500, "KeyError"), (True, 1, 101, "KeyError"), (True, 2, 101, "")],
    ids=["before it opens", "while it is open", "as the client is gone"],
)
def test_an_app_that_raises_is_booked(place: Place, opens: bool, reads: int, status: int, error: str) -> None:
    """Frameworks raise in the handler when the client has gone; that is no error of the request."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        if opens:
            await send({"type": "websocket.accept"})
        for _ in range(reads - 1):
            await receive()
        raise KeyError("x")

    with pytest.raises(KeyError):
        Socket(place.secret).run(place.toll.middleware(app))
    record = place.booked_once()
    assert (record.status, record.error_type) == (status, error)


def test_a_socket_that_is_cancelled_is_booked(place: Place) -> None:
    """A server that stops cancels what is open."""

    async def story() -> None:
        opened = asyncio.Event()

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            opened.set()
            await asyncio.Event().wait()

        socket = Socket(place.secret)
        wrapped = place.toll.middleware(app)
        task = asyncio.ensure_future(wrapped(socket.scope, socket.receive, socket.send))
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    record = place.booked_once()
    assert (record.status, record.error_type) == (101, "CancelledError")


def test_the_headers_of_a_dialect_are_on_the_handshake(install: Install) -> None:
    place = Place(install(), "shoal")
    socket = Socket(place.secret)
    socket.run(place.toll.middleware(echo, profile="shoal"))
    assert b"x-endpoint-policy" in dict(socket.sent[0]["headers"])


# -- on a real server -----------------------------------------------------------------------------------


class Running(uvicorn.Server):
    """A server in this event loop that leaves the signals alone."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="websockets-sansio")
        super().__init__(config)

    async def __aenter__(self) -> str:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup()
        return f"127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()


def test_clients_of_a_real_server_are_admitted_refused_and_booked(place: Place) -> None:
    async def story() -> None:
        async with Running(place.toll.middleware(echo)) as address:
            url = f"ws://{address}/ws"
            for headers in ({}, {"Authorization": "Bearer tk_made_up"}):
                with pytest.raises(InvalidStatus) as refused:
                    await websockets.connect(url, additional_headers=headers, proxy=None)
                assert refused.value.response.status_code == 401
                assert msgspec.json.decode(refused.value.response.body)["status"] == 401
            assert not place.booked
            good = {"Authorization": f"Bearer {place.secret}"}
            async with websockets.connect(url, additional_headers=good, proxy=None) as client:
                await client.send("hello")
                assert (await client.recv(), await client.recv()) == ("helloé", b"12")
                await client.send("bye")
                with pytest.raises(ConnectionClosed):
                    await client.recv()

    asyncio.run(story())
    record = place.booked_once()
    assert (record.status, record.cost_nanos, record.bytes_out) == (101, 201, 9)


def test_the_server_application_on_a_real_server_refuses_sockets(place: Place) -> None:
    app = build_app(place.site)

    async def story() -> None:
        async with Running(app) as address:
            for path in ("/ws", "/tk/v1/usage", "/shoal/v1/usage"):
                with pytest.raises(InvalidStatus) as refused:
                    await websockets.connect(f"ws://{address}{path}", proxy=None)
                assert refused.value.response.status_code == 404

    asyncio.run(story())
    app.close()
