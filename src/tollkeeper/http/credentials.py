"""
The credential of a request, wherever its client puts it: one reader for all doors.

`Authorization: Bearer …`, or the bare key, and the headers of the providers' own clients. A proxy or a browser may add
an `Authorization` of its own (`Basic …`), and the order of headers has no meaning (RFC 9110, section 5.3): so all are
looked at, and the one that is known counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import parse_qsl

from tollkeeper.http.asgi_types import RawHeaders

SECRET_CHARS_MAX: Final = 512
"""No key is longer."""
TOKEN_CHARS_MAX: Final = 8_192
"""No session token is longer. `wire.AuthorizeRequest` has the same bound."""
HEADERS: Final = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
"""Where a key may be."""
PARAMETERS_MAX: Final = 200
"""Most fields of a query that are looked at for a key."""
SECRETS_MAX: Final = 5
"""Most that one request has looked up: each may be a read of the catalog."""


class Ambiguous(Exception):
    """A request has two credentials that are known and differ."""


def credentials(
    headers: RawHeaders,
    *,
    bare: bool = False,
    chars_max: int = SECRET_CHARS_MAX,
    query: bytes = b"",
    parameter: str = "",
) -> list[str]:
    """
    Return the distinct secrets in *headers*, that of `Authorization` first; at most `SECRETS_MAX`.

    Args:
        bare: Take the whole value of an `Authorization` without a scheme, as clients of a provider's API may send
            their key.
        chars_max: Longer values are passed over.
        query: The query string of the request, whose *parameter* is looked at last; not looked at without a name.
    """
    found: list[str] = []
    for name, value in headers:
        if name in HEADERS and len(value) <= chars_max + len("Bearer "):
            secret = _secret(name, value.decode("latin-1").strip(), bare=bare)
            if secret and secret not in found and len(secret) <= chars_max:
                # What `Authorization` has is tried first, whatever the order of the headers.
                found.insert(0 if name == b"authorization" else len(found), secret)
    for field, secret in _pairs(query) if parameter else ():
        if field == parameter and secret and secret not in found and len(secret) <= chars_max:
            found.append(secret)
    return found[:SECRETS_MAX]


def query_without(query: bytes, parameter: str) -> bytes:
    """Return a query string without *parameter*: what it carries is a secret, and applications log queries."""
    parts = query.split(b"&")
    return b"&".join(part for part in parts if not any(name == parameter for name, _ in _pairs(part)))


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX)
    except ValueError:
        return []  # Of more fields, none is read: the request then has no key there.


def has_credential(headers: RawHeaders) -> bool:
    """Return whether a caller tried to authenticate."""
    return bool(credentials(headers))


def the_known(secrets: Sequence[str], is_known: Callable[[str], bool]) -> str:
    """
    Return the one of several *secrets* that is known; the first when none is, `""` of none.

    Raises:
        Ambiguous: Two are known: nobody can say whom the request is for.
    """
    known = [secret for secret in secrets if is_known(secret)]
    if len(known) > 1:
        raise Ambiguous
    return next(iter(known or secrets), "")


def _secret(name: bytes, value: str, *, bare: bool) -> str:
    if name != b"authorization":
        return value
    scheme, _, rest = value.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    return value if bare and not rest else ""
