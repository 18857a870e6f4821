"""One reader of credentials serves the API, the hot endpoints and the middleware."""

from __future__ import annotations

import pytest

from tollkeeper.http.credentials import SECRET_CHARS_MAX, credential

LONGEST = b"k" * SECRET_CHARS_MAX


@pytest.mark.parametrize(
    ("headers", "found", "found_bare"),
    [
        ([], "", ""),
        ([(b"authorization", b"Bearer tk_1")], "tk_1", "tk_1"),
        ([(b"authorization", b"bearer  tk_1 ")], "tk_1", "tk_1"),
        ([(b"x-api-key", b" tk_1 ")], "tk_1", "tk_1"),
        ([(b"x-api-key", b"tk_2"), (b"authorization", b"Bearer tk_1")], "tk_1", "tk_1"),
        ([(b"authorization", b"tk_1")], "", "tk_1"),
        ([(b"authorization", b"Basic dXNlcg==")], "", "Basic dXNlcg=="),
        ([(b"authorization", b"Bearer "), (b"x-api-key", b"tk_2")], "", ""),
        ([(b"authorization", b"Bearer " + LONGEST)], LONGEST.decode(), LONGEST.decode()),
        ([(b"authorization", b"Bearer " + LONGEST + b"k")], "", ""),
        ([(b"x-api-key", LONGEST + b"k")], "", ""),
    ],
)
def test_a_credential_is_read_alike_at_every_door(
    headers: list[tuple[bytes, bytes]], found: str, found_bare: str
) -> None:
    """Only a provider's own API takes a key without a scheme; nothing else differs between the doors."""
    assert credential(headers) == found
    assert credential(headers, bare=True) == found_bare
