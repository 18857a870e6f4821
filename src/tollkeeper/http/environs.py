"""
A WSGI environ (PEP 3333) as the gate sees a request: with the method, path and headers that ASGI would have.

A path in an environ is the bytes of the percent-decoded path, each shown as one latin-1 character; a mounted
application's path is in two parts. Repeated headers are one value, as the server joined them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from tollkeeper.http.asgi_types import RawHeaders

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

_OF_THE_BODY: Final = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}


def scope_of(environ: WSGIEnvironment) -> dict[str, Any]:
    """
    Return the ASGI scope of a request: `type`, `method`, `path`, `root_path`, `query_string`, `headers`.

    The path is whole, mount point included, as in ASGI, and never empty; what is not UTF-8 becomes U+FFFD.
    """
    root_path = _decoded(environ.get("SCRIPT_NAME", ""))
    return {
        "type": "http",
        "method": environ["REQUEST_METHOD"].upper(),
        "path": _decoded(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")) or "/",
        "root_path": root_path,
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "headers": _headers(environ),
    }


def status_line(status: int) -> str:
    """Return *status* as `start_response` takes it, with its phrase."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Status"  # Of a vendor's own; PEP 3333 requires a phrase.


def text_headers(headers: RawHeaders) -> list[tuple[str, str]]:
    """Return *headers* as `start_response` takes them."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _decoded(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")


def _headers(environ: WSGIEnvironment) -> list[tuple[bytes, bytes]]:
    headers = [
        (name, environ[key].encode("latin-1")) for key, name in _OF_THE_BODY.items() if environ.get(key)
    ]
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            headers.append((key[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1")))
    return headers
