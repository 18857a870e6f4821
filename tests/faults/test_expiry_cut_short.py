"""An expiry that is cut short, at any step, is completed or taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.contract.test_usage_store import FROM_US, TO_US, amended, record
from tests.effort import LONG
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.record_columns import table_of
from tollkeeper.testing import unique

STATEMENTS: Final = 6
"""Statements that change something, of a step of one month: three of sums, a note, the removal, a note."""
CUTS: Final = [(at, after) for at in range(STATEMENTS) for after in (False, True)]
"""The statement that fails, and whether it was done all the same."""


class Cut(Exception):
    """What a test raises in the middle of an expiry."""


class FailingClient:
    """A client of which one call fails: before it is done, or after."""

    def __init__(self, target: Any, at: int, *, after: bool) -> None:
        self._target = target
        self._at = at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def command(self, *args: Any, **kwargs: Any) -> Any:
        self._at -= 1
        if self._at < 0 and not self._after:
            raise Cut
        answer = self._target.command(*args, **kwargs)
        if self._at < 0:
            raise Cut
        return answer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseUsageStore]:
    """One engine for the module."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path_factory.mktemp('usage')}", memory_bytes_max=2 << 30)
    yield store
    store.close()


@pytest.mark.parametrize(("at", "after"), CUTS if LONG else [(1, True), (3, True), (4, True)])
def test_a_failure_at_any_statement_leaves_all_or_nothing(
    store: ClickHouseUsageStore, at: int, after: bool
) -> None:
    """Before the statement or after it: what comes next finds each record once, and the repeat completes it."""
    account = unique("acct")
    one = record(account, cost_nanos=5, latency_us=10)
    rows = [one, *amended(one, unique("am"), cost_nanos=7, latency_us=3), record(account, cost_nanos=11)]
    store.append(table_of(rows), unique("token"))
    days = store.expiring({account: TO_US})
    engine: Any = store._engine
    whole = engine.appender
    engine.appender = FailingClient(whole, at, after=after)
    try:
        with pytest.raises(Cut):
            store.expire(days)
    finally:
        engine.appender = whole
    assert store.charged(account, from_us=0, to_us=2**62, project_id=None, key_ids=None)[:4] == (2, 2, 0, 18)
    assert store.differences(store.past("none").records) == []
    store.expire(store.expiring({account: TO_US}))
    query = UsageQuery(
        account_id=account, from_us=FROM_US, to_us=TO_US, measures=("cost_nanos", "latency_ms_max")
    )
    report = store.report(query)
    assert (report.totals, report.detail_from_us) == (
        {"cost_nanos": 18, "latency_ms_max": 0.003},
        days[0].day_us + 86_400_000_000,
    )
