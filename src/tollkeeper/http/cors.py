"""
Cross-origin calls from browsers: the answers to preflights, and the headers that let a page read an answer.

No cookies are involved: keys come in headers, so `*` is as good an origin as any other where the operator says so.
"""

from __future__ import annotations

import re
from typing import Final

from tollkeeper.errors import BadParameter
from tollkeeper.http.asgi_types import Message, RawHeaders, Scope, Send

ANY: Final = "*"
MAX_AGE_S: Final = 600
_HOST: Final = re.compile(r"[^/?#@*\s;,'\"\x00-\x1f\x7f-\U0010ffff]+")
"""What may follow the scheme: nothing that ends a header, or a directive of a policy in one."""
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"


def origins_of(text: str, setting: str, *, any_origin: bool) -> frozenset[str]:
    """
    Return the origins in *text*, which separates them by commas; `*` among them only with *any_origin*.

    Raises:
        BadParameter: One is no origin.
    """
    found = frozenset(one.strip() for one in text.split(",") if one.strip())
    for origin in found - {ANY} if any_origin else found:
        scheme, mark, host = origin.partition("://")
        if scheme not in ("http", "https") or not mark or not host or not _HOST.fullmatch(host):
            raise BadParameter(
                f"setting {setting}: {origin!r} is no origin: it must be like https://app.example.com, "
                f"without a path{', or * for all' if any_origin else ''}",
                field=setting,
            )
    return found


def is_preflight(scope: Scope) -> bool:
    """Return whether a browser asks for another page what it may send: such a request has no key."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


class Cors:
    """
    What pages of *origins* may call.

    Args:
        origins: As the setting `cors_origins`: `https://app.example.com, http://localhost:3000`, or `*`.

    Raises:
        BadParameter: One is no origin.
    """

    def __init__(self, origins: str) -> None:
        self._allowed = origins_of(origins, "cors_origins", any_origin=True)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def headers(self, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        """Return the headers to add to any answer to a request with *headers*."""
        if not self._allowed:
            return []
        if ANY in self._allowed:
            allowed = b"*"
            told = []
        else:
            allowed = next((value for name, value in headers if name == b"origin"), b"")
            # A cache must not show one origin's answer to another, nor to none.
            told = [(b"vary", b"Origin")]
            if allowed.decode("latin-1") not in self._allowed:
                return told
        return [
            *told,
            (b"access-control-allow-origin", allowed),
            # All, such as Retry-After and those of a dialect.
            (b"access-control-expose-headers", b"*"),
        ]

    def preflight(self, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer to a preflight; a browser reads a refusal from what is not there."""
        added = self.headers(headers)
        if not any(name == b"access-control-allow-origin" for name, _ in added):
            return added
        # `*` would not stand for Authorization.
        asked = b", ".join(value for name, value in headers if name == b"access-control-request-headers")
        return [
            *added,
            (b"vary", b"Access-Control-Request-Headers"),
            (b"access-control-allow-methods", _METHODS),
            *([(b"access-control-allow-headers", asked)] if asked else []),
            (b"access-control-max-age", str(MAX_AGE_S).encode()),
        ]

    def wrap(self, scope: Scope, send: Send) -> Send:
        """Return *send* with the headers added to the answer."""
        added = self.headers(scope["headers"])
        if not added:
            return send

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        return send_with_headers
