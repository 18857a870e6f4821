"""
Fixtures for tests of whole installations, on real stores.

chDB opens one directory per process at a time, so the installations of a module share one usage store and keep
apart by the account ids of `account`; each test has a ledger of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import settings
from sqlalchemy.util import LRUCache

from tests.effort import DAY, LONG, effort, left_out
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.sql.database import migrate, open_engine
from tollkeeper.installation import Installation
from tollkeeper.ports import UsageStore
from tollkeeper.testing import ManualClock, installation, open_installation, unique

Install = Callable[..., Installation]

# Machines differ in speed: nothing here is timed.
settings.register_profile("tests", deadline=None, max_examples=effort(25, 200))
settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the mark `drawn` does not draw: see `tests.effort`."""
    if LONG or config.option.keyword or any("::" in argument for argument in config.args):
        return
    out = left_out(items)
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not LONG:
        terminalreporter.write_line(f"TESTS_DAY={DAY} draws the same cases again")


class Compiled:
    """SQL statements compiled for engines of one dialect with equal settings: SQLAlchemy keys them by engine."""

    def __init__(self) -> None:
        self._statements: LRUCache[Any, Any] = LRUCache(2_000)

    def get(self, key: Any) -> Any:
        return self._statements.get(key[1:])

    def __setitem__(self, key: Any, statement: Any) -> None:
        self._statements[key[1:]] = statement


@pytest.fixture(scope="session", autouse=True)
def _ledgers_from_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """
    Copy new SQLite ledgers of this process from one that was migrated, which takes 0.1 s less than to migrate each,
    and compile each SQL statement for all of them once, which takes a sixth of a test's time less.

    Migrations are tested by `contract/test_migrations.py`; commands and servers that tests start migrate by themselves.
    """
    path = tmp_path_factory.mktemp("ledger") / "migrated.sqlite3"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()

    compiled = Compiled()

    def copy_or_migrate(engine: sa.Engine) -> None:
        target = engine.url.database
        if engine.dialect.name == "sqlite":
            engine._compiled_cache = compiled  # type: ignore[assignment]
        if (
            engine.dialect.name == "sqlite"
            and target
            and Path(target).exists()
            and not Path(target).stat().st_size
        ):
            with closing(sqlite3.connect(path)) as migrated, closing(sqlite3.connect(target)) as new:
                migrated.backup(new)
        migrate(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tollkeeper.installation.migrate", copy_or_migrate)
        yield


@pytest.fixture(scope="session")
def usage_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the usage store of this test process is."""
    return tmp_path_factory.mktemp("usage")


@pytest.fixture(scope="module")
def usage_store(usage_directory: Path) -> Iterator[ClickHouseUsageStore]:
    """
    A real usage store, open while the module's tests run: other modules may open one elsewhere.

    In the end what is derived from its records is compared with them, for all tests: see `ComparedLater`.
    """
    store = ClickHouseUsageStore.open(f"chdb://{usage_directory}", memory_bytes_max=2 << 30)
    yield store
    found = store.differences(0)
    store.close()
    assert not found, found


class ComparedLater:
    """
    A usage store of many tests: `verify` of one of them does not compare the rollups of all of them anew, which takes
    0.3 s. `usage_store` does it, once.
    """

    def __init__(self, store: ClickHouseUsageStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def differences(self, _records_min: int) -> list[str]:
        return []


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def account() -> str:
    """An account id of this test alone."""
    return unique("acct")


@pytest.fixture
def install(tmp_path: Path, usage_store: ClickHouseUsageStore, clock: ManualClock) -> Iterator[Install]:
    """
    Open an installation in the test's directory, closed in the end.

    To restart: close the one before and call it again. Keyword arguments are those of
    `testing.open_installation`.
    """
    with ExitStack() as stack:

        def opened(directory: str = "data", **options: Any) -> Installation:
            given = {"clock": clock, "store": ComparedLater(usage_store), **options}
            site = open_installation(tmp_path / directory, **given)
            stack.callback(site.close)
            return site

        yield opened


@pytest.fixture
def site(tmp_path: Path, usage_store: ClickHouseUsageStore, clock: ManualClock) -> Iterator[Installation]:
    """One running installation, by the clock of the test."""
    store = cast("UsageStore", ComparedLater(usage_store))
    with installation(tmp_path / "data", clock=clock, store=store) as opened:
        yield opened
