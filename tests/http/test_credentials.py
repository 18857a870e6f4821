"""One reader of credentials serves the API, the hot endpoints and the middleware."""

from __future__ import annotations

import pytest

from tollkeeper.http.credentials import SECRET_CHARS_MAX, SECRETS_MAX, Ambiguous, credentials, the_known

LONGEST = b"k" * SECRET_CHARS_MAX


@pytest.mark.parametrize(
    ("headers", "found", "found_bare"),
    [
        ([], [], []),
        ([(b"authorization", b"Bearer tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"authorization", b"bearer  tk_1 ")], ["tk_1"], ["tk_1"]),
        ([(b"x-api-key", b" tk_1 ")], ["tk_1"], ["tk_1"]),
        ([(b"api-key", b"tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"x-goog-api-key", b"tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"x-api-key", b"tk_1"), (b"authorization", b"Bearer tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"x-api-key", b"tk_2"), (b"authorization", b"Bearer tk_1")], ["tk_1", "tk_2"], ["tk_1", "tk_2"]),
        ([(b"authorization", b"Bearer tk_1"), (b"x-api-key", b"tk_2")], ["tk_1", "tk_2"], ["tk_1", "tk_2"]),
        ([(b"authorization", b"tk_1")], [], ["tk_1"]),
        ([(b"authorization", b"Basic dXNlcg==")], [], []),
        ([(b"authorization", b"Basic dXNlcg=="), (b"x-api-key", b"tk_2")], ["tk_2"], ["tk_2"]),
        ([(b"x-api-key", b"tk_2"), (b"authorization", b"Basic dXNlcg==")], ["tk_2"], ["tk_2"]),
        ([(b"authorization", b"Bearer "), (b"x-api-key", b"tk_2")], ["tk_2"], ["tk_2"]),
        ([(b"authorization", b"Bearer " + LONGEST)], [LONGEST.decode()], [LONGEST.decode()]),
        ([(b"authorization", b"Bearer " + LONGEST + b"k")], [], []),
        ([(b"x-api-key", LONGEST + b"k")], [], []),
    ],
)
def test_a_credential_is_read_alike_at_every_door(
    headers: list[tuple[bytes, bytes]], found: list[str], found_bare: list[str]
) -> None:
    """Only a provider's own API takes a key without a scheme; nothing else differs between the doors."""
    assert credentials(headers) == found
    assert credentials(headers, bare=True) == found_bare


def test_one_request_cannot_have_many_keys_looked_up() -> None:
    headers = [(b"x-api-key", f"tk_{number}".encode()) for number in range(100)]
    found = credentials([*headers, (b"authorization", b"Bearer tk_good")])
    assert (len(found), found[0]) == (SECRETS_MAX, "tk_good")


def test_of_several_credentials_the_known_one_counts_and_two_are_none() -> None:
    assert the_known([], lambda secret: True) == ""
    assert the_known(["a", "b"], lambda secret: secret == "b") == "b"
    assert the_known(["a", "b"], lambda secret: False) == "a"
    with pytest.raises(Ambiguous):
        the_known(["a", "b", "c"], lambda secret: secret != "a")
