"""The permitted changes of a key: its states, its end, the fields that stay. Pure checks of values."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Final

from tollkeeper.catalog.entry_parsing import at_path
from tollkeeper.domain.catalog import Entry, Invalid, Key, KeyState
from tollkeeper.domain.entry import check_id
from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.keys import MANAGEMENT_PREFIX, NATIVE_PREFIX, KeyOrigin, StoredKey
from tollkeeper.errors import BadParameter, Conflict, Forbidden
from tollkeeper.profiles import load
from tollkeeper.profiles.base import NATIVE

KEY_TRANSITIONS: Final[dict[KeyState, frozenset[KeyState]]] = {
    "active": frozenset({"inactive", "revoked", "deleted"}),
    "inactive": frozenset({"active", "revoked", "deleted"}),
    "revoked": frozenset({"deleted"}),
    "deleted": frozenset(),
}
"""Which state may follow which. `expired` is never set: it follows from `expires_at`."""

ROTATIONS_NAMED_MAX: Final = 1000
"""Of one key; the ids of the successors after these are UUIDs."""
ID_CHARS_MAX: Final = 128
"""As `domain.entry.ID_PATTERN`."""
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

IMMUTABLE_KEY_FIELDS: Final = ("role", "type", "profile")
CUSTOMER_KEY_FIELDS: Final = ("name", "project", "subscription", "expires_at", "metadata")
"""The fields of a key that a customer may change; all others stay as stored."""


def successor_id(first_id: str, is_taken: Callable[[str], bool]) -> str:
    """
    Return the id of the next key of a rotation, named after its first key: `acme-prod-2` after `acme-prod`.

    A key whose id is a UUID is followed by another UUID.
    """
    if not _UUID.fullmatch(first_id):
        for number in range(2, ROTATIONS_NAMED_MAX + 2):
            name = f"{first_id[: ID_CHARS_MAX - 5]}-{number}"
            if not is_taken(name):
                return name
    return str(uuid.uuid4())


def check_new_id(new_id: str) -> None:
    """Raise `BadParameter` unless *new_id* is an id."""
    try:
        check_id(new_id, "id")
    except Invalid as exc:
        raise BadParameter(f"id: {exc}", field="id") from None


def check_end(key: Key, now_us: int, path: str) -> None:
    """Raise `BadParameter` when a new key, whose secret is about to be made, has ended already."""
    if key.expires_at is not None and to_us(key.expires_at) <= now_us:
        field = at_path(path, "expires_at")
        raise BadParameter(
            f"{field}: expires_at must be later than now: key {key.id} would have ended at "
            f"{key.expires_at.isoformat(timespec='seconds').replace('+00:00', 'Z')}, and its secret would never work. "
            "Give a later one, or leave it out; an old key is imported with its sha256",
            field=field,
        )


def prefix_of(key: Key) -> str:
    """Return what the secret of a new key begins with."""
    if key.role == "management":
        return MANAGEMENT_PREFIX
    if key.profile == NATIVE:
        return NATIVE_PREFIX
    try:
        return load(key.profile).key_prefix
    except KeyError:
        raise Conflict(
            f"the profile {key.profile} of key {key.id} is not installed: install it first"
        ) from None


def check_same(old: Entry, new: Entry, field: str, path: str, advice: str) -> None:
    """Raise `Conflict` when a field that cannot change would."""
    if getattr(old, field) != getattr(new, field):
        raise Conflict(f"{at_path(path, field)}: {new.kind} {new.entry_id} keeps its {field}: {advice}")


def check_not_ahead(key: Key, now_us: int, path: str) -> None:
    """Raise `BadParameter` when a new key was made before 1970 or later than now."""
    if key.created_at is None or 0 <= to_us(key.created_at) <= now_us:
        return
    field = at_path(path, "created_at")
    raise BadParameter(
        f"{field}: created_at must be between 1970 and now ({to_text(from_us(now_us))}), not "
        f"{to_text(key.created_at)}: leave it out for a key that is made now",
        field=field,
    )


def check_created(stored: StoredKey, key: Key, path: str) -> None:
    """Raise `Conflict` when a key that exists would have been made at another time."""
    if key.created_at is not None and to_us(key.created_at) != stored.created_at_us:
        raise Conflict(
            f"{at_path(path, 'created_at')}: key {key.id} was made at {to_text(from_us(stored.created_at_us))}, which "
            "never changes: leave created_at out"
        )


def check_transition(old: KeyState, new: KeyState, label: str) -> None:
    """Raise `Conflict` when a key in state *old* cannot come into state *new*."""
    if new != old and new not in KEY_TRANSITIONS[old]:
        raise Conflict(f"{label} is {old} for good and cannot become {new}: make a new key")


def expiry_of(stored: StoredKey, key: Key, path: str) -> datetime | None:
    """Return when *key* shall expire: one that was rotated away cannot come back by being declared again."""
    end_at = stored.entry.expires_at
    if stored.replaced_by is None or end_at is None:
        return key.expires_at
    if key.expires_at is not None and key.expires_at > end_at:
        field = at_path(path, "expires_at")
        raise Conflict(
            f"{field}: key {key.id} was rotated to {stored.replaced_by} and ends at {to_text(end_at)}: "
            "leave expires_at out, or set an earlier one"
        )
    return key.expires_at or end_at


def set_by_operator(key: Key) -> KeyOrigin:
    """Return the origin of a key whose state and expiry the operator sets."""
    return KeyOrigin("operator", None if key.expires_at is None else to_us(key.expires_at))


def no_later(expires_at: datetime | None, latest_us: int | None, path: str) -> datetime | None:
    """Return when a customer's key ends: as it says, else at the latest that the operator set."""
    if latest_us is None:
        return expires_at
    if expires_at is not None and to_us(expires_at) > latest_us:
        raise Forbidden(
            f"{at_path(path, 'expires_at')}: the key must end at {to_text(from_us(latest_us))} or earlier, "
            "as your provider set it"
        )
    return expires_at or from_us(latest_us)
