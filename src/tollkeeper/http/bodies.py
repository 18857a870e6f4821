"""Reading request bodies within bounds: size as sent, size after decompression, media type."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from tollkeeper.errors import BodyTooLarge, Malformed, UnsupportedMediaType
from tollkeeper.http.asgi_types import RawHeaders, Receive

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_LENGTH_DIGITS_MAX: Final = 18
_PIECE_BYTES: Final = 64 * 1024
GZIP_RATIO_MAX: Final = 250
"""
Most bytes that a byte of gzip may stand for. Batches of events in ../shared/data reach 26, events alike but for
their numbers 90, events padded with tags of one letter 150; deflate itself can reach 1,032.
"""
GZIP_FREE_BYTES: Final = 1024 * 1024
"""A body that decompresses to no more than this may have any ratio."""
GZIP_MEMBERS_MAX: Final = 10_000
"""A body of empty members costs time for nothing; a member per 6 KB of the largest body is plenty."""


async def read_body(
    receive: Receive, bytes_max: int, arrived: Callable[[int], None] = lambda size: None
) -> bytes:
    """
    Return the whole body.

    Args:
        arrived: Called with the size of each piece before the next one is read; what it raises ends the reading.

    Raises:
        BodyTooLarge: It is longer than *bytes_max*; the rest is not read.
        Malformed: It ended before its stated length, or in the middle of a chunk.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise broken_off()
    if not message.get("more_body", False):
        if len(body) > bytes_max:
            raise too_large(bytes_max)
        arrived(len(body))
        return body
    pieces = [body]
    size = len(body)
    arrived(size)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise broken_off()
        piece = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise too_large(bytes_max)
        arrived(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


def check_length(headers: RawHeaders, bytes_max: int) -> None:
    """Raise `BodyTooLarge` when the stated length is over *bytes_max*, before anything is read."""
    length = header(headers, b"content-length")
    # By length first: Python does not read a number of thousands of digits.
    if length.isdigit() and (len(length) > _LENGTH_DIGITS_MAX or int(length) > bytes_max):
        raise too_large(bytes_max)


def decompressed(body: bytes, headers: RawHeaders, bytes_max: int) -> bytes:
    """
    Return *body* without its content encoding (gzip, or none).

    Raises:
        UnsupportedMediaType: Another encoding.
        BodyTooLarge: It would decompress to more than *bytes_max*, or to more than `GZIP_RATIO_MAX` times its size;
            the bomb is not blown up.
        Malformed: It is not gzip.
    """
    encoding = header(headers, b"content-encoding").strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding != b"gzip":
        raise UnsupportedMediaType(
            f"Content-Encoding must be gzip, or left out, not {encoding[:64].decode('latin-1')!r}"
        )
    pieces = []
    size = members = 0
    engine = None
    try:
        # In pieces: the engine copies what follows the end of a member.
        for start in range(0, len(body), _PIECE_BYTES):
            rest = body[start : start + _PIECE_BYTES]
            permitted = min(bytes_max, max(GZIP_FREE_BYTES, (start + len(rest)) * GZIP_RATIO_MAX))
            while rest:
                if engine is None:
                    # Concatenated members are one body (RFC 1952, section 2.2).
                    engine = zlib.decompressobj(_GZIP_WINDOW)
                    members += 1
                    if members > GZIP_MEMBERS_MAX:
                        raise Malformed(f"the gzip body has more than {GZIP_MEMBERS_MAX} members")
                piece = engine.decompress(rest, permitted - size + 1)
                size += len(piece)
                if size > bytes_max:
                    raise too_large(bytes_max)
                if size > permitted:
                    raise BodyTooLarge(
                        f"the gzip body decompresses to over {GZIP_RATIO_MAX} times its size: send it as it is"
                    )
                pieces.append(piece)
                rest = engine.unconsumed_tail
                if engine.eof:
                    rest, engine = engine.unused_data, None
    except zlib.error:
        raise Malformed("the body must be gzip, since Content-Encoding says so") from None
    if engine is not None:
        raise Malformed("the gzip body ends too early")
    return b"".join(pieces)


def header(headers: RawHeaders, name: bytes) -> bytes:
    """Return the value of a header, or `b""`. *name* is lower-case."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def broken_off() -> Malformed:
    """Return what to say of a body whose end never came; its sender may still be listening."""
    return Malformed("the body broke off before its end")


def too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {bytes_max} bytes: send less at once")
