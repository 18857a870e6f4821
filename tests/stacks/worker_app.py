"""The application that the servers of `test_workers.py` run in several processes."""

from __future__ import annotations

import os
from typing import Any

from tollkeeper.remote import Tollkeeper


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the id of the process."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = str(os.getpid()).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


toll = Tollkeeper(os.environ["TOLL_URL"], key=os.environ["TOLL_KEY"])
app = toll.middleware(hello, exempt={"/who"})
