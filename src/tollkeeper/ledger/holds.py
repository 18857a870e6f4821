"""
Authorize, settle, void: requests from admission to their one ending.

Two ways in. In process, `admit` keeps its hold in memory and `settle` queues the record for the next group
commit. Over HTTP a hold is committed before the answer and every ending too, so both survive a crash; a
retry of any of the three calls gets the first answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import EndedHold, HoldBody, StoredHold
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.meter import UNKNOWN_ROUTE, same_outcome
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.errors import BadParameter, HoldEnded, HoldUnknown, IdempotencyConflict, Unavailable
from tollkeeper.gate.gate import HOLD_S_MAX, Admission, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.committer import Committer, EndHold, OpenHold, Settle
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.ports import Ledger, UsageStore

log = logging.getLogger("tollkeeper.holds")

_CHARGE_ANEW: Final = -1
"""Never the committer's version of the budgets: the charges are made anew when the work is committed."""
DENIALS_QUEUED_MAX: Final = 50_000
"""Denied requests that may wait to be recorded; past that they are only counted in the metrics."""


class Settled(NamedTuple):
    """What a settle booked."""

    record: Record
    held_nanos: int
    replayed: bool = False

    @property
    def beyond_hold_nanos(self) -> int:
        """What was settled beyond the hold: booked all the same, and shown as overdraft."""
        return max(0, self.record.cost_nanos - self.held_nanos)


