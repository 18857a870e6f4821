"""
Logins of browsers: a secret in a cookie stands for a key until it ends, or the key does.

The secret is drawn as a key's is, so one SHA-256 of it is a safe hash at rest. What must be sent beside the cookie to
change anything is made of the secret, so it need not be stored, and a page that cannot read the cookie cannot make it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

LOGIN_PREFIX: Final = "tl_"
_CSRF: Final = b"tollkeeper csrf of a login\0"


class Login(NamedTuple):
    """
    A login as it is stored.

    Attributes:
        secret_sha256: Lower-case hex SHA-256 of the secret in the cookie.
        key_sha256: That of the key it stands for, which is looked up at each request.
        account_id: The account of the key; `""` for an operator key.
        expires_at_us: It is over from then on, whatever the state of the key.
    """

    secret_sha256: str
    key_sha256: str
    account_id: str
    created_at_us: int
    expires_at_us: int


def csrf_of(secret: str) -> str:
    """Return what a request that changes something must bring beside the cookie: 64 hex digits."""
    return hashlib.sha256(_CSRF + secret.encode()).hexdigest()


def is_csrf_of(secret: str, sent: str) -> bool:
    """Return whether *sent* is `csrf_of` *secret*; takes the same time whatever differs."""
    return hmac.compare_digest(csrf_of(secret).encode(), sent.encode())
