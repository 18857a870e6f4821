"""
The committer: one thread that writes everything that callers settle, in groups.

While one group is being written the next one gathers, so under load one fsync serves many callers, and an
idle system waits for nobody. A group is one SQL transaction: it is in the ledger whole or not at all, and
only then do its callers hear of it.

When the ledger cannot be written, callers who wait get `Unavailable` and their work is undone. What was
settled in process, where nobody waits, is kept and tried again; the gate refuses new requests meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import (
    Committed,
    CounterAt,
    EndedHold,
    Group,
    OutboxEntry,
    StoredHold,
    WindowState,
)
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.events import Record
from tollkeeper.errors import TollkeeperError, Unavailable
from tollkeeper.gate.gate import Charge, Gate
from tollkeeper.ports import Ledger
from tollkeeper.services.pending import Pending, key_of
from tollkeeper.services.tickets import Ticket, finish

if TYPE_CHECKING:
    import pyarrow as pa

QUEUE_MAX: Final = 200_000
"""Works that may wait; beyond it the gate refuses, so that memory stays bounded when the disk is stuck."""
GROUP_MAX: Final = 4_000
RETRY_S: Final = (0.05, 0.2, 0.5, 1.0)
_REFUSING: Final = "The ledger cannot be written now. Nothing is admitted until it can."

log = logging.getLogger("tollkeeper.committer")
encode_rows = msgspec.msgpack.Encoder().encode


class Stale(Exception):
    """What a batch was prepared against has changed: prepare it again."""


class Draft:
    """A group while its works add themselves to it."""

    def __init__(self, now_us: int, pending: Pending, scopes_version: int) -> None:
        self.group = Group(now_us=now_us)
        self.pending = pending
        self.scopes_version = scopes_version
        self.rows: list[Record] = []
        self.row_keys: list[str] = []
        self.counted: dict[CounterAt, int] = {}
        self.batches: list[Batch] = []

    def charge(self, at: CounterAt, amount: int, *, counted: bool) -> None:
        """Charge a counter; *counted* says that the gate knows already."""
        self.group.charges[at] = self.group.charges.get(at, 0) + amount
        if counted:
            self.counted[at] = self.counted.get(at, 0) + amount


class Work:
    """
    Something to commit. `add` puts it into the draft, or raises to fail alone.

    *done*, if set, is told on the commit thread whether it was committed (None) or why not, before its
    ticket ends: what it does happens also when the caller is no longer there.
    """

    __slots__ = ("done", "ticket")
    ticket: Ticket | None
    done: Callable[[BaseException | None], None] | None

    def add(self, draft: Draft) -> None:
        raise AssertionError("every work adds something")

    def result(self, committed: Committed) -> Any:
        return None


class OpenHold(Work):
    """A hold made over HTTP."""

    __slots__ = ("hold",)

    def __init__(
        self, hold: StoredHold, ticket: Ticket, done: Callable[[BaseException | None], None]
    ) -> None:
        self.hold = hold
        self.ticket = ticket
        self.done = done

    def add(self, draft: Draft) -> None:
        draft.group.opened.append(self.hold)


class EndHold(Work):
    """A void or an expiry of a durable hold."""

    __slots__ = ("ended",)

    def __init__(
        self,
        ended: EndedHold,
        ticket: Ticket | None,
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.ended = ended
        self.ticket = ticket
        self.done = done

    def add(self, draft: Draft) -> None:
        draft.group.ended.append(self.ended)


class Settle(Work):
    """
    One record with its charges, and the end of its hold if that is durable.

    Args:
        counted: The gate's counters have the charges already.
        scopes_version: Of the budget scopes that the charges were made from.
        charges_of: Makes the charges anew when the scopes have changed since.
    """

    __slots__ = ("charges", "charges_of", "counted", "ended", "record", "scopes_version")

    def __init__(
        self,
        record: Record,
        charges: list[Charge],
        *,
        ended: EndedHold | None = None,
        ticket: Ticket | None = None,
        counted: bool = True,
        scopes_version: int = 0,
        charges_of: Callable[[Record], list[Charge]] | None = None,
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.done = done
        self.record = record
        self.charges = charges
        self.ended = ended
        self.ticket = ticket
        self.counted = counted
        self.scopes_version = scopes_version
        self.charges_of = charges_of

    def add(self, draft: Draft) -> None:
        charges = self.charges
        if self.charges_of is not None and self.scopes_version != draft.scopes_version:
            counted = {charge[:3]: charge.amount for charge in charges} if self.counted else {}
            for charge in self.charges_of(self.record):
                draft.charge(charge[:3], charge.amount, counted=False)
            for at, amount in counted.items():
                draft.counted[at] = draft.counted.get(at, 0) + amount
        else:
            for account_id, counter_id, period_start_us, amount in charges:
                draft.charge((account_id, counter_id, period_start_us), amount, counted=self.counted)
        draft.rows.append(self.record)
        draft.row_keys.append(key_of(self.record.account_id, self.record.id))
        if self.ended is not None:
            draft.group.ended.append(self.ended)


class Batch(Work):
    """
    Many records as one Arrow table, with their charges. Fails with `Stale` when an id came in since.

    Args:
        keys: `pending.key_of` of each row's dedupe id.
        accounts: The accounts of the rows.
        payload: The table as an Arrow IPC stream.
    """

    __slots__ = ("accounts", "charges", "keys", "payload", "scopes_version", "table")

    def __init__(
        self,
        table: pa.Table,
        payload: bytes,
        keys: list[str],
        accounts: set[str],
        charges: dict[CounterAt, int],
        scopes_version: int,
        ticket: Ticket,
    ) -> None:
        self.table = table
        self.payload = payload
        self.keys = keys
        self.accounts = accounts
        self.charges = charges
        self.scopes_version = scopes_version
        self.ticket = ticket
        self.done = None

    def add(self, draft: Draft) -> None:
        if self.scopes_version != draft.scopes_version or not draft.pending.disjoint(self.keys):
            raise Stale
        draft.pending.add(self.keys, self.table)
        for at, amount in self.charges.items():
            draft.charge(at, amount, counted=False)
        draft.batches.append(self)


class PostGrants(Work):
    """Grants and top-ups of credit."""

    __slots__ = ("grants",)

    def __init__(self, grants: list[Grant], ticket: Ticket) -> None:
        self.grants = grants
        self.ticket = ticket
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.group.grants.extend(self.grants)


class ChangeScopes(Work):
    """
    Budgets that come into or go out of force; from this group on, events are charged accordingly.

    Its result is the outbox row up to which events were charged to the scopes as they were before.
    """

    __slots__ = ("ended", "started")

    def __init__(
        self, started: list[tuple[BudgetScope, int]], ended: list[tuple[str, str]], ticket: Ticket
    ) -> None:
        self.started = started
        self.ended = ended
        self.ticket = ticket
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.group.scopes.extend(self.started)
        draft.group.ended_scopes.extend(self.ended)


class AddCharges(Work):
    """Charges without events of their own: what a new budget's period had before the budget was set."""

    __slots__ = ("charges",)

    def __init__(self, charges: dict[CounterAt, int], ticket: Ticket) -> None:
        self.charges = charges
        self.ticket = ticket
        self.done = None

    def add(self, draft: Draft) -> None:
        for at, amount in self.charges.items():
            draft.charge(at, amount, counted=False)


