"""The API of an installation inside another application, under whatever path that mounts it."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

from tollkeeper.http.app import App
from tollkeeper.http.asgi_types import Receive, Scope, Send
from tollkeeper.http.paths import app_path

_KEPT: Final = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "query_string",
    "headers",
    "client",
    "server",
    "subprotocols",
    "extensions",
)


class MountedApi:
    """
    `App` for a mount or a server's `root_path`: it sees paths as `tollkeeper serve` does.

    What the other application put into the scope stays out, and what this one puts there too.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        inner = {name: scope[name] for name in _KEPT if name in scope}
        path, raw_path = _paths(scope)
        sent: bytes = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0]
        if path == "/" and not sent.endswith(b"/") and scope.get("method") in ("GET", "HEAD"):
            await _send_to_slash(sent, scope.get("query_string", b""), send)
            return
        inner |= {"path": path, "raw_path": raw_path, "root_path": "", "state": {}}
        await self._app(inner, receive, send)


async def _send_to_slash(sent: bytes, query: bytes, send: Send) -> None:
    """Answer `/prefix` with the way to `/prefix/`: the page has relative URLs, which are read from there."""
    # By the last segment alone, so that it leads to this host whatever the path is, or a proxy puts before it.
    location = b"./" + sent.rpartition(b"/")[2] + b"/" + (b"?" + query if query else b"")
    headers = [(b"location", location), (b"content-length", b"0"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 308, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _paths(scope: Scope) -> tuple[str, bytes]:
    """Return the path as `serve` would have it, decoded and as it was sent."""
    path = app_path(scope)
    sent: bytes = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0]
    full = unquote(sent)
    if path != "/" and path.endswith("/") and not full.endswith("/"):
        # Litestar ends the path of what it mounts with one.
        path = path[:-1]
    # Some hosts leave in `raw_path` what they took off the path.
    prefix, parts = full.removesuffix(path), sent.split(b"/")
    for count in range(1, len(parts)):
        if full.endswith(path) and unquote(b"/".join(parts[:count])) == prefix:
            return path, b"/" + b"/".join(parts[count:])
    return path, quote(path).encode()
