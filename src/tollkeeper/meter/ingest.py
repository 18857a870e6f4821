"""
Ingest: batches of meter events, from columns to the ledger, without an object per event.

A batch is resolved and priced (`meter.resolve`), compared with the ids that are known (`meter.dedupe`), summed per
counter (`meter.charges`) and handed to the committer as one piece. A bad event does not affect the others: it is
rejected by its place in the batch.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.errors import Unavailable
from tollkeeper.ledger.commit_tasks import Stale
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.labels import Labels
from tollkeeper.ledger.pending import TOO_MANY, Pending
from tollkeeper.meter.booking import book, wait_for_commits
from tollkeeper.meter.charges import charge_columns
from tollkeeper.meter.decode import Decoded
from tollkeeper.meter.dedupe import dedupe, keys_of
from tollkeeper.meter.rejections import REJECTIONS_SHOWN, Rejection
from tollkeeper.meter.resolve import resolve
from tollkeeper.ports import UsageStore

STALE_TRIES: Final = 20


class IngestResult(NamedTuple):
    """
    The result of a batch. `accepted + duplicates + rejected` is the number of its events.

    `rejections` are the first `REJECTIONS_SHOWN` of its rejected events, in order.

    A duplicate is an event whose id is known with the same body: it counted the first time, and only then.
    """

    accepted: int
    duplicates: int
    rejections: list[Rejection]
    rejected: int


class Ingest:
    """Takes decoded batches. Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(
        self,
        directory: Directory,
        store: UsageStore,
        pending: Pending,
        committer: Committer,
        clock: Clock,
        labels: Labels,
    ) -> None:
        self._directory = directory
        self._store = store
        self._pending = pending
        self._committer = committer
        self._clock = clock
        self._labels = labels
        self._counting = threading.Lock()
        self.accepted_count = self.duplicate_count = self.rejected_count = 0

    def take(self, decoded: Decoded, *, account_id: str | None = None) -> IngestResult:
        """
        Book a batch; when this returns, accepted events are durable.

        Args:
            account_id: Only events of this account are taken (a management key's); None takes all.

        Raises:
            Unavailable: A store failed, or too much waits already. Nothing of the batch was booked, or its
                outcome is unknown: the same batch again is safe, what was booked counts as duplicate.
        """
        result = self._take(decoded, account_id)
        with self._counting:
            self.accepted_count += result.accepted
            self.duplicate_count += result.duplicates
            self.rejected_count += result.rejected
        return result

    def _take(self, decoded: Decoded, account_id: str | None) -> IngestResult:
        if self._pending.is_full:
            raise Unavailable(TOO_MANY)
        for _ in range(STALE_TRIES):
            version = self._committer.scopes_version
            resolved = resolve(decoded, self._directory, self._clock.now_us(), account_id)
            rejections = decoded.rejections + resolved.rejections
            rejected = decoded.count - resolved.table.num_rows
            with self._pending.looking_up():
                fresh, duplicates, conflicts = dedupe(resolved, self._store, self._pending)
                if duplicates and self._pending.is_committing(keys_of(resolved.table)):
                    wait_for_commits(self._committer)
                    continue  # It may have failed: look again.
                # Each list has its first, so the first of all of them are among these.
                rejections = sorted(rejections + conflicts)[:REJECTIONS_SHOWN]
                rejected += resolved.table.num_rows - fresh.num_rows - duplicates
                if fresh.num_rows == 0:
                    return IngestResult(0, duplicates, rejections, rejected)
                # Last, so that repeats are compared and prices found by what was sent.
                fresh = self._labels.of_table(fresh)
                charges = charge_columns(fresh, self._directory)
                try:
                    book(
                        self._committer,
                        fresh,
                        keys_of(fresh),
                        charges.budgets,
                        version,
                        draws=charges.draws,
                    )
                except Stale:
                    continue  # An id of the batch was booked meanwhile, or a budget changed: look again.
            return IngestResult(fresh.num_rows, duplicates, rejections, rejected)
        raise Unavailable("The same ids keep coming in from elsewhere. Try again.")
