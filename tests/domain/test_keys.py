"""Secrets have entropy, are stored as hashes, and are never shown in full."""

from __future__ import annotations

import random
import secrets
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain import keys
from tollkeeper.domain.catalog import Key
from tollkeeper.domain.instants import to_us
from tollkeeper.profiles import load, names

PREFIXES = [
    *(load(name).key_prefix for name in names()),
    keys.NATIVE_PREFIX,
    keys.OPERATOR_PREFIX,
    keys.MANAGEMENT_PREFIX,
]
EXPIRES_AT = datetime(2026, 1, 31, tzinfo=UTC)


@given(st.sampled_from(PREFIXES), st.randoms(use_true_random=False))
def test_a_secret_is_its_prefix_and_190_bits(prefix: str, source: random.Random):
    secret = keys.new_secret(prefix, source.choice)
    assert secret.startswith(prefix)
    drawn = secret.removeprefix(prefix)
    assert len(drawn) == keys.SECRET_CHARS
    assert set(drawn) <= set(keys.BASE62)
    assert len(set(keys.BASE62)) == 62


@given(st.sampled_from(PREFIXES), st.randoms(use_true_random=False))
def test_what_is_shown_tells_keys_apart_and_gives_little_away(prefix: str, source: random.Random):
    secret = keys.new_secret(prefix, source.choice)
    shown = keys.shown_prefix(secret)
    assert shown == secret[: len(prefix) + 4] + "…"
    assert len(secret) - len(shown.removesuffix("…")) >= 22, "131 bits or more stay hidden"


@given(st.text(min_size=1, max_size=80))
def test_at_most_a_third_of_a_foreign_secret_is_shown(secret: str):
    """An imported secret may have any form, an underscore at its very end included."""
    shown = keys.shown_prefix(secret).removesuffix("…")
    assert secret.startswith(shown)
    assert len(shown) <= len(secret) // 3 + 1


def test_the_hash_is_the_plain_sha256_that_an_import_brings():
    """The example of FIPS 180-2; any tool makes the same digits from a secret."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert keys.hash_secret("abc") == expected


def test_no_prefix_begins_another():
    """The kind of a credential is told from its beginning, so none may pass for another."""
    assert len(set(PREFIXES)) == len(PREFIXES)
    for prefix in (keys.OPERATOR_PREFIX, keys.MANAGEMENT_PREFIX):
        assert not any(other != prefix and other.startswith(prefix) for other in PREFIXES)


def _stored(**changes: object) -> keys.StoredKey:
    entry = Key(id="k1", account="acme", **changes)
    return keys.StoredKey(
        entry=entry,
        secret_sha256=keys.hash_secret("tk_secret"),
        shown_prefix="tk_s…",
        created_at_us=0,
        updated_at_us=0,
        rotation_chain_id="k1",
    )


@pytest.mark.parametrize(
    ("state", "before", "after"),
    [
        ("active", "active", "expired"),
        ("inactive", "inactive", "expired"),
        ("revoked", "revoked", "revoked"),
        ("deleted", "deleted", "deleted"),
    ],
)
def test_a_key_expires_at_its_instant_unless_it_ended_before(state, before, after):
    stored = _stored(state=state, expires_at=EXPIRES_AT)
    assert stored.state_at(to_us(EXPIRES_AT) - 1) == before
    assert stored.state_at(to_us(EXPIRES_AT)) == after


@given(st.integers(0, 2**60))
def test_a_key_without_expiry_keeps_its_state(now_us):
    assert _stored(state="active").state_at(now_us) == "active"


def test_neither_secret_nor_hash_is_in_what_is_logged():
    assert keys.hash_secret("tk_secret") not in repr(_stored())


def test_secrets_from_the_system_differ():
    assert keys.new_secret("tk_", secrets.choice) != keys.new_secret("tk_", secrets.choice)
