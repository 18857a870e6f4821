"""The 503 of a process that can use no installation: a forked child, or one with greenlets that are refused."""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from tollkeeper.errors import TollkeeperError
from tollkeeper.forks import forked
from tollkeeper.http.asgi_types import Receive, Scope, Send
from tollkeeper.http.handshakes import refuse_handshake
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, to_problem

_REQUEST_ID_BYTES: Final = 10


async def send_unusable(
    scope: Scope, receive: Receive, send: Send, error: TollkeeperError | None = None
) -> None:
    """Answer a request or a WebSocket's handshake with 503 and what to do."""
    status, headers, body = unusable_parts(scope["path"], error)
    if scope["type"] == "websocket":
        await refuse_handshake(scope, receive, send, status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def unusable_parts(
    path: str, error: TollkeeperError | None = None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer to a request to *path*: that the process was forked, or *error*."""
    request_id = "req_" + secrets.token_hex(_REQUEST_ID_BYTES)
    problem = to_problem(error or forked(), instance=path, request_id=request_id)
    body = msgspec.json.encode(problem.body)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    return problem.status, headers, body
