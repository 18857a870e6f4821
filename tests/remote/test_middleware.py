"""The middleware before a server's gate: it answers as the one in process does, in every dialect."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.end_to_end.server import OPERATOR_KEY
from tests.remote.conftest import PRICE_NANOS, ROUTES, Place, place_on, verified
from tests.remote.proxy import Proxy
from tests.remote.test_client import wait_for
from tollkeeper import Tollkeeper as Embedded
from tollkeeper import Usage, remote
from tollkeeper.domain.keys import hash_secret
from tollkeeper.errors import BadParameter, Unavailable
from tollkeeper.profiles import names
from tollkeeper.testing import installation

App = Callable[[Any, Any, Any], Awaitable[None]]
DIGITS = re.compile(r"\d+")
CHANGING = {b"x-request-id", b"date", b"x-correlation-id"}


async def chat(scope: Any, receive: Any, send: Any) -> None:
    """Answer in two pieces, with the usage stated before the first."""
    state = scope["state"]["tollkeeper"]
    state.usage = Usage(prompt_tokens=3, completion_tokens=4, cost_nanos=1_500)
    state.void = b"void" in scope["query_string"]
    if b"fail" in scope["query_string"]:
        raise ValueError("the handler failed")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"he", "more_body": True})
    await send({"type": "http.response.body", "body": b"llo"})


async def asked(
    app: App, secret: str, *, path: str = "/chat", query: bytes = b"", headers: Any = (), kind: str = "http"
) -> list[Any]:
    """Return the messages that *app* sends for one request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b""}

    given = [(b"authorization", b"Bearer " + secret.encode()), (b"x-api-key", secret.encode())]
    scope = {
        "type": kind, "method": "POST", "path": path, "query_string": query,
        "headers": [*(given if secret else ()), *headers],
    }  # fmt: skip
    if kind == "websocket":
        del scope["method"]
        scope["extensions"] = {"websocket.http.response": {}}
    await app(scope, receive, send)
    return sent


def seen(sent: list[Any]) -> tuple[int, list[Any], bytes]:
    """Return status, headers and body, without what differs between two servers."""
    start, *rest = sent
    headers = sorted(
        (name, b"" if name in CHANGING else DIGITS.sub("0", value.decode()))
        for name, value in start["headers"]
        if name != b"content-length"
    )
    body = b"".join(message.get("body", b"") for message in rest)
    return start["status"], headers, re.sub(rb"req_\w+|\d+", b"0", body)


def declaration(account: str, keys: dict[str, tuple[str, str]]) -> str:
    """Return an account with *keys*: id → profile and secret. The one named `spent` has no budget left."""
    text = f'[[accounts]]\nid = "{account}"\nname = "Acme"\n{ROUTES}'
    for key, (profile, secret) in keys.items():
        text += f"""
[[keys]]
id = "{account}-{key}"
account = "{account}"
profile = "{profile}"
sha256 = "{hash_secret(secret)}"
[[budgets]]
id = "{account}-{key}-b"
account = "{account}"
key = "{account}-{key}"
amount = {1 if key == "spent" else 1_000_000}
period = "day"
"""
    return text


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", ["native", *names()])
def test_both_middlewares_answer_alike(server, tmp_path, profile):
    """Admitted or refused, for whatever reason, in the words and headers of the dialect."""
    other = "shoal" if profile != "shoal" else "regsn"
    secrets = {name: f"sk_live_{profile}_{name}_0123456789abcdef" for name in ("good", "spent", "foreign")}
    account = f"alike-{profile}"
    keys = {name: (other if name == "foreign" else profile, secret) for name, secret in secrets.items()}
    toml = declaration(account, keys)
    server.call("POST", "/tk/v1/apply", toml.encode(), {"Content-Type": "application/toml"})
    tags = [(b"x-user", b"u1"), (b"x-regpilot-user-id", b"u1"), (b"cookie", b"a=b")]
    requests: list[dict[str, Any]] = [
        {"secret": secrets["good"], "headers": tags},
        {"secret": secrets["good"], "path": "/nowhere"},
        {"secret": secrets["spent"]},
        {"secret": secrets["foreign"]},
        {"secret": "sk_live_unknown"},
        {"secret": ""},
        {"secret": secrets["good"], "path": "/chat/"},
        {"secret": "sk_live_unknown", "headers": [(b"x-api-key", secrets["good"].encode())]},
        {"secret": "sk_live_unknown", "headers": [(b"api-key", b"another"), (b"x-goog-api-key", b"one")]},
        {"secret": secrets["spent"], "headers": [(b"x-api-key", secrets["good"].encode())]},
        {"secret": secrets["spent"], "path": "/ws", "kind": "websocket"},
    ]

    async def answers(app: App) -> list[Any]:
        return [seen(await asked(app, **request)) for request in requests]

    with installation(tmp_path) as site:
        embedded = Embedded(site)
        embedded.apply(toml)
        mine = asyncio.run(answers(embedded.middleware(chat, profile=profile)))
    toll = remote.Tollkeeper(server.url, key=OPERATOR_KEY)
    theirs = asyncio.run(answers(toll.middleware(chat, profile=profile)))
    toll.close()
    for request, one, two in zip(requests, mine, theirs, strict=True):
        assert two == one, request
    assert [status for status, _, _ in theirs][:1] == [200]


