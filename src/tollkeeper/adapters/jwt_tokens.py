"""Signs and verifies JSON Web Tokens with PyJWT, and reads the public keys of another login: `ports.TokenVerifier`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any, Final, cast

import jwt
from jwt import PyJWK, PyJWKSet

from tollkeeper.adapters.jwks import read_jwks
from tollkeeper.ports import TokenHeader

_PUBLIC_KEY_TYPES: Final = ("RSA", "EC", "OKP")
_OPTIONS: Final = {
    "require": ["exp", "sub"],
    # The caller checks the times, by its own clock.
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


class JwtTokens:
    """
    Any thread may call.

    Args:
        fetch: Returns the document at a URL or path, as `jwks.read_jwks` does.
    """

    def __init__(self, fetch: Callable[[str], bytes] = read_jwks) -> None:
        self._fetch = fetch

    def sign(self, claims: Mapping[str, Any], secret: str, algorithm: str) -> str:
        return jwt.encode(dict(claims), secret, algorithm=algorithm)

    def header(self, token: str) -> TokenHeader:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, RecursionError) as exc:  # The last from JSON nested without end.
            raise ValueError(f"not a token: {exc}") from exc
        return TokenHeader(header.get("alg"), str(header.get("kid", "")))

    def verify(
        self, token: str, key: object, *, algorithms: Sequence[str], issuer: str, audience: str
    ) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                cast("PyJWK | str", key),
                algorithms=list(algorithms),
                issuer=issuer or None,
                audience=audience or None,
                options=cast("Any", {**_OPTIONS, "verify_aud": bool(audience)}),
            )
        except (jwt.PyJWTError, RecursionError) as exc:
            raise ValueError(f"not a good token: {exc}") from exc
        return claims

    def public_keys(self, source: str) -> Mapping[str, object]:
        try:
            return _keys_of(self._fetch(source))
        except HTTPException as exc:
            raise OSError(f"no whole HTTP answer: {exc}") from exc
        except (TypeError, RecursionError, jwt.PyJWTError) as exc:
            raise ValueError(f"not a JWKS: {exc}") from exc


def _keys_of(jwks: bytes) -> dict[str, PyJWK]:
    """Return the public keys of a JWKS by their ids; a shared secret in it is ignored."""
    document = json.loads(jwks)
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ValueError("a JWKS must be an object with an array of keys")
    public = [key for key in found if isinstance(key, dict) and key.get("kty") in _PUBLIC_KEY_TYPES]
    return {key.key_id or "": key for key in PyJWKSet.from_dict({"keys": public}).keys}
