"""The permitted changes of a key: its states, its end, the fields that stay. Pure checks of values."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from tollkeeper.catalog.entry_parsing import at_path
from tollkeeper.domain.catalog import Entry, Key, KeyState
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

IMMUTABLE_KEY_FIELDS: Final = ("role", "type", "profile")
CUSTOMER_KEY_FIELDS: Final = ("name", "project", "subscription", "expires_at", "metadata")
"""The fields of a key that a customer may change; all others stay as stored."""


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
