"""
Credentials: their formats, their hash, their states.

Three kinds: operator key `ok_` (the provider), management key `mk_` (a customer's account), consumption key
(the format of its profile). A secret has at least 128 bits of entropy, so one SHA-256 is a safe hash at rest,
and looking a key up by that hash leaks nothing through timing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

BASE62: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SECRET_CHARS: Final = 32
"""32 base62 characters carry 190 bits."""

PREFIX_BY_PROFILE: Final = {
    "native": "tk_",
    "regpilot": "sk_",
    "shoal": "shoal_",
    "regsn": "regsn_live_",
    "anylayer": "zk_prod_",
    "cheapestinference": "sk_live_",
}
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
