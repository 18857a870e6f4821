"""
What every route has in common: who calls, what the query and the body say, and how an answer is sent.

A handler carries an `OperationDoc` in its `opt`: the guard reads from it who may call, the OpenAPI document
what to say of it, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar import Request, Response

from tollkeeper.callers import Caller
from tollkeeper.clock import Clock
from tollkeeper.errors import BadInput, BadParameter, Forbidden, Malformed, NotFound, UnsupportedMediaType
from tollkeeper.http.auth import Authenticator, Principal
from tollkeeper.http.bodies import decompressed, header
from tollkeeper.http.executors import Executors, Pool, Probe
from tollkeeper.maintenance.reconcile import Verdict

OPERATION: Final = "operation"
"""Where a handler's `opt` has its `OperationDoc`."""

BODY_BYTES_MAX: Final = 1024 * 1024
"""One entry or correction; the file of `apply` may have `APPLY_BYTES_MAX`."""
APPLY_BYTES_MAX: Final = 16 * 1024 * 1024
PARAMETERS_MAX: Final = 200

CallerRole = Literal["operator", "management", "consumption"]
NOBODY_ASKED: Final[frozenset[CallerRole]] = frozenset()
"""Open to all: no credential is asked for."""
OPERATOR: Final[frozenset[CallerRole]] = frozenset({"operator"})
CUSTOMER: Final[frozenset[CallerRole]] = frozenset({"operator", "management"})
ANYBODY: Final[frozenset[CallerRole]] = frozenset({"operator", "management", "consumption"})

AnyRequest = Request[Any, Any, Any]
P = ParamSpec("P")
T = TypeVar("T")
Schema = Mapping[str, Any]


_TEXT: Final[Schema] = {"type": "string"}


class QueryDoc(NamedTuple):
    """One query parameter, for the document."""

    name: str
    description: str
    schema: Schema = _TEXT
    required: bool = False


class BodyDoc(NamedTuple):
    """A body, by media type: a struct of ours or a JSON schema each, and an example."""

    content: Mapping[str, type | Schema]
    example: Any = None
    description: str = ""


class OperationDoc(NamedTuple):
    """
    What there is to know of one operation.

    Attributes:
        roles: Whose credential may call; a role without access gets 403.
        answers: Status → what is answered.
        problems: Statuses of problem documents beside those that every operation may have.
    """

    summary: str
    tag: str
    roles: frozenset[CallerRole]
    answers: Mapping[int, BodyDoc]
    description: str = ""
    query: tuple[QueryDoc, ...] = ()
    body: BodyDoc | None = None
    problems: tuple[int, ...] = ()


class Maintenance:
    """What the last `verify` over HTTP found, for the metrics."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.verified_at_us = 0


class Context(NamedTuple):
    """
    What handlers work on.

    Attributes:
        services: Type → the one of the installation. A handler takes those that it needs, with `service`.
    """

    services: Mapping[type, Any]
    clock: Clock
    authenticator: Authenticator
    version: str
    maintenance: Maintenance
    executors: Executors
    probes: tuple[Probe, ...]
    metrics_open: bool


def json_answer(schema: type | Schema, description: str, example: Any = None) -> BodyDoc:
    """Return how the document tells of a JSON answer."""
    return BodyDoc({"application/json": schema}, example, description)


def operation(of: OperationDoc) -> dict[str, Any]:
    """Return the `opt` of a handler."""
    return {OPERATION: of}


def in_thread(pool: Pool) -> Callable[[Callable[P, T]], Callable[P, Awaitable[T]]]:
    """Return what makes a handler that blocks one that runs in a thread of *pool*."""

    def decorate(handler: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        @wraps(handler)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            request: Any = kwargs["request"]
            executors = context_of(request).executors
            if pool != "usage":
                return await executors.of(pool).run(handler, *args, **kwargs)
            principal = principal_of(request)
            caller = Caller(principal.account_id, is_operator=principal.role == "operator")
            return await executors.run_for(pool, caller, request.receive, handler, *args, **kwargs)

        return run

    return decorate


def context_of(request: AnyRequest) -> Context:
    """Return what the handler of *request* works on."""
    context: Context = request.app.state.tollkeeper
    return context


def service(request: AnyRequest, of: type[T]) -> T:
    """Return the service of a type that the handler of *request* needs."""
    found: T = context_of(request).services[of]
    return found


def now_us_of(request: AnyRequest) -> int:
    """Return the time of the installation's clock."""
    return context_of(request).clock.now_us()


