"""
Usage reports: the one usage query, always as fresh as the last acknowledged event.

Read-your-writes: before it asks the store, a report has the relay deliver what is pending of the account,
for at most `FLUSH_S`. An account with nothing pending waits for nobody, and one without a new event since the
same question gets the same answer (`answers.py`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.clock import Clock
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.ports import UsageStore
from tollkeeper.services.answers import Answers
from tollkeeper.services.committer import Committer, Look
from tollkeeper.services.pending import Pending
from tollkeeper.services.relay import Relay
from tollkeeper.services.tickets import Ticket

FLUSH_S: Final = 5.0


class Reports:
    """Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(
        self, store: UsageStore, relay: Relay, pending: Pending, committer: Committer, clock: Clock
    ) -> None:
        self._store = store
        self._relay = relay
        self._pending = pending
        self._committer = committer
        self._clock = clock
        self._answers = Answers()
        committer.before_telling = self._answers.forget

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
        delivered = booked and self._delivered(query.account_id)
        complete = delivered and not self._relay.set_aside_records
        # Before the question: what is delivered meanwhile makes the answer better than it says.
        behind_s = 0 if complete else self._pending.behind_s()
        answer = self._store.report(query)
        return UsageReport(
            rows=answer.rows,
            totals=answer.totals,
            row_count=answer.row_count,
            as_of_us=as_of_us,
            complete=complete,
            behind_s=behind_s,
        )

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
