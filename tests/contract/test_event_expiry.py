"""Events expire: what they add up to stays exact, what only they could tell is said to be gone, and no loss hides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pytest

from tests.contract.test_usage_store import ALL_US, FROM_US, MEASURES, TO_US, random_history, record
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import Conditions
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import DetailExpired, Unavailable
from tollkeeper.record_columns import table_of
from tollkeeper.testing import unique

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
SHORT, LONGER = "acct_short", "acct_longer"
"""Two accounts of the history; the events of the second are kept for longer."""
BEFORE_US: Final = {SHORT: FROM_US + 9 * DAY_US, LONGER: FROM_US + 3 * DAY_US}
SUMS: Final = ("requests", "cost_nanos", "credits", "tokens")


class History(NamedTuple):
    """The records of a store of which some have expired, and what was answered before."""

    rows: list[Record]
    answers: list[Any]

    @property
    def expired(self) -> list[Record]:
        return [row for row in self.rows if row.occurred_at_us < BEFORE_US[row.account_id]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseUsageStore]:
    """One engine for the module."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path_factory.mktemp('usage')}", memory_bytes_max=2 << 30)
    yield store
    store.close()


@pytest.fixture(scope="module")
def history(store: ClickHouseUsageStore) -> History:
    """Random records of two accounts, corrected at random, the older of which have expired in two steps."""
    rows = random_history(random.Random(11), [SHORT, LONGER], 150)
    for start in range(0, len(rows), 97):
        store.append(table_of(rows[start : start + 97]), f"history-{start}")
    before = answers(store)
    days = store.expiring(BEFORE_US)
    first = [day for day in days if day.account_id == LONGER]
    assert store.expire(first) + store.expire([day for day in days if day not in first]) > 0
    return History(rows, before)


def asked(account_id: str | None = None, **options: Any) -> UsageQuery:
    return UsageQuery(**{"account_id": account_id, "from_us": FROM_US, "to_us": TO_US, **options})


def answers(store: ClickHouseUsageStore) -> list[Any]:
    """What rollups answer of both accounts, with every measure; and what budgets are charged."""
    asks = [
        asked(measures=MEASURES, group_by=("account", "endpoint", "key"), limit=5_000),
        asked(SHORT, measures=MEASURES, granularity="day"),
    ]
    reports = [store.report(ask) for ask in asks]
    found: list[Any] = [(report.rows, report.totals) for report in reports]
    for account_id in (SHORT, LONGER):
        found.append(charged(store, account_id))
        cuts = tuple(FROM_US + day * DAY_US for day in range(4))
        found.append(
            store.charged_by(
                account_id,
                ("model",),
                from_us=cuts[0],
                to_us=TO_US,
                project_id=None,
                key_ids=["key_1", ""],
                match=Conditions(models=("*",)),
                cuts_us=cuts,
            )
        )
    return found


def charged(store: ClickHouseUsageStore, account_id: str, **options: Any) -> Any:
    given = {"from_us": 0, "to_us": 2**62, "project_id": None, "key_ids": None} | options
    return store.charged(account_id, **given)


def keys_of(*pairs: tuple[str, str]) -> pa.Table:
    return pa.table({"account_id": [a for a, _ in pairs], "id": [b for _, b in pairs]})


