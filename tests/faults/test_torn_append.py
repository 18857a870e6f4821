"""
An append cut short at any of its steps is made whole by its repeat, and counts once.

The engine writes a part to a temporary directory, notes the append's token in a log of the table, and renames the
directory; table after table, part after part. A killed process may leave a token without its part; a power cut, which
the log is not synced against, a part without its token.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.contract.test_usage_store import record, voided
from tests.effort import effort
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import to_us
from tollkeeper.record_columns import table_of

OLD_YEAR_US: Final = to_us(datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC))
NEW_YEAR_US: Final = to_us(datetime(2026, 1, 1, tzinfo=UTC))
TABLES: Final = ("events", "event_ids", "usage_rollups")
WHOLE, ABSENT, PROMISED, UNSAID = "whole", "absent", "promised", "unsaid"
"""A part and its token; neither; the token only; the part only."""
STEPS: Final = 6
"""Parts of one append here: two months of events, ids of events and of amendments, two years of rollups."""
KILLS: Final = [
    tuple(WHOLE if at < step else state if at == step else ABSENT for at in range(STEPS))
    for step in range(STEPS)
    for state in (ABSENT, PROMISED)
] + [(WHOLE,) * STEPS]
_random = random.Random(20261121)
POWER_CUTS: Final = [
    tuple(_random.choice((WHOLE, ABSENT, PROMISED, UNSAID)) for _ in range(STEPS))
    for _ in range(effort(3, 30))
]
LEFT: Final = KILLS + POWER_CUTS


def first(number: int) -> Record:
    return record(f"acct{number}", id="first", occurred_at_us=NEW_YEAR_US + 1, cost_nanos=100)


def batch(number: int) -> list[Record]:
    account = f"acct{number}"
    return [
        record(account, id="old", occurred_at_us=OLD_YEAR_US, cost_nanos=1, latency_us=5_000),
        record(account, id="new", occurred_at_us=NEW_YEAR_US, cost_nanos=10, latency_us=7_000),
        *voided(first(number), "void"),
    ]


def parts(store: ClickHouseUsageStore) -> set[tuple[str, str]]:
    rows = store._engine.rows("SELECT table, name FROM system.parts WHERE active", {})
    return {(str(table), str(name)) for table, name in rows if table in TABLES}


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an append for each state of `LEFT`, in that state."""
    directory = tmp_path_factory.mktemp("torn")
    store = ClickHouseUsageStore.open(f"chdb://{directory}")
    try:
        for table in TABLES:
            store._engine.appender.command(f"SYSTEM STOP MERGES {table}")
        store.append(table_of([first(number) for number in range(len(LEFT))]), "before")
        made: list[list[tuple[str, str]]] = []
        before = parts(store)
        for number in range(len(LEFT)):
            store.append(table_of(batch(number)), f"token-{number}")
            made.append(sorted(parts(store) - before, key=lambda part: (TABLES.index(part[0]), part[1])))
            before = parts(store)
    finally:
        store.close()
    for states, names in zip(LEFT, made, strict=True):
        assert len(names) == STEPS
        for state, (table, name) in zip(states, names, strict=True):
            tear(directory, table, name, state)
    return directory


def tear(directory: Path, table: str, part: str, state: str) -> None:
    # The engine names a table by a link to where its parts are.
    place = (directory / "data" / "default" / table).readlink()
    place = directory / "store" / place.parent.name / place.name
    if state in (ABSENT, PROMISED):
        shutil.rmtree(place / part)
    if state in (ABSENT, UNSAID):
        (path,) = (place / "deduplication_logs").iterdir()
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.split("\t")[1] != part]
        assert len(kept) == len(lines) - 1
        path.write_text("".join(kept))


@pytest.fixture
def store(torn: Path, tmp_path: Path) -> Iterator[ClickHouseUsageStore]:
    shutil.copytree(torn, tmp_path / "usage", symlinks=True)
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path / 'usage'}")
    yield store
    store.close()


def append_again(store: ClickHouseUsageStore, number: int) -> None:
    store.append(table_of(batch(number)), f"token-{number}", begun_after=0)


def test_the_repeat_of_a_torn_append_makes_it_whole_and_once(store: ClickHouseUsageStore) -> None:
    for number in range(len(LEFT)):
        append_again(store, number)
        account = f"acct{number}"
        found = store.charged(account, from_us=0, to_us=2**52, project_id=None, key_ids=None)
        assert (found.requests, found.cost_nanos) == (2, 11), LEFT[number]
        assert {id_ for _, id_ in store.records([(account, id_) for id_ in ("first", "old", "new")])} == {
            "first", "old", "new",
        }, LEFT[number]  # fmt: skip
    assert (store.differences(), store.duplicates()) == ([], [])


def test_a_torn_append_can_be_repeated_any_number_of_times(store: ClickHouseUsageStore) -> None:
    for number in (0, 1, *range(len(LEFT))):
        append_again(store, number)
    for number in range(0, len(LEFT), 7):
        append_again(store, number)
    assert (store.differences(), store.duplicates()) == ([], [])


def test_records_that_are_lost_are_not_forgotten_by_the_rollups_too(torn: Path, tmp_path: Path) -> None:
    """A rollup rebuilt from the remaining events would look right."""
    number = LEFT.index((WHOLE,) * STEPS)
    place = shutil.copytree(torn, tmp_path / "usage", symlinks=True)
    link = place / "data" / "default" / "events"
    shutil.rmtree(place / "store" / link.readlink().parent.name / link.readlink().name / "202601_1_1_0")
    store = ClickHouseUsageStore.open(f"chdb://{place}")
    try:
        before = store.differences()
        appended = store._engine.rows("SELECT count() FROM events", {})[0][0] + len(LEFT)
        store.append(table_of(batch(number)), f"token-{number}", begun_after=appended - STEPS // 2)
        assert store.differences() == before != []
    finally:
        store.close()


def test_what_is_appended_is_on_the_disk_and_so_is_what_it_is_merged_into(tmp_path: Path) -> None:
    """After it the ledger removes the records, so no record may be in a cache only."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path}")

    def synced() -> tuple[int, int]:
        rows = dict(store._engine.rows("SELECT event, value FROM system.events", {}))
        return rows.get("FileSync", 0), rows.get("DirectorySync", 0)

    try:
        for table in TABLES:
            store._engine.appender.command(f"SYSTEM STOP MERGES {table}")
        for number in range(2):
            files, directories = synced()
            store.append(table_of([record("acct")]), f"token-{number}")
            assert synced()[0] >= files + 3 * len(TABLES)
            assert synced()[1] >= directories + len(TABLES)
        for table in TABLES:
            files, directories = synced()
            store._engine.appender.command(f"SYSTEM START MERGES {table}")
            store._engine.appender.command(f"OPTIMIZE TABLE {table} FINAL")
            assert synced()[0] > files
            assert synced()[1] > directories
    finally:
        store.close()
