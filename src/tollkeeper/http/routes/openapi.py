"""
The OpenAPI 3.1 document, made from the routes themselves and the structs that they read and write.

msgspec knows the schema of every struct; the words on its fields come from their docstrings. The hot
endpoints, which are no Litestar handlers, are described here beside their structs of `http.wire`.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from litestar import Litestar, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from tollkeeper.api.events_answer import EventsAnswer
from tollkeeper.api.paths import PREFIX
from tollkeeper.api.price_answers import NoPriceAnswer, PriceAnswer
from tollkeeper.catalog.quantity_amounts import AMOUNTS
from tollkeeper.domain.catalog import KINDS
from tollkeeper.domain.events import Event
from tollkeeper.domain.money_fields import is_money_name, twin_of
from tollkeeper.http import wire
from tollkeeper.http.routes.calls import (
    CUSTOMER,
    NOBODY_ASKED,
    OPERATION,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    Schema,
    context_of,
    in_thread,
    json_answer,
    operation,
)

_REF: Final = "#/components/schemas/{name}"
_PROBLEM_REF: Final = {"$ref": "#/components/schemas/Problem"}
_TEXT_OR_INTEGER: Final = "Whole nanos: text in answers; requests may state text or an integer."
_AMOUNT: Final = (
    'Money (unit `nanos`): text with a decimal point, e.g. "25.00", or whole nanos, text in answers.'
)
_OF_QUANTITY: Final = "Of a quantity (unit `quantity.NAME`): units, as decimal text."
_WHOLE: Final = {"type": "string", "pattern": "^[0-9]{1,19}$"}
_DECIMAL: Final = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"}
_POINTED: Final = {"type": "string", "pattern": r"^[0-9]{1,9}\.[0-9]{1,9}$"}
_OF_ANSWER: Final = (
    "What an answer says of an event; ignored in requests, so that an answer can be sent back."
)
_BODIES_WITH_MONEY: Final = ("Event", "Amendment", "AuthorizeRequest", "SettleRequest")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An RFC 9457 problem document. `code`, the end of `type`, is stable; docs/errors.md lists all."""

    type: str
    title: str
    status: int
    detail: str
    """What is wrong, where, and what to do."""
    code: str
    instance: str | None = None
    """The path that was called."""
    request_id: str | None = None
    """As in the `X-Request-Id` header: quote it when you ask."""
    retryable: bool | None = None
    """Whether the same call may succeed later without a change by the caller."""
    field: str | None = None
    """Path of the field or parameter at fault."""
    limit: str | None = None
    """Name of the limit, budget or balance that refused a request; with `unit`, `allowed`, `used`."""
    unit: str | None = None
    allowed: int | str | None = None
    used: int | str | None = None
    largest_fit: int | str | None = None
    """The largest amount that would have been admitted."""
    retry_after_s: int | None = None
    resets_at: str | None = None


