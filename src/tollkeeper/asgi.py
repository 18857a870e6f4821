"""
The ASGI middleware: any Starlette, FastAPI, Litestar, Django or plain ASGI app behind the gate.

It reads the api key, admits the request, runs the app, and settles with the status, latency and bytes that
the app produced. By default the last piece of the response waits for the group commit (a few ms at most),
so a request that was answered is booked, `kill -9` included.

A WebSocket is one request: admitted at its handshake, before it opens, and settled at its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tollkeeper import forks
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.matching import NO_TAGS
from tollkeeper.domain.requests import NO_USAGE, Usage
from tollkeeper.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from tollkeeper.http.cors import Cors, is_preflight
from tollkeeper.http.credentials import credentials
from tollkeeper.http.denials import denial_body, denial_headers
from tollkeeper.http.executors import Threads
from tollkeeper.http.exemptions import Exemptions
from tollkeeper.http.forked import send_forked
from tollkeeper.http.handshakes import SWITCHING_PROTOCOLS, refuse_handshake, unsupported
from tollkeeper.http.interfaces import must_be_asgi
from tollkeeper.http.known_key import KnownKey
from tollkeeper.http.metered import Dialect, TextHeaders, dialect_of, encoded
from tollkeeper.http.paths import app_path
from tollkeeper.http.profiles import reply_parts
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.metering import STATE_KEY, HasInstallation, Metering, outcome_of

__all__ = ["HANDSHAKE_METHOD", "STATE_KEY", "HasInstallation", "Metering", "Middleware"]

HANDSHAKE_METHOD: Final = "GET"
"""Of a WebSocket's handshake (RFC 6455, section 4.1): routes and prices match it by this."""
_THREADS: Final = 8
"""For what admission has to read first, such as a key that was not seen before: no loop waits for a store."""


