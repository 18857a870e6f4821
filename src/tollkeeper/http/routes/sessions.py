"""Session tokens of our own login: the provider's dashboard requests one when a user has signed in there."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import RawBody

from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.sessions import OWN_TTL_S, Sessions
from tollkeeper.domain.events import Name
from tollkeeper.domain.instants import US_PER_S, from_us, to_text
from tollkeeper.http.routes.calls import (
    BODY_BYTES_MAX,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    answer,
    in_thread,
    json_answer,
    json_object,
    no_such_account,
    now_us_of,
    operation,
    params_of,
    service,
)
from tollkeeper.http.routes.fields import fields_of

TTL_S_MAX: Final = 30 * 86_400
Named = Annotated[Name, msgspec.Meta(min_length=1)]


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user of an account who signed in at the provider's own login, and the lifetime of the session."""

    account: Named
    user: Named
    """Limits per dashboard user are counted by this name."""
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=TTL_S_MAX)] = OWN_TTL_S


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A session token. It cannot be revoked, so its lifetime should be short."""

    token: str
    """Sent to the profiles' endpoints as `Authorization: Bearer <token>`."""
    expires_at: str


def handlers() -> list[HTTPRouteHandler]:
    """Return the handler that issues session tokens."""
    return [issue_session]


@post(
    f"{PREFIX}/sessions",
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Issue a session token",
            "sessions",
            OPERATOR,
            {201: json_answer(SessionAnswer, "The token, shown now and never again.")},
            description="For a user who signed in to the provider's dashboard. Profiles that take session "
            "tokens take it beside those of the other login that the settings name.",
            body=BodyDoc(
                {"application/json": SessionRequest}, {"account": "acme", "user": "ada", "ttl_s": 3600}
            ),
            problems=(404, 413, 415),
        )
    ),
)
@in_thread("management")
def issue_session(request: AnyRequest, body: RawBody) -> Response[bytes]:
    """Issue a session token."""
    params_of(request)
    asked = fields_of(json_object(request, body), SessionRequest)
    if service(request, Directory).account(asked.account) is None:
        raise no_such_account()
    token = service(request, Sessions).issue(asked.account, asked.user, asked.ttl_s)
    # In whole seconds, as the token has it.
    expires_at_us = (now_us_of(request) // US_PER_S + asked.ttl_s) * US_PER_S
    return answer(SessionAnswer(token=token, expires_at=to_text(from_us(expires_at_us))), status=201)
