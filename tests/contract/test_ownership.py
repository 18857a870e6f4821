"""One process at a time owns a ledger: a second one is kept out, and one that was cut off writes no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.engines import SHARED_ENGINES, fresh_engine
from tollkeeper.adapters.sql import ownership
from tollkeeper.adapters.sql.database import open_engine
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.ledger_tables import progress
from tollkeeper.adapters.sql.ownership import Ownership
from tollkeeper.domain.bookings import Group, OutboxEntry
from tollkeeper.errors import LedgerInUse

NOW_US = 1_777_890_600_000_000
COUNTER = ("acme", "c", 0)


@pytest.fixture(params=SHARED_ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path) as engine:
        yield engine


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_engine("postgresql", tmp_path) as engine:
        yield engine


def claimed(engine: sa.Engine) -> SqlLedger:
    ledger = SqlLedger(engine)
    ledger.claim()
    return ledger


def charge(amount: int) -> Group:
    return Group(now_us=NOW_US, charges={COUNTER: amount}, outbox=[OutboxEntry("rows", b"payload", 1)])


def test_who_was_taken_over_writes_nothing_more(engine: sa.Engine) -> None:
    """It still has its memory, and would book what the other one does not know of."""
    first = claimed(engine)
    first.commit(charge(1))
    first.ping()
    second = claimed(engine)
    with pytest.raises(LedgerInUse):
        first.commit(charge(10))
    with pytest.raises(LedgerInUse):
        first.outbox.next_batch(10)
    with pytest.raises(LedgerInUse):
        first.ping()
    second.commit(charge(100))
    second.ping()
    assert second.counter(*COUNTER)[0] == 101
    assert len(second.outbox.pending()) == 2


def test_commits_do_not_wait_while_the_relay_reads_a_batch(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has up to tens of megabytes: read between a commit and the next, it kept every call waiting."""
    ledger = claimed(engine)
    ledger.commit(charge(1))
    database = ledger.outbox._database
    reading = database.reading

    def reading_after_a_commit() -> AbstractContextManager[sa.Connection]:
        monkeypatch.undo()
        committing = threading.Thread(target=ledger.commit, args=(charge(10),))
        committing.start()
        committing.join(60)
        assert not committing.is_alive(), "the commit waits for the relay"
        return reading()

    monkeypatch.setattr(database, "reading", reading_after_a_commit)
    batch = ledger.outbox.next_batch(10)
    assert batch is not None
    assert [entry.payload for _, entry in batch.rows] == [b"payload"], "what came later is of the next batch"
    assert ledger.counter(*COUNTER)[0] == 11


def test_a_batch_that_another_process_delivered_meanwhile_is_not_taken_for_an_empty_one(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = claimed(engine)
    first.commit(charge(1))
    database = first.outbox._database
    reading = database.reading

    def reading_too_late() -> AbstractContextManager[sa.Connection]:
        second = claimed(engine)
        taken = second.outbox.next_batch(10)
        assert taken is not None
        second.outbox.delivered(taken.mark)
        return reading()

    monkeypatch.setattr(database, "reading", reading_too_late)
    with pytest.raises(LedgerInUse):
        first.outbox.next_batch(10)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("taken_over", [False, True])
def test_an_answer_to_commit_that_was_lost_is_never_guessed(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, committed: bool, taken_over: bool
) -> None:
    """The number of the commit tells; once another process has counted on, nobody can know any more."""
    ledger = claimed(engine)
    ledger.commit(charge(1))
    end = engine.dialect.do_commit if committed else engine.dialect.do_rollback

    def lose(connection: object) -> None:
        monkeypatch.undo()
        end(connection)
        if taken_over:
            claimed(engine)
        raise sa.exc.OperationalError("COMMIT", None, OSError("the answer was lost"))

    monkeypatch.setattr(engine.dialect, "do_commit", lose)
    if taken_over:
        with pytest.raises(LedgerInUse):
            ledger.commit(charge(10))
    elif committed:
        ledger.commit(charge(10))
    else:
        with pytest.raises(Exception, match="the commit failed"):
            ledger.commit(charge(10))
    assert SqlLedger(engine).counter(*COUNTER)[0] == (11 if committed else 1)
    if not taken_over:
        ledger.commit(charge(100))


def test_a_claim_waits_for_the_last_commit_of_who_was_killed(postgresql: sa.Engine) -> None:
    """PostgreSQL may be about to commit when its client is gone already: it must be there before anything is read."""
    first = claimed(postgresql)
    second = SqlLedger(postgresql)
    blocked = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
    with postgresql.connect() as tx, tx.begin() as killed, postgresql.connect() as look:
        first._write(tx, first._database._next_commit_seq(tx), charge(5))
        seen: list[int] = []
        taking = threading.Thread(target=lambda: (second.claim(), seen.append(second.counter(*COUNTER)[0])))
        taking.start()
        for _ in range(10_000):
            if look.execute(blocked).scalar_one():
                break
            look.rollback()
        else:
            raise AssertionError("the claim does not wait")
        assert seen == []
        killed.commit()
        taking.join(60)
    assert seen == [5]


def test_a_second_process_is_kept_out_until_the_first_lets_go(
    postgresql: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_SESSION", ("SET lock_timeout = 50",))
    first = Ownership(postgresql)
    first.keep()
    with pytest.raises(LedgerInUse, match="is in use by tollkeeper process"):
        Ownership(postgresql)
    first.close()
    first.close()
    second = Ownership(postgresql)
    with pytest.raises(LedgerInUse):
        first.keep()
    second.close()
    first.keep()
    first.close()


def test_installations_of_other_databases_and_schemas_are_no_matter(
    postgresql: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_SESSION", ("SET lock_timeout = 50",))
    with postgresql.begin() as tx:
        tx.execute(sa.text("CREATE SCHEMA other"))
    schema = postgresql.url.update_query_dict({"options": "-csearch_path=other"})
    beside = open_engine(schema.render_as_string(hide_password=False))
    with fresh_engine("postgresql", tmp_path) as elsewhere:
        owners = [Ownership(engine) for engine in (postgresql, elsewhere, beside)]
        for owner in owners:
            owner.keep()
            owner.close()
    beside.dispose()


def test_an_owner_whose_session_was_cut_takes_it_again(postgresql: sa.Engine) -> None:
    owner = Ownership(postgresql)
    with postgresql.connect() as tx:
        locks = sa.text("SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
        (before,) = tx.execute(locks).scalars()
        tx.execute(sa.text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": before})
        owner.keep()
        (after,) = tx.execute(locks).scalars()
    assert before != after
    owner.close()


def test_a_ledger_that_nobody_claimed_counts_its_commits(engine: sa.Engine) -> None:
    """A claim steps over a number, so that nobody takes it for a commit of its own."""
    ledger = SqlLedger(engine)
    first = ledger.commit(charge(1)).commit_seq
    claimed(engine)
    with engine.connect() as tx:
        assert tx.execute(sa.select(progress.c.commit_seq)).scalar_one() == first + 2
