"""Admits a request by the one of its credentials that is known here: for the middleware of both interfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Usage
from tollkeeper.gate.gate import Admission
from tollkeeper.http.credentials import Ambiguous, the_known
from tollkeeper.installation import Installation

_TWO_KEYS: Final = Denial("key_unknown", "The request carries two different api keys: send one.")


class KnownKey:
    """Reads the catalog for a key that was not seen before."""

    def __init__(self, installation: Installation) -> None:
        self._holds = installation.holds
        self._gate = installation.gate

    def admit(
        self, secrets: Sequence[str], method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admission | Denial:
        """
        See `Tollkeeper.admit`.

        Args:
            secrets: As `credentials.credentials` finds them.
        """
        if len(secrets) > 1:
            try:
                secrets = [the_known(secrets, self._is_known)]
            except Ambiguous:
                return _TWO_KEYS
        return self._holds.admit(secrets[0] if secrets else "", method, path, expected, tags)

    def _is_known(self, secret: str) -> bool:
        found = self._gate.compiled_key(secret)
        return not isinstance(found, Denial) or found.reason != "key_unknown"
