"""Reading request bodies within bounds: size as sent, size after decompression, media type."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from tollkeeper.errors import BodyTooLarge, Malformed, UnsupportedMediaType

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Iterable[tuple[bytes, bytes]]

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class ClientGone(Exception):
    """The client closed the connection before its body was complete: nobody waits for an answer."""


async def read_body(receive: Receive, bytes_max: int) -> bytes:
    """
    Return the whole body.

    Raises:
        BodyTooLarge: It is longer than *bytes_max*; the rest is not read.
        ClientGone: The connection closed.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientGone
    if not message.get("more_body", False):
        if len(body) > bytes_max:
            raise too_large(bytes_max)
        return body
    pieces = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise too_large(bytes_max)
        pieces.append(piece)
    return b"".join(pieces)


def check_length(headers: Headers, bytes_max: int) -> None:
    """Raise `BodyTooLarge` when the stated length is over *bytes_max*, before anything is read."""
    length = header(headers, b"content-length")
    if length.isdigit() and int(length) > bytes_max:
        raise too_large(bytes_max)


def decompressed(body: bytes, headers: Headers, bytes_max: int) -> bytes:
    """
    Return *body* without its content encoding (gzip, or none).

    Raises:
        UnsupportedMediaType: Another encoding.
        BodyTooLarge: It would decompress to more than *bytes_max*; the bomb is not blown up.
        Malformed: It is not gzip.
    """
    encoding = header(headers, b"content-encoding").strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding != b"gzip":
        raise UnsupportedMediaType("content-encoding is gzip, or none.")
    pieces = []
    size = 0
    rest = body
    try:
        # Concatenated members are one body (RFC 1952, section 2.2).
        while rest:
            engine = zlib.decompressobj(_GZIP_WINDOW)
            piece = engine.decompress(rest, bytes_max - size + 1)
            size += len(piece)
            if size > bytes_max:
                raise too_large(bytes_max)
            pieces.append(piece)
            if not engine.eof:
                raise Malformed("the gzip body ends too early")
            rest = engine.unused_data
    except zlib.error:
        raise Malformed("the body is not gzip, though content-encoding says so") from None
    return b"".join(pieces)


def header(headers: Headers, name: bytes) -> bytes:
    """Return the value of a header, or `b""`. *name* is lower-case."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {bytes_max} bytes: send less at once")
