"""
The transactions of the ledger's database: who may write, and whether a commit took place.

One thread commits groups (the committer); a lock separates its transactions from the short writes of the relay,
since SQLite has one writer. Each commit takes the next number of the row in `progress`. A process that claimed
the ledger refuses to write when that number is not its own last one: another process has written, or the
database was put back to an earlier state.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from tollkeeper.adapters.sql.ledger_file import LedgerFile, advice_on
from tollkeeper.adapters.sql.ledger_tables import progress
from tollkeeper.adapters.sql.prepared import Prepared
from tollkeeper.adapters.sql.silence import PATIENCE
from tollkeeper.adapters.sql.upsert import insert_into
from tollkeeper.domain.bookings import Committed
from tollkeeper.errors import BadInput, Conflict, LedgerInUse, Unavailable

_IN_DOUBT_RETRY_S: Final = 0.5
_TURN_S_MAX: Final = 10.0
_CLAIM_STEP: Final = 2
"""Commits count in steps of one. A process whose commit is in doubt sees that this number is not of its commit."""
TAKEN_OVER: Final = "Another process has taken over the ledger: this one must be started again to book more."
WENT_BACK: Final = (
    "The ledger is older than what this process wrote to it, as after a fail-over or a restore: "
    "this process must be started again to book more."
)

log = logging.getLogger("tollkeeper.ledger")


class LedgerDatabase:
    """Transactions of one ledger. Any thread may call; writers take turns."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._write_lock = threading.Lock()
        self._closed = threading.Event()
        self._claimed_seq: int | None = None
        """The number of the last commit of this process; None until it claims the ledger."""
        self._next_commit = Prepared(
            engine,
            lambda rows: (
                sa.update(progress)
                .values(commit_seq=progress.c.commit_seq + sa.literal_column("1"))
                .returning(progress.c.commit_seq)
            ),
            (),
            sizes=(1,),
        )
        with self.writing() as tx:
            tx.execute(
                insert_into(engine, progress)
                .values(
                    id=1,
                    installation_id=uuid.uuid4().hex,
                    commit_seq=0,
                    batch_seq=0,
                    batch_epoch="",
                    delivered_records=0,
                )
                .on_conflict_do_nothing()
            )
            self.installation_id: str = tx.execute(sa.select(progress.c.installation_id)).scalar_one()
        with database_errors("read"):
            self._file = LedgerFile(engine)

    # -- writing --------------------------------------------------------------------------------------

    def claim(self) -> None:
        """
        Become the one process that writes: an earlier one that writes again gets `LedgerInUse`.

        To be called before anything is read. It waits for a transaction of a process that was killed, which
        PostgreSQL may be about to commit still: each of them writes the row that this one does.
        """
        with self.writing() as tx:
            self._claimed_seq = tx.execute(
                sa.update(progress)
                .values(commit_seq=progress.c.commit_seq + _CLAIM_STEP)
                .returning(progress.c.commit_seq)
            ).scalar_one()

    def commit(self, write: Callable[[sa.Connection, int], Committed]) -> Committed:
        """
        Return what *write* did with a transaction and the number of its commit, once that is committed.

        When the database's answer to the commit is lost, this finds out whether it took place.
        """
        with self._write_lock, database_errors("written"):
            self._file.check()
            with self.engine.connect() as tx, tx.begin() as transaction:
                committed = write(tx, self._next_commit_seq(tx))
                try:
                    transaction.commit()
                    self._wrote(committed)
                    return committed
                except DBAPIError as exc:
                    # Whether it was committed is open: the database may have done so and its answer be lost.
                    tx.invalidate()
                    log.warning("tollkeeper.ledger.commit_in_doubt", extra={"reason": str(exc.orig)})
            if self._has_commit(committed.commit_seq):
                self._wrote(committed)
                return committed
            raise Unavailable("The ledger cannot be written: the commit failed.")

    def _next_commit_seq(self, tx: sa.Connection) -> int:
        commit_seq = self._next_commit.scalar(tx, ())
        if self._claimed_seq is not None and commit_seq != self._claimed_seq + 1:
            raise LedgerInUse(TAKEN_OVER if commit_seq > self._claimed_seq else WENT_BACK)
        return commit_seq

    def _wrote(self, committed: Committed) -> None:
        if self._claimed_seq is not None:
            self._claimed_seq = committed.commit_seq

    def _has_commit(self, commit_seq: int) -> bool:
        """
        Return whether a commit took place whose answer was lost, as soon as the database answers.

        A guess would lose the group or book it twice, so this asks until the answer is known or the ledger is closed.
        """
        # The lock waits for a commit that the server may be at work on still.
        query = sa.select(progress.c.commit_seq).with_for_update()
        while True:
            try:
                with self.engine.connect() as tx:
                    found = int(tx.execute(query).scalar_one())
                if self._claimed_seq is not None and found > commit_seq:
                    raise LedgerInUse(TAKEN_OVER)
                return found >= commit_seq
            except SQLAlchemyError as exc:
                if self._closed.wait(_IN_DOUBT_RETRY_S):
                    raise Unavailable(
                        "The ledger was closed before a commit's outcome was known: retry with the same ids."
                    ) from exc

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yield the transaction of a short write, which is committed when the block ends."""
        with database_errors("written"), self._turn_to_write():
            if self._claimed_seq is not None:
                self._file.check()
            with self.engine.begin() as tx:
                if self._claimed_seq is not None:
                    found = int(tx.execute(sa.select(progress.c.commit_seq)).scalar_one())
                    if found != self._claimed_seq:
                        raise LedgerInUse(TAKEN_OVER if found > self._claimed_seq else WENT_BACK)
                yield tx

    @contextmanager
    def _turn_to_write(self) -> Iterator[None]:
        """Have the turn of a writer; a commit in doubt keeps its own until the database answers."""
        if not self._write_lock.acquire(timeout=_TURN_S_MAX):
            raise Unavailable("The ledger is still at work on another write. Try again shortly.")
        try:
            yield
        finally:
            self._write_lock.release()

    # -- reading --------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with database_errors("read"), self.engine.connect() as tx:
            yield tx

    @contextmanager
    def reading_all(self) -> Iterator[sa.Connection]:
        """Yield a connection for a query that may take longer than one call may wait."""
        with PATIENCE, self.reading() as tx:
            if self.engine.dialect.name == "postgresql":
                tx.exec_driver_sql("SET LOCAL statement_timeout = 0")
            yield tx

    def ping(self) -> None:
        """Raise `Unavailable` unless the database can be read now, and is the one that was opened."""
        self._file.check()
        before = self._claimed_seq
        with self.reading() as tx:
            found = int(tx.execute(sa.select(progress.c.commit_seq)).scalar_one())
        if before is not None and found < before:
            raise LedgerInUse(WENT_BACK)
        # Read before what is claimed: a commit of ours may be in the database and not yet known here.
        if self._claimed_seq is not None and found > self._claimed_seq + 1:
            raise LedgerInUse(TAKEN_OVER)

    def close(self) -> None:
        self._closed.set()
        self._file.close()
        self.engine.dispose()


@contextmanager
def database_errors(done: str) -> Iterator[None]:
    """Turn each error of the driver into one of ours: a value that does not fit, or a database that is away."""
    try:
        yield
    except IntegrityError as exc:
        raise Conflict(f"The ledger has this already: {exc.orig}") from exc
    except DataError as exc:
        raise BadInput(f"A value does not fit the ledger: {exc.orig}") from exc
    except DBAPIError as exc:
        raise Unavailable(f"The ledger cannot be {done}: {exc.orig}. {advice_on(exc.orig)}") from exc
    except SQLAlchemyError as exc:
        raise Unavailable(f"The ledger cannot be {done}.", cause=str(exc)) from exc