def test_all_that_rollups_tell_is_the_same_afterwards(store: ClickHouseUsageStore, history: History) -> None:
    """To the nano and the last extreme, for two accounts whose events are kept for different times."""
    assert answers(store) == history.answers
    assert store.expiring(BEFORE_US) == []
    ends = [
        max(row.occurred_at_us // DAY_US + 1 for row in history.expired if row.account_id == account) * DAY_US
        for account in (SHORT, LONGER)
    ]
    found = [store.detail_from_us(account_id) for account_id in (SHORT, LONGER, None, "other")]
    assert found == [*ends, max(ends), None]
    exported = sum(piece.num_rows for piece in store.export(None, *ALL_US))
    assert exported == len(history.rows) - len(history.expired)


def test_nothing_differs_and_a_rebuild_loses_nothing(store: ClickHouseUsageStore, history: History) -> None:
    """Rollups and ids = what records say + what expired ones said; both can be made again, and room be freed."""
    count = len(history.rows)
    assert store.past("none").records == count
    assert store.differences(count) == []
    store.reclaim()
    store.rebuild(count)
    assert store.differences(count) == []
    assert answers(store) == history.answers


def test_what_only_events_tell_is_said_to_be_lacking(store: ClickHouseUsageStore, history: History) -> None:
    """Minutes, tags and parts of hours; later ones are answered as ever."""
    since = store.detail_from_us(SHORT)
    assert since is not None

    def lacks(**options: Any) -> bool:
        report = store.report(asked(SHORT, measures=SUMS, **options))
        assert report.detail_from_us == since
        return report.lacks_detail

    at_us = min(row.occurred_at_us for row in history.expired if row.account_id == SHORT)
    assert lacks(granularity="minute")
    assert lacks(group_by=("tag:team",))
    assert lacks(from_us=at_us + 1)
    assert lacks(granularity="day", time_zone="Asia/Kolkata")
    assert not lacks(granularity="minute", from_us=since)
    assert not lacks(group_by=("tag:team",), from_us=since)
    assert not lacks(from_us=since + 1)
    # Part of an hour without any event is told exactly.
    assert not lacks(from_us=FROM_US - DAY_US + 1)
    with pytest.raises(DetailExpired, match="expired"):
        charged(store, SHORT, match=Conditions(tags=(("team", "a"),)))
    with pytest.raises(DetailExpired, match="expired"):
        charged(store, SHORT, from_us=at_us + 1)
    charged(store, SHORT, from_us=since, match=Conditions(tags=(("team", "a"),)))


def test_an_id_stays_known_when_its_record_has_expired(store: ClickHouseUsageStore, history: History) -> None:
    """Also that of a correction; one whose record is there has not expired."""
    expired = [row for row in history.expired if row.account_id == SHORT]
    kept = [row for row in history.rows if row.account_id == SHORT and row not in history.expired]
    gone, there = (
        {row.id for row in rows} | {row.amendment_id for row in rows} - {""} for rows in (expired, kept)
    )
    pairs = keys_of(*((SHORT, id_) for id_ in sorted(gone | there)), (SHORT, "never"))
    # A correction may have moved an event to a day that is kept: then there is a record of both.
    assert set(store.expired_ids(pairs)["id"].to_pylist()) == gone - there
    assert set(store.known_ids(pairs)["id"].to_pylist()) == gone | there
    assert store.owners(min(row.id for row in expired)) == [SHORT]


def test_a_late_event_counts_and_expires_again(store: ClickHouseUsageStore) -> None:
    """On a day whose events have gone: in all sums at once, and in the same ones when it has gone too."""
    account = unique("acct")
    old = record(account, cost_nanos=5)
    store.append(table_of([old, record(account, cost_nanos=7)]), unique("token"))
    assert store.expire(store.expiring({account: TO_US})) == 2
    late = record(account, cost_nanos=11)
    store.append(table_of([late]), unique("token"))
    for _ in range(2):
        assert charged(store, account)[:4] == (3, 3, 0, 23)
        assert store.report(asked(account, measures=SUMS)).totals["cost_nanos"] == 23
        assert store.differences() == []
        store.expire(store.expiring({account: TO_US}))
    assert store.expired_ids(keys_of((account, late.id), (account, old.id))).num_rows == 2


def test_a_batch_that_comes_again_does_not_bring_back_what_has_expired(store: ClickHouseUsageStore) -> None:
    """As when the ledger was put back to an earlier state: what is new of it is added, the rest counted already."""
    account = unique("acct")
    first = [record(account, id="a", cost_nanos=5), record(account, id="b", cost_nanos=7)]
    store.append(table_of(first), unique("token"))
    store.expire(store.expiring({account: TO_US}))
    fresh = record(account, id="c", occurred_at_us=TO_US, cost_nanos=11)
    store.append(table_of([*first, fresh]), unique("token"), begun_after=0)
    assert charged(store, account)[:4] == (3, 3, 0, 23)
    assert store.differences() == []


def test_a_loss_that_is_no_expiry_is_found(store: ClickHouseUsageStore) -> None:
    """Of a record that was kept, of a sum of expired ones, of their rollup and of their id."""
    account = unique("acct")
    kept = record(account, occurred_at_us=TO_US, cost_nanos=3)
    gone = [record(account, cost_nanos=nanos) for nanos in (5, 7)]
    store.append(table_of([kept, *gone]), unique("token"))
    store.expire(store.expiring({account: TO_US}))
    count = store.past("none").records
    assert store.differences(count) == []
    client = store._engine.appender

    def delete(table: str, condition: str = "1") -> None:
        client.command(
            f"ALTER TABLE {table} DELETE WHERE account_id = '{account}' AND {condition}",
            settings={"mutations_sync": 1},
        )

    delete("usage_rollups", "tier = 'day'")
    assert any("usage_rollups" in line and account in line for line in store.differences(count))
    store.rebuild(count)
    delete("event_ids", f"id = '{gone[0].id}'")
    assert [line for line in store.differences(count) if "event_ids" in line and account in line]
    store.rebuild(count)
    # Nothing brings this id back: it is expected no more, so that the others go on being told.
    assert store.differences(count) == []
    delete("events")
    assert f"events: 1 of {count} records are missing" in store.differences(count)
    with pytest.raises(Unavailable, match="nothing was rebuilt"):
        store.rebuild(count)
    store.append(table_of([kept]), unique("token"), begun_after=count - 1)
    delete("expired_rollups")
    assert any("expired_rollups: has the sums of" in line for line in store.differences(count))
    assert any("expired_rollups" in line for line in store.losses().records)
    with pytest.raises(Unavailable, match="nothing was rebuilt"):
        store.rebuild(count)
