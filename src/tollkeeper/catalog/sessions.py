"""
Session tokens: the account and user that signed in to a dashboard.

Two kinds are accepted. Tokens of our own login are JWTs that this installation signs (HMAC) with its secret. Tokens
of another login are JWTs that are verified against a JWKS: the algorithm must be on the allow-list, issuer and audience
must be those of the settings, and expiry has a stated leeway. An unknown key id has the JWKS read again, at most once
a minute, so that its keys can rotate; a known one does so every hour, so that a withdrawn key ends. One thread reads at
a time, and no other waits for it longer than a second.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.limit_status import Session
from tollkeeper.errors import BadParameter
from tollkeeper.ports import TokenVerifier

OWN_ALGORITHM: Final = "HS256"
OWN_ISSUER: Final = "tollkeeper"
OWN_TTL_S: Final = 12 * 3600
ALGORITHMS_DEFAULT: Final = ("RS256", "ES256", "EdDSA")
_REREAD_S: Final = 60
_KEEP_S: Final = 3600
_TOKEN_CHARS_MAX: Final = 8_192
_WAIT_S: Final = 1.0
"""How long after its begin a read of the JWKS is waited for by others whose key is not known yet."""
_INVALID: Final = Denial("session_invalid", "The session token is not valid.")
_EXPIRED: Final = Denial("session_expired", "The session has expired. Sign in again.")
_SECONDS_MAX: Final = 253_402_300_799
"""The end of the year 9999, as times of a token go."""

log = logging.getLogger("tollkeeper.sessions")


class _Expired(ValueError):
    """A token that was good and has ended."""


class Sessions:
    """
    Issues our own session tokens and verifies both kinds.

    Args:
        secret: The installation's signing secret, at least 32 bytes.
        tokens: Signs, verifies, and reads the other login's public keys.
        jwks: `https://…` or a file's path; empty when there is no other login.
        account_claim: The claim that names the account, within others as `o.id`; or several, `o.id,org_id,sub`: the
            first that a token has. `sub` names the user.

    Raises:
        BadParameter: See `check_login` and `parse_account_claims`.
    """

    def __init__(
        self,
        clock: Clock,
        secret: str,
        tokens: TokenVerifier,
        *,
        jwks: str = "",
        issuer: str = "",
        audience: str = "",
        algorithms: tuple[str, ...] = ALGORITHMS_DEFAULT,
        account_claim: str = "account",
        leeway_s: int = 30,
    ) -> None:
        check_login(jwks, issuer, audience)
        self._clock = clock
        self._secret = secret
        self._tokens = tokens
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        # Never a shared-secret algorithm: a public key must not serve as one.
        self._algorithms = [name for name in algorithms if not name.startswith("HS") and name != "none"]
        self._account_claims = parse_account_claims(account_claim)
        self._leeway_s = leeway_s
        self._keys: Mapping[str, object] = {}
        self._read_at_us = -(10**18)
        self._reading = threading.Lock()

    def issue(self, account_id: str, user_id: str, ttl_s: int = OWN_TTL_S) -> str:
        """Return a token of our own login."""
        now_s = self._clock.now_us() // US_PER_S
        claims = {
            "iss": OWN_ISSUER,
            "sub": user_id,
            "account": account_id,
            "iat": now_s,
            "exp": now_s + ttl_s,
        }
        return self._tokens.sign(claims, self._secret, OWN_ALGORITHM)

    def verify(self, token: str) -> Session | None:
        """Return the account and user of *token*; None when it is not a good token of either kind."""
        found = self.check(token)
        return None if isinstance(found, Denial) else found[0]

    def check(self, token: str) -> tuple[Session, int] | Denial:
        """Return the session of *token* and when it was issued (0 where it does not say), or why it is not good."""
        try:
            return self._verified(token) or _INVALID
        except _Expired:
            return _EXPIRED

    def _verified(self, token: str) -> tuple[Session, int] | None:
        if not token or len(token) > _TOKEN_CHARS_MAX:
            return None
        try:
            header = self._tokens.header(token)
            if header.algorithm == OWN_ALGORITHM:
                claims = self._claims(token, self._secret, [OWN_ALGORITHM], OWN_ISSUER, "")
                return _session(claims, ("account",))
            if header.algorithm not in self._algorithms:
                return None
            key = self._key(header.key_id)
            if key is None:
                return None
            claims = self._claims(token, key, self._algorithms, self._issuer, self._audience)
            return _session(claims, self._account_claims)
        except _Expired:
            raise
        except ValueError:
            return None

    def _claims(
        self, token: str, key: object, algorithms: list[str], issuer: str, audience: str
    ) -> dict[str, Any]:
        claims = self._tokens.verify(token, key, algorithms=algorithms, issuer=issuer, audience=audience)
        now_s = self._clock.now_us() // US_PER_S
        _seconds(claims.get("iat", 0))
        if _seconds(claims["exp"]) + self._leeway_s <= now_s:
            raise _Expired
        if _seconds(claims.get("nbf", 0)) - self._leeway_s > now_s:
            raise ValueError("the token is not valid yet")
        return claims

    def _key(self, key_id: str) -> object | None:
        if not self._jwks:
            return None
        if self._is_due(key_id) and self._reading.acquire(blocking=False):
            try:
                if self._is_due(key_id):
                    self._reread()
            finally:
                self._reading.release()
        elif key_id not in self._keys and self._reading.locked():
            # A second caller waits for the read of the first, unless that login is slow: then one thread waits.
            left_s = _WAIT_S - (self._clock.now_us() - self._read_at_us) / US_PER_S
            if self._reading.acquire(timeout=min(max(left_s, 0.0), _WAIT_S)):
                self._reading.release()
        return self._keys.get(key_id)

    def _is_due(self, key_id: str) -> bool:
        age_us = self._clock.now_us() - self._read_at_us
        return age_us >= (_KEEP_S if key_id in self._keys else _REREAD_S) * US_PER_S

    def _reread(self) -> None:
        self._read_at_us = self._clock.now_us()
        try:
            self._keys = self._tokens.public_keys(self._jwks)
        except (OSError, ValueError) as exc:
            # The keys that are known stay good while the issuer cannot be read.
            log.warning("tollkeeper.sessions.jwks_unreadable", extra={"reason": str(exc)})


class AccountSessions:
    """Finds the session of a token whose account may use it: for the profiles' endpoints and for the gate alike."""

    def __init__(self, sessions: Sessions, directory: Directory) -> None:
        self._sessions = sessions
        self._directory = directory

    def find(self, token: str) -> Session | Denial:
        """Return the session of *token*, or why it is refused. Blocking: the keys of a login may have to be read."""
        found = self._sessions.check(token)
        if isinstance(found, Denial):
            return found
        session, issued_at_us = found
        account = self._directory.account(session.account_id)
        if account is None:
            return _INVALID
        if not account.active:
            return Denial("session_invalid", "The account of this session is not active.")
        reset_at = account.sessions_reset_at
        if reset_at is not None and issued_at_us < to_us(reset_at):
            return Denial("session_expired", "The session was ended, as all of its account. Sign in again.")
        return session