PROBLEM_WORDS: Final = {
    400: "The request cannot be understood: `malformed`, `bad_parameter`, `bad_input`.",
    401: "No credential, or an unknown one: `unauthenticated`.",
    402: "Nothing left to spend: `budget_exhausted`, `credit_exhausted`. It lifts at `resets_at`, if ever.",
    403: "A credential that may not do this: `forbidden`.",
    404: "It does not exist, or is another account's: `not_found`.",
    405: "The path does not take this method: `method_not_allowed`.",
    409: "The present state does not permit it: `conflict`, `idempotency_conflict`, `event_conflict`, `hold_ended`.",
    410: "The record of it has expired, and counts: `detail_expired`.",
    413: "`body_too_large`.",
    415: "`unsupported_media_type`.",
    429: "Too fast, or too many failed authentications: wait for `Retry-After`.",
    500: "The request failed on our side: `internal`, `invariant_broken`.",
    503: "A store cannot do it now: `unavailable`. Retry after `Retry-After`.",
}
_OF_EVERY_OPERATION: Final = (400, 429, 500, 503)
_OF_AUTHENTICATED: Final = (401, 403)
HOT: Final[Mapping[str, OperationDoc]] = {
    f"{PREFIX}/authorize": OperationDoc(
        "Decide a request and hold what it may use",
        "requests",
        OPERATOR,
        {200: json_answer(wire.AuthorizeAnswer, "Admitted; the hold is durable. Settle or void it.")},
        description="A refusal is a problem document that says which limit, how much of it is used, when it "
        "lifts and the largest call that would still fit: 401, 403, 429 or 402, in this order. It consumes "
        "nothing. 401 and 403 with another code than `unauthenticated` and `forbidden` are about the api "
        "key in the body. A request without a key names a `session` or an `account` in its place.",
        body=BodyDoc(
            {"application/json": wire.AuthorizeRequest},
            {
                "key": "tk_…",
                "method": "POST",
                "path": "/v1/chat/completions",
                "model": "gpt-4o",
                "tokens": {"prompt": 1200, "completion": 500},
            },
        ),
        problems=(402, 409, 413),
    ),
    f"{PREFIX}/expect": OperationDoc(
        "Change what an open hold holds",
        "requests",
        OPERATOR,
        {200: json_answer(wire.ExpectAnswer, "The hold as it is now; it is durable.")},
        description="Replaces what a hold sets aside by the real model and the most that the request may use in all, "
        "in one step. A refusal is answered as by `authorize`, and changes nothing: the hold may ask again, and is "
        "counted as refused when it is voided. With `more`, as much of it as fits is held in addition, to the last "
        "token that is paid for; `denial` says why it is not all.",
        body=BodyDoc(
            {"application/json": wire.ExpectRequest},
            {
                "hold_id": "0198c0de-0000-7000-8000-000000000001",
                "model": "gpt-4o",
                "tokens": {"prompt": 1200, "completion": 500},
            },
        ),
        problems=(402, 404, 409, 413),
    ),
    f"{PREFIX}/settle": OperationDoc(
        "Book what a request used",
        "requests",
        OPERATOR,
        {200: json_answer(wire.SettleAnswer, "Booked, durably.")},
        description="Ends a hold. A repeat with the same outcome gets the same answer. A hold that expired "
        "meanwhile is settled late. What was used is stated in one of two forms: `tokens`, whose counts share no "
        "token, or `usage`, the provider's usage object as it was sent, whose counts may include each other.",
        body=BodyDoc(
            {"application/json": wire.SettleRequest},
            {
                "hold_id": "0198c0de-0000-7000-8000-000000000001",
                "status": 200,
                "usage": {
                    "prompt_tokens": 2006,
                    "completion_tokens": 300,
                    "prompt_tokens_details": {"cached_tokens": 1920},
                },
                "usage_of": "openai",
            },
        ),
        problems=(404, 409, 410, 413),
    ),
    f"{PREFIX}/void": OperationDoc(
        "End a hold as if the request never was",
        "requests",
        OPERATOR,
        {200: json_answer(wire.VoidAnswer, "The hold is gone.")},
        body=BodyDoc(
            {"application/json": wire.VoidRequest}, {"hold_id": "0198c0de-0000-7000-8000-000000000001"}
        ),
        problems=(404, 409, 410, 413),
    ),
    f"{PREFIX}/events": OperationDoc(
        "Record events",
        "events",
        CUSTOMER,
        {200: json_answer(EventsAnswer, "What became of each. What was accepted is durable.")},
        description="One event, an array, or NDJSON; gzip too. A repeat of an event counts once. A bad event "
        "never sinks the others: `errors` has its index, field and reason. What was used is stated in one of two "
        "forms: `tokens`, whose counts share no token, or `usage`, the provider's usage object as it was sent.",
        body=BodyDoc(
            {
                "application/json": {
                    "oneOf": [
                        {"$ref": "#/components/schemas/Event"},
                        {"type": "array", "items": {"$ref": "#/components/schemas/Event"}},
                    ]
                },
                "application/x-ndjson": {
                    "type": "string",
                    "description": "One event (the schema `Event`) per line.",
                },
            },
            {
                "id": "0198c0de-0000-7000-8000-000000000001",
                "time": "2026-01-31T09:30:00.125Z",
                "account": "acme",
                "model": "gpt-4o",
                "tokens": {"prompt": 1200, "completion": 80},
            },
        ),
        problems=(413, 415),
    ),
}
"""The endpoints of `http.hot`, by path. They take POST only."""
_CHANGE: Final = {
    "type": "object",
    "description": "What a call did to one entry.",
    "required": ["kind", "id", "account", "action", "fields"],
    "properties": {
        "kind": {"type": "string", "enum": list(KINDS)},
        "id": {"type": "string"},
        "account": {"type": ["string", "null"]},
        "action": {"type": "string", "enum": ["created", "changed", "unchanged", "deleted"]},
        "fields": {
            "type": "object",
            "description": "The old and the new value of each field that changed.",
            "additionalProperties": {"type": "array", "minItems": 2, "maxItems": 2},
        },
        "money": {
            "type": "object",
            "description": "The amounts of the entry as they were understood, by field: decimal text.",
            "additionalProperties": {"type": "string"},
        },
        "warnings": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Amounts that look like a slip: less than a cent. Absent without any.",
        },
        "note": {
            "type": "string",
            "description": "Why apply left the entry as it is although the file says otherwise; absent if it did not.",
        },
    },
}
_ISSUED_KEY: Final = {
    "type": "object",
    "required": ["entry", "secret"],
    "properties": {
        "entry": {"$ref": "#/components/schemas/Key"},
        "secret": {
            "type": ["string", "null"],
            "description": "Shown now and never again; null for a key whose hash was brought.",
        },
    },
}
_ISSUED_WEBHOOK: Final = {
    "type": "object",
    "description": "A webhook that was created, and what signs its messages.",
    "required": ["entry", "secret"],
    "properties": {
        "entry": {"$ref": "#/components/schemas/Webhook"},
        "secret": {"type": "string", "description": "Shown now and never again."},
    },
}
_KEY_READ_ONLY: Final = {
    "prefix": "What may be shown of the secret; null for an imported key.",
    "updated_at": "When it last changed.",
    "last_used_at": "When it was last admitted, known within seconds; null if never.",
    "revoked_at": "When it was revoked or deleted; null if it was not.",
    "replaced_by": "The key that a rotation put in its place.",
}
_GRANT_READ_ONLY: Final = {
    "remaining_nanos": "What is left of it, as of the last commit; null until it is on the balance.",
    "revoked_at": "When it was taken back; null while it was not.",
}


