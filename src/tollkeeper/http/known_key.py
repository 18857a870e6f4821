"""Finds the one of a request's credentials that is known here: for the middlewares, and for `authorize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Usage
from tollkeeper.gate.gate import Admission, Gate
from tollkeeper.http.credentials import Ambiguous, the_known
from tollkeeper.ledger.holds import Holds

_TWO_KEYS: Final = Denial("key_unknown", "The request carries two different api keys: send one.")


class KnownKey:
    """Reads the catalog for a key that was not seen before."""

    def __init__(self, holds: Holds, gate: Gate) -> None:
        self._holds = holds
        self._gate = gate

    def admit(
        self, secrets: Sequence[str], method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admission | Denial:
        """
        See `Tollkeeper.admit`.

        Args:
            secrets: As `credentials.credentials` finds them.
        """
        secret = self.of(secrets)
        if isinstance(secret, Denial):
            return secret
        return self._holds.admit(secret, method, path, expected, tags)

    def of(self, secrets: Sequence[str]) -> str | Denial:
        """Return the secret that counts, `""` without any; the denial of two known ones."""
        if len(secrets) < 2:
            return next(iter(secrets), "")
        try:
            return the_known(secrets, self._is_known)
        except Ambiguous:
            return _TWO_KEYS

    def _is_known(self, secret: str) -> bool:
        found = self._gate.compiled_key(secret)
        return not isinstance(found, Denial) or found.reason != "key_unknown"
