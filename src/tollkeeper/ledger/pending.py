"""
The index of pending records: those that are committed and not yet in the usage store, by id and by account.

It is a look-up. Whether an event is a duplicate or a conflict is decided in `meter/dedupe.py`.

An id is taken when it is in this index or in the usage store. A look-up reads the store first and then this
index. So that it misses no id that is delivered in between, delivered ids stay here until every look-up that was
under way has ended (`looking_up`).

The index has the id of each record and the number of its outbox row; while the usage store is away it keeps 16
bytes for each of the older ids (`id_hash_index.py`). The records themselves are read back from the outbox. Kept
here as objects, they took half of the time under load: Python's cyclic garbage collector visits objects, not texts
and numbers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import US_PER_S

if TYPE_CHECKING:
    import pyarrow as pa

    from tollkeeper.ledger.id_hash_index import IdHashIndex

SEPARATOR: Final = "\x00"
RECORDS_MAX: Final = 5_000_000
"""Records that may wait before more are refused: this bounds memory and disk while the usage store is away."""
TOO_MANY: Final = "Too many events wait for the usage store. Try again later."
WHOLE_IDS_MAX: Final = 100_000
"""Ids kept as text: some 200 bytes each. Older ones are kept as hashes."""
_COMMITTING: Final = 0
"""In place of an outbox row, for ids whose commit is under way."""
_ROWS_READ: Final = 20
"""Outbox rows that are read back at a time: each has up to a batch of events."""

decode_keys = msgspec.msgpack.Decoder(list[str]).decode


def key_of(account_id: str, id_: str) -> str:
    """Return the key of an event: its account and id in one string; `SEPARATOR` is in neither part."""
    return f"{account_id}{SEPARATOR}{id_}"


class Pending:
    """
    Ids of committed records that the usage store may not have yet, and of holds. Any thread may call.

    The id of an open hold is taken too: settling the hold makes the event of that id.

    Args:
        read: Returns the records of those outbox rows, by number, that are still there and can be read.
        now_us: The time, in microseconds since the epoch.
        own_ids_ending: How the ids end of requests that this process has admitted. They are in no store until they
            are settled, and taken all the same.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], Iterable[pa.Table]] = lambda seqs: (),
        now_us: Callable[[], int] = lambda: 0,
        own_ids_ending: str = SEPARATOR,
    ) -> None:
        self._lock = threading.Lock()
        self._read = read
        self._now_us = now_us
        self.own_ids_ending: Final = own_ids_ending
        self._id_hashes: IdHashIndex | None = None
        self._set_aside: set[str] = set()
        self._committed_at: deque[tuple[int, int]] = deque()
        self._seqs: dict[str, int] = {}
        self._committing_rows: list[tuple[Sequence[str], pa.Table | Sequence[Record] | None]] = []
        self._held: set[str] = set()
        self._keys_by_seq: dict[int, list[str]] = {}
        self._newest_seq_by_account: dict[str, int] = {}
        self._delivered_seq = 0
        self.last_seq = 0
        """The newest outbox row that is known here."""
        self._tick = 0
        self._look_ups: dict[int, int] = {}
        self._retired: list[tuple[int, int]] = []
        self._delivered_early: set[int] = set()
        self.record_count = 0

    def disjoint(self, keys: Sequence[str]) -> bool:
        """Return whether none of *keys* is here."""
        # In this order: `_compact` adds the hash of an id before it removes the text.
        return (
            self._seqs.keys().isdisjoint(keys)
            and self._held.isdisjoint(keys)
            and not (self._id_hashes and self._id_hashes.find(keys))
            and self._set_aside.isdisjoint(keys)
        )

    def known(self, keys: Sequence[str]) -> set[str]:
        """Return those of *keys* that are here."""
        found = {key for key in keys if key in self._seqs or key in self._held or key in self._set_aside}
        if self._id_hashes:
            # Last, as in `disjoint`.
            found.update(key for key, _ in self._id_hashes.find(keys))
        return found

    def is_held(self, key: str) -> bool:
        """Return whether *key* names an open hold, or one that is being settled."""
        return key in self._held

    def is_own(self, key: str) -> bool:
        """Return whether *key* names a request of this process: unless it is recorded, no other caller may book it."""
        return key.endswith(self.own_ids_ending)

    def is_recorded(self, key: str) -> bool:
        """Return whether *key* names an event or a correction that is here."""
        # In this order, as in `disjoint`.
        return (
            key in self._seqs
            or bool(self._id_hashes and self._id_hashes.find((key,)))
            or key in self._set_aside
        )

    def is_committing(self, keys: Iterable[str]) -> bool:
        """Return whether one of *keys* is being committed: it is here, and not durable yet."""
        return any(self._seqs.get(key) == _COMMITTING for key in keys)

    def add(self, keys: Sequence[str], records: pa.Table | Sequence[Record] | None) -> None:
        """
        Add ids that are about to be committed; `committed` or `drop` must follow.

        Args:
            records: The record of `keys[i]` in place i; None for ids of corrections.
        """
        with self._lock:
            self._seqs.update(dict.fromkeys(keys, _COMMITTING))
            self._committing_rows.append((keys, records))

    def hold(self, keys: Iterable[str]) -> None:
        """Add the ids of open holds."""
        with self._lock:
            self._held.update(keys)

    def release(self, keys: Iterable[str]) -> None:
        """Remove the ids of holds that ended."""
        with self._lock:
            self._held.difference_update(keys)

    def drop(self, keys: Sequence[str]) -> None:
        """Remove ids whose commit failed."""
        with self._lock:
            self._commit_ended(keys)
            for key in keys:
                self._seqs.pop(key, None)

    def committed(self, seq: int, keys: list[str], accounts: Iterable[str], record_count: int) -> None:
        """Note that *keys*, the same list as was added, are in outbox row *seq*."""
        with self._lock:
            self._commit_ended(keys)
            self._seqs.update(dict.fromkeys(keys, seq))
            self._keys_by_seq[seq] = keys
            self._count(seq, accounts, record_count, self._now_us())
            if seq in self._delivered_early:
                self._delivered_early.remove(seq)
                self._retired.append((self._tick, seq))
                self._forget_retired()
            elif len(self._seqs) > WHOLE_IDS_MAX:
                self._compact(WHOLE_IDS_MAX // 2)

    def restored(self, rows: Iterable[tuple[int, list[str], int, int]]) -> None:
        """
        Add the outbox rows that an earlier process left: number, ids, count of records and commit time of each.

        Called at start, in the order of the numbers, before anything is committed.
        """
        with self._lock:
            for seq, keys, record_count, committed_at_us in rows:
                self._keys_by_seq[seq] = keys
                accounts = {key.partition(SEPARATOR)[0] for key in keys}
                self._count(seq, accounts, record_count, committed_at_us)
            self._compact(0)

    def set_aside(self, keys: Iterable[str]) -> None:
        """Keep the ids *keys* taken: their records cannot be read, so that no store returns them."""
        with self._lock:
            self._set_aside.update(keys)

    def is_set_aside(self, key: str) -> bool:
        """Return whether *key* names an event that is counted and cannot be read."""
        return key in self._set_aside

    @property
    def is_full(self) -> bool:
        """Whether so many records wait that no new request may begin. Requests under way still add theirs."""
        return self.record_count > RECORDS_MAX

    def behind_s(self) -> int:
        """Return the seconds, rounded up, since the oldest record that is here was committed; 0 without any."""
        with self._lock:
            if not self._committed_at:
                return 0
            return max(1, -(-(self._now_us() - self._committed_at[0][1]) // US_PER_S))

    def _commit_ended(self, keys: Sequence[str]) -> None:
        self._committing_rows = [rows for rows in self._committing_rows if rows[0] is not keys]

    def _count(self, seq: int, accounts: Iterable[str], record_count: int, committed_at_us: int) -> None:
        self.record_count += record_count
        self.last_seq = max(self.last_seq, seq)
        for account_id in accounts:
            self._newest_seq_by_account[account_id] = seq
        marks = self._committed_at
        if self.record_count <= 0:
            marks.clear()
        elif not marks or committed_at_us >= marks[-1][1] + US_PER_S:
            # One mark a second is enough.
            marks.append((seq, committed_at_us))

    def _compact(self, whole_ids_max: int) -> None:
        """Keep the ids of the oldest rows as hashes, until at most *whole_ids_max* are here as text."""
        if self._id_hashes is None:
            from tollkeeper.ledger.id_hash_index import IdHashIndex

            self._id_hashes = IdHashIndex()
        moved: list[tuple[int, list[str]]] = []
        left = sum(map(len, self._keys_by_seq.values()))
        for seq, keys in self._keys_by_seq.items():
            if left <= whole_ids_max:
                break
            moved.append((seq, keys))
            left -= len(keys)
        self._id_hashes.add(moved)
        for seq, keys in moved:
            del self._keys_by_seq[seq]
            for key in keys:
                self._seqs.pop(key, None)

    def delivered(self, seqs: Mapping[int, int]) -> None:
        """Note that the outbox rows *seqs* (seq → record count) are in the usage store."""
        with self._lock:
            self._tick += 1
            for seq, record_count in seqs.items():
                if seq in self._keys_by_seq or (
                    self._id_hashes is not None and seq <= self._id_hashes.seq_max
                ):
                    self._retired.append((self._tick, seq))
                else:
                    # The relay was faster than the commit thread, which is about to call `committed`.
                    self._delivered_early.add(seq)
                self._delivered_seq = max(self._delivered_seq, seq)
                self.record_count -= record_count
            marks = self._committed_at
            while len(marks) > 1 and marks[1][0] <= self._delivered_seq + 1:
                marks.popleft()
            if self.record_count <= 0:
                marks.clear()
            self._forget_retired()

    def newest_seq(self, account_id: str | None) -> int:
        """Return the newest outbox row with events of an account (None: of any)."""
        with self._lock:
            if account_id is None:
                return max(self._newest_seq_by_account.values(), default=0)
            return self._newest_seq_by_account.get(account_id, 0)

    def waiting(self, records_max: int) -> list[int] | None:
        """Return the outbox rows that the usage store does not have; None: more records than that."""
        with self._lock:
            if self._id_hashes or self.record_count > records_max:
                return None
            return [seq for seq in self._keys_by_seq if seq > self._delivered_seq]

    def since(self, seq: int, records_max: int) -> list[int] | None:
        """Return the outbox rows after *seq*; None if some were delivered already, or more records wait."""
        waiting = self.waiting(records_max)
        # Read after `waiting`: a row that was delivered before that is not in it.
        if waiting is None or self._delivered_seq > seq:
            return None
        return [number for number in waiting if number > seq]

    @property
    def delivered_seq(self) -> int:
        return self._delivered_seq

    @contextmanager
    def looking_up(self) -> Iterator[None]:
        """Keep every id that is here now, or is added, until the block ends, which may be on another thread."""
        with self._lock:
            started = self._tick
            self._look_ups[started] = self._look_ups.get(started, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._look_ups[started] -= 1
                if not self._look_ups[started]:
                    del self._look_ups[started]
                self._forget_retired()

    def records(self, keys: Iterable[str]) -> dict[str, Record]:
        """Return the records of those *keys* that are here as events."""
        from tollkeeper.record_columns import records_of

        wanted = set(keys)
        found = {key_of(row.account_id, row.id): row for row in records_of(self.record_columns(wanted))}
        return {key: record for key, record in found.items() if key in wanted}

    def record_columns(self, keys: Iterable[str]) -> pa.Table:
        """
        Return the records of those *keys* that are here as events, as a table of `columns.SCHEMA`.

        It may have others of the same ids too, of other accounts.
        """
        import pyarrow as pa

        from tollkeeper.record_columns import table_of

        rows: list[Record] = []
        tables: list[pa.Table] = []
        places: list[tuple[str, int]] = []
        left: list[str] = []
        under_way: set[str] = set()
        with self._lock:
            for key in keys:
                seq = self._seqs.get(key)
                if seq is None:
                    left.append(key)
                elif seq == _COMMITTING:
                    under_way.add(key)
                else:
                    places.append((key, seq))
            committing = self._committing_rows if under_way else []
        for committing_keys, records in committing:
            found = [index for index, key in enumerate(committing_keys) if key in under_way]
            if isinstance(records, Sequence):
                rows.extend(records[index] for index in found)
            elif records is not None and found:
                tables.append(records.take(found))
        if self._id_hashes and left:
            places += self._id_hashes.find(left)
        return pa.concat_tables([table_of(rows), *tables, *self._read_back(places)])

    def _read_back(self, places: Sequence[tuple[str, int]]) -> Iterator[pa.Table]:
        """Yield the events of ids that lie in outbox rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        ids = pa.array({key.partition(SEPARATOR)[2] for key, _ in places}, pa.string())
        seqs = sorted({seq for _, seq in places})
        for start in range(0, len(seqs), _ROWS_READ):
            for table in self._read(seqs[start : start + _ROWS_READ]):
                # A correction has the id of its event too.
                is_event = pc.and_(pc.equal(table["revision"], 0), pc.greater(table["sign"], 0))
                yield table.filter(pc.and_(is_event, pc.is_in(table["id"], ids)))

    def owners(self, id_: str) -> list[str]:
        """Return the accounts that have an event of this id here."""
        ending = SEPARATOR + id_
        with self._lock:
            keys = {key for key in self._seqs if key.endswith(ending)}
            if self._id_hashes:
                keys.update(key_of(account_id, id_) for account_id in self._newest_seq_by_account)
        return sorted(set(self.record_columns(keys)["account_id"].to_pylist())) if keys else []

    def _forget_retired(self) -> None:
        oldest = min(self._look_ups, default=self._tick)
        kept = []
        for tick, seq in self._retired:
            if tick > oldest:
                kept.append((tick, seq))
                continue
            keys = self._keys_by_seq.pop(seq, None)
            if keys is not None:
                for key in keys:
                    self._seqs.pop(key, None)
            elif self._id_hashes is not None:
                self._id_hashes.drop_through(seq)
        self._retired = kept
        if not self._keys_by_seq and not self._id_hashes:
            self._newest_seq_by_account.clear()
