"""The 503 of a forked child, which must not use the installation that it inherited."""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from tollkeeper.forks import forked
from tollkeeper.http.asgi_types import Receive, Scope, Send
from tollkeeper.http.handshakes import refuse_handshake
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, to_problem

_REQUEST_ID_BYTES: Final = 10


async def send_forked(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request or a WebSocket's handshake with 503 and what to do."""
    status, headers, body = forked_parts(scope["path"])
    if scope["type"] == "websocket":
        await refuse_handshake(scope, receive, send, status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def forked_parts(path: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer to a request to *path*."""
    request_id = "req_" + secrets.token_hex(_REQUEST_ID_BYTES)
    problem = to_problem(forked(), instance=path, request_id=request_id)
    body = msgspec.json.encode(problem.body)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    return problem.status, headers, body
