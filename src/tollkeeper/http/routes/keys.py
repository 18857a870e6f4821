"""
Keys beyond their entry: issue, rotate, set the state; and what a management key may do to keys.

A customer's management key makes and manages consumption keys of its own account, but never frees one of
a bound: plan, limits and profile stay the operator's, and a key under no plan must draw on credit.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, cast

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.domain.catalog import Entry, KeyState
from tollkeeper.errors import Forbidden
from tollkeeper.http.auth import Principal
from tollkeeper.http.routes.calls import (
    BODY_BYTES_MAX,
    CUSTOMER,
    PREFIX,
    AnyRequest,
    Endpoint,
    Query,
    Sent,
    account_in_scope,
    answer,
    endpoint,
    installation_of,
    json_answer,
    json_object,
    params_of,
    principal_of,
    refuse,
)
from tollkeeper.http.routes.entry_json import change_json, key_json
from tollkeeper.http.routes.fields import RotateRequest, StateRequest, fields_of
from tollkeeper.installation import Installation
from tollkeeper.services.entries import entry_from
from tollkeeper.services.manage import IssuedKey

_CHANGED_BY_MANAGEMENT: Final = ("name", "project", "subscription", "expires_at", "metadata")
_SET_BY_MANAGEMENT: Final = (*_CHANGED_BY_MANAGEMENT, "type")
"""In a new key. Whatever its type, it is under a plan or draws on the account's own balance."""


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers that only keys have."""
    return [rotate_key, set_key_state]


@post(
    f"{PREFIX}/keys/{{entry_id:str}}/rotate",
    sync_to_thread=True,
    request_max_body_size=BODY_BYTES_MAX,
    opt=endpoint(
        Endpoint(
            "Rotate a key",
            "keys",
            CUSTOMER,
            {201: json_answer({"$ref": "#/components/schemas/IssuedKey"}, "The new key and its secret.")},
            description="Makes a key like it with another id and secret; the old one ends after `overlap_s`. "
            "Both share their limits and budgets.",
            query=(Query("account", "The account that the key belongs to."),),
            body=Sent({"application/json": RotateRequest}, {"overlap_s": 86400}),
            problems=(404, 409, 413, 415),
        )
    ),
)
def rotate_key(request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Rotate a key."""
    params = params_of(request, "account")
    installation, principal = installation_of(request), principal_of(request)
    account = account_in_scope(principal, params.get("account"))
    check_manageable(installation, principal, entry_id)
    asked = fields_of(json_object(request, body), RotateRequest)
    by_customer = principal.role != "operator"
    return issued(
        installation,
        installation.manage.rotate_key(account, entry_id, asked.overlap_s, by_customer=by_customer),
    )


@post(
    f"{PREFIX}/keys/{{entry_id:str}}/state",
    sync_to_thread=True,
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    opt=endpoint(
        Endpoint(
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
            query=(Query("account", "The account that the key belongs to."),),
            body=Sent({"application/json": StateRequest}, {"state": "revoked"}),
            problems=(404, 409, 413, 415),
        )
    ),
)
def set_key_state(request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
    """Set the state of a key."""
    params = params_of(request, "account")
    installation, principal = installation_of(request), principal_of(request)
    account = account_in_scope(principal, params.get("account"))
    check_manageable(installation, principal, entry_id)
    asked = fields_of(json_object(request, body), StateRequest)
    change = installation.manage.set_key_state(account, entry_id, cast("KeyState", asked.state))
    stored = installation.manage.stored_key(account, entry_id)
    return answer({"entry": key_json(stored, installation.clock.now_us()), "change": change_json(change)})


def issued(installation: Installation, key: IssuedKey) -> Response[bytes]:
    """Return the answer that shows a new key's secret."""
    return answer(issued_json(installation, key), status=201)


def issued_json(installation: Installation, key: IssuedKey) -> dict[str, Any]:
    """Return a new key and its secret; None for one whose hash was brought."""
    stored = installation.manage.stored_key(key.entry.account, key.entry.id)
    return {"entry": key_json(stored, installation.clock.now_us()), "secret": key.secret}


def check_manageable(installation: Installation, principal: Principal, key_id: str) -> None:
    """
    Check that *principal* may change a key.

    Raises:
        NotFound: Its account has no such key.
        Forbidden: It is a management key, which only the operator changes.
    """
    if principal.role == "operator":
        return
    stored = installation.manage.stored_key(principal.account_id, key_id)
    if stored.entry.role != "consumption":
        raise refuse(principal, "change management keys")


def new_by_management(
    installation: Installation, principal: Principal, raw: dict[str, Any]
) -> dict[str, Any]:
    """
    Return the fields of a new key that a management key asks for.

    Raises:
        Forbidden: It sets what is the operator's, or the key would be under no plan and draw on no credit.
    """
    for name in raw:
        if name not in (*_SET_BY_MANAGEMENT, "account"):
            raise refuse(principal, f"set {name} of a key")
    assert principal.key_id is not None
    own = installation.manage.stored_key(principal.account_id, principal.key_id).entry
    _check_bounded(installation, principal, raw.get("type"), raw.get("subscription"))
    return {**raw, "profile": own.profile}


def changed_by_management(installation: Installation, principal: Principal, raw: dict[str, Any]) -> Entry:
    """
    Return the key that a management key's PUT asks for: what it may not set stays.

    Raises:
        NotFound: Its account has no such key.
        Forbidden: It states another value of a field that is the operator's.
    """
    check_manageable(installation, principal, raw["id"])
    stored = installation.manage.stored_key(principal.account_id, raw["id"])
    kept = msgspec.to_builtins(stored.entry, builtin_types=(datetime,))
    kept["state"] = stored.state_at(installation.clock.now_us())
    for name, value in raw.items():
        if name not in _CHANGED_BY_MANAGEMENT and kept.get(name) != value:
            raise refuse(principal, f"set {name} of a key")
    if raw.get("subscription") != stored.entry.subscription and stored.entry.plan is None:
        _check_bounded(installation, principal, kept["type"], raw.get("subscription"))
    kept["state"] = stored.entry.state
    kept = {name: value for name, value in kept.items() if name not in _CHANGED_BY_MANAGEMENT}
    changed = {name: raw[name] for name in _CHANGED_BY_MANAGEMENT if name in raw}
    return entry_from("keys", {**kept, **changed})


def _check_bounded(
    installation: Installation, principal: Principal, key_type: object, subscription: object
) -> None:
    account = installation.manage.get("accounts", str(principal.account_id))
    if key_type != "credit" and subscription is None and getattr(account, "plan", None) is None:
        raise Forbidden(
            "The key would be under no plan: name a subscription, or make it of type credit.",
            account=principal.account_id,
        )
