"""What one report may take of the usage store, and that no kind of query waits behind another kind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pytest

from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.clickhouse.queries import Statement
from tollkeeper.adapters.clickhouse.readers import QueryLimits, Readers
from tollkeeper.callers import CALLER, Caller
from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import QueryTooLarge, QueryTooSlow, Unavailable
from tollkeeper.record_columns import table_of
from tollkeeper.testing import unique

AT_US = 1_770_000_000_000_000
SLOW = Statement("SELECT 1, 0, 1, 0, count() FROM numbers_mt(1000000000000) WHERE sipHash64(number) = 1", {})


@pytest.fixture(scope="module")
def filled(usage_store: ClickHouseUsageStore) -> str:
    """An account with 300 events, each in a minute and of a key of its own."""
    account = unique("acct")
    records = [
        Record(
            account, "", f"k{number}", AT_US + number * 60_000_000, AT_US, f"{account}-{number}",
            0, 1, "", "", "POST", "/v1", 200, "", "", None, 0, "", 0, 0, 0, 0, "",
            0, 1, 0, "given", "", {},
        )
        for number in range(300)
    ]  # fmt: skip
    usage_store.append(table_of(records), account)
    return account


def query(account: str, **fields: Any) -> UsageQuery:
    return UsageQuery(account_id=account, from_us=AT_US, to_us=AT_US + 10**11, **fields)


def with_limits(
    store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch, **limits: int
) -> ClickHouseUsageStore:
    monkeypatch.setattr(store._queries, "_limits", QueryLimits()._replace(**limits))
    return store


@pytest.mark.parametrize(
    "fields",
    [
        {"granularity": "minute"},
        {"group_by": ("key",)},
        {"granularity": "hour", "group_by": ("key", "tag:team")},
        {"group_by": ("key",), "measures": ("requests", "peak_requests_per_hour")},
    ],
)
def test_a_query_with_too_many_groups_says_what_to_narrow(
    usage_store: ClickHouseUsageStore, filled: str, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    assert usage_store.report(query(filled, **fields)).row_count == 300
    with_limits(usage_store, monkeypatch, groups=200)
    with pytest.raises(QueryTooLarge, match=r"200 groups.*shorter range"):
        usage_store.report(query(filled, **fields))
    assert usage_store.report(query(filled)).row_count == 1


def test_a_query_that_takes_too_much_memory_says_what_to_narrow(
    usage_store: ClickHouseUsageStore, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_limits(usage_store, monkeypatch, memory_bytes=1)
    with pytest.raises(QueryTooLarge, match=r"memory.*shorter range"):
        usage_store.report(query(filled, granularity="minute", group_by=("key",)))


def test_a_query_that_takes_too_long_is_ended(
    usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_limits(usage_store, monkeypatch, time_s=1)
    with pytest.raises(QueryTooSlow, match=r"1 s.*shorter range"):
        usage_store._queries.rows(SLOW)


@pytest.fixture
def all_lent(
    usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClickHouseUsageStore]:
    """As many reports are under way as may be, and nobody waits for long."""
    monkeypatch.setattr(usage_store._engine.reports, "_wait_s", 0.01)
    with ExitStack() as stack:
        for _ in range(usage_store._engine.reports._count):
            stack.enter_context(usage_store._engine.reports.lend())
        yield usage_store


def test_reports_keep_only_reports_waiting(all_lent: ClickHouseUsageStore, filled: str) -> None:
    with pytest.raises(Unavailable, match="busy"):
        all_lent.report(query(filled))
    id_ = f"{filled}-1"
    assert all_lent.ready()
    assert all_lent.owners(id_) == [filled]
    assert (filled, id_) in all_lent.records([(filled, id_)])
    keys = pa.table({"account_id": [filled], "id": [id_]})
    assert all_lent.known_ids(keys).num_rows == 1
    spent = all_lent.charged(filled, from_us=0, to_us=2**62, project_id=None, key_ids=None)
    assert spent.events == 300
    assert sum(piece.num_rows for piece in all_lent.export(filled, 0, 2**62)) == 300


@pytest.mark.parametrize("kind", ["look_ups", "scans", "probes", "stoppers"])
def test_every_kind_waits_for_a_bounded_time(
    usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    readers: Readers = getattr(usage_store._engine, kind)
    monkeypatch.setattr(readers, "_wait_s", 0.01)
    with ExitStack() as stack:
        for _ in range(readers._count):
            stack.enter_context(readers.lend())
        with pytest.raises(Unavailable, match="busy"):
            stack.enter_context(readers.lend())
        assert usage_store.ready() is (kind != "probes")


def test_a_look_up_ends_beside_heavier_work(
    usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of the gate waits for it: it is refused before its caller gives up."""
    monkeypatch.setattr("tollkeeper.adapters.clickhouse.engine.LOOK_UP_S_MAX", 1)
    # Without its clients of before, which have the limit that the engine has.
    monkeypatch.setattr(usage_store._engine, "look_ups", usage_store._engine._look_ups())
    with pytest.raises(Unavailable):
        usage_store._engine.rows(SLOW.sql, {}, readers=usage_store._engine.look_ups)


def running(store: ClickHouseUsageStore) -> int:
    sql = (
        "SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%' AND query NOT LIKE '%processes%'"
    )
    return int(store._engine.rows(sql, {})[0][0])


def test_a_query_is_stopped_when_its_caller_goes_away(usage_store: ClickHouseUsageStore) -> None:
    caller = Caller("acme")
    ended = threading.Event()

    def ask() -> None:
        CALLER.set(caller)
        try:
            usage_store._queries.rows(SLOW)
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        while not running(usage_store):
            assert not ended.is_set()
        caller.leave()
        with pytest.raises(Unavailable):
            asked.result(30)
    assert running(usage_store) == 0


def test_a_query_of_a_caller_that_is_gone_does_not_begin(usage_store: ClickHouseUsageStore) -> None:
    caller = Caller("acme")
    caller.leave()
    token = CALLER.set(caller)
    try:
        with pytest.raises(Unavailable, match="gone"):
            usage_store._queries.rows(SLOW)
    finally:
        CALLER.reset(token)
