"""Money back and forth by hand: adjustments of an account, and grants that are taken back. The operator's alone."""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.api.adjustments import AdjustmentAnswer, adjustment_answer, adjustment_of
from tollkeeper.api.entry_json import change_json
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.manage import Manage
from tollkeeper.http.routes.calls import (
    BODY_BYTES_MAX,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    answer,
    context_of,
    in_thread,
    json_answer,
    json_object,
    operation,
    params_of,
    service,
)
from tollkeeper.http.routes.limit_status import Balance, balance_of
from tollkeeper.ledger.balances import Balances
from tollkeeper.meter.adjustments import Adjustments

_TEXT: Final = {"type": "string"}
_MONEY: Final = {"type": ["string", "integer"]}
ADJUSTMENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["account", "reason"],
    "description": "Money up (above 0, in the customer's favour) or down. What an answer shows is accepted again.",
    "properties": {
        "id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "description": "Names it among the events of the account: the same id again is the same adjustment. "
            "Without one, each call is another.",
        },
        "account": {"type": "string", "description": "Whose money."},
        "amount": {**_MONEY, "description": 'Decimal text, e.g. "25.00"; a whole number is nanos.'},
        "amount_nanos": {**_MONEY, "description": "In place of `amount`: whole nanos."},
        "reason": {"type": "string", "minLength": 1, "maxLength": 256},
        "event": {"type": "string", "maxLength": 256, "description": "The event that it corrects, if any."},
        "key_id": {
            "type": "string",
            "description": "Moves what this key's requests are charged to, in place of the account's budgets and "
            "credit.",
        },
        "project": {"type": "string", "description": "Moves the budgets of this project too."},
        "time": {
            "type": "string",
            "format": "date-time",
            "description": "When it counts; the time of the call unless given.",
        },
        "received_at": {**_TEXT, "format": "date-time", "readOnly": True},
        "voided": {"type": "boolean", "readOnly": True},
    },
}
_EXAMPLE: Final = {
    "id": "goodwill-7",
    "account": "acme",
    "amount": "25.00",
    "reason": "outage of 3 May",
    "event": "0198c0de-0000-7000-8000-000000000001",
}


class RevokedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a revocation did (`unchanged` for a repeat), and the balance that it left."""

    change: dict[str, Any]
    balance: Balance


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of adjustments and revocations."""
    return [post_adjustment, revoke_grant]


@post(
    f"{PREFIX}/adjustments",
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Adjust an account's money",
            "accounts",
            OPERATOR,
            {
                200: json_answer(AdjustmentAnswer, "It was booked before; nothing changed."),
                201: json_answer(AdjustmentAnswer, "It is booked, durably."),
            },
            description="Goodwill, refunds, corrections by hand. It is no request and no cost: budgets and the credit "
            "balance move by it, and usage has it as `adjustments_nanos`. To take it back, void it like an event.",
            body=BodyDoc({"application/json": ADJUSTMENT_SCHEMA}, _EXAMPLE),
            problems=(404, 409, 410, 413, 415),
        )
    ),
)
@in_thread("events")
def post_adjustment(request: AnyRequest, body: RawBody) -> Response[bytes]:
    """Adjust an account's money."""
    params_of(request)
    raw = json_object(request, body)
    raw.setdefault("id", str(uuid.uuid4()))
    adjusted = service(request, Adjustments).post(adjustment_of(raw))
    return answer(adjustment_answer(adjusted), status=200 if adjusted.repeated else 201)


@post(
    f"{PREFIX}/grants/{{entry_id:str}}/revoke",
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Revoke a grant",
            "grants",
            OPERATOR,
            {200: json_answer(RevokedAnswer, "The grant is revoked; a repeat changes nothing.")},
            description="As if it had never been given: what is left of it goes, and what was spent of it is drawn on "
            "the rest of the balance, then overdraft. Nothing is a request or a cost.",
            query=(QueryDoc("account", "The account that the grant belongs to.", required=True),),
            problems=(404,),
        )
    ),
)
@in_thread("management")
def revoke_grant(request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
    """Revoke a grant."""
    params = params_of(request, "account")
    change = service(request, Manage).revoke_grant(params.get("account"), entry_id)
    account_id = change.account_id
    assert account_id is not None
    now = context_of(request).clock.now()
    left = balance_of(service(request, Balances).of(account_id), account_id, now)
    return answer(RevokedAnswer(change=change_json(change), balance=left))
