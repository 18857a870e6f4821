"""What every `CatalogStore` promises, on each SQL engine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
import sqlalchemy as sa

from tests.engines import ENGINES, SHARED_ENGINES, empty_tables, fresh_engine
from tollkeeper.adapters.sql import catalog_tables
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.domain.catalog import (
    KINDS,
    PRICE_NANOS_MAX,
    Account,
    Actions,
    Budget,
    Entry,
    Grant,
    Key,
    Limit,
    Markup,
    ModelAlias,
    Plan,
    PlanBudget,
    Price,
    Project,
    Route,
    Subscription,
    Webhook,
)
from tollkeeper.domain.keys import KeyOrigin
from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.price_entries import PriceTier
from tollkeeper.errors import Conflict, NotFound, Unavailable
from tollkeeper.ports import Catalog, CatalogStore, cursor_of

NOW_US = 1_750_000_000_123_456
AT = datetime(2026, 3, 29, 1, 59, 59, 999_999, tzinfo=UTC)
LIMIT = Limit(name="rpm", amount=60, window="1m", algorithm="sliding", bucket="reads", per="project")

FULL: dict[str, Entry] = {
    "accounts": Account(
        id="acme", name="Acmé 🚀", plan="pro", time_zone="Europe/Berlin", active=False, metadata={"a": "b"}
    ),
    "projects": Project(id="web", account="acme", name="Web"),
    "plans": Plan(
        slug="pro",
        name="Pro",
        limits=[LIMIT],
        budgets=[PlanBudget(name="spend", amount=None, period="30d", per="key")],
        layers=["dns", "tls"],
        price_nanos=NANOS_MAX,
        sellable=False,
        metadata={"quote": 'it\'s "quoted"'},
    ),
    "subscriptions": Subscription(
        id="s1", account="acme", plan="pro", started_at=AT, expires_at=AT + timedelta(days=9)
    ),
    "budgets": Budget(
        id="b1",
        account="acme",
        project="web",
        amount=NANOS_MAX,
        unit="tokens",
        period="week",
        week_start="sunday",
        anchor_at=AT,
    ),
    "grants": Grant(
        id="g1", account="acme", amount_nanos=NANOS_MAX, source="top_up", priority=3, expires_at=AT, note="n"
    ),
    "routes": Route(
        id="r1",
        method="GET",
        path="/v1/{id}/*",
        event_kind="scan",
        credits=2,
        price_nanos=5,
        bucket="reads",
        surface="api",
        layer="dns",
        policy="std",
        profile="shoal",
    ),
    "models": ModelAlias(**{"id": "team/chat:1 a", "is": "azure/gpt-4o"}),
    "prices": Price(
        id="p1",
        model="gpt",
        account="acme",
        effective_at=AT,
        prompt_nanos_per_million=1,
        cached_prompt_nanos_per_million=0,
        completion_nanos_per_million=2,
        reasoning_nanos_per_million=3,
        cache_write_nanos_per_million=5,
        cache_write_1h_nanos_per_million=6,
        audio_prompt_nanos_per_million=7,
        audio_cached_prompt_nanos_per_million=8,
        image_prompt_nanos_per_million=9,
        audio_completion_nanos_per_million=10,
        image_completion_nanos_per_million=PRICE_NANOS_MAX,
        request_nanos=4,
        variant="batch",
        tiers=[PriceTier(over=200_000, prompt_nanos_per_million=2)],
        rates={"seconds": "0.006/60", "images": 10**18},
    ),
    "markups": Markup(
        id="m1", plan="pro", model="claude-*", effective_at=AT, factor="1.200000001", request_nanos=5
    ),
    "webhooks": Webhook(
        id="w1",
        account="acme",
        project="web",
        url="https://a.example/h?q=%20",
        thresholds=[1, 1000],
        actions=Actions(notify_admins=1, disable_keys=1000),
    ),
}
BARE: dict[str, Entry] = {
    "accounts": Account(id="acme", name=""),
    "projects": Project(id="web", account="acme"),
    "plans": Plan(slug="pro"),
    "subscriptions": Subscription(id="s1", account="acme", plan="pro", started_at=AT),
    "budgets": Budget(id="b1", account="acme", amount=0),
    "grants": Grant(id="g1", account="acme", amount_nanos=1),
    "routes": Route(id="r1", method="*", path="/"),
    "models": ModelAlias(**{"id": "team/chat:1 a", "is": "y"}),
    "prices": Price(id="p1", model="gpt"),
    "markups": Markup(id="m1"),
    "webhooks": Webhook(id="w1", account="acme", url="https://a.example"),
}
HOSTILE = ("'; DROP TABLE accounts; --", "' OR '1'='1", "%", "_", "\\", '"', "${id}", ":id", "%(id)s")


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path_factory.mktemp("catalog")) as engine:
        yield engine


@pytest.fixture
def store(engine: sa.Engine) -> CatalogStore:
    empty_tables(engine)
    return SqlCatalogStore(engine)


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def add_key(store: Catalog, key: Key, secret: str | None = None) -> Key:
    store.add_key(key, secret_sha256=sha256(secret or key.id), shown_prefix="sk_ab…", now_us=NOW_US)
    return key


def test_the_samples_cover_every_kind() -> None:
    assert set(FULL) | {"keys"} == set(BARE) | {"keys"} == set(KINDS)


@pytest.mark.parametrize("kind", FULL)
def test_an_entry_comes_back_as_it_was_put(store: CatalogStore, kind: str) -> None:
    account = getattr(FULL[kind], "account", None)
    for entry, outcome in ((BARE[kind], "created"), (BARE[kind], "unchanged")):
        assert store.put(entry, NOW_US) == outcome
    # The account of a price is part of what changes here; whether it may is the manage service's to say.
    assert store.put(FULL[kind], NOW_US + 1) == "changed"
    assert store.put(FULL[kind], NOW_US + 2) == "unchanged"
    assert store.get(kind, FULL[kind].entry_id, account) == FULL[kind]
    assert store.put(BARE[kind], NOW_US + 3) == "changed"
    assert store.get(kind, BARE[kind].entry_id, account) == BARE[kind]
    assert list(store.entries(kind)) == [BARE[kind]]


def test_equal_instants_of_other_zones_are_no_change(store: CatalogStore) -> None:
    there = timezone(timedelta(hours=-11))
    entry = Subscription(id="s1", account="acme", plan="pro", started_at=AT)
    store.put(entry, NOW_US)
    assert store.put(msgspec.structs.replace(entry, started_at=AT.astimezone(there)), NOW_US) == "unchanged"


def test_a_plan_keeps_every_version_even_past_its_deletion(store: CatalogStore) -> None:
    """Old usage is explained by the plan that was in force then."""
    bodies = [Plan(slug="pro"), Plan(slug="pro", limits=[LIMIT]), Plan(slug="pro", name="Pro")]
    for place, plan in enumerate(bodies):
        store.put(plan, NOW_US + place)
        assert store.put(plan, NOW_US + 9) == "unchanged"
    assert store.delete("plans", "pro")
    assert not store.delete("plans", "pro")
    store.put(bodies[0], NOW_US + 10)
    assert [(v.version, v.plan, v.created_at_us - NOW_US) for v in store.plan_versions("pro")] == [
        (1, bodies[0], 0),
        (2, bodies[1], 1),
        (3, bodies[2], 2),
        (4, bodies[0], 10),
    ]


def test_a_grant_is_put_unposted(store: CatalogStore, engine: sa.Engine) -> None:
    """What remains of it is the ledger's to say."""
    store.put(FULL["grants"], NOW_US)
    with engine.connect() as connection:
        assert connection.execute(sa.select(catalog_tables.grants.c.remaining_nanos)).all() == [(None,)]


