"""
Finds the caller of a request by its credentials: for the middlewares, and for `authorize`.

Of several api keys the one counts that is known here. Where sessions are admitted, a token that is no known key is
looked at as a session: its account then pays, without a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.catalog.sessions import AccountSessions
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.keyless import Caller, Keyless
from tollkeeper.domain.requests import Usage
from tollkeeper.gate.gate import Admission, Gate
from tollkeeper.http.credentials import Ambiguous, the_known
from tollkeeper.ledger.holds import Holds

_TWO_KEYS: Final = Denial("key_unknown", "The request carries two different api keys: send one.")
_TWO_CREDENTIALS: Final = Denial("key_unknown", "The request carries two different credentials: send one.")
_TOKEN_DOTS: Final = 2
"""Between the parts of a JWT (RFC 7519: header, claims, signature)."""


class KnownKey:
    """Reads the catalog for a key that was not seen before, and the keys of another login for its tokens."""

    def __init__(self, holds: Holds, gate: Gate, sessions: AccountSessions) -> None:
        self._holds = holds
        self._gate = gate
        self._sessions = sessions

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

    def caller(self, secrets: Sequence[str], profile: str) -> Caller | Denial:
        """
        Return whom *secrets* stand for where sessions are admitted; the denial of a session that is not good.

        Blocking. Without a session token it is as `of`.
        """
        if not any(map(may_be_session, secrets)):
            return self.of(secrets)
        try:
            secret = the_known(secrets, self._is_known_or_session)
        except Ambiguous:
            return _TWO_CREDENTIALS
        if not may_be_session(secret) or self._is_known(secret):
            return secret
        return self.of_session(secret, profile)

    def of_session(self, token: str, profile: str, project_id: str = "") -> Keyless | Denial:
        """Return the caller that a session token stands for, or why it is not good. Blocking."""
        session = self._sessions.find(token)
        if isinstance(session, Denial):
            return session
        return Keyless(session.account_id, session.user_id, project_id, profile)

    def _is_known(self, secret: str) -> bool:
        found = self._gate.compiled_key(secret)
        return not isinstance(found, Denial) or found.reason != "key_unknown"

    def _is_known_or_session(self, secret: str) -> bool:
        if self._is_known(secret):
            return True
        return may_be_session(secret) and not isinstance(self._sessions.find(secret), Denial)


def may_be_session(secret: str) -> bool:
    """Return whether *secret* has the form of a session token. An imported api key may have it too."""
    return secret.count(".") == _TOKEN_DOTS
