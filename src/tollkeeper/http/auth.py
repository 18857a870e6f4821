"""
Who calls the product's own API: an operator (`ok_`), a management key (`mk_`), or a consumption key.

Keys are looked up by their SHA-256, so timing tells nothing. A caller who keeps failing is slowed down by
its address (`Throttle`), in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from tollkeeper.clock import Clock
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.keys import OPERATOR_PREFIX, hash_secret
from tollkeeper.errors import Forbidden, Unauthenticated
from tollkeeper.installation import Installation

Headers = Iterable[tuple[bytes, bytes]]

_REMEMBERED_MAX: Final = 10_000
_SECRET_CHARS_MAX: Final = 512
FAILURES_MAX: Final = 50
FAILURES_WINDOW_S: Final = 60


class Principal(NamedTuple):
    """Whom a credential stands for. The operator has no account."""

    role: Literal["operator", "management", "consumption"]
    account_id: str | None
    key_id: str | None


OPERATOR: Final = Principal("operator", None, None)


class Throttle:
    """
    Counts failed authentications per address and minute.

    It remembers `_REMEMBERED_MAX` addresses of a minute at most; those that come after them go uncounted.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._window = 0
        self._failures: dict[str, int] = {}

    def blocked(self, address: str) -> bool:
        """Return whether *address* failed too often in this minute."""
        self._roll()
        return self._failures.get(address, 0) >= FAILURES_MAX

    def failed(self, address: str) -> None:
        """Count a failed authentication."""
        self._roll()
        if len(self._failures) < _REMEMBERED_MAX or address in self._failures:
            self._failures[address] = self._failures.get(address, 0) + 1

    def _roll(self) -> None:
        window = self._clock.now_us() // (FAILURES_WINDOW_S * US_PER_S)
        if window != self._window:
            self._window = window
            self._failures = {}


class Authenticator:
    """Turns headers into a `Principal`."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._operators = installation.operator_keys.all()
        self.throttle = Throttle(installation.clock)

    def principal(self, headers: Headers) -> Principal:
        """
        Return whom the request's credential stands for.

        Raises:
            Unauthenticated: No credential, or none of ours, or one that is no longer valid.
            Forbidden: The key's account is not active.
        """
        secret = credential(headers)
        if not secret:
            raise Unauthenticated("Send an operator, management or api key as `Authorization: Bearer <key>`.")
        secret_sha256 = hash_secret(secret)
        if secret.startswith(OPERATOR_PREFIX):
            if secret_sha256 in self._operators:
                return OPERATOR
            raise Unauthenticated("The operator key is not known here.")
        return self._key_principal(secret_sha256)

    def _key_principal(self, secret_sha256: str) -> Principal:
        installation = self._installation
        stored = installation.directory.key_by_hash(secret_sha256)
        if stored is None:
            raise Unauthenticated("The key is not known here.")
        state = stored.state_at(installation.clock.now_us())
        if state != "active":
            raise Unauthenticated(f"The key is {state}.")
        account = installation.directory.account(stored.entry.account)
        if account is None or not account.active:
            raise Forbidden("The account of this key is not active.")
        return Principal(stored.entry.role, stored.entry.account, stored.entry.id)


def credential(headers: Headers) -> str:
    """Return the secret of `Authorization: Bearer …`, or of `X-API-Key`, or `""`."""
    found = ""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            return rest.strip() if scheme.lower() == "bearer" and len(rest) <= _SECRET_CHARS_MAX else ""
        if name == b"x-api-key" and len(value) <= _SECRET_CHARS_MAX:
            found = value.decode("latin-1").strip()
    return found
