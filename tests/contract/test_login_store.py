"""What every `LoginStore` promises, on each SQL engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.engines import ENGINES, empty_tables, fresh_engine
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.logins import SqlLogins
from tollkeeper.adapters.sql.operator_keys import SqlOperatorKeys
from tollkeeper.blocking import NOT_WAITING, WouldWait
from tollkeeper.catalog.logins import LoginStore
from tollkeeper.domain.catalog import Account, Key
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.logins import Login
from tollkeeper.errors import Unavailable

NOW_US = 1_750_000_000_000_000


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path_factory.mktemp("logins")) as engine:
        yield engine


@pytest.fixture
def store(engine: sa.Engine) -> LoginStore:
    empty_tables(engine)
    return SqlLogins(engine)


def login(number: int, *, key: str = "k", account: str = "acme", lasts_us: int = 1_000) -> Login:
    return Login(f"login-{number}", key, account, NOW_US + number, NOW_US + number + lasts_us)


def add(store: LoginStore, *logins: Login, per_key_max: int = 100, total_max: int = 100) -> None:
    for one in logins:
        store.add(one, per_key_max=per_key_max, total_max=total_max)


def test_a_login_is_found_until_it_is_removed(store: LoginStore) -> None:
    add(store, login(1), login(2, account=""))
    assert store.find("login-1") == login(1)
    assert store.find("login-2") == login(2, account="")
    assert store.find("login-3") is None
    assert store.remove("login-1")
    assert not store.remove("login-1")
    assert store.find("login-1") is None
    assert store.find("login-2") is not None


def test_the_oldest_of_a_key_makes_room(store: LoginStore) -> None:
    add(store, login(1, key="other"), *(login(number) for number in (5, 3, 4, 2, 6)), per_key_max=3)
    kept = [number for number in range(1, 7) if store.find(f"login-{number}")]
    # Made later than 2, which has gone at once: what is newest by its time stays.
    assert kept == [1, 4, 5, 6]


def test_the_oldest_customer_makes_room_and_never_the_operator(store: LoginStore) -> None:
    add(store, login(1, key="o", account=""), *(login(n, key=f"k{n}") for n in range(2, 8)), total_max=4)
    assert [n for n in range(1, 8) if store.find(f"login-{n}")] == [1, 5, 6, 7]
    add(store, *(login(n, key=f"o{n}", account="") for n in range(8, 14)), total_max=4)
    assert [n for n in range(1, 14) if store.find(f"login-{n}")] == [1, *range(8, 14)]


def test_what_is_over_is_removed(store: LoginStore, engine: sa.Engine) -> None:
    catalog = SqlCatalogStore(engine)
    catalog.put(Account(id="acme", name="Acme"), NOW_US)
    keys = {
        "active": Key(id="active", account="acme"),
        "inactive": Key(id="inactive", account="acme", state="inactive"),
        "revoked": Key(id="revoked", account="acme", state="revoked"),
        "deleted": Key(id="deleted", account="acme", state="deleted"),
        "expired": Key(id="expired", account="acme", expires_at=from_us(NOW_US + 500)),
        "expires-later": Key(id="expires-later", account="acme", expires_at=from_us(NOW_US + 501)),
    }
    for name, key in keys.items():
        catalog.add_key(key, secret_sha256=f"hash-{name}", shown_prefix=None, now_us=NOW_US)
    SqlOperatorKeys(engine).replace("hash-operator", NOW_US)
    names = [*keys, "unknown", "operator", "operator-of-before"]
    for number, name in enumerate(names):
        add(store, login(number, key=f"hash-{name}", account="" if "operator" in name else "acme"))
    add(store, login(90, key="hash-active", lasts_us=410), login(91, key="hash-active", lasts_us=409))
    store.purge(NOW_US + 500)
    kept = [name for number, name in enumerate(names) if store.find(f"login-{number}")]
    assert kept == ["active", "inactive", "expires-later", "operator"]
    assert store.find("login-90") is None
    assert store.find("login-91") is None
    store.purge(NOW_US + 500)
    assert store.find("login-0") is not None


def test_a_thread_that_must_not_wait_is_told_so(store: LoginStore) -> None:
    add(store, login(1))
    with NOT_WAITING, pytest.raises(WouldWait):
        store.find("login-1")


def test_a_database_that_fails_is_unavailable(tmp_path: Path) -> None:
    with fresh_engine("sqlite-file", tmp_path, tables=False) as engine:
        store = SqlLogins(engine)
        for call in (
            lambda: store.find("x"),
            lambda: store.remove("x"),
            lambda: store.purge(NOW_US),
            lambda: store.add(login(1), per_key_max=1, total_max=1),
        ):
            with pytest.raises(Unavailable, match="logins"):
                call()
