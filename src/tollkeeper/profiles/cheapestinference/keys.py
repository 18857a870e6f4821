"""`/api/keys`: list, make, switch and delete the keys of an account."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key, Limit
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.errors import Forbidden
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.cheapestinference.callers import dashboard_account, dashboard_customer, own_key
from tollkeeper.profiles.cheapestinference.plans import AccountPlans, is_active, plan_status
from tollkeeper.profiles.cheapestinference.settings import NAME
from tollkeeper.profiles.cheapestinference.wording import api_error, wrapped
from tollkeeper.profiles.toolkit import EarlyReply, iso_millis, json_object

TEXT_CHARS_MAX: Final = 256
"""Longest name of a key, as in the catalog."""


def list_keys(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /api/keys`."""
    account_id = dashboard_account(call, context)
    plans = AccountPlans(context, account_id)
    keys = listed_keys(context, account_id)
    items = [_key_item(call, context, plans, key) for key in keys]
    return Reply(200, wrapped(items, context.settings["keys_envelope"]))


def make_credit_key(call: Call, context: ProfileContext) -> Reply:
    """Answer `POST /api/keys/credit`."""
    by = dashboard_customer(call, context)
    account_id = by.account_id
    name = _text(_body(call), "name")
    if context.balance_nanos(account_id) <= 0:
        return api_error(402, "Insufficient credits: top up first")
    slug = str(context.settings["credit_plan"])
    plan = slug if any(plan.slug == slug for plan in context.plans()) else None
    limits = None if plan else [Limit(name="rpm", amount=int(context.settings["credit_rpm"]))]
    key = Key(
        id=context.new_key_id(),
        account=account_id,
        name=name,
        type="credit",
        profile=NAME,
        plan=plan,
        limits=limits,
    )
    return _made(call, context, key, by)


def make_subscription_key(call: Call, context: ProfileContext) -> Reply:
    """Answer `POST /api/keys/subscription`."""
    by = dashboard_customer(call, context)
    account_id = by.account_id
    body = _body(call)
    name, subscription_id = _text(body, "name"), _text(body, "subscriptionId")
    subscription = AccountPlans(context, account_id).subscriptions.get(subscription_id)
    if subscription is None:
        return api_error(404, "Subscription not found")
    if plan_status(subscription, call.now)[0] != "active":
        return api_error(409, "Subscription is not active")
    key = Key(
        id=context.new_key_id(), account=account_id, name=name, profile=NAME, subscription=subscription_id
    )
    return _made(call, context, key, by)


def switch_key(call: Call, context: ProfileContext) -> Reply:
    """Answer `PATCH /api/keys/{keyId}`, which switches a key on or off."""
    account_id = dashboard_account(call, context)
    key = own_key(call, context, account_id)
    active = _body(call).get("isActive")
    if not isinstance(active, bool):
        return api_error(400, "isActive must be true or false")
    try:
        context.set_key_state(key, "active" if active else "inactive", Customer(account_id))
    except Forbidden as exc:
        return api_error(403, str(exc))
    item = _key_item(call, context, AccountPlans(context, account_id), context.key(key.entry.id) or key)
    return Reply(200, wrapped(item, context.settings["keys_envelope"]))


def delete_key(call: Call, context: ProfileContext) -> Reply:
    """Answer `DELETE /api/keys/{keyId}`."""
    account_id = dashboard_account(call, context)
    key = own_key(call, context, account_id)
    context.set_key_state(key, "deleted", Customer(account_id))
    return Reply(200, {"success": True})


def listed_keys(context: ProfileContext, account_id: str) -> list[StoredKey]:
    """Return the keys that a list shows, in its order."""
    keys = [key for key in context.keys(account_id) if key.entry.state != "deleted"]
    return keys if context.settings["list_order"] == "newest" else keys[::-1]


def _made(call: Call, context: ProfileContext, key: Key, by: Customer) -> Reply:
    try:
        stored, secret = context.issue_key(key, by)
    except Forbidden as exc:
        return api_error(403, str(exc))
    item = _key_item(call, context, AccountPlans(context, key.account), stored)
    return Reply(201, wrapped({**item, "apiKey": secret}, context.settings["keys_envelope"]))


def _key_item(call: Call, context: ProfileContext, plans: AccountPlans, key: StoredKey) -> dict[str, Any]:
    subscription = plans.subscription_of(key)
    item: dict[str, Any] = {
        "id": key.entry.id,
        "name": key.entry.name,
        "keyPlan": plans.slug_of(key),
        "keyType": key.entry.type,
        "isActive": is_active(key, subscription, call.now),
    }
    if key.entry.type == "subscription":
        item["subscriptionStatus"], item["subscriptionExpiresAt"] = plan_status(subscription, call.now)
    item["createdAt"] = iso_millis(from_us(key.created_at_us))
    return item


def _body(call: Call) -> dict[str, Any]:
    body = json_object(call.body)
    if body is None:
        raise EarlyReply(api_error(400, "The body must be a JSON object"))
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise EarlyReply(api_error(400, f"{name} is required and must be a string"))
    if len(value) > TEXT_CHARS_MAX:
        raise EarlyReply(api_error(400, f"{name} must have at most {TEXT_CHARS_MAX} characters"))
    return value
