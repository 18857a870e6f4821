"""
Authorize, settle, void: requests from admission to their one ending.

There are two ways. In process, `admit` keeps its hold in memory and `settle` queues the record for the next group
commit. Over HTTP a hold is committed before the answer and every ending too, so both survive a crash; a
retry of any of the three calls gets the first answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import EndedHold
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.keyless import Caller
from tollkeeper.domain.matching import NO_TAGS
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.errors import BadParameter, HoldEnded, HoldUnknown, IdempotencyConflict, Unavailable
from tollkeeper.gate.gate import HOLD_S_MAX, Admission, CompiledKey, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import EndHold, OpenHold, Settle
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.ended_holds import EndedHolds, OpenedMeanwhile, Settled
from tollkeeper.ledger.hold_changes import CHARGE_AT_COMMIT, HoldChanges
from tollkeeper.ledger.open_holds import HoldName, OpenHolds
from tollkeeper.ledger.pending import Pending
from tollkeeper.ledger.stored_holds import StoredHolds, restore_open_holds, stored_hold_of
from tollkeeper.ports import Ledger, UsageStore

DENIALS_QUEUED_MAX: Final = 50_000
"""Denied requests that may wait to be recorded; past that they are only counted in the metrics."""


class Holds:
    """The use cases of one request. Any thread or event loop may call."""

    def __init__(
        self,
        gate: Gate,
        directory: Directory,
        ledger: Ledger,
        store: UsageStore,
        committer: Committer,
        pending: Pending,
        clock: Clock,
        *,
        hold_s: int,
    ) -> None:
        self._gate = gate
        self._ledger = ledger
        self._committer = committer
        self._pending = pending
        self._clock = clock
        self._now_us = clock.now_us
        self._hold_s = hold_s
        self._open = OpenHolds(gate, committer, clock)
        self._stored = StoredHolds(gate, directory)
        self._ended = EndedHolds(
            gate,
            ledger,
            store,
            committer,
            pending,
            clock,
            self._open,
            self._stored,
            directory.charges_of,
        )
        self.changes = HoldChanges(
            gate, directory, committer, clock, self._open, self._record_denial_of, hold_s=hold_s
        )
        """What becomes of a request between its admission and its ending."""
        self._lock = threading.Lock()
        self._opened = threading.Condition(self._lock)
        self._opening: set[HoldName] = set()
        self.denied_unrecorded = 0
        self.denied_count_by_reason: dict[str, int] = {}

    # -- in process -----------------------------------------------------------------------------------

    def admit(
        self,
        caller: Caller,
        method: str,
        path: str,
        expected: Usage = NO_USAGE,
        tags: Mapping[str, str] = NO_TAGS,
    ) -> Admission | Denial:
        """Decide one request of this process. Settle or void the admission; dropped, it is voided."""
        found = self._gate.admit(caller, method, path, expected, tags=tags)
        if isinstance(found, Denial):
            self.record_denial(caller, method, path, found, expected.model)
        return found

    def settle(self, admission: Admission, outcome: Outcome, future: CommitFuture | None = None) -> Record:
        """
        End an admission of this process with what it used. With a *future*, wait on it for durability.

        The record has the labels as they were sent; those beyond the account's bound are stored as `other`.

        Raises:
            HoldEnded: It was ended before.
            Unavailable: Nothing more is booked; the admission is open again.
        """
        # Read first: a compiled key that is still current after it has the budgets of this version.
        version = self._committer.scopes_version
        finished = self._gate.finish(admission, outcome, self._now_us())
        if finished is None:
            raise HoldEnded(f"Request {admission.id} was ended before: settle or void once.")
        record, charges = finished
        try:
            if not admission.compiled_key.current:
                version = CHARGE_AT_COMMIT
            self._committer.submit(Settle(record, charges, version, future=future))
        except Unavailable:
            self._gate.unsettle(admission, record)
            raise
        return record

    def void(self, admission: Admission) -> None:
        """End an admission of this process as if it never was. A repeat changes nothing."""
        if self._gate.claim(admission):
            self._gate.void(admission)
            admission.state = "ended"

    def record_denial(self, caller: Caller, method: str, path: str, denial: Denial, model: str = "") -> None:
        """Count a refused request in the metrics, and record it when its key is known."""
        with self._lock:
            counts = self.denied_count_by_reason
            counts[denial.reason] = counts.get(denial.reason, 0) + 1
        if denial.status in (401, 503):
            return
        compiled_key = self._gate.compiled_key(caller)
        if not isinstance(compiled_key, Denial):
            self._record_denied(compiled_key, method, path, denial, model)

    def _record_denial_of(self, admission: Admission, denial: Denial, model: str) -> None:
        """Do `record_denial` for a request that was admitted, and refused what it asked for afterwards."""
        with self._lock:
            counts = self.denied_count_by_reason
            counts[denial.reason] = counts.get(denial.reason, 0) + 1
        if denial.status not in (401, 503):
            key, model = admission.compiled_key, model or admission.expected.model
            self._record_denied(key, admission.method, admission.path, denial, model)

    def _record_denied(
        self, compiled_key: CompiledKey, method: str, path: str, denial: Denial, model: str
    ) -> None:
        if self._committer.queued > DENIALS_QUEUED_MAX:
            self.denied_unrecorded += 1
            return
        now_us = self._now_us()
        record = self._gate.denied_record(compiled_key, method, path, denial, now_us, model)
        self._committer.book(Settle(record, [], self._committer.scopes_version, counted=False))

    # -- over HTTP ------------------------------------------------------------------------------------

    def authorize(
        self,
        caller: Caller,
        method: str,
        path: str,
        expected: Usage,
        future: CommitFuture,
        *,
        hold_id: str | None = None,
        ttl_s: int | None = None,
        tags: Mapping[str, str] = NO_TAGS,
    ) -> tuple[Admission, CommitFuture] | Denial:
        """
        Decide one request and commit its hold: wait on the returned future before answering.

        A repeat with the same *hold_id* and request gets the open hold, with the future of its commit. When the
        commit fails, the hold is gone.

        Raises:
            IdempotencyConflict: *hold_id* is open for another request.
            HoldEnded: *hold_id* was ended, or names an event or a correction.
            BadParameter: *ttl_s* is out of range.
        """
        ttl_s = self._hold_s if ttl_s is None else ttl_s
        if not 1 <= ttl_s <= HOLD_S_MAX:
            raise BadParameter(f"ttl_s must be from 1 to {HOLD_S_MAX} seconds, not {ttl_s}", field="ttl_s")
        if hold_id is None:
            return self._authorize(caller, method, path, expected, future, None, "", ttl_s, tags)
        compiled_key = self._gate.compiled_key(caller)
        if isinstance(compiled_key, Denial):
            return compiled_key
        fingerprint = _fingerprint(
            compiled_key.key_id if isinstance(caller, str) else caller.place, method, path, expected, tags
        )
        with self._opening_one(compiled_key.account_id, hold_id), ExitStack() as look_up:
            # Until the commit thread has looked: neither look-up may miss an id that is delivered in between.
            look_up.enter_context(self._pending.looking_up())
            earlier = self._earlier(compiled_key.account_id, hold_id, fingerprint)
            if earlier is not None:
                return earlier
            return self._authorize(
                caller, method, path, expected, future, hold_id, fingerprint, ttl_s, tags, look_up
            )

    def _authorize(
        self,
        caller: Caller,
        method: str,
        path: str,
        expected: Usage,
        future: CommitFuture,
        hold_id: str | None,
        fingerprint: str,
        ttl_s: int,
        tags: Mapping[str, str],
        look_up: ExitStack | None = None,
    ) -> tuple[Admission, CommitFuture] | Denial:
        if hold_id is None:
            hold_id = self._gate.new_id(self._now_us())
        found = self._gate.admit(caller, method, path, expected, hold_id=hold_id, tags=tags)
        if isinstance(found, Denial):
            self.record_denial(caller, method, path, found, expected.model)
            return found
        admission = found
        admission.durable = True
        admission.fingerprint = fingerprint
        admission.expires_at_us = admission.at_us + ttl_s * US_PER_S
        self._open.add(admission, future)
        look_up_ends = None if look_up is None else look_up.pop_all()

        def done(error: BaseException | None) -> None:
            if look_up_ends is not None:
                look_up_ends.close()
            if error is not None and self._gate.claim(admission):
                self._open.end(admission)

        self._committer.submit(OpenHold(stored_hold_of(admission), future, done))
        return admission, future

    @contextmanager
    def _opening_one(self, account_id: str, hold_id: str) -> Iterator[None]:
        """Let one caller at a time look for a hold of this name, and make it."""
        at = (account_id, hold_id)
        with self._opened:
            self._opened.wait_for(lambda: at not in self._opening)
            self._opening.add(at)
        try:
            yield
        finally:
            with self._opened:
                self._opening.discard(at)
                self._opened.notify_all()

    def _earlier(
        self, account_id: str, hold_id: str, fingerprint: str
    ) -> tuple[Admission, CommitFuture] | None:
        held = self._open.get(account_id, hold_id)
        if held is not None:
            return self._same(*held, fingerprint)
        stored = self._ledger.hold(account_id, hold_id)
        if stored is not None:
            # One that is open there and not here has expired, which is about to be committed.
            state = "expired" if stored.state == "open" else stored.state
            raise HoldEnded(f"Hold {hold_id} is {state}: use a new id.")
        if self._ended.is_recorded(account_id, hold_id):
            raise HoldEnded(f"Id {hold_id} names an event or a correction: use a new id.")
        return None

    def _same(
        self, admission: Admission, future: CommitFuture, fingerprint: str
    ) -> tuple[Admission, CommitFuture]:
        if admission.fingerprint != fingerprint:
            raise IdempotencyConflict(f"Hold {admission.id} is open for another request: use a new id.")
        return admission, future

    def settle_hold(
        self, hold_id: str, outcome: Outcome, future: CommitFuture, *, account_id: str | None = None
    ) -> tuple[Settled, CommitFuture | None]:
        """
        End a hold made over HTTP with the usage of its request: wait on the future, if there is one, before answering.

        A hold that expired meanwhile is settled late: booked whole, as overdraft, unless its id names an event or
        a correction by now. A repeat with the same outcome gets the same answer. When the commit fails, the hold is
        open again.

        Raises:
            HoldUnknown: There never was such a hold, or not in this account.
            HoldEnded: It was voided, or settled with another outcome, or it expired and its id was used since.
            DetailExpired: It was settled, and its event has expired.
            Unavailable: Another call is ending it now, or nothing more is booked.
        """
        held = self._open.find(hold_id, account_id)
        if held is None:
            found = self._ended.settle(hold_id, outcome, future, account_id)
            if isinstance(found, OpenedMeanwhile):
                return self.settle_hold(hold_id, outcome, future, account_id=found.account_id)
            return found
        admission = held[0]
        if not self._gate.claim(admission):
            raise Unavailable(f"Hold {hold_id} is being ended by another call: ask again for its outcome.")
        record = self.changes.settle_claimed(admission, outcome, future)
        return Settled(record, admission.amounts.nanos), future

    def open_hold(self, hold_id: str, account_id: str | None = None) -> Admission:
        """
        Return an open hold made over HTTP.

        Raises:
            HoldUnknown: There is none of this id, or not in this account.
            BadParameter: Several accounts have one.
        """
        held = self._open.find(hold_id, account_id)
        if held is None:
            raise HoldUnknown(f"No hold {hold_id} is open.")
        return held[0]

    def preview(self, admission: Admission, outcome: Outcome) -> Settled:
        """Return what settling *admission* with *outcome* would book now. Changes nothing."""
        return Settled(self._gate.record_of(admission, outcome, self._now_us()), admission.amounts.nanos)

    def is_settled_in_memory(self, hold_id: str, account_id: str | None, outcome: Outcome) -> bool:
        """Return whether settling a hold with *outcome* reads no store."""
        held = self._open.find(hold_id, account_id)
        # With another model or other tags it may move to counters that are not in memory.
        return held is not None and (
            held[0].matched is None
            or not (outcome.usage.model or outcome.usage.response_model or outcome.tags)
        )

    def void_hold(
        self, hold_id: str, future: CommitFuture, *, account_id: str | None = None
    ) -> tuple[str, CommitFuture | None]:
        """
        End a hold made over HTTP as if the request never was; return its account. A repeat is safe.

        A hold that expired meanwhile is voided too: it cannot be settled any more.

        Raises:
            HoldUnknown: There never was such a hold, or not in this account.
            HoldEnded: It was settled, or it expired and its id was used since.
            DetailExpired: It was settled, and its event has expired.
            Unavailable: Another call is ending it now, or nothing more is booked.
        """
        held = self._open.find(hold_id, account_id)
        if held is None:
            found = self._ended.void(hold_id, future, account_id)
            if isinstance(found, OpenedMeanwhile):
                return self.void_hold(hold_id, future, account_id=found.account_id)
            return found
        admission = held[0]
        if not self._gate.claim(admission):
            raise Unavailable(f"Hold {hold_id} is being ended by another call: ask again for its outcome.")
        ended = EndedHold(admission.account_id, hold_id, "voided", self._now_us())

        def done(error: BaseException | None) -> None:
            if error is None:
                self.changes.voided(admission)
                self._open.end(admission)
            else:
                admission.state = "open"

        self._committer.submit(EndHold(ended, future, done))
        return admission.account_id, future

    def give_back(self, admission: Admission) -> None:
        """
        Void a hold of which no caller has the id, at once and not when it expires; one that has ended stays as it is.

        In the ledger it ends with the group after the one that makes it, however late that is committed.

        Raises:
            Unavailable: Tollkeeper is closing. The hold expires.
        """
        if self._gate.claim(admission):
            self.changes.void_claimed(admission)

    # -- expiry and restart ---------------------------------------------------------------------------

    @property
    def open_count(self) -> int:
        return len(self._open)

    def expire(self) -> int:
        """End the holds whose time is up, most of them as void; return how many. Called every second or so."""
        return self._open.expire(self.changes.expire, self.changes.voided)

    def restore(self) -> int:
        """Open the holds again that were open when the process ended; return how many. Called once, at start."""
        return restore_open_holds(self._ledger, self._stored, self._open, self._committer, self._clock)


def _fingerprint(named: str, method: str, path: str, expected: Usage, tags: Mapping[str, str]) -> str:
    # Without what is not stated, as holds have it that were made before there was any of it.
    *tokens_and_cost, quantities, variant, _ = expected
    more = ([dict(sorted(quantities.items())), variant],) if quantities or variant else ()
    stated = (dict(sorted(tags.items())),) if tags else ()
    return msgspec.json.encode((named, method, path, *tokens_and_cost, *more, *stated)).decode()
