"""
Holds that are not open any more: late settles and voids of expired ones, and repeats of those that ended.

An expired hold is settled late: its whole cost is booked, as overdraft. A repeat gets the first answer, from the
hold's event, which is among the pending records or in the usage store. Once that has expired, a repeat is told so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pyarrow as pa

from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import EndedHold, StoredHold
from tollkeeper.domain.events import Record
from tollkeeper.domain.meter import same_outcome
from tollkeeper.domain.requests import Outcome
from tollkeeper.errors import DetailExpired, HoldEnded, HoldUnknown, Unavailable
from tollkeeper.gate.gate import Charge, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import EndHold, Settle
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.expired import has_expired
from tollkeeper.ledger.open_holds import HoldName, OpenHolds, one_owner
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.ledger.stored_holds import StoredHolds
from tollkeeper.ports import Ledger, UsageStore


class Settled(NamedTuple):
    """The booking of a settle."""

    record: Record
    held_nanos: int
    replayed: bool = False

    @property
    def beyond_hold_nanos(self) -> int:
        """The amount settled beyond the hold: booked, and shown as overdraft."""
        return max(0, self.record.cost_nanos - self.held_nanos)


class OpenedMeanwhile(NamedTuple):
    """The hold was opened while ended ones were looked for: end the one of this account."""

    account_id: str


class EndedHolds:
    """Ends holds that are not open in memory. Blocking: it reads stores. Any thread may call."""

    def __init__(
        self,
        gate: Gate,
        ledger: Ledger,
        store: UsageStore,
        committer: Committer,
        pending: Pending,
        clock: Clock,
        open_holds: OpenHolds,
        stored_holds: StoredHolds,
        charges_of: Callable[[Record], list[Charge]],
    ) -> None:
        self._gate = gate
        self._ledger = ledger
        self._store = store
        self._committer = committer
        self._pending = pending
        self._now_us = clock.now_us
        self._open = open_holds
        self._stored = stored_holds
        self._charges_of = charges_of
        self._lock = threading.Lock()
        self._ending: set[HoldName] = set()

    def settle(
        self, hold_id: str, outcome: Outcome, future: CommitFuture, account_id: str | None
    ) -> tuple[Settled, CommitFuture | None] | OpenedMeanwhile:
        """
        Settle an expired hold late, or return the first answer of one that was settled with the same outcome.

        Raises:
            HoldUnknown: There never was such a hold, or not in this account.
            HoldEnded: It was voided, or settled with another outcome, or its id was used since.
            DetailExpired: It was settled, and its event has expired.
            Unavailable: Another call is ending it now.
        """
        for owner in self._owners(hold_id, account_id):
            found = self._settle_late(owner, hold_id, outcome, future)
            if found is not None:
                return found
            if self._open.get(owner, hold_id) is not None:
                return OpenedMeanwhile(owner)
            record = self._event(owner, hold_id)
            if record is not None:
                if not same_outcome(record, outcome):
                    raise HoldEnded(f"Hold {hold_id} was settled with another outcome: send a correction.")
                return Settled(record, record.estimated_cost_nanos, replayed=True), None
            self._refuse_expired(owner, hold_id)
        raise HoldUnknown(f"There is no hold {hold_id[:128]!r}.")

    def void(
        self, hold_id: str, future: CommitFuture, account_id: str | None
    ) -> tuple[str, CommitFuture | None] | OpenedMeanwhile:
        """
        Void an expired hold; return its account. A repeat is safe.

        Raises:
            HoldUnknown: There never was such a hold, or not in this account.
            HoldEnded: It was settled, or its id was used since.
            DetailExpired: It was settled, and its event has expired.
            Unavailable: Another call is ending it now.
        """
        for owner in self._owners(hold_id, account_id):
            found = self._void_late(owner, hold_id, future)
            if found is not None:
                return found
            if self._open.get(owner, hold_id) is not None:
                return OpenedMeanwhile(owner)
            if self._event(owner, hold_id) is not None:
                raise HoldEnded(f"Hold {hold_id} was settled: void its event with a correction.")
            self._refuse_expired(owner, hold_id)
        raise HoldUnknown(f"There is no hold {hold_id[:128]!r}.")

    def is_recorded(self, account_id: str, id_: str) -> bool:
        """Return whether an id names an event or a correction. Within `Pending.looking_up` it misses none."""
        if self._pending.is_recorded(key_of(account_id, id_)):
            return True
        pair = pa.table({"account_id": [account_id], "id": [id_]})
        known: int = self._store.known_ids(pair).num_rows
        return known > 0

    def _settle_late(
        self, account_id: str, hold_id: str, outcome: Outcome, future: CommitFuture
    ) -> tuple[Settled, CommitFuture] | None:
        """Book what an expired hold used; None when it was settled, is open, or never was."""
        with ExitStack() as until_committed:
            until_committed.enter_context(self._ending_one(account_id, hold_id))
            # As in `Holds.authorize`: the commit thread looks again, among the pending ones.
            until_committed.enter_context(self._pending.looking_up())
            stored = self._expired_or_voided(account_id, hold_id)
            if stored is None:
                return None
            if stored.state == "voided":
                raise HoldEnded(f"Hold {hold_id} was voided: it cannot be settled.")
            if self.is_recorded(account_id, hold_id):
                raise HoldEnded(
                    f"Hold {hold_id} has expired, and its id names an event or a correction by now."
                )
            admission = self._stored.admission_of(stored, hold=False)
            admission.state = "ended"
            version = self._committer.scopes_version
            now_us = self._now_us()
            record = self._gate.record_of(admission, outcome, now_us)
            charges = self._charges_of(record)
            # Nothing can fail from here to the commit, which may fail and take it back.
            self._gate.count_late(admission, record, now_us)
            commit_ends = until_committed.pop_all()

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._gate.void(admission)
            commit_ends.close()

        ended = EndedHold(account_id, hold_id, "settled", now_us)
        booked = self._committer.book(
            Settle(record, charges, version, counted=False, future=future, ended=ended, late=True, done=done)
        )
        return Settled(booked, 0), future

    def _void_late(
        self, account_id: str, hold_id: str, future: CommitFuture
    ) -> tuple[str, CommitFuture | None] | None:
        """Mark an expired hold as voided; None when it was settled, is open, or never was."""
        with ExitStack() as until_committed:
            until_committed.enter_context(self._ending_one(account_id, hold_id))
            stored = self._expired_or_voided(account_id, hold_id)
            if stored is None:
                return None
            if stored.state == "voided":
                return account_id, None
            if self.is_recorded(account_id, hold_id):
                raise HoldEnded(
                    f"Hold {hold_id} has expired, and its id names an event or a correction: void that one."
                )
            commit_ends = until_committed.pop_all()

        def done(error: BaseException | None) -> None:
            commit_ends.close()

        ended = EndedHold(account_id, hold_id, "voided", self._now_us())
        self._committer.submit(EndHold(ended, future, done))
        return account_id, future

    @contextmanager
    def _ending_one(self, account_id: str, hold_id: str) -> Iterator[None]:
        """Let one caller end an expired hold, until its commit; refuse any other meanwhile."""
        at = (account_id, hold_id)
        with self._lock:
            if at in self._ending:
                raise Unavailable(
                    f"Hold {hold_id} is being ended by another call: ask again for its outcome."
                )
            self._ending.add(at)
        try:
            yield
        finally:
            with self._lock:
                self._ending.discard(at)

    def _expired_or_voided(self, account_id: str, hold_id: str) -> StoredHold | None:
        """
        Return a hold that ended otherwise than by a settle. Called in `_ending_one`.

        One of state `open` has expired, which is about to be committed.
        """
        stored = self._ledger.hold(account_id, hold_id)
        if stored is None or stored.state != "open":
            return stored
        if self._open.get(account_id, hold_id) is not None:
            return None
        # Read again: it may have been opened and ended since the caller looked, and its end is committed by now.
        return self._ledger.hold(account_id, hold_id)

    def _owners(self, hold_id: str, account_id: str | None) -> Collection[str]:
        if account_id is not None:
            return [account_id]
        owners = self._ledger.hold_owners(hold_id)
        if not owners:
            # In this order, since what is no longer pending is in the store.
            owners = sorted({*self._pending.owners(hold_id), *self._store.owners(hold_id)})
        return one_owner(owners)

    def _refuse_expired(self, account_id: str, hold_id: str) -> None:
        if has_expired(self._store, account_id, hold_id):
            raise DetailExpired(
                f"Hold {hold_id[:128]} was settled, and its event has expired: it stays in all totals. Do not settle "
                "or void it again; post an adjustment to change what was charged."
            )

    def _event(self, account_id: str, id_: str) -> Record | None:
        key = key_of(account_id, id_)
        # In this order, since what is no longer pending is in the store.
        found = self._pending.records([key]).get(key)
        return found or self._store.records([(account_id, id_)]).get((account_id, id_))
