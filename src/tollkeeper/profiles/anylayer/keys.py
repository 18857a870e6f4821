"""`/v1/developer/keys`: make, list and revoke the keys of an account."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery
from tollkeeper.profiles.anylayer.errors import error_reply, forbidden, invalid_parameter
from tollkeeper.profiles.anylayer.key_notes import may, may_manage_keys, notes_of, webhook_members
from tollkeeper.profiles.anylayer.limits import WINDOWS, strictest_amount
from tollkeeper.profiles.anylayer.new_key import (
    parse_body,
    parse_expiry,
    parse_limits,
    parse_permissions,
    parse_webhooks,
    typed_member,
)
from tollkeeper.profiles.anylayer.numbers import ratio
from tollkeeper.profiles.anylayer.parameters import page_members, parse_page
from tollkeeper.profiles.anylayer.settings import NAME
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.toolkit import iso_seconds


def create_key(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `POST /v1/developer/keys`."""
    if not may_manage_keys(caller, context):
        return forbidden(call)
    body = parse_body(call.body)
    name = body.get("name")
    if not isinstance(name, str) or not 0 < len(name.strip()) <= 256:
        raise invalid_parameter("name")
    notes: dict[str, Any] = {
        "description": typed_member(body, "description", str, ""),
        "permissions": parse_permissions(
            body.get("permissions", list(context.settings["default_permissions"]))
        ),
        "burstLimit": None,
        "webhooks": parse_webhooks(body, context),
        "metadata": typed_member(body, "metadata", dict, {}),
    }
    entitlement = context.entitlement(caller)
    limits, notes["burstLimit"] = parse_limits(body.get("rateLimit"), entitlement, context)
    parent = caller.entry
    expiry = parse_expiry(body.get("expiry"), call.now)
    if expiry is not None and parent.expires_at is not None:
        expiry = min(expiry, parent.expires_at)
    stored, secret = context.issue_key(
        Key(
            id=context.new_key_id(),
            account=parent.account,
            project=parent.project,
            name=name,
            type=parent.type,
            profile=NAME,
            subscription=parent.subscription,
            plan=parent.plan,
            limits=limits,
            expires_at=expiry,
            metadata={NAME: json.dumps(notes)},
        ),
        Customer(parent.account, parent.id),
    )
    key = _key_members(stored, context, call.now)
    key["usage"] = {"totalRequests": 0, "requestsToday": 0, "requestsThisMonth": 0}
    made = {
        "success": True,
        "apiKey": secret,
        "keyId": stored.entry.id,
        "key": key,
        "webhooks": [webhook_members(hook) for hook in notes["webhooks"]],
        "timestamp": iso_seconds(call.now),
    }
    return Reply(int(context.settings["create_status"]), made)


