"""Servers under test, each in a process of its own: `python -m bench.servers NAME PORT DIRECTORY`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from bench.fixture import OPERATOR_KEY, set_up

if TYPE_CHECKING:
    from tollkeeper import Tollkeeper


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer like the smallest useful app: reads the body, sends 11 bytes."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"11")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"ok":true}'})


def serve_app(app: Any, port: int) -> None:
    from granian.server.embed import Server

    async def main() -> None:
        server = Server(app, port=port, interface="asgi", log_enabled=False, websockets=False, backlog=1024)
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0.2)
        print("ready", flush=True)
        await serving

    with contextlib.suppress(KeyboardInterrupt):  # How the bench stops it.
        uvloop.run(main())


def main() -> None:
    name, port, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if name == "hello":
        serve_app(hello, port)
        return
    if name.startswith("remote"):
        from tollkeeper.remote import Tollkeeper as Remote

        toll = Remote((path / "gate.txt").read_text(), key=OPERATOR_KEY)
        serve_app(toll.middleware(hello), port)
        return
    from tollkeeper import freeze_gc

    with _opened(str(path), served=not name.startswith("middleware")) as toll:
        (path / "secrets.json").write_text(json.dumps(set_up(toll)))
        toll.installation.store.ready() or toll.verify()
        if name.startswith("middleware"):
            if name.endswith("-frozen"):
                freeze_gc()
            serve_app(toll.middleware(hello, durable="async" not in name), port)
        else:
            from tollkeeper.http.server import ensure_operator_key, serve

            ensure_operator_key(toll.installation, OPERATOR_KEY)
            uds = path / "s" if name == "serve-uds" else None
            serve(toll.installation, port=port, uds=uds, ready=lambda url: print("ready", flush=True))


def _opened(data_dir: str, *, served: bool) -> Tollkeeper:
    """Open an installation as the middleware's users do, or as `tollkeeper serve` does."""
    from tollkeeper import Tollkeeper

    if not served:
        return Tollkeeper.open(data_dir)
    from tollkeeper.http.server import trim_memory
    from tollkeeper.installation import build
    from tollkeeper.settings import load

    return Tollkeeper(build(load({"data_dir": data_dir}), trim_memory=trim_memory))


if __name__ == "__main__":
    main()
