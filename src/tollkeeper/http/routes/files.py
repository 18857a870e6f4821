"""The declarative file as the body of a request."""

from __future__ import annotations

from tollkeeper.errors import Malformed, UnsupportedMediaType
from tollkeeper.http.bodies import decompressed, header
from tollkeeper.http.routes.calls import APPLY_BYTES_MAX, AnyRequest


def toml_of(request: AnyRequest, body: bytes) -> str:
    """
    Return the text of a declarative file.

    Raises:
        UnsupportedMediaType, BodyTooLarge, Malformed: It is none, too large, or not UTF-8.
    """
    headers = request.scope["headers"]
    media_type = header(headers, b"content-type").partition(b";")[0].strip().lower()
    if media_type not in (b"application/toml", b"text/plain", b"text/toml", b""):
        raise UnsupportedMediaType(
            "Content-Type must be application/toml or text/plain (curl: `-H 'Content-Type: application/toml'`)"
        )
    try:
        return decompressed(body, headers, APPLY_BYTES_MAX).decode()
    except UnicodeDecodeError:
        raise Malformed("the file is not UTF-8") from None
