"""Bytes that were good once: what a broken client, a cut connection or somebody curious makes of them."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

ODD: Final = (
    b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\\", b'"', b"\\u0000",
    b"\\ud800", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"1e400", b"-0.0", b"NaN",
    b"9" * 30, b"1" * 5000, b"[" * 2000, b'{"a":' * 2000, b"'" * 3, b" " * 50, b"=", b"2" * 6, b"\x1f\x8b",
)  # fmt: skip
"""Pieces that break parsers: half a surrogate, numbers without end, nesting without end."""


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Return *good* with up to four edits."""
    data = good
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from((0, 0, 1, 2, 8, 40))))
        piece = draw(st.sampled_from(ODD) | st.binary(max_size=6) | st.just(data[stop : stop + 60]))
        data = data[:start] + piece + data[stop:]
    return data