def handlers() -> list[HTTPRouteHandler]:
    """Return the handler that serves the document."""
    return [openapi_json]


@get(
    f"{PREFIX}/openapi.json",
    opt=operation(
        OperationDoc(
            "This document",
            "health",
            NOBODY_ASKED,
            {200: json_answer({"type": "object"}, "OpenAPI 3.1.")},
        )
    ),
)
@in_thread("management")
def openapi_json(request: AnyRequest) -> Response[bytes]:
    """Serve the document."""
    document = openapi_document(request.app, context_of(request).version)
    return Response(msgspec.json.encode(document), media_type="application/json")


def openapi_document(app: Litestar, version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of *app* and of the hot endpoints, as plain values."""
    endpoints = sorted([*_endpoints(app), *((path, "post", of) for path, of in HOT.items())], key=_place)
    paths: dict[str, dict[str, Any]] = {}
    for path, method, of in endpoints:
        # `/tk/v1/metrics` has what `/metrics` has, and a name of its own.
        named = path.removeprefix(PREFIX)
        name = path if named != path and named in paths else named
        paths.setdefault(path, {})[method] = _operation(path, method, of, name)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollkeeper",
            "version": version,
            "description": "API keys, budgets, rate limits and usage. Money is in nanos (1 USD = 10**9), "
            "as text in answers; requests may state it as decimal text too (docs/money.md). "
            "Instants are RFC 3339. Every error is an RFC 9457 problem document.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted({of.tag for _, _, of in endpoints})],
        "paths": paths,
        "components": {
            "schemas": _schemas(of for _, _, of in endpoints),
            "responses": {
                f"Problem{status}": {
                    "description": words,
                    "content": {"application/problem+json": {"schema": _PROBLEM_REF}},
                }
                for status, words in PROBLEM_WORDS.items()
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An operator key (`ok_`), a management key (`mk_`) or a consumption key.",
                },
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _endpoints(app: Litestar) -> Iterator[tuple[str, str, OperationDoc]]:
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        for handler in route.route_handlers:
            of = handler.opt.get(OPERATION)
            if isinstance(of, OperationDoc):
                for method in handler.http_methods:
                    yield path, method.lower(), of


def _place(found: tuple[str, str, OperationDoc]) -> tuple[str, str]:
    return found[0], found[1]


def _operation(path: str, method: str, of: OperationDoc, name: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method}_{name.strip('/')}").strip("_"),
        "summary": of.summary,
        "tags": [of.tag],
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"\{(\w+)\}", path)
            ),
            *(_parameter(query) for query in of.query),
        ],
        "responses": _responses(of),
    }
    who = f"Takes {_listed(sorted(of.roles))} key." if of.roles else "Takes no key."
    operation["description"] = f"{of.description} {who}".strip()
    operation["security"] = [{"bearer": []}, {"apiKey": []}] if of.roles else []
    if of.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(of.body)}
    return operation


def _listed(roles: list[str]) -> str:
    words = [f"{'an' if role[0] in 'aeiou' else 'a'} {role}" for role in roles]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _parameter(query: QueryDoc) -> dict[str, Any]:
    return {
        "name": query.name,
        "in": "query",
        "required": query.required,
        "description": query.description,
        "schema": dict(query.schema),
    }


def _responses(of: OperationDoc) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, sent in of.answers.items():
        responses[str(status)] = {"description": sent.description, "content": _content(sent)}
    problems = {*_OF_EVERY_OPERATION, *of.problems, *(_OF_AUTHENTICATED if of.roles else ())}
    for status in sorted(problems - set(of.answers)):
        responses[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    return responses


def _content(sent: BodyDoc) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type, schema in sent.content.items():
        content[media_type] = {"schema": _schema(schema)}
    if sent.example is not None and content:
        next(iter(content.values()))["example"] = sent.example
    return content


def _schema(of: type | Schema) -> dict[str, Any]:
    return {"$ref": _REF.format(name=of.__name__)} if isinstance(of, type) else dict(of)


def _schemas(endpoints: Iterable[OperationDoc]) -> dict[str, Any]:
    types: dict[str, type] = {entry.__name__: entry for entry in KINDS.values()}
    types |= {"Event": Event, "Problem": Problem}
    types |= {answer.__name__: answer for answer in (PriceAnswer, NoPriceAnswer)}
    for of in endpoints:
        for sent in (*of.answers.values(), *([of.body] if of.body is not None else [])):
            types |= {each.__name__: each for each in sent.content.values() if isinstance(each, type)}
    _, schemas = msgspec.json.schema_components(list(types.values()), ref_template=_REF)
    structs = {struct.__name__: struct for struct in _structs(types.values())}
    for name, schema in schemas.items():
        _describe(schema, structs.get(name))
    for entry in KINDS.values():
        _allow_text(schemas[entry.__name__])
        _allow_from_url(schemas[entry.__name__], entry.id_field)
    for name in ("Limit", "PlanBudget", *_BODIES_WITH_MONEY):
        _allow_text(schemas[name])
    key = schemas["Key"]["properties"]
    key["sha256"]["writeOnly"] = True
    for name, words in _KEY_READ_ONLY.items():
        key[name] = {"type": ["string", "null"], "readOnly": True, "description": words}
    for name in ("received_at", "cost_state", "price_version"):
        schemas["Event"]["properties"][name] = {"type": "string", "readOnly": True, "description": _OF_ANSWER}
    for name, kind in (("revision", "integer"), ("voided", "boolean")):
        schemas["Event"]["properties"][name] = {"type": kind, "readOnly": True, "description": _OF_ANSWER}
    for name, words in _GRANT_READ_ONLY.items():
        schemas["Grant"]["properties"][name] = {
            "type": ["string", "null"],
            "readOnly": True,
            "description": words,
        }
    schemas |= {"Change": _CHANGE, "IssuedKey": _ISSUED_KEY, "IssuedWebhook": _ISSUED_WEBHOOK}
    return dict(sorted(schemas.items()))


def _structs(types: Iterable[type]) -> Iterator[type[msgspec.Struct]]:
    """Yield every struct that *types* are made of."""
    seen: set[type] = set()
    waiting: list[Any] = list(types)
    while waiting:
        found = waiting.pop()
        if isinstance(found, type) and issubclass(found, msgspec.Struct):
            if found not in seen:
                seen.add(found)
                yield found
                waiting += [field.type for field in msgspec.structs.fields(found)]
        else:
            waiting += getattr(found, "__args__", ())


def _describe(schema: dict[str, Any], struct: type[msgspec.Struct] | None) -> None:
    """Put the docstrings of *struct* and of its fields into its schema."""
    if struct is None:
        return
    schema["description"] = inspect.cleandoc(struct.__doc__ or "").partition("\n\nAttributes:")[0]
    for name, words in _field_words(struct).items():
        if name in schema.get("properties", {}):
            schema["properties"][name]["description"] = words


def _field_words(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the docstring below each field of *struct*; nothing when its source is not at hand."""
    try:
        source = inspect.getsource(struct)
    except OSError:
        return {}
    body = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(body, ast.ClassDef)
    names = {field.name: field.encode_name for field in msgspec.structs.fields(struct)}
    words = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            words[names.get(field.target.id, field.target.id)] = inspect.cleandoc(after.value.value)
    return words


def _allow_from_url(schema: dict[str, Any], id_field: str) -> None:
    """Let a request leave out what its URL says: the id, and the account."""
    for name, words in (
        (id_field, "Requests may leave it out where the path says it."),
        ("account", "Requests may leave it out where the query or the key says it."),
    ):
        if name in schema.get("required", ()):
            schema["required"].remove(name)
            schema["properties"][name]["description"] = words


def _allow_text(schema: dict[str, Any]) -> None:
    """Let money be text, under the name of its nanos or of its twin: see `domain.money_fields`."""
    properties = schema["properties"]
    for name, found in list(properties.items()):
        is_amount = name in AMOUNTS and "unit" in properties
        if not (is_money_name(name) or is_amount):
            continue
        kept = {key: found[key] for key in ("description", "default") if key in found}
        bare = {key: value for key, value in found.items() if key not in kept}
        options = bare.get("anyOf", [bare])
        note = f"{_AMOUNT} {_OF_QUANTITY}" if is_amount else _TEXT_OR_INTEGER
        kept["description"] = f"{kept['description']} {note}" if "description" in kept else note
        texts = [_WHOLE, _POINTED] if is_amount else [_WHOLE]
        properties[name] = {"anyOf": [*options, *texts], **kept}
        if is_amount:
            continue
        properties[twin_of(name)] = {
            "anyOf": [_DECIMAL, *options],
            "writeOnly": True,
            "description": f'In place of `{name}`: money as decimal text, e.g. "25.00".',
        }
        if name in schema.get("required", ()):
            schema["required"].remove(name)
