"""The application of `prove`, with a fault: each request is booked again, as by a settle that is doubled."""

from __future__ import annotations

import os
from typing import Any

from tollkeeper.http.asgi_types import Receive, Scope, Send
from tollkeeper.prove import gated_app
from tollkeeper.prove.gated_app import OP_HEADER, units
from tollkeeper.prove.plan import secret_of
from tollkeeper.remote import Admission, Tollkeeper

_toll = Tollkeeper(os.environ["PROVE_URL"], key=os.environ["PROVE_KEY"], timeout_s=gated_app.CALL_S_MAX)


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    await gated_app.serve(scope, receive, send)
    op = [value.decode() for name, value in scope.get("headers", ()) if name == OP_HEADER.encode()]
    if op:
        await _book_again(op[0])


async def _book_again(op: str) -> None:
    again = await _toll.admit_async(secret_of("crowd-1"), "POST", "/one", units(1), tags={"op": op})
    if isinstance(again, Admission):
        await _toll.settle_async(again)


app: Any = gated_app.gated(serve)
