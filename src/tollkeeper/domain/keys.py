"""
Credentials: their formats, their hash, their states.

Three kinds: operator key `ok_` (the provider), management key `mk_` (a customer's account), consumption key
(the format of its profile). A secret has at least 128 bits of entropy, so one SHA-256 is a safe hash at rest,
and looking a key up by that hash leaks nothing through timing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from tollkeeper.domain.catalog import Key, KeyState
from tollkeeper.domain.instants import to_us

BASE62: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SECRET_CHARS: Final = 32
"""32 base62 characters carry 190 bits."""

NATIVE_PREFIX: Final = "tk_"
"""Of a consumption key without a dialect; the others begin as their profile says."""
OPERATOR_PREFIX: Final = "ok_"
MANAGEMENT_PREFIX: Final = "mk_"


def new_secret(prefix: str, choice: Callable[[str], str]) -> str:
    """Return a fresh secret; *choice* picks one character of an alphabet (`secrets.choice`)."""
    return prefix + "".join(choice(BASE62) for _ in range(SECRET_CHARS))


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of *secret* in lower-case hex: what is stored, and what an import brings."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shown_prefix(secret: str) -> str:
    """Return the part of *secret* that may be shown later to tell keys apart: its prefix and 4 characters."""
    head = secret.rfind("_") + 1
    return secret[: min(head + 4, len(secret) // 3 + 1)] + "…"


Actor = Literal["operator", "customer"]


class KeyOrigin(NamedTuple):
    """
    Whose word a key's state and expiry are, which a customer cannot take back.

    Attributes:
        state_by: Who set the state. What the operator, an alert or a webhook made inactive stays so for customers.
        expires_latest_us: A customer sets no later expiry than this; None where the operator set none.
        made_by: The consumption key that made it, whose limits and budgets hold for both together.
    """

    state_by: Actor = "operator"
    expires_latest_us: int | None = None
    made_by: str | None = None


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    A key as the catalog keeps it.

    Attributes:
        entry: The key without `sha256`, in the state that was set: see `state_at` for the one in force.
        secret_sha256: Lower-case hex SHA-256 of the secret.
        shown_prefix: What may be shown of the secret; None for an imported key, whose secret we never saw.
        revoked_at_us: When it was revoked or deleted for good, whichever came first.
        rotation_chain_id: The first key of its chain of rotations, its own id when it was never rotated.
        replaced_by: The key that a rotation put in its place.
        state_by, expires_latest_us, made_by: As in `KeyOrigin`.
    """

    entry: Key
    secret_sha256: str
    shown_prefix: str | None
    created_at_us: int
    updated_at_us: int
    last_used_at_us: int | None = None
    revoked_at_us: int | None = None
    rotation_chain_id: str
    replaced_by: str | None = None
    state_by: Actor = "operator"
    expires_latest_us: int | None = None
    made_by: str | None = None

    @property
    def origin(self) -> KeyOrigin:
        return KeyOrigin(self.state_by, self.expires_latest_us, self.made_by)

    def state_at(self, now_us: int) -> KeyState:
        """Return the state in force: `expired` from `expires_at` on, unless revoked or deleted."""
        entry = self.entry
        if entry.state in ("revoked", "deleted") or entry.expires_at is None:
            return entry.state
        return "expired" if now_us >= to_us(entry.expires_at) else entry.state

    def __repr__(self) -> str:
        return f"StoredKey(id={self.entry.id!r}, account={self.entry.account!r}, state={self.entry.state!r})"
