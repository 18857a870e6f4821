"""
The committer: one thread that writes everything that callers settle, in groups.

While one group is being written the next one gathers, so under load one fsync serves many callers, and an
idle system waits for nobody. A group is one SQL transaction: it is in the ledger whole or not at all, and
only then do its callers hear of it.

When the ledger cannot be written, callers who wait get `Unavailable` and undo their work. What was settled in
process cannot be asked for again, so it is kept and tried again, whether or not somebody waits for it; the
gate refuses new requests meanwhile.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
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
from tollkeeper.errors import BadParameter, HoldEnded, TollkeeperError, Unavailable
from tollkeeper.gate.gate import Charge, Gate, StartedBudget
from tollkeeper.ledger.commit_future import CommitFuture, finish
from tollkeeper.ledger.pending import TOO_MANY, Pending, key_of
from tollkeeper.ports import Ledger

if TYPE_CHECKING:
    import pyarrow as pa

QUEUE_MAX: Final = 200_000
"""Works that may wait; beyond it the gate refuses, so that memory stays bounded when the disk is stuck."""
GROUP_MAX: Final = 4_000
LINGER_TASKS: Final = 8
LINGER_S: Final = 0.002
"""After a group of so many works the next one gathers for so long, or until it is as large: a commit has a fixed
price, and under load more callers share it. A lone caller never waits."""
UNAWAITED_S: Final = 0.01
UNAWAITED_TASKS: Final = 1_000
"""How long, and up to how many works, a group gathers under load while nobody waits for any of them."""
RETRY_S: Final = (0.05, 0.2, 0.5, 1.0)
CLOSE_S: Final = 30.0
"""How long closing tries to commit what is queued."""
_REFUSING: Final = "The ledger cannot be written now. Nothing is admitted until it can."
_STUCK: Final = "Too much waits to be committed. Nothing is admitted until the ledger has caught up."

STATUS_MAX: Final = 999
COUNT_MAX: Final = 10**16
"""The most of anything in one record: what the dearest price and the most tokens make is 8e15 nanos."""
_COUNT_FIELDS: Final = (
    "bytes_out",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "credits",
    "cost_nanos",
    "estimated_cost_nanos",
)
_TEXT_FIELDS: Final = ("id", "method", "route", "error_type", "denied_reason", "model", "cache")
_counts_of = attrgetter(*_COUNT_FIELDS)
_texts_of = attrgetter(*_TEXT_FIELDS)

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
        self.held_keys: list[str] = []

    def charge(self, at: CounterAt, amount: int, *, counted: bool) -> None:
        """Charge a counter; *counted* says that the gate knows already."""
        self.group.charges[at] = self.group.charges.get(at, 0) + amount
        if counted:
            self.counted[at] = self.counted.get(at, 0) + amount


class CommitTask:
    """
    Something to commit. `add` puts it into the draft whole, or raises to fail alone.

    A work that is `kept` is tried until the ledger takes it; any other is the business of who waits for it.
    *done*, if set, is told on the commit thread whether it was committed (None) or why not, before its
    ticket ends: what it does happens also when the caller is no longer there.
    """

    __slots__ = ("done", "future")
    future: CommitFuture | None
    done: Callable[[BaseException | None], None] | None

    @property
    def kept(self) -> bool:
        return self.future is None

    def add(self, draft: Draft) -> None:
        raise AssertionError("every work adds something")

    def result(self, committed: Committed) -> Any:
        return None


class OpenHold(CommitTask):
    """A hold made over HTTP."""

    __slots__ = ("hold",)

    def __init__(
        self, hold: StoredHold, future: CommitFuture, done: Callable[[BaseException | None], None]
    ) -> None:
        self.hold = hold
        self.future = future
        self.done = done

    def add(self, draft: Draft) -> None:
        key = key_of(self.hold.account_id, self.hold.hold_id)
        if not draft.pending.disjoint((key,)):
            raise HoldEnded(f"Id {self.hold.hold_id} names an event, a correction or a hold: use a new id.")
        draft.pending.hold((key,))
        draft.held_keys.append(key)
        draft.group.opened.append(self.hold)


class EndHold(CommitTask):
    """A void or an expiry of a durable hold."""

    __slots__ = ("ended",)

    def __init__(
        self,
        ended: EndedHold,
        future: CommitFuture | None,
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.ended = ended
        self.future = future
        self.done = done

    def add(self, draft: Draft) -> None:
        draft.group.ended.append(self.ended)


class Settle(CommitTask):
    """
    One record with its charges, and the end of its hold if that is durable.

    Args:
        ended: The hold that the record ends. Its id is looked at again here: of whatever names an event by this
            id at the same time, only the first one is committed.
        late: The hold has expired, so that its id may name something else by now.
        counted: The gate's counters have the charges already.
        scopes_version: Of the budget scopes that the charges were made from.
        charges_of: Makes the charges anew when the scopes have changed since.
    """

    __slots__ = ("charges", "charges_of", "counted", "ended", "late", "record", "scopes_version")

    def __init__(
        self,
        record: Record,
        charges: list[Charge],
        *,
        ended: EndedHold | None = None,
        late: bool = False,
        future: CommitFuture | None = None,
        counted: bool = True,
        scopes_version: int = 0,
        charges_of: Callable[[Record], list[Charge]] | None = None,
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.done = done
        self.record = record
        self.charges = charges
        self.ended = ended
        self.late = late
        self.future = future
        self.counted = counted
        self.scopes_version = scopes_version
        self.charges_of = charges_of

    @property
    def kept(self) -> bool:
        # An admission of this process has ended, so nobody can settle it again; a stored hold is open again.
        return self.future is None or self.ended is None

    def add(self, draft: Draft) -> None:
        check_storable(self.record)
        charges = self.charges
        key = key_of(self.record.account_id, self.record.id)
        if self.charges_of is not None and self.scopes_version != draft.scopes_version:
            counted = {charge[:3]: charge.amount for charge in charges} if self.counted else {}
            charges_now = self.charges_of(self.record)
            if self.ended is not None:
                self._take_id(draft, key)
            for charge in charges_now:
                draft.charge(charge[:3], charge.amount, counted=False)
            for at, amount in counted.items():
                draft.counted[at] = draft.counted.get(at, 0) + amount
        else:
            if self.ended is not None:
                self._take_id(draft, key)
            for account_id, counter_id, period_start_us, amount in charges:
                draft.charge((account_id, counter_id, period_start_us), amount, counted=self.counted)
        draft.rows.append(self.record)
        draft.row_keys.append(key)
        if self.ended is not None:
            draft.group.ended.append(self.ended)

    def _take_id(self, draft: Draft, key: str) -> None:
        """Make sure that the event is the one of its id. Nothing of the draft may fail after this."""
        pending = draft.pending
        if pending.is_held(key):
            # By the hold that this ends: nothing else can have taken the id.
            return
        if not self.late or not pending.disjoint((key,)):
            raise HoldEnded(f"Id {self.record.id} names an event or a correction by now: use a new id.")
        # So that a batch of the same group finds the id taken.
        pending.hold((key,))
        draft.held_keys.append(key)


class Batch(CommitTask):
    """
    Many records as one Arrow table, with their charges. Fails with `Stale` when an id came in since.

    Args:
        keys: `pending.key_of` of each id that the batch takes: that of row i in place i, unless
            they are of corrections.
        accounts: The accounts of the rows.
        payload: The table as an Arrow IPC stream.
        corrections: The rows are corrections; *keys* are the corrections' ids.
    """

    __slots__ = (
        "accounts",
        "charges",
        "corrections",
        "encoded_keys",
        "keys",
        "payload",
        "scopes_version",
        "table",
    )

    def __init__(
        self,
        table: pa.Table,
        payload: bytes,
        keys: list[str],
        accounts: set[str],
        charges: dict[CounterAt, int],
        scopes_version: int,
        future: CommitFuture,
        *,
        corrections: bool = False,
    ) -> None:
        self.corrections = corrections
        self.table = table
        self.payload = payload
        self.keys = keys
        # Here, on the thread of the caller, since all others wait for that of the commit.
        self.encoded_keys = encode_rows(keys)
        self.accounts = accounts
        self.charges = charges
        self.scopes_version = scopes_version
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        if self.scopes_version != draft.scopes_version or not draft.pending.disjoint(self.keys):
            raise Stale
        draft.pending.add(self.keys, None if self.corrections else self.table)
        for at, amount in self.charges.items():
            draft.charge(at, amount, counted=False)
        draft.batches.append(self)


class PostGrants(CommitTask):
    """Grants and top-ups of credit."""

    __slots__ = ("grants",)

    def __init__(self, grants: list[Grant], future: CommitFuture) -> None:
        self.grants = grants
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.group.grants.extend(self.grants)


class ChangeScopes(CommitTask):
    """
    Budgets that come into or go out of force; from this group on, events are charged accordingly.

    Its result is the outbox row up to which events were charged to the scopes as they were before.
    """

    __slots__ = ("ended", "members", "started")

    def __init__(
        self,
        started: list[tuple[BudgetScope, int]],
        ended: list[tuple[str, str]],
        future: CommitFuture,
        members: Sequence[StartedBudget] = (),
    ) -> None:
        self.members = members
        """The scopes that start, each with the keys that it counts."""
        self.started = started
        self.ended = ended
        self.future = future
        self.done = None

    @property
    def accounts(self) -> set[str]:
        return {scope.account_id for scope, _ in self.started} | {account_id for account_id, _ in self.ended}

    def add(self, draft: Draft) -> None:
        draft.group.scopes.extend(self.started)
        draft.group.ended_scopes.extend(self.ended)


class ReadBarrier(CommitTask):
    """
    Something to read between two groups, when the ledger is as of one commit and nobody writes it.

    Its result is what *read* returned, with the outbox row up to which events are in the ledger.
    """

    __slots__ = ("read",)

    def __init__(self, read: Callable[[], Any], future: CommitFuture) -> None:
        self.read = read
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        # Nothing is written: it only has its place in the order of works.
        return


class AddCharges(CommitTask):
    """Charges without events of their own: what a new budget's period had before the budget was set."""

    __slots__ = ("charges",)

    def __init__(self, charges: dict[CounterAt, int], future: CommitFuture) -> None:
        self.charges = charges
        self.future = future
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
        self._queue: list[CommitTask] = []
        self._under_way = 0
        # Taken by its own name where speed counts: a condition takes its lock in Python.
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._closing = False
        self._close_by = math.inf
        self._unsaved: dict[tuple[str, str], WindowState] = {}
        self._kept: list[CommitTask] = []
        self._last_size = 0
        self._enough = 0
        self._awaited = True
        self._failures = 0
        self.scopes_version = 0
        """Changes on the commit thread only, between two groups."""
        self.outbox_seq = 0
        self.committed_tasks = 0
        self.committed_groups = 0
        self.settled_count = 0
        """Requests settled and committed since start."""
        self.lost_tasks = 0
        """Works that were lost without a caller who was told: closing gave up, or they cannot be stored."""
        self.on_commit: Callable[[], None] = lambda: None
        """Called on the commit thread after each group: tells the relay that there is work."""
        self.on_charged: Callable[[Collection[CounterAt]], None] = lambda counters: None
        """Called on the commit thread after each group with the counters that it charged."""
        self.before_telling: Callable[[set[str], int], None] = lambda accounts, seq: None
        """Called on the commit thread with the accounts that have new events, before any caller is told."""
        self.on_last_used: Callable[[dict[str, int]], None] = lambda used: None
        self.before_scopes_change: Callable[[ChangeScopes], None] = lambda change: None
        """
        Called on the commit thread with a change of budgets, after the ledger has the change
        and before `scopes_version` does: who reads the new version must not find the old budgets remembered.
        """
        self._thread = threading.Thread(target=self._run, name="tollkeeper-committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, task: CommitTask) -> None:
        """
        Queue *work*; its ticket, if any, ends after the commit.

        Raises:
            Unavailable: Too much waits already, or the committer is closing.
        """
        with self._lock:
            if self._closing:
                raise Unavailable("Tollkeeper is closing: nothing more is booked.")
            if len(self._queue) >= QUEUE_MAX:
                self._gate.refusing = _STUCK
                if not task.kept:
                    raise Unavailable("Too much waits to be committed. Try again shortly.")
            self._queue.append(task)
            if len(self._queue) in (1, self._enough) or (not self._awaited and task.future is not None):
                self._awaited = True
                self._arrived.notify()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted is committed."""
        with self._arrived:
            return not self._queue and not self._under_way

    def look_at_waiting(self) -> None:
        """Have the gate refuse, or no longer, by how many records wait for the usage store. Any thread may call."""
        with self._lock:
            # Any other reason is the commit thread's, which knows when it is over.
            if self._gate.refusing in (None, TOO_MANY):
                self._gate.refusing = self._fullness()

    def _fullness(self) -> str | None:
        return TOO_MANY if self._pending.is_full else None

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Commit what is queued and end the thread; what the ledger does not take is logged as lost."""
        with self._arrived:
            self._closing = True
            self._close_by = time.monotonic() + timeout_s
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            # The database hangs in a call. The thread is a daemon and ends with the process.
            log.error("tollkeeper.committer.hangs", extra={"tasks": self._under_way + len(self._queue)})

    def _run(self) -> None:
        while tasks := self._next_works():
            try:
                self._commit(tasks)
            except Exception as exc:
                # A defect of ours. Callers must not wait for ever, and the next group may fare better.
                log.exception("tollkeeper.committer.failed")
                self._fail(tasks, Unavailable("The commit failed: its outcome is unknown."), exc)
            self._under_way = 0
            self._end_round()

    def _next_works(self) -> list[CommitTask]:
        """Return what is to be committed next; nothing when it is time to end."""
        with self._arrived:
            while not self._queue and not self._closing:
                self._arrived.wait()
            if self._last_size >= LINGER_TASKS and not self._closing:
                self._gather()
            if not (self._failures and time.monotonic() >= self._close_by - RETRY_S[-1]):
                tasks, self._queue = self._queue[:GROUP_MAX], self._queue[GROUP_MAX:]
                self._last_size = self._under_way = len(tasks)
                return tasks
            tasks, self._queue = self._queue, []
        if not tasks:
            return []
        lost = sum(task.kept for task in tasks)
        self.lost_tasks += lost
        log.error("tollkeeper.committer.abandoned", extra={"lost": lost, "failed": len(tasks) - lost})
        self._fail(tasks, Unavailable("The ledger could not be written before Tollkeeper closed."))
        return []

    def _gather(self) -> None:
        """Wait a little for more works, so that they share a commit. The lock is held."""
        self._awaited = any(task.future is not None for task in self._queue)
        self._enough, wait_s = (
            (self._last_size, LINGER_S) if self._awaited else (UNAWAITED_TASKS, UNAWAITED_S)
        )
        if len(self._queue) < self._enough:
            self._arrived.wait(wait_s)
        self._enough, self._awaited = 0, True

    def _end_round(self) -> None:
        """Put what is kept first in the queue, and after a failure give the ledger time."""
        kept, self._kept = self._kept, []
        with self._arrived:
            self._queue[:0] = kept
            if not kept:
                self._gate.refusing = self._fullness()
            if self._failures:
                delay_s = RETRY_S[min(self._failures, len(RETRY_S)) - 1]
                left_s = max(0.0, self._close_by - time.monotonic())
                was_closing = self._closing
                self._arrived.wait_for(lambda: self._closing and not was_closing, min(delay_s, left_s))

    def _commit(self, tasks: list[CommitTask]) -> None:
        # Scopes change between two groups, so that every group is charged by one version of them.
        run: list[CommitTask] = []
        for task in tasks:
            if isinstance(task, ChangeScopes):
                self._write(run)
                self._write([task])
                run = []
            else:
                run.append(task)
        self._write(run)

    def _write(self, tasks: list[CommitTask]) -> None:
        draft = Draft(self._clock.now_us(), self._pending, self.scopes_version)
        added: list[CommitTask] = []
        for task in tasks:
            try:
                task.add(draft)
            except Unavailable as exc:
                self._put_off([task], exc)
            except Exception as exc:
                self._refuse(task, exc)
            else:
                added.append(task)
        if not added:
            return
        try:
            self._complete(draft)
            committed = self._ledger.commit(draft.group)
        except Exception as exc:
            self._undo(draft)
            if isinstance(exc, Unavailable):
                self._put_off(added, exc)
            elif len(added) == 1:
                self._refuse(added[0], exc)
            else:
                # Something in the group is at fault, not the ledger: find it, so as not to hold up the rest.
                self._write_singly(added)
            return
        self._unsaved.clear()
        self._failures = 0
        self._learn(draft, committed)
        self._tell(added, committed)
        self.committed_tasks += len(added)
        self.settled_count += sum(not record.denied_reason for record in draft.rows)
        self.committed_groups += 1
        self.on_charged(draft.group.charges.keys())
        self.on_commit()
        used = self._gate.take_last_used()
        if used:
            self.on_last_used(used)

    def _complete(self, draft: Draft) -> None:
        """Add to the draft's group what its works have in common: outbox rows and changed windows."""
        group = draft.group
        if draft.rows:
            self._pending.add(draft.row_keys, draft.rows)
            keys = encode_rows(draft.row_keys)
            group.outbox.append(OutboxEntry("rows", encode_rows(draft.rows), len(draft.rows), keys))
        for batch in draft.batches:
            entry = OutboxEntry("arrow", batch.payload, batch.table.num_rows, batch.encoded_keys)
            group.outbox.append(entry)
        for window in self._gate.dirty_windows():
            self._unsaved[window[:2]] = WindowState(*window)
        group.windows = list(self._unsaved.values())

    def _learn(self, draft: Draft, committed: Committed) -> None:
        seqs = iter(committed.outbox_seqs)
        changed = {record.account_id for record in draft.rows}
        if draft.rows:
            self._pending.committed(next(seqs), draft.row_keys, changed, len(draft.rows))
        for batch in draft.batches:
            self._pending.committed(next(seqs), batch.keys, batch.accounts, batch.table.num_rows)
            changed |= batch.accounts
        if changed:
            self.before_telling(changed, min(committed.outbox_seqs) - 1)
        if draft.group.ended:
            self._pending.release(key_of(ended.account_id, ended.hold_id) for ended in draft.group.ended)
        self.outbox_seq = max(committed.outbox_seqs, default=self.outbox_seq)
        self._gate.booked(draft.group.charges, draft.counted, committed.books, committed.commit_seq)

    def _tell(self, tasks: list[CommitTask], committed: Committed) -> None:
        """Tell everybody whose work was committed."""
        ended = []
        for task in tasks:
            if isinstance(task, ChangeScopes):
                self.before_scopes_change(task)
                self.scopes_version += 1
            if task.done is not None:
                task.done(None)
            if task.future is not None:
                if isinstance(task, ReadBarrier):
                    self._look(task, task.future)
                elif isinstance(task, ChangeScopes):
                    task.future.result = self.outbox_seq
                else:
                    task.future.result = task.result(committed)
                ended.append(task.future)
        finish(ended)

    def _look(self, task: ReadBarrier, future: CommitFuture) -> None:
        try:
            future.result = task.read(), self.outbox_seq
        except Exception as exc:
            # The caller's to handle: the group itself is committed.
            future.error = exc

    # -- failures -------------------------------------------------------------------------------------

    def _undo(self, draft: Draft) -> None:
        self._pending.drop(draft.row_keys)
        for batch in draft.batches:
            self._pending.drop(batch.keys)
        self._pending.release(draft.held_keys)

    def _write_singly(self, tasks: list[CommitTask]) -> None:
        for index, task in enumerate(tasks):
            failures = self._failures
            self._write([task])
            if self._failures > failures:
                self._put_off(tasks[index + 1 :], Unavailable("The ledger cannot be written."))
                return

    def _put_off(self, tasks: list[CommitTask], error: Unavailable) -> None:
        """The ledger is away: tell those who wait, and keep what is kept for the next round."""
        self._failures += 1
        kept = [task for task in tasks if task.kept]
        self._fail(tasks, error)
        if kept:
            self._kept += kept
            with self._lock:
                self._gate.refusing = _REFUSING
        log.warning("tollkeeper.committer.unavailable", extra={"reason": str(error), "kept": len(kept)})

    def _refuse(self, task: CommitTask, error: Exception) -> None:
        """One work cannot be committed whatever the state of the ledger: tell its caller, or the log."""
        if task.future is None:
            self.lost_tasks += 1
            what = repr(task.record) if isinstance(task, Settle) else type(task).__name__
            log.error("tollkeeper.committer.refused", exc_info=error, extra={"work": what})
        if isinstance(task, Settle) and task.kept and task.counted:
            # The gate counts it as on its way to the ledger, where it will never arrive.
            counted = {charge[:3]: charge.amount for charge in task.charges}
            self._gate.booked(dict.fromkeys(counted, 0), counted, {}, -1)
        if not isinstance(error, TollkeeperError | Stale):
            log.error("tollkeeper.committer.defect", exc_info=error, extra={"work": type(task).__name__})
            self._fail([task], Unavailable("The commit failed: see the log."), error)
        else:
            self._fail([task], error)

    def _fail(self, tasks: list[CommitTask], error: Exception, cause: Exception | None = None) -> None:
        """Tell everybody who has not heard yet that it did not work. Who keeps a work is told only once."""
        ended = []
        for task in tasks:
            if task.future is None or task.future.ended:
                continue
            if task.done is not None:
                task.done(error)
            task.future.error = error
            task.future.error.__cause__ = cause
            ended.append(task.future)
            if task.kept:
                task.future = None
        finish(ended)


def check_storable(record: Record) -> None:
    """
    Raise BadParameter when a record has a value that the usage store has no room for.

    Records of this process are made from what a program states. One bad value must fail alone, here: in the
    outbox it would hold up all records of its group.
    """
    for value in _counts_of(record):
        if type(value) is not int or not 0 <= value <= COUNT_MAX:
            names = ", ".join(_COUNT_FIELDS)
            raise BadParameter(f"{value!r}: {names} are whole numbers from 0 to {COUNT_MAX}", field="usage")
    if type(record.status) is not int or not 0 <= record.status <= STATUS_MAX:
        raise BadParameter(f"status is a whole number from 0 to {STATUS_MAX}", field="status")
    latency_us = record.latency_us
    if latency_us is not None and (type(latency_us) is not int or not 0 <= latency_us <= COUNT_MAX):
        raise BadParameter("latency_us is a whole number of microseconds", field="latency_us")
    for text in _texts_of(record):
        if not isinstance(text, str):
            raise BadParameter(f"{text!r}: {', '.join(_TEXT_FIELDS)} are text", field="outcome")
    for name, value in record.tags.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadParameter("tags are a map of text to text", field="tags")
