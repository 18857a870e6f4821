"""The manage service: what may change, what may not, and what is told to whom."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from tests.engines import empty_tables, fresh_engine
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.catalog.changes import Change, IssuedKey
from tollkeeper.catalog.key_rules import KEY_TRANSITIONS
from tollkeeper.catalog.manage import Manage
from tollkeeper.catalog.quotas import TOMBSTONES_PER_KEY
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import (
    KINDS,
    Account,
    Budget,
    Entry,
    Grant,
    Key,
    Limit,
    Plan,
    Price,
    Project,
    Route,
    Subscription,
    Webhook,
)
from tollkeeper.domain.keys import hash_secret
from tollkeeper.errors import (
    BadParameter,
    Conflict,
    IdempotencyConflict,
    NotFound,
    QuotaExceeded,
    TollkeeperError,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
SHA = "ab" * 32


class StoppedClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def now_us(self) -> int:
        return (self.at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class World:
    """A manage service over a real store, and everything that it told the world."""

    def __init__(self, engine: sa.Engine) -> None:
        self.store = SqlCatalogStore(engine)
        self.clock = StoppedClock()
        self.told: list[Change] = []
        self.posted: dict[tuple[str, str], Grant] = {}
        self.used: set[str] = set()
        characters = itertools.count()
        self.manage = Manage(
            self.store,
            self.clock,
            choice=lambda alphabet: alphabet[next(characters) * 7 % len(alphabet)],
            on_change=self._on_change,
            post_grant=self._post,
            has_usage=self.used.__contains__,
            quotas={"keys": 3, "projects": 3, "webhooks": 1},
        )

    def _on_change(self, changes: Sequence[Change]) -> None:
        # Changes are told once they are in force: another reader sees them by now.
        for change in changes:
            if change.action == "created":
                assert self.store.get(change.kind, change.id, change.account_id) is not None
        self.told.extend(changes)

    def _post(self, grant: Grant) -> bool:
        new = (grant.account, grant.id) not in self.posted
        self.posted[grant.account, grant.id] = grant
        return new

    def told_since(self) -> list[tuple[str, str, str]]:
        told = [(change.action, change.kind, change.id) for change in self.told]
        self.told.clear()
        return told


# The store's own contract runs on every engine; here one of each family will do.
@pytest.fixture(params=["sqlite-memory", "postgresql"], scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path_factory.mktemp("manage")) as engine:
        yield engine


@pytest.fixture
def world(engine: sa.Engine) -> World:
    empty_tables(engine)
    world = World(engine)
    for entry in (
        Plan(slug="pro"),
        Account(id="acme", name="Acme", plan="pro"),
        Account(id="beta", name="Beta"),
        Project(id="web", account="acme"),
    ):
        world.manage.put(entry)
    world.told.clear()
    return world


def refused(error: type[TollkeeperError], call: Callable[[], object]) -> TollkeeperError:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return caught.value


def test_a_put_is_told_once_with_what_differs(world: World) -> None:
    plan = Plan(slug="pro", name="Pro", price_nanos=5)
    change = world.manage.put(plan)
    assert (change.action, change.account_id) == ("changed", None)
    assert change.fields == {"name": ("", "Pro"), "price_nanos": (0, 5)}
    assert world.manage.put(plan).action == "unchanged"
    assert world.told == [change]
    assert world.manage.get("plans", "pro") == plan


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (Account(id="a/b", name=""), "id"),
        (Account(id="a", name="x" * 257), "name"),
        (Account(id="a", name="x\x00"), "name"),
        (Account(id="a", name="", metadata={"k": "\ud800"}), "metadata.k"),
        (Account(id="a", name="", time_zone="Mars/Base"), "time_zone"),
        (Account(id="a", name="", plan="nope"), "plan"),
        (Project(id="p", account="nope"), "account"),
        (
            Plan(slug="p", limits=[Limit(name="a", amount=1), Limit(name="b", amount=1, window="1y")]),
            "limits[1].window",
        ),
        (Plan(slug="p", limits=[Limit(name="a", amount=-1)]), "limits[0].amount"),
        (Subscription(id="s", account="acme", plan="pro", started_at=datetime(2026, 1, 1)), "started_at"),
        (
            Subscription(
                id="s",
                account="acme",
                plan="pro",
                started_at=datetime.fromisoformat("0001-01-01T00:00+14:00"),
            ),
            "started_at",
        ),
        (Key(id="k", account="acme", project="nope", sha256=SHA), "project"),
        (Key(id="k", account="beta", project="web", sha256=SHA), "project"),
        (Key(id="k", account="acme", profile="nope", sha256=SHA), "profile"),
        (Key(id="k", account="acme", state="deleted", sha256=SHA), "state"),
        (Key(id="k", account="acme", sha256="secret"), "sha256"),
        (Key(id="k", account="acme"), "sha256"),
        (Budget(id="b", account="beta", project="web", amount=1), "project"),
        (Budget(id="b", account="acme", key="nope", amount=1), "key"),
        (Budget(id="b", account="acme", amount=2**63), "amount"),
        (Grant(id="g", account="nope", amount_nanos=1), "account"),
        (Grant(id="g", account="acme", amount_nanos=0), "amount_nanos"),
        (Route(id="r", method="FETCH", path="/"), "method"),
        (Price(id="p", model="m", account="nope"), "account"),
    ],
)
def test_a_bad_entry_is_refused_with_its_field(world: World, entry: Entry, field: str) -> None:
    error = refused(BadParameter, lambda: world.manage.put(entry))
    assert isinstance(error, BadParameter)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert world.told == []
    assert world.store.get(entry.kind, entry.entry_id, getattr(entry, "account", None)) is None


def test_a_grant_is_posted_once_and_never_changes(world: World) -> None:
    grant = Grant(id="g1", account="acme", amount_nanos=5)
    assert [world.manage.put(grant).action for _ in range(2)] == ["created", "unchanged"]
    refused(IdempotencyConflict, lambda: world.manage.put(msgspec.structs.replace(grant, amount_nanos=6)))
    assert world.posted == {("acme", "g1"): grant}
    assert world.told_since() == [("created", "grants", "g1")]
    world.manage.put(msgspec.structs.replace(grant, account="beta", amount_nanos=7))
    assert len(world.posted) == 2
    refused(Conflict, lambda: world.manage.delete("grants", "g1", "acme"))


def test_a_grant_whose_posting_failed_is_posted_by_a_repeat(world: World) -> None:
    """A crash between the catalog's commit and the ledger's must not lose the money."""
    grant = Grant(id="g1", account="acme", amount_nanos=5)

    def crash(_: Grant) -> bool:
        raise ZeroDivisionError

    crashing = Manage(world.store, world.clock, on_change=world.told.extend, post_grant=crash)
    with pytest.raises(ZeroDivisionError):
        crashing.put(grant)
    assert world.manage.put(grant).action == "created"
    assert world.posted == {("acme", "g1"): grant}


def test_an_issued_key_shows_its_secret_once(world: World) -> None:
    issued = world.manage.issue_key(Key(id="k1", account="acme", profile="regsn", name="n"))
    assert issued.secret is not None
    assert issued.secret.startswith("regsn_live_")
    stored = world.manage.stored_key("acme", "k1")
    assert stored.secret_sha256 == hash_secret(issued.secret)
    assert stored.shown_prefix is not None
    assert issued.secret.startswith(stored.shown_prefix.removesuffix("…"))
    assert world.store.find_key_by_hash(hash_secret(issued.secret)) == stored
    assert world.manage.get("keys", "k1", "acme") == issued.entry
    for shown in (issued, stored, world.told, world.manage.put(issued.entry)):
        assert issued.secret not in repr(shown)
    assert world.told_since() == [("created", "keys", "k1")]


def test_a_management_key_has_its_own_prefix(world: World) -> None:
    issued = world.manage.issue_key(Key(id="m1", account="acme", role="management", profile="regsn"))
    assert (issued.secret or "").startswith("mk_")


def test_an_existing_secret_is_imported_by_its_hash(world: World) -> None:
    key = Key(id="k1", account="acme", sha256=hash_secret("sk_old"))
    assert world.manage.issue_key(key) == IssuedKey(
        entry=msgspec.structs.replace(key, sha256=None), secret=None
    )
    stored = world.store.find_key_by_hash(hash_secret("sk_old"))
    assert stored is not None
    assert (stored.entry.id, stored.entry.sha256, stored.shown_prefix) == ("k1", None, None)
    assert world.manage.put(key).action == "unchanged"
    assert world.manage.put(Key(id="k1", account="acme")).action == "unchanged"
    revoked = Key(id="k2", account="acme", sha256=hash_secret("sk_bad"), state="revoked")
    assert world.manage.put(revoked).action == "created"
    assert world.manage.stored_key("acme", "k2").revoked_at_us == world.clock.now_us()


def test_a_taken_id_or_secret_is_refused_without_telling_whose_it_is(world: World) -> None:
    world.manage.put(Key(id="k1", account="acme", sha256=SHA))
    for key in (
        Key(id="k1", account="beta"),
        Key(id="k1", account="acme"),
        Key(id="k2", account="beta", sha256=SHA),
    ):
        error = refused(Conflict, lambda key=key: world.manage.issue_key(key))  # type: ignore[misc]
        assert "acme" not in str(error)
        assert SHA not in str(error)
    refused(Conflict, lambda: world.manage.put(Key(id="k1", account="beta", sha256="cd" * 32)))
    world.manage.put(Price(id="p1", account="acme", model="m"))
    error = refused(Conflict, lambda: world.manage.put(Price(id="p1", account="beta", model="m")))
    assert "acme" not in str(error)


@pytest.mark.parametrize(
    "changes", [{"role": "management"}, {"type": "credit"}, {"profile": "shoal"}, {"sha256": "cd" * 32}]
)
def test_what_a_key_is_cannot_change(world: World, changes: dict[str, Any]) -> None:
    key = Key(id="k1", account="acme", sha256=SHA)
    world.manage.put(key)
    error = refused(Conflict, lambda: world.manage.put(msgspec.structs.replace(key, **changes)))
    assert str(error).startswith(f"{next(iter(changes))}: ")
    assert SHA not in str(error)
    assert world.manage.put(msgspec.structs.replace(key, name="n", project="web")).fields == {
        "name": ("", "n"),
        "project": (None, "web"),
    }


@pytest.mark.parametrize("changes", [{"project": None}, {"unit": "requests"}, {"project": None, "key": "k1"}])
def test_a_budget_keeps_what_its_counter_counts(world: World, changes: dict[str, Any]) -> None:
    world.manage.put(Key(id="k1", account="acme", sha256=SHA))
    budget = Budget(id="b1", account="acme", project="web", amount=5)
    world.manage.put(budget)
    refused(Conflict, lambda: world.manage.put(msgspec.structs.replace(budget, **changes)))
    assert world.manage.put(msgspec.structs.replace(budget, amount=6)).fields == {"amount": (5, 6)}


STATES = ("active", "inactive", "revoked", "deleted")
TO: dict[str, list[Any]] = {
    "active": [],
    "inactive": ["inactive"],
    "revoked": ["revoked"],
    "deleted": ["deleted"],
}


@pytest.mark.parametrize("by_put", [False, True])
@pytest.mark.parametrize("new", STATES)
@pytest.mark.parametrize("old", STATES)
def test_a_key_changes_state_only_where_that_is_legal(world: World, old: Any, new: Any, by_put: bool) -> None:
    """Revoked and deleted are for good: the holder of the secret must never get in again."""
    key = Key(id="k1", account="acme", sha256=SHA)
    world.manage.put(key)
    for state in TO[old]:
        world.manage.set_key_state("acme", "k1", state)
    world.told.clear()

    def change() -> Change:
        if by_put:
            return world.manage.put(msgspec.structs.replace(key, state=new))
        return world.manage.set_key_state("acme", "k1", new)

    if new == old:
        assert change().action == "unchanged"
        assert world.told == []
    elif (
        new
        in {
            "active": STATES,
            "inactive": STATES,
            "revoked": ("deleted",),
            "deleted": (),
        }[old]
    ):
        assert change().fields == {"state": (old, new)}
        assert len(world.told) == 1
    else:
        refused(Conflict, change)
        assert world.told == []
        new = old
    assert world.manage.stored_key("acme", "k1").entry.state == new
    assert new in KEY_TRANSITIONS


def test_expired_is_computed_never_set(world: World) -> None:
    refused(BadParameter, lambda: world.manage.set_key_state(None, "k1", "expired"))
    ends_at = START + timedelta(hours=1)
    world.manage.put(Key(id="k1", account="acme", sha256=SHA, expires_at=ends_at))
    world.clock.at = ends_at - timedelta(microseconds=1)
    assert world.manage.get("keys", "k1", "acme").state == "active"  # type: ignore[attr-defined]
    world.clock.at = ends_at
    expired = world.manage.get("keys", "k1", "acme")
    assert isinstance(expired, Key)
    assert expired.state == "expired"
    assert [key.state for key in world.manage.list("keys")] == ["expired"]  # type: ignore[attr-defined]
    assert world.manage.put(expired).action == "unchanged", "what get gives may be put back"
    refused(Conflict, lambda: world.manage.set_key_state("acme", "k1", "active"))
    later = msgspec.structs.replace(expired, expires_at=ends_at + timedelta(days=1))
    refused(BadParameter, lambda: world.manage.put(later))
    assert world.manage.put(msgspec.structs.replace(later, state="active")).action == "changed"
    assert world.manage.get("keys", "k1", "acme").state == "active"  # type: ignore[attr-defined]


def test_a_deleted_key_is_a_tombstone(world: World) -> None:
    """Its id and secret stay taken, so that old events name one key and a leaked secret stays dead."""
    key = Key(id="k1", account="acme", project="web", sha256=SHA)
    world.manage.put(key)
    assert world.manage.delete("keys", "k1", "acme").action == "deleted"
    assert world.manage.delete("keys", "k1", "acme").action == "unchanged"
    assert world.told_since() == [("created", "keys", "k1"), ("deleted", "keys", "k1")]
    assert world.manage.get("keys", "k1", "acme").state == "deleted"  # type: ignore[attr-defined]
    refused(Conflict, lambda: world.manage.put(key))
    refused(Conflict, lambda: world.manage.put(msgspec.structs.replace(key, state="deleted", name="n")))
    refused(Conflict, lambda: world.manage.issue_key(Key(id="k1", account="acme")))
    refused(Conflict, lambda: world.manage.issue_key(Key(id="k2", account="acme", sha256=SHA)))
    refused(Conflict, lambda: world.manage.rotate_key("acme", "k1", 0))
    refused(BadParameter, lambda: world.manage.put(Budget(id="b", account="acme", key="k1", amount=1)))


def test_a_rotation_overlaps_then_ends_the_old_key(world: World) -> None:
    key = Key(
        id="k1", account="acme", project="web", name="n", profile="shoal", limits=[Limit(name="l", amount=1)]
    )
    first = world.manage.issue_key(key)
    world.told.clear()
    second = world.manage.rotate_key("acme", "k1", 60)
    assert msgspec.structs.replace(second.entry, id="k1") == first.entry
    assert (second.secret or "").startswith("shoal_")
    assert second.secret != first.secret
    assert [told[:2] for told in world.told_since()] == [("created", "keys"), ("changed", "keys")]

    old, new = world.manage.stored_key(None, "k1"), world.manage.stored_key(None, second.entry.id)
    assert (old.replaced_by, old.rotation_chain_id, new.rotation_chain_id) == (new.entry.id, "k1", "k1")
    world.clock.at += timedelta(seconds=60, microseconds=-1)
    assert [key.state_at(world.clock.now_us()) for key in (old, new)] == ["active", "active"]
    world.clock.at += timedelta(microseconds=1)
    assert [key.state_at(world.clock.now_us()) for key in (old, new)] == ["expired", "active"]
    third = world.manage.rotate_key("acme", second.entry.id, 0)
    assert world.manage.stored_key(None, third.entry.id).rotation_chain_id == "k1"


def test_a_rotation_is_named_after_its_first_key(world: World) -> None:
    """By a number that is free; a key whose id is a UUID is followed by another one."""
    world.manage.issue_key(Key(id="k1", account="acme"))
    world.manage.issue_key(Key(id="k1-3", account="acme"))
    assert world.manage.rotate_key("acme", "k1", 60).entry.id == "k1-2"
    assert world.manage.rotate_key("acme", "k1-2", 60).entry.id == "k1-4"
    assert world.manage.rotate_key("acme", "k1-4", 60, new_id="live").entry.id == "live"
    assert world.manage.rotate_key("acme", "live", 60).entry.id == "k1-5"
    refused(Conflict, lambda: world.manage.rotate_key("acme", "k1-5", 60, new_id="k1-3"))
    refused(BadParameter, lambda: world.manage.rotate_key("acme", "k1-5", 60, new_id="no id"))
    long = "k" * 128
    world.manage.issue_key(Key(id=long, account="acme"))
    assert world.manage.rotate_key("acme", long, 60).entry.id == "k" * 123 + "-2"
    first = str(uuid.uuid4())
    world.manage.issue_key(Key(id=first, account="acme"))
    second = world.manage.rotate_key("acme", first, 60).entry.id
    assert uuid.UUID(second).version == 4
    assert second != first


def test_a_new_secret_that_could_never_work_is_refused(world: World) -> None:
    """An old key may be imported with its hash: it is history. A key that exists may be given an end in the past."""
    over = Key(id="k1", account="acme", expires_at=START)
    refused(BadParameter, lambda: world.manage.issue_key(over))
    refused(BadParameter, lambda: world.manage.apply([over]))
    world.manage.put(msgspec.structs.replace(over, sha256=SHA))
    assert world.manage.get("keys", "k1", "acme").state == "expired"  # type: ignore[attr-defined]
    issued = world.manage.issue_key(
        msgspec.structs.replace(over, id="k2", expires_at=START + timedelta(seconds=1))
    )
    world.manage.put(msgspec.structs.replace(issued.entry, expires_at=START - timedelta(days=1)))
    assert world.manage.get("keys", "k2", "acme").state == "expired"  # type: ignore[attr-defined]


def test_a_rotation_is_refused_where_it_cannot_be(world: World) -> None:
    world.manage.issue_key(Key(id="k1", account="acme"))
    for overlap_s in (-1, 10**9):
        refused(BadParameter, lambda o=overlap_s: world.manage.rotate_key("acme", "k1", o))  # type: ignore[misc]
    refused(NotFound, lambda: world.manage.rotate_key("beta", "k1", 0))
    world.manage.rotate_key("acme", "k1", 60)
    refused(Conflict, lambda: world.manage.rotate_key("acme", "k1", 60))
    world.clock.at += timedelta(seconds=60)
    refused(Conflict, lambda: world.manage.rotate_key("acme", "k1", 60))


def test_a_rotation_never_prolongs_a_key(world: World) -> None:
    ends_at = START + timedelta(seconds=30)
    world.manage.issue_key(Key(id="k1", account="acme", expires_at=ends_at))
    second = world.manage.rotate_key("acme", "k1", 60)
    assert second.entry.expires_at == ends_at
    assert world.manage.stored_key("acme", "k1").entry.expires_at == ends_at


def test_a_rotated_key_is_not_brought_back_by_putting_it_again(world: World) -> None:
    """A declarative file that knows nothing of the rotation must not revive a secret that may have leaked."""
    key = Key(id="k1", account="acme", sha256=SHA)
    world.manage.put(key)
    world.manage.rotate_key("acme", "k1", 60)
    assert world.manage.put(key).action == "unchanged"
    late = msgspec.structs.replace(key, expires_at=START + timedelta(seconds=61))
    refused(Conflict, lambda: world.manage.put(late))
    world.manage.put(msgspec.structs.replace(key, expires_at=START + timedelta(seconds=1)))
    assert world.manage.stored_key("acme", "k1").entry.expires_at == START + timedelta(seconds=1)


def test_a_rotated_key_is_of_the_line_of_the_first_one(world: World) -> None:
    """The line names the counters, so that rotating never frees a key of its limits and budgets."""
    world.manage.issue_key(Key(id="k1", account="acme"))
    issued = world.manage.rotate_key("acme", "k1", 0)
    assert world.manage.stored_key("acme", issued.entry.id).rotation_chain_id == "k1"


def test_those_that_use_an_entry_are_named(world: World) -> None:
    """All of a few; of many the first, and that there are others."""
    manage = world.manage
    for number in range(7):
        manage.put(Plan(slug=f"p{number}"))
    manage.put(Account(id="one", name="One", plan="p1"))
    with pytest.raises(Conflict, match="plans p1 is in use by accounts one: delete that one first, or let"):
        manage.delete("plans", "p1")
    for number in range(7):
        manage.put(Account(id=f"many-{number}", name="Many", plan="p2"))
    named = ", ".join(f"accounts many-{number}" for number in range(5))
    with pytest.raises(Conflict, match=f"plans p2 is in use by {named} and others: delete those first"):
        manage.delete("plans", "p2")
    manage.delete("plans", "p3")


def test_what_is_in_use_cannot_be_deleted(world: World) -> None:
    manage = world.manage
    refused(Conflict, lambda: manage.delete("plans", "pro"))
    manage.put(Subscription(id="s1", account="acme", plan="pro", started_at=START))
    manage.put(Key(id="k1", account="acme", project="web", subscription="s1", sha256=SHA))
    for kind, name in (("projects", "web"), ("subscriptions", "s1")):
        refused(Conflict, lambda kind=kind, name=name: manage.delete(kind, name, "acme"))  # type: ignore[misc]
    refused(Conflict, lambda: manage.delete("accounts", "acme"))
    manage.delete("keys", "k1", "acme")
    world.told.clear()
    manage.delete("projects", "web", "acme")
    manage.delete("subscriptions", "s1", "acme")
    manage.put(Account(id="acme", name="Acme"))
    manage.delete("plans", "pro")
    assert world.told_since() == [
        ("deleted", "projects", "web"),
        ("deleted", "subscriptions", "s1"),
        ("changed", "accounts", "acme"),
        ("deleted", "plans", "pro"),
    ]
    refused(NotFound, lambda: manage.delete("plans", "pro"))


def test_an_account_cannot_delete_what_is_there_for_all(world: World) -> None:
    world.manage.put(Plan(slug="free"))
    world.manage.put(Price(id="p1", model="m"))
    world.manage.put(Route(id="r1", method="GET", path="/"))
    for kind, name in (("plans", "free"), ("prices", "p1"), ("routes", "r1")):
        assert world.manage.get(kind, name, "beta").entry_id == name
        refused(NotFound, lambda kind=kind, name=name: world.manage.delete(kind, name, "beta"))  # type: ignore[misc]
        assert world.manage.delete(kind, name).action == "deleted"


def test_an_account_with_usage_cannot_be_deleted(world: World) -> None:
    world.used.add("beta")
    refused(Conflict, lambda: world.manage.delete("accounts", "beta"))
    world.used.clear()
    assert world.manage.delete("accounts", "beta").account_id == "beta"
    refused(NotFound, lambda: world.manage.get("accounts", "beta"))


def test_an_account_never_reaches_the_entries_of_another(world: World) -> None:
    manage = world.manage
    manage.put(Subscription(id="s1", account="acme", plan="pro", started_at=START))
    manage.put(Key(id="k1", account="acme", sha256=SHA))
    manage.put(Budget(id="b1", account="acme", amount=1))
    manage.put(Grant(id="g1", account="acme", amount_nanos=1))
    manage.put(Price(id="p1", account="acme", model="m"))
    world.told.clear()
    ours = {"accounts": "acme", "projects": "web", "subscriptions": "s1", "keys": "k1", "budgets": "b1"}
    for kind, name in (ours | {"grants": "g1", "prices": "p1"}).items():
        assert manage.get(kind, name, "acme").entry_id == name
        there = refused(NotFound, lambda k=kind, n=name: manage.get(k, n, "beta"))  # type: ignore[misc]
        absent = refused(NotFound, lambda k=kind: manage.get(k, "absent", "beta"))  # type: ignore[misc]
        assert str(there) == str(absent), "another account's entry is like one that does not exist"
        refused(NotFound, lambda k=kind, n=name: manage.delete(k, n, "beta"))  # type: ignore[misc]
        assert [entry.entry_id for entry in manage.list(kind, account="beta")] == (
            ["beta"] if kind == "accounts" else []
        )
    for call in (
        lambda: manage.set_key_state("beta", "k1", "revoked"),
        lambda: manage.rotate_key("beta", "k1", 0),
        lambda: manage.stored_key("beta", "k1"),
    ):
        refused(NotFound, call)  # type: ignore[arg-type]
    for entry in (
        Key(id="k2", account="beta", project="web", sha256="cd" * 32),
        Key(id="k2", account="beta", subscription="s1", sha256="cd" * 32),
        Budget(id="b", account="beta", key="k1", amount=1),
    ):
        refused(BadParameter, lambda entry=entry: manage.put(entry))  # type: ignore[misc]
    assert world.told == []
    assert manage.stored_key("acme", "k1").entry.state == "active"


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE keys; --", "' OR ''='", "a\x00b", "%", "\ud800", "", "a/b", "x" * 5000]
)
def test_hostile_names_find_nothing_and_break_nothing(world: World, text: str) -> None:
    manage = world.manage
    for call in (
        lambda: manage.get("projects", text, "acme"),
        lambda: manage.get("projects", "web", text),
        lambda: manage.get("keys", text),
        lambda: manage.delete("accounts", text),
        lambda: manage.set_key_state(None, text, "revoked"),
        lambda: manage.rotate_key(text, text, 0),
    ):
        refused(NotFound, call)
    refused(BadParameter, lambda: manage.get(text, "web", "acme"))
    refused(NotFound, lambda: manage.list("projects", account=text))
    refused(BadParameter, lambda: manage.put(Account(id=text, name="")))
    assert [entry.entry_id for entry in manage.list("accounts")] == ["acme", "beta"]


def test_lists_page_within_bounds(world: World) -> None:
    assert [e.entry_id for e in world.manage.list("accounts", after="acme")] == ["beta"]
    assert [e.entry_id for e in world.manage.list("projects", after="acme/web")] == []
    for limit in (0, 1001):
        refused(BadParameter, lambda limit=limit: world.manage.list("accounts", limit=limit))  # type: ignore[misc]
    refused(BadParameter, lambda: world.manage.list("accounts", after="'"))
    refused(BadParameter, lambda: world.manage.get("projects", "web"))


def test_what_is_applied_together_is_kept_together(world: World) -> None:
    """Entries may name each other in any order; one bad entry keeps all others out."""
    together = [
        Key(id="k1", account="new", project="site"),
        Grant(id="g1", account="new", amount_nanos=1),
        Project(id="site", account="new"),
        Account(id="new", name="", plan="free"),
        Plan(slug="free"),
    ]
    bad = [
        *together,
        Budget(id="b0", account="new", amount=1),
        Budget(id="b1", account="new", key="k9", amount=1),
    ]
    error = refused(BadParameter, lambda: world.manage.apply(bad))
    assert isinstance(error, BadParameter)
    assert error.field == "budgets[1].key"
    assert (world.told, world.posted) == ([], {})
    refused(NotFound, lambda: world.manage.get("accounts", "new"))

    dry = world.manage.apply(together, dry_run=True)
    assert (world.told, world.posted, dry.issued) == ([], {}, [])
    refused(NotFound, lambda: world.manage.get("accounts", "new"))

    applied = world.manage.apply(together)
    assert applied.changes == dry.changes
    assert [(c.action, c.kind) for c in applied.changes] == [
        ("created", kind) for kind in KINDS if kind in ("accounts", "projects", "plans", "keys", "grants")
    ]
    assert world.told == applied.changes
    assert [issued.entry.id for issued in applied.issued] == ["k1"]
    assert list(world.posted) == [("new", "g1")]
    again = world.manage.apply(together)
    assert ({c.action for c in again.changes}, again.issued) == ({"unchanged"}, [])


# -- quotas ------------------------------------------------------------------------------------------------

ACME = Customer("acme")


def test_a_customer_makes_no_more_keys_than_its_quota(world: World) -> None:
    """Each key costs memory and a switch of budgets; the operator knows what it does."""
    for number in range(3):
        world.manage.issue_key(Key(id=f"k{number}", account="acme", type="credit"), by=ACME)
    error = refused(
        QuotaExceeded, lambda: world.manage.issue_key(Key(id="k3", account="acme", type="credit"), by=ACME)
    )
    assert "3 keys" in str(error)
    refused(QuotaExceeded, lambda: world.manage.rotate_key("acme", "k0", 60, by=ACME))
    assert world.manage.stored_key("acme", "k0").replaced_by is None
    sha256 = hash_secret("imported")
    refused(
        QuotaExceeded,
        lambda: world.manage.put(Key(id="k3", account="acme", type="credit", sha256=sha256), by=ACME),
    )
    # What is there can be changed, another account has its own quota, and the operator has none.
    assert (
        world.manage.put(Key(id="k1", account="acme", type="credit", name="new"), by=ACME).action == "changed"
    )
    world.manage.issue_key(Key(id="b0", account="beta", type="credit"), by=Customer("beta"))
    world.manage.issue_key(Key(id="k4", account="acme"))
    world.manage.apply([Key(id="k5", account="acme"), Key(id="k6", account="acme")])


def test_a_key_that_ended_makes_room_but_not_for_ever(world: World) -> None:
    """Its row stays, so making and deleting has a bound too."""
    most = 3 * (1 + TOMBSTONES_PER_KEY)
    for number in range(most):
        key = Key(id=f"k{number}", account="acme", type="credit", sha256=hash_secret(f"secret {number}"))
        world.manage.issue_key(key, by=ACME)
        world.manage.set_key_state("acme", key.id, ("revoked", "deleted")[number % 2])
    last = Key(id="last", account="acme", type="credit")
    error = refused(QuotaExceeded, lambda: world.manage.issue_key(last, by=ACME))
    assert f"made and ended {most} keys" in str(error)
    world.manage.issue_key(last)


def test_projects_and_webhooks_have_a_quota(world: World) -> None:
    for number in range(2):
        world.manage.put(Project(id=f"p{number}", account="acme"), by=ACME)
    refused(QuotaExceeded, lambda: world.manage.put(Project(id="p2", account="acme"), by=ACME))
    assert world.manage.put(Project(id="p1", account="acme"), by=ACME).action == "unchanged"
    world.manage.delete("projects", "p1", "acme")
    world.manage.put(Project(id="p2", account="acme"), by=ACME)
    world.manage.put(Project(id="p3", account="acme"))
    hook = Webhook(id="w0", account="acme", url="https://example.com/hook")
    world.manage.put(hook, by=ACME)
    other = Webhook(id="w1", account="acme", url="https://example.com/hook")
    refused(QuotaExceeded, lambda: world.manage.put(other, by=ACME))