class Holds:
    """The use cases around one request. Any thread or event loop may call."""

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
        self._directory = directory
        self._ledger = ledger
        self._store = store
        self._committer = committer
        self._pending = pending
        self._now_us = clock.now_us
        self._hold_s = hold_s
        self._charges_of = directory.charges_of
        self._lock = threading.Lock()
        self._opened = threading.Condition(self._lock)
        self._opening: set[tuple[str, str]] = set()
        self._ending_late: set[tuple[str, str]] = set()
        self._open: dict[tuple[str, str], tuple[Admission, CommitFuture]] = {}
        self._accounts_by_hold: dict[str, list[str]] = {}
        self._expiring: dict[int, set[tuple[str, str]]] = {}
        """The open holds by the second in which they expire."""
        self.denied_unrecorded = 0
        self.denied_count_by_reason: dict[str, int] = {}

    # -- in process -----------------------------------------------------------------------------------

    def admit(self, secret: str, method: str, path: str, expected: Usage = NO_USAGE) -> Admission | Denial:
        """Decide one request of this process. Settle or void the admission; dropped, it is voided."""
        found = self._gate.admit(secret, method, path, expected)
        if isinstance(found, Denial):
            self.record_denial(secret, method, path, found, expected.model)
        return found

    def settle(self, admission: Admission, outcome: Outcome, future: CommitFuture | None = None) -> Record:
        """
        End an admission of this process with what it used. With a *ticket*, wait on it for durability.

        Raises:
            HoldEnded: It was ended before.
            Unavailable: Nothing more is booked; the admission is open again.
        """
        # Read first: a permit that is still current after it has the budgets of this version.
        version = self._committer.scopes_version
        finished = self._gate.finish(admission, outcome, self._now_us())
        if finished is None:
            raise HoldEnded(f"Request {admission.id} was ended before: settle or void once.")
        record, charges = finished
        task = Settle(
            record,
            charges,
            future=future,
            scopes_version=version if admission.compiled_key.current else _CHARGE_ANEW,
            charges_of=self._charges_of,
        )
        try:
            self._committer.submit(task)
        except Unavailable:
            self._gate.unsettle(admission, record)
            raise
        return record

    def void(self, admission: Admission) -> None:
        """End an admission of this process as if it never was. A repeat changes nothing."""
        if self._gate.claim(admission):
            self._gate.void(admission)
            admission.state = "ended"

    def record_denial(self, secret: str, method: str, path: str, denial: Denial, model: str = "") -> None:
        """Count a refused request: in the metrics, and of a known key in the statistics."""
        with self._lock:
            counts = self.denied_count_by_reason
            counts[denial.reason] = counts.get(denial.reason, 0) + 1
        if denial.status in (401, 503):
            return
        compiled_key = self._gate.compiled_key(secret)
        if isinstance(compiled_key, Denial):
            return
        if self._committer.queued > DENIALS_QUEUED_MAX:
            self.denied_unrecorded += 1
            return
        now_us = self._now_us()
        record = self._gate.denied_record(compiled_key, method, path, denial, now_us, model)
        self._committer.submit(
            Settle(
                record,
                [],
                counted=False,
                scopes_version=self._committer.scopes_version,
                charges_of=self._charges_of,
            )
        )

    # -- over HTTP ------------------------------------------------------------------------------------

    def authorize(
        self,
        secret: str,
        method: str,
        path: str,
        expected: Usage,
        future: CommitFuture,
        *,
        hold_id: str | None = None,
        ttl_s: int | None = None,
        tags: Mapping[str, str] = {},
    ) -> tuple[Admission, CommitFuture] | Denial:
        """
        Decide one request and commit its hold: wait on the returned ticket before answering.

        A repeat with the same *hold_id* and request gets the hold that is open, by its ticket. When the
        commit fails, the hold is gone.

        Raises:
            IdempotencyConflict: *hold_id* is open for another request.
            HoldEnded: *hold_id* was ended, or names an event or a correction.
            BadParameter: *ttl_s* is out of range.
        """
        ttl_s = self._hold_s if ttl_s is None else ttl_s
        if not 1 <= ttl_s <= HOLD_S_MAX:
            raise BadParameter(f"ttl_s is from 1 to {HOLD_S_MAX} seconds", field="ttl_s")
        if hold_id is None:
            return self._authorize(secret, method, path, expected, future, None, "", ttl_s, tags)
        compiled_key = self._gate.compiled_key(secret)
        if isinstance(compiled_key, Denial):
            return compiled_key
        fingerprint = _fingerprint(compiled_key.key_id, method, path, expected)
        with self._opening_one(compiled_key.account_id, hold_id), ExitStack() as look_up:
            # Until the commit thread has looked: what is delivered meanwhile must not be missed by both.
            look_up.enter_context(self._pending.looking_up())
            earlier = self._earlier(compiled_key.account_id, hold_id, fingerprint)
            if earlier is not None:
                return earlier
            return self._authorize(
                secret, method, path, expected, future, hold_id, fingerprint, ttl_s, tags, look_up
            )

    def _authorize(
        self,
        secret: str,
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
        found = self._gate.admit(secret, method, path, expected, hold_id=hold_id)
        if isinstance(found, Denial):
            self.record_denial(secret, method, path, found, expected.model)
            return found
        admission = found
        admission.durable = True
        admission.fingerprint = fingerprint
        admission.tags = tags
        admission.expires_at_us = admission.at_us + ttl_s * US_PER_S
        at = (admission.account_id, admission.id)
        self._keep(admission, future)
        look_up_ends = None if look_up is None else look_up.pop_all()

        def done(error: BaseException | None) -> None:
            if look_up_ends is not None:
                look_up_ends.close()
            if error is not None and self._gate.claim(admission):
                self._end(admission)

        stored = StoredHold(*at, "open", _body_of(admission))
        try:
            self._committer.submit(OpenHold(stored, future, done))
        except Unavailable as exc:
            done(exc)
            raise
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
        held = self._open.get((account_id, hold_id))
        if held is not None:
            return self._same(*held, fingerprint)
        stored = self._ledger.hold(account_id, hold_id)
        if stored is not None:
            # One that is open there and not here has expired, which is about to be committed.
            state = "expired" if stored.state == "open" else stored.state
            raise HoldEnded(f"Hold {hold_id} is {state}: use a new id.")
        if self._is_recorded(account_id, hold_id):
            raise HoldEnded(f"Id {hold_id} names an event or a correction: use a new id.")
        return None

    def _is_recorded(self, account_id: str, id_: str) -> bool:
        """Return whether an id names an event or a correction. In `Pending.looking_up`, it misses none."""
        if self._pending.is_recorded(key_of(account_id, id_)):
            return True
        pair = pa.table({"account_id": [account_id], "id": [id_]})
        known: int = self._store.known_ids(pair).num_rows
        return known > 0

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
        End a hold made over HTTP with what was used: wait on the ticket, if there is one, before answering.

        A hold that expired meanwhile is settled late: booked whole, as overdraft, unless its id names an event or
        a correction by now. A repeat with the same outcome gets the same answer. When the commit fails, the hold is
        open again.

        Raises:
            HoldUnknown: There never was such a hold, or not in this account.
            HoldEnded: It was voided, or settled with another outcome, or is being ended now, or it expired and its
                id was used since.
        """
        held = self._find(hold_id, account_id)
        if held is None:
            return self._settle_ended(hold_id, outcome, future, account_id)
        admission = held[0]
        if not self._gate.claim(admission):
            raise HoldEnded(f"Hold {hold_id} is being ended by another call: ask again for its outcome.")
        now_us = self._now_us()
        version = self._committer.scopes_version
        record, charges = self._gate.settle(admission, outcome, now_us)
        ended = EndedHold(admission.account_id, hold_id, "settled", now_us)

        def done(error: BaseException | None) -> None:
            if error is None:
                admission.state = "ended"
                self._forget(admission)
            else:
                self._gate.unsettle(admission, record)
                if isinstance(error, HoldEnded) and self._gate.claim(admission):
                    # It was never committed: its authorize failed in the same group.
                    self._end(admission)

        task = Settle(
            record,
            charges,
            ended=ended,
            future=future,
            scopes_version=version if admission.compiled_key.current else _CHARGE_ANEW,
            charges_of=self._charges_of,
            done=done,
        )
        try:
            self._committer.submit(task)
        except Unavailable as exc:
            done(exc)
            raise
        return Settled(record, admission.amounts.nanos), future

    def is_open(self, hold_id: str, account_id: str | None) -> bool:
        """Return whether a hold is open in memory: ending it then reads no store."""
        return self._find(hold_id, account_id) is not None

    def void_hold(
        self, hold_id: str, future: CommitFuture, *, account_id: str | None = None
    ) -> tuple[str, CommitFuture | None]:
        """
        End a hold made over HTTP as if the request never was; return its account. A repeat is safe.

        A hold that expired meanwhile is voided too: it cannot be settled any more.

        Raises:
            HoldUnknown: There never was such a hold, or not in this account.
            HoldEnded: It was settled, or is being ended now, or it expired and its id was used since.
        """
        held = self._find(hold_id, account_id)
        if held is None:
            return self._void_ended(hold_id, future, account_id)
        admission = held[0]
        if not self._gate.claim(admission):
            raise HoldEnded(f"Hold {hold_id} is being ended by another call: ask again for its outcome.")
        ended = EndedHold(admission.account_id, hold_id, "voided", self._now_us())

        def done(error: BaseException | None) -> None:
            if error is None:
                self._end(admission)
            else:
                admission.state = "open"

        try:
            self._committer.submit(EndHold(ended, future, done))
        except Unavailable as exc:
            done(exc)
            raise
        return admission.account_id, future

    def _end(self, admission: Admission) -> None:
        """Give back what a claimed admission held, and forget it."""
        self._gate.void(admission)
        admission.state = "ended"
        self._forget(admission)

    # -- holds that are not open ----------------------------------------------------------------------

    def _settle_ended(
        self, hold_id: str, outcome: Outcome, future: CommitFuture, account_id: str | None
    ) -> tuple[Settled, CommitFuture | None]:
        for owner in self._owners(hold_id, account_id):
            found = self._settle_late(owner, hold_id, outcome, future)
            if found is not None:
                return found
            if self.is_open(hold_id, owner):
                # It was opened while we looked.
                return self.settle_hold(hold_id, outcome, future, account_id=owner)
            record = self._event(owner, hold_id)
            if record is not None:
                if not same_outcome(record, outcome):
                    raise HoldEnded(f"Hold {hold_id} was settled with another outcome: send a correction.")
                return Settled(record, record.estimated_cost_nanos, replayed=True), None
        raise HoldUnknown(f"There is no hold {hold_id[:128]!r}.")

    def _void_ended(
        self, hold_id: str, future: CommitFuture, account_id: str | None
    ) -> tuple[str, CommitFuture | None]:
        for owner in self._owners(hold_id, account_id):
            found = self._void_late(owner, hold_id, future)
            if found is not None:
                return found
            if self.is_open(hold_id, owner):
                return self.void_hold(hold_id, future, account_id=owner)
            if self._event(owner, hold_id) is not None:
                raise HoldEnded(f"Hold {hold_id} was settled: void its event with a correction.")
        raise HoldUnknown(f"There is no hold {hold_id[:128]!r}.")

    def _settle_late(
        self, account_id: str, hold_id: str, outcome: Outcome, future: CommitFuture
    ) -> tuple[Settled, CommitFuture] | None:
        """Book what an expired hold used; None when there is no such hold: it was settled, or is open."""
        with ExitStack() as until_committed:
            until_committed.enter_context(self._ending_one(account_id, hold_id))
            # As in `authorize`: the commit thread looks again, among the pending ones.
            until_committed.enter_context(self._pending.looking_up())
            stored = self._expired_or_voided(account_id, hold_id)
            if stored is None:
                return None
            if stored.state == "voided":
                raise HoldEnded(f"Hold {hold_id} was voided: it cannot be settled.")
            if self._is_recorded(account_id, hold_id):
                raise HoldEnded(
                    f"Hold {hold_id} has expired, and its id names an event or a correction by now."
                )
            admission = self._restore(stored, hold=False)
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

        task = Settle(
            record,
            charges,
            ended=EndedHold(account_id, hold_id, "settled", now_us),
            late=True,
            future=future,
            counted=False,
            scopes_version=version,
            charges_of=self._charges_of,
            done=done,
        )
        try:
            self._committer.submit(task)
        except Unavailable as exc:
            done(exc)
            raise
        return Settled(record, 0), future

    def _void_late(
        self, account_id: str, hold_id: str, future: CommitFuture
    ) -> tuple[str, CommitFuture | None] | None:
        """Mark an expired hold as voided; None when there is no such hold: it was settled, or is open."""
        with ExitStack() as until_committed:
            until_committed.enter_context(self._ending_one(account_id, hold_id))
            stored = self._expired_or_voided(account_id, hold_id)
            if stored is None:
                return None
            if stored.state == "voided":
                return account_id, None
            if self._is_recorded(account_id, hold_id):
                raise HoldEnded(
                    f"Hold {hold_id} has expired, and its id names an event or a correction: void that one."
                )
            commit_ends = until_committed.pop_all()

        def done(error: BaseException | None) -> None:
            commit_ends.close()

        try:
            ended = EndedHold(account_id, hold_id, "voided", self._now_us())
            self._committer.submit(EndHold(ended, future, done))
        except Unavailable as exc:
            done(exc)
            raise
        return account_id, future

    @contextmanager
    def _ending_one(self, account_id: str, hold_id: str) -> Iterator[None]:
        """Let one caller end an expired hold, until its commit; refuse any other meanwhile."""
        at = (account_id, hold_id)
        with self._lock:
            if at in self._ending_late:
                raise HoldEnded(f"Hold {hold_id} is being ended by another call: ask again for its outcome.")
            self._ending_late.add(at)
        try:
            yield
        finally:
            with self._lock:
                self._ending_late.discard(at)

    def _expired_or_voided(self, account_id: str, hold_id: str) -> StoredHold | None:
        """
        Return a hold that ended otherwise than by a settle. To be called by its one ender, in `_ending_one`.

        One of state `open` has expired, which is about to be committed.
        """
        stored = self._ledger.hold(account_id, hold_id)
        if stored is None or stored.state != "open":
            return stored
        if (account_id, hold_id) in self._open:
            return None
        # Read again: it may have been opened and ended since our caller looked, and its end is committed by now.
        return self._ledger.hold(account_id, hold_id)

    def _owners(self, hold_id: str, account_id: str | None) -> Sequence[str]:
        if account_id is not None:
            return [account_id]
        owners = self._ledger.hold_owners(hold_id)
        if not owners:
            # In this order, since what is no longer pending is in the store.
            owners = sorted({*self._pending.owners(hold_id), *self._store.owners(hold_id)})
        return _one_owner(owners)

    def _find(self, hold_id: str, account_id: str | None) -> tuple[Admission, CommitFuture] | None:
        if account_id is None:
            owners = _one_owner(self._accounts_by_hold.get(hold_id, ()))
            if not owners:
                return None
            account_id = owners[0]
        return self._open.get((account_id, hold_id))

    def _event(self, account_id: str, id_: str) -> Record | None:
        key = key_of(account_id, id_)
        # In this order, since what is no longer pending is in the store.
        found = self._pending.records([key]).get(key)
        return found or self._store.records([(account_id, id_)]).get((account_id, id_))

    # -- expiry and restart ---------------------------------------------------------------------------

    def expire(self) -> int:
        """Void the holds whose time is up; return how many. Called every second or so."""
        now_us = self._now_us()
        count = 0
        for at in self._expired(now_us):
            held = self._open.get(at)
            if held is None or not self._gate.claim(held[0]):
                # Ended since, or being ended, which may yet fail to commit: then the next call finds it.
                continue
            admission = held[0]
            try:
                self._committer.submit(EndHold(EndedHold(*at, "expired", now_us), None))
            except Unavailable:
                admission.state = "open"
                raise
            self._end(admission)
            count += 1
        return count

    def _expired(self, now_us: int) -> list[tuple[str, str]]:
        with self._lock:
            return [
                at
                for second in sorted(second for second in self._expiring if second <= now_us // US_PER_S)
                for at in self._expiring[second]
                if self._open[at][0].expires_at_us <= now_us
            ]

    def restore(self) -> int:
        """Take up the holds that were open when the process ended; return how many. Called once, at start."""
        count = 0
        for stored in self._ledger.open_holds():
            at = (stored.account_id, stored.hold_id)
            try:
                admission = self._restore(stored, hold=True)
            except HoldUnknown:
                # Nobody can settle it any more, and it must not keep the others from being taken up.
                log.warning("tollkeeper.hold.orphaned", extra={"account": at[0], "hold": at[1]})
                self._committer.submit(EndHold(EndedHold(*at, "expired", self._now_us()), None))
                continue
            self._keep(admission, CommitFuture.finished())
            count += 1
        return count

    def _entitlement_of(self, body: HoldBody) -> Entitlement | None:
        """Return what the key of a hold permits, in the project of its request, wherever the key is now."""
        key = self._directory.key(body.key_id)
        if key is None:
            return None
        if body.project is not None:
            entry = msgspec.structs.replace(key.entry, project=body.project or None)
            key = msgspec.structs.replace(key, entry=entry)
        return self._directory.entitlement_of(key)

    def _restore(self, stored: StoredHold, *, hold: bool) -> Admission:
        body = stored.body
        compiled_key = self._gate.compiled_key_of(lambda: self._entitlement_of(body))
        if compiled_key is None:
            raise HoldUnknown(f"The key of hold {stored.hold_id} is gone.")
        route = (
            self._directory.route_table().match(body.method, body.path, compiled_key.profile) or UNKNOWN_ROUTE
        )
        amounts = Amounts(*body.amounts)
        if hold:
            admission = self._gate.hold_again(compiled_key, route, stored.hold_id, amounts, body.at_us)
        else:
            admission = Admission(
                self._gate,
                stored.hold_id,
                compiled_key,
                route,
                body.method,
                amounts,
                NO_USAGE,
                [],
                body.at_us,
            )
        *tokens, model = body.expected
        admission.expected = Usage(*tokens, model)  # type: ignore[arg-type, call-arg]
        admission.method = body.method
        admission.path = body.path
        admission.tags = body.tags
        admission.fingerprint = body.fingerprint
        admission.expires_at_us = body.expires_at_us
        admission.durable = True
        return admission

    def _keep(self, admission: Admission, future: CommitFuture) -> None:
        at = (admission.account_id, admission.id)
        with self._lock:
            self._open[at] = (admission, future)
            self._expiring.setdefault(admission.expires_at_us // US_PER_S, set()).add(at)
            self._accounts_by_hold.setdefault(admission.id, []).append(admission.account_id)

    def _forget(self, admission: Admission) -> None:
        at = (admission.account_id, admission.id)
        second = admission.expires_at_us // US_PER_S
        with self._lock:
            if self._open.pop(at, None) is not None:
                of_second = self._expiring[second]
                of_second.remove(at)
                if not of_second:
                    del self._expiring[second]
            owners = self._accounts_by_hold.get(admission.id)
            if owners is not None:
                if admission.account_id in owners:
                    owners.remove(admission.account_id)
                if not owners:
                    del self._accounts_by_hold[admission.id]

    @property
    def open_count(self) -> int:
        return len(self._open)


def _body_of(admission: Admission) -> HoldBody:
    expected = admission.expected
    amounts = admission.amounts
    return HoldBody(
        key_id=admission.key_id,
        method=admission.method,
        path=admission.path,
        amounts=(amounts.requests, amounts.tokens, amounts.nanos, amounts.credits),
        expected=(
            expected.prompt_tokens,
            expected.cached_prompt_tokens,
            expected.completion_tokens,
            expected.reasoning_tokens,
            expected.model,
        ),
        at_us=admission.at_us,
        expires_at_us=admission.expires_at_us,
        fingerprint=admission.fingerprint,
        tags=dict(admission.tags),
        project=admission.compiled_key.project_id,
    )


def _fingerprint(key_id: str, method: str, path: str, expected: Usage) -> str:
    return msgspec.json.encode((key_id, method, path, *expected)).decode()


def _one_owner(accounts: Sequence[str]) -> Sequence[str]:
    """Return the account that has a hold of some name, if any; refuse to guess among several."""
    if len(accounts) > 1:
        raise BadParameter("several accounts have a hold of this id: state the account", field="account")
    return accounts
