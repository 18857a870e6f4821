"""
The application that `stacks` runs in several worker processes, behind the gate of one server:

    PROVE_URL=http://… PROVE_KEY=ok_… granian --interface asgi --workers 3 tollkeeper.prove.gated_app:app

`POST /one` uses one unit; `POST /stream/5` sends five pieces of one unit each, or as many as the money lasts; a
WebSocket at `/talk` answers each message, for one unit. `GET /who` is exempt: it answers with the id of the process.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from tollkeeper.domain.requests import NO_USAGE, Usage
from tollkeeper.http.asgi_types import ASGIApp, Receive, Scope, Send
from tollkeeper.metering import STATE_KEY, Metering
from tollkeeper.prove.attempts import UNIT_NANOS
from tollkeeper.remote import Tollkeeper

HOLD_S: Final = 6
CALL_S_MAX: Final = 120.0
OP_HEADER: Final = "x-op"
LAST: Final = b"end"
"""The last piece of a stream that was not cut."""
_NO_MONEY: Final = 1008


def units(count: int) -> Usage:
    """Return the usage of so many units."""
    return Usage(cost_nanos=count * UNIT_NANOS)


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one scope."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    path: str = scope["path"]
    if path == "/who":
        await _answer(send, str(os.getpid()).encode())
        return
    metering: Metering = scope["state"][STATE_KEY]
    if scope["type"] == "websocket":
        await _talk(receive, send, metering)
    elif path.startswith("/stream/"):
        await _stream(receive, send, metering, int(path.rpartition("/")[2]))
    else:
        metering.usage = units(1)
        await _answer(send, b"done")


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(receive: Receive, send: Send, metering: Metering, count: int) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    gone = asyncio.ensure_future(_hung_up(receive))
    try:
        for served in range(1, count + 1):
            if gone.done() or not await metering.extend(units(1)):
                break
            metering.usage = units(served)
            await send({"type": "http.response.body", "body": b"piece\n", "more_body": True})
    finally:
        gone.cancel()
    await send({"type": "http.response.body", "body": LAST})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _talk(receive: Receive, send: Send, metering: Metering) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    served = 0
    while (message := await receive())["type"] != "websocket.disconnect":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 1000})
            return
        if not await metering.extend(units(1)):
            await send({"type": "websocket.close", "code": _NO_MONEY})
            return
        served += 1
        metering.usage = units(served)
        await send({"type": "websocket.send", "text": str(served)})


def _expected(scope: Scope) -> Usage:
    return units(1) if scope["path"] == "/one" else NO_USAGE


def _tags(scope: Scope) -> dict[str, str]:
    found = [value.decode() for name, value in scope["headers"] if name == OP_HEADER.encode()]
    return {"op": found[0]} if found else {}


def gated(inner: ASGIApp) -> ASGIApp:
    """Return *inner* behind the gate of the server that the environment names."""
    toll = Tollkeeper(
        os.environ["PROVE_URL"], key=os.environ["PROVE_KEY"], timeout_s=CALL_S_MAX, hold_s=HOLD_S
    )
    app: ASGIApp = toll.middleware(inner, expect=_expected, tags=_tags, exempt={"/who"})
    return app


if "PROVE_URL" in os.environ:
    app = gated(serve)
