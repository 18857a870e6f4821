"""
Usage reports: the one usage query, always as fresh as the last acknowledged event.

Read-your-writes: what is pending of the account goes along with the question, when it is little and nothing of
it is on its way; else the relay delivers it first, for which a report waits for at most `FLUSH_S`. An account with
nothing pending waits for nobody. Whoever asks the same again gets the same answer (`answers.py`), and if there are
new events, that answer with them, without asking the usage store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple

import msgspec

from tollkeeper.callers import CALLER
from tollkeeper.clock import Clock
from tollkeeper.domain.events import Record
from tollkeeper.domain.increments import apply_increment
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import ReadBarrier
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.pending import Pending
from tollkeeper.ledger.relay import LITTLE_RECORDS, Relay, Unreadable, records_of_entry
from tollkeeper.ports import Ledger, UsageAnswer, UsageStore
from tollkeeper.usage.query_turns import QueryTurns
from tollkeeper.usage.report_cache import CachedReport, ReportCache

FLUSH_S: Final = 5.0
ALONG_TRIES: Final = 3
ALONG_S: Final = 0.25
"""How long a question waits for a batch that is on its way; what it brings later would take another one."""
WAITING_MAX: Final = 1_000
"""Records, of all accounts, that are looked through for them."""
ALONG_BYTES_MAX: Final = 100_000
"""Of the outbox rows that are looked through: the records travel as text."""


class _Read(NamedTuple):
    """An outbox row that was read: the bytes of its payload, and its records."""

    size: int
    records: list[Record]


class Reports:
    """Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(
        self,
        store: UsageStore,
        ledger: Ledger,
        relay: Relay,
        pending: Pending,
        committer: Committer,
        clock: Clock,
        store_is_complete: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store_is_complete = store_is_complete
        self._store = store
        self._ledger = ledger
        self._relay = relay
        self._pending = pending
        self._committer = committer
        self._clock = clock
        self._cache = ReportCache()
        self._turns = QueryTurns()
        self._read: dict[int, _Read] = {}
        """By number, the outbox rows that the last question looked through: the next one needs some of them."""

    def events_added(self, accounts: set[str], after_seq: int) -> None:
        """Note that *accounts* have new events, in outbox rows after *after_seq*: see `CommitListener`."""
        self._cache.invalidate(accounts, after_seq)

    def invalidate_all(self) -> None:
        """Compute every answer anew: the usage store was rebuilt."""
        self._cache.invalidate_all()

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Answer *query*.

        Raises:
            Unavailable: The usage store cannot be read.
            QueryTooLarge: It has more groups, or takes more memory, than a query may.
            TooManyQueries: Others of the same account are under way (`callers.CALLER`).
        """
        as_of_us = self._clock.now_us()
        booked = self._booked()
        kept = self._cache.find(query) if booked and self._lacks_nothing() else None
        if kept is not None and kept.holds:
            return msgspec.structs.replace(kept.report, as_of_us=as_of_us)
        token = self._cache.begin(query)
        try:
            last_seq = self._pending.last_seq
            report = self._apply_increment(query, kept, as_of_us) if kept is not None else None
            if report is None:
                with self._turn(query):
                    report = self._computed(query, as_of_us, booked)
        except BaseException:
            self._cache.abandon(token, query)
            raise
        if report.complete and self._pending.newest_seq(query.account_id) <= last_seq:
            self._cache.keep(token, query, report, last_seq)
        else:
            self._cache.abandon(token, query)
        return report

    def _turn(self, query: UsageQuery) -> AbstractContextManager[None]:
        """Return the turn of the account that asks; of the one that is asked about, while nobody knows the other."""
        caller = CALLER.get()
        if caller is None:
            return nullcontext()
        if caller.is_operator:
            return self._turns.taken(None)
        return self._turns.taken(caller.account_id or query.account_id)

    def _apply_increment(self, query: UsageQuery, kept: CachedReport, as_of_us: int) -> UsageReport | None:
        """Return an earlier answer with what was committed since, or None if that takes the usage store."""
        seqs = self._pending.since(kept.seq, WAITING_MAX)
        records = None if seqs is None else self._records(seqs)
        report = None if records is None else apply_increment(query, kept.report, records)
        return None if report is None else msgspec.structs.replace(report, as_of_us=as_of_us)

    def _computed(self, query: UsageQuery, as_of_us: int, booked: bool) -> UsageReport:
        if booked and (along := self._with_pending(query)) is not None:
            return _report(along, as_of_us, complete=self._lacks_nothing(), behind_s=0)
        delivered = booked and self._delivered(query.account_id)
        complete = delivered and self._lacks_nothing()
        # Before the question: what is delivered meanwhile makes the answer better than it says.
        behind_s = 0 if complete else self._pending.behind_s()
        return _report(self._store.report(query), as_of_us, complete=complete, behind_s=behind_s)

    def _lacks_nothing(self) -> bool:
        """Return whether all that was ever acknowledged is on its way or in the store."""
        return not self._relay.set_aside_records and self._store_is_complete()

    def _with_pending(self, query: UsageQuery) -> UsageAnswer | None:
        """Ask with what the store does not have yet; None if that is nothing, or much, or on the move."""
        if self._pending.newest_seq(query.account_id) <= self._pending.delivered_seq:
            return None
        for _ in range(ALONG_TRIES):
            mark = self._relay.mark(ALONG_S)
            with_pending = None if mark is None else self._waiting(query.account_id)
            if with_pending is None:
                return None
            answer = self._store.report(query, with_pending)
            # Had a batch been on its way meanwhile, the answer might have it twice, or not at all.
            if self._relay.mark() == mark:
                return answer
        return None

    def _waiting(self, account_id: str | None) -> list[Record] | None:
        """Return the records of an account that wait for the relay; None if they cannot go with a question."""
        seqs = self._pending.waiting(WAITING_MAX)
        records = None if seqs is None else self._records(seqs)
        if records is None:
            return None
        with_pending = [record for record in records if account_id in (None, record.account_id)]
        # What is amended may have been the longest or the last, which only the store can tell.
        return (
            with_pending
            if len(with_pending) <= LITTLE_RECORDS and all(record.sign == 1 for record in with_pending)
            else None
        )

    def _records(self, seqs: Sequence[int]) -> list[Record] | None:
        """Return the records of outbox rows; None if they are large, or not all there."""
        known = self._read
        try:
            missing = [seq for seq in seqs if seq not in known]
            entries = self._ledger.outbox.entries(missing) if missing else {}
            read = {seq: _Read(len(entry.payload), records_of_entry(entry)) for seq, entry in entries.items()}
        except (Unavailable, Unreadable):
            # The usage store may be there all the same; what is unreadable the relay will set aside.
            return None
        rows = {seq: found for seq in seqs if (found := known.get(seq) or read.get(seq)) is not None}
        self._read = rows
        if len(rows) < len(seqs) or sum(row.size for row in rows.values()) > ALONG_BYTES_MAX:
            return None
        return [record for row in rows.values() for record in row.records]

    def fresh(self, account_id: str | None) -> bool:
        """Have the store take what is pending of an account (None: of all); return whether it did in time."""
        return self._booked() and self._delivered(account_id)

    def _booked(self) -> bool:
        """Wait for requests that were answered before their commit, refusals among them; False if in vain."""
        if self._committer.idle:
            return True
        future = CommitFuture()
        try:
            self._committer.submit(ReadBarrier(lambda: None, future))
            future.wait(FLUSH_S)
        except Unavailable:
            return False
        return True

    def _delivered(self, account_id: str | None) -> bool:
        return self._relay.flush(self._pending.newest_seq(account_id), FLUSH_S)


def _report(answer: UsageAnswer, as_of_us: int, *, complete: bool, behind_s: int) -> UsageReport:
    return UsageReport(
        rows=answer.rows,
        totals=answer.totals,
        row_count=answer.row_count,
        as_of_us=as_of_us,
        complete=complete,
        behind_s=behind_s,
    )
