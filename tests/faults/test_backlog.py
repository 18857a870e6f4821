"""The usage store is away for long: memory is bounded, answers say how old they are, and all of it arrives."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import Install
from tests.faults.test_ledger_away import Customer
from tests.faults.test_relay import DAMAGED, NOON_US
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.sql.database import open_engine
from tollkeeper.adapters.sql.ledger_tables import outbox
from tollkeeper.domain.requests import Outcome
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import Unavailable
from tollkeeper.http.metrics import metrics_source, render_metrics
from tollkeeper.http.routes.calls import Maintenance
from tollkeeper.installation import Installation
from tollkeeper.ledger import delivery, pending
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import Faulty, ManualClock, commit_all, unique, verify


def send(site: Installation, account: str, *ids: str, cost: int = 1) -> Any:
    events = [
        {"id": id_, "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": cost} for id_ in ids
    ]
    return site.ingest.take(decode_events(events, now_us=NOON_US))


def asked(account: str) -> UsageQuery:
    return UsageQuery(account_id=account, from_us=0, to_us=2**52, measures=("requests", "cost_nanos"))


@pytest.fixture
def away(usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """A usage store that takes nothing, and answers; few ids are kept whole meanwhile."""
    monkeypatch.setattr(pending, "WHOLE_IDS_MAX", 8)
    monkeypatch.setattr(delivery, "FLUSH_S", 0.2)
    store = Faulty(usage_store, "append")
    store.refuse(1_000_000)
    return store


def test_what_waits_long_is_known_by_its_ids_and_read_back_to_compare(
    install: Install, away: Faulty, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests, events and a restart on top of a backlog: no retry counts, conflicts are told, all arrives once."""
    site = install(store=away)
    customer = Customer(site, account)
    for _ in range(30):
        site.holds.settle(customer.admit(), Outcome())
        commit_all(site)
    for n in range(30):
        assert send(site, account, f"a{n}", f"b{n}").accepted == 2
    assert site.pending.record_count == 90
    assert len(site.pending._seqs) <= 8
    for _ in range(2):
        assert send(site, account, *(f"a{n}" for n in range(31)))._asdict() == {
            "accepted": int(_ == 0),
            "duplicates": 30 + _,
            "rejections": [],
            "rejected": 0,
        }
        conflict = send(site, account, "b3", cost=2)
        assert [rejection.code for rejection in conflict.rejections] == ["event_conflict"]
        if _ == 0:
            site.close()
            site = install(store=away)
            assert (site.pending.record_count, len(site.pending._seqs)) == (91, 0)
    away.refuse(0)
    monkeypatch.setattr(delivery, "FLUSH_S", 30.0)
    answer = site.reports.usage(asked(account))
    assert (answer.complete, answer.behind_s) == (True, 0)
    assert answer.totals == {"requests": 91, "cost_nanos": 30 * 7 + 61}
    assert verify(site).ok
    assert (site.pending.record_count, site.ledger.outbox.pending()) == (0, [])
    assert site.pending.disjoint([f"{account}\x00a1"])


def test_a_settled_request_in_the_backlog_answers_its_retry(
    install: Install, away: Faulty, account: str
) -> None:
    """The client's connection was cut minutes ago: its retry gets the first answer, by id alone too."""
    site = install(store=away)
    customer = Customer(site, account)
    hold_id = unique("hold")
    customer.authorize(hold_id)
    outcome = Outcome(status=201)
    _, future = site.holds.settle_hold(hold_id, outcome, commit_future())
    assert future is not None
    future.wait()
    send(site, account, *(f"e{n}" for n in range(20)))
    assert len(site.pending._seqs) <= 8
    for owner in (account, None):
        settled, future = site.holds.settle_hold(hold_id, outcome, commit_future(), account_id=owner)
        assert (settled.replayed, settled.record.status, future) == (True, 201, None)


def commit_future() -> Any:
    from tollkeeper.ledger.commit_future import CommitFuture

    return CommitFuture()


