"""
Session tokens: who signed in to a dashboard.

Two kinds are accepted. Our own login's are JWTs that this installation signs (HMAC) with a secret that it
keeps. Another login's are JWTs verified against a JWKS: only the algorithms of the allow-list, the issuer and
audience that are set, expiry with a stated leeway; unknown key ids make the JWKS be read again, at most once
a minute, so that its keys can rotate.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
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
_TOKEN_CHARS_MAX: Final = 8_192
_JWKS_BYTES_MAX: Final = 1 << 20


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
            key = self._key(str(header.get("kid", "")))
            if key is None or header.get("alg") not in self._algorithms:
                return None
            claims = self._decoded(token, key, self._algorithms, self._issuer, self._audience)
            return _session(claims, self._account_claim)
        except (jwt.PyJWTError, ValueError):
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
        now_s = self._clock.now_us() // US_PER_S
        if int(claims["exp"]) + self._leeway_s <= now_s:
            raise jwt.ExpiredSignatureError
        if int(claims.get("nbf", 0)) - self._leeway_s > now_s:
            raise jwt.ImmatureSignatureError
        return claims

    def _key(self, key_id: str) -> PyJWK | None:
        if not self._jwks:
            return None
        found = self._keys.get(key_id)
        now_us = self._clock.now_us()
        if found is None and now_us - self._read_at_us >= _REREAD_S * US_PER_S:
            self._read_at_us = now_us
            try:
                keys = PyJWKSet.from_dict(json.loads(self._fetch(self._jwks))).keys
            except (OSError, ValueError, jwt.PyJWTError):
                # The keys that are known stay good while the issuer cannot be read.
                return None
            self._keys = {key.key_id or "": key for key in keys}
            found = self._keys.get(key_id)
        return found


def _session(claims: dict[str, Any], account_claim: str) -> Session | None:
    account_id = claims.get(account_claim)
    if not isinstance(account_id, str) or not account_id:
        return None
    return Session(account_id, str(claims["sub"]))


def _read(source: str) -> bytes:
    if source.startswith("https://"):
        with urllib.request.urlopen(source, timeout=5) as answer:
            return bytes(answer.read(_JWKS_BYTES_MAX))
    return Path(source).read_bytes()
