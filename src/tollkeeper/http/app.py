"""
The server's ASGI application: a small dispatcher in front of the hot handlers and the Litestar API.

It gives every request an id, bounds its body, authenticates hot calls, throttles the answers to credentials that
keep failing, and turns errors into problem documents; on a vendor's paths, its profile words them. It serves HTTP
only: a WebSocket is refused before it opens.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import msgspec

from tollkeeper import forks
from tollkeeper.api.paths import PREFIX
from tollkeeper.domain.decisions import Denial
from tollkeeper.errors import BadInput, TollkeeperError, Unauthenticated
from tollkeeper.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from tollkeeper.http.auth import FAILURES_MAX, FAILURES_WINDOW_S, Authenticator, Principal
from tollkeeper.http.bodies import check_length, header, read_body
from tollkeeper.http.cors import Cors, is_preflight
from tollkeeper.http.credentials import has_credential
from tollkeeper.http.executors import Executors, Probe
from tollkeeper.http.forked import send_unusable
from tollkeeper.http.handshakes import refuse_handshake, unsupported
from tollkeeper.http.hot import SMALL_BODY_BYTES_MAX, HotAnswer, HotEndpoints, payer_of
from tollkeeper.http.known_key import KnownKey
from tollkeeper.http.login_cookie import login_secrets
from tollkeeper.http.metered import Dialects
from tollkeeper.http.observed import Latencies, Observed, Observer
from tollkeeper.http.page import INDEX, Page, asks_for_html
from tollkeeper.http.paths import routed_path
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, to_problem
from tollkeeper.http.profiles import QUERY_BYTES_MAX, Profiles, ProfileSite
from tollkeeper.http.routes.health import probes_of
from tollkeeper.http.routes.logins import FAILED
from tollkeeper.installation import Installation
from tollkeeper.version import __version__

Hot = Callable[[Principal, bytes, list[tuple[bytes, bytes]]], Awaitable[HotAnswer]]

OWN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Served by the product whatever the root profile is, beside all of `/tk/`."""
_CLOSE: Final = (b"connection", b"close")
_encode: Final = msgspec.json.Encoder().encode
_NO_WEBSOCKETS: Final = (
    b'{"type":"https://tollkeeper.dev/problems/not_found","title":"Not found","status":404,'
    b'"detail":"Tollkeeper has no WebSockets.","code":"not_found"}'
)
_PAGE_ONLY_READ: Final = (
    b'{"type":"https://tollkeeper.dev/problems/method_not_allowed","title":"Method not allowed","status":405,'
    b'"detail":"The page takes GET and HEAD.","code":"method_not_allowed"}'
)
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

    def __init__(
        self,
        installation: Installation,
        api: Callable[[Authenticator, Executors, tuple[Probe, ...], Latencies], ASGIApp],
        operators: Collection[str] | None = None,
    ) -> None:
        self.installation = installation
        settings = installation.settings
        self.authenticator = authenticator_of(installation, operators)
        self.executors = Executors()
        self._probes = probes_of(installation.ledger, installation.store)
        self._body_bytes_max = settings.body_bytes_max
        self._cors = Cors(settings.cors_origins)
        self._page = Page(settings.page_frame_ancestors)
        self.hot = HotEndpoints(
            installation.holds,
            installation.ingest,
            Dialects(
                installation.profile_settings, installation.gate, installation.directory, installation.clock
            ),
            KnownKey(installation.holds, installation.gate, installation.account_sessions),
            installation.clock,
            new_id=installation.gate.new_id,
            threads=self.executors.hot,
            body_bytes_max=settings.body_bytes_max,
        )
        self._hot: dict[str, tuple[Hot, int]] = {
            f"{PREFIX}/authorize": (self.hot.authorize, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/expect": (self.hot.expect, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/settle": (self.hot.settle, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/void": (self.hot.void, SMALL_BODY_BYTES_MAX),
            f"{PREFIX}/events": (self.hot.events, settings.body_bytes_max),
        }
        self._observer = Observer(
            access_log=settings.access_log, address_header=settings.client_address_header
        )
        self._api = api(self.authenticator, self.executors, self._probes, self._observer.latencies)
        self._profiles = Profiles(settings, installation.context, installation.clock, self.executors)
        self._random = random.Random()
        forks.refuse_in_children(installation, [self], _ForkedApp)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        observed = Observed(scope, send)
        call = "other"
        try:
            call = await self._serve_http(scope, receive, observed.send)
        finally:
            self._observer.ended(observed, call)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> str:
        """Answer a request; return which kind of call it was, for the metrics: one of few words."""
        if self._cors:
            if is_preflight(scope):
                headers = self._cors.preflight(scope["headers"])
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body"})
                return "preflight"
            send = self._cors.wrap(scope, send)
        if scope["method"] == "HEAD":
            # RFC 9110, section 9.3.2: as GET, without the body.
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        for name, _ in scope["headers"]:
            if name == b"transfer-encoding":
                if await _framing_refused(scope, send, self._request_id()):
                    return "other"
                send = _closing(send)
                break
        found = self._hot.get(scope["path"])
        if found is not None and scope["method"] == "POST":
            await self._serve_hot(found[0], found[1], scope, receive, send)
            return scope["path"].rpartition("/")[2]  # type: ignore[no-any-return]
        path = routed_path(scope)
        is_own = path.startswith("/tk/") or path.rstrip("/") in OWN_PATHS
        vendor = None if is_own else self._profiles.find(path)
        if (
            scope["method"] == "GET"
            and not (vendor is not None and path == INDEX and not asks_for_html(scope["headers"]))
            and (page := self._page.answer(path, scope["headers"])) is not None
        ):
            await send({"type": "http.response.start", "status": page.status, "headers": page.headers})
            await send({"type": "http.response.body", "body": page.body})
            return "page"
        if not is_own:
            if vendor is not None:
                await self._serve_profile(*vendor, scope, receive, send)
                return vendor[0].profile.name
            if self._page.has(path):
                await _send(
                    send, 405, [(b"allow", b"GET, HEAD")], _PAGE_ONLY_READ, self._request_id(), problem=True
                )
                return "page"
        await self._serve_api(scope if path == scope["path"] else {**scope, "path": path}, receive, send)
        return _call_of(path)

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)
        elif scope["type"] == "websocket":
            headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode())]
            await refuse_handshake(scope, receive, send, 404, headers, _NO_WEBSOCKETS)
        else:
            raise unsupported(scope)

    async def _serve_hot(
        self, handler: Hot, bytes_max: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        request_id = self._request_id()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        try:
            # The operator is known here; another key may be in the catalog only.
            principal = await self.executors.hot.attempt(self.authenticator.caller, headers, "POST")
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
            if isinstance(exc, Unauthenticated) and _tried(scope) and self._throttles(scope):
                await _send(send, 429, [(b"retry-after", b"60")], _BLOCKED, request_id, problem=True)
                return
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
    ) -> HotAnswer:
        """HotAnswer a batch of events; its bytes are counted as under way from their arrival to the answer."""
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
        self.authenticator.throttle.look_at(scope["headers"])
        if len(scope["query_string"]) > QUERY_BYTES_MAX:
            why = BadInput(f"The query has more than {QUERY_BYTES_MAX} bytes: ask for less.")
            await self._profiles.reject_early(site, path, scope, send, request_id, why)
            return
        await self._profiles.serve(
            site,
            path,
            scope,
            receive,
            send,
            request_id,
            lambda: _BLOCKED_BY_PROFILE if self._throttles(scope) else None,
        )

    async def _serve_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._request_id()
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        state["request_id"] = request_id
        try:
            check_length(scope["headers"], self._body_bytes_max)
        except TollkeeperError as exc:
            problem = to_problem(exc, instance=scope["path"], request_id=request_id)
            await _send(send, problem.status, [], _encode(problem.body), request_id, problem=True)
            return
        self.authenticator.throttle.look_at(scope["headers"])
        is_throttled = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_throttled
            if message["type"] == "http.response.start":
                if message["status"] == 401 and _tried(scope) and self._throttles(scope):
                    is_throttled = True
                    await _send(send, 429, [(b"retry-after", b"60")], _BLOCKED, request_id, problem=True)
                    return
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            # The answer that was refused has a body too.
            if not is_throttled:
                await send(message)

        await self._api(scope, receive, send_with_id)

    def _throttles(self, scope: Scope) -> bool:
        """Count a failing credential; return whether its answer is 429."""
        client = scope.get("client")
        return self.authenticator.throttle.refuses(str(client[0]) if client else "", scope["headers"])

    def _request_id(self) -> str:
        return f"req_{self._random.getrandbits(80):020x}"

    def close(self) -> None:
        """Release the threads of the handlers. Its opener closes the installation."""
        self.hot.close()
        self.executors.close()
        for probe in self._probes:
            probe.close()


