"""Single events: read, amend, void. A customer reads its own; the operator corrects."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.api.paths import PREFIX
from tollkeeper.domain.events import Event, Record, record_to_event
from tollkeeper.errors import BadParameter
from tollkeeper.gate.gate import Gate
from tollkeeper.http.paths import segment_text
from tollkeeper.http.routes.calls import (
    BODY_BYTES_MAX,
    CUSTOMER,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    account_in_scope,
    answer,
    in_thread,
    json_answer,
    json_object,
    now_us_of,
    operation,
    params_of,
    principal_of,
    service,
)
from tollkeeper.http.routes.fields import Amendment, VoidEventRequest, fields_of
from tollkeeper.meter.amend import Amend, Correction
from tollkeeper.usage.event_lookup import EventLookup

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


class CorrectionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The event as it stands now."""

    event: dict[str, Any]
    correction_id: str
    repeated: bool
    """Whether this answers a repeat, which changed nothing."""


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of single events."""
    return [get_event, amend_event, void_event]


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