def test_pages_hold_everything_once_in_one_order(store: CatalogStore) -> None:
    """Ids sort by code point on every engine, whatever the language of the database."""
    ids = ["B", "a", "A-1", "A.1", "z", "Z", "a:b", "10", "9"]
    projects = [Project(id=name, account=account) for account in ("acme", "Beta") for name in ids]
    for project in projects:
        store.put(project, NOW_US)
    for account in (None, "acme"):
        wanted = sorted(
            (p for p in projects if account in (None, p.account)), key=lambda p: (p.account, p.id)
        )
        got: list[Entry] = []
        while page := store.list(
            "projects", account=account, after=cursor_of(got[-1]) if got else None, limit=2
        ):
            assert len(page) <= 2
            got += page
        assert got == wanted
    assert [p.entry_id for p in store.list("projects", account="acme", after="a", limit=2)] == ["a:b", "z"]


def test_an_account_sees_its_own_entries_only(store: CatalogStore) -> None:
    for account in ("acme", "beta"):
        store.put(Account(id=account, name=account), NOW_US)
        store.put(Project(id="web", account=account, name=account), NOW_US)
        store.put(Price(id=f"p-{account}", account=account, model="m"), NOW_US)
        add_key(store, Key(id=f"k-{account}", account=account))
    store.put(Price(id="p-all", model="m"), NOW_US)
    store.put(Budget(id="b", account="acme", amount=1), NOW_US)

    assert store.get("projects", "web", "beta") == Project(id="web", account="beta", name="beta")
    assert store.get("budgets", "b", "beta") is None
    assert store.get("accounts", "acme", "beta") is None
    assert store.get("prices", "p-acme", "beta") is None
    assert store.get("prices", "p-all", "beta") is not None
    assert store.get("keys", "k-acme", "beta") is None
    for kind, ids in {
        "accounts": ["beta"],
        "projects": ["web"],
        "budgets": [],
        "prices": ["p-all", "p-beta"],
        "keys": ["k-beta"],
    }.items():
        assert [entry.entry_id for entry in store.list(kind, account="beta")] == ids
        assert [entry.entry_id for entry in store.entries(kind, "beta")] == ids
    assert [key.entry.id for key in store.keys_of_account("beta")] == ["k-beta"]
    assert not store.delete("budgets", "b", "beta")
    assert not store.set_key_state("beta", "k-acme", "revoked", NOW_US)
    assert not store.replace_key("beta", "k-acme", by="x", expires_at_us=NOW_US, now_us=NOW_US)
    assert store.delete("projects", "web", "beta")
    assert store.get("projects", "web", "acme") is not None