class _ForkedApp(App):
    """The surface in a forked child: it answers every request with 503."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            await send_unusable(scope, receive, send)


def authenticator_of(installation: Installation, operators: Collection[str] | None = None) -> Authenticator:
    """Return the authenticator of *installation*, with the hashes of *operators*, by default those of now."""
    return Authenticator(
        installation.operator_keys.all() if operators is None else operators,
        installation.directory,
        installation.logins,
        installation.clock,
        address_header=installation.settings.client_address_header,
    )


def build_app(installation: Installation, operators: Collection[str] | None = None) -> App:
    """
    Return the HTTP surface of *installation*.

    Args:
        operators: Hashes of the operator keys that are good there; those of the installation unless given.
    """
    from tollkeeper.http.api import build_api

    return App(
        installation,
        lambda authenticator, executors, probes, latencies: build_api(  # type: ignore[arg-type,return-value]
            installation,
            authenticator,
            version=__version__,
            executors=executors,
            probes=probes,
            latencies=latencies,
        ),
        operators,
    )


def _tried(scope: Scope) -> bool:
    """Return whether the caller of our own API tried to authenticate: by a key, a login, or a key to log in with."""
    headers = scope["headers"]
    return has_credential(headers) or bool(login_secrets(headers)) or FAILED in (scope.get("state") or {})


def _call_of(path: str) -> str:
    """Return the kind of a call that is neither hot nor a vendor's."""
    if path.rstrip("/") in OWN_PATHS:
        return "health"
    if path in (f"{PREFIX}/usage", f"{PREFIX}/events"):
        return "usage"
    return "management" if path.startswith(f"{PREFIX}/") else "other"


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


def _without_body(send: Send) -> Send:
    """Return *send* for the answer to HEAD: all headers of the answer to GET, no body."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head


def _closing(send: Send) -> Send:
    """
    Return *send* with answers that end the connection.

    Used after every chunked body: of a request with both lengths the server (hyper, in granian) shows only
    `Transfer-Encoding`. Such a request looks like an honest one, and RFC 9112, section 6.1, says that the connection
    must be closed after it.
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
