"""The ledger keeps its word on both engines: a group whole or not at all, and the outbox until delivered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from tests.engines import SHARED_ENGINES, empty_tables, fresh_engine
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.ledger_tables import pools
from tollkeeper.adapters.sql.metadata import metadata
from tollkeeper.domain.bookings import (
    EndedHold,
    Group,
    HoldBody,
    OpenedPeriod,
    OutboxEntry,
    PendingRow,
    RevokedGrant,
    SetAside,
    StoredHold,
    ToppedUp,
    WindowState,
)
from tollkeeper.domain.catalog import Account, Grant
from tollkeeper.domain.draws import Draws
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope, fingerprint_of
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.top_ups import OwnAmount, TopUp
from tollkeeper.errors import BadInput, Conflict, InvariantBroken, Unavailable

NOW = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)
NOW_US = to_us(NOW)
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


@pytest.fixture(scope="module", params=SHARED_ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path_factory.mktemp("ledger")) as engine:
        yield engine


@pytest.fixture
def ledger(engine: sa.Engine) -> SqlLedger:
    empty_tables(engine)
    return SqlLedger(engine)


def rows(n: int = 1) -> OutboxEntry:
    return OutboxEntry("rows", b"payload", n)


def hold(hold_id: str = "h1", account_id: str = "acme") -> StoredHold:
    body = HoldBody(
        key_id="k1",
        method="POST",
        path="/v1/chat",
        amounts=(1, 20, 300, 4),
        expected=(10, 0, 10, 0, "gpt-4o"),
        at_us=NOW_US,
        expires_at_us=NOW_US + 300_000_000,
        fingerprint="asked",
        tags={"team": "red\x00 ü"},
    )
    return StoredHold(account_id, hold_id, "open", body)


def scope(**fields: Any) -> BudgetScope:
    return BudgetScope(
        **{
            "account_id": "acme",
            "counter_id": "budget:b1",
            "name": "b1",
            "unit": "nanos",
            "amount": 100,
            "period": "month",
            "time_zone": "UTC",
            "week_start": "monday",
            "anchor_at": None,
        }
        | fields
    )


def grant(engine: sa.Engine, id_: str, amount_nanos: int, **fields: Any) -> Grant:
    """A grant that is in the catalog and not on the balance yet."""
    catalog = SqlCatalogStore(engine)
    if catalog.get("accounts", "acme") is None:
        catalog.put(Account(id="acme", name="Acme"), NOW_US)
    made = Grant(id=id_, account="acme", amount_nanos=amount_nanos, **fields)
    catalog.put(made, NOW_US)
    return made


def everything(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as tx:
        return {
            t.name: sorted(map(tuple, tx.execute(sa.select(t))), key=repr) for t in metadata.sorted_tables
        }


# -- commit ---------------------------------------------------------------------------------------------


def test_a_group_is_written_whole(ledger: SqlLedger) -> None:
    """One commit has everything that its callers were told."""
    at = ("acme", "budget:b1", NOW_US)
    committed = ledger.commit(
        Group(
            now_us=NOW_US,
            opened=[hold()],
            charges={at: 5, ("acme", "budget:b2", 0): 0},
            windows=[WindowState("acme", "limit:rpm", {60: 1, 120: 2}, NOW_US + 60)],
            outbox=[rows(3), OutboxEntry("arrow", b"\x00\xff", 2, b"\x92\x00")],
            scopes=[(scope(), NOW_US)],
        )
    )
    first, second = committed.outbox_seqs
    assert first < second
    assert ledger.counter(*at) == (5, committed.commit_seq)
    assert ledger.counter_rows("acme") == ledger.posting_sums("acme") == {at[1:]: 5}
    assert ledger.slots("acme", "limit:rpm") == {60: 1, 120: 2}
    assert ledger.open_holds() == [hold()]
    assert ledger.scopes("acme") == {"budget:b1": (fingerprint_of(scope()), NOW_US)}
    assert ledger.outbox.pending() == [
        PendingRow(first, 3, b"", NOW_US),
        PendingRow(second, 2, b"\x92\x00", NOW_US),
    ]
    assert ledger.outbox.pending(first) == ledger.outbox.pending()[1:]
    assert ledger.outbox.pending(rows_max=1) == ledger.outbox.pending()[:1]
    assert ledger.outbox.entries([first, second, 99]) == {
        first: rows(3),
        second: OutboxEntry("arrow", b"\x00\xff", 2, b"\x92\x00"),
    }
    assert ledger.charged_accounts() == ["acme"]


def test_a_charge_of_nothing_writes_nothing(ledger: SqlLedger, engine: sa.Engine) -> None:
    """Free requests must not fill tables with zeros."""
    ledger.commit(Group(now_us=NOW_US, charges={("acme", "budget:b1", 0): 0}))
    assert ledger.counter_rows("acme") == ledger.posting_sums("acme") == {}


def broken_hold(ledger: SqlLedger, engine: sa.Engine) -> Group:
    ledger.commit(Group(now_us=NOW_US, opened=[hold()]))
    return Group(now_us=NOW_US, opened=[hold()])


def broken_balance(ledger: SqlLedger, engine: sa.Engine) -> Group:
    with engine.begin() as tx:
        # An account has an overdraft or a surplus, not both: someone wrote into the table.
        tx.execute(sa.insert(pools).values(account_id="acme", overdraft_nanos=5, surplus_nanos=9))
    return Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): -1})


def broken_outbox(ledger: SqlLedger, engine: sa.Engine) -> Group:
    return Group(now_us=NOW_US, outbox=[rows(), OutboxEntry("rows", None, 1)])  # type: ignore[arg-type]


def broken_number(ledger: SqlLedger, engine: sa.Engine) -> Group:
    return Group(now_us=NOW_US, charges={("acme", "budget:b1", 2**70): 1})


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (broken_hold, Conflict),
        (broken_balance, InvariantBroken),
        (broken_outbox, Conflict),
        (broken_number, (BadInput, OverflowError)),
    ],
)
def test_a_group_with_one_bad_part_leaves_nothing(
    ledger: SqlLedger, engine: sa.Engine, make: Callable[..., Group], error: Any
) -> None:
    """Half a group would be a charge without its event. And one bad part is no database that is away."""
    bad = make(ledger, engine)
    before = everything(engine)
    bad.charges = {("acme", "budget:x", 0): 7, **bad.charges}
    bad.windows = [WindowState("acme", "limit:rpm", {60: 1}, NOW_US)]
    bad.scopes = [(scope(), NOW_US)]
    bad.outbox = [rows(), *bad.outbox]
    with pytest.raises(error):
        ledger.commit(bad)
    assert everything(engine) == before
    ledger.commit(Group(now_us=NOW_US, charges={("acme", "budget:x", 0): 7}))
    assert ledger.counter("acme", "budget:x", 0)[0] == 7


def test_text_that_the_engine_cannot_hold_is_bad_input(ledger: SqlLedger, engine: sa.Engine) -> None:
    """PostgreSQL has no NUL in text: taken for a database that is away, it would be retried for ever."""
    if engine.dialect.name == "postgresql":
        with pytest.raises(BadInput):
            ledger.commit(Group(now_us=NOW_US, opened=[hold("h\x00")]))
        with pytest.raises(BadInput):
            ledger.hold("acme", "h\x00")
    else:
        ledger.commit(Group(now_us=NOW_US, opened=[hold("h\x00")]))
        assert ledger.hold("acme", "h\x00") == hold("h\x00")


def test_a_commit_whose_answer_was_lost_is_found_out(
    ledger: SqlLedger, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer tries again what fails: a commit that took place must not look as if it had failed."""
    commit, loaded = engine.dialect.do_commit, engine.dialect.loaded_dbapi
    lost = iter([True])

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        if next(lost, False):
            raise loaded.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(engine.dialect, "do_commit", lose_the_answer)
    committed = ledger.commit(Group(now_us=NOW_US, charges={("acme", "c", 0): 5}, outbox=[rows()]))
    assert ledger.counter("acme", "c", 0) == (5, committed.commit_seq)
    assert [row.seq for row in ledger.outbox.pending()] == committed.outbox_seqs


