"""
What the dialect keeps with a key, as JSON under its name in the key's metadata: description, permissions, burst
limit, webhooks and the client's metadata. A key that the operator made has no such notes and may do everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tollkeeper.domain.keys import StoredKey
from tollkeeper.profiles.anylayer.settings import NAME
from tollkeeper.profiles.base import ProfileContext


def notes_of(key: StoredKey) -> dict[str, Any]:
    """Return the notes of a key; empty for one that the operator made."""
    notes: dict[str, Any] = json.loads(key.entry.metadata.get(NAME, "{}"))
    return notes


def may(key: StoredKey, action: str) -> bool:
    """Return whether a key's permissions include *action* (`read`, `write`, `admin`) on anything."""
    notes = notes_of(key)
    if "permissions" not in notes:
        return True  # The operator made it.
    for permission in notes["permissions"]:
        if isinstance(permission, str):
            if permission in (action, "admin"):
                return True
        else:
            # To manage keys it takes all actions on all resources.
            over_all = "all" in permission["actions"]
            if (
                (permission["resource"] == "all" and over_all)
                if action == "admin"
                else (over_all or action in permission["actions"])
            ):
                return True
    return False


def may_manage_keys(key: StoredKey, context: ProfileContext) -> bool:
    """Return whether a key may make and revoke keys."""
    return context.settings["key_management"] == "any" or may(key, "admin")


def webhook_members(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a webhook as it is shown."""
    # Kept for the client's own records: nothing is delivered, and the answer says so.
    return {**kept, "status": "inactive", "lastDelivery": None, "deliveryCount": 0, "failureCount": 0}
