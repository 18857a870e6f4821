"""
What becomes of a request between its admission and its ending: other amounts held, or an ending that comes later.

Requests of this process and holds made over HTTP alike. A request whose usage is stated after its response gets a hold
in the ledger, if it has none, with the outcome that is booked when the hold expires. So it is booked once: with
its usage when that is stated in time, without it when the time is up, also after the process was stopped or killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import EndedHold
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.extensions import Extension
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import BadParameter, HoldEnded, Unavailable
from tollkeeper.gate.gate import HOLD_S_MAX, Admission, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import AmendHold, EndHold, OpenHold, Settle
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.open_holds import OpenHolds
from tollkeeper.ledger.stored_holds import keyless_caller_of, stored_hold_of

CHARGE_AT_COMMIT: Final = -1
"""No version of the budgets is -1, so the charges are made again when the task is committed."""

log = logging.getLogger("tollkeeper.holds")


class HoldChanges:
    """The use cases of a request under way. Any thread may call; a changed catalog is read first."""

    def __init__(
        self,
        gate: Gate,
        directory: Directory,
        committer: Committer,
        clock: Clock,
        open_holds: OpenHolds,
        record_denial: Callable[[Admission, Denial, str], None],
        *,
        hold_s: int,
    ) -> None:
        self._gate = gate
        self._directory = directory
        self._committer = committer
        self._now_us = clock.now_us
        self._open = open_holds
        self._record_denial = record_denial
        self.hold_s = hold_s

    # -- what it holds --------------------------------------------------------------------------------

    def expect(
        self, admission: Admission, expected: Usage, tags: Mapping[str, str] | None = None
    ) -> Denial | None:
        """
        Hold *expected* in place of what a request holds, or return why it is refused: nothing has changed then.

        Raises:
            HoldEnded: It was ended.
        """
        if self._gate.refusing is not None:
            return Denial("unavailable", self._gate.refusing, retry_after_s=1)
        return self._gate.reholds.replace(admission, expected, lambda: self._entitlement_of(admission), tags)

    def extend(self, admission: Admission, more: Usage, base: Usage | None = None) -> Extension:
        """
        Hold as much of *more* as fits in addition to *base*, which is what the request holds unless given.

        Raises:
            HoldEnded: It was ended.
        """
        if self._gate.refusing is not None:
            return Extension(denial=Denial("unavailable", self._gate.refusing, retry_after_s=1))
        return self._gate.reholds.extend(
            admission,
            admission.expected if base is None else base,
            more,
            lambda: self._entitlement_of(admission),
        )

    def _entitlement_of(self, admission: Admission) -> Entitlement | None:
        """Return what a request may do by now, as the catalog has it."""
        if admission.key_id:
            return self._directory.entitlement_of_id(admission.key_id)
        return self._directory.keyless_entitlement(keyless_caller_of(admission))

    def deny(self, admission: Admission, denial: Denial, model: str = "") -> None:
        """
        End a request of this process as refused: what it held is given back, and the denial is recorded.

        Args:
            model: That it asked for.
        """
        if self._gate.claim(admission):
            self._gate.void(admission)
            admission.state = "ended"
            self._record_denial(admission, denial, model)

    def expect_hold(
        self,
        admission: Admission,
        expected: Usage,
        tags: Mapping[str, str] | None,
        ttl_s: int | None,
        future: CommitFuture,
    ) -> Denial | None:
        """
        Do `expect` for a hold made over HTTP, which lasts at least *ttl_s* seconds from now: wait on *future* before
        answering. A denial that is the last word on the request is recorded when it is voided.
        """
        ttl_s = self._checked(ttl_s)
        denial = self.expect(admission, expected, tags)
        self._open.note_denial(admission, denial, expected.model)
        if denial is None:
            self._postpone(admission, ttl_s)
            self._amend(admission, future)
        return denial

    def extend_hold(
        self, admission: Admission, more: Usage, base: Usage, ttl_s: int | None, future: CommitFuture
    ) -> Extension:
        """Do `extend` for a hold made over HTTP, which lasts at least *ttl_s* seconds from now: wait on *future*."""
        ttl_s = self._checked(ttl_s)
        extension = self.extend(admission, more, base)
        self._postpone(admission, ttl_s)
        self._amend(admission, future)
        return extension

    # -- ending later ---------------------------------------------------------------------------------

    def settle_at_expiry(
        self, admission: Admission, outcome: Outcome, ttl_s: int | None, future: CommitFuture
    ) -> None:
        """
        Leave a request open for *ttl_s* seconds, then book *outcome*; `settle` before that books another one.

        It is in the ledger then, with its outcome: wait on *future*.

        Raises:
            BadParameter: *ttl_s* is out of range.
            HoldEnded: It was ended.
            Unavailable: Nothing more is booked; nothing has changed.
        """
        ttl_s = self._checked(ttl_s)
        if admission.state != "open":
            raise HoldEnded(f"Request {admission.id} has ended: nothing more is booked of it.")
        if admission.durable:
            self._open.expire_at(admission, self._now_us() + ttl_s * US_PER_S)
            self._open.settle_at_expiry(admission, outcome)
            self._amend(admission, future)
            return
        admission.durable = True
        admission.expires_at_us = self._now_us() + ttl_s * US_PER_S
        self._open.add(admission, future)
        self._open.settle_at_expiry(admission, outcome)

        def done(error: BaseException | None) -> None:
            """Nothing: the task is kept until the ledger has it, and the request stays open meanwhile."""

        try:
            self._committer.submit(OpenHold(stored_hold_of(admission, outcome), future, done, own=True))
        except Unavailable:
            self._open.remove(admission)
            admission.durable = False
            raise

    def settle_open(self, admission: Admission, outcome: Outcome) -> None:
        """
        Book a hold that is open in memory. It is kept until the ledger has it.

        Raises:
            HoldEnded: It was ended, or is being ended.
            Unavailable: Nothing more is booked; the hold is open again.
        """
        if not self._gate.claim(admission):
            raise HoldEnded(f"Request {admission.id} was booked before: its usage comes too late.")
        self.settle_claimed(admission, outcome)

    def settle_claimed(
        self, admission: Admission, outcome: Outcome, future: CommitFuture | None = None
    ) -> Record:
        """
        Book a hold that this call has claimed; return its record as it is stored. If that fails, it is open again.

        Args:
            future: Ends after the commit. Without one the booking is kept until the ledger has it.

        Raises:
            Unavailable: Nothing more is booked; the hold is open again.
        """
        version, now_us = self._committer.scopes_version, self._now_us()
        try:
            record, charges = self._gate.settle(admission, outcome, now_us)
        except BaseException:
            # A counter that it moves to could not be read: nothing has changed.
            admission.state = "open"
            raise

        def done(error: BaseException | None) -> None:
            if error is None:
                admission.state = "ended"
                self._open.remove(admission)
            else:
                self._gate.unsettle(admission, record)
                if isinstance(error, HoldEnded) and self._gate.claim(admission):
                    # It was never committed: its authorize failed in the same group.
                    self._open.end(admission)

        if not admission.compiled_key.current:
            version = CHARGE_AT_COMMIT
        ended = EndedHold(admission.account_id, admission.id, "settled", now_us)
        return self._committer.book(Settle(record, charges, version, future=future, ended=ended, done=done))

    def void_open(self, admission: Admission) -> None:
        """
        Void a hold that is open in memory. A repeat changes nothing.

        Raises:
            HoldEnded: It was settled.
        """
        if not self._gate.claim(admission):
            raise HoldEnded(f"Request {admission.id} was booked before: it cannot be voided any more.")
        self.void_claimed(admission)

    def void_claimed(self, admission: Admission) -> None:
        """
        Void a hold that this call has claimed, at once. The void is kept until the ledger has it.

        Raises:
            Unavailable: Nothing more is booked; the hold is open again.
        """
        ended = EndedHold(admission.account_id, admission.id, "voided", self._now_us())
        try:
            self._committer.submit(EndHold(ended, None))
        except Unavailable:
            admission.state = "open"
            raise
        self.voided(admission)
        self._open.end(admission)

    def expire(self, admission: Admission, outcome: Outcome) -> None:
        """Book the outcome of a request whose time is up."""
        self.settle_open(admission, outcome)
        log.warning(
            "tollkeeper.hold.settled_at_expiry",
            extra={"account": admission.account_id, "hold": admission.id, "error_type": outcome.error_type},
        )

    def voided(self, admission: Admission) -> None:
        """Record the denial that was the last word on a hold made over HTTP, if any. Called when it is voided."""
        denial = self._open.take_denial(admission)
        if denial is not None:
            self._record_denial(admission, *denial)

    def _checked(self, ttl_s: int | None) -> int:
        ttl_s = self.hold_s if ttl_s is None else ttl_s
        if not 1 <= ttl_s <= HOLD_S_MAX:
            raise BadParameter(f"ttl_s must be from 1 to {HOLD_S_MAX} seconds, not {ttl_s}", field="ttl_s")
        return ttl_s

    def _postpone(self, admission: Admission, ttl_s: int) -> None:
        self._open.postpone(admission, self._now_us() + ttl_s * US_PER_S)

    def _amend(self, admission: Admission, future: CommitFuture) -> None:
        at_expiry = self._open.at_expiry(admission)
        self._committer.submit(AmendHold(stored_hold_of(admission, at_expiry), future))
