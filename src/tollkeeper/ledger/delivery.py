"""
Delivery on demand: the usage store gets all that is pending of an account, now instead of with the next batch.

A usage report that cannot take the pending records with it waits for this, and so does a correction, which must see the
event as it is.
"""

from __future__ import annotations

from typing import Final

from tollkeeper.errors import Unavailable
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import ReadBarrier
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.pending import Pending
from tollkeeper.ledger.relay import Relay

FLUSH_S: Final = 5.0
"""How long a caller waits for a commit, and then for a delivery."""


class Delivery:
    """Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(self, committer: Committer, pending: Pending, relay: Relay) -> None:
        self._committer = committer
        self._pending = pending
        self._relay = relay

    def fresh(self, account_id: str | None) -> bool:
        """Deliver what is pending of an account (None: of all); return whether the usage store took it in time."""
        return self.booked() and self.delivered(account_id)

    def booked(self) -> bool:
        """
        Wait for the commit of requests that were answered before it, refusals among them.

        Return False if it did not come in time, or the ledger cannot be written.
        """
        if self._committer.idle:
            return True
        future = CommitFuture()
        try:
            self._committer.submit(ReadBarrier(lambda: None, future))
            future.wait(FLUSH_S)
        except Unavailable:
            return False
        return True

    def delivered(self, account_id: str | None) -> bool:
        """Deliver what is committed of an account (None: of all); return whether the usage store took it in time."""
        return self._relay.flush(self._pending.newest_seq(account_id), FLUSH_S)