def test_an_answer_says_how_old_it_may_be(
    install: Install, away: Faulty, account: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Billing and monitoring must both learn that the last minutes are missing."""
    site = install(store=away)
    Customer(site, account)
    send(site, account, "a")
    clock.advance(seconds=90)
    send(site, account, "b")
    clock.advance(seconds=30)
    with pytest.raises(Unavailable):
        # It may have been delivered all the same: too many records are pending to be added to a query.
        site.relay.deliver()
    answer = site.reports.usage(asked(account))
    assert (answer.complete, answer.behind_s) == (False, 120)
    metrics = render_metrics(metrics_source(site, Maintenance(), "0"))
    assert "tollkeeper_outbox_records 2\n" in metrics
    assert "tollkeeper_outbox_age_seconds 120\n" in metrics
    site.close()
    site = install(store=away)
    clock.advance(seconds=60)
    assert site.pending.behind_s() == 180
    away.refuse(0)
    monkeypatch.setattr(delivery, "FLUSH_S", 30.0)
    answer = site.reports.usage(asked(account))
    assert (answer.complete, answer.behind_s) == (True, 0)
    assert "tollkeeper_outbox_age_seconds 0\n" in render_metrics(metrics_source(site, Maintenance(), "0"))


def test_a_store_that_does_not_answer_costs_the_gate_nothing(
    install: Install, usage_store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read hundred thousands of records again and again, for nobody, would slow every request."""
    monkeypatch.setattr("tollkeeper.ledger.relay.RETRY_S", (0.01,))
    asked_again = threading.Event()

    class Away:
        answers, questions = False, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(usage_store, name)

        def append(self, records: Any, token: str, *, begun_after: int | None = None) -> None:
            if not self.answers:
                raise Unavailable("away")
            usage_store.append(records, token, begun_after=begun_after)

        def ready(self) -> bool:
            self.questions += 1
            if self.questions > 5:
                asked_again.set()
            return self.answers

    store: Any = Away()
    site = install(store=store)
    Customer(site, account)
    read = Faulty(site.ledger.outbox, "next_batch")
    site.relay._outbox = read  # type: ignore[assignment]
    send(site, account, "a")
    site.relay.flush(site.committer.outbox_seq, 0.2)
    assert asked_again.wait(30)
    assert read.calls <= 2
    store.answers = True
    assert site.reports.usage(asked(account)).totals == {"requests": 1, "cost_nanos": 1}


def test_the_ids_of_a_row_that_cannot_be_read_stay_taken(
    install: Install, usage_store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were charged: a retry that is booked beside them would charge twice, now or after a repair."""
    store = Faulty(usage_store, "append")
    store.refuse(1_000_000)
    monkeypatch.setattr(delivery, "FLUSH_S", 0.2)
    site = install(store=store)
    customer = Customer(site, account)
    send(site, account, "a", "b")
    good = site.committer.outbox_seq
    site.close()
    engine = open_engine(site.settings.ledger)
    with engine.begin() as tx:
        tx.execute(sa.update(outbox).where(outbox.c.seq == good).values(payload=DAMAGED["cut off"].payload))
    engine.dispose()
    site = install(store=store)
    # While nobody has seen yet that it cannot be read …
    assert send(site, account, "b", "c").accepted == 1
    store.refuse(0)
    monkeypatch.setattr(delivery, "FLUSH_S", 30.0)
    for _ in range(3):
        site.delivery.fresh(account)
        # … and from then on, restarts included.
        result = send(site, account, "a", "b", "c")
        assert (result.accepted, result.duplicates, result.rejections) == (0, 3, [])
        assert site.relay.set_aside_records == 2
        assert "tollkeeper_outbox_set_aside_records 2\n" in render_metrics(
            metrics_source(site, Maintenance(), "0")
        )
        site.close()
        site = install(store=usage_store)
    assert site.ledger.counter(account, "budget:b", 0)[0] == 3
    answer = site.reports.usage(asked(account))
    assert (answer.complete, answer.totals["requests"]) == (False, 1)
    assert any(f"outbox row {good}: its 2 records" in line for line in verify(site).store_differences)
    # The gate has nothing to do with it.
    customer.site = site
    site.holds.settle(customer.admit(), Outcome())


@pytest.mark.drawn(1)
@pytest.mark.parametrize("damaged", [b"", b"\xc1", b"\x92\xa1a"], ids=["older", "not MessagePack", "cut off"])
def test_ids_that_cannot_be_read_are_those_of_the_records(
    install: Install, usage_store: ClickHouseUsageStore, account: str, damaged: bytes
) -> None:
    """A version before this one did not write them; and a disk may spoil them alone."""
    store = Faulty(usage_store, "append")
    store.refuse(1_000_000)
    site = install(store=store)
    Customer(site, account)
    send(site, account, "a", "b")
    site.close()
    engine = open_engine(site.settings.ledger)
    with engine.begin() as tx:
        tx.execute(sa.update(outbox).values(id_keys=damaged))
    engine.dispose()
    site = install(store=store)
    assert send(site, account, "a", "b", "c")._asdict() == {
        "accepted": 1,
        "duplicates": 2,
        "rejections": [],
        "rejected": 0,
    }
    store.refuse(0)
    assert site.reports.usage(asked(account)).totals["requests"] == 3
    assert verify(site).ok