def list_keys(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `GET /v1/developer/keys`; deleted keys are not listed."""
    limit, offset = parse_page(call)
    if not may(caller, "read"):
        return forbidden(call)
    keys = [key for key in context.keys(caller.entry.account) if key.entry.state != "deleted"]
    shown = keys[offset : offset + limit]
    counts = _KeyCounts(call, context, caller.entry.account)
    now_us = to_us(call.now)
    states = [key.state_at(now_us) for key in keys]
    requests = sum(counts.requests(key.entry.id, "all") for key in keys)
    body = {
        "success": True,
        "keys": [
            {
                **_key_members(key, context, call.now),
                "lastUsed": counts.last_at(key),
                "usage": counts.members(key),
                "webhooks": [webhook_members(hook) for hook in notes_of(key).get("webhooks", [])],
                "metadata": notes_of(key).get("metadata", {}),
            }
            for key in shown
        ],
        "pagination": page_members(len(keys), limit, offset, len(shown)),
        "summary": {
            "totalKeys": len(keys),
            "activeKeys": states.count("active"),
            "inactiveKeys": states.count("inactive"),
            "expiredKeys": states.count("expired"),
            "revokedKeys": states.count("revoked"),
            "totalRequests": requests,
            "requestsToday": sum(counts.requests(key.entry.id, "day") for key in keys),
            "averageRequestsPerKey": ratio(requests, len(keys)),
        },
        "timestamp": iso_seconds(call.now),
    }
    return Reply(200, body)


def revoke_key(call: Call, context: ProfileContext, caller: StoredKey) -> Reply:
    """Answer `DELETE /v1/developer/keys/{keyId}`; a repeat gives the same answer."""
    if not may_manage_keys(caller, context):
        return forbidden(call)
    key = context.key(call.params["keyId"])
    if key is None or key.entry.account != caller.entry.account or key.entry.state == "deleted":
        return error_reply(call, 404, "KEY_NOT_FOUND", "API key not found")
    if key.entry.state != "revoked":
        context.set_key_state(key, "revoked", Customer(caller.entry.account, caller.entry.id))
        key = context.key(key.entry.id) or key
    revoked_at = call.now if key.revoked_at_us is None else from_us(key.revoked_at_us)
    body = {
        "success": True,
        "keyId": key.entry.id,
        "status": "revoked",
        "revokedAt": iso_seconds(revoked_at),
        "timestamp": iso_seconds(call.now),
    }
    return Reply(200, body)


class _KeyCounts:
    """Requests of each key of an account: of all time, of this day, week and month (UTC)."""

    def __init__(self, call: Call, context: ProfileContext, account: str) -> None:
        now = call.now.astimezone(UTC)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        days = (day.weekday() - WEEKDAYS.index(context.settings["week_start"])) % 7
        starts = {"day": day, "week": day - timedelta(days=days), "month": day.replace(day=1)}
        self._now = now
        to = to_us(now) + 1

        def rows(from_us: int, *measures: str) -> dict[str, dict[str, Any]]:
            query = UsageQuery(
                account_id=account,
                from_us=from_us,
                to_us=to,
                group_by=("key",),
                measures=("requests", *measures),
                limit=PAGE_SIZE_MAX,
            )
            return {row["key"]: row for row in context.usage(query).rows}

        self._rows = {span: rows(to_us(start)) for span, start in starts.items()}
        self._rows["all"] = rows(0, "peak_requests_per_hour", "first_at", "last_at")

    def requests(self, key_id: str, span: str) -> int:
        return int(self._rows[span].get(key_id, {}).get("requests", 0))

    def last_at(self, key: StoredKey) -> str | None:
        last = self._rows["all"].get(key.entry.id, {}).get("last_at")
        used_at = last_used_at(key, last)
        return None if used_at is None else iso_seconds(used_at)

    def members(self, key: StoredKey) -> dict[str, Any]:
        row = self._rows["all"].get(key.entry.id, {})
        total, last = self.requests(key.entry.id, "all"), row.get("last_at")
        days = 1
        if row.get("first_at") is not None:
            days = max(1, -(-(self._now - datetime.fromisoformat(row["first_at"])) // timedelta(days=1)))
        return {
            "totalRequests": total,
            "requestsToday": self.requests(key.entry.id, "day"),
            "requestsThisWeek": self.requests(key.entry.id, "week"),
            "requestsThisMonth": self.requests(key.entry.id, "month"),
            "averageRequestsPerDay": ratio(total, days),
            "peakRequestsPerHour": row.get("peak_requests_per_hour", 0),
            "lastRequestAt": None if last is None else iso_seconds(datetime.fromisoformat(last)),
        }


def _key_members(key: StoredKey, context: ProfileContext, now: datetime) -> dict[str, Any]:
    entry, notes = key.entry, notes_of(key)
    entitlement = context.entitlement(key)
    limits = [] if entitlement is None else [limited.limit for limited in entitlement.limits]
    rate_limit: dict[str, int | None] = {
        name: strictest_amount(limits, seconds) for name, seconds in WINDOWS.items()
    }
    rate_limit["burstLimit"] = notes.get("burstLimit")
    last_used = None if key.last_used_at_us is None else iso_seconds(from_us(key.last_used_at_us))
    return {
        "id": entry.id,
        "name": entry.name,
        "description": notes.get("description", ""),
        "permissions": notes.get("permissions", [{"resource": "all", "actions": ["all"]}]),
        "rateLimit": rate_limit,
        "status": key.state_at(to_us(now)),
        "createdAt": iso_seconds(from_us(key.created_at_us)),
        "expiry": None if entry.expires_at is None else iso_seconds(entry.expires_at),
        "lastUsed": last_used,
    }


def last_used_at(key: StoredKey, last_at: str | None) -> datetime | None:
    """Return when a key was last used, by our gate or by a reported event (*last_at*, RFC 3339)."""
    times = [] if key.last_used_at_us is None else [from_us(key.last_used_at_us)]
    times += [] if last_at is None else [datetime.fromisoformat(last_at)]
    return max(times, default=None)