def test_a_key_is_found_by_its_hash_and_by_its_id(store: CatalogStore) -> None:
    key = add_key(
        store,
        Key(
            id="k1",
            account="acme",
            role="management",
            type="credit",
            limits=[LIMIT],
            expires_at=AT,
            metadata={"a": "b"},
        ),
        "secret",
    )
    stored = store.find_key_by_hash(sha256("secret"))
    assert stored is not None
    assert stored == store.find_key("k1")
    assert (stored.entry, stored.secret_sha256, stored.shown_prefix) == (key, sha256("secret"), "sk_ab…")
    assert (stored.created_at_us, stored.last_used_at_us, stored.revoked_at_us) == (NOW_US, None, None)
    assert (stored.rotation_chain_id, stored.replaced_by) == ("k1", None)
    assert stored.secret_sha256 not in repr(stored)
    assert store.find_key_by_hash(sha256("other")) is None
    assert store.find_key("k2") is None


def test_a_key_keeps_its_secret_when_it_changes(store: CatalogStore) -> None:
    key = add_key(store, Key(id="k1", account="acme"), "secret")
    assert store.put(msgspec.structs.replace(key, sha256=sha256("other")), NOW_US) == "unchanged"
    assert store.put(msgspec.structs.replace(key, name="n"), NOW_US) == "changed"
    stored = store.find_key_by_hash(sha256("secret"))
    assert stored is not None
    assert stored.entry.name == "n"
    with pytest.raises(NotFound):
        store.put(Key(id="k2", account="acme"), NOW_US)