class Committer:
    """Owns the commit thread and its queue."""

    def __init__(self, ledger: Ledger, gate: Gate, pending: Pending, clock: Clock) -> None:
        self._ledger = ledger
        self._gate = gate
        self._pending = pending
        self._clock = clock
        self._queue: list[Work] = []
        self._arrived = threading.Condition()
        self._closing = False
        self._unsaved: dict[tuple[str, str], WindowState] = {}
        self._failures = 0
        self.scopes_version = 0
        """Changes on the commit thread only, between two groups."""
        self.outbox_seq = 0
        self.committed_works = 0
        self.committed_groups = 0
        self.on_commit: Callable[[], None] = lambda: None
        """Called on the commit thread after each group: tells the relay that there is work."""
        self.on_last_used: Callable[[dict[str, int]], None] = lambda used: None
        self.before_scopes_change: Callable[[], None] = lambda: None
        """Called on the commit thread right before `scopes_version` changes."""
        self._thread = threading.Thread(target=self._run, name="tollkeeper-committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Work) -> None:
        """
        Queue *work*; its ticket, if any, ends after the commit.

        Raises:
            Unavailable: Too much waits already, or the committer is closing.
        """
        with self._arrived:
            if self._closing or (len(self._queue) >= QUEUE_MAX and work.ticket is not None):
                raise Unavailable("Too much waits to be committed. Try again shortly.")
            self._queue.append(work)
            if len(self._queue) == 1:
                self._arrived.notify()

    @property
    def queued(self) -> int:
        return len(self._queue)

    def close(self, timeout_s: float = 30.0) -> None:
        """Commit what is queued and end the thread."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._arrived:
                while not self._queue and not self._closing:
                    self._arrived.wait()
                if not self._queue and self._closing:
                    return
                works, self._queue = self._queue[:GROUP_MAX], self._queue[GROUP_MAX:]
            self._commit(works)
            if self._closing and self._failures > len(RETRY_S):
                log.error("tollkeeper.committer.abandoned", extra={"works": len(self._queue)})
                return

    def _commit(self, works: list[Work]) -> None:
        # Scopes change between two groups, so that every group is charged by one version of them.
        for index, work in enumerate(works):
            if isinstance(work, ChangeScopes) and index:
                self._write(works[:index])
                self._commit(works[index:])
                return
        if works and isinstance(works[0], ChangeScopes):
            self._write(works[:1])
            if len(works) > 1:
                self._commit(works[1:])
            return
        self._write(works)

    def _write(self, works: list[Work]) -> None:
        draft = Draft(self._clock.now_us(), self._pending, self.scopes_version)
        added: list[Work] = []
        done: list[Ticket] = []
        for work in works:
            try:
                work.add(draft)
            except Exception as exc:
                if work.done is not None:
                    work.done(exc)
                if work.ticket is None:
                    log.exception("tollkeeper.committer.work_refused", extra={"work": type(work).__name__})
                else:
                    work.ticket.error = exc
                    done.append(work.ticket)
            else:
                added.append(work)
        group = draft.group
        if draft.rows:
            self._pending.add(draft.row_keys, draft.rows)
            group.outbox.append(OutboxEntry("rows", encode_rows(draft.rows), len(draft.rows)))
        for batch in draft.batches:
            group.outbox.append(OutboxEntry("arrow", batch.payload, batch.table.num_rows))
        for window in self._gate.dirty_windows():
            self._unsaved[window[:2]] = WindowState(*window)
        group.windows = list(self._unsaved.values())
        try:
            committed = self._ledger.commit(group)
        except Exception as exc:
            self._failed(added, draft, exc, done)
            finish(done)
            return
        self._unsaved.clear()
        self._failures = 0
        self._gate.refusing = None
        self._learn(draft, committed)
        for work in added:
            if isinstance(work, ChangeScopes):
                self.before_scopes_change()
                self.scopes_version += 1
            if work.done is not None:
                work.done(None)
            if work.ticket is not None:
                work.ticket.result = (
                    self.outbox_seq if isinstance(work, ChangeScopes) else work.result(committed)
                )
                done.append(work.ticket)
        self.committed_works += len(added)
        self.committed_groups += 1
        finish(done)
        self.on_commit()
        used = self._gate.take_last_used()
        if used:
            self.on_last_used(used)

    def _learn(self, draft: Draft, committed: Committed) -> None:
        seqs = iter(committed.outbox_seqs)
        if draft.rows:
            seq = next(seqs)
            accounts = {record.account_id for record in draft.rows}
            self._pending.committed(seq, draft.row_keys, accounts, len(draft.rows))
        for batch in draft.batches:
            self._pending.committed(next(seqs), batch.keys, batch.accounts, batch.table.num_rows)
        self.outbox_seq = max(committed.outbox_seqs, default=self.outbox_seq)
        self._gate.booked(draft.group.charges, draft.counted, committed.books, committed.commit_seq)

    def _failed(self, works: list[Work], draft: Draft, exc: Exception, done: list[Ticket]) -> None:
        self._pending.drop(draft.row_keys)
        for batch in draft.batches:
            self._pending.drop(batch.keys)
        if len(works) > 1 and not isinstance(exc, Unavailable):
            # Something in the group is at fault, not the store: find it, so that the rest is not held up.
            for work in works:
                self._write([work])
            return
        error: TollkeeperError = exc if isinstance(exc, TollkeeperError) else Unavailable("The commit failed.")
        kept = []
        for work in works:
            if work.ticket is not None:
                if work.done is not None:
                    work.done(error)
                work.ticket.error = error
                done.append(work.ticket)
            elif isinstance(exc, Unavailable):
                kept.append(work)
            else:
                log.error("tollkeeper.committer.set_aside", exc_info=exc, extra={"work": repr(work)})
        if kept:
            self._gate.refusing = _REFUSING
            with self._arrived:
                self._queue[:0] = kept
        log.warning("tollkeeper.committer.unavailable", extra={"reason": str(error), "kept": len(kept)})
        delay_s = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        time.sleep(delay_s)