def test_a_commit_that_failed_left_nothing(
    ledger: SqlLedger, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Unavailable` says that nothing was written, so that a retry counts once."""
    commit, loaded = engine.dialect.do_commit, engine.dialect.loaded_dbapi
    failing = iter([True])

    def fail_once(connection: Any) -> None:
        if next(failing, False):
            raise loaded.OperationalError("disk full")
        commit(connection)

    monkeypatch.setattr(engine.dialect, "do_commit", fail_once)
    group = Group(now_us=NOW_US, charges={("acme", "c", 0): 5}, outbox=[rows()])
    with pytest.raises(Unavailable):
        ledger.commit(group)
    assert ledger.outbox.pending() == []
    ledger.commit(group)
    assert ledger.counter("acme", "c", 0)[0] == 5
    assert len(ledger.outbox.pending()) == 1


def test_commits_are_numbered_without_gaps_for_readers(ledger: SqlLedger) -> None:
    """The gate tells by the number whether what it read contains a commit."""
    seen = [ledger.commit(Group(now_us=NOW_US, charges={("acme", "c", 0): 1})).commit_seq for _ in range(3)]
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]
    assert ledger.counter("acme", "c", 0) == (3, seen[-1])
    assert ledger.counter("acme", "other", 0) == (0, seen[-1])
    assert ledger.book("acme") == (CreditBook(), seen[-1])


def test_what_a_reader_sees_is_of_one_commit(ledger: SqlLedger) -> None:
    """A counter and its commit's number are of the same instant, or the gate would count a commit twice."""
    done = threading.Event()

    def write() -> None:
        for _ in range(150):
            ledger.commit(Group(now_us=NOW_US, charges={("acme", "c", 0): 1}))
        done.set()

    start = ledger.commit(Group(now_us=NOW_US)).commit_seq
    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        used, commit_seq = ledger.counter("acme", "c", 0)
        seen.append(used - (commit_seq - start))
    writer.join()
    assert set(seen) == {0}
    assert ledger.counter("acme", "c", 0) == (150, start + 150)


def test_the_installation_has_one_name_for_ever(ledger: SqlLedger, engine: sa.Engine) -> None:
    """It is part of every deduplication token: a new one would insert delivered batches again."""
    assert SqlLedger(engine).installation_id == ledger.installation_id
    assert len(ledger.installation_id) >= 32


# -- counters and credit --------------------------------------------------------------------------------


def test_counters_are_the_sum_of_postings_by_hour(ledger: SqlLedger, engine: sa.Engine) -> None:
    """A charge of a late event goes to the period of the event, and to the hour in which it was booked."""
    for hour, amount in ((0, 5), (0, 7), (1, -2)):
        ledger.commit(
            Group(now_us=NOW_US + hour * HOUR_US, charges={("acme", "c", 10): amount, ("acme", "c", 20): 1})
        )
    assert ledger.counter_rows("acme") == {("c", 10): 10, ("c", 20): 3} == ledger.posting_sums("acme")
    assert len(everything(engine)["postings"]) == 4
    assert ledger.counter_rows("other") == {}


def test_accounts_do_not_share_counters(ledger: SqlLedger) -> None:
    """The same counter id in two accounts is two counters."""
    ledger.commit(Group(now_us=NOW_US, charges={("acme", "c", 0): 1, ("beta", "c", 0): 2}))
    assert (ledger.counter("acme", "c", 0)[0], ledger.counter("beta", "c", 0)[0]) == (1, 2)
    assert ledger.charged_accounts() == ["acme", "beta"]


def test_a_grant_is_posted_once(ledger: SqlLedger, engine: sa.Engine) -> None:
    """A retry of a top-up must not give the money twice, nor give back what was spent of it."""
    top_up = grant(engine, "g1", 100)
    assert ledger.unposted_grants() == [top_up]
    ledger.commit(Group(now_us=NOW_US, grants=[top_up, top_up]))
    assert ledger.unposted_grants() == []
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 30}))
    committed = ledger.commit(Group(now_us=NOW_US, grants=[top_up]))
    book, commit_seq = ledger.book("acme")
    assert (book.spent_nanos, book.balance_nanos(NOW)) == (30, 70)
    assert committed.books == {"acme": book}
    assert commit_seq == committed.commit_seq


def test_spending_draws_by_priority_and_refunds_in_reverse(ledger: SqlLedger, engine: sa.Engine) -> None:
    """Gifts that end soonest are spent first; a refund pays back the overdraft first, then the last drawn."""
    soon = grant(engine, "soon", 10, expires_at=NOW + timedelta(days=1))
    late = grant(engine, "late", 10, expires_at=NOW + timedelta(days=2))
    paid = grant(engine, "paid", 10, priority=200)
    ledger.commit(Group(now_us=NOW_US, grants=[paid, late, soon]))

    def left() -> dict[str, int]:
        return {g.grant_id: g.remaining_nanos for g in ledger.book("acme")[0].grants}

    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 15}))
    assert left() == {"soon": 0, "late": 5, "paid": 10}
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 20}))
    assert left() == {"soon": 0, "late": 0, "paid": 0}
    assert ledger.book("acme")[0].overdraft_nanos == 5
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): -12}))
    assert left() == {"soon": 0, "late": 0, "paid": 7}
    assert ledger.book("acme")[0].overdraft_nanos == 0
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): -24}))
    assert left() == {"soon": 10, "late": 10, "paid": 10}
    book, _ = ledger.book("acme")
    assert (book.surplus_nanos, book.spent_nanos, book.balance_nanos(NOW)) == (1, -1, 31)
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 3}))
    assert (ledger.book("acme")[0].surplus_nanos, left()["soon"]) == (0, 8)


def test_a_grant_pays_back_what_was_overdrawn(ledger: SqlLedger, engine: sa.Engine) -> None:
    """Overdraft is a debt, not a gift."""
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 8}))
    ledger.commit(Group(now_us=NOW_US, grants=[grant(engine, "g", 10)]))
    book, _ = ledger.book("acme")
    assert (book.overdraft_nanos, book.balance_nanos(NOW), book.spent_nanos) == (0, 2, 8)


def test_an_expired_grant_is_not_drawn_on(ledger: SqlLedger, engine: sa.Engine) -> None:
    """What has expired is gone, even in the group that comes late."""
    ledger.commit(
        Group(now_us=NOW_US, grants=[grant(engine, "g", 10, expires_at=NOW + timedelta(seconds=1))])
    )
    ledger.commit(Group(now_us=NOW_US + 1_000_000, charges={("acme", CREDIT_COUNTER, 0): 4}))
    book, _ = ledger.book("acme")
    assert (book.overdraft_nanos, book.grants[0].remaining_nanos) == (4, 10)


def test_a_draw_is_paid_by_the_grants_of_its_time(ledger: SqlLedger, engine: sa.Engine) -> None:
    """A request of before the expiry is settled after it: the grant pays. One of the expiry itself is too late."""
    soon = grant(engine, "soon", 10, expires_at=NOW + timedelta(seconds=1))
    ledger.commit(Group(now_us=NOW_US, grants=[soon, grant(engine, "paid", 10, priority=200)]))
    draws = Draws()
    for at_us, amount in ((NOW_US + 1_000_000, 4), (NOW_US + 999_999, 3), (NOW_US, 2)):
        draws.add(at_us, amount)
    charges = {("acme", CREDIT_COUNTER, 0): 9}
    committed = ledger.commit(Group(now_us=NOW_US + 5_000_000, charges=charges, draws={"acme": draws}))
    book, _ = ledger.book("acme")
    assert {g.grant_id: g.remaining_nanos for g in book.grants} == {"soon": 5, "paid": 6}
    assert committed.books == {"acme": book}


def test_draws_that_cancel_out_are_drawn_all_the_same(ledger: SqlLedger, engine: sa.Engine) -> None:
    """What one grant paid is given back to it, and another one pays: the counter is as it was, the book is not."""
    soon = grant(engine, "soon", 10, expires_at=NOW + timedelta(seconds=1))
    ledger.commit(Group(now_us=NOW_US, grants=[soon, grant(engine, "paid", 10, priority=200)]))
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 6}))
    draws = Draws()
    draws.add(NOW_US, -6)
    draws.add(NOW_US + 2_000_000, 6)
    ledger.commit(
        Group(now_us=NOW_US + 5_000_000, charges={("acme", CREDIT_COUNTER, 0): 0}, draws={"acme": draws})
    )
    book, _ = ledger.book("acme")
    assert {g.grant_id: g.remaining_nanos for g in book.grants} == {"soon": 10, "paid": 4}
    assert book.spent_nanos == ledger.counter("acme", CREDIT_COUNTER, 0)[0] == 6


def test_a_revoked_grant_is_gone_and_its_spending_is_overdraft(ledger: SqlLedger, engine: sa.Engine) -> None:
    """A chargeback takes back what was left and what was spent, once; nothing is spent by it."""
    ledger.commit(Group(now_us=NOW_US, grants=[grant(engine, "top-up", 1_000)]))
    ledger.commit(Group(now_us=NOW_US, charges={("acme", CREDIT_COUNTER, 0): 50}))
    for _ in range(2):
        ledger.commit(Group(now_us=NOW_US, revoked=[RevokedGrant("acme", "top-up")]))
        book, _ = ledger.book("acme")
        assert (book.balance_nanos(NOW), book.overdraft_nanos, book.spent_nanos) == (-50, 50, 50)
        assert book.grants[0][3:] == (0, 0, NOW)
    assert ledger.counter("acme", CREDIT_COUNTER, 0)[0] == 50
    ledger.commit(Group(now_us=NOW_US, grants=[grant(engine, "top-up", 1_000)]))
    assert ledger.book("acme")[0].balance_nanos(NOW) == -50, "a repeat of the top-up gave the money again"


def test_a_group_posts_draws_and_revokes_in_this_order(ledger: SqlLedger, engine: sa.Engine) -> None:
    """All in one group is as if in three."""
    top_up, other = grant(engine, "a", 100), grant(engine, "b", 30)
    ledger.commit(
        Group(
            now_us=NOW_US,
            grants=[top_up, other],
            charges={("acme", CREDIT_COUNTER, 0): 50},
            revoked=[RevokedGrant("acme", "a"), RevokedGrant("acme", "unknown")],
        )
    )
    book, _ = ledger.book("acme")
    assert [g.remaining_nanos for g in book.grants] == [0, 0]
    assert (book.overdraft_nanos, book.spent_nanos) == (20, 50)


# -- holds, windows, scopes -----------------------------------------------------------------------------


def test_a_hold_has_one_row_until_it_is_settled(ledger: SqlLedger) -> None:
    """A settled hold leaves no row, since its event is the proof; a voided one is remembered."""
    ledger.commit(Group(now_us=NOW_US, opened=[hold("a"), hold("b")]))
    ledger.commit(Group(now_us=NOW_US + 1, opened=[hold("c"), hold("a", "beta")]))
    ended = [EndedHold("acme", "a", "settled", NOW_US), EndedHold("acme", "b", "voided", NOW_US)]
    ended.append(EndedHold("acme", "never-made", "expired", NOW_US))
    ledger.commit(Group(now_us=NOW_US, ended=ended))
    assert ledger.hold("acme", "a") is None
    assert ledger.hold("acme", "b") == hold("b")._replace(state="voided")
    assert ledger.hold("beta", "a") == hold("a", "beta")
    assert [(h.account_id, h.hold_id) for h in ledger.open_holds()] in (
        [("acme", "c"), ("beta", "a")],
        [("beta", "a"), ("acme", "c")],
    )
    assert ledger.hold_owners("a") == ["beta"]
    assert ledger.hold_owners("never-made") == []


def test_a_hold_is_opened_and_settled_in_one_group(ledger: SqlLedger) -> None:
    """Under load both ends of a short request fall into one group."""
    ledger.commit(Group(now_us=NOW_US, opened=[hold()], ended=[EndedHold("acme", "h1", "settled", NOW_US)]))
    assert ledger.open_holds() == []


def test_an_amended_hold_has_its_new_body(ledger: SqlLedger) -> None:
    """Amounts and outcome of a request under way change; one that was settled meanwhile has no row to change."""
    outcome = Outcome(200, Usage(3), "x")
    body = hold("a").body
    later = msgspec.structs.replace(body, expires_at_us=9, amounts=(1, 7, 8, 9), at_expiry=outcome)
    amended = [hold("a")._replace(body=later), hold("b")._replace(body=later), hold("gone")]
    ledger.commit(Group(now_us=NOW_US, opened=[hold("a"), hold("b")]))
    ended = [EndedHold("acme", "b", "settled", NOW_US)]
    ledger.commit(Group(now_us=NOW_US, amended=amended, ended=ended))
    assert ledger.open_holds() == [amended[0]]
    assert ledger.hold("acme", "a") == amended[0]


def test_windows_are_replaced_by_slot(ledger: SqlLedger) -> None:
    """What a rate limit counted is a state, not an addition: the newest one stands."""
    for slots in ({60: 1, 120: 5}, {120: 4, 180: 1}):
        ledger.commit(Group(now_us=NOW_US, windows=[WindowState("acme", "l", slots, NOW_US)]))
    assert ledger.slots("acme", "l") == {60: 1, 120: 4, 180: 1}
    assert ledger.slots("acme", "other") == {}


def opened(start_us: int, end_us: int, period: str = "5h", counter_id: str = "budget:b1") -> OpenedPeriod:
    return OpenedPeriod("acme", counter_id, period, start_us, end_us)


def test_opened_periods_are_those_of_a_budget_in_force(ledger: SqlLedger) -> None:
    five = scope(period="5h")
    assert ledger.opened_periods("acme", "budget:b1", "5h", 0) == (None, [])
    ledger.commit(Group(now_us=NOW_US, scopes=[(five, 100)]))
    assert ledger.opened_periods("acme", "budget:b1", "5h", 0) == (100, [])
    periods = [
        opened(120, 220),
        opened(100, 110),
        opened(300, 400, "1h"),
        opened(100, 200, "5h", "budget:b2"),
    ]
    ledger.commit(Group(now_us=NOW_US, opened_periods=periods))
    # A repeat after a lost answer changes nothing.
    ledger.commit(Group(now_us=NOW_US, opened_periods=[opened(120, 220), opened(220, 320)]))
    assert ledger.opened_periods("acme", "budget:b1", "5h", 0) == (100, [(100, 110), (120, 220), (220, 320)])
    assert ledger.opened_periods("acme", "budget:b1", "5h", 219) == (100, [(120, 220), (220, 320)])
    assert ledger.opened_periods("acme", "budget:b1", "5h", 220) == (100, [(220, 320)])


def test_a_budget_that_begins_again_keeps_the_periods_since_then(ledger: SqlLedger) -> None:
    five = scope(period="5h")
    periods = [opened(100, 200), opened(200, 300)]
    ledger.commit(Group(now_us=NOW_US, scopes=[(five, 100)], opened_periods=periods))
    ledger.commit(Group(now_us=NOW_US, scopes=[(five, 200)], opened_periods=[opened(150, 200)]))
    assert ledger.opened_periods("acme", "budget:b1", "5h", 0) == (200, [(200, 300)])
    ledger.commit(Group(now_us=NOW_US, scopes=[(scope(period="1h"), 200)]))
    assert ledger.opened_periods("acme", "budget:b1", "5h", 0) == (200, [])
    ledger.commit(Group(now_us=NOW_US, opened_periods=[opened(400, 500, "1h")]))
    ledger.commit(Group(now_us=NOW_US, ended_scopes=[("acme", "budget:b1")]))
    ledger.commit(Group(now_us=NOW_US, scopes=[(scope(period="1h"), 200)]))
    assert ledger.opened_periods("acme", "budget:b1", "1h", 0) == (200, [])


def test_periods_of_values_begin_and_end_with_their_budget(ledger: SqlLedger) -> None:
    """The mark is between a budget and its values: another budget whose id begins alike is another."""
    five = scope(period="5h")
    of_value = "budget:b1#u1"
    assert ledger.opened_periods("acme", of_value, "5h", 0) == (None, [])
    other = OpenedPeriod("acme", "budget:b10", "5h", 100, 200)
    periods = [opened(100, 200, "5h", of_value), opened(200, 300, "5h", of_value), other]
    ledger.commit(Group(now_us=NOW_US, scopes=[(five, 100)], opened_periods=periods))
    assert ledger.opened_periods("acme", of_value, "5h", 0) == (100, [(100, 200), (200, 300)])
    assert ledger.opened_periods("acme", "budget:b1", "5h", 0) == (100, [])
    ledger.commit(Group(now_us=NOW_US, scopes=[(five, 200)]))
    assert ledger.opened_periods("acme", of_value, "5h", 0) == (200, [(200, 300)])
    ledger.commit(Group(now_us=NOW_US, ended_scopes=[("acme", "budget:b1")]))
    ledger.commit(Group(now_us=NOW_US, scopes=[(five, 100), (five._replace(counter_id="budget:b10"), 100)]))
    assert ledger.opened_periods("acme", of_value, "5h", 0) == (100, [])
    assert ledger.opened_periods("acme", "budget:b10", "5h", 0) == (100, [(100, 200)])


def top_up(id_: str = "t1", **fields: Any) -> TopUp:
    values = {
        "account_id": "acme",
        "id": id_,
        "counter_id": "budget:b1",
        "budget": "b1",
        "unit": "nanos",
        "amount": 500,
        "until_used": False,
        "posted_at_us": NOW_US,
    }
    return TopUp(**{**values, **fields})


def test_a_top_up_is_posted_once(ledger: SqlLedger) -> None:
    assert ledger.top_up("acme", "t1") is None
    ledger.commit(Group(now_us=NOW_US, top_ups=[top_up()]))
    assert ledger.top_up("acme", "t1") == top_up()
    with pytest.raises(Conflict):
        ledger.commit(Group(now_us=NOW_US, top_ups=[top_up(amount=600)]))
    ledger.commit(Group(now_us=NOW_US, top_ups=[top_up(account_id="other")]))
    assert ledger.top_up("acme", "t1") == top_up()
    assert ledger.top_up("other", "t1") == top_up(account_id="other")


def test_what_is_left_of_top_ups_is_decided_by_what_each_period_was_charged(ledger: SqlLedger) -> None:
    ledger.commit(Group(now_us=NOW_US, charges={("acme", "budget:b1", 10): 7, ("acme", "other", 10): 9}))
    assert ledger.topped_up("acme", "budget:b1") == ToppedUp([], [], {}, 0)
    ledger.commit(Group(now_us=NOW_US, top_ups=[top_up()]))
    # One for its period alone needs nothing else.
    assert ledger.topped_up("acme", "budget:b1") == ToppedUp([top_up()], [], {}, 0)
    lasting = top_up("t2", until_used=True, posted_at_us=NOW_US + 1)
    own = [OwnAmount("acme", "budget:b1", at_us, amount) for at_us, amount in ((20, 200), (10, 100))]
    ledger.commit(Group(now_us=NOW_US, top_ups=[lasting], own_amounts=own))
    last = ledger.commit(Group(now_us=NOW_US, own_amounts=[OwnAmount("acme", "budget:b1", 20, 300)]))
    assert ledger.topped_up("acme", "budget:b1") == ToppedUp(
        [top_up(), lasting],
        [OwnAmount("acme", "budget:b1", 10, 100), OwnAmount("acme", "budget:b1", 20, 300)],
        {10: 7},
        last.commit_seq,
    )
    assert ledger.own_amounts("acme") == {"budget:b1": 300}
    assert ledger.own_amounts("other") == {}


def test_scopes_come_into_and_go_out_of_force(ledger: SqlLedger) -> None:
    """A budget that comes back counts from its new start."""
    other = scope(counter_id="budget:b2", unit="tokens")
    ledger.commit(Group(now_us=NOW_US, scopes=[(scope(), 10), (other, 20)]))
    ledger.commit(Group(now_us=NOW_US, ended_scopes=[("acme", "budget:b1"), ("acme", "none")]))
    assert ledger.scopes("acme") == {"budget:b2": (fingerprint_of(other), 20)}
    ledger.commit(Group(now_us=NOW_US, scopes=[(scope(unit="credits"), 30)]))
    assert ledger.scopes("acme")["budget:b1"] == (fingerprint_of(scope(unit="credits")), 30)


def test_purge_removes_what_means_nothing_any_more(ledger: SqlLedger) -> None:
    """Open holds, windows in force and recent endings stay."""
    old, recent = NOW_US - 31 * DAY_US, NOW_US - 29 * DAY_US
    ledger.commit(
        Group(
            now_us=old,
            opened=[hold("open"), hold("old"), hold("recent")],
            windows=[
                WindowState("acme", "past", {1: 1, 2: 2}, NOW_US - 2 * HOUR_US),
                WindowState("acme", "present", {3: 3}, NOW_US),
            ],
        )
    )
    ledger.commit(
        Group(
            now_us=NOW_US,
            ended=[EndedHold("acme", "old", "voided", old), EndedHold("acme", "recent", "expired", recent)],
        )
    )
    assert ledger.purge(NOW_US) == 3
    assert ledger.purge(NOW_US) == 0
    assert ledger.slots("acme", "past") == {}
    assert ledger.slots("acme", "present") == {3: 3}
    assert ledger.hold("acme", "old") is None
    assert [ledger.hold("acme", h) is None for h in ("open", "recent")] == [False, False]


# -- outbox ---------------------------------------------------------------------------------------------


def fill(ledger: SqlLedger, *counts: int) -> list[int]:
    return [ledger.commit(Group(now_us=NOW_US, outbox=[rows(n)])).outbox_seqs[0] for n in counts]


def test_a_batch_keeps_its_number_and_rows_until_delivered(ledger: SqlLedger) -> None:
    """The number is the insert's token: other rows under it would be lost in the repeat after a crash."""
    assert ledger.outbox.next_batch(10) is None
    a, b = fill(ledger, 1, 2)
    begun = ledger.outbox.next_batch(10)
    assert begun is not None
    fill(ledger, 3)
    assert ledger.outbox.next_batch(10) == begun == (begun[0], [(a, rows(1)), (b, rows(2))])
    ledger.outbox.delivered(begun[0])
    following = ledger.outbox.next_batch(10)
    assert following is not None
    assert following[0] > begun[0]
    assert [entry.record_count for _, entry in following[1]] == [3]
    ledger.outbox.delivered(following[0])
    ledger.outbox.delivered(following[0])
    assert ledger.outbox.next_batch(10) is None
    assert ledger.outbox.pending() == []


def test_delivered_records_are_counted_once(ledger: SqlLedger, engine: sa.Engine) -> None:
    """By their number a usage store that lost some is found out; what was set aside never came there."""
    assert ledger.outbox.delivered_records() == 0
    _, aside, _ = fill(ledger, 4, 5, 2)
    begun = ledger.outbox.next_batch(100)
    assert begun is not None
    ledger.outbox.set_aside(aside, "cannot be read")
    ledger.outbox.delivered(begun[0])
    ledger.outbox.delivered(begun[0])
    fill(ledger, 7)
    assert ledger.outbox.next_batch(100) is not None
    assert ledger.outbox.delivered_records() == SqlLedger(engine).outbox.delivered_records() == 6


def test_a_batch_number_is_never_used_twice(ledger: SqlLedger, engine: sa.Engine) -> None:
    """Not even after a restart with an empty outbox: the store would take the new batch for a repeat."""
    numbers = []
    for _ in range(3):
        fill(ledger, 1)
        batch = ledger.outbox.next_batch(10)
        assert batch is not None
        numbers.append(batch[0])
        ledger.outbox.delivered(batch[0])
        ledger = SqlLedger(engine)
    assert len(set(numbers)) == 3


def test_a_batch_takes_whole_rows_up_to_a_size(ledger: SqlLedger) -> None:
    """A row is never split, and one that is larger than a batch goes alone."""
    a, b, c, d = fill(ledger, 4, 5, 2, 50)
    taken = []
    while (batch := ledger.outbox.next_batch(10)) is not None:
        taken.append([seq for seq, _ in batch[1]])
        ledger.outbox.delivered(batch[0])
    assert taken == [[a, b], [c], [d]]


def test_a_batch_stops_at_the_row_asked_for(ledger: SqlLedger) -> None:
    """A new budget sums what was committed before it, and nothing that came after."""
    a, b, c = fill(ledger, 1, 1, 1)
    first = ledger.outbox.next_batch(10, seq_max=b)
    assert first is not None
    assert [seq for seq, _ in first[1]] == [a, b]
    ledger.outbox.delivered(first[0])
    assert ledger.outbox.next_batch(10, seq_max=b) is None
    assert [row.seq for row in ledger.outbox.pending()] == [c]


def test_a_row_that_is_set_aside_holds_up_no_other(ledger: SqlLedger) -> None:
    """It stays for repair, out of the way of the rows that can be relayed."""
    a, b, c = fill(ledger, 1, 2, 3)
    begun = ledger.outbox.next_batch(10)
    assert begun is not None
    ledger.outbox.set_aside(b, "cannot be read")
    ledger.outbox.set_aside(b, "cannot be read")
    again = ledger.outbox.next_batch(10)
    assert again is not None
    assert (again[0], [seq for seq, _ in again[1]]) == (begun[0], [a, c])
    ledger.outbox.delivered(begun[0])
    assert ledger.outbox.next_batch(10) is None
    assert ledger.outbox.pending() == []
    assert ledger.outbox.set_asides() == [SetAside(b, 2, "cannot be read", b"")]


# -- a database that is away ----------------------------------------------------------------------------


def test_a_database_that_is_away_is_unavailable(
    ledger: SqlLedger, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the driver's errors gets out, from whatever call; and afterwards it works again."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise engine.dialect.loaded_dbapi.OperationalError("could not connect to server")

    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect, "connect", refuse)
        engine.dispose()
        calls: list[Callable[[], object]] = [
            lambda: ledger.commit(Group(now_us=NOW_US)),
            lambda: ledger.counter("acme", "c", 0),
            lambda: ledger.slots("acme", "c"),
            lambda: ledger.book("acme"),
            ledger.unposted_grants,
            ledger.open_holds,
            lambda: ledger.hold("acme", "h"),
            lambda: ledger.hold_owners("h"),
            lambda: ledger.scopes("acme"),
            lambda: ledger.counter_rows("acme"),
            lambda: ledger.posting_sums("acme"),
            ledger.charged_accounts,
            ledger.outbox.pending,
            lambda: ledger.outbox.entries([1]),
            lambda: ledger.outbox.next_batch(10),
            lambda: ledger.outbox.delivered(BatchMark(ledger.installation_id, "", 1)),
            lambda: ledger.outbox.set_aside(1, "why"),
            ledger.outbox.set_asides,
            lambda: ledger.purge(NOW_US),
            ledger.ping,
        ]
        for call in calls:
            with pytest.raises(Unavailable):
                call()
    ledger.ping()
