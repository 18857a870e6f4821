"""
Session tokens: who signed in to a dashboard.

Two kinds are accepted. Our own login's are JWTs that this installation signs (HMAC) with a secret that it
keeps. Another login's are JWTs verified against a JWKS: only the algorithms of the allow-list, the issuer and
audience that are set, expiry with a stated leeway. Unknown key ids make the JWKS be read again, at most once
a minute, so that its keys can rotate; known ones are read again every hour, so that a withdrawn key ends.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import jwt
from jwt import PyJWK, PyJWKSet

from tollkeeper.clock import Clock
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.standing import Session

OWN_ALGORITHM: Final = "HS256"
OWN_ISSUER: Final = "tollkeeper"
OWN_TTL_S: Final = 12 * 3600
ALGORITHMS_DEFAULT: Final = ("RS256", "ES256", "EdDSA")
_REREAD_S: Final = 60
_KEEP_S: Final = 3600
_PUBLIC_KEY_TYPES: Final = ("RSA", "EC", "OKP")
_TOKEN_CHARS_MAX: Final = 8_192
_JWKS_BYTES_MAX: Final = 1 << 20

log = logging.getLogger("tollkeeper.sessions")


class Sessions:
    """
    Issues our own session tokens and verifies both kinds.

    Args:
        secret: The installation's signing secret, at least 32 bytes.
        jwks: `https://…` or a file's path; empty when there is no other login.
        account_claim: The claim that names the account; `sub` names the user.
    """

    def __init__(
        self,
        clock: Clock,
        secret: str,
        *,
        jwks: str = "",
        issuer: str = "",
        audience: str = "",
        algorithms: tuple[str, ...] = ALGORITHMS_DEFAULT,
        account_claim: str = "account",
        leeway_s: int = 30,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        self._clock = clock
        self._secret = secret
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        # Never a shared-secret algorithm: a public key must not serve as one.
        self._algorithms = [name for name in algorithms if not name.startswith("HS") and name != "none"]
        self._account_claim = account_claim
        self._leeway_s = leeway_s
        self._fetch = fetch or _read
        self._keys: dict[str, PyJWK] = {}
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
        return jwt.encode(claims, self._secret, algorithm=OWN_ALGORITHM)

    def verify(self, token: str) -> Session | None:
        """Return who *token* stands for; None when it is not a good token of either kind."""
        if not token or len(token) > _TOKEN_CHARS_MAX:
            return None
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") == OWN_ALGORITHM:
                claims = self._decoded(token, self._secret, [OWN_ALGORITHM], OWN_ISSUER, "")
                return _session(claims, "account")
            if header.get("alg") not in self._algorithms:
                return None
            key = self._key(str(header.get("kid", "")))
            if key is None:
                return None
            claims = self._decoded(token, key, self._algorithms, self._issuer, self._audience)
            return _session(claims, self._account_claim)
        except (jwt.PyJWTError, ValueError, RecursionError):  # The last from JSON nested without end.
            return None

    def _decoded(
        self, token: str, key: Any, algorithms: list[str], issuer: str, audience: str
    ) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            issuer=issuer or None,
            audience=audience or None,
            # Times are checked below, by our clock.
            options={
                "require": ["exp", "sub"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": bool(audience),
            },
        )
        now_s = self._clock.now_us() / US_PER_S
        if _seconds(claims["exp"]) + self._leeway_s <= now_s:
            raise jwt.ExpiredSignatureError
        if _seconds(claims.get("nbf", 0)) - self._leeway_s > now_s:
            raise jwt.ImmatureSignatureError
        return claims

    def _key(self, key_id: str) -> PyJWK | None:
        if not self._jwks:
            return None
        # One reads. Who has a known key goes on; the others wait: nobody is refused for being second.
        if self._is_due(key_id) and self._reading.acquire(blocking=key_id not in self._keys):
            try:
                if self._is_due(key_id):
                    self._reread()
            finally:
                self._reading.release()
        return self._keys.get(key_id)

    def _is_due(self, key_id: str) -> bool:
        age_us = self._clock.now_us() - self._read_at_us
        return age_us >= (_KEEP_S if key_id in self._keys else _REREAD_S) * US_PER_S

    def _reread(self) -> None:
        self._read_at_us = self._clock.now_us()
        try:
            self._keys = _keys_of(self._fetch(self._jwks))
        except (OSError, HTTPException, ValueError, TypeError, RecursionError, jwt.PyJWTError) as exc:
            # The keys that are known stay good while the issuer cannot be read.
            log.warning("tollkeeper.sessions.jwks_unreadable", extra={"reason": str(exc)})


def _session(claims: dict[str, Any], account_claim: str) -> Session | None:
    account_id, user_id = claims.get(account_claim), claims["sub"]
    if not (isinstance(account_id, str) and isinstance(user_id, str) and account_id and user_id):
        return None
    return Session(account_id, user_id)


def _seconds(claim: object) -> float:
    if isinstance(claim, bool) or not isinstance(claim, int | float):
        raise ValueError("the times of a token are numbers")
    return claim


def _keys_of(jwks: bytes) -> dict[str, PyJWK]:
    """Return the public keys of a JWKS by their ids; a shared secret in it is nobody's signature."""
    document = json.loads(jwks)
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ValueError("a JWKS is an object with an array of keys")
    public = [key for key in found if isinstance(key, dict) and key.get("kty") in _PUBLIC_KEY_TYPES]
    return {key.key_id or "": key for key in PyJWKSet.from_dict({"keys": public}).keys}


def _read(source: str) -> bytes:
    if source.startswith("https://"):
        with urllib.request.urlopen(source, timeout=5) as answer:
            return bytes(answer.read(_JWKS_BYTES_MAX))
    return Path(source).read_bytes()
