"""
The ASGI middleware: any Starlette, FastAPI, Litestar, Django or plain ASGI app behind the gate.

It reads the api key, admits the request, runs the app, and settles with the status, latency and bytes that
the app produced. By default the last piece of the response waits for the group commit (a few ms at most),
so a request that was answered is booked, `kill -9` included.

A WebSocket is one request: admitted at its handshake, before it opens, and settled at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tollkeeper import forks, greenlets
from tollkeeper.domain.matching import NO_TAGS
from tollkeeper.domain.requests import NO_USAGE, Usage
from tollkeeper.errors import GreenletsRefused
from tollkeeper.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from tollkeeper.http.cors import Cors, is_preflight
from tollkeeper.http.credentials import query_without
from tollkeeper.http.doors import Admitted, Door, HasDoor, Refusal
from tollkeeper.http.exemptions import Exemptions
from tollkeeper.http.forked import send_unusable
from tollkeeper.http.handshakes import (
    POLICY_VIOLATION,
    SWITCHING_PROTOCOLS,
    refuse_handshake,
    send_refusal,
    unsupported,
)
from tollkeeper.http.interfaces import must_be_asgi
from tollkeeper.http.metered import encoded
from tollkeeper.http.paths import app_path
from tollkeeper.metering import STATE_KEY, Denied, HasInstallation, Metering, outcome_of

if TYPE_CHECKING:
    from tollkeeper.installation import Installation

__all__ = ["HANDSHAKE_METHOD", "STATE_KEY", "HasInstallation", "Metering", "Middleware"]

_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers without `Content-Length`, body."""
_UNHANDLED: Final = 500
"""What frameworks answer when a handler lets an exception go."""
_REASON_BYTES_MAX: Final = 123
"""Of a close frame: RFC 6455, section 5.5."""
HANDSHAKE_METHOD: Final = "GET"
"""Of a WebSocket's handshake (RFC 6455, section 4.1): routes and prices match it by this."""


