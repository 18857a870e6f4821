"""
The holds made over HTTP that are open, in memory: found by id, ended once, and expired when their time is up.

Each is in the ledger too, so that it survives a crash: see `stored_holds.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import EndedHold
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.requests import Outcome
from tollkeeper.errors import BadParameter, HoldEnded, Unavailable
from tollkeeper.gate.gate import Admission, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import EndHold
from tollkeeper.ledger.committer import Committer

HoldName = tuple[str, str]
"""`(account_id, hold_id)`."""


class OpenHolds:
    """The registry of open holds. Any thread may call."""

    def __init__(self, gate: Gate, committer: Committer, clock: Clock) -> None:
        self._gate = gate
        self._committer = committer
        self._now_us = clock.now_us
        self._lock = threading.Lock()
        self._open: dict[HoldName, tuple[Admission, CommitFuture]] = {}
        self._accounts_by_hold: dict[str, list[str]] = {}
        self._expiring: dict[int, set[HoldName]] = {}
        """The open holds by the second in which they expire."""
        self._at_expiry: dict[HoldName, Outcome] = {}
        """What is booked when they expire, of those that are not voided then."""
        self._denials: dict[HoldName, tuple[Denial, str]] = {}
        """Why those were refused what they were to have last, and with which model."""

    def __len__(self) -> int:
        return len(self._open)

    def get(self, account_id: str, hold_id: str) -> tuple[Admission, CommitFuture] | None:
        """Return an open hold of an account, with the future of the commit that makes it."""
        return self._open.get((account_id, hold_id))

    def find(self, hold_id: str, account_id: str | None) -> tuple[Admission, CommitFuture] | None:
        """
        Return an open hold, of whichever account when *account_id* is None.

        Raises:
            BadParameter: Several accounts have an open hold of this id.
        """
        if account_id is None:
            # A copy, as other threads change the list.
            owners = one_owner(tuple(self._accounts_by_hold.get(hold_id, ())))
            if not owners:
                return None
            (account_id,) = owners
        return self._open.get((account_id, hold_id))

    def add(self, admission: Admission, future: CommitFuture) -> None:
        """Take in an open hold, with the future of the commit that makes it."""
        at = (admission.account_id, admission.id)
        with self._lock:
            self._open[at] = (admission, future)
            self._expiring.setdefault(admission.expires_at_us // US_PER_S, set()).add(at)
            self._accounts_by_hold.setdefault(admission.id, []).append(admission.account_id)

    def postpone(self, admission: Admission, expires_at_us: int) -> None:
        """Let an open hold last until *expires_at_us*, unless it lasts longer already."""
        if expires_at_us > admission.expires_at_us:
            self.expire_at(admission, expires_at_us)

    def expire_at(self, admission: Admission, expires_at_us: int) -> None:
        """Let an open hold last until *expires_at_us*."""
        at = (admission.account_id, admission.id)
        with self._lock:
            if at in self._open:
                self._forget_expiry(at, admission)
                admission.expires_at_us = expires_at_us
                self._expiring.setdefault(expires_at_us // US_PER_S, set()).add(at)

    def settle_at_expiry(self, admission: Admission, outcome: Outcome) -> None:
        """Have an open hold settled with *outcome* when it expires; otherwise it is voided."""
        self._at_expiry[admission.account_id, admission.id] = outcome

    def at_expiry(self, admission: Admission) -> Outcome | None:
        """Return what is booked when an open hold expires; None voids it."""
        return self._at_expiry.get((admission.account_id, admission.id))

    def note_denial(self, admission: Admission, denial: Denial | None, model: str) -> None:
        """Note why an open hold was refused the amounts that it was to have last, or that it was not."""
        at = (admission.account_id, admission.id)
        if denial is None:
            self._denials.pop(at, None)
        else:
            self._denials[at] = denial, model

    def take_denial(self, admission: Admission) -> tuple[Denial, str] | None:
        """Return the denial that was noted, with its model, once."""
        return self._denials.pop((admission.account_id, admission.id), None)

    def _forget_expiry(self, at: HoldName, admission: Admission) -> None:
        second = admission.expires_at_us // US_PER_S
        of_second = self._expiring[second]
        of_second.remove(at)
        if not of_second:
            del self._expiring[second]

    def remove(self, admission: Admission) -> None:
        """Forget a hold that has ended."""
        at = (admission.account_id, admission.id)
        with self._lock:
            if self._open.pop(at, None) is not None:
                self._forget_expiry(at, admission)
            self._at_expiry.pop(at, None)
            self._denials.pop(at, None)
            owners = self._accounts_by_hold.get(admission.id)
            if owners is not None:
                if admission.account_id in owners:
                    owners.remove(admission.account_id)
                if not owners:
                    del self._accounts_by_hold[admission.id]

    def end(self, admission: Admission) -> None:
        """Release the amounts that a claimed admission holds, and forget it."""
        self._gate.void(admission)
        admission.state = "ended"
        self.remove(admission)

    def expire(
        self, settle: Callable[[Admission, Outcome], None], voided: Callable[[Admission], None]
    ) -> int:
        """
        End the holds whose time is up; return how many. Called every second or so.

        Args:
            settle: Books those that have an outcome for it. Raises HoldEnded for one that is being ended.
            voided: Called for each of the others, which are voided.
        """
        now_us = self._now_us()
        count = 0
        for at in self._expired(now_us):
            held = self._open.get(at)
            if held is not None and (outcome := self._at_expiry.get(at)) is not None:
                try:
                    settle(held[0], outcome)
                except HoldEnded:
                    continue
                count += 1
                continue
            if held is None or not self._gate.claim(held[0]):
                # Ended since, or being ended, which may yet fail to commit: then the next call finds it.
                continue
            admission = held[0]
            try:
                self._committer.submit(EndHold(EndedHold(*at, "expired", now_us), None))
            except Unavailable:
                admission.state = "open"
                raise
            voided(admission)
            self.end(admission)
            count += 1
        return count

    def _expired(self, now_us: int) -> list[HoldName]:
        with self._lock:
            return [
                at
                for second in sorted(second for second in self._expiring if second <= now_us // US_PER_S)
                for at in self._expiring[second]
                if self._open[at][0].expires_at_us <= now_us
            ]


def one_owner(accounts: Collection[str]) -> Collection[str]:
    """Return the account that has a hold of some id, if any; raise `BadParameter` when there are several."""
    if len(accounts) > 1:
        raise BadParameter("several accounts have a hold of this id: state the account", field="account")
    return accounts
