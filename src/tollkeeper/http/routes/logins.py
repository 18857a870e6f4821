"""
Logins at the page: a key, pasted once, becomes a cookie that stands for it in all of `/tk/v1`.

The three calls look at the cookie alone, so the guard asks nobody for a key.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import RawBody

from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.logins import Logins
from tollkeeper.domain.instants import US_PER_S, from_us, to_text, to_us
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.logins import Login, csrf_of
from tollkeeper.errors import Unauthenticated, UnsupportedMediaType
from tollkeeper.http.auth import Principal
from tollkeeper.http.bodies import header
from tollkeeper.http.credentials import SECRET_CHARS_MAX
from tollkeeper.http.login_cookie import check_csrf, check_own_page, login_secrets, set_cookie
from tollkeeper.http.routes.calls import (
    NOBODY_ASKED,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    answer,
    context_of,
    in_thread,
    json_answer,
    json_object,
    operation,
    params_of,
    service,
)
from tollkeeper.http.routes.fields import fields_of

PATH: Final = f"{PREFIX}/login"
BODY_BYTES_MAX: Final = 4_096
FAILED: Final = "failed_credential"
"""In the state of a request whose key came in the body and is not good: such answers are throttled like others."""

log = logging.getLogger("tollkeeper.http")


class LoginRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key that the login is to stand for."""

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=SECRET_CHARS_MAX)]
    """An operator key, a management key or a consumption key."""

    def __repr__(self) -> str:
        return "LoginRequest()"


class LoginAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the browser is logged in as."""

    role: Literal["operator", "management", "consumption"]
    account: str | None
    """Of the key; null for the operator."""
    key: str | None
    """The id of the key; null for the operator."""
    expires_at: str
    """When the login ends, or its key if that is earlier."""
    csrf: str
    """Sent as `X-CSRF-Token` with every request but GET and HEAD."""


class LogoutAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the login."""

    ended: bool
    """Whether there was one: its cookie is good for nothing from now on."""


_EXAMPLE: Final = {
    "role": "management",
    "account": "acme",
    "key": "acme-admin",
    "expires_at": "2026-01-31T21:30:00Z",
    "csrf": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of this topic."""
    return [log_in, show_login, log_out]


@post(
    PATH,
    request_max_body_size=BODY_BYTES_MAX,
    status_code=200,
    opt=operation(
        OperationDoc(
            "Log in at the page",
            "login",
            NOBODY_ASKED,
            {200: json_answer(LoginAnswer, "Logged in: the answer sets the cookie `tk_login`.", _EXAMPLE)},
            description="The cookie stands for the key in all of `/tk/v1` until the setting `login_hours` is over, the "
            "login is ended, or the key is: revoked, deactivated, expired. Programs need none of this: they send their "
            "key with each request.",
            body=BodyDoc({"application/json": LoginRequest}, {"key": "mk_…"}),
            problems=(401, 403, 413, 415),
        )
    ),
)
@in_thread("management")
def log_in(request: AnyRequest, body: RawBody) -> Response[bytes]:
    """Log in with a key."""
    params_of(request)
    scope: Any = request.scope
    check_own_page(scope["headers"])
    if header(scope["headers"], b"content-type").partition(b";")[0].strip().lower() != b"application/json":
        # Forms and other pages can send what has no type, or another one.
        raise UnsupportedMediaType("Content-Type must be application/json (curl: `--json`)")
    key = fields_of(json_object(request, body), LoginRequest).key.strip()
    logins, authenticator = service(request, Logins), context_of(request).authenticator
    try:
        principal = authenticator.principal_of(key)
    except Unauthenticated:
        scope["state"][FAILED] = True
        raise
    for secret in login_secrets(scope["headers"]):
        # A browser has one login: that of before is good for nothing from now on.
        logins.end(secret)
    begun = logins.begin(hash_secret(key), principal.account_id or "", _key_ends_at_us(request, principal))
    log.info(
        "tollkeeper.http.login",
        extra={"role": principal.role, "account": principal.account_id or "", "key": principal.key_id or ""},
    )
    return _answer(request, principal, begun.login, begun.secret, sets_cookie=True)


@get(
    PATH,
    opt=operation(
        OperationDoc(
            "Show the login",
            "login",
            NOBODY_ASKED,
            {200: json_answer(LoginAnswer, "Logged in, by the cookie of this request.", _EXAMPLE)},
            problems=(401, 403),
        )
    ),
)
@in_thread("management")
def show_login(request: AnyRequest) -> Response[bytes]:
    """Show whom the cookie stands for."""
    params_of(request)
    headers = request.scope["headers"]
    found = context_of(request).authenticator.login(headers)
    return _answer(request, found.principal, found.login, found.secret)


@delete(
    PATH,
    status_code=200,
    opt=operation(
        OperationDoc(
            "Log out",
            "login",
            NOBODY_ASKED,
            {
                200: json_answer(
                    LogoutAnswer, "Nobody is logged in: the cookie is taken back.", {"ended": True}
                )
            },
            description="Takes the header `X-CSRF-Token`, as every change by a login does.",
            problems=(403,),
        )
    ),
)
@in_thread("management")
def log_out(request: AnyRequest) -> Response[bytes]:
    """End the login on the server, and take the cookie back."""
    params_of(request)
    scope: Any = request.scope
    logins = service(request, Logins)
    check_own_page(scope["headers"])
    found = [secret for secret in login_secrets(scope["headers"]) if logins.find(secret) is not None]
    for secret in found:
        check_csrf(secret, "DELETE", scope["headers"])
    for secret in found:
        logins.end(secret)
    told = answer(LogoutAnswer(ended=bool(found)))
    told.headers["Set-Cookie"] = set_cookie("", 0, scope)
    return told


def _answer(
    request: AnyRequest, principal: Principal, login: Login, secret: str, *, sets_cookie: bool = False
) -> Response[bytes]:
    key_ends_at_us = _key_ends_at_us(request, principal)
    ends_at_us = login.expires_at_us if key_ends_at_us is None else min(login.expires_at_us, key_ends_at_us)
    found = answer(
        LoginAnswer(
            role=principal.role,
            account=principal.account_id,
            key=principal.key_id,
            expires_at=to_text(from_us(ends_at_us)),
            csrf=csrf_of(secret),
        )
    )
    if sets_cookie:
        lasts_s = (login.expires_at_us - login.created_at_us) // US_PER_S
        found.headers["Set-Cookie"] = set_cookie(secret, lasts_s, request.scope)
    return found


def _key_ends_at_us(request: AnyRequest, principal: Principal) -> int | None:
    stored = None if principal.key_id is None else service(request, Directory).key(principal.key_id)
    return None if stored is None or stored.entry.expires_at is None else to_us(stored.entry.expires_at)
