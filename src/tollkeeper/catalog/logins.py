"""
Logins of browsers at the page: a cookie that stands for a key, so that the key is pasted once and kept by no script.

Whether the key is still good is asked at each request (`http.auth`), so a login ends with its key. They are in the
ledger database, bounded, and outlive a restart; a backup has none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from tollkeeper.clock import Clock
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.keys import hash_secret, new_secret
from tollkeeper.domain.logins import LOGIN_PREFIX, Login

PER_KEY_MAX: Final = 20
"""Logins of one key, such as of several browsers; the oldest of them makes room."""
TOTAL_MAX: Final = 100_000
"""Logins in all, some 25 MB of the ledger; the customer's login that is the oldest makes room, never an operator's."""
_REMEMBERED_MAX: Final = 4_096


class LoginStore(Protocol):
    """
    Where logins are kept. Any thread may call.

    Every method raises `Unavailable` when the database fails; then nothing was written.
    """

    def add(self, login: Login, *, per_key_max: int, total_max: int) -> None:
        """Store a login; the oldest of its key, and of all accounts, are removed so that no more than so many are."""

    def find(self, secret_sha256: str) -> Login | None:
        """Return the login of a secret's hash, also when it is over."""

    def remove(self, secret_sha256: str) -> bool:
        """Remove a login; return whether there was one."""

    def purge(self, now_us: int) -> None:
        """Remove all that are over, and those whose key is revoked, deleted, expired or no longer there."""


class NewLogin(NamedTuple):
    """A login that has begun, with its secret, which is nowhere else."""

    secret: str
    login: Login

    def __repr__(self) -> str:
        return f"NewLogin(login={self.login!r})"


class Logins:
    """
    Begins, finds and ends logins. Any thread may call.

    Args:
        hours: How long a login lasts.
        choice: Picks one character of an alphabet: `secrets.choice`.
    """

    def __init__(self, store: LoginStore, clock: Clock, hours: int, choice: Callable[[str], str]) -> None:
        self._store = store
        self._clock = clock
        self._lasts_us = hours * 3_600 * US_PER_S
        self._choice = choice
        self._lock = threading.Lock()
        self._written = 0
        """Number of calls that removed some: what was read before one of them must not be remembered after it."""
        self._found: dict[str, Login] = {}

    def begin(self, key_sha256: str, account_id: str, key_expires_at_us: int | None) -> NewLogin:
        """
        Begin a login of a key that was just found to be good; durable when it returns. Blocking.

        Raises:
            Unavailable: The ledger cannot be written.
        """
        now_us = self._clock.now_us()
        ends_at_us = now_us + self._lasts_us
        if key_expires_at_us is not None:
            ends_at_us = min(ends_at_us, key_expires_at_us)
        secret = new_secret(LOGIN_PREFIX, self._choice)
        login = Login(hash_secret(secret), key_sha256, account_id, now_us, ends_at_us)
        try:
            self._store.add(login, per_key_max=PER_KEY_MAX, total_max=TOTAL_MAX)
        finally:
            self._forget_all()
        return NewLogin(secret, login)

    def find(self, secret: str) -> Login | None:
        """
        Return the login of *secret*, None when it is unknown or over. Reads the ledger when it was not seen before.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        if not secret.startswith(LOGIN_PREFIX):
            return None
        secret_sha256 = hash_secret(secret)
        found = self._found.get(secret_sha256)
        if found is None:
            written = self._written
            found = self._store.find(secret_sha256)
            if found is None:
                return None
            with self._lock:
                if written == self._written:
                    if len(self._found) >= _REMEMBERED_MAX:
                        self._found.clear()
                    self._found[secret_sha256] = found
        return found if self._clock.now_us() < found.expires_at_us else None

    def end(self, secret: str) -> bool:
        """
        End a login; return whether there was one. Its cookie is good for nothing from then on. Blocking.

        Raises:
            Unavailable: The ledger cannot be written; the login has not ended.
        """
        try:
            return self._store.remove(hash_secret(secret))
        finally:
            self._forget_all()

    def purge(self) -> None:
        """Remove those that are over. Called by the maintenance thread."""
        try:
            self._store.purge(self._clock.now_us())
        finally:
            self._forget_all()

    def _forget_all(self) -> None:
        with self._lock:
            self._written += 1
            self._found.clear()
