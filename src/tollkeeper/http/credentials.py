"""The credential of a request: a key as `Authorization: Bearer …` or as `X-API-Key`."""

from __future__ import annotations

from typing import Final

from tollkeeper.http.asgi_types import RawHeaders

SECRET_CHARS_MAX: Final = 512
"""No key is longer. `wire.AuthorizeRequest` has the same bound."""


def credential(headers: RawHeaders, *, bare: bool = False) -> str:
    """
    Return the secret in *headers*, or `""`. `Authorization` counts before `X-API-Key`.

    Args:
        bare: Take the whole value of `Authorization` where it has no scheme `Bearer`, as clients of a provider's API
            may send their key.
    """
    found = ""
    for name, value in headers:
        if name == b"authorization":
            text = value.decode("latin-1")
            scheme, _, rest = text.partition(" ")
            if scheme.lower() != "bearer":
                rest = text if bare else ""
            return rest.strip() if len(rest) <= SECRET_CHARS_MAX else ""
        if name == b"x-api-key" and len(value) <= SECRET_CHARS_MAX:
            found = value.decode("latin-1").strip()
    return found
