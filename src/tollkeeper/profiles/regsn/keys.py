"""`/v1/keys`: make, list and revoke keys under a session."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import Session
from tollkeeper.errors import Forbidden
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.regsn.problems import (
    FORBIDDEN,
    MALFORMED,
    NOT_FOUND,
    InvalidParameter,
    invalid,
    problem_reply,
    success,
)
from tollkeeper.profiles.regsn.settings import NAME
from tollkeeper.profiles.toolkit import HeaderList, iso_seconds, json_object

NAME_CHARS_MAX: Final = 256


def create_key(call: Call, context: ProfileContext, session: Session, headers: HeaderList) -> Reply:
    """Answer `POST /v1/keys`."""
    given = json_object(call.body)
    if given is None:
        return problem_reply(call, MALFORMED, "The body must be a JSON object.", headers=headers)
    name = given.get("name")
    if not isinstance(name, str) or not name.strip():
        return invalid(call, InvalidParameter("name", "name must be a non-empty string"), headers)
    if len(name) > NAME_CHARS_MAX:
        fault = InvalidParameter("name", f"name must be at most {NAME_CHARS_MAX} characters")
        return invalid(call, fault, headers)
    key = Key(id=context.new_key_id(), account=session.account_id, name=name, profile=NAME)
    by = Customer(session.account_id)
    try:
        stored, secret = context.issue_key(key, by)
    except Forbidden:
        # No plan limits such a key, so it must draw on the account's balance, which does.
        try:
            stored, secret = context.issue_key(msgspec.structs.replace(key, type="credit"), by)
        except Forbidden as exc:
            return problem_reply(call, FORBIDDEN, str(exc), headers=headers)
    return success(call, 201, _key(stored, secret), headers)


def list_keys(call: Call, context: ProfileContext, session: Session, headers: HeaderList) -> Reply:
    """Answer `GET /v1/keys`."""
    shown = {"active", "inactive", "expired"}
    if context.settings["revoked_keys_listed"]:
        shown.add("revoked")
    now_us = to_us(call.now)
    keys = [_key(stored) for stored in context.keys(session.account_id) if stored.state_at(now_us) in shown]
    return success(call, 200, keys, headers)


def revoke_key(call: Call, context: ProfileContext, session: Session, headers: HeaderList) -> Reply:
    """Answer `DELETE /v1/keys/{key_id}`."""
    stored = context.key(call.params["key_id"])
    if stored is None or stored.entry.account != session.account_id or stored.entry.state == "deleted":
        return problem_reply(call, NOT_FOUND, "There is no such key.", headers=headers)
    if stored.entry.state != "revoked":
        context.set_key_state(stored, "revoked", Customer(session.account_id))
    return success(call, 204, None, headers)


def _key(stored: StoredKey, secret: str | None = None) -> dict[str, Any]:
    entry = stored.entry
    shown: dict[str, Any] = {"id": entry.id, "name": entry.name}
    if secret is not None:
        shown["key"] = secret
    return shown | {
        "key_prefix": stored.shown_prefix,
        "created_at": _seconds(stored.created_at_us),
        "last_used_at": _seconds(stored.last_used_at_us),
        "revoked_at": _seconds(stored.revoked_at_us),
        "project_id": entry.project,
    }


def _seconds(at_us: int | None) -> str | None:
    return None if at_us is None else iso_seconds(from_us(at_us))