class Middleware:
    """
    *app* behind the gate of *toll*.

    Args:
        toll: `Tollkeeper` of this process, or `tollkeeper.remote.Tollkeeper`.
        expect: Returns the most that a request may use, from its scope, and its model; nothing is known by default.
        tags: Returns the tags of a request's event, from its scope: limits and budgets may count it by them.
        exempt: What passes without a key, e.g. `{"/healthz", "GET /docs/*"}` (see `http.exemptions`); WebSockets of
            these paths too. Preflights of browsers always pass.
        profile: The dialect that this API speaks: how it reads the key, words refusals, and which headers
            its answers have. The root profile of the settings by default; native without one.
        sessions: Whether session tokens are admitted beside api keys, for their account's own pools; as the profile's
            vendor does by default (`regsn` does; native does not).
        key_parameter: The query parameter that may carry the key, e.g. `"key"`, beside the headers; none by default.
            The app does not see it; logs of servers and proxies do, as they have the whole address.
        durable: Hold the end of the response back until the request is booked durably. Without it the
            booking follows within a few ms, and a crash in between loses it.
    """

    def __init__(
        self,
        app: ASGIApp,
        toll: HasInstallation | HasDoor,
        *,
        expect: Callable[[Scope], Usage] | None = None,
        tags: Callable[[Scope], Mapping[str, str]] | None = None,
        exempt: frozenset[str] | set[str] = frozenset(),
        durable: bool = True,
        profile: str | None = None,
        sessions: bool | None = None,
        key_parameter: str = "",
    ) -> None:
        greenlets.check()
        self._key_parameter = key_parameter
        self.app = app
        self.toll = toll
        self._expect = expect
        self._tags = tags
        self._exempt = Exemptions(exempt)
        self._door: Door
        must_be_asgi(app)
        if (door := getattr(toll, "door", None)) is not None:
            self._cors = Cors(toll.cors_origins)  # type: ignore[union-attr]
            self._door = door(
                profile=profile, durable=durable, sessions=sessions, key_parameter=key_parameter
            )
            return
        # Loads the stores, which a client of a server does without.
        from tollkeeper.http.embedded_door import EmbeddedDoor

        installation: Installation = toll.installation  # type: ignore[union-attr]
        self._cors = Cors(installation.settings.cors_origins)
        self._door = EmbeddedDoor(
            installation,
            profile=profile,
            durable=durable,
            sessions=sessions,
            key_parameter=key_parameter,
        )
        forks.refuse_in_children(installation, [self], _ForkedMiddleware)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._passes(scope):
            await self.app(scope, receive, send)
            return
        try:
            greenlets.check()
        except GreenletsRefused as exc:
            await send_unusable(scope, receive, send, exc)
            return
        method: str = scope.get("method", HANDSHAKE_METHOD)
        path = app_path(scope)
        expected = NO_USAGE if self._expect is None else self._expect(scope)
        tags = NO_TAGS if self._tags is None else self._tags(scope)
        found = await self._door.admit(scope, method, path, expected, tags)
        if isinstance(found, Refusal):
            headers = [*found.headers, *self._cors.headers(scope["headers"])]
            await _refuse(scope, receive, send, found.status, headers, found.body)
            return
        if self._key_parameter:
            query = query_without(scope.get("query_string", b""), self._key_parameter)
            scope = {**scope, "query_string": query}
        await self._run(Metering(found.admission, self._door), scope, receive, send, found)

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
        admitted: Admitted,
    ) -> None:
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        state[STATE_KEY] = metering
        started_ns = time.perf_counter_ns()
        if scope["type"] == "websocket":
            await self._run_websocket(metering, scope, receive, send, admitted, started_ns)
            return
        status = 0
        bytes_out = 0
        settled = refused = False

        async def refuse() -> None:
            nonlocal settled, refused
            settled = refused = True
            answer = await self._refused(metering, scope, started_ns)
            await _refuse(scope, receive, send, *answer)

        async def metered_send(message: Message) -> None:
            nonlocal status, bytes_out, settled
            kind = message["type"]
            if refused:
                return
            if kind == "http.response.start":
                if message["status"] == _UNHANDLED and metering.denial is not None:
                    # The framework answers for an app that let the denial go.
                    await refuse()
                    return
                status = message["status"]
                await self._add_headers(message, admitted, metering, status, started_ns)
            elif kind == "http.response.body":
                bytes_out += len(message.get("body", b""))
                if not message.get("more_body", False):
                    settled = True
                    await self._settle(metering, status, started_ns, bytes_out)
            await send(message)

        try:
            await self.app(scope, receive, metered_send)
        except BaseException as exc:
            if not settled and not status and metering.denial is not None and isinstance(exc, Exception):
                await refuse()
            if refused and isinstance(exc, Denied):
                return
            if not settled:
                metering.error_type = metering.error_type or type(exc).__name__
                # The client may be gone and this task cancelled: book without waiting.
                self._book(metering, status or 500, started_ns, bytes_out)
            raise
        if not settled:
            self._book(metering, status or 500, started_ns, bytes_out)

    async def _run_websocket(
        self,
        metering: Metering,
        scope: Scope,
        receive: Receive,
        send: Send,
        admitted: Admitted,
        started_ns: int,
    ) -> None:
        """
        Run an admitted handshake to the end of its connection.

        It is settled when the app closes it, before the client gets the close frame; otherwise when the app returns:
        an app whose client went away may still state its usage. Its bytes are those of the messages sent.
        """
        status = 0
        bytes_out = 0
        is_gone = is_asked = settled = False

        async def refuse() -> None:
            nonlocal settled
            settled = True
            denial = metering.denial
            assert denial is not None
            if status:
                await self._settle(metering, status, started_ns, bytes_out)
                reason = denial.message.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
                return
            answer = await self._refused(metering, scope, started_ns)
            if is_asked:
                await send_refusal(scope, send, *answer)
            else:
                await refuse_handshake(scope, receive, send, *answer)

        async def watched_receive() -> Message:
            nonlocal is_gone, is_asked
            message = await receive()
            is_asked = True
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
                await self._add_headers(message, admitted, metering, status, started_ns)
            elif kind == "websocket.close":
                # Before it was accepted, this is the app's refusal: the server answers 403.
                status = status or 403
                is_last = True
            elif kind == "websocket.http.response.start":
                status = message["status"]
                await self._add_headers(message, admitted, metering, status, started_ns)
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
            if isinstance(exc, Denied) and not settled and not is_gone:
                await refuse()
                return
            # After the client left, frameworks end the handler by raising: that is how connections end.
            if not settled and not is_gone:
                metering.error_type = metering.error_type or type(exc).__name__
            raise
        finally:
            if not settled:
                self._book(metering, status or 500, started_ns, bytes_out)

    async def _add_headers(
        self,
        message: Message,
        admitted: Admitted,
        metering: Metering,
        status: int,
        started_ns: int,
    ) -> None:
        """Add the dialect's headers to a message that begins an answer."""
        worded = admitted.headers
        if worded is None:
            return
        if not metering.void:
            worded = await self._door.headers_at_start(admitted, outcome_of(metering, status, started_ns, 0))
        message["headers"] = [*message.get("headers", ()), *encoded(worded)]

    async def _settle(self, metering: Metering, status: int, started_ns: int, bytes_out: int) -> None:
        door, admission = self._door, metering.admission
        kind, outcome, timeout_s = metering.end(status, started_ns, bytes_out)
        if kind == "settle":
            await door.settle(admission, outcome)
        elif kind == "later":
            await door.settle_later(admission, outcome, timeout_s)
        elif kind == "void":
            await door.void(admission)
        else:
            assert metering.denial is not None
            await door.deny(admission, metering.denial, metering.asked_model)

    def _book(self, metering: Metering, status: int, started_ns: int, bytes_out: int) -> None:
        door, admission = self._door, metering.admission
        kind, outcome, timeout_s = metering.end(status, started_ns, bytes_out)
        if kind == "settle":
            door.settle_soon(admission, outcome)
        elif kind == "later":
            door.settle_later_soon(admission, outcome, timeout_s)
        elif kind == "void":
            door.void_soon(admission)
        else:
            assert metering.denial is not None
            door.deny_soon(admission, metering.denial, metering.asked_model)

    async def _refused(self, metering: Metering, scope: Scope, started_ns: int) -> _Answer:
        """End a request whose handler let a denial go, and return its answer."""
        denial = metering.denial
        assert denial is not None
        # First, so that the answer's headers do not count it as held.
        await self._settle(metering, denial.status, started_ns, 0)
        method = scope.get("method", HANDSHAKE_METHOD)
        found = await self._door.refusal(scope, method, app_path(scope), metering.admission, denial)
        return found.status, [*found.headers, *self._cors.headers(scope["headers"])], found.body


class _ForkedMiddleware(Middleware):
    """The middleware in a forked child: it admits nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._passes(scope):
            await self.app(scope, receive, send)
        else:
            await send_unusable(scope, receive, send)


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
