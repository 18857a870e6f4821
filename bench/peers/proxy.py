"""
A mock model, and a minimal reverse proxy in front of it.

`python -m bench.peers.proxy VARIANT PORT UPSTREAM_PORT`: model, bare, durable or async.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.fixture import KEYS, set_up
from bench.servers import serve_app
from tollkeeper import Tollkeeper, Usage

MODEL = "gpt-4o-mini"
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_780_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Blue light is scattered more. " * 14},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 812, "completion_tokens": 97, "total_tokens": 909},
    }
).encode()
JSON = (b"content-type", b"application/json")
EXPECTED = Usage(prompt_tokens=1_000, completion_tokens=1_000, model=MODEL)
"""Held before the model answers."""


class Tokens(msgspec.Struct):
    """What the model says it used."""

    prompt_tokens: int
    completion_tokens: int


class Completion(msgspec.Struct):
    """What the gate needs of an answer."""

    model: str
    usage: Tokens


COMPLETIONS = msgspec.json.Decoder(Completion)


async def model(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request at once with the same completion."""
    await _body(receive)
    await _answer(send, 200, COMPLETION)


class Proxy:
    """Passes each request on to the model at *port*, and tells the gate what it used."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._session is None:  # It belongs to the running loop.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = await _body(receive)
        request = self._session.request(
            scope["method"],
            self._url + scope["path"],
            data=body,
            headers={"Content-Type": "application/json"},
        )
        async with request as answer:
            content = await answer.read()
        metering = (scope.get("state") or {}).get("tollkeeper")
        if metering is not None and answer.status == 200:
            found = COMPLETIONS.decode(content)
            metering.usage = Usage(
                prompt_tokens=found.usage.prompt_tokens,
                completion_tokens=found.usage.completion_tokens,
                model=found.model,
            )
        await _answer(send, answer.status, content)


async def _body(receive: Any) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _answer(send: Any, status: int, content: bytes) -> None:
    headers = [JSON, (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _serve(variant: str, port: int, upstream: int) -> None:
    """Serve *variant* in the working directory, which gets the secrets of its keys."""
    secrets = Path("secrets.json")
    if variant in ("model", "bare"):
        secrets.write_text(json.dumps([f"key-{number}" for number in range(KEYS)]))
        serve_app(model if variant == "model" else Proxy(upstream), port)
        return
    with Tollkeeper.open("data") as toll:
        issued = set_up(toll)
        toll.apply(ROUTE)
        toll.installation.store.ready() or toll.verify()
        secrets.write_text(json.dumps(issued))
        serve_app(
            toll.middleware(Proxy(upstream), durable=variant == "durable", expect=lambda scope: EXPECTED),
            port,
        )


ROUTE = '[[routes]]\nid = "completions"\nmethod = "POST"\npath = "/v1/chat/completions"\n'

if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
