"""
The relay: takes records from the outbox to the usage store, in few large inserts, each exactly once.

A batch of outbox rows gets its mark in SQL before it is inserted: its number, and the epoch, which is of one start
of one process. The mark is the insert's deduplication token. After a crash, or a lost answer, at any point, the
same batch comes again under the same token, and the store takes it once. A ledger that was put back to an earlier state
counts the same numbers again, in another epoch. When the store is lost, the rows that are still here are not.

A row that cannot be read (a damaged disk) is set aside in the ledger and reported by verify. The rows after it are
relayed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa

from tollkeeper.domain.bookings import OutboxEntry
from tollkeeper.domain.events import Record
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Unavailable, cause_of
from tollkeeper.ledger.listeners import NO_LISTENER, DeliveryListener
from tollkeeper.ledger.pending import Pending, decode_keys, key_of
from tollkeeper.ports import Outbox, OutboxReader, UsageStore
from tollkeeper.record_columns import SCHEMA, concat, from_ipc, records_of, table_of

BATCH_RECORDS_MAX: Final = 60_000
"""Records of one insert: while it lasts it takes some 2 kB of memory for each. Of 400,000 they cost a fifth less
time, and 400 MB more."""
SMALL_RECORDS: Final = 20_000
"""Records of small rows that become one table: a table has its price, and a record as an object takes 1 kB."""
LARGE_RECORDS: Final = 20_000
GATHER_S: Final = 1.0
"""How long committed records gather before they are relayed, unless a caller waits: few large inserts cost least."""
LITTLE_RECORDS: Final = 200
"""So few travel with a usage query (`usage/freshness.py`), sooner than an insert takes; so they gather on: a query that
meets an insert waits for it."""
LITTLE_GATHERS: Final = 5
RETRY_S: Final = (0.2, 1.0, 5.0)

_UNREADABLE: Final = (
    msgspec.MsgspecError,
    pa.ArrowException,
    ValueError,
    TypeError,
    OverflowError,
    OSError,
)
"""The errors of a damaged payload, in each library that may find it."""

log = logging.getLogger("tollkeeper.relay")
_decode_rows = msgspec.msgpack.Decoder(list[Record]).decode
_OLD_ROW: Final = b"\xdc\x00\x1d"
"""How a record from before quantities begins in MessagePack: an array of 29."""


def decode_rows(payload: bytes) -> list[Record]:
    """
    Return the records of an outbox row of format `rows`.

    For those from before a record had a provider cost it is what they cost, as in the usage store of that time.
    """
    records = _decode_rows(payload)
    # After the header of the list, which has 1, 3 or 5 bytes.
    if _OLD_ROW in (payload[1:4], payload[3:6], payload[5:8]):
        records = [record._replace(provider_cost_nanos=record.cost_nanos) for record in records]
    return records


class _Inserted(NamedTuple):
    """A batch that the usage store has: its outbox rows, each with its count of records, and how many were readable."""

    mark: BatchMark
    record_counts: dict[int, int]
    record_count: int


class Relay:
    """Owns the relay thread. With `flush`, a usage answer contains the request that was answered just before."""

    def __init__(
        self,
        outbox: Outbox,
        store: UsageStore,
        pending: Pending,
        must_compare: Callable[[], bool] = lambda: False,
        listener: DeliveryListener = NO_LISTENER,
    ) -> None:
        """
        Args:
            listener: Called about each batch that was delivered.
            must_compare: Whether the store may have records of a batch that it was not given yet. Raises
                `Unavailable` when nothing may be relayed.
        """
        self._must_compare = must_compare
        self._outbox = outbox
        self._store = store
        self._pending = pending
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._moved = threading.Condition()
        self._closing = False
        self._wanted_seq = 0
        self.delivered_seq = 0
        self.delivered_records = 0
        self.set_aside_records = 0
        """Records that were acknowledged and cannot be read any more, so that no answer contains them."""
        self.failure: str | None = None
        """Why the last delivery failed, or None when it did not."""
        for row in outbox.set_asides():
            self._know_set_aside(row.record_count, row.keys)
        self._inserted: _Inserted | None = None
        self._moves = 0
        # An earlier process may have inserted a batch and lost the answer: known after the first `deliver`.
        self._moving = True
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="tollkeeper-relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def notify(self) -> None:
        """Say that the outbox has something. Cheap; called after every commit."""
        self._wake.set()

    def flush(self, seq: int, timeout_s: float) -> bool:
        """Return whether the usage store has all outbox rows up to *seq*, waiting for at most *timeout_s*."""
        if self.delivered_seq >= seq:
            return True
        deadline = time.monotonic() + timeout_s
        self._wanted_seq = max(self._wanted_seq, seq)
        self._urgent.set()
        self._wake.set()
        with self._moved:
            while self.delivered_seq < seq:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closing:
                    return False
                self._moved.wait(left_s)
        return True

    def mark(self, timeout_s: float = 0.0) -> int | None:
        """
        Return a number that stays the same as long as the usage store has exactly the rows that `Pending` lacks.

        None if a batch is still on its way after *timeout_s*, or may be there without our knowing.
        """
        if self._moving and timeout_s and self._lock.acquire(timeout=timeout_s):
            self._lock.release()
        moves = self._moves
        return None if self._moving else moves

    @contextmanager
    def exclusive(self, timeout_s: float = -1) -> Iterator[None]:
        """
        Deliver only the batches that this thread delivers, until the block ends.

        Args:
            timeout_s: How long to wait for a delivery that is under way; negative for as long as it takes.

        Raises:
            Unavailable: It took longer.
        """
        if not self._lock.acquire(timeout=timeout_s):
            raise Unavailable("The usage store is busy with records on their way. Try again shortly.")
        try:
            yield
        finally:
            self._lock.release()

    def deliver_up_to(self, seq: int) -> None:
        """
        Deliver all outbox rows up to *seq*, and none of a later batch.

        Raises:
            Unavailable: The usage store does not take them.
        """
        while self.deliver(seq_max=seq):
            pass

    def deliver(self, *, seq_max: int | None = None) -> int:
        """
        Relay one batch; return how many outbox rows it had, 0 when there is none.

        Raises:
            Unavailable: A store failed; the same batch is tried again by the next call.
        """
        with self._lock:
            if self.failure is not None and not self._store.ready():
                # To read the batch again for a store that takes nothing would cost the gate its time.
                raise Unavailable("the usage store does not answer")
            must_compare = self._must_compare()
            if self._inserted is None:
                found = self._outbox.next_batch(BATCH_RECORDS_MAX, seq_max=seq_max)
                if found is None:
                    self._moving = False
                    return 0
                mark, rows = found
                # After a start or a failure: the call that began this batch may have been cut short anywhere.
                begun_after = self._outbox.delivered_records() if self._moving or must_compare else None
                # In this order, and until the end: `mark` looks at both without a lock.
                self._moving = True
                self._moves += 1
                tables = self._tables(rows)
                if tables:
                    self._store.begin(mark)
                    # A batch that lost a row keeps its token: if it was inserted before, it was inserted whole.
                    self._store.append(concat(tables), mark.token, begun_after=begun_after)
                counts = {seq: entry.record_count for seq, entry in rows}
                self._inserted = _Inserted(mark, counts, sum(table.num_rows for table in tables))
                del rows, tables
            # Kept until the ledger confirms: it may have deleted the rows and its answer be lost.
            inserted = self._inserted
            self._outbox.delivered(inserted.mark)
            self._inserted = None
            self._pending.delivered(inserted.record_counts)
            self._moving = False
        # First, so that callers who wait for the delivery find its consequences.
        self._listener.delivered()
        with self._moved:
            self.delivered_seq = max(self.delivered_seq, *inserted.record_counts)
            self.delivered_records += inserted.record_count
            self.failure = None
            self._moved.notify_all()
        if inserted.record_count >= LARGE_RECORDS:
            self._listener.large_batch_delivered()
        return len(inserted.record_counts)

    def _tables(self, rows: list[tuple[int, OutboxEntry]]) -> list[pa.Table]:
        """Return the records of a batch: those of many small rows as one table."""
        small = [entry for _, entry in rows if entry.format == "rows"]
        joined: list[pa.Table] = []
        records: list[Record] = []
        try:
            for index, entry in enumerate(small):
                records += decode_rows(entry.payload)
                if len(records) >= SMALL_RECORDS or (records and index == len(small) - 1):
                    joined.append(table_of(records))
                    joined[-1].validate(full=True)
                    records = []
            whole = sum(table.num_rows for table in joined) == sum(entry.record_count for entry in small)
        except _UNREADABLE:
            whole = False
        if not whole:
            # One of them is damaged: find it.
            return [table for seq, entry in rows if (table := self.read(seq, entry)) is not None]
        large = [(seq, entry) for seq, entry in rows if entry.format != "rows"]
        return joined + [table for seq, entry in large if (table := self.read(seq, entry)) is not None]

    def read(self, seq: int, entry: OutboxEntry) -> pa.Table | None:
        """Return the records of an outbox row; when it cannot be read, set it aside and return None."""
        try:
            return table_of_entry(entry)
        except Unreadable as exc:
            log.error("tollkeeper.relay.set_aside", exc_info=exc, extra={"seq": seq, "reason": str(exc)})
            self._outbox.set_aside(seq, str(exc))
            self._know_set_aside(entry.record_count, entry.keys)
            return None

    def _know_set_aside(self, record_count: int, keys: bytes) -> None:
        """Keep the ids of a row taken, so that a retry of its events is not booked beside them."""
        self.set_aside_records += record_count
        try:
            self._pending.set_aside(decode_keys(keys))
        except msgspec.MsgspecError:
            log.error("tollkeeper.relay.ids_unreadable", extra={"records": record_count})

    def close(self, timeout_s: float = 60.0) -> None:
        """Deliver the pending records, if the store takes them, and end the thread."""
        self._closing = True
        self._urgent.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _more_is_due(self) -> bool:
        """Return whether the next batch should not gather: one is waited for, or much has piled up."""
        return (
            self._closing
            or self._wanted_seq > self.delivered_seq
            or self._pending.record_count > BATCH_RECORDS_MAX
        )

    def _run(self) -> None:
        failures = 0
        while True:
            self._wake.wait()
            self._wake.clear()
            for _ in range(LITTLE_GATHERS):
                # After a failure too: who waits for a delivery does not wait for a gathering.
                if self._more_is_due() or self._urgent.wait(GATHER_S):
                    break
                if self._pending.record_count > LITTLE_RECORDS:
                    break
            self._urgent.clear()
            try:
                while self.deliver() and self._more_is_due():
                    pass
                if self._pending.record_count:
                    self._wake.set()
                failures = 0
            except Unavailable as exc:
                self.failure = str(exc)
                log.warning(
                    "tollkeeper.relay.unavailable", extra={"reason": str(exc), "cause": cause_of(exc)}
                )
                if not self._closing:
                    self._urgent.wait(RETRY_S[min(failures, len(RETRY_S) - 1)])
                    self._wake.set()
                failures += 1
            except Exception:
                # A defect, not a passing fault; say so and go on trying.
                self.failure = "a batch of the outbox cannot be relayed: see the log"
                log.exception("tollkeeper.relay.failed")
                if not self._closing:
                    self._urgent.wait(RETRY_S[-1])
                    self._wake.set()
            if self._closing:
                return


class Unreadable(Exception):
    """An outbox row is damaged: `str(error)` says how."""


def read_back(outbox: OutboxReader) -> Callable[[Sequence[int]], Iterator[pa.Table]]:
    """Return a function that reads outbox rows by number: those that are still there and can be read."""

    def tables(seqs: Sequence[int]) -> Iterator[pa.Table]:
        for entry in outbox.entries(seqs).values():
            # A row that cannot be read is for the relay to set aside.
            with suppress(Unreadable):
                yield table_of_entry(entry)

    return tables


def keys_of(table: pa.Table) -> list[str]:
    """Return the ids that records take; as in the usage store's index, an amendment's id is taken too."""
    columns = (table.column(name).to_pylist() for name in ("account_id", "amendment_id", "id"))
    return [key_of(account, amendment or id_) for account, amendment, id_ in zip(*columns, strict=True)]


def records_of_entry(entry: OutboxEntry) -> list[Record]:
    """Return the records of one outbox row. Raises `Unreadable`."""
    if entry.format != "rows":
        return records_of(table_of_entry(entry))
    try:
        return decode_rows(entry.payload)
    except msgspec.MsgspecError as exc:
        raise Unreadable(f"{type(exc).__name__}: {exc}") from exc


def table_of_entry(entry: OutboxEntry) -> pa.Table:
    """
    Return the records of one outbox row.

    Raises:
        Unreadable: Its payload is not a table of `columns.SCHEMA` with as many records as it should have.
    """
    try:
        table = table_of(decode_rows(entry.payload)) if entry.format == "rows" else from_ipc(entry.payload)
        table.validate(full=True)
    except _UNREADABLE as exc:
        raise Unreadable(f"{type(exc).__name__}: {exc}") from exc
    if not table.schema.equals(SCHEMA) or table.num_rows != entry.record_count:
        raise Unreadable(f"{table.num_rows} records of another schema or number than {entry.record_count}")
    return table
