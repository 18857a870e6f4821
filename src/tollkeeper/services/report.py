"""
Usage reports: the one usage query, always as fresh as the last acknowledged event.

Read-your-writes: before it asks the store, a report has the relay deliver what is pending of the account,
for at most `FLUSH_S`. An account with nothing pending waits for nobody.
"""

from __future__ import annotations

from typing import Final

from tollkeeper.clock import Clock
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.ports import UsageStore
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

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Answer *query*.

        Raises:
            Unavailable: The usage store cannot be read.
        """
        as_of_us = self._clock.now_us()
        complete = self.fresh(query.account_id) and not self._relay.set_aside_records
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
        if not self._committer.idle:
            # Requests that were answered without waiting for their commit, refusals among them.
            ticket = Ticket()
            try:
                self._committer.submit(Look(lambda: None, ticket))
                ticket.wait(FLUSH_S)
            except Unavailable:
                return False
        return self._relay.flush(self._pending.newest_seq(account_id), FLUSH_S)
