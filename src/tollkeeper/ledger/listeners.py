"""
The listeners of commits and deliveries, one object per publisher, given at its construction.

The methods run on the thread that commits or delivers, so they must be quick, and must not wait for a commit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

from tollkeeper.domain.bookings import CounterAt
from tollkeeper.ledger.commit_tasks import ChangeScopes


class CommitListener(Protocol):
    """Hears of each group that the ledger has, on the commit thread, in the order of the methods."""

    def events_added(self, accounts: set[str], after_seq: int) -> None:
        """*accounts* have new events, in outbox rows after *after_seq*. No caller has its answer yet."""

    def scopes_changed(self, change: ChangeScopes) -> None:
        """
        The ledger has a change of budgets; `Committer.scopes_version` does not say so yet.

        A reader of the new version must not find the old budgets cached, so this must remove them.
        """

    def charged(self, counters: Collection[CounterAt]) -> None:
        """A group charged *counters*."""

    def committed(self) -> None:
        """A group is committed, and its callers have their answers. Called after `charged`."""

    def keys_used(self, last_used_at_us: Mapping[str, int]) -> None:
        """Keys were used: key id to microseconds since the epoch."""


class DeliveryListener(Protocol):
    """Hears of each batch that the usage store took, on the thread that delivered it."""

    def delivered(self) -> None:
        """A batch was delivered. Callers that wait for the delivery still wait."""

    def large_batch_delivered(self) -> None:
        """A batch that took much memory was delivered, and callers that waited for it go on."""


class _NoListener:
    def delivered(self) -> None:
        """Do nothing."""

    def large_batch_delivered(self) -> None:
        """Do nothing."""


NO_LISTENER: Final[DeliveryListener] = _NoListener()
"""For a relay whose deliveries nothing depends on."""