class Middleware:
    """
    *app* behind the gate of *toll*.

    Args:
        expect: Returns the most that a request may use, from its scope, and its model; nothing is known by default.
        tags: Returns the tags of a request's event, from its scope: limits and budgets may count it by them.
        exempt: What passes without a key, e.g. `{"/healthz", "GET /docs/*"}` (see `http.exemptions`); WebSockets of
            these paths too. Preflights of browsers always pass.
        profile: The dialect that this API speaks: how it reads the key, words refusals, and which headers
            its answers have. The root profile of the settings by default; native without one.
        durable: Hold the end of the response back until the request is booked durably. Without it the
            booking follows within a few ms, and a crash in between loses it.
    """

    def __init__(
        self,
        app: ASGIApp,
        toll: HasInstallation,
        *,
        expect: Callable[[Scope], Usage] | None = None,
        tags: Callable[[Scope], Mapping[str, str]] | None = None,
        exempt: frozenset[str] | set[str] = frozenset(),
        durable: bool = True,
        profile: str | None = None,
    ) -> None:
        self.app = app
        self.toll = toll
        installation = toll.installation
        self._holds = installation.holds
        self._known_key = KnownKey(installation)
        self._expect = expect
        self._tags = tags
        self._exempt = Exemptions(exempt)
        self._cors = Cors(installation.settings.cors_origins)
        self._durable = durable
        self._now_us = installation.clock.now_us
        self._request_id = installation.gate.new_id
        self._threads = Threads("admit", _THREADS)
        self._dialect = dialect_of(installation, profile)
        must_be_asgi(app)

        forks.refuse_in_children(installation, [self], _ForkedMiddleware)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._passes(scope):
            await self.app(scope, receive, send)
            return
        method: str = scope.get("method", HANDSHAKE_METHOD)
        path = app_path(scope)
        expected = NO_USAGE if self._expect is None else self._expect(scope)
        tags = NO_TAGS if self._tags is None else self._tags(scope)
        dialect = self._dialect
        if dialect is None:
            found = await self._threads.attempt(
                self._known_key.admit, credentials(scope["headers"], bare=True), method, path, expected, tags
            )
            if isinstance(found, Denial):
                body = denial_body(found)
                sent = [
                    (b"content-type", b"application/problem+json"),
                    *denial_headers(found),
                    *self._cors.headers(scope["headers"]),
                ]
                await _refuse(scope, receive, send, found.status, sent, body)
                return
            await self._run(Metering(found), scope, receive, send, None)
            return
        request_id = "req_" + self._request_id(self._now_us()).replace("-", "")
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])
        }
        secret = dialect.credential(headers)
        # Those that the caller states win over those of its headers.
        tags = {**dialect.tags(headers), **tags}
        found = await self._threads.attempt(self._holds.admit, secret, method, path, expected, tags)
        if not isinstance(found, Denial) and (objection := dialect.objection(found, secret)) is not None:
            self._holds.void(found)
            found = objection
        if isinstance(found, Denial):
            reply = await self._threads.run(dialect.refused, secret, method, path, headers, found, request_id)
            status, told, body = reply_parts(reply)
            await _refuse(scope, receive, send, status, [*told, *self._cors.headers(scope["headers"])], body)
            return
        metering = Metering(found)
        worded = await self._threads.attempt(dialect.headers, found, request_id)
        await self._run(metering, scope, receive, send, (dialect, worded))

    def _passes(self, scope: Scope) -> bool:
        """Return whether a scope is not for the gate. Raises for one of an unknown type."""
        kind = scope["type"]
        if kind == "lifespan":
            return True
        if kind not in ("http", "websocket"):
            raise unsupported(scope)
        return is_preflight(scope) or self._exempt.cover(
            scope.get("method", HANDSHAKE_METHOD), app_path(scope)
        )

    async def _run(
        self,
        metering: Metering,
        scope: Scope,
        receive: Receive,
        send: Send,
        worded: tuple[Dialect, TextHeaders] | None,
    ) -> None:
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        state[STATE_KEY] = metering
        started_ns = time.perf_counter_ns()
        if scope["type"] == "websocket":
            await self._run_websocket(metering, scope, receive, send, worded, started_ns)
            return
        status = 0
        bytes_out = 0
        settled = False

        async def metered_send(message: Message) -> None:
            nonlocal status, bytes_out, settled
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
                await self._add_headers(message, worded, metering, status, started_ns)
            elif kind == "http.response.body":
                bytes_out += len(message.get("body", b""))
                if not message.get("more_body", False):
                    settled = True
                    await self._settle(metering, status, started_ns, bytes_out)
            await send(message)

        try:
            await self.app(scope, receive, metered_send)
        except BaseException as exc:
            if not settled:
                metering.error_type = metering.error_type or type(exc).__name__
                # The client may be gone and this task cancelled: book without waiting.
                self._book(metering, status or 500, started_ns, bytes_out, None)
            raise
        if not settled:
            self._book(metering, status or 500, started_ns, bytes_out, None)

    async def _run_websocket(
        self,
        metering: Metering,
        scope: Scope,
        receive: Receive,
        send: Send,
        worded: tuple[Dialect, TextHeaders] | None,
        started_ns: int,
    ) -> None:
        """
        Run an admitted handshake to the end of its connection.

        It is settled when the app closes it, before the client gets the close frame; otherwise when the app returns:
        an app whose client went away may still state its usage. Its bytes are those of the messages sent.
        """
        status = 0
        bytes_out = 0
        is_gone = settled = False

        async def watched_receive() -> Message:
            nonlocal is_gone
            message = await receive()
            is_gone = is_gone or message["type"] == "websocket.disconnect"
            return message

        async def metered_send(message: Message) -> None:
            nonlocal status, bytes_out, settled
            kind = message["type"]
            is_last = False
            if kind == "websocket.send":
                text = message.get("text")
                bytes_out += len(message.get("bytes") or b"") if text is None else len(text.encode())
            elif kind == "websocket.accept":
                status = SWITCHING_PROTOCOLS
                await self._add_headers(message, worded, metering, status, started_ns)
            elif kind == "websocket.close":
                # Before it was accepted, this is the app's refusal: the server answers 403.
                status = status or 403
                is_last = True
            elif kind == "websocket.http.response.start":
                status = message["status"]
                await self._add_headers(message, worded, metering, status, started_ns)
            elif kind == "websocket.http.response.body":
                bytes_out += len(message.get("body", b""))
                is_last = not message.get("more_body", False)
            if is_last and not settled:
                settled = True
                await self._settle(metering, status, started_ns, bytes_out)
            await send(message)

        try:
            await self.app(scope, watched_receive, metered_send)
        except BaseException as exc:
            # After the client left, frameworks end the handler by raising: that is how connections end.
            if not settled and not is_gone:
                metering.error_type = metering.error_type or type(exc).__name__
            raise
        finally:
            if not settled:
                self._book(metering, status or 500, started_ns, bytes_out, None)

    async def _add_headers(
        self,
        message: Message,
        worded: tuple[Dialect, TextHeaders] | None,
        metering: Metering,
        status: int,
        started_ns: int,
    ) -> None:
        """Add the dialect's headers to a message that begins an answer."""
        if worded is None:
            return
        dialect, extra = worded
        if not metering.void:
            outcome = outcome_of(metering, status, started_ns, 0)
            extra = await self._threads.attempt(dialect.headers_at_start, extra, metering.admission, outcome)
        message["headers"] = [*message.get("headers", ()), *encoded(extra)]

    async def _settle(self, metering: Metering, status: int, started_ns: int, bytes_out: int) -> None:
        future = CommitFuture(asyncio.get_running_loop()) if self._durable else None
        if metering.admission.matched is None:
            booked = self._book(metering, status, started_ns, bytes_out, future)
        else:
            # With a model or tags that it states only now, it may count where nothing is in memory yet.
            booked = await self._threads.attempt(self._book, metering, status, started_ns, bytes_out, future)
        if booked and future is not None:
            await future.committed()

    def _book(
        self, metering: Metering, status: int, started_ns: int, bytes_out: int, future: CommitFuture | None
    ) -> bool:
        if metering.void:
            self._holds.void(metering.admission)
            return False
        self._holds.settle(metering.admission, outcome_of(metering, status, started_ns, bytes_out), future)
        return True


class _ForkedMiddleware(Middleware):
    """The middleware in a forked child: it admits nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._passes(scope):
            await self.app(scope, receive, send)
        else:
            await send_forked(scope, receive, send)


async def _refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    if scope["type"] == "websocket":
        await refuse_handshake(scope, receive, send, status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