def test_ids_and_secrets_of_keys_are_unique_over_all_accounts(store: CatalogStore) -> None:
    """A meter event may name its key alone; a secret must name one key."""
    add_key(store, Key(id="k1", account="acme"), "secret")
    for key, secret in ((Key(id="k1", account="beta"), "new"), (Key(id="k2", account="beta"), "secret")):
        with pytest.raises(Conflict) as caught:
            add_key(store, key, secret)
        assert "acme" not in str(caught.value)
    assert not store.keys_of_account("beta")


def test_a_key_remembers_when_it_was_first_revoked(store: CatalogStore) -> None:
    add_key(store, Key(id="k1", account="acme"))
    states: list[tuple[str, int | None]] = []
    for step, state in enumerate(("inactive", "active", "revoked", "deleted")):
        assert store.set_key_state("acme", "k1", state, NOW_US + step)
        stored = store.find_key("k1")
        assert stored is not None
        states.append((stored.entry.state, stored.revoked_at_us))
    revoked = NOW_US + 2
    assert states == [("inactive", None), ("active", None), ("revoked", revoked), ("deleted", revoked)]


def test_the_last_use_of_a_key_never_goes_back(store: CatalogStore) -> None:
    """Nodes report in any order."""
    for name in ("k1", "k2", "k3"):
        add_key(store, Key(id=name, account="acme"))
    store.touch_keys({})
    store.touch_keys({"k2": 20, "k1": 10, "unknown": 1})
    store.touch_keys({"k1": 9, "k2": 21})
    used = {key.entry.id: key.last_used_at_us for key in store.keys_of_account("acme")}
    assert used == {"k1": 10, "k2": 21, "k3": None}


def test_a_replaced_key_names_its_successor(store: CatalogStore) -> None:
    add_key(store, Key(id="k1", account="acme"))
    store.add_key(
        Key(id="k2", account="acme"),
        secret_sha256=sha256("2"),
        shown_prefix=None,
        now_us=NOW_US,
        rotation_chain_id="k1",
    )
    assert store.replace_key("acme", "k1", by="k2", expires_at_us=NOW_US + 5, now_us=NOW_US)
    old, new = store.keys_of_account("acme")
    assert (old.replaced_by, old.state_at(NOW_US + 4), old.state_at(NOW_US + 5)) == (
        "k2",
        "active",
        "expired",
    )
    assert (new.rotation_chain_id, new.shown_prefix, new.state_at(NOW_US + 5)) == ("k1", None, "active")


def test_a_key_says_whose_word_its_state_and_end_are(store: CatalogStore) -> None:
    """Without that a customer could take back what the operator set."""
    add_key(store, key := Key(id="k1", account="acme"))
    origins = []

    def note() -> None:
        stored = store.find_key("k1")
        assert stored is not None
        origins.append(stored.origin)

    note()
    store.set_key_state("acme", "k1", "inactive", NOW_US, by="customer")
    note()
    changed = msgspec.structs.replace(key, name="new", state="inactive")
    store.put(changed, NOW_US)
    note()
    store.put(key, NOW_US, origin=KeyOrigin("operator", 7, "k0"))
    note()
    store.set_key_state("acme", "k1", "revoked", NOW_US)
    note()
    assert origins == [
        KeyOrigin(),
        KeyOrigin("customer"),
        KeyOrigin("customer"),
        KeyOrigin("operator", 7, "k0"),
        KeyOrigin("operator", 7, "k0"),
    ]
    made = Key(id="k2", account="acme")
    store.add_key(
        made,
        secret_sha256=sha256("2"),
        shown_prefix=None,
        now_us=NOW_US,
        origin=KeyOrigin("customer", 9, "k1"),
    )
    stored = store.find_key("k2")
    assert stored is not None
    assert stored.origin == KeyOrigin("customer", 9, "k1")


def test_a_transaction_is_kept_whole_or_not_at_all(store: CatalogStore) -> None:
    with store.transaction() as catalog:
        catalog.put(Account(id="kept", name=""), NOW_US)
        catalog.put(Plan(slug="kept"), NOW_US)
        assert catalog.get("accounts", "kept") is not None
    with pytest.raises(NotFound), store.transaction() as catalog:
        _put_three_then_raise(catalog)
    with store.transaction(dry_run=True) as catalog:
        assert catalog.put(Account(id="dry", name=""), NOW_US) == "created"
        assert catalog.delete("accounts", "kept")
    assert [entry.entry_id for entry in store.entries("accounts")] == ["kept"]
    assert len(store.plan_versions("kept")) == 1
    assert store.find_key("raised") is None


