"""
The pending events of a report: those that were acknowledged and may not be in the usage store yet.

`report.py` decides which of them a report needs, and how it gets them; its table has the cases.

An event is acknowledged at its commit and delivered by the relay later. In between it is *pending*: its record lies
in a row of the outbox. The relay's mark stays the same for as long as the usage store has exactly what was delivered;
a report that has pending records beside the store's is right only if the mark is the same before and after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tollkeeper.domain.events import Record
from tollkeeper.errors import Unavailable
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ledger.pending import Pending
from tollkeeper.ledger.relay import LITTLE_RECORDS, Relay, Unreadable, records_of_entry
from tollkeeper.ports import OutboxReader

BATCH_WAIT_S: Final = 0.25
"""How long a report waits for a batch that is on its way; events that come later would need another batch."""
WAITING_MAX: Final = 1_000
"""Pending records, of all accounts, that are looked through for those of one."""
PAYLOAD_BYTES_MAX: Final = 100_000
"""Bytes of the outbox rows that are looked through: the records travel as text."""


class PendingRecords(NamedTuple):
    """Records that the usage store does not have, as of a mark of the relay."""

    records: list[Record]
    mark: int


class _ReadRow(NamedTuple):
    """An outbox row that was read: the bytes of its payload, and its records."""

    size: int
    records: list[Record]


class Freshness:
    """Any thread may call."""

    def __init__(
        self,
        outbox: OutboxReader,
        relay: Relay,
        pending: Pending,
        pairing: Pairing,
    ) -> None:
        self._outbox = outbox
        self._relay = relay
        self._pending = pending
        self._pairing = pairing
        self._read: dict[int, _ReadRow] = {}
        """By number, the outbox rows that the last report looked through: the next one needs some of them."""

    def lacks_nothing(self) -> bool:
        """Return whether every event that was ever acknowledged is pending and readable, or in the usage store."""
        return not self._relay.set_aside_records and self._pairing.is_complete

    def behind_s(self) -> int:
        """Return the seconds, rounded up, since the oldest pending event was acknowledged; 0 without any."""
        return self._pending.behind_s()

    @property
    def last_seq(self) -> int:
        """The newest outbox row."""
        return self._pending.last_seq

    def is_as_of(self, account_id: str | None, seq: int) -> bool:
        """Return whether the account (None: any) has no outbox row after *seq*."""
        return self._pending.newest_seq(account_id) <= seq

    def is_pending(self, account_id: str | None) -> bool:
        """Return whether the account (None: any) has outbox rows that are not delivered."""
        return self._pending.newest_seq(account_id) > self._pending.delivered_seq

    def committed_since(self, seq: int) -> list[Record] | None:
        """Return the records of all outbox rows after *seq*; None if some were delivered already, or they are many."""
        seqs = self._pending.since(seq, WAITING_MAX)
        return None if seqs is None else self._records(seqs)

    def pending_records(self, account_id: str | None) -> PendingRecords | None:
        """
        Return what is pending of an account (None: of all).

        None if it cannot travel with a query: it is many records, or has corrections, or a batch is on its way for
        longer than `BATCH_WAIT_S`.
        """
        mark = self._relay.mark(BATCH_WAIT_S)
        seqs = None if mark is None else self._pending.waiting(WAITING_MAX)
        records = None if seqs is None else self._records(seqs)
        if mark is None or records is None:
            return None
        of_account = [record for record in records if account_id in (None, record.account_id)]
        # An amended event may have had the longest latency or the last time, which only the store can correct.
        if len(of_account) > LITTLE_RECORDS or any(record.sign != 1 for record in of_account):
            return None
        return PendingRecords(of_account, mark)

    def still_pending(self, found: PendingRecords) -> bool:
        """Return whether no batch moved since: a report with it would have some records twice, or not at all."""
        return self._relay.mark() == found.mark

    def _records(self, seqs: Sequence[int]) -> list[Record] | None:
        """Return the records of outbox rows; None if they are large, or not all there."""
        known = self._read
        try:
            missing = [seq for seq in seqs if seq not in known]
            entries = self._outbox.entries(missing) if missing else {}
            read = {
                seq: _ReadRow(len(entry.payload), records_of_entry(entry)) for seq, entry in entries.items()
            }
        except (Unavailable, Unreadable):
            # The usage store may be there all the same; the relay will set unreadable rows aside.
            return None
        rows = {seq: found for seq in seqs if (found := known.get(seq) or read.get(seq)) is not None}
        self._read = rows
        if len(rows) < len(seqs) or sum(row.size for row in rows.values()) > PAYLOAD_BYTES_MAX:
            return None
        return [record for row in rows.values() for record in row.records]
