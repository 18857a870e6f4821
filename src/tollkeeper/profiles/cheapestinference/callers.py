"""The credentials of a call: a consumption key on `/v1`, a management key or a session on `/api`."""

from __future__ import annotations

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import ID_PATTERN
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.profiles.base import Call, ProfileContext
from tollkeeper.profiles.cheapestinference.plans import may_read_usage
from tollkeeper.profiles.cheapestinference.settings import NAME
from tollkeeper.profiles.cheapestinference.wording import api_error, key_refusal
from tollkeeper.profiles.toolkit import EarlyReply, bearer_token


def consumption_key(call: Call, context: ProfileContext) -> tuple[StoredKey, Entitlement]:
    """Return the key of a call to `/v1` and its entitlement, if it may read its usage."""
    secret = bearer_token(call.headers) or ""
    # Whatever it looks like: an imported key may have any form.
    key = context.find_key(secret)
    if key is None:
        raise EarlyReply(key_refusal("key_unknown" if secret else "key_missing"))
    if key.entry.state == "deleted":
        if context.settings["deleted_key_status"] == 404:
            raise EarlyReply(key_refusal("key_deleted"))
        raise EarlyReply(key_refusal("key_unknown"))
    entitlement = context.entitlement(key)
    if entitlement is None:
        raise EarlyReply(key_refusal("key_deleted"))
    if not entitlement.account.active or not may_read_usage(key, entitlement.subscription, call.now, context):
        raise EarlyReply(key_refusal("key_inactive"))
    return key, entitlement


def dashboard_account(call: Call, context: ProfileContext) -> str:
    """Return the account that a management key or a session stands for."""
    return dashboard_customer(call, context).account_id


def dashboard_customer(call: Call, context: ProfileContext) -> Customer:
    """Return the customer that a management key or a session stands for."""
    token = bearer_token(call.headers) or ""
    key = context.find_management_key(token)
    if key is not None:
        if (
            key.entry.profile in ("native", NAME)
            and key.state_at(to_us(call.now)) == "active"
            and (entitlement := context.entitlement(key)) is not None
            and entitlement.account.active
        ):
            return Customer(key.entry.account, key.entry.id)
    elif token and (session := context.session(token)) is not None:
        return Customer(session.account_id)
    raise EarlyReply(api_error(401, "Unauthorized", [("WWW-Authenticate", "Bearer")]))


def own_key(call: Call, context: ProfileContext, account_id: str) -> StoredKey:
    """Return the account's key that the path names."""
    key_id = call.params["keyId"]
    # A text that cannot be an id needs no lookup.
    key = context.key(key_id) if ID_PATTERN.match(key_id) else None
    if key is None or key.entry.account != account_id or key.entry.state == "deleted":
        raise EarlyReply(api_error(404, "Key not found"))
    return key
