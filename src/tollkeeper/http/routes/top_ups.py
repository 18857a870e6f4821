"""Top-ups of budgets: the operator adds to a budget once, for its running period or until it is used."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.api.paths import PREFIX
from tollkeeper.errors import BadParameter
from tollkeeper.http.routes.calls import (
    BODY_BYTES_MAX,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    answer,
    in_thread,
    json_answer,
    json_object,
    operation,
    params_of,
    service,
)
from tollkeeper.http.routes.fields import fields_of
from tollkeeper.ledger.budget_top_ups import BudgetTopUps, PostedTopUp, TopUpRequest


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of this topic."""
    return [top_up_budget]


class TopUpBody(TopUpRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to add to which budget. *id* makes it safe to repeat: the same id with the same body counts once."""

    account: str | None = None
    """The account whose budget it is, unless the query names it."""


@post(
    f"{PREFIX}/budgets/{{entry_id:str}}/top-up",
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Top up a budget",
            "budgets",
            OPERATOR,
            {
                200: json_answer(PostedTopUp, "It was posted before, by the same id: nothing was added."),
                201: json_answer(PostedTopUp, "Added, durably. The next request may use it."),
            },
            description="Adds to the running period of a budget, or with `until_used` until it is used; the next "
            "period's own amount stays as it is. The budget is named by its id, or by its name in a plan. "
            "A repeat with the same id and body adds nothing.",
            query=(QueryDoc("account", "The account whose budget it is. Or state it in the body."),),
            body=BodyDoc(
                {"application/json": TopUpBody},
                {"account": "acme", "id": "invoice-2026-05", "amount": "5.00"},
            ),
            problems=(404, 409, 413, 415),
        )
    ),
)
@in_thread("management")
def top_up_budget(request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Top up a budget."""
    params = params_of(request, "account")
    raw: dict[str, Any] = json_object(request, body)
    stated = raw.pop("account", None)
    account = params.get("account", stated)
    if not isinstance(account, str):
        raise BadParameter("account is missing: name the account whose budget it is", field="account")
    if stated not in (None, account):
        raise BadParameter("account is not the one of the query: leave one of them out", field="account")
    posted = service(request, BudgetTopUps).post(account, entry_id, fields_of(raw, TopUpRequest))
    return answer(msgspec.to_builtins(posted), status=200 if posted.repeated else 201)
