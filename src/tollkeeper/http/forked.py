"""The answer of a forked child, which can use nothing of the installation that it inherited."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, to_problem
from tollkeeper.services.forks import forked

_REQUEST_ID_BYTES = 10


async def send_forked(
    scope: MutableMapping[str, Any], send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
) -> None:
    """Answer an HTTP request with 503 and what to do."""
    request_id = "req_" + secrets.token_hex(_REQUEST_ID_BYTES)
    problem = to_problem(forked(), instance=scope["path"], request_id=request_id)
    body = msgspec.json.encode(problem.body)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
