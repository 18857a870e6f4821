"""An expiry that is cut short, at any step, by a failure or by the end of the process, is completed or taken back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.contract.test_usage_store import FROM_US, TO_US, amended, record
from tests.effort import LONG
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.record_columns import table_of, to_ipc
from tollkeeper.testing import unique

STATEMENTS: Final = 6
"""Statements that change something, of a step of one month: three of sums, a note, the removal, a note."""
CUTS: Final = [(at, after) for at in range(STATEMENTS) for after in (False, True)]
"""The statement that fails, and whether it was done all the same."""

KILLED: Final = """
    import os, sys
    from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
    from tollkeeper.record_columns import from_ipc

    store = ClickHouseUsageStore.open("chdb://" + sys.argv[1])
    store.append(from_ipc(open(sys.argv[2], "rb").read()), "one")
    client, left = store._engine.appender, int(sys.argv[3])
    command = client.command

    def killing(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        return command(*args, **kwargs)

    client.command = killing
    store.expire(store.expiring({sys.argv[4]: int(sys.argv[5])}))
    sys.exit("the expiry was not cut short")
"""


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


@pytest.mark.parametrize("at", range(STATEMENTS) if LONG else [4])
def test_a_killed_expiry_counts_each_record_once(tmp_path: Path, at: int) -> None:
    """kill -9 before its statement number *at*; the next start completes it or takes it back."""
    account = unique("acct")
    one = record(account, cost_nanos=5)
    batch = tmp_path / "batch.arrow"
    batch.write_bytes(to_ipc(table_of([one, record(account, cost_nanos=11)])))
    arguments = [str(tmp_path / "usage"), str(batch), str(at), account, str(TO_US)]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    assert killed.returncode == -9, killed.stderr
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path / 'usage'}")
    try:
        assert store.charged(account, from_us=0, to_us=2**62, project_id=None, key_ids=None)[:4] == (
            2,
            2,
            0,
            16,
        )
        assert store.differences(2) == []
        assert store.past("none").records == 2
        assert store.known_ids(table_of([one]).select(["account_id", "id"])).num_rows == 1
        store.expire(store.expiring({account: TO_US}))
        assert store.differences(2) == []
    finally:
        store.close()
