"""
The server's ASGI application: a small dispatcher in front of the hot handlers and the Litestar API.

It gives every request an id, bounds its body, authenticates hot calls, throttles addresses that keep
failing to authenticate, and turns errors into problem documents; on a vendor's paths, its profile words them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from tollkeeper.domain.decisions import Denial
from tollkeeper.errors import BadInput, TollkeeperError, Unauthenticated
from tollkeeper.http.auth import FAILURES_MAX, FAILURES_WINDOW_S, Authenticator, Principal
from tollkeeper.http.bodies import check_length, header, read_body
from tollkeeper.http.hot import SMALL_BODY_BYTES_MAX, Answer, HotEndpoints, payer_of
from tollkeeper.http.paths import routed_path
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, to_problem
from tollkeeper.http.profiles import QUERY_BYTES_MAX, Profiles, ProfileSite
from tollkeeper.installation import Installation
from tollkeeper.version import __version__

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Hot = Callable[[Principal, bytes, list[tuple[bytes, bytes]]], Awaitable[Answer]]

PREFIX: Final = "/tk/v1"
PROBES: Final = ("/healthz", "/readyz")
OWN_PATHS: Final = frozenset({*PROBES, "/metrics"})
"""Served by the product whatever the root profile is, beside all of `/tk/`."""
_ADDRESS_CHARS_MAX: Final = 45
"""Of an IPv6 address in text: what is remembered of a failing caller has a bound."""
_CLOSE: Final = (b"connection", b"close")
_encode: Final = msgspec.json.Encoder().encode
_BLOCKED: Final = (
    b'{"type":"https://tollkeeper.dev/problems/too_many_failures","title":"Too many failures","status":429,'
    b'"detail":"Too many failed authentications from this address. Wait a minute.","code":"too_many_failures"}'
)
_BLOCKED_BY_PROFILE: Final = Denial(
    "rate_limited",
    "Too many failed authentications from this address. Wait a minute.",
    limit="failed_authentications",
    unit="requests",
    allowed=FAILURES_MAX,
    retry_after_s=FAILURES_WINDOW_S,
)
"""The same to a vendor's client: a profile knows how to word a denial."""