def check_login(jwks: str, issuer: str, audience: str) -> None:
    """
    Check the settings of the other login before anything is opened.

    Raises:
        BadParameter: *jwks* without both others, with which tokens that the same login made for other applications
            would be good here; or a *jwks* that comes over plain http from elsewhere, or in another way.
    """
    if not jwks:
        return
    missing = [
        name for name, value in (("session_issuer", issuer), ("session_audience", audience)) if not value
    ]
    if missing:
        raise BadParameter(
            f"session_jwks must have {' and '.join(missing)} too: without, tokens that the login issued for any other "
            "application would be good here. Set them to the `iss` and `aud` of your tokens.",
            field=missing[0],
        )
    if "://" not in jwks:
        return
    try:
        parts = urlsplit(jwks)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise BadParameter(
            "session_jwks must be an https URL or a file's path", field="session_jwks"
        ) from None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        raise BadParameter(
            "session_jwks must be an https URL or a file's path: over plain http, which may only go to this machine "
            "itself, anybody on the way could put keys of their own into it.",
            field="session_jwks",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _session(claims: dict[str, Any], account_claims: Sequence[str]) -> tuple[Session, int] | None:
    user_id = claims["sub"]
    account_id = next(
        (found for name in account_claims if (found := _claim(claims, name)) not in (None, "")), None
    )
    # A claim of another type is no reason to look at the next: its login meant that one.
    if not (isinstance(account_id, str) and isinstance(user_id, str) and account_id and user_id):
        return None
    return Session(account_id, user_id), _seconds(claims.get("iat", 0)) * US_PER_S


def _claim(claims: Any, name: str) -> object:
    """Return the claim that *name* names: a member of that name, or `a.b` as member `b` of `a`; None without one."""
    if not isinstance(claims, dict):
        return None
    if name in claims:
        return claims[name]
    # Names of claims may be URLs, which have dots of their own.
    dots = [place for place, character in enumerate(name) if character == "."]
    inner = (_claim(claims.get(name[:dot]), name[dot + 1 :]) for dot in dots)
    return next((found for found in inner if found is not None), None)


def parse_account_claims(text: str) -> tuple[str, ...]:
    """
    Return the claims that the setting `session_account_claim` names, in the order in which they are looked at.

    Raises:
        BadParameter: It names none, or one of them is empty.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or not all(all(name.split(".")) for name in names):
        raise BadParameter(
            f"session_account_claim: {text!r} must name a claim, or several with commas between them, e.g. "
            "o.id,org_id,sub: the first that a token has names the account",
            field="session_account_claim",
        )
    return names


def _seconds(claim: object) -> int:
    # `Infinity` never ends, and so does a number that no calendar has. A fraction says nothing of use.
    if isinstance(claim, bool) or not isinstance(claim, int) or not 0 <= claim <= _SECONDS_MAX:
        raise ValueError("the times of a token must be whole seconds since 1970, up to the year 9999")
    return claim
