"""When a key was made and what it is named by: imported, kept, and never ignored."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.engines import fresh_engine
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration
from tollkeeper.catalog.manage import Manage
from tollkeeper.domain.catalog import Account, Key
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.keys import hash_secret
from tollkeeper.errors import BadParameter, Conflict
from tollkeeper.testing import ManualClock

ACCOUNT = '[[accounts]]\nid = "acme"\nname = "Acme"\n'
MADE = datetime(2024, 2, 29, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.fixture
def manage(tmp_path: Path, clock: ManualClock) -> Iterator[Manage]:
    with fresh_engine("sqlite-memory", tmp_path) as engine:
        found = Manage(SqlCatalogStore(engine), clock, on_change=lambda _: None, post_grant=lambda _: True)
        found.put(Account(id="acme", name="Acme"))
        yield found


def apply(manage: Manage, text: str) -> list[str]:
    applied = apply_declaration(parse_declaration(ACCOUNT + text), manage, dry_run=False)
    return [change.action for change in applied.changes if change.kind == "keys"]


def imported(secret: str, more: str = "") -> str:
    return f'[[keys]]\naccount = "acme"\nsha256 = "{hash_secret(secret)}"\n{more}\n'


def test_a_file_imports_when_a_key_was_made(manage: Manage) -> None:
    text = imported("old", 'id = "k1"\ncreated_at = "2024-02-29T14:00:00.123456+02:00"')
    assert apply(manage, text) == ["created"]
    assert manage.stored_key("acme", "k1").created_at_us == int(MADE.timestamp() * 10**6)
    assert apply(manage, text) == ["unchanged"]
    assert apply(manage, imported("old", 'id = "k1"\nname = "n"')) == ["changed"], "left out, it stays"
    assert from_us(manage.stored_key("acme", "k1").created_at_us) == MADE
    with pytest.raises(Conflict, match=r"created_at.*2024-02-29T12:00:00"):
        apply(manage, imported("old", 'id = "k1"\ncreated_at = 2024-03-01T00:00:00Z'))


@pytest.mark.parametrize("made", [datetime(1969, 12, 31, tzinfo=UTC), None])
def test_no_key_is_made_before_1970_or_in_the_future(
    manage: Manage, clock: ManualClock, made: datetime | None
) -> None:
    key = Key(id="k1", account="acme", created_at=made or clock.now() + timedelta(seconds=1))
    with pytest.raises(BadParameter, match="created_at must be between 1970 and now"):
        manage.issue_key(key)
    with pytest.raises(BadParameter, match="offset"):
        manage.issue_key(Key(id="k1", account="acme", created_at=datetime(2024, 1, 1)))


def test_a_rotation_makes_a_key_now(manage: Manage, clock: ManualClock) -> None:
    manage.issue_key(Key(id="k1", account="acme", created_at=MADE))
    clock.advance(seconds=10)
    new = manage.rotate_key("acme", "k1", 0)
    assert manage.stored_key("acme", new.entry.id).created_at_us == clock.now_us()
    assert from_us(manage.stored_key("acme", "k1").created_at_us) == MADE


def test_a_key_without_id_has_a_uuid_that_stays(manage: Manage) -> None:
    text = imported("one", 'name = "a"') + imported("two", 'name = "a"')
    text += '[[keys]]\naccount = "acme"\nname = "web"\n[[keys]]\naccount = "acme"\nname = "web"\nprofile = "shoal"\n'
    assert apply(manage, text) == ["created"] * 4
    keys = manage.list("keys", account="acme", after=None, limit=10)
    assert {str(uuid.UUID(key.entry_id)) for key in keys} == {key.entry_id for key in keys}
    assert apply(manage, text) == ["unchanged"] * 4
    assert apply(manage, imported("one", 'name = "b"')) == ["changed"], "it is known by its hash"


def test_two_keys_that_would_be_one_are_told(manage: Manage) -> None:
    text = '[[keys]]\naccount = "acme"\n[[keys]]\naccount = "acme"\nstate = "inactive"\n'
    with pytest.raises(
        BadParameter, match=r"keys\[1\]: it has the account, .* of keys\[0\].*give each a name"
    ):
        apply(manage, text)


def test_what_is_no_id_is_still_told() -> None:
    for text, field in (('[[keys]]\nid = ""\naccount = "a"', "id"), ("[[keys]]\nname = 'a'", "account")):
        with pytest.raises(BadParameter) as told:
            parse_declaration(text)
        assert told.value.field == f"keys[0].{field}"
