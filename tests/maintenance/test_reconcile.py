"""Verify finds every difference between counter, ledger and events, and nothing where there is none."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from tests.effort import effort
from tollkeeper import record_columns as columns
from tollkeeper.adapters.sql.catalog_tables import grants
from tollkeeper.adapters.sql.ledger_tables import counters, pools, postings, scopes
from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Limit, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Event
from tollkeeper.domain.requests import Outcome
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import Faulty, set_up


@pytest.fixture
def charged(site: Installation, account: str) -> Installation:
    """An account that spent 60 of its credit, within a budget."""
    set_up(
        site,
        Account(id=account, name="A"),
        Key(id=f"{account}.k", account=account, type="credit"),
        Grant(id="g", account=account, amount_nanos=100),
        Budget(id="b", account=account, amount=1_000, period="day"),
    )
    events = [
        {"id": f"e{n}", "time": "2026-03-18T11:00:00Z", "key_id": f"{account}.k", "cost_nanos": n * 10}
        for n in range(4)
    ]
    assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == 4
    return site


def found(site: Installation, account: str) -> list[tuple[str, int, int]]:
    """What verify finds of the account; of others there is nothing in this ledger."""
    verdict = site.reconcile.verify()
    assert {difference.account_id for difference in verdict.differences} <= {account}
    assert verdict.ok == (not verdict.differences and not verdict.store_differences)
    return [
        (d.what.split(" from ")[0].split(" against ")[-1], d.expected, d.found) for d in verdict.differences
    ]


def change(site: Installation, table: sa.Table, **values: Any) -> None:
    with site.engine.begin() as tx:
        tx.execute(sa.update(table).values(**values))


def test_what_an_earlier_process_left_is_delivered_before_it_is_compared(
    install: Callable[..., Installation], usage_store: Any, account: str
) -> None:
    """A verify right after a crash finds nothing, whether or not the relay was there before it."""
    store = Faulty(usage_store, "append")
    killed = install(store=store)
    set_up(killed, Account(id=account, name="A"), Budget(id="b", account=account, amount=9, period="day"))
    store.refuse(1_000)
    events = [{"id": "e", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": 5}]
    assert killed.ingest.take(decode_events(events, now_us=killed.clock.now_us())).accepted == 1
    killed.close()
    restarted = install()
    assert restarted.committer.outbox_seq == killed.committer.outbox_seq > 0
    assert found(restarted, account) == []


def test_what_was_booked_is_in_agreement(charged: Installation, account: str) -> None:
    """No difference where there is none, and the verdict says how much was compared."""
    verdict = charged.reconcile.verify()
    assert verdict.differences == []
    assert (verdict.accounts, verdict.counters) == (1, 2)
    seen: list[str] = []
    charged.reconcile.verify(progress=seen.append)
    assert seen == [account]


def test_a_counter_that_is_off_by_a_nano_is_found(charged: Installation, account: str) -> None:
    """Against its postings, its events and, for credit, the grants."""
    change(charged, counters, used=counters.c.used + 1)
    assert {(expected, got) for _, expected, got in found(charged, account)} == {(60, 61)}
    assert len(found(charged, account)) == 5


def test_a_posting_that_is_missing_is_found(charged: Installation, account: str) -> None:
    """The counter may be right and its history wrong."""
    with charged.engine.begin() as tx:
        tx.execute(sa.delete(postings).where(postings.c.counter_id == "credit"))
    assert [(expected, got) for _, expected, got in found(charged, account)] == [(0, 60)]


def test_a_grant_or_an_overdraft_that_was_changed_is_found(charged: Installation, account: str) -> None:
    """Money that appears or vanishes."""
    change(charged, grants, remaining_nanos=grants.c.remaining_nanos + 5)
    assert found(charged, account) == [("the grants drawn on", 55, 60)]
    with charged.engine.begin() as tx:
        tx.execute(sa.insert(pools).values(account_id=account, overdraft_nanos=5))
    assert found(charged, account) == []


def test_an_event_that_is_in_no_counter_is_found(charged: Installation, account: str) -> None:
    """As when somebody writes into the usage store directly."""
    from tests.faults.test_relay import record
    from tollkeeper.record_columns import table_of

    stray = record(account, 7)._replace(id="stray", key_id=f"{account}.k")
    charged.store.append(table_of([stray]), f"stray-{account}")
    assert sorted(got for _, _, got in found(charged, account)) == [60, 60]
    assert sorted(expected for _, expected, _ in found(charged, account)) == [67, 67]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("row", ["event", "amendment", "void"])
def test_a_record_that_is_stored_twice_is_named_where_no_budget_counts_it(
    site: Installation, usage_store: Any, account: str, row: str
) -> None:
    """Rollups and index have both copies, so that only the id tells."""
    set_up(site, Account(id=account, name="A"), Key(id=f"{account}.k", account=account))
    events = [
        {"id": f"e{n}", "time": "2026-03-18T11:00:00Z", "key_id": f"{account}.k", "cost_nanos": 5}
        for n in range(3)
    ]
    assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == 3
    site.amend.amend(account, "e1", f"{account}-fix", Event(id="-", time="-", cost_nanos=7))
    site.amend.void(account, "e2", f"{account}-void")
    assert site.reconcile.verify().ok
    stored = columns.records_of(pa.concat_tables(usage_store.export(account, 0, 2**52)))
    copied, line = {
        "event": (("e0", 0, 1), "e0 of key {}.k, revision 0: recorded 2 times"),
        "amendment": (("e1", 1, 1), "e1 of key {}.k, revision 1: recorded 2 times"),
        "void": (("e2", 0, -1), "e2 of key {}.k, revision 0 taken back: recorded 2 times"),
    }[row]
    again = [record for record in stored if (record.id, record.revision, record.sign) == copied]
    usage_store.append(columns.table_of(again), f"again-{account}")
    try:
        verdict = site.reconcile.verify()
        assert (verdict.ok, verdict.differences) == (False, [])
        assert verdict.store_differences == [f"events: {account} {line.format(account)}"]
    finally:
        # The store is shared with other tests.
        with usage_store._engine.scans.lend() as client:
            for table in ("events", "event_ids", "usage_rollups"):
                client.command(
                    f"ALTER TABLE {table} DELETE WHERE account_id = {{a:String}}",
                    {"a": account},
                    settings={"mutations_sync": 2},
                )


def test_a_budget_that_is_not_in_force_is_found(
    charged: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would let everything pass and count nothing."""
    # The installation would mend it, some time after its start.
    monkeypatch.setattr(charged._catalog_changes._budgets, "_differs", lambda account_id: False)
    with charged.engine.begin() as tx:
        tx.execute(sa.delete(scopes))
    verdict = charged.reconcile.verify()
    assert [(d.what, d.expected, d.found) for d in verdict.differences] == [
        ("budget budget:b in the catalog (expected) and in force (found)", 1, 0)
    ]


