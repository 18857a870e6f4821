"""
The cookie of a login at the page, and what a request that comes with it must show.

A browser sends a cookie by itself, so the cookie alone proves nothing about which page asked: it is `SameSite=Strict`,
requests of other sites are refused by `Sec-Fetch-Site`, and whatever changes something brings `X-CSRF-Token` too.
No script reads it (`HttpOnly`). It has no `Path`: browsers then send it to what is beside `/tk/v1/login` and below
(RFC 6265, section 5.1.4), whatever prefix a mount or a proxy puts before, and to no other path of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.logins import is_csrf_of
from tollkeeper.errors import Forbidden
from tollkeeper.http.asgi_types import RawHeaders
from tollkeeper.http.bodies import header

COOKIE: Final = "tk_login"
CSRF_HEADER: Final = "X-CSRF-Token"
SECRETS_MAX: Final = 5
"""Most logins that one request has looked up: each may be a read of the ledger."""
_SECRET_CHARS_MAX: Final = 128
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE: Final = frozenset({b"", b"same-origin", b"none"})
"""What `Sec-Fetch-Site` may be: missing in old browsers and over plain http, `none` for an address that was typed."""


def login_secrets(headers: RawHeaders) -> list[str]:
    """Return the distinct values of our cookie, at most `SECRETS_MAX`; the one that is known counts."""
    found: list[str] = []
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, mark, text = pair.strip().partition("=")
                text = text.strip('"')
                if key == COOKIE and mark and 0 < len(text) <= _SECRET_CHARS_MAX and text not in found:
                    found.append(text)
    return found[:SECRETS_MAX]


def check_own_page(headers: RawHeaders) -> None:
    """
    Check that our own page sends a request, as far as the browser says.

    Raises:
        Forbidden: Another site's does.
    """
    site = header(headers, b"sec-fetch-site")
    if site not in _OWN_SITE:
        raise Forbidden("A login counts for requests of the page itself, and another site sent this one.")


def check_csrf(secret: str, method: str, headers: RawHeaders) -> None:
    """
    Check that a request that may change something brings what only the page can know.

    Raises:
        Forbidden: It does not.
    """
    if method in _SAFE or is_csrf_of(secret, header(headers, CSRF_HEADER.lower().encode()).decode("latin-1")):
        return
    raise Forbidden(
        f"With a login, {method} must have the header {CSRF_HEADER}: the `csrf` of GET /tk/v1/login. "
        "With a key in `Authorization` it needs none."
    )


def set_cookie(secret: str, lasts_s: int, scope: Mapping[str, Any]) -> str:
    """Return the value of `Set-Cookie` that gives a browser *secret* for *lasts_s* seconds; 0: takes it back."""
    secure = "; Secure" if _is_https(scope) else ""
    return f"{COOKIE}={secret}; Max-Age={max(lasts_s, 0)}; HttpOnly; SameSite=Strict{secure}"


def _is_https(scope: Mapping[str, Any]) -> bool:
    """
    Return whether the browser asks by https, so that it must send the cookie by no other way.

    Its own word comes first: `Origin` has the scheme that it sees, whatever is between. Nobody gains by a lie: a cookie
    that is `Secure` by mistake is not kept, and then there is no login.
    """
    headers: RawHeaders = scope["headers"]
    origin = header(headers, b"origin").lower()
    if scope.get("scheme") == "https" or origin.startswith(b"https://"):
        return True
    if origin.startswith(b"http://"):
        return False
    forwarded = header(headers, b"forwarded").lower().replace(b'"', b"").replace(b" ", b"")
    proto = header(headers, b"x-forwarded-proto").lower().rpartition(b",")[2].strip()
    return proto == b"https" or b"proto=https" in forwarded.rpartition(b",")[2].split(b";")
