"""
The ledger over SQL: counters, postings, credit balances, windows, holds and the outbox.

`commit` writes one group in one transaction, so a counter, its postings and the outbox row of the events
that it was charged for exist together or not at all. One thread commits (the committer); a lock keeps the
relay's short writes from meeting it, since SQLite has one writer.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from tollkeeper.adapters.sql.catalog_tables import grants
from tollkeeper.adapters.sql.ledger_file import LedgerFile
from tollkeeper.adapters.sql.ledger_tables import (
    counters,
    holds,
    outbox,
    pools,
    postings,
    progress,
    scopes,
    windows,
)
from tollkeeper.adapters.sql.prepared import Prepared, Row
from tollkeeper.adapters.sql.silence import PATIENCE
from tollkeeper.domain.bookings import (
    Batch,
    Committed,
    Group,
    HoldBody,
    OutboxEntry,
    PendingRow,
    SetAside,
    StoredHold,
)
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.entitlements import CREDIT_COUNTER, fingerprint_of
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.pairing import BatchMark, LedgerPast
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance, book_of
from tollkeeper.errors import BadInput, Conflict, LedgerInUse, Unavailable

_HOUR_US: Final = 3_600_000_000
_ENDED_HOLDS_KEPT_US: Final = 30 * 86_400_000_000
"""How long a voided or expired hold is remembered, so that a late settle is recognised."""
_PURGE_BATCH: Final = 5_000
PENDING_ROWS: Final = 20
"""Outbox rows whose ids are read at a time: each has up to a batch of events."""
_ENTRY: Final[Any] = (outbox.c.format, outbox.c.payload, outbox.c.record_count, outbox.c.id_keys)
_IN_DOUBT_RETRY_S: Final = 0.5
_CLAIM_STEP: Final = 2
"""Commits count one by one: whoever looks for a commit of its own sees that the number cannot be its."""
_TAKEN_OVER: Final = "Another process has taken over the ledger: this one must be started again to book more."
_WENT_BACK: Final = (
    "The ledger is older than what this process wrote to it, as after a fail-over or a restore: "
    "this process must be started again to book more."
)

log = logging.getLogger("tollkeeper.ledger")

_encode_body = msgspec.json.Encoder().encode
_decode_body = msgspec.json.Decoder(HoldBody).decode


class SqlLedger:
    """The ledger of one installation. See `ports.Ledger`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._write_lock = threading.Lock()
        self._closed = threading.Event()
        self._claimed_seq: int | None = None
        self._epoch = uuid.uuid4().hex
        """Of the batches that begin from here."""
        self._begun_batch = 0
        self._delivered_batch = 0
        insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
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
        self._open_hold = Prepared(
            engine,
            lambda rows: sa.insert(holds).values(rows),
            ("account_id", "hold_id", "state", "body", "created_at_us"),
        )
        self._forget_hold = Prepared(
            engine,
            lambda rows: sa.delete(holds).where(sa.or_(*map(_of_hold, rows))),
            ("account_id", "hold_id"),
        )
        self._end_hold = Prepared(
            engine,
            lambda rows: (
                sa.update(holds)
                .where(_of_hold(rows[0]))
                .values(state=rows[0]["state"], ended_at_us=rows[0]["ended_at_us"])
            ),
            ("account_id", "hold_id", "state", "ended_at_us"),
            sizes=(1,),
        )
        self._charge_counter = Prepared(
            engine,
            lambda rows: self._adding(insert(counters).values(rows), counters, "used"),
            tuple(counters.columns.keys()),
        )
        self._charge_posting = Prepared(
            engine,
            lambda rows: self._adding(insert(postings).values(rows), postings, "amount"),
            tuple(postings.columns.keys()),
        )
        self._store_window = Prepared(
            engine,
            lambda rows: self._replacing(insert(windows).values(rows), windows, ("used", "expires_at_us")),
            tuple(windows.columns.keys()),
        )
        self._put_out = Prepared(
            engine,
            lambda rows: sa.insert(outbox).values(rows).returning(outbox.c.seq),
            ("format", "record_count", "payload", "id_keys", "committed_at_us"),
            sizes=(1,),
        )
        self._store_pool = self._replacing(insert(pools), pools, ("overdraft_nanos",))
        self._store_scope = self._replacing(insert(scopes), scopes, ("fingerprint", "active_from_us"))
        with self._writing() as tx:
            tx.execute(
                insert(progress)
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
        with _database_errors("read"):
            self._file = LedgerFile(engine)

    # -- writing --------------------------------------------------------------------------------------

    def claim(self) -> None:
        """
        Be the one who writes from now on: whoever claimed it before is refused with `LedgerInUse`.

        To be called before anything is read. It waits for a transaction of a process that was killed, which
        PostgreSQL may be about to commit still: each of them writes the row that this one does. Batches that begin
        from now on are of a new epoch: if the ledger was put back to an earlier state, their numbers come again.
        """
        self._epoch = uuid.uuid4().hex
        with self._writing() as tx:
            self._claimed_seq = tx.execute(
                sa.update(progress)
                .values(commit_seq=progress.c.commit_seq + _CLAIM_STEP)
                .returning(progress.c.commit_seq)
            ).scalar_one()

    def commit(self, group: Group) -> Committed:
        with self._write_lock, _database_errors("written"):
            self._file.check()
            with self._engine.connect() as tx, tx.begin() as transaction:
                committed = self._write_group(tx, group)
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

    def _wrote(self, committed: Committed) -> None:
        if self._claimed_seq is not None:
            self._claimed_seq = committed.commit_seq

    def _has_commit(self, commit_seq: int) -> bool:
        """
        Return whether a commit took place whose answer was lost, as soon as the database tells.

        To guess would lose the group or book it twice, so this asks until it knows, or the ledger is closed.
        """
        # The lock waits for a commit that the server may be at work on still.
        query = sa.select(progress.c.commit_seq).with_for_update()
        while True:
            try:
                with self._engine.connect() as tx:
                    found = int(tx.execute(query).scalar_one())
                if self._claimed_seq is not None and found > commit_seq:
                    raise LedgerInUse(_TAKEN_OVER)
                return found >= commit_seq
            except SQLAlchemyError as exc:
                if self._closed.wait(_IN_DOUBT_RETRY_S):
                    raise Unavailable(
                        "The ledger was closed before a commit's outcome was known: retry with the same ids."
                    ) from exc

    def _write_group(self, tx: sa.Connection, group: Group) -> Committed:
        commit_seq = self._next_commit.scalar(tx, ())
        if self._claimed_seq is not None and commit_seq != self._claimed_seq + 1:
            raise LedgerInUse(_TAKEN_OVER if commit_seq > self._claimed_seq else _WENT_BACK)
        self._open_hold.run(
            tx,
            [
                (hold.account_id, hold.hold_id, hold.state, _encode_body(hold.body).decode(), group.now_us)
                for hold in group.opened
            ],
        )
        ended = group.ended
        self._forget_hold.run(tx, [(e.account_id, e.hold_id) for e in ended if e.ending == "settled"])
        self._end_hold.run(
            tx, [(e.account_id, e.hold_id, e.ending, e.at_us) for e in ended if e.ending != "settled"]
        )
        charges = {at: amount for at, amount in group.charges.items() if amount}
        if charges:
            self._charge(tx, charges, group.now_us)
        books = self._charge_pools(tx, group, charges)
        if group.windows:
            self._store_windows(tx, group)
        for account_id, counter_id in group.ended_scopes:
            tx.execute(
                sa.delete(scopes).where(scopes.c.account_id == account_id, scopes.c.counter_id == counter_id)
            )
        for scope, active_from_us in group.scopes:
            tx.execute(
                self._store_scope,
                {
                    "account_id": scope.account_id,
                    "counter_id": scope.counter_id,
                    "fingerprint": fingerprint_of(scope),
                    "active_from_us": active_from_us,
                },
            )
        outbox_seqs = [
            self._put_out.scalar(
                tx, (entry.format, entry.record_count, entry.payload, entry.keys, group.now_us)
            )
            for entry in group.outbox
        ]
        return Committed(commit_seq, outbox_seqs, books)

    def _charge(self, tx: sa.Connection, charges: dict[tuple[str, str, int], int], now_us: int) -> None:
        hour_us = now_us - now_us % _HOUR_US
        # In one order, so that two nodes that charge the same counters never wait for each other in a circle.
        rows = sorted(charges.items())
        self._charge_counter.run(tx, [(*at, amount) for at, amount in rows])
        self._charge_posting.run(tx, [(*at, hour_us, amount) for at, amount in rows])

    def _charge_pools(
        self, tx: sa.Connection, group: Group, charges: dict[tuple[str, str, int], int]
    ) -> dict[str, CreditBook]:
        spent = {at[0]: amount for at, amount in charges.items() if at[1] == CREDIT_COUNTER}
        touched = sorted({*spent, *(grant.account for grant in group.grants)})
        books: dict[str, CreditBook] = {}
        for account_id in touched:
            before = self._read_book(tx, account_id, lock=True)
            book = before
            known = {grant.grant_id for grant in before.grants}
            for grant in group.grants:
                if grant.account == account_id and grant.id not in known:
                    book = book.posted(
                        GrantBalance(
                            grant.priority,
                            grant.expires_at or FAR_FUTURE,
                            grant.id,
                            grant.amount_nanos,
                            grant.amount_nanos,
                        )
                    )
            book = book.charged(spent.get(account_id, 0), from_us(group.now_us))
            was = {grant.grant_id: grant.remaining_nanos for grant in before.grants}
            for balance in book.grants:
                if was.get(balance.grant_id) != balance.remaining_nanos:
                    tx.execute(
                        sa.update(grants)
                        .where(grants.c.account_id == account_id, grants.c.id == balance.grant_id)
                        .values(remaining_nanos=balance.remaining_nanos)
                    )
            if book.overdraft_nanos != before.overdraft_nanos:
                tx.execute(
                    self._store_pool, {"account_id": account_id, "overdraft_nanos": book.overdraft_nanos}
                )
            books[account_id] = book
        return books

    def _store_windows(self, tx: sa.Connection, group: Group) -> None:
        rows = [
            (window.account_id, window.counter_id, slot_us, used, window.expires_at_us)
            for window in group.windows
            for slot_us, used in window.slots.items()
        ]
        rows.sort()
        self._store_window.run(tx, rows)

    # -- reading --------------------------------------------------------------------------------------

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        # One statement, so that both values are of the same instant whatever the isolation level.
        used = (
            sa.select(counters.c.used)
            .where(
                counters.c.account_id == account_id,
                counters.c.counter_id == counter_id,
                counters.c.period_start_us == period_start_us,
            )
            .scalar_subquery()
        )
        with self._reading() as tx:
            row = tx.execute(sa.select(used, progress.c.commit_seq)).one()
        return int(row[0] or 0), int(row[1])

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        with self._reading() as tx:
            rows = tx.execute(
                sa.select(windows.c.slot_us, windows.c.used).where(
                    windows.c.account_id == account_id, windows.c.counter_id == counter_id
                )
            )
            return {int(slot_us): int(used) for slot_us, used in rows}

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        with self._reading() as tx:
            if tx.dialect.name == "postgresql":
                # All statements as of one instant: a grant and the overdraft that it covers belong together.
                tx.execution_options(isolation_level="REPEATABLE READ")
            commit_seq = int(tx.execute(sa.select(progress.c.commit_seq)).scalar_one())
            return self._read_book(tx, account_id, lock=False), commit_seq

    def _read_book(self, tx: sa.Connection, account_id: str, *, lock: bool) -> CreditBook:
        query = sa.select(
            grants.c.priority,
            grants.c.expires_at_us,
            grants.c.id,
            grants.c.amount_nanos,
            grants.c.remaining_nanos,
        ).where(grants.c.account_id == account_id, grants.c.remaining_nanos.is_not(None))
        if lock:
            query = query.with_for_update()
        rows = tx.execute(query).all()
        overdraft = tx.execute(
            sa.select(pools.c.overdraft_nanos).where(pools.c.account_id == account_id)
        ).scalar()
        return book_of(
            (
                GrantBalance(
                    int(row.priority),
                    FAR_FUTURE if row.expires_at_us is None else from_us(int(row.expires_at_us)),
                    str(row.id),
                    int(row.amount_nanos),
                    int(row.remaining_nanos),
                )
                for row in rows
            ),
            int(overdraft or 0),
        )

    def unposted_grants(self) -> list[Grant]:
        with self._reading() as tx:
            rows = tx.execute(
                sa.select(grants).where(grants.c.remaining_nanos.is_(None)).order_by(grants.c.id)
            )
            return [
                Grant(
                    id=row.id,
                    account=row.account_id,
                    amount_nanos=int(row.amount_nanos),
                    source=row.source,
                    priority=int(row.priority),
                    expires_at=None if row.expires_at_us is None else from_us(int(row.expires_at_us)),
                    note=row.note,
                )
                for row in rows
            ]

    def open_holds(self) -> list[StoredHold]:
        with self._reading_all() as tx:
            rows = tx.execute(
                sa.select(holds.c.account_id, holds.c.hold_id, holds.c.state, holds.c.body)
                .where(holds.c.state == "open")
                .order_by(holds.c.created_at_us)
            ).all()
        return [StoredHold(a, h, s, _decode_body(body)) for a, h, s, body in rows]

    def hold(self, account_id: str, hold_id: str) -> StoredHold | None:
        with self._reading() as tx:
            row = tx.execute(
                sa.select(holds.c.account_id, holds.c.hold_id, holds.c.state, holds.c.body).where(
                    holds.c.account_id == account_id, holds.c.hold_id == hold_id
                )
            ).one_or_none()
        return None if row is None else StoredHold(row[0], row[1], row[2], _decode_body(row[3]))

    def hold_owners(self, hold_id: str) -> list[str]:
        with self._reading() as tx:
            rows = tx.execute(sa.select(holds.c.account_id).where(holds.c.hold_id == hold_id))
            return [str(row[0]) for row in rows]

    def scopes(self, account_id: str) -> dict[str, tuple[str, int]]:
        with self._reading() as tx:
            rows = tx.execute(
                sa.select(scopes.c.counter_id, scopes.c.fingerprint, scopes.c.active_from_us).where(
                    scopes.c.account_id == account_id
                )
            )
            return {str(c): (str(f), int(a)) for c, f, a in rows}

    def counter_rows(self, account_id: str) -> dict[tuple[str, int], int]:
        with self._reading_all() as tx:
            rows = tx.execute(
                sa.select(counters.c.counter_id, counters.c.period_start_us, counters.c.used).where(
                    counters.c.account_id == account_id
                )
            )
            return {(str(c), int(p)): int(u) for c, p, u in rows}

    def posting_sums(self, account_id: str) -> dict[tuple[str, int], int]:
        with self._reading_all() as tx:
            rows = tx.execute(
                sa.select(postings.c.counter_id, postings.c.period_start_us, sa.func.sum(postings.c.amount))
                .where(postings.c.account_id == account_id)
                .group_by(postings.c.counter_id, postings.c.period_start_us)
            )
            return {(str(c), int(p)): int(a) for c, p, a in rows}

    def charged_accounts(self) -> list[str]:
        with self._reading_all() as tx:
            rows = tx.execute(sa.select(counters.c.account_id).distinct().order_by(counters.c.account_id))
            return [str(row[0]) for row in rows]

    # -- outbox ---------------------------------------------------------------------------------------

    def pending(self, after_seq: int = 0, rows_max: int = PENDING_ROWS) -> list[PendingRow]:
        query = (
            sa.select(outbox.c.seq, outbox.c.record_count, outbox.c.id_keys, outbox.c.committed_at_us)
            .where(outbox.c.seq > after_seq, outbox.c.set_aside_reason.is_(None))
            .order_by(outbox.c.seq)
            .limit(rows_max)
        )
        with self._reading() as tx:
            return [PendingRow(*map(_plain, row)) for row in tx.execute(query)]

    def entries(self, seqs: Sequence[int]) -> dict[int, OutboxEntry]:
        query = sa.select(outbox.c.seq, *_ENTRY).where(outbox.c.seq.in_(seqs))
        with self._reading() as tx:
            return {int(seq): _entry(row) for seq, *row in tx.execute(query)}

    def next_batch(self, records_max: int, *, seq_max: int | None = None) -> Batch | None:
        with self._writing() as tx:
            begun = tx.execute(
                sa.select(outbox.c.batch, outbox.c.batch_epoch)
                .where(outbox.c.batch.is_not(None))
                .order_by(outbox.c.batch)
                .limit(1)
            ).one_or_none()
            if begun is None:
                chosen = self._choose(tx, records_max, seq_max)
                if not chosen:
                    return None
                begun = tx.execute(
                    sa.update(progress)
                    .values(batch_seq=progress.c.batch_seq + 1, batch_epoch=self._epoch)
                    .returning(progress.c.batch_seq, progress.c.batch_epoch)
                ).one()
                if begun[0] <= self._begun_batch:
                    raise LedgerInUse(_WENT_BACK)
                tx.execute(
                    sa.update(outbox)
                    .where(outbox.c.seq.in_(chosen))
                    .values(batch=begun[0], batch_epoch=begun[1])
                )
            elif begun[0] <= self._delivered_batch:
                raise LedgerInUse(_WENT_BACK)
            rows = tx.execute(
                sa.select(outbox.c.seq, *_ENTRY).where(outbox.c.batch == begun[0]).order_by(outbox.c.seq)
            ).all()
        mark = BatchMark(self.installation_id, begun[1] or "", int(begun[0]))
        self._begun_batch = max(self._begun_batch, mark.batch)
        return Batch(mark, [(int(seq), _entry(row)) for seq, *row in rows])

    def _choose(self, tx: sa.Connection, records_max: int, seq_max: int | None) -> list[int]:
        query = (
            sa.select(outbox.c.seq, outbox.c.record_count)
            .where(outbox.c.set_aside_reason.is_(None))
            .order_by(outbox.c.seq)
            .limit(10_000)
        )
        if seq_max is not None:
            query = query.where(outbox.c.seq <= seq_max)
        chosen: list[int] = []
        records = 0
        for seq, record_count in tx.execute(query):
            if chosen and records + record_count > records_max:
                break
            chosen.append(int(seq))
            records += record_count
        return chosen

    def delivered(self, mark: BatchMark) -> None:
        with self._writing() as tx:
            gone = tx.execute(
                sa.delete(outbox).where(outbox.c.batch == mark.batch).returning(outbox.c.record_count)
            ).scalars()
            last = tx.execute(
                sa.update(progress)
                .values(delivered_records=progress.c.delivered_records + sum(gone))
                .returning(progress.c.batch_seq)
            ).scalar_one()
            if last < mark.batch:
                # Its rows are still there, under no number.
                raise LedgerInUse(_WENT_BACK)
        self._delivered_batch = max(self._delivered_batch, mark.batch)

    def past(self) -> LedgerPast:
        counts = sa.select(sa.func.coalesce(sa.func.sum(outbox.c.record_count), 0))
        begun = counts.where(outbox.c.batch.is_not(None)).scalar_subquery()
        aside = counts.where(outbox.c.set_aside_reason.is_not(None)).scalar_subquery()
        # One statement, so that all is of the same instant whatever the isolation level.
        query = sa.select(
            progress.c.batch_epoch, progress.c.batch_seq, progress.c.delivered_records, begun, aside
        )
        with self._reading() as tx:
            epoch, batch, delivered, begun_records, aside_records = tx.execute(query).one()
        last = BatchMark(self.installation_id, epoch, int(batch))
        return LedgerPast(last, int(delivered), int(begun_records), int(aside_records))

    def note_behind(self, batch: int, now_us: int) -> None:
        with self._writing() as tx:
            last_seq = sa.select(sa.func.coalesce(sa.func.max(outbox.c.seq), 0)).scalar_subquery()
            tx.execute(sa.update(progress).values(behind_seq=last_seq, behind_at_us=now_us))
            tx.execute(sa.update(progress).where(progress.c.batch_seq < batch).values(batch_seq=batch))

    def is_behind(self) -> bool:
        with self._writing() as tx:
            seq, at_us = tx.execute(sa.select(progress.c.behind_seq, progress.c.behind_at_us)).one()
            if at_us is not None:
                if tx.execute(
                    sa.select(holds.c.hold_id).where(holds.c.created_at_us <= at_us).limit(1)
                ).first():
                    return True
                # The last of them may just have been settled: its record is in the outbox.
                seq = tx.execute(
                    sa.update(progress)
                    .values(
                        behind_at_us=None,
                        behind_seq=sa.select(
                            sa.func.coalesce(sa.func.max(outbox.c.seq), 0)
                        ).scalar_subquery(),
                    )
                    .returning(progress.c.behind_seq)
                ).scalar_one()
            if seq is None:
                return False
            waiting = sa.select(outbox.c.seq).where(outbox.c.seq <= seq, outbox.c.set_aside_reason.is_(None))
            if tx.execute(waiting.limit(1)).first():
                return True
            tx.execute(sa.update(progress).values(behind_seq=None))
            return False

    def raise_delivered(self, records: int) -> None:
        with self._writing() as tx:
            tx.execute(
                sa.update(progress)
                .where(progress.c.delivered_records < records)
                .values(delivered_records=records)
            )

    def delivered_records(self) -> int:
        with self._reading() as tx:
            return int(tx.execute(sa.select(progress.c.delivered_records)).scalar_one())

    def set_aside(self, seq: int, reason: str) -> None:
        with self._writing() as tx:
            tx.execute(
                sa.update(outbox)
                .where(outbox.c.seq == seq)
                .values(batch=None, batch_epoch=None, set_aside_reason=reason)
            )

    def set_asides(self) -> list[SetAside]:
        query = sa.select(outbox.c.seq, outbox.c.record_count, outbox.c.set_aside_reason, outbox.c.id_keys)
        with self._reading() as tx:
            rows = tx.execute(query.where(outbox.c.set_aside_reason.is_not(None)).order_by(outbox.c.seq))
            return [SetAside(*map(_plain, row)) for row in rows]

    def purge(self, now_us: int) -> int:
        with self._writing() as tx:
            stale = (
                sa.select(windows.c.account_id, windows.c.counter_id, windows.c.slot_us)
                .where(windows.c.expires_at_us < now_us - _HOUR_US)
                .limit(_PURGE_BATCH)
            )
            gone = tx.execute(
                sa.delete(windows).where(
                    sa.tuple_(windows.c.account_id, windows.c.counter_id, windows.c.slot_us).in_(stale)
                )
            ).rowcount
            gone += tx.execute(
                sa.delete(holds).where(
                    holds.c.state != "open", holds.c.ended_at_us < now_us - _ENDED_HOLDS_KEPT_US
                )
            ).rowcount
        return gone

    def ping(self) -> None:
        """Raise `Unavailable` unless the database can be read now, and is the one that was opened."""
        self._file.check()
        before = self._claimed_seq
        with self._reading() as tx:
            found = int(tx.execute(sa.select(progress.c.commit_seq)).scalar_one())
        if before is not None and found < before:
            raise LedgerInUse(_WENT_BACK)
        # Read before what is claimed: a commit of ours may be in the database and not yet known here.
        if self._claimed_seq is not None and found > self._claimed_seq + 1:
            raise LedgerInUse(_TAKEN_OVER)

    def close(self) -> None:
        self._closed.set()
        self._file.close()
        self._engine.dispose()

    # -- plumbing -------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with _database_errors("written"), self._write_lock:
            if self._claimed_seq is not None:
                self._file.check()
            with self._engine.begin() as tx:
                if self._claimed_seq is not None:
                    found = int(tx.execute(sa.select(progress.c.commit_seq)).scalar_one())
                    if found != self._claimed_seq:
                        raise LedgerInUse(_TAKEN_OVER if found > self._claimed_seq else _WENT_BACK)
                yield tx

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _database_errors("read"), self._engine.connect() as tx:
            yield tx

    @contextmanager
    def _reading_all(self) -> Iterator[sa.Connection]:
        """Read what may take longer than one call may wait."""
        with PATIENCE, self._reading() as tx:
            if self._engine.dialect.name == "postgresql":
                tx.exec_driver_sql("SET LOCAL statement_timeout = 0")
            yield tx

    @staticmethod
    def _adding(statement: Any, table: sa.Table, column: str) -> Any:
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={column: table.c[column] + statement.excluded[column]},
        )

    @staticmethod
    def _replacing(statement: Any, table: sa.Table, columns: Sequence[str]) -> Any:
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={column: statement.excluded[column] for column in columns},
        )


def _entry(row: Sequence[Any]) -> OutboxEntry:
    format_, payload, record_count, keys = row
    return OutboxEntry(format_, bytes(payload), record_count, bytes(keys))


def _plain(value: Any) -> Any:
    """Return a value as of Python: a driver may answer bytes as something else."""
    return bytes(value) if isinstance(value, memoryview | bytearray) else value


def _of_hold(row: Row) -> sa.ColumnElement[bool]:
    return sa.and_(holds.c.account_id == row["account_id"], holds.c.hold_id == row["hold_id"])


@contextmanager
def _database_errors(done: str) -> Iterator[None]:
    """Let no error of the driver out, and tell one bad value from a database that is away."""
    try:
        yield
    except IntegrityError as exc:
        raise Conflict(f"The ledger has this already: {exc.orig}") from exc
    except DataError as exc:
        raise BadInput(f"A value does not fit the ledger: {exc.orig}") from exc
    except DBAPIError as exc:
        raise Unavailable(f"The ledger cannot be {done}: {exc.orig}. Try again shortly.") from exc
    except SQLAlchemyError as exc:
        raise Unavailable(f"The ledger cannot be {done}.", cause=str(exc)) from exc
