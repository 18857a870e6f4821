"""Single events: list, read, amend, void. A customer reads its own; the operator corrects."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.api.event_answer import event_list
from tollkeeper.api.event_params import parse_event_query
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.event_pages import EVENTS_PER_PAGE, EVENTS_PER_PAGE_MAX
from tollkeeper.domain.events import Event, Record, record_to_event
from tollkeeper.errors import BadParameter
from tollkeeper.gate.gate import Gate
from tollkeeper.http.paths import segment_text
from tollkeeper.http.routes.calls import (
    ANYBODY,
    BODY_BYTES_MAX,
    CUSTOMER,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    account_in_scope,
    answer,
    context_of,
    in_thread,
    json_answer,
    json_object,
    no_such_account,
    now_us_of,
    operation,
    params_of,
    principal_of,
    query_pairs,
    service,
)
from tollkeeper.http.routes.fields import Amendment, VoidEventRequest, fields_of
from tollkeeper.http.routes.usage import FILTER_DOCS, scope_of
from tollkeeper.meter.amend import Amend, Correction
from tollkeeper.usage.event_lookup import EventLookup
from tollkeeper.usage.event_pages import EventPages

_ACCOUNT: Final = QueryDoc("account", "Whose event; needed only when several accounts use the same event id.")
_EXAMPLE: Final = {
    "id": "0198c0de-0000-7000-8000-000000000001",
    "time": "2026-01-31T09:30:00.125000Z",
    "received_at": "2026-01-31T09:30:00.250000Z",
    "account": "acme",
    "key_id": "k1",
    "kind": "request",
    "status": 200,
    "model": "gpt-4o",
    "tokens": {"prompt": 1200, "completion": 80},
    "cost_nanos": "3800000",
    "cost_state": "priced",
    "revision": 0,
    "voided": False,
}
_EVENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "time", "received_at", "account", "cost_nanos", "cost_state", "revision", "voided"],
    "description": "An event as it was booked, with the fields that it was sent with and those below. Absent "
    "values are left out.",
    "properties": {
        "id": {"type": "string"},
        "time": {"type": "string", "format": "date-time"},
        "received_at": {"type": "string", "format": "date-time"},
        "account": {"type": "string"},
        "cost_nanos": {"type": "string", "description": "In nanos."},
        "estimated_cost_nanos": {"type": "string", "description": "In nanos."},
        "provider_cost_nanos": {"type": "string", "description": "In nanos; for the operator only."},
        "quantities": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Name → units, as decimal text. Token classes without a column are among them.",
        },
        "variant": {"type": "string", "description": "Of the model."},
        "adjustment_nanos": {
            "type": "string",
            "description": "In nanos: money given (above 0) or taken. The event is an adjustment, no request.",
        },
        "cost_state": {"type": "string", "enum": ["given", "priced", "estimated", "unpriced", "free"]},
        "price_version": {"type": "string"},
        "revision": {"type": "integer", "description": "How often it was amended or repriced."},
        "voided": {"type": "boolean"},
    },
}

_LISTED_SCHEMA: Final[dict[str, Any]] = {
    **_EVENT_SCHEMA,
    "required": [*_EVENT_SCHEMA["required"], "price"],
    "properties": {
        **_EVENT_SCHEMA["properties"],
        "denied_reason": {"type": "string", "description": "Why our gate refused it; absent if it did not."},
        "price": {
            "type": "object",
            "required": ["why", "lines"],
            "description": "How the cost came about, as far as it is known today.",
            "properties": {
                "why": {"type": "string"},
                "lines": {
                    "type": "array",
                    "description": "Their sum, rounded half up to the nano, is `cost_nanos`. Empty where the cost was "
                    "stated, or a price has changed since.",
                    "items": {
                        "type": "object",
                        "required": ["of", "amount", "nanos"],
                        "properties": {
                            "of": {
                                "type": "string",
                                "description": "A token class, a unit, `request` or `route`.",
                            },
                            "amount": {"type": "string", "description": "Tokens or units, decimal text."},
                            "rate_nanos_per_million": {"type": "string"},
                            "rate_nanos": {"type": "string", "description": "Of a request or a route."},
                            "nanos": {"type": "string", "description": "What it comes to, decimal text."},
                        },
                    },
                },
            },
        },
        "corrections": {
            "type": "array",
            "description": "What was amended, oldest first; absent if nothing was.",
            "items": {
                "type": "object",
                "required": ["id", "at", "revision", "changed"],
                "properties": {
                    "id": {"type": "string"},
                    "at": {"type": "string", "format": "date-time"},
                    "revision": {"type": "integer"},
                    "changed": {
                        "type": "object",
                        "description": "Field → its value before and after.",
                        "additionalProperties": {"type": "array", "minItems": 2, "maxItems": 2},
                    },
                },
            },
        },
    },
}
_LIST_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": [
        "events",
        "next_cursor",
        "from",
        "to",
        "as_of",
        "complete",
        "behind_s",
        "detail_from",
        "lacks_detail",
    ],
    "properties": {
        "events": {"type": "array", "items": _LISTED_SCHEMA},
        "next_cursor": {
            "type": ["string", "null"],
            "description": "`cursor` of the next page; null at the end. A page may have fewer events than `limit`, or "
            "none, and a next one.",
        },
        "from": {"type": "string", "format": "date-time"},
        "to": {"type": "string", "format": "date-time"},
        "as_of": {"type": "string", "format": "date-time"},
        "complete": {
            "type": "boolean",
            "description": "Whether every event that was acknowledged before `as_of` is in its page.",
        },
        "behind_s": {"type": "integer", "description": "How long the oldest missing event has waited."},
        "detail_from": {
            "type": ["string", "null"],
            "description": "From then on all single events are kept; null: all are kept.",
        },
        "lacks_detail": {
            "type": "boolean",
            "description": "The page reaches back before `detail_from`, and lacks the events that have expired.",
        },
    },
}
_LIST_EXAMPLE: Final = {
    "events": [
        _EXAMPLE
        | {
            "price": {
                "why": "By prices:ours.",
                "lines": [
                    {
                        "of": "prompt_tokens",
                        "amount": "1200",
                        "rate_nanos_per_million": "2500000000",
                        "nanos": "3000000",
                    },
                    {
                        "of": "completion_tokens",
                        "amount": "80",
                        "rate_nanos_per_million": "10000000000",
                        "nanos": "800000",
                    },
                ],
            }
        }
    ],
    "next_cursor": "q83vEjRWeJCT",
    "from": "2000-01-01T00:00:00.000000Z",
    "to": "2026-01-31T10:00:00.000000Z",
    "as_of": "2026-01-31T09:30:00.500000Z",
    "complete": True,
    "behind_s": 0,
    "detail_from": None,
    "lacks_detail": False,
}


class CorrectionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The event as it stands now."""

    event: dict[str, Any]
    correction_id: str
    repeated: bool
    """Whether this answers a repeat, which changed nothing."""


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of single events."""
    return [list_events, get_event, amend_event, void_event]


@get(
    f"{PREFIX}/events",
    opt=operation(
        OperationDoc(
            "List events",
            "events",
            ANYBODY,
            {200: json_answer(_LIST_SCHEMA, "A page of events.", _LIST_EXAMPLE)},
            description="Single events as they stand, newest first, with the filters of the usage query. The answer "
            "contains the request that was answered a millisecond ago. What is booked meanwhile moves no page. A "
            "management key lists the events of its account, a consumption key its own.",
            query=(
                QueryDoc("account", "Whose events; several, or all without it: the operator only."),
                QueryDoc("from", "Date or RFC 3339 date-time from which on events are listed."),
                QueryDoc("to", "Date or date-time before which they are; the coming full hour by default."),
                QueryDoc("time_zone", "IANA name; dates begin at its midnight. UTC by default."),
                QueryDoc(
                    "limit",
                    "Events per page.",
                    {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": EVENTS_PER_PAGE_MAX,
                        "default": EVENTS_PER_PAGE,
                    },
                ),
                QueryDoc(
                    "cursor", "The `next_cursor` of the page before, with the same account and filters."
                ),
                QueryDoc(
                    "denied",
                    "Only requests that a limit refused, or only others; both by default.",
                    {"type": "string", "enum": ["true", "false"]},
                ),
                *FILTER_DOCS,
            ),
            problems=(404, 429),
        )
    ),
)
@in_thread("usage")
def list_events(request: AnyRequest) -> Response[bytes]:
    """List events, newest first."""
    principal = principal_of(request)
    query = parse_event_query(
        query_pairs(request),
        scope=scope_of(principal),
        now=context_of(request).clock.now(),
    )
    if query.account_id is not None and service(request, Directory).account(query.account_id) is None:
        raise no_such_account()
    page = service(request, EventPages).page(query)
    return answer(event_list(query, page, for_operator=principal.role == "operator"))


@get(
    f"{PREFIX}/events/{{event_id:str}}",
    opt=operation(
        OperationDoc(
            "Get an event",
            "events",
            CUSTOMER,
            {200: json_answer(_EVENT_SCHEMA, "The event as it stands.", _EXAMPLE)},
            query=(_ACCOUNT,),
            problems=(404, 410),
        )
    ),
)
@in_thread("events")
def get_event(request: AnyRequest, event_id: FromPath[str]) -> Response[bytes]:
    """Return an event as it stands."""
    params = params_of(request, "account")
    events, event_id = service(request, EventLookup), segment_text(event_id)
    account = account_in_scope(principal_of(request), params.get("account"))
    shown = _event_json(events.record(event_id, events.owner(event_id, account)))
    if principal_of(request).role != "operator":
        # What the provider pays tells what it earns.
        shown.pop("provider_cost_nanos", None)
    return answer(shown)


@post(
    f"{PREFIX}/events/{{event_id:str}}/amend",
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Amend an event",
            "events",
            OPERATOR,
            {200: json_answer(CorrectionAnswer, "The event as it stands now.")},
            description="The old record is kept beside the new one; totals count the new one. Without `correction_id` "
            "one is made, and a retry is another correction: it is not safe.",
            query=(_ACCOUNT,),
            body=BodyDoc(
                {"application/json": Amendment}, {"correction_id": "job-7-done", "cost_nanos": 1250000}
            ),
            problems=(404, 410, 413, 415),
        )
    ),
)
@in_thread("events")
def amend_event(request: AnyRequest, event_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Amend an event."""
    params = params_of(request, "account")
    event_id = segment_text(event_id)
    asked = fields_of(json_object(request, body), Amendment)
    stated = {
        name: value
        for name in asked.__struct_fields__
        if name != "correction_id" and (value := getattr(asked, name)) is not None
    }
    if not stated:
        raise BadParameter("the amendment states nothing: name a field to change", field="body")
    correction_id = asked.correction_id or service(request, Gate).new_id(now_us_of(request))
    account = service(request, EventLookup).owner(event_id, params.get("account"))
    changes = Event(id=event_id, time="", **stated)
    return _corrected(service(request, Amend).amend(account, event_id, correction_id, changes), correction_id)


