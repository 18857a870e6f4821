"""The state of an account and of a key: the credit balance, and the remainder of each limit and budget."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from tollkeeper.api.key_status import KeyStatus, facts_of, key_status_of
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.manage import Manage
from tollkeeper.domain.instants import to_text
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.errors import NotFound
from tollkeeper.gate.gate import Gate
from tollkeeper.http.routes.calls import (
    ANYBODY,
    CUSTOMER,
    AnyRequest,
    OperationDoc,
    QueryDoc,
    account_in_scope,
    answer,
    context_of,
    in_thread,
    json_answer,
    no_such_account,
    now_us_of,
    operation,
    params_of,
    principal_of,
    service,
)
from tollkeeper.ledger.balances import Balances, CreditState


class GrantStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The remainder of one grant. Grants are listed in the order in which they are spent."""

    id: str
    amount_nanos: str
    """What it adds to the balance: 0 once it is revoked."""
    remaining_nanos: str
    priority: int
    expires_at: str | None
    expired: bool
    """The remainder of an expired grant cannot be spent, except by requests of before that are booked late."""
    revoked_at: str | None
    """When it was taken back; null while it was not."""


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """
    An account's credit. `available_nanos` is `balance_nanos` less `held_nanos`.

    The amount settled beyond the grants is `overdraft_nanos`; the balance is then negative. The amount given back
    beyond what was spent is `surplus_nanos`: it is spent first, and never expires. One of the two is 0.
    """

    account: str
    balance_nanos: str
    held_nanos: str
    available_nanos: str
    spent_nanos: str
    overdraft_nanos: str
    surplus_nanos: str
    grants: list[GrantStatus]


_BALANCE_EXAMPLE: Final = {
    "account": "acme",
    "balance_nanos": "4000000000",
    "held_nanos": "0",
    "available_nanos": "4000000000",
    "spent_nanos": "1000000000",
    "overdraft_nanos": "0",
    "surplus_nanos": "0",
    "grants": [
        {
            "id": "welcome",
            "amount_nanos": "5000000000",
            "remaining_nanos": "4000000000",
            "priority": 100,
            "expires_at": None,
            "expired": False,
            "revoked_at": None,
        }
    ],
}


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of balances and key states."""
    return [balance, key_state]


@get(
    f"{PREFIX}/accounts/{{entry_id:str}}/balance",
    opt=operation(
        OperationDoc(
            "Credit balance of an account",
            "accounts",
            CUSTOMER,
            {200: json_answer(Balance, "The balance, as of the last commit.", _BALANCE_EXAMPLE)},
            problems=(404,),
        )
    ),
)
@in_thread("management")
def balance(request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
    """Tell an account's credit."""
    params_of(request)
    account_in_scope(principal_of(request), entry_id)
    if service(request, Directory).account(entry_id) is None:
        raise no_such_account()
    return answer(
        balance_of(service(request, Balances).of(entry_id), entry_id, context_of(request).clock.now())
    )


@get(
    f"{PREFIX}/keys/{{entry_id:str}}/state",
    opt=operation(
        OperationDoc(
            "What a key has left",
            "keys",
            ANYBODY,
            {200: json_answer(KeyStatus, "Each limit, budget and balance of the key.")},
            description="A consumption key may ask about itself.",
            query=(
                QueryDoc("account", "The account that the key belongs to."),
                QueryDoc("model", "Of limits and budgets per model: that of this model."),
                QueryDoc(
                    "tag.{name}",
                    "Of those per tag: that of this value. The name is part of the parameter: tag.user=u1.",
                ),
            ),
            problems=(404,),
        )
    ),
)
@in_thread("management")
def key_state(request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
    """Tell what a key has left."""
    params = params_of(request, "account", "model", tags=True)
    principal = principal_of(request)
    account = account_in_scope(principal, params.get("account"))
    facts = facts_of(params)
    if principal.role == "consumption" and entry_id != principal.key_id:
        raise NotFound("there is no such entry among the keys")
    stored = service(request, Manage).stored_key(account, entry_id)
    directory, gate = service(request, Directory), service(request, Gate)
    return answer(key_status_of(stored, directory, gate, now_us_of(request), facts))


def balance_of(state: CreditState, account_id: str, now: datetime) -> Balance:
    """Return the credit of an account as the API shows it."""
    book, held_nanos = state
    nanos = book.balance_nanos(now)
    return Balance(
        account=account_id,
        balance_nanos=str(nanos),
        held_nanos=str(held_nanos),
        available_nanos=str(nanos - held_nanos),
        spent_nanos=str(book.spent_nanos),
        overdraft_nanos=str(book.overdraft_nanos),
        surplus_nanos=str(book.surplus_nanos),
        grants=[
            GrantStatus(
                id=grant.grant_id,
                amount_nanos=str(grant.amount_nanos),
                remaining_nanos=str(grant.remaining_nanos),
                priority=grant.priority,
                expires_at=None if grant.expires_at >= FAR_FUTURE else to_text(grant.expires_at),
                expired=grant.expires_at <= now,
                revoked_at=None if grant.revoked_at is None else to_text(grant.revoked_at),
            )
            for grant in book.grants
        ],
    )
