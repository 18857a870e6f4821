"""From the outbox to the usage store each record goes once, wherever a crash or a lost answer falls."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Install
from tests.effort import effort
from tests.engines import empty_tables, fresh_engine
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.lazy_store import LazyUsageStore
from tollkeeper.adapters.sql.database import open_engine
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.ledger_tables import outbox
from tollkeeper.domain.bookings import Group, OutboxEntry
from tollkeeper.domain.catalog import Account, Key, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Record
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.domain.requests import NO_USAGE, Outcome
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger import delivery
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import AddCharges, encode_rows
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.ledger.relay import Relay, Unreadable, table_of_entry
from tollkeeper.meter.decode import decode_events
from tollkeeper.record_columns import table_of, to_ipc
from tollkeeper.testing import NOON, Faulty, commit_all, set_up, unique

NOON_US = int(NOON.timestamp()) * 1_000_000
_ids = itertools.count()


def record(account: str, cost: int = 1) -> Record:
    return Record(
        account, "", "", NOON_US, NOON_US, f"e{next(_ids)}", 0, 1, "", "request", "GET", "/", 200, "", "",
        None, 0, "", 0, 0, 0, 0, "", 0, cost, 0, "given", "", {},
    )  # fmt: skip


def entry(records: list[Record], format_: str = "rows") -> OutboxEntry:
    payload = encode_rows(records) if format_ == "rows" else to_ipc(table_of(records))
    return OutboxEntry(format_, payload, len(records))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    with fresh_engine("sqlite-file", tmp_path_factory.mktemp("relay")) as engine:
        yield engine


def totals(store: ClickHouseUsageStore, account: str) -> tuple[int, int]:
    spent = store.charged(account, from_us=0, to_us=2**52, project_id=None, key_ids=None)
    asked = UsageQuery(account_id=account, from_us=0, to_us=2**52, measures=("requests", "cost_nanos"))
    answer = store.report(asked).totals
    assert (answer["requests"], answer["cost_nanos"]) == (spent.events, spent.cost_nanos)
    return spent.events, spent.cost_nanos


class Recorded:
    """A store that notes each append."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.appends: list[tuple[str, list[str]]] = []
        self.begun_after: list[int | None] = []

    def begin(self, mark: BatchMark) -> None:
        self.store.begin(mark)

    def append(self, records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        self.appends.append((token, records.column("id").to_pylist()))
        self.begun_after.append(begun_after)
        self.store.append(records, token, begun_after=begun_after)


@settings(
    max_examples=effort(3, 15),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    faults=st.lists(
        st.tuples(st.sampled_from(["append", "delivered", "next_batch"]), st.booleans(), st.booleans()),
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_whatever_fails_each_record_arrives_once(
    engine: sa.Engine,
    usage_store: ClickHouseUsageStore,
    sizes: list[int],
    faults: list[tuple[str, bool, bool]],
    seed: int,
) -> None:
    """Before or after the insert or the delete, with or without a restart, while more comes in."""
    empty_tables(engine)
    chance, account = random.Random(seed), unique("acct")
    ledger = SqlLedger(engine)
    relay = Relay(ledger.outbox, usage_store, Pending())
    sent: list[Record] = []
    left = [[record(account, 2 ** (n % 40)) for _ in range(size)] for n, size in enumerate(sizes)]

    def commit() -> None:
        if left:
            rows = left.pop()
            sent.extend(rows)
            ledger.commit(Group(now_us=NOON_US, outbox=[entry(rows, chance.choice(["rows", "arrow"]))]))

    commit()
    for method, lost, restart in faults:
        faulty: Any = Faulty(usage_store if method == "append" else ledger.outbox, method)
        (faulty.lose_replies if lost else faulty.refuse)()
        relay._outbox, relay._store = (ledger.outbox, faulty) if method == "append" else (faulty, usage_store)
        try:
            relay.deliver()
        except Unavailable:
            commit()
        if restart:
            ledger = SqlLedger(engine)
            relay = Relay(ledger.outbox, usage_store, Pending())
        relay._outbox, relay._store = ledger.outbox, usage_store
    while left:
        commit()
    while relay.deliver():
        pass
    assert ledger.outbox.pending() == []
    assert totals(usage_store, account) == (len(sent), sum(row.cost_nanos for row in sent))
    assert usage_store.differences() == []


def test_a_batch_is_repeated_with_the_same_rows_and_token(
    engine: sa.Engine, usage_store: ClickHouseUsageStore
) -> None:
    """The store tells a repeat by its token: other rows under it would be dropped."""
    empty_tables(engine)
    account, ledger, store = unique("acct"), SqlLedger(engine), Recorded(usage_store)
    first, second = [record(account)], [record(account)]
    ledger.commit(Group(now_us=NOON_US, outbox=[entry(first)]))
    faulty: Any = Faulty(store, "append")
    faulty.lose_replies(2)
    relay: Any = Relay(ledger.outbox, faulty, Pending())
    for _ in range(2):
        with pytest.raises(Unavailable):
            relay.deliver()
        ledger.commit(Group(now_us=NOON_US, outbox=[entry(second)])) if len(store.appends) == 1 else None
        relay.failure = None
    assert relay.deliver() == 1
    assert relay.deliver() == 1
    tokens = [token for token, _ in store.appends]
    assert tokens[0] == tokens[1] == tokens[2] != tokens[3]
    assert [ids for _, ids in store.appends] == [[first[0].id]] * 3 + [[second[0].id]]
    assert totals(usage_store, account) == (2, 2)


def test_what_may_have_been_begun_before_is_told_to_be(
    engine: sa.Engine, usage_store: ClickHouseUsageStore
) -> None:
    """By a process before, or by a call that failed: it is compared with what is there, which takes longer."""
    empty_tables(engine)
    account, ledger, store = unique("acct"), SqlLedger(engine), Recorded(usage_store)
    faulty: Any = Faulty(store, "append")
    relay: Any = Relay(ledger.outbox, faulty, Pending())

    def deliver(count: int) -> None:
        ledger.commit(Group(now_us=NOON_US, outbox=[entry([record(account) for _ in range(count)])]))
        assert relay.deliver() == 1

    deliver(2)
    deliver(3)
    faulty.lose_replies(1)
    with pytest.raises(Unavailable):
        deliver(4)
    relay.failure = None
    assert relay.deliver() == 1
    deliver(5)
    relay = Relay(ledger.outbox, store, Pending())  # type: ignore[arg-type]
    deliver(6)
    assert store.begun_after == [0, None, None, 5, None, 14]
    assert totals(usage_store, account) == (20, 20)


def test_a_batch_whose_end_the_ledger_did_not_tell_is_ended_once_and_not_inserted_again(
    engine: sa.Engine, usage_store: ClickHouseUsageStore
) -> None:
    """The ledger may have removed the rows and its answer be lost: no caller must wait for them for ever."""
    empty_tables(engine)
    account, ledger, store, pending = unique("acct"), SqlLedger(engine), Recorded(usage_store), Pending()
    rows = [record(account)]
    (seq,) = ledger.commit(Group(now_us=NOON_US, outbox=[entry(rows)])).outbox_seqs
    keys = [key_of(account, rows[0].id)]
    pending.add(keys, rows)
    pending.committed(seq, keys, {account}, 1)
    faulty: Any = Faulty(ledger.outbox, "delivered")
    faulty.lose_replies(1)
    relay: Any = Relay(faulty, store, pending)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        relay.deliver()
    assert (relay.deliver(), relay.deliver()) == (1, 0)
    assert (relay.delivered_seq, pending.record_count, pending.disjoint(keys)) == (seq, 0, True)
    assert len(store.appends) == 1
    assert totals(usage_store, account) == (1, 1)


# -- the usage store is away for a while -------------------------------------------------------------------


def test_gate_and_meter_go_on_while_the_store_takes_nothing(
    install: Install, usage_store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outbox grows, answers say that they are not complete, and afterwards all arrives, once."""
    monkeypatch.setattr(delivery, "FLUSH_S", 1.0)
    store: Any = Faulty(usage_store, "append")
    store.refuse(10_000)
    site = install(store=store)
    set_up(site, Account(id=account, name="A"))
    asked = UsageQuery(account_id=account, from_us=0, to_us=2**52, measures=("requests", "cost_nanos"))

    def send(n: int) -> int:
        event = {"id": f"e{n}", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": 1}
        return site.ingest.take(decode_events([event], now_us=NOON_US)).accepted

    assert [send(n) for n in range(5)] == [1] * 5
    assert [send(n) for n in range(6)] == [0] * 5 + [1]
    answer = site.reports.usage(asked)
    assert (answer.complete, answer.totals["requests"]) == (False, 0)
    assert (site.pending.record_count, len(site.ledger.outbox.pending())) == (6, 6)
    assert site.relay.failure
    assert site.reconcile.verify().store_differences == [
        "the outbox could not be delivered to the usage store"
    ]
    site.close()
    site = install(store=store)
    assert [send(n) for n in range(7)] == [0] * 6 + [1]
    store.refuse(0)
    store.lose_replies(2)
    monkeypatch.setattr(delivery, "FLUSH_S", 20.0)
    answer = site.reports.usage(asked)
    assert (answer.complete, answer.totals) == (True, {"requests": 7, "cost_nanos": 7})
    assert (site.pending.record_count, site.ledger.outbox.pending(), site.relay.failure) == (0, [], None)
    assert [send(n) for n in range(7)] == [0] * 7


def test_ingest_refuses_when_it_cannot_tell_repeats(
    install: Install, usage_store: ClickHouseUsageStore, account: str
) -> None:
    """Without the index of ids an event could count twice: nothing of the batch is booked."""
    store: Any = Faulty(usage_store, "known_ids")
    site = install(store=store)
    set_up(site, Account(id=account, name="A"))
    event = {"id": "e", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": 1}
    batch = decode_events([event], now_us=NOON_US)
    store.refuse(1)
    with pytest.raises(Unavailable):
        site.ingest.take(batch)
    assert site.ledger.outbox.pending() == []
    assert site.ingest.take(batch).accepted == 1


def test_too_much_that_waits_for_the_store_is_refused(
    install: Install, usage_store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and disk are bounded while the store is away."""
    monkeypatch.setattr("tollkeeper.ledger.pending.RECORDS_MAX", 2)
    store: Any = Faulty(usage_store, "append")
    store.refuse(10_000)
    site = install(store=store)
    set_up(site, Account(id=account, name="A"))

    def send(n: int) -> int:
        event = {"id": f"e{n}", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": 1}
        return site.ingest.take(decode_events([event], now_us=NOON_US)).accepted

    assert [send(n) for n in range(3)] == [1, 1, 1]
    with pytest.raises(Unavailable, match="Too many events wait"):
        send(3)
    store.refuse(0)
    assert site.delivery.fresh(None)
    assert send(3) == 1


def test_the_gate_refuses_what_is_new_while_too_much_waits_for_the_store(
    install: Install, usage_store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of ingest; what was admitted before ends as it should, and nothing is refused afterwards."""
    monkeypatch.setattr("tollkeeper.ledger.pending.RECORDS_MAX", 2)
    store: Any = Faulty(usage_store, "append")
    store.refuse(10_000)
    site = install(store=store)
    secret = set_up(
        site,
        Account(id=account, name="A"),
        Key(id=f"{account}.k", account=account),
        Route(id="r", method="POST", path="/r", price_nanos=7),
    )[f"{account}.k"]

    def authorize(hold_id: str) -> Admission | Denial:
        found = site.holds.authorize(secret, "POST", "/r", NO_USAGE, CommitFuture(), hold_id=hold_id)
        if isinstance(found, Denial):
            return found
        found[1].wait()
        return found[0]

    def settle(hold_id: str) -> None:
        _, future = site.holds.settle_hold(hold_id, Outcome(), CommitFuture(), account_id=account)
        assert future is not None
        future.wait()
        # The thread that committed it looks at what waits just after.
        commit_all(site)

    for name in ("one", "two", "three", "late", "voided"):
        assert isinstance(authorize(name), Admission)
    inside = site.holds.admit(secret, "POST", "/r")
    assert isinstance(inside, Admission)
    for name in ("one", "two"):
        settle(name)
        assert site.gate.refusing is None
    settle("three")
    with pytest.raises(Unavailable) as told:
        site.ingest.take(
            decode_events([{"id": "e", "time": "2026-03-18T11:00:00Z", "account": account}], now_us=NOON_US)
        )
    for refused in (authorize("four"), site.holds.admit(secret, "POST", "/r")):
        assert isinstance(refused, Denial)
        assert (refused.status, refused.reason, refused.retry_after_s) == (503, "unavailable", 1)
        assert refused.message == str(told.value)
    settle("late")
    _, voided = site.holds.void_hold("voided", CommitFuture(), account_id=account)
    assert voided is not None
    voided.wait()
    site.holds.settle(inside, Outcome())
    commit_all(site)
    assert site.pending.record_count == 5
    store.refuse(0)
    assert site.delivery.fresh(None)
    # Delivered, and nothing was committed since.
    assert isinstance(authorize("five"), Admission)


def test_a_gate_that_starts_with_too_much_waiting_refuses_at_once(
    install: Install, usage_store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier process left it: it takes the same memory."""
    store: Any = Faulty(usage_store, "append")
    store.refuse(10_000)
    before = install(store=store)
    set_up(before, Account(id=account, name="A"))
    event = {"id": "e", "time": "2026-03-18T11:00:00Z", "account": account}
    assert before.ingest.take(decode_events([event], now_us=NOON_US)).accepted == 1
    before.close()
    monkeypatch.setattr("tollkeeper.ledger.pending.RECORDS_MAX", 0)
    assert install(store=store).gate.refusing is not None


def test_a_store_that_could_not_be_opened_is_opened_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the usage store may start after us: that must not need a restart of ours."""
    monkeypatch.setattr("tollkeeper.adapters.lazy_store.REOPEN_S", 0.0)
    tried: list[str] = []

    class Opened:
        def ready(self) -> bool:
            return True

        def owners(self, id_: str) -> list[str]:
            return ["acme"]

        def close(self) -> None:
            tried.append("closed")

    def open_store() -> Any:
        tried.append("opened")
        if len(tried) == 1:
            raise Unavailable("connection refused")
        if len(tried) == 2:
            raise ZeroDivisionError
        return Opened()

    store = LazyUsageStore(open_store)
    with pytest.raises(Unavailable, match="connection refused"):
        store.owners("x")
    with pytest.raises(Unavailable, match="see the log"):
        store.owners("x")
    assert store.owners("x") == ["acme"]
    assert store.ready()
    store.close()
    assert tried == ["opened", "opened", "opened", "closed"]


def test_calls_wait_for_a_store_that_opens_as_long_as_the_first_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One behind another for few threads, none of them waits for longer than its caller would."""
    monkeypatch.setattr("tollkeeper.adapters.lazy_store.WAIT_S_MAX", 0.2)
    may_open = threading.Event()

    class Opened:
        def owners(self, id_: str) -> list[str]:
            return ["acme"]

        def close(self) -> None:
            pass

    def open_store() -> Any:
        assert may_open.wait(60)
        return Opened()

    began_s = time.monotonic()
    store = LazyUsageStore(open_store)
    for _ in range(50):
        with pytest.raises(Unavailable, match="still opening"):
            store.owners("x")
    # One after another: 10 s if each of them waited anew.
    assert time.monotonic() < began_s + 5
    may_open.set()
    # What is done once has more time.
    store.wait()
    assert store.owners("x") == ["acme"]
    store.close()


def test_a_store_that_never_opened_can_be_closed() -> None:
    """Nothing to close is nothing to fail for."""

    def open_store() -> Any:
        raise Unavailable("connection refused")

    store = LazyUsageStore(open_store)
    assert not store.ready()
    store.close()
    with pytest.raises(Unavailable):
        store.owners("x")


# -- rows that cannot be read --------------------------------------------------------------------------------

_good = [record("acme")]
DAMAGED = {
    "not MessagePack": OutboxEntry("rows", b"\xc1\xff\x00", 1),
    "cut off": OutboxEntry("rows", encode_rows(_good)[:-3], 1),
    "no records": OutboxEntry("rows", encode_rows([1, 2]), 2),
    "a number out of range": OutboxEntry("rows", encode_rows([_good[0]._replace(status=70_000)]), 1),
    "another number of records": OutboxEntry("rows", encode_rows(_good), 2),
    "not Arrow": OutboxEntry("arrow", b"\xff\xff\xff\xff" + b"\x00" * 60, 1),
    "nothing": OutboxEntry("arrow", b"", 1),
    "Arrow cut off": OutboxEntry("arrow", to_ipc(table_of(_good))[:-200], 1),
    "other columns": OutboxEntry("arrow", to_ipc(pa.table({"a": [1]})), 1),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_row_that_cannot_be_read_is_recognised(damaged: OutboxEntry) -> None:
    """Whatever the disk made of it, it is told apart from a store that is away."""
    with pytest.raises(Unreadable):
        table_of_entry(damaged)


@pytest.mark.parametrize("restart", [False, True])
def test_a_row_that_cannot_be_read_holds_up_no_other(
    install: Install, account: str, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is set aside and reported; neither relay nor start fail at it for ever."""
    site = install()
    set_up(site, Account(id=account, name="A"))
    rows = [
        entry([record(account, 10)]),
        DAMAGED["cut off"]._replace(record_count=3),
        entry([record(account, 1)], "arrow"),
    ]
    if restart:
        site.close()
        engine = open_engine(site.settings.ledger)
        _, bad, _ = SqlLedger(engine).commit(Group(now_us=NOON_US, outbox=rows)).outbox_seqs
        engine.dispose()
        site = install()
    else:
        with site.relay.exclusive():
            _, bad, _ = site.ledger.commit(Group(now_us=NOON_US, outbox=rows)).outbox_seqs
    site.relay.notify()
    assert site.relay.flush(bad + 1, 20)
    asked = UsageQuery(account_id=account, from_us=0, to_us=2**52, measures=("requests", "cost_nanos"))
    answer = site.reports.usage(asked)
    assert answer.totals == {"requests": 2, "cost_nanos": 11}
    assert not answer.complete
    assert site.relay.failure is None
    assert site.ledger.outbox.pending() == []
    (line,) = [line for line in site.reconcile.verify().store_differences if line.startswith("outbox")]
    assert line.startswith(f"outbox row {bad}: its 3 records cannot be read and are set aside")
    assert any(r.getMessage() == "tollkeeper.relay.set_aside" for r in caplog.records)
    with site.engine.connect() as tx:
        kept = tx.execute(sa.select(outbox.c.payload)).scalars().all()
    assert kept == [DAMAGED["cut off"].payload]


def test_a_batch_that_was_inserted_before_its_row_was_damaged_is_not_inserted_again(
    engine: sa.Engine, usage_store: ClickHouseUsageStore
) -> None:
    """The crash that came between insert and delete may be the one that damaged the disk."""
    empty_tables(engine)
    account, ledger = unique("acct"), SqlLedger(engine)
    rows = [entry([record(account)]) for _ in range(3)]
    _, damaged, _ = ledger.commit(Group(now_us=NOON_US, outbox=rows)).outbox_seqs
    faulty: Any = Faulty(ledger.outbox, "delivered")
    faulty.refuse()
    with pytest.raises(Unavailable):
        Relay(faulty, usage_store, Pending()).deliver()
    with engine.begin() as tx:
        tx.execute(sa.update(outbox).where(outbox.c.seq == damaged).values(payload=b"\xc1"))
    relay = Relay(ledger.outbox, usage_store, Pending())
    assert relay.deliver() == 3
    assert totals(usage_store, account) == (3, 3)
    assert (relay.set_aside_records, ledger.outbox.pending()) == (1, [])


# -- start with a full outbox --------------------------------------------------------------------------------


def test_what_a_killed_process_had_committed_is_known_and_delivered(
    install: Install, usage_store: ClickHouseUsageStore, account: str
) -> None:
    """Its ids are known before the first event comes in, or a retry would count beside it."""
    store: Any = Faulty(usage_store, "append")
    store.refuse(10_000)
    site = install(store=store)
    set_up(site, Account(id=account, name="A"))
    events = [
        {"id": f"e{n}", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": n}
        for n in range(50)
    ]
    batch = decode_events(events, now_us=NOON_US)
    assert site.ingest.take(batch).accepted == 50
    site.close()
    site = install(store=store)
    assert site.pending.record_count == 50
    assert site.ingest.take(batch)._asdict() == {
        "accepted": 0,
        "duplicates": 50,
        "rejections": [],
        "rejected": 0,
    }
    conflict = decode_events([{**events[3], "cost_nanos": 99}], now_us=NOON_US)
    assert [r.code for r in site.ingest.take(conflict).rejections] == ["event_conflict"]
    store.refuse(0)
    assert site.delivery.fresh(account)
    assert totals(usage_store, account) == (50, sum(range(50)))
    assert site.pending.disjoint([f"{account}\x00e1"])


def test_corrections_in_the_outbox_are_known_after_a_restart(
    install: Install, usage_store: ClickHouseUsageStore, account: str
) -> None:
    """The correction's id, and that the event is no longer what it was."""
    store: Any = Faulty(usage_store, "append")
    site = install(store=store)
    set_up(site, Account(id=account, name="A"))
    event = {"id": "e", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": 5}
    batch = decode_events([event], now_us=NOON_US)
    site.ingest.take(batch)
    assert site.delivery.fresh(account)
    store.refuse(10_000)
    site.amend.void(account, "e", "fix")
    site.close()
    site = install(store=store)
    assert site.ingest.take(batch).duplicates == 1
    as_event = decode_events([{**event, "id": "fix"}], now_us=NOON_US)
    assert [r.code for r in site.ingest.take(as_event).rejections] == ["event_conflict"]
    store.refuse(0)
    assert site.amend.void(account, "e", "fix").repeated
    assert totals(usage_store, account) == (0, 0)


def test_a_hold_that_was_open_is_still_taken_after_a_restart(install: Install, account: str) -> None:
    """An event of its id would count beside the one that settling it makes."""
    from tests.faults.test_ledger_away import Customer

    site: Installation = install()
    Customer(site, account).authorize("h")
    site.close()
    site = install()
    event = {"id": "h", "time": "2026-03-18T11:00:00Z", "account": account, "cost_nanos": 5}
    result = site.ingest.take(decode_events([event], now_us=NOON_US))
    assert [r.code for r in result.rejections] == ["event_conflict"]


def test_the_commit_thread_does_not_wait_for_the_relay(
    install: Install, usage_store: ClickHouseUsageStore, account: str
) -> None:
    """A slow store delays answers about usage, never the booking of it."""
    site = install()
    set_up(site, Account(id=account, name="A"))
    with site.relay.exclusive():
        for _ in range(3):
            future = CommitFuture()
            site.committer.submit(AddCharges({(account, "x", 0): 1}, future))
            future.wait(20)
    assert site.ledger.counter(account, "x", 0)[0] == 3