def messages_of(place: Place, url: str, **request: Any) -> list[Any]:
    async def run() -> list[Any]:
        toll = place.toll(url)
        try:
            return await asked(toll.middleware(chat), place.secret, **request)
        finally:
            await toll.aclose()

    return asyncio.run(run())


def test_an_answered_request_is_booked(place: Place):
    sent = messages_of(place, place.url)
    assert [message.get("body") for message in sent] == [None, b"he", b"llo"]
    totals = place.totals()
    assert (totals["requests"], totals["cost_nanos"], totals["tokens"]) == (1, 1_500, 7)


def test_void_and_failing_handlers(place: Place):
    messages_of(place, place.url, query=b"void")
    assert place.used() == 0
    with pytest.raises(ValueError, match="the handler failed"):
        messages_of(place, place.url, query=b"fail")
    wait_for(lambda: place.totals()["requests"] == 1)
    assert place.totals()["errors"] == 1


def test_without_durable_the_booking_follows(place: Place):
    async def run() -> None:
        toll = place.toll()
        app = toll.middleware(chat, durable=False)
        await asyncio.gather(*(asked(app, place.secret) for _ in range(5)))
        # The loop ends with the bookings under way: they are cancelled, and delivered all the same.

    asyncio.run(run())
    wait_for(lambda: place.totals()["requests"] == 5)


def test_while_the_server_is_away_nothing_passes(tcp_place: Place, proxy: Proxy, caplog):
    proxy.faults.extend(["before"] * 3)
    start, body = messages_of(tcp_place, proxy.url)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert b'"code":"unavailable"' in body["body"]
    assert b"127.0.0.1" not in body["body"], "callers must not see where the server is"
    assert proxy.url in "".join(record.reason for record in caplog.records if hasattr(record, "reason"))


@pytest.mark.parametrize("profile", names())
def test_a_dialect_has_words_for_a_server_that_is_away(tcp_place: Place, profile):
    async def run() -> list[Any]:
        toll = tcp_place.toll("unix:/nowhere/s")
        return await asked(toll.middleware(chat, profile=profile), tcp_place.secret)

    start, *_ = asyncio.run(run())
    assert start["status"] in (502, 503, 500)


def test_a_server_that_goes_before_the_end_cuts_the_response_and_loses_nothing(
    tcp_place: Place, proxy: Proxy
):
    """As in process: no response ends that is not booked. The handler's work is booked once the server is back."""
    sent: list[Any] = []

    async def run() -> None:
        toll = tcp_place.toll(proxy.url, timeout_s=1)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            proxy.faults.extend(["before"] * 4)
            await chat(scope, receive, send)

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        headers = [(b"x-api-key", tcp_place.secret.encode())]
        scope = {"type": "http", "method": "POST", "path": "/chat", "query_string": b"", "headers": headers}
        with pytest.raises(Unavailable, match="is kept"):
            await toll.middleware(app)(scope, receive, send)
        await toll.aclose()

    asyncio.run(run())
    assert [message.get("body") for message in sent] == [None, b"he"]
    wait_for(lambda: tcp_place.totals()["requests"] == 1)
    assert tcp_place.totals()["cost_nanos"] == 1_500


def test_a_wrong_operator_key_is_no_fault_of_the_caller(tcp_place: Place, caplog):
    async def run() -> list[Any]:
        toll = tcp_place.toll(key="ok_" + "x" * 30)
        return await asked(toll.middleware(chat), tcp_place.secret)

    start, _ = asyncio.run(run())
    assert start["status"] == 503
    (record,) = [record for record in caplog.records if record.msg == "tollkeeper.remote.refused"]
    assert record.levelno == logging.ERROR
    assert record.code == "unauthenticated"


def test_what_the_server_cannot_take_is_the_callers_fault(place: Place):
    start, body = messages_of(place, place.url, path="/" + "x" * 3_000)
    assert start["status"] == 400
    assert b"path" in body["body"]


def test_a_websocket_is_held_until_it_ends(place: Place):
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert await asyncio.to_thread(place.used) == 1
        await send({"type": "websocket.close"})

    async def run() -> list[Any]:
        toll = place.toll()
        sent = await asked(toll.middleware(echo), place.secret, path="/ws", kind="websocket")
        await toll.aclose()
        return sent

    assert [message["type"] for message in asyncio.run(run())] == ["websocket.accept", "websocket.close"]
    assert place.totals()["cost_nanos"] == PRICE_NANOS