class App:
    """The whole HTTP surface of one installation."""

    def __init__(self, installation: Installation, api: Callable[[Authenticator], ASGIApp]) -> None:
        self.installation = installation
        self.authenticator = Authenticator(installation)
        self.hot = HotEndpoints(installation)
        self._hot: dict[str, tuple[Hot, int]] = {
            f"{PREFIX}/authorize": (self.hot.authorize, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/settle": (self.hot.settle, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/void": (self.hot.void, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/events": (self.hot.events, installation.settings.body_bytes_max),
        }
        self._api = api(self.authenticator)
        self._profiles = Profiles(installation)
        self._random = random.Random()
        self._address_header = installation.settings.client_address_header.lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        for name, _ in scope["headers"]:
            if name == b"transfer-encoding":
                if await _framing_refused(scope, send, self._request_id()):
                    return
                send = _closing(send)
                break
        found = self._hot.get(scope["path"])
        if found is not None and scope["method"] == "POST":
            await self._serve_hot(found[0], found[1], scope, receive, send)
            return
        path = routed_path(scope)
        if not path.startswith("/tk/") and path.rstrip("/") not in OWN_PATHS:
            vendor = self._profiles.find(path)
            if vendor is not None:
                await self._serve_profile(*vendor, scope, receive, send)
                return
        await self._serve_api(scope if path == scope["path"] else {**scope, "path": path}, receive, send)

    async def _serve_hot(
        self, handler: Hot, bytes_max: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        request_id = self._request_id()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        try:
            principal = self._principal(scope)
            if principal is None:
                await _send(send, 429, [(b"retry-after", b"60")], _BLOCKED, request_id, problem=True)
                return
            if handler == self.hot.events:
                status, answer_headers, answer = await self._serve_batch(
                    principal, bytes_max, headers, receive
                )
            else:
                body = await read_body(receive, bytes_max)
                status, answer_headers, answer = await handler(principal, body, headers)
        except (Exception, asyncio.CancelledError) as exc:
            if isinstance(exc, asyncio.CancelledError):
                raise
            problem = to_problem(exc, instance=scope["path"], request_id=request_id)
            extra = [(k.lower().encode(), v.encode()) for k, v in problem.headers.items()]
            await _send(send, problem.status, extra, _encode(problem.body), request_id, problem=True)
            return
        # A dialect that has this header too gave the request its id already.
        worded = any(name == b"x-request-id" for name, _ in answer_headers)
        own_id = [] if worded else [(b"x-request-id", request_id.encode())]
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *answer_headers,
                    (b"content-length", str(len(answer)).encode()),
                    *own_id,
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer})

    async def _serve_batch(
        self, principal: Principal, bytes_max: int, headers: list[tuple[bytes, bytes]], receive: Receive
    ) -> Answer:
        """Answer a batch of events; its bytes are counted as under way from their arrival to the answer."""
        check_length(headers, bytes_max)
        batches, payer, reserved = self.hot.batches, payer_of(principal), 0

        def arrived(size: int) -> None:
            nonlocal reserved
            batches.reserve(payer, size)
            reserved += size

        try:
            return await self.hot.events(principal, await read_body(receive, bytes_max, arrived), headers)
        finally:
            batches.release(payer, reserved)

    async def _serve_profile(
        self, site: ProfileSite, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        request_id = self._request_id()
        address = self._address(scope)
        throttle = self.authenticator.throttle
        # Nobody is authenticated here: to one who guesses, the headers of a good key would tell it.
        if throttle.blocked(address):
            await self._profiles.turn_away(site, path, scope, send, request_id, _BLOCKED_BY_PROFILE)
            return
        if len(scope["query_string"]) > QUERY_BYTES_MAX:
            why = BadInput(f"The query has more than {QUERY_BYTES_MAX} bytes: ask for less.")
            await self._profiles.turn_away(site, path, scope, send, request_id, why)
            return
        await self._profiles.serve(
            site, path, scope, receive, send, request_id, lambda: throttle.failed(address)
        )

    async def _serve_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._request_id()
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        state["request_id"] = request_id
        bytes_max = self.installation.settings.body_bytes_max
        try:
            check_length(scope["headers"], bytes_max)
        except TollkeeperError as exc:
            problem = to_problem(exc, instance=scope["path"], request_id=request_id)
            await _send(send, problem.status, [], _encode(problem.body), request_id, problem=True)
            return
        address = self._address(scope)
        # Who asks whether the process lives shows no credential, and must not be told by another's failures.
        if scope["path"] not in PROBES and self.authenticator.throttle.blocked(address):
            await _send(send, 429, [(b"retry-after", b"60")], _BLOCKED, request_id, problem=True)
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 401:
                    self.authenticator.throttle.failed(address)
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._api(scope, receive, send_with_id)

    def _principal(self, scope: Scope) -> Principal | None:
        """Return whom a hot call stands for; None when its address is blocked."""
        address = self._address(scope)
        if self.authenticator.throttle.blocked(address):
            return None
        try:
            return self.authenticator.principal(scope["headers"])
        except Unauthenticated:
            self.authenticator.throttle.failed(address)
            raise

    def _address(self, scope: Scope) -> str:
        """Return whom failed authentications count against."""
        client = scope.get("client")
        address = str(client[0]) if client else ""
        if self._address_header:
            # Through a proxy all come from its address. What it added itself is the last of a list.
            told = header(scope["headers"], self._address_header).rpartition(b",")[2].strip()
            address = told.decode("latin-1")[:_ADDRESS_CHARS_MAX] or address
        return _network(address)

    def _request_id(self) -> str:
        return f"req_{self._random.getrandbits(80):020x}"

    def close(self) -> None:
        """Release the threads of the handlers. The installation is closed by whoever opened it."""
        self.hot.close()


def build_app(installation: Installation) -> App:
    """Return the HTTP surface of *installation*."""
    from tollkeeper.http.api import build_api

    return App(
        installation,
        lambda authenticator: build_api(installation, authenticator, version=__version__),  # type: ignore[arg-type,return-value]
    )


@lru_cache(maxsize=4096)
def _network(address: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the /64 of an IPv6 one, which is a customer's least."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or found.packed[:8].hex())


async def _framing_refused(scope: Scope, send: Send, request_id: str) -> bool:
    """
    Refuse a request with two lengths, `Transfer-Encoding` and `Content-Length`; return whether it was refused.

    A proxy that goes by the other one sees another request in its body (RFC 9112, section 6.1).
    """
    if not header(scope["headers"], b"content-length"):
        return False
    why = BadInput("The body has both Transfer-Encoding and Content-Length: send one of them.")
    problem = to_problem(why, instance=scope["path"], request_id=request_id)
    await _send(send, problem.status, [_CLOSE], _encode(problem.body), request_id, problem=True)
    return True


def _closing(send: Send) -> Send:
    """
    Return *send* with answers that end the connection.

    For every chunked body: of a request with both lengths the server (hyper, in granian) shows only
    `Transfer-Encoding`, so one cannot be told from an honest one, and RFC 9112, section 6.1, demands that the
    connection is closed after it.
    """

    async def send_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], _CLOSE]
        await send(message)

    return send_last


async def _send(
    send: Send,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    request_id: str,
    *,
    problem: bool = False,
) -> None:
    media_type = PROBLEM_MEDIA_TYPE.encode() if problem else b"application/json"
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", media_type),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", request_id.encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