@post(
    f"{PREFIX}/events/{{event_id:str}}/void",
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Void an event",
            "events",
            OPERATOR,
            {200: json_answer(CorrectionAnswer, "The event, out of all totals.")},
            description="The record is kept and leaves all totals. Without `correction_id` one is made, and a retry "
            "gets 404: the event is void already.",
            query=(_ACCOUNT,),
            body=BodyDoc({"application/json": VoidEventRequest}, {"correction_id": "refund-7"}),
            problems=(404, 410, 413, 415),
        )
    ),
)
@in_thread("events")
def void_event(request: AnyRequest, event_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Void an event."""
    params = params_of(request, "account")
    event_id = segment_text(event_id)
    asked = fields_of(json_object(request, body), VoidEventRequest)
    correction_id = asked.correction_id or service(request, Gate).new_id(now_us_of(request))
    account = service(request, EventLookup).owner(event_id, params.get("account"))
    return _corrected(service(request, Amend).void(account, event_id, correction_id), correction_id)


def _event_json(record: Record) -> dict[str, Any]:
    return {**record_to_event(record), "voided": record.sign < 0}


def _corrected(correction: Correction, correction_id: str) -> Response[bytes]:
    return answer(
        CorrectionAnswer(
            event=_event_json(correction.record),
            correction_id=correction_id,
            repeated=correction.repeated,
        )
    )