def test_an_unknown_profile_is_refused(server):
    toll = remote.Tollkeeper(server.url, key=OPERATOR_KEY)
    with pytest.raises(BadParameter, match="is no profile"):
        toll.middleware(chat, profile="nothing")
    toll.close()


def test_usage_headers_change_nothing(server):
    """A dialect with headers for usage asks for them before the end; only the settlement books."""
    secret = "rp_live_preview_0123456789abcdef"
    toml = declaration("preview", {"good": ("regpilot", secret)})
    server.call("POST", "/tk/v1/apply", toml.encode(), {"Content-Type": "application/toml"})
    toll = remote.Tollkeeper(server.url, key=OPERATOR_KEY)

    async def run() -> list[Any]:
        sent = await asked(toll.middleware(chat, profile="regpilot"), secret)
        await toll.aclose()
        return sent

    start, *_ = asyncio.run(run())
    assert (b"x-regpilot-completion-tokens", b"4") in start["headers"]
    place = Place(server, server.url, "preview", secret)
    assert place.totals()["requests"] == 1
    assert verified(server)


def test_native_clients_meet_keys_of_dialects_as_in_process(server):
    """A native API admits any key; what it answers has no dialect's headers."""
    place = place_on(server, server.url, "nativeapi")
    start, *_ = messages_of(place, place.url)
    assert start["headers"] == [(b"x-own", b"1")]


# -- over WSGI ------------------------------------------------------------------------------------------------


def wsgi_asked(
    app: Any, secret: str, *, query: str = "", read: int | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request to a WSGI app; with *read*, hang up after so many pieces."""
    told: list[Any] = []
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/chat", "QUERY_STRING": query}
    if secret:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {secret}"
    answer = app(environ, lambda status, headers, exc_info=None: told.append((status, headers)))
    try:
        pieces = list(itertools.islice(answer, read))
    finally:
        if hasattr(answer, "close"):
            answer.close()
    status, headers = told[-1]
    return int(status[:3]), {name.lower(): value for name, value in headers}, b"".join(pieces)


def wsgi_chat(environ: Any, start_response: Any) -> Any:
    """As `chat`."""
    state = environ["tollkeeper.metering"]
    state.usage = Usage(prompt_tokens=3, completion_tokens=4, cost_nanos=1_500)
    state.void = "void" in environ["QUERY_STRING"]
    if "fail" in environ["QUERY_STRING"]:
        raise ValueError("the handler failed")
    start_response("200 OK", [("x-own", "1")])
    return iter([b"he", b"llo"])


def test_a_wsgi_app_behind_a_server_is_gated_and_booked(place: Place) -> None:
    with place.toll() as toll:
        app = toll.wsgi_middleware(wsgi_chat)
        assert wsgi_asked(app, place.secret)[::2] == (200, b"hello")
        assert place.totals()["requests"] == 1, "booked when the answer has ended"
        assert wsgi_asked(app, place.secret, query="void")[0] == 200
        assert place.used() == 1
        with pytest.raises(ValueError, match="handler failed"):
            wsgi_asked(app, place.secret, query="fail")
        assert wsgi_asked(app, place.secret, read=1)[2] == b"he"
        wait_for(lambda: place.totals()["requests"] == 3)
        assert [wsgi_asked(app, secret)[0] for secret in ("", "tk_unknown")] == [401, 401]
        assert [wsgi_asked(app, place.secret)[0] for _ in range(8)] == [200] * 7 + [402], "ten in all"
        lax = toll.wsgi_middleware(wsgi_chat, durable=False)
        assert wsgi_asked(lax, place.secret)[0] == 402
    assert verified(place.server)


def test_a_wsgi_app_lets_nothing_through_while_the_server_is_away() -> None:
    with remote.Tollkeeper("http://127.0.0.1:9", key=OPERATOR_KEY, timeout_s=0.2) as toll:
        status, headers, body = wsgi_asked(toll.wsgi_middleware(wsgi_chat), "tk_x")
        assert (status, headers["retry-after"], b"unavailable" in body) == (503, "1", True)
        assert wsgi_asked(toll.wsgi_middleware(wsgi_chat, profile="regsn"), "tk_x")[0] == 503


@pytest.mark.parametrize("profile", names())
def test_a_wsgi_app_has_the_words_of_a_dialect_as_an_asgi_app(place: Place, profile: str) -> None:
    with place.toll() as toll:
        over_wsgi = wsgi_asked(toll.wsgi_middleware(wsgi_chat, profile=profile), "tk_unknown")
        over_asgi = seen(asyncio.run(asked(toll.middleware(chat, profile=profile), "tk_unknown")))
        assert over_wsgi[0] == over_asgi[0] >= 400
        assert re.sub(rb"req_\w+|\d+", b"0", over_wsgi[2]) == over_asgi[2]