def principal_of(request: AnyRequest) -> Principal:
    """Return who calls; the guard has put it there."""
    principal: Principal = request.scope["state"]["principal"]
    return principal


def account_in_scope(principal: Principal, asked: str | None) -> str | None:
    """
    Return the account that a call is about: a customer's own, else what the operator asked for.

    Raises:
        NotFound: A customer asked for another account: it does not exist for them.
    """
    if principal.role == "operator":
        return asked
    if asked not in (None, principal.account_id):
        raise no_such_account()
    return principal.account_id


def no_such_account() -> NotFound:
    """Return the one answer for an account that is unknown or another's: the two are indistinguishable."""
    return NotFound("There is no such account.")


def query_pairs(request: AnyRequest) -> list[tuple[str, str]]:
    """
    Return the query's parameters in order, empty values included.

    Raises:
        BadInput: It is not UTF-8, or has more than `PARAMETERS_MAX` parameters.
    """
    text = request.scope.get("query_string", b"")
    try:
        return parse_qsl(
            text.decode("latin-1"), keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_MAX
        )
    except UnicodeDecodeError:
        raise BadInput("The query is not percent-encoded UTF-8.") from None
    except ValueError:
        raise BadInput(f"The query has more than {PARAMETERS_MAX} parameters.") from None


def params_of(request: AnyRequest, *names: str) -> dict[str, str]:
    """
    Return the query's parameters, each of *names* and given once.

    Raises:
        BadParameter: One is unknown here or given twice.
    """
    found: dict[str, str] = {}
    for name, value in query_pairs(request):
        if name not in names:
            raise unknown_parameter(name, names)
        if name in found:
            raise BadParameter(f"{name} is given twice: give it once", field=name)
        found[name] = value
    return found


def unknown_parameter(name: str, known: tuple[str, ...]) -> BadParameter:
    """Return what to say of a parameter that is none of *known*."""
    name = name[:64]
    if not known:
        hint = "there are none here"
    elif near := get_close_matches(name, known, n=1):
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"the parameters are {', '.join(known)}"
    return BadParameter(f"{name} is not a parameter: {hint}", field=name)


def whole_number(text: str, name: str, least: int, most: int) -> int:
    """Return the number that parameter *name* states. Raises `BadParameter`."""
    if text.isascii() and text.isdigit() and len(text) <= 18 and least <= int(text) <= most:
        return int(text)
    raise BadParameter(f"{name} must be a whole number from {least} to {most}, not {text[:64]!r}", field=name)


def truth(text: str, name: str) -> bool:
    """Return the boolean that parameter *name* states. Raises `BadParameter`."""
    if text not in ("true", "false"):
        raise BadParameter(f"{name} must be true or false, not {text[:64]!r}", field=name)
    return text == "true"


def json_object(request: AnyRequest, body: bytes) -> dict[str, Any]:
    """
    Return the JSON object in *body*; `{}` for none at all.

    Raises:
        UnsupportedMediaType: It claims to be something else.
        Malformed: It is not JSON, or no object.
    """
    body = json_body(request, body)
    if not body.strip():
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"The body is not JSON: {exc}.") from None
    if not isinstance(value, dict):
        raise Malformed("The body must be a JSON object: { … }.")
    return value


def json_body(request: AnyRequest, body: bytes) -> bytes:
    """Return *body* without its encoding, which claims to be JSON. Raises as `json_object`."""
    headers = request.scope["headers"]
    body = decompressed(body, headers, BODY_BYTES_MAX)
    media_type = header(headers, b"content-type").partition(b";")[0].strip().lower()
    if body and media_type not in (b"application/json", b""):
        raise UnsupportedMediaType("Content-Type must be application/json (curl: `--json`)")
    return body


def answer(content: Any, *, status: int = 200) -> Response[bytes]:
    """Return *content* as JSON. No answer is ever to be cached: it is the caller's alone."""
    return Response(
        msgspec.json.encode(content),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def refuse(principal: Principal, what: str) -> Forbidden:
    """Return the refusal of something that *principal*'s kind of key may never do."""
    return Forbidden(f"A {principal.role} key may not {what}.")
