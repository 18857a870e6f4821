"""
Usage reports: the one usage query, always as fresh as the last acknowledged event.

Read-your-writes: what is pending of the account goes along with the question, when it is little and nothing of
it is on its way; else the relay delivers it first, for which a report waits for at most `FLUSH_S`. An account with
nothing pending waits for nobody, and one without a new event since the same question gets the same answer
(`answers.py`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.clock import Clock
from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.ports import Ledger, UsageAnswer, UsageStore
from tollkeeper.services.answers import Answers
from tollkeeper.services.committer import Committer, Look
from tollkeeper.services.pending import Pending
from tollkeeper.services.relay import Relay, Unreadable, records_of_entry
from tollkeeper.services.tickets import Ticket

FLUSH_S: Final = 5.0
ALONG_MAX: Final = 200
"""Records that go along with a question: to insert one takes longer than to read so many."""
ALONG_TRIES: Final = 3
ALONG_S: Final = 0.25
"""How long a question waits for a batch that is on its way; what it brings later would take another one."""
WAITING_MAX: Final = 1_000
"""Records, of all accounts, that are looked through for them."""
ALONG_BYTES_MAX: Final = 100_000
"""Of the outbox rows that are looked through: the records travel as text."""


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
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._relay = relay
        self._pending = pending
        self._committer = committer
        self._clock = clock
        self._answers = Answers()
        committer.before_telling = self._answers.forget

    def forget_all(self) -> None:
        """Compute every answer anew: the usage store was rebuilt."""
        self._answers.forget_all()

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Answer *query*.

        Raises:
            Unavailable: The usage store cannot be read.
        """
        as_of_us = self._clock.now_us()
        booked = self._booked()
        if booked and not self._relay.set_aside_records:
            found = self._answers.find(query)
            if found is not None:
                return msgspec.structs.replace(found, as_of_us=as_of_us)
        token = self._answers.begin(query)
        try:
            report = self._computed(query, as_of_us, booked)
        except BaseException:
            self._answers.give_up(token, query)
            raise
        if report.complete:
            self._answers.keep(token, query, report)
        else:
            self._answers.give_up(token, query)
        return report

    def _computed(self, query: UsageQuery, as_of_us: int, booked: bool) -> UsageReport:
        if booked and (along := self._asked_along(query)) is not None:
            return _report(along, as_of_us, complete=not self._relay.set_aside_records, behind_s=0)
        delivered = booked and self._delivered(query.account_id)
        complete = delivered and not self._relay.set_aside_records
        # Before the question: what is delivered meanwhile makes the answer better than it says.
        behind_s = 0 if complete else self._pending.behind_s()
        return _report(self._store.report(query), as_of_us, complete=complete, behind_s=behind_s)

    def _asked_along(self, query: UsageQuery) -> UsageAnswer | None:
        """Ask with what the store does not have yet; None if that is nothing, or much, or on the move."""
        if self._pending.newest_seq(query.account_id) <= self._pending.delivered_seq:
            return None
        for _ in range(ALONG_TRIES):
            mark = self._relay.mark(ALONG_S)
            also = None if mark is None else self._waiting(query.account_id)
            if also is None:
                return None
            answer = self._store.report(query, also)
            # Had a batch been on its way meanwhile, the answer might have it twice, or not at all.
            if self._relay.mark() == mark:
                return answer
        return None

    def _waiting(self, account_id: str | None) -> list[Record] | None:
        """Return the records of an account that wait for the relay; None if they cannot go with a question."""
        seqs = self._pending.waiting(WAITING_MAX)
        if seqs is None:
            return None
        try:
            entries = self._ledger.entries(seqs).values()
        except Unavailable:
            # The usage store may be there all the same.
            return None
        if len(entries) < len(seqs):
            return None
        if sum(len(entry.payload) for entry in entries) > ALONG_BYTES_MAX:
            return None
        try:
            rows = [row for entry in entries for row in records_of_entry(entry)]
        except Unreadable:
            # The relay will set it aside.
            return None
        also = [row for row in rows if account_id in (None, row.account_id)]
        # What is amended may have been the longest or the last, which only the store can tell.
        return also if len(also) <= ALONG_MAX and all(row.sign == 1 for row in also) else None

    def fresh(self, account_id: str | None) -> bool:
        """Have the store take what is pending of an account (None: of all); return whether it did in time."""
        return self._booked() and self._delivered(account_id)

    def _booked(self) -> bool:
        """Wait for requests that were answered before their commit, refusals among them; False if in vain."""
        if self._committer.idle:
            return True
        ticket = Ticket()
        try:
            self._committer.submit(Look(lambda: None, ticket))
            ticket.wait(FLUSH_S)
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