def test_rebuilding_changes_no_answer(charged: Installation, account: str) -> None:
    """Rollups are a pure function of the events."""
    asked = UsageQuery(account_id=account, from_us=0, to_us=2**52, granularity="hour", group_by=("key",))
    before = charged.reports.usage(asked)
    assert charged.reconcile.rebuild()["usage_rollups"] > 0
    after = charged.reports.usage(asked)
    assert (after.rows, after.totals) == (before.rows, before.totals)
    assert before.totals["cost_nanos"] == 60
    assert found(charged, account) == []


def test_a_budget_whose_period_was_changed_is_compared_by_its_new_periods(
    charged: Installation, account: str
) -> None:
    """The rows of its old periods stay, and mean nothing any more: they are no difference."""
    for period in ("1h", "month", "total", "5h", "day"):
        set_up(charged, Budget(id="b", account=account, amount=1_000, period=period))
        event = {"id": period, "time": "2026-03-18T11:30:00Z", "account": account, "cost_nanos": 1}
        assert charged.ingest.take(decode_events([event], now_us=charged.clock.now_us())).accepted == 1
        assert found(charged, account) == []


def test_it_is_exact_with_traffic_going_on(site: Installation, account: str) -> None:
    """Requests, batches and changes of budgets never make it report a difference that is none."""
    secret = set_up(
        site,
        Account(id=account, name="A"),
        Key(id=f"{account}.k", account=account, type="credit"),
        Grant(id="g", account=account, amount_nanos=10**12),
        Route(id="r", method="POST", path="/r", price_nanos=7),
    )[f"{account}.k"]
    stop = threading.Event()
    failures: list[BaseException] = []

    def until_stopped(work: Callable[[int], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                for turn in itertools.count():
                    if stop.is_set():
                        return
                    work(turn)
            except BaseException as exc:
                failures.append(exc)

        return run

    def request(turn: int) -> None:
        admission = site.holds.admit(secret, "POST", "/r")
        assert not isinstance(admission, Denial)
        site.holds.settle(admission, Outcome(), future := CommitFuture())
        future.wait()

    def batch(turn: int) -> None:
        events = [
            {"id": f"b{turn}-{n}", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": n}
            for n in range(20)
        ]
        assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == 20

    def budget(turn: int) -> None:
        site.manage.put(Budget(id=f"b{turn % 3}", account=account, amount=10**15 + turn, period="day"))
        if turn % 2:
            site.manage.delete("budgets", f"b{turn % 3}", account)

    threads = [threading.Thread(target=until_stopped(work)) for work in (request, request, batch, budget)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(effort(2, 8)):
            verdict = site.reconcile.verify()
            assert verdict.differences == []
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_an_answer_contains_what_was_settled_or_refused_just_before(site: Installation, account: str) -> None:
    """Also what nobody waited for: a settlement in process, and the refusal after it."""
    secret = set_up(
        site,
        Account(id=account, name="A"),
        Key(id=f"{account}.k", account=account, limits=[Limit(name="one", amount=5)]),
        Route(id="r", method="POST", path="/r", price_nanos=7),
    )[f"{account}.k"]
    asked = UsageQuery(account_id=account, from_us=0, to_us=2**52, measures=("requests", "denied"))
    for turn in range(1, 9):
        admission = site.holds.admit(secret, "POST", "/r")
        if not isinstance(admission, Denial):
            site.holds.settle(admission, Outcome())
        assert site.reports.usage(asked).totals == {"requests": turn, "denied": max(0, turn - 5)}
