"""
The outbox over SQL: records that are committed and not yet in the usage store.

The ledger writes its rows in the transaction that books them (`put`); the relay reads, numbers and deletes them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from tollkeeper.adapters.sql.ledger_database import TAKEN_OVER, WENT_BACK, LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import holds, outbox, progress
from tollkeeper.adapters.sql.prepared import Prepared
from tollkeeper.domain.bookings import OutboxBatch, OutboxEntry, PendingRow, SetAside
from tollkeeper.domain.pairing import BatchMark, LedgerPast
from tollkeeper.errors import LedgerInUse

PENDING_ROWS: Final = 20
"""Outbox rows whose ids are read at a time: each has up to a batch of events."""
_ENTRY: Final[Any] = (outbox.c.format, outbox.c.payload, outbox.c.record_count, outbox.c.id_keys)


class SqlOutbox:
    """The outbox of one ledger. See `ports.Outbox`."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self._epoch = ""
        self._begun_batch = 0
        self._delivered_batch = 0
        self._put_out = Prepared(
            database.engine,
            lambda rows: sa.insert(outbox).values(rows).returning(outbox.c.seq),
            ("format", "record_count", "payload", "id_keys", "committed_at_us"),
            sizes=(1,),
        )
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Number the batches that begin from now on in a new epoch: a restored ledger repeats numbers."""
        self._epoch = uuid.uuid4().hex

    def put(self, tx: sa.Connection, entries: Sequence[OutboxEntry], now_us: int) -> list[int]:
        """Add *entries* in a transaction of the ledger; return their numbers."""
        return [
            self._put_out.scalar(tx, (entry.format, entry.record_count, entry.payload, entry.keys, now_us))
            for entry in entries
        ]

    def pending(self, after_seq: int = 0, rows_max: int = PENDING_ROWS) -> list[PendingRow]:
        query = (
            sa.select(outbox.c.seq, outbox.c.record_count, outbox.c.id_keys, outbox.c.committed_at_us)
            .where(outbox.c.seq > after_seq, outbox.c.set_aside_reason.is_(None))
            .order_by(outbox.c.seq)
            .limit(rows_max)
        )
        with self._database.reading() as tx:
            return [PendingRow(*map(_plain, row)) for row in tx.execute(query)]

    def entries(self, seqs: Sequence[int]) -> dict[int, OutboxEntry]:
        query = sa.select(outbox.c.seq, *_ENTRY).where(outbox.c.seq.in_(seqs))
        with self._database.reading() as tx:
            return {int(seq): _entry(row) for seq, *row in tx.execute(query)}

    def next_batch(self, records_max: int, *, seq_max: int | None = None) -> OutboxBatch | None:
        with self._database.writing() as tx:
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
                    raise LedgerInUse(WENT_BACK)
                tx.execute(
                    sa.update(outbox)
                    .where(outbox.c.seq.in_(chosen))
                    .values(batch=begun[0], batch_epoch=begun[1])
                )
            elif begun[0] <= self._delivered_batch:
                raise LedgerInUse(WENT_BACK)
        # After the write: commits wait for it, and these are up to tens of megabytes. Only the relay changes them.
        with self._database.reading() as tx:
            rows = tx.execute(
                sa.select(outbox.c.seq, *_ENTRY).where(outbox.c.batch == begun[0]).order_by(outbox.c.seq)
            ).all()
        if not rows:
            # Of a process that was given the ledger meanwhile.
            raise LedgerInUse(TAKEN_OVER)
        mark = BatchMark(self._database.installation_id, begun[1] or "", int(begun[0]))
        self._begun_batch = max(self._begun_batch, mark.batch)
        return OutboxBatch(mark, [(int(seq), _entry(row)) for seq, *row in rows])

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
        with self._database.writing() as tx:
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
                raise LedgerInUse(WENT_BACK)
        self._delivered_batch = max(self._delivered_batch, mark.batch)

    def past(self) -> LedgerPast:
        counts = sa.select(sa.func.coalesce(sa.func.sum(outbox.c.record_count), 0))
        begun = counts.where(outbox.c.batch.is_not(None)).scalar_subquery()
        aside = counts.where(outbox.c.set_aside_reason.is_not(None)).scalar_subquery()
        # One statement, so that all is of the same instant whatever the isolation level.
        query = sa.select(
            progress.c.batch_epoch, progress.c.batch_seq, progress.c.delivered_records, begun, aside
        )
        with self._database.reading() as tx:
            epoch, batch, delivered, begun_records, aside_records = tx.execute(query).one()
        last = BatchMark(self._database.installation_id, epoch, int(batch))
        return LedgerPast(last, int(delivered), int(begun_records), int(aside_records))

    def note_behind(self, batch: int, now_us: int) -> None:
        with self._database.writing() as tx:
            last_seq = sa.select(sa.func.coalesce(sa.func.max(outbox.c.seq), 0)).scalar_subquery()
            tx.execute(sa.update(progress).values(behind_seq=last_seq, behind_at_us=now_us))
            tx.execute(sa.update(progress).where(progress.c.batch_seq < batch).values(batch_seq=batch))

    def is_behind(self) -> bool:
        with self._database.writing() as tx:
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
        with self._database.writing() as tx:
            tx.execute(
                sa.update(progress)
                .where(progress.c.delivered_records < records)
                .values(delivered_records=records)
            )

    def delivered_records(self) -> int:
        with self._database.reading() as tx:
            return int(tx.execute(sa.select(progress.c.delivered_records)).scalar_one())

    def set_aside(self, seq: int, reason: str) -> None:
        with self._database.writing() as tx:
            tx.execute(
                sa.update(outbox)
                .where(outbox.c.seq == seq)
                .values(batch=None, batch_epoch=None, set_aside_reason=reason)
            )

    def set_asides(self) -> list[SetAside]:
        query = sa.select(outbox.c.seq, outbox.c.record_count, outbox.c.set_aside_reason, outbox.c.id_keys)
        with self._database.reading() as tx:
            rows = tx.execute(query.where(outbox.c.set_aside_reason.is_not(None)).order_by(outbox.c.seq))
            return [SetAside(*map(_plain, row)) for row in rows]


def _entry(row: Sequence[Any]) -> OutboxEntry:
    format_, payload, record_count, keys = row
    return OutboxEntry(format_, bytes(payload), record_count, bytes(keys))


def _plain(value: Any) -> Any:
    """Return a value as of Python: a driver may answer bytes as something else."""
    return bytes(value) if isinstance(value, memoryview | bytearray) else value
