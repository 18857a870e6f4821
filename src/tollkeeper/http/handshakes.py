"""Refuses a WebSocket before it opens: the client gets an HTTP answer, and no connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tollkeeper.http.asgi_types import Receive, Send

POLICY_VIOLATION: Final = 1008
"""RFC 6455, section 7.4.1. A server that is given it before the handshake ends answers 403."""
SWITCHING_PROTOCOLS: Final = 101
"""The HTTP status of a handshake that was accepted."""


async def refuse_handshake(
    scope: Mapping[str, Any],
    receive: Receive,
    send: Send,
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    """
    Refuse the WebSocket of *scope*.

    A server that has the extension `websocket.http.response` sends *status*, *headers* and *body*; any other
    answers 403 without a body.
    """
    if (await receive())["type"] == "websocket.connect":
        await send_refusal(scope, send, status, headers, body)


async def send_refusal(
    scope: Mapping[str, Any],
    send: Send,
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    """Do `refuse_handshake` for one whose `websocket.connect` was received."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await send({"type": "websocket.http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "websocket.http.response.body", "body": body})
        return
    await send({"type": "websocket.close", "code": POLICY_VIOLATION})


def unsupported(scope: Mapping[str, Any]) -> NotImplementedError:
    """Return the error for a type of scope that the middleware cannot admit, so that nothing of it is served."""
    return NotImplementedError(
        f"A scope of type {scope['type']!r} must not pass Tollkeeper: it serves http, websocket and lifespan."
    )
