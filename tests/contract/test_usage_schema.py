"""A usage store of an earlier schema is brought up to date when it is opened, and answers as a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.contract.test_usage_store import ask, check, record, voided
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore, append_recovery, tables
from tollkeeper.adapters.clickhouse.store import _APPEND
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Unavailable
from tollkeeper.record_columns import table_of

PEAKS = ask("acct", measures=("requests", "peak_requests_per_minute", "peak_requests_per_hour"))
VIEW = "usage_rollups_of_events"
EVENTS_7 = ("quantities", "margin_nanos", "variant", "adjustment_nanos")
ROLLUPS_7 = ("quantities", "quantity_tokens", "margin_nanos", "adjustments", "adjustment_nanos")
NOW, BEFORE = "tier IN ('hour', 'keys_hour', 'kinds_hour')", "tier = 'hour'"


def change(store: ClickHouseUsageStore, *statements: str) -> None:
    for statement in statements:
        store._engine.appender.command(statement, settings={"mutations_sync": 2})


def make_version_4(store: ClickHouseUsageStore) -> None:
    """Without the minutes of two tiers, as the view told them then."""
    select = tables.derivation(VIEW)
    assert NOW in select
    change(
        store,
        f"DROP VIEW {VIEW}",
        f"CREATE MATERIALIZED VIEW {VIEW} TO usage_rollups AS {select.replace(NOW, BEFORE)}",
        "ALTER TABLE usage_rollups UPDATE minutes = map() WHERE tier IN ('keys_hour', 'kinds_hour')",
        "ALTER TABLE schema_version DELETE WHERE version > 4",
    )


def test_what_an_older_view_derived_is_made_anew(tmp_path: Path) -> None:
    url = f"chdb://{tmp_path}"
    store = ClickHouseUsageStore.open(url)
    try:
        store.append(table_of([record("acct") for _ in range(3)]), "one")
        make_version_4(store)
        store.append(table_of([record("acct") for _ in range(4)]), "two")
        assert store.report(PEAKS).totals["peak_requests_per_minute"] != 7
        assert store.differences() != []
        store.close()
        store = ClickHouseUsageStore.open(url)
        assert store.differences() == []
        assert store.report(PEAKS).totals["peak_requests_per_minute"] == 7
        store.append(table_of([record("acct")]), "three")
        assert store.differences() == []
        assert store.report(PEAKS).totals["peak_requests_per_minute"] == 8
    finally:
        store.close()


def make_version_6(store: ClickHouseUsageStore) -> None:
    """Without quantities, provider cost, variants and adjustments."""
    view = (Path(__file__).parent / "usage_rollups_of_events_006.sql").read_text(encoding="utf-8")
    change(
        store,
        f"DROP VIEW {VIEW}",
        *(f"ALTER TABLE events DROP COLUMN {name}" for name in EVENTS_7),
        *(f"ALTER TABLE usage_rollups DROP COLUMN {name}" for name in ROLLUPS_7),
        view.rstrip().removesuffix(";"),
        "ALTER TABLE schema_version DELETE WHERE version > 6",
    )


def columns(store: ClickHouseUsageStore) -> list[tuple[str, ...]]:
    return store._engine.rows(
        "SELECT table, name, type, compression_codec FROM system.columns "
        "WHERE database = currentDatabase() AND table IN ('events', 'usage_rollups') ORDER BY table, position",
        {},
    )


def test_a_store_from_before_quantities_gets_them(tmp_path: Path) -> None:
    """Its records and rollups stay as they are; what comes then has quantities, margins and adjustments."""
    measures = (
        "requests", "tokens", "cost_nanos", "provider_cost_nanos", "adjustments_nanos", "quantity.seconds"
    )  # fmt: skip
    url = f"chdb://{tmp_path}"
    store = ClickHouseUsageStore.open(url)
    try:
        as_new = columns(store)
        old = record("acct", prompt_tokens=5, cost_nanos=7, provider_cost_nanos=7, cost_state="given")
        store.append(table_of([old]), "one")
        make_version_6(store)
        rollups = store._engine.rows("SELECT count() FROM usage_rollups", {})
        assert len(columns(store)) == len(as_new) - len(EVENTS_7) - len(ROLLUPS_7)
        store.close()
        store = ClickHouseUsageStore.open(url)
        assert columns(store) == as_new
        assert store._engine.rows("SELECT count() FROM usage_rollups", {}) == rollups
        assert store.differences() == []
        assert store.records([("acct", old.id)])["acct", old.id] == old
        totals = store.report(ask("acct", measures=measures)).totals
        assert list(totals.values()) == [1, 5, 7, 7, 0, 0]
        store.append(
            table_of(
                [
                    record(
                        "acct",
                        quantities={"cache_write_tokens": 3_000_000, "seconds": 500_000},
                        cost_nanos=10,
                        provider_cost_nanos=4,
                        variant="batch",
                    ),
                    record("acct", adjustment_nanos=-2, status=0),
                ]
            ),
            "two",
        )
        assert store.differences() == []
        assert not any(store.losses())
        totals = store.report(ask("acct", measures=measures)).totals
        assert list(totals.values()) == [2, 8, 17, 11, -2, 500_000]
    finally:
        store.close()


def make_version_7(store: ClickHouseUsageStore) -> None:
    """With the view that merged bins of latencies as maps."""
    select = tables.derivation(VIEW)
    bins = select[select.index("mapSubtract(") : select.index(" AS latency_bins")]
    first = select.index("groupArrayIf(")
    gathered = select[first : select.index(" AS removed_bins")]
    merged = "sumMapIf(map(bin_of(ifNull(e.latency_us, 0)), toInt64(e.sign)), e.latency_us IS NOT NULL)"
    older = select.replace(bins, "sumMapIf(h.added_bins, tier <> 'day')").replace(
        gathered, f"{merged} AS added_bins, 0"
    )
    change(
        store,
        f"DROP VIEW {VIEW}",
        f"CREATE MATERIALIZED VIEW {VIEW} TO usage_rollups AS {older}",
        "ALTER TABLE schema_version DELETE WHERE version > 7",
    )


def test_bins_that_an_older_view_counted_add_up_with_those_of_now(tmp_path: Path) -> None:
    """Nothing is derived again: both ways count the same."""
    url = f"chdb://{tmp_path}"
    sent = [record("acct", latency_us=us) for us in (0, 1, 50, 50, 51, 7_000_000)]
    away = voided(sent[2])
    store = ClickHouseUsageStore.open(url)
    try:
        make_version_7(store)
        store.append(table_of(sent), "one")
        assert store.differences() == []
        store.close()
        store = ClickHouseUsageStore.open(url)
        assert "mapSubtract" in store._engine.rows(f"SHOW CREATE TABLE {VIEW}", {})[0][0]
        assert store.differences() == []
        later = [record("acct"), record("acct", latency_us=50)]
        store.append(table_of([*away, *later]), "two")
        assert store.differences() == []
        measures = ("requests", "latency_ms_p50", "latency_ms_max")
        check(store, [*sent, *away, *later], ask("acct", measures=measures))
    finally:
        store.close()


def test_a_schema_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Writing into it could destroy what the later version keeps there."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path}")
    change(store, "INSERT INTO schema_version (version) SELECT 9999")
    store.close()
    with pytest.raises(Unavailable, match="later version"):
        ClickHouseUsageStore.open(f"chdb://{tmp_path}")


def test_a_closed_store_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of a server answer after they were closed: it is the store that must not ask them."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path}")
    try:
        assert store.ready()
        with monkeypatch.context() as patch:
            for client in store._engine._clients:
                patch.setattr(client, "close", lambda: None)
            store.close()
        keys = table_of([record("acct")]).select(["account_id", "id"])
        many = pa.concat_tables([keys] * 300)
        asked: list[Callable[[], object]] = [
            lambda: store.append(table_of([record("acct")]), "late"),
            lambda: store.begin(BatchMark("i", "e", 1)),
            lambda: store.past("i"),
            lambda: store.known_ids(keys),
            lambda: store.record_columns(many),
            lambda: store.report(PEAKS),
            lambda: store.owners("id"),
            lambda: list(store.export(None, 0, 1)),
            store.losses,
            store.differences,
            store.duplicates,
            store.rebuild,
        ]
        for call in asked:
            store._look_ups._newest_id = None
            with pytest.raises(Unavailable, match="closed"):
                call()
        assert not store.ready()
    finally:
        for client in store._engine._clients:
            client.close()


def test_an_append_is_one_block_with_its_token_for_a_week(tmp_path: Path) -> None:
    """A server gathers inserts by default, and remembers tokens for an hour."""
    assert _APPEND["async_insert"] == 0
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path}")
    try:
        rows = store._engine.rows(
            "SELECT name, engine_full FROM system.tables "
            "WHERE database = currentDatabase() AND name IN {names:Array(String)}",
            {"names": ["events", *tables.DERIVED]},
        )
        assert len(rows) == 3
        for _, engine in rows:
            assert "replicated_deduplication_window_seconds = 604800" in engine
    finally:
        store.close()


def test_writers_of_one_store_compare_their_own_records(tmp_path: Path) -> None:
    """Another process may be comparing a batch in the same store: neither sees nor removes the other's list."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path}")
    try:
        change(
            store,
            f"INSERT INTO {append_recovery.TABLE} (writer, number, account_id, id) SELECT 'other', 7, 'theirs', 'x'",
            f"INSERT INTO {append_recovery.TABLE} (writer, listed_at, number) SELECT 'dead', now() - 100000, 8",
        )
        store.append(table_of([record("acct")]), "one", begun_after=0)
        assert store.differences() == []
        assert store._engine.rows(f"SELECT writer FROM {append_recovery.TABLE}", {}) == [("other",)]
    finally:
        store.close()
