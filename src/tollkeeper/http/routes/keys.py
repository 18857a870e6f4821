"""
Keys beyond their entry: issue, rotate, set the state; and what a management key may do to keys.

A customer's management key makes and manages consumption keys of its own account. Plan, limits and profile stay
the operator's; that no key becomes freer is for `domain.bounds`, which `catalog.manage` asks.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, cast

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.api.entry_json import change_json, issued_key_json, key_json
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.changes import IssuedKey
from tollkeeper.catalog.entry_parsing import entry_from
from tollkeeper.catalog.key_rules import CUSTOMER_KEY_FIELDS
from tollkeeper.catalog.manage import Manage
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Entry, KeyState
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.http.auth import Principal
from tollkeeper.http.routes.calls import (
    BODY_BYTES_MAX,
    CUSTOMER,
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
    refuse,
    service,
)
from tollkeeper.http.routes.fields import RotateRequest, StateRequest, fields_of

_SET_BY_MANAGEMENT: Final = (*CUSTOMER_KEY_FIELDS, "type")
"""In a new key. Whether it may is for `domain.bounds`."""


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers that only keys have."""
    return [rotate_key, set_key_state]


@post(
    f"{PREFIX}/keys/{{entry_id:str}}/rotate",
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Rotate a key",
            "keys",
            CUSTOMER,
            {201: json_answer({"$ref": "#/components/schemas/IssuedKey"}, "The new key and its secret.")},
            description="Makes a key like it with another secret and the next id (`acme-prod-2`); the old one ends "
            "after `overlap_s`. "
            "Both share their limits and budgets.",
            query=(QueryDoc("account", "The account that the key belongs to."),),
            body=BodyDoc({"application/json": RotateRequest}, {"overlap_s": 86400}),
            problems=(404, 409, 413, 415),
        )
    ),
)
@in_thread("management")
def rotate_key(request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Rotate a key."""
    params = params_of(request, "account")
    manage, principal = service(request, Manage), principal_of(request)
    account = account_in_scope(principal, params.get("account"))
    check_manageable(manage, principal, entry_id)
    asked = fields_of(json_object(request, body), RotateRequest)
    made = manage.rotate_key(account, entry_id, asked.overlap_s, by=customer_of(principal), new_id=asked.id)
    return issued(request, made)


@post(
    f"{PREFIX}/keys/{{entry_id:str}}/state",
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Set the state of a key",
            "keys",
            CUSTOMER,
            {
                200: json_answer(
                    {
                        "type": "object",
                        "required": ["entry", "change"],
                        "properties": {
                            "entry": {"$ref": "#/components/schemas/Key"},
                            "change": {"$ref": "#/components/schemas/Change"},
                        },
                    },
                    "The state is in force.",
                )
            },
            description="A revoked key never works again; a deleted one keeps its id and secret taken. "
            "A repeat changes nothing.",
            query=(QueryDoc("account", "The account that the key belongs to."),),
            body=BodyDoc({"application/json": StateRequest}, {"state": "revoked"}),
            problems=(404, 409, 413, 415),
        )
    ),
)
@in_thread("management")
def set_key_state(request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Set the state of a key."""
    params = params_of(request, "account")
    manage, principal = service(request, Manage), principal_of(request)
    account = account_in_scope(principal, params.get("account"))
    check_manageable(manage, principal, entry_id)
    asked = fields_of(json_object(request, body), StateRequest)
    change = manage.set_key_state(account, entry_id, cast("KeyState", asked.state), by=customer_of(principal))
    stored = manage.stored_key(account, entry_id)
    return answer({"entry": key_json(stored, now_us_of(request)), "change": change_json(change)})


def customer_of(principal: Principal) -> Customer | None:
    """Return the customer that a credential stands for; None for the operator."""
    if principal.account_id is None:
        return None
    return Customer(principal.account_id, principal.key_id)


def issued(request: AnyRequest, key: IssuedKey) -> Response[bytes]:
    """Return the answer that shows a new key's secret."""
    return answer(issued_key_json(service(request, Manage), key, now_us_of(request)), status=201)


def check_manageable(manage: Manage, principal: Principal, key_id: str) -> None:
    """
    Check that *principal* may change a key.

    Raises:
        NotFound: Its account has no such key.
        Forbidden: It is a management key, which only the operator changes.
    """
    if principal.role == "operator":
        return
    stored = manage.stored_key(principal.account_id, key_id)
    if stored.entry.role != "consumption":
        raise refuse(principal, "change management keys")


def new_by_management(manage: Manage, principal: Principal, raw: dict[str, Any]) -> dict[str, Any]:
    """
    Return the fields of a new key that a management key asks for.

    Raises:
        Forbidden: It sets what is the operator's.
    """
    for name in raw:
        if name not in (*_SET_BY_MANAGEMENT, "account"):
            raise refuse(principal, f"set {name} of a key")
    assert principal.key_id is not None
    own = manage.stored_key(principal.account_id, principal.key_id).entry
    return {**raw, "profile": own.profile}


def changed_by_management(manage: Manage, principal: Principal, raw: dict[str, Any], now_us: int) -> Entry:
    """
    Return the key after a management key's PUT: fields that it must not set stay.

    Raises:
        NotFound: Its account has no such key.
        Forbidden: It states another value of a field that is the operator's.
    """
    check_manageable(manage, principal, raw["id"])
    stored = manage.stored_key(principal.account_id, raw["id"])
    kept = msgspec.to_builtins(stored.entry, builtin_types=(datetime,))
    kept["state"] = stored.state_at(now_us)
    kept["created_at"] = to_text(from_us(stored.created_at_us))
    for name, value in raw.items():
        if name not in CUSTOMER_KEY_FIELDS and kept.get(name) != value:
            raise refuse(principal, f"set {name} of a key")
    kept["state"] = stored.entry.state
    kept = {
        name: value
        for name, value in kept.items()
        # The end of a key is not given up by leaving it out.
        if name == "expires_at" or name not in CUSTOMER_KEY_FIELDS
    }
    changed = {name: raw[name] for name in CUSTOMER_KEY_FIELDS if name in raw}
    return entry_from("keys", {**kept, **changed})
