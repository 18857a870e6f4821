"""
The records that are committed but not yet in the usage store: which ids they have, and whose they are.

An id is known when it is here or in the usage store. A look-up asks the store first and then this index;
so that an id cannot slip through between the two, ids that were delivered stay here until every look-up
that was under way has ended (`looking_up`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tollkeeper.domain.events import Record

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR: Final = "\x00"


def key_of(account_id: str, id_: str) -> str:
    """Return the one string that names an event of an account; `SEPARATOR` is in neither part."""
    return f"{account_id}{SEPARATOR}{id_}"


class Pending:
    """
    Ids of committed records that the usage store may not have yet, and of holds. Any thread may call.

    The id of an open hold is taken too: settling the hold makes the event of that id.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, tuple[object, int]] = {}
        self._held: set[str] = set()
        self._keys_by_seq: dict[int, list[str]] = {}
        self._newest_seq_by_account: dict[str, int] = {}
        self._delivered_seq = 0
        self._tick = 0
        self._look_ups: dict[int, int] = {}
        self._retired: list[tuple[int, int]] = []
        self._delivered_early: set[int] = set()
        self.record_count = 0

    def disjoint(self, keys: Sequence[str]) -> bool:
        """Return whether none of *keys* is here."""
        return self._places.keys().isdisjoint(keys) and self._held.isdisjoint(keys)

    def add(self, keys: Sequence[str], holder: object | None) -> None:
        """
        Take in ids that are about to be committed.

        Args:
            holder: A table or list with the record of `keys[i]` in place i; None for ids of corrections.
        """
        with self._lock:
            self._places.update((key, (holder, index)) for index, key in enumerate(keys))

    def hold(self, keys: Iterable[str]) -> None:
        """Take in the ids of open holds."""
        with self._lock:
            self._held.update(keys)

    def release(self, keys: Iterable[str]) -> None:
        """Give back the ids of holds that ended."""
        with self._lock:
            self._held.difference_update(keys)

    def drop(self, keys: Iterable[str]) -> None:
        """Take ids back whose commit failed."""
        with self._lock:
            for key in keys:
                self._places.pop(key, None)

    def committed(self, seq: int, keys: list[str], accounts: Iterable[str], record_count: int) -> None:
        """Learn that *keys* lie in the outbox under *seq*."""
        with self._lock:
            self._keys_by_seq[seq] = keys
            self.record_count += record_count
            for account_id in accounts:
                self._newest_seq_by_account[account_id] = seq
            if seq in self._delivered_early:
                self._delivered_early.remove(seq)
                self._retired.append((self._tick, seq))
                self._forget_retired()

    def delivered(self, seqs: Mapping[int, int]) -> None:
        """Learn that the outbox rows *seqs* (seq → record count) are in the usage store."""
        with self._lock:
            self._tick += 1
            for seq, record_count in seqs.items():
                if seq in self._keys_by_seq:
                    self._retired.append((self._tick, seq))
                else:
                    # The relay was faster than the commit thread, which is about to call `committed`.
                    self._delivered_early.add(seq)
                self._delivered_seq = max(self._delivered_seq, seq)
                self.record_count -= record_count
            self._forget_retired()

    def newest_seq(self, account_id: str | None) -> int:
        """Return the outbox row up to which the usage store must be for an account (None: all)."""
        with self._lock:
            if account_id is None:
                return max(self._newest_seq_by_account.values(), default=0)
            return self._newest_seq_by_account.get(account_id, 0)

    @property
    def delivered_seq(self) -> int:
        return self._delivered_seq

    @contextmanager
    def looking_up(self) -> Iterator[None]:
        """Keep every id that is here now, or comes, until the block ends."""
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
        from tollkeeper.columns import records_of

        found: dict[str, Record] = {}
        by_table: dict[int, tuple[pa.Table, list[str], list[int]]] = {}
        with self._lock:
            places = [(key, self._places[key]) for key in keys if key in self._places]
        for key, (holder, index) in places:
            if holder is None:
                continue
            if isinstance(holder, list):
                found[key] = holder[index]
            else:
                table, table_keys, rows = by_table.setdefault(id(holder), (holder, [], []))
                table_keys.append(key)
                rows.append(index)
        for table, table_keys, rows in by_table.values():
            found.update(zip(table_keys, records_of(table.take(rows)), strict=True))
        return found

    def owners(self, id_: str) -> list[str]:
        """Return the accounts that have an event of this id here."""
        ending = SEPARATOR + id_
        with self._lock:
            return [
                key[: -len(ending)]
                for key, (holder, _) in self._places.items()
                if holder is not None and key.endswith(ending)
            ]

    def _forget_retired(self) -> None:
        oldest = min(self._look_ups, default=self._tick)
        kept = []
        for tick, seq in self._retired:
            if tick > oldest:
                kept.append((tick, seq))
                continue
            for key in self._keys_by_seq.pop(seq, ()):
                self._places.pop(key, None)
        self._retired = kept
        if not self._keys_by_seq:
            self._newest_seq_by_account.clear()
