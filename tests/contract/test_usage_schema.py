"""A usage store of an earlier schema is brought up to date when it is opened, and answers as a new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.test_usage_store import ask, record
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore, tables
from tollkeeper.columns import table_of
from tollkeeper.errors import Unavailable

PEAKS = ask("acct", measures=("requests", "peak_requests_per_minute", "peak_requests_per_hour"))
VIEW = "usage_rollups_of_events"
NOW, BEFORE = "tier IN ('hour', 'keys_hour', 'kinds_hour')", "tier = 'hour'"


def change(store: ClickHouseUsageStore, *statements: str) -> None:
    for statement in statements:
        store._appender.command(statement, settings={"mutations_sync": 2})


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


def test_a_schema_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Writing into it could destroy what the later version keeps there."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path}")
    change(store, "INSERT INTO schema_version (version) SELECT 9999")
    store.close()
    with pytest.raises(Unavailable, match="later version"):
        ClickHouseUsageStore.open(f"chdb://{tmp_path}")