def _put_three_then_raise(catalog: Catalog) -> None:
    catalog.put(Account(id="raised", name=""), NOW_US)
    catalog.put(Plan(slug="kept", name="raised"), NOW_US)
    add_key(catalog, Key(id="raised", account="kept"))
    raise NotFound("something is missing")


def test_what_names_an_entry_is_found(store: CatalogStore) -> None:
    assert store.referrers("accounts", "acme", limit=5) == []
    store.put(Account(id="acme", name="", plan="basic"), NOW_US)
    store.put(Project(id="web", account="acme"), NOW_US)
    store.put(Subscription(id="s1", account="acme", plan="pro", started_at=AT), NOW_US)
    add_key(store, Key(id="k1", account="acme", project="web", subscription="s1"))
    assert store.referrers("plans", "basic", limit=1) == [("accounts", "acme")]
    assert store.referrers("plans", "pro", limit=1) == [("subscriptions", "s1")]
    assert store.referrers("accounts", "acme", limit=1) == [("projects", "web")]
    assert store.referrers("projects", "web", "acme", limit=1) == [("keys", "k1")]
    assert store.referrers("subscriptions", "s1", "acme", limit=1) == [("keys", "k1")]
    assert store.referrers("projects", "web", "beta", limit=5) == []

    store.set_key_state("acme", "k1", "deleted", NOW_US)
    assert store.referrers("projects", "web", "acme", limit=5) == []
    store.delete("projects", "web", "acme")
    store.delete("subscriptions", "s1", "acme")
    assert store.referrers("accounts", "acme", limit=1) == [("keys", "k1")], "a tombstone keeps its account"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(store: CatalogStore, text: str) -> None:
    store.put(Account(id="acme", name="Acme"), NOW_US)
    store.put(Account(id=text, name=text, metadata={text: text}), NOW_US)
    add_key(store, Key(id=text, account=text, name=text))
    assert store.get("accounts", text) == Account(id=text, name=text, metadata={text: text})
    assert [key.entry.account for key in store.keys_of_account(text)] == [text]
    assert store.find_key_by_hash(text) is None
    assert len(store.list("accounts", account=text)) == 1
    store.touch_keys({text: 5})
    assert store.delete("accounts", text)
    assert [entry.entry_id for entry in store.entries("accounts")] == ["acme"]


@pytest.mark.parametrize("name", SHARED_ENGINES)
def test_what_a_transaction_read_stays_true_until_it_ends(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Checking a reference and writing what relies on it is one step, on any number of nodes."""
    with fresh_engine(name, tmp_path_factory.mktemp("race")) as engine:
        SqlCatalogStore(engine).put(Account(id="acme", name="0"), NOW_US)

        def count(times: int) -> None:
            store = SqlCatalogStore(engine)
            for _ in range(times):
                with store.transaction() as catalog:
                    account = catalog.get("accounts", "acme")
                    assert isinstance(account, Account)
                    catalog.put(msgspec.structs.replace(account, name=str(int(account.name) + 1)), NOW_US)

        threads = [threading.Thread(target=count, args=(20,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert SqlCatalogStore(engine).get("accounts", "acme") == Account(id="acme", name="80")


@pytest.mark.parametrize("name", ENGINES)
def test_a_failing_engine_is_unavailable(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with fresh_engine(name, tmp_path_factory.mktemp("broken"), tables=False) as engine:
        store = SqlCatalogStore(engine)
        for call in (
            lambda: store.get("accounts", "acme"),
            lambda: store.put(Account(id="acme", name=""), NOW_US),
            lambda: store.find_key_by_hash("a"),
            lambda: store.touch_keys({"k1": 1}),
        ):
            with pytest.raises(Unavailable):
                call()
