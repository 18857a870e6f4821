"""
The committer: one thread that writes everything that callers settle, in groups.

While one group is being written the next one gathers, so under load one fsync serves many callers, and a lone
caller waits for no other. A group is one SQL transaction: the ledger has all of it or nothing, and its callers
get their answers after the commit.

A large batch (`CommitTask.is_bulk`) is a group of its own, and takes turns with the groups of all other tasks: what
waits when a batch comes up goes first, and waits for one batch at most.

When the ledger cannot be written, callers who wait get `Unavailable` and undo their work. Requests that were
settled in process cannot be settled again by their callers, so their tasks are kept and tried again, whether or
not a caller waits; the gate refuses new requests meanwhile.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import Committed, OutboxEntry, WindowState
from tollkeeper.domain.events import Record
from tollkeeper.errors import OUTCOME_UNKNOWN, TollkeeperError, Unavailable
from tollkeeper.gate.gate import Charge, Gate
from tollkeeper.gate.openings import Openings
from tollkeeper.ledger.commit_future import CommitFuture, finish
from tollkeeper.ledger.commit_tasks import (
    ChangeScopes,
    CommitTask,
    Draft,
    ReadBarrier,
    Settle,
    Stale,
    encode_rows,
)
from tollkeeper.ledger.listeners import CommitListener
from tollkeeper.ledger.pending import TOO_MANY, Pending, key_of
from tollkeeper.ports import Ledger

QUEUE_MAX: Final = 200_000
"""Tasks that may wait; beyond it the gate refuses, so that memory stays bounded when the disk is stuck."""
BULK_MAX: Final = 1_000
"""Large batches that may wait. A server has two threads for them; each caller of the library is one more."""
GROUP_MAX: Final = 4_000
LINGER_TASKS: Final = 8
LINGER_S: Final = 0.002
"""After a group of at least `LINGER_TASKS` the next one gathers for `LINGER_S`, or until it is as large: a commit has
a fixed cost, and under load more callers share it. A lone caller never waits."""
UNAWAITED_S: Final = 0.01
UNAWAITED_TASKS: Final = 1_000
"""How long, and up to how many tasks, a group gathers under load while no caller waits for any of them."""
RETRY_S: Final = (0.05, 0.2, 0.5, 1.0)
STUCK_S: Final = 8.0
"""A group that takes longer hangs in the database, or is in doubt whether it was committed: no more is taken."""
CLOSE_S: Final = 30.0
"""How long closing tries to commit what is queued."""
_LEDGER_AWAY: Final = "The ledger cannot be written now. Nothing is admitted until it can."
_QUEUE_FULL: Final = "Too much waits to be committed. Nothing is admitted until the ledger has caught up."

log = logging.getLogger("tollkeeper.committer")


class Committer:
    """
    Owns the commit thread and its queue. Any thread may submit.

    Args:
        charges_of: Returns the charges of a record by the budgets that are in force now.
        stored_of: Returns a record with the labels that are stored of it.
        listener: Called on the commit thread about each group that the ledger has.
        openings: The periods that opened with their first use, to be saved with the next group.
    """

    def __init__(
        self,
        ledger: Ledger,
        gate: Gate,
        pending: Pending,
        clock: Clock,
        charges_of: Callable[[Record], list[Charge]],
        stored_of: Callable[[Record], Record],
        listener: CommitListener,
        openings: Openings,
    ) -> None:
        self._openings = openings
        self._ledger = ledger
        self._gate = gate
        self._pending = pending
        self._clock = clock
        self._charges_of = charges_of
        self._stored_of = stored_of
        self._listener = listener
        self._queue: list[CommitTask] = []
        self._bulk: deque[CommitTask] = deque()
        self._bulk_is_next = False
        self._under_way = 0
        self._stuck_at_s = math.inf
        """When the group that is being written counts as stuck, by the monotonic clock."""
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
        self._scopes_changed_at: dict[str, int] = {}
        self.outbox_seq = 0
        self.committed_tasks = 0
        self.committed_groups = 0
        self.settled_count = 0
        """Requests settled and committed since start."""
        self.lost_tasks = 0
        """Tasks that were lost without a caller who got the error: closing gave up, or they cannot be stored."""
        self._thread = threading.Thread(target=self._run, name="tollkeeper-committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, task: CommitTask) -> None:
        """
        Queue *task*; its future, if any, ends after the commit.

        Raises:
            Unavailable: Too much waits already, the ledger hangs, or the committer is closing. `task.done` has the
                error too.
        """
        with self._lock:
            if self._closing:
                error = Unavailable("Tollkeeper is closing: nothing more is booked.")
            elif task.is_bulk:
                full = _QUEUE_FULL if len(self._bulk) >= BULK_MAX else None
                if (reason := self._reason_to_refuse() or full) is None:
                    self._bulk.append(task)
                    self._arrived.notify()
                    return
                error = Unavailable(reason)
            elif (reason := self._reason_to_refuse()) is None or self._is_taken_beyond(task, reason):
                self._queue.append(task)
                if len(self._queue) in (1, self._enough) or (not self._awaited and task.future is not None):
                    self._awaited = True
                    self._arrived.notify()
                return
            else:
                error = Unavailable(reason)
        # Outside the lock, as it may take others.
        if task.done is not None:
            task.done(error)
        raise error

    def _reason_to_refuse(self) -> str | None:
        """Return why no more tasks are taken than those that must be. The lock is held."""
        if len(self._queue) >= QUEUE_MAX:
            return _QUEUE_FULL
        return _LEDGER_AWAY if time.monotonic() > self._stuck_at_s else None

    def _is_taken_beyond(self, task: CommitTask, reason: str) -> bool:
        """Return whether *task* is queued though no more should be. The lock is held."""
        self._gate.refuse(reason)
        return task.kept

    def book(self, task: Settle) -> Record:
        """
        Queue one record with its charges, and return it as it is stored.

        Raises:
            Unavailable: As `submit`.
        """
        self.submit(task)
        return self._stored_of(task.record)

    @property
    def queued(self) -> int:
        return len(self._queue) + len(self._bulk)

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted is committed."""
        with self._arrived:
            return not self._queue and not self._bulk and not self._under_way

    def update_refusal(self) -> None:
        """Make the gate refuse while too many records wait for the usage store, and only then. Any thread may call."""
        with self._lock:
            # Any other reason was set by the commit thread, which knows when it is over.
            if self._gate.refusing in (None, TOO_MANY):
                self._gate.refuse(self._fullness())

    def _fullness(self) -> str | None:
        return TOO_MANY if self._pending.is_full else None

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Commit what is queued and end the thread; tasks that the ledger does not take are logged as lost."""
        with self._arrived:
            self._closing = True
            self._close_by = time.monotonic() + timeout_s
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            # The database hangs in a call. The thread is a daemon and ends with the process.
            log.error("tollkeeper.committer.hangs", extra={"tasks": self._under_way + self.queued})

    def _run(self) -> None:
        while tasks := self._next_tasks():
            try:
                self._commit(tasks)
            except Exception as exc:
                # A bug. Callers must get an answer, and the next group may succeed.
                log.exception("tollkeeper.committer.failed")
                self._fail(tasks, Unavailable(f"The commit failed: its {OUTCOME_UNKNOWN}."), exc)
            self._under_way = 0
            self._stuck_at_s = math.inf
            self._end_round()

    def _next_tasks(self) -> list[CommitTask]:
        """Return the tasks to commit next; none when the thread must end."""
        with self._arrived:
            while not self._queue and not self._bulk and not self._closing:
                self._arrived.wait()
            if self._last_size >= LINGER_TASKS and not self._bulk and not self._closing:
                self._gather()
            if not (self._failures and time.monotonic() >= self._close_by - RETRY_S[-1]):
                self._stuck_at_s = time.monotonic() + STUCK_S
                if self._bulk and (self._bulk_is_next or not self._queue):
                    self._bulk_is_next = False
                    self._under_way = 1
                    return [self._bulk.popleft()]
                # One that comes later lets the tasks that are there by then go first.
                self._bulk_is_next = bool(self._bulk)
                tasks, self._queue = self._queue[:GROUP_MAX], self._queue[GROUP_MAX:]
                self._last_size = self._under_way = len(tasks)
                return tasks
            tasks, self._queue = [*self._queue, *self._bulk], []
            self._bulk.clear()
        if not tasks:
            return []
        lost = sum(task.kept for task in tasks)
        self.lost_tasks += lost
        log.error("tollkeeper.committer.abandoned", extra={"lost": lost, "failed": len(tasks) - lost})
        self._fail(tasks, Unavailable("The ledger could not be written before Tollkeeper closed."))
        return []

    def _gather(self) -> None:
        """Wait a little for more tasks, so that they share a commit. The lock is held."""
        self._awaited = any(task.future is not None for task in self._queue)
        self._enough, wait_s = (
            (self._last_size, LINGER_S) if self._awaited else (UNAWAITED_TASKS, UNAWAITED_S)
        )
        if len(self._queue) < self._enough:
            self._arrived.wait(wait_s)
        self._enough, self._awaited = 0, True

    def _end_round(self) -> None:
        """Put the tasks that are kept first in the queue, and after a failure give the ledger time."""
        kept, self._kept = self._kept, []
        with self._arrived:
            self._queue[:0] = kept
            if not kept:
                self._gate.refuse(self._fullness())
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
        draft = Draft(
            self._clock.now_us(),
            self._pending,
            self.scopes_version,
            self._charges_of,
            self._stored_of,
            self._scopes_changed_at,
        )
        added: list[CommitTask] = []
        for task in tasks:
            try:
                task.add(draft)
            except Unavailable as exc:
                self._postpone([task], exc)
            except Exception as exc:
                self._reject(task, exc)
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
                self._postpone(added, exc)
            elif len(added) == 1:
                self._reject(added[0], exc)
            else:
                # Something in the group is at fault, not the ledger: find it, so as not to hold up the rest.
                self._write_singly(added)
            return
        self._unsaved.clear()
        self._openings.saved(draft.group.opened_periods)
        self._failures = 0
        self._apply(draft, committed)
        # Before the futures end: who waited for one reads counts that contain it.
        self.committed_tasks += len(added)
        self.settled_count += sum(not record.denied_reason for record in draft.rows)
        self.committed_groups += 1
        self._end(added, committed)
        self._listener.charged(draft.group.charges.keys())
        self._listener.committed()
        used = self._gate.take_last_used()
        if used:
            self._listener.keys_used(used)

    def _complete(self, draft: Draft) -> None:
        """Add the outbox rows of all tasks, and the windows that changed, to the draft's group."""
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
        # Last, when all charges of the group are made: whatever they opened is among these.
        group.opened_periods = self._openings.unsaved()

    def _apply(self, draft: Draft, committed: Committed) -> None:
        """Bring memory to what the ledger has now: pending ids, the gate's counters, cached answers."""
        seqs = iter(committed.outbox_seqs)
        changed = {record.account_id for record in draft.rows}
        if draft.rows:
            self._pending.committed(next(seqs), draft.row_keys, changed, len(draft.rows))
        for batch in draft.batches:
            self._pending.committed(next(seqs), batch.keys, batch.accounts, batch.table.num_rows)
            changed |= batch.accounts
        if changed:
            self._listener.events_added(changed, min(committed.outbox_seqs) - 1)
        if draft.group.ended:
            self._pending.release(key_of(ended.account_id, ended.hold_id) for ended in draft.group.ended)
        self.outbox_seq = max(committed.outbox_seqs, default=self.outbox_seq)
        self._gate.booked(draft.group.charges, draft.counted, committed.books, committed.commit_seq)

    def _end(self, tasks: list[CommitTask], committed: Committed) -> None:
        """End the futures of *tasks*, which are committed."""
        ended = []
        for task in tasks:
            if isinstance(task, ChangeScopes):
                self._listener.scopes_changed(task)
                self.scopes_version += 1
                self._scopes_changed_at.update(dict.fromkeys(task.accounts, self.scopes_version))
            if task.done is not None:
                task.done(None)
            if task.future is not None:
                if isinstance(task, ReadBarrier):
                    self._read(task, task.future)
                elif isinstance(task, ChangeScopes):
                    task.future.result = self.outbox_seq
                else:
                    task.future.result = task.result(committed)
                ended.append(task.future)
        finish(ended)

    def _read(self, task: ReadBarrier, future: CommitFuture) -> None:
        try:
            future.result = task.read(), self.outbox_seq
        except Exception as exc:
            # For the caller to handle: the group itself is committed.
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
                self._postpone(tasks[index + 1 :], Unavailable("The ledger cannot be written."))
                return

    def _postpone(self, tasks: list[CommitTask], error: Unavailable) -> None:
        """The ledger is away: fail the futures, and keep the tasks that are kept for the next round."""
        self._failures += 1
        kept = [task for task in tasks if task.kept]
        self._fail(tasks, error)
        if kept:
            self._kept += kept
            with self._lock:
                self._gate.refuse(_LEDGER_AWAY)
        log.warning("tollkeeper.committer.unavailable", extra={"reason": str(error), "kept": len(kept)})

    def _reject(self, task: CommitTask, error: Exception) -> None:
        """Fail a task that no state of the ledger lets commit: its caller gets the error, or the log does."""
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
        """End the futures of *tasks* with *error*. A task that is kept has no future any more after that."""
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
