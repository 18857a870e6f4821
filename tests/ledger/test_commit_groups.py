"""Which tasks share a commit: a large batch lets those go first who wait already, and is not put off for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tollkeeper.clock import SystemClock
from tollkeeper.domain.bookings import Committed, Group
from tollkeeper.errors import Unavailable
from tollkeeper.ledger import committer as committer_module
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import CommitTask, Draft
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.listeners import CommitListener
from tollkeeper.ledger.pending import Pending

WAIT_S = 60.0


class NamedTask(CommitTask):
    """A task that leaves its name in the group."""

    def __init__(self, name: str, *, is_bulk: bool = False) -> None:
        self.name = name
        self.is_bulk = is_bulk
        self.future = CommitFuture()
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.held_keys.append(self.name)
        draft.group.top_ups.append(cast("Any", self.name))


class SlowLedger:
    """Notes the tasks of each group; a commit takes as long as the test says."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.away = False

    def commit(self, group: Group) -> Committed:
        self.begun.release()
        assert self.may_end.acquire(timeout=WAIT_S)
        if self.away:
            raise Unavailable("away")
        self.groups.append([cast("Any", name) for name in group.top_ups])
        return Committed(len(self.groups), [], {})

    def next_commit(self) -> None:
        """Let the commit that has begun end, and wait until the next one has begun."""
        self.may_end.release()
        assert self.begun.acquire(timeout=WAIT_S)


@pytest.fixture
def ledger() -> SlowLedger:
    return SlowLedger()


@pytest.fixture
def committer(ledger: SlowLedger) -> Iterator[Committer]:
    """A committer whose first commit, of the task `first`, has begun and does not end yet."""
    gate: Any = SimpleNamespace(
        refusing=None,
        refuse=lambda reason: None,
        dirty_windows=list,
        booked=lambda *of: None,
        take_last_used=dict,
    )
    openings: Any = SimpleNamespace(saved=lambda periods: None, unsaved=list)
    listener = cast(
        "CommitListener",
        SimpleNamespace(
            charged=lambda counters: None, committed=lambda: None, events_added=lambda accounts, seq: None
        ),
    )
    made = Committer(
        cast("Any", ledger),
        gate,
        Pending(),
        SystemClock(),
        lambda record: [],
        lambda record: record,
        listener,
        openings,
    )
    made.start()
    made.submit(NamedTask("first"))
    assert ledger.begun.acquire(timeout=WAIT_S)
    yield made
    ledger.may_end.release(100)
    made.close(WAIT_S)


def submit(committer: Committer, *tasks: NamedTask) -> list[CommitFuture]:
    for task in tasks:
        committer.submit(task)
    return [cast("CommitFuture", task.future) for task in tasks]


def end(ledger: SlowLedger, futures: list[CommitFuture]) -> None:
    ledger.may_end.release(100)
    for future in futures:
        future.wait(WAIT_S)


def test_a_large_batch_shares_no_commit_and_those_who_wait_go_before_it(
    committer: Committer, ledger: SlowLedger
) -> None:
    """In one group, each call would be answered as late as the batch."""
    futures = submit(committer, NamedTask("batch", is_bulk=True), NamedTask("a"), NamedTask("b"))
    end(ledger, futures)
    assert ledger.groups == [["first"], ["a", "b"], ["batch"]]


def test_calls_are_committed_between_two_large_batches(committer: Committer, ledger: SlowLedger) -> None:
    """However many batches wait, a call waits for the one that is being written, and no other."""
    futures = submit(committer, *(NamedTask(f"batch {n}", is_bulk=True) for n in range(3)))
    ledger.next_commit()
    futures += submit(committer, NamedTask("a"))
    ledger.next_commit()
    ledger.next_commit()
    futures += submit(committer, NamedTask("b"))
    end(ledger, futures)
    assert ledger.groups == [["first"], ["batch 0"], ["a"], ["batch 1"], ["b"], ["batch 2"]]


def test_a_large_batch_waits_for_one_group_only(committer: Committer, ledger: SlowLedger) -> None:
    """Calls without end must not put a batch off without end."""
    futures = submit(committer, NamedTask("batch", is_bulk=True), NamedTask("a"))
    ledger.next_commit()
    futures += submit(committer, NamedTask("b"))
    ledger.next_commit()
    futures += submit(committer, NamedTask("c"))
    end(ledger, futures)
    assert ledger.groups == [["first"], ["a"], ["batch"], ["b", "c"]]


def test_closing_commits_large_batches_too(committer: Committer, ledger: SlowLedger) -> None:
    submit(committer, NamedTask("batch", is_bulk=True), NamedTask("a"))
    ledger.may_end.release(100)
    committer.close(WAIT_S)
    assert ledger.groups == [["first"], ["a"], ["batch"]]
    assert committer.idle
    assert committer.queued == 0
    with pytest.raises(Unavailable):
        committer.submit(NamedTask("late", is_bulk=True))


def test_a_large_batch_that_the_ledger_does_not_take_fails_and_is_not_kept(
    committer: Committer, ledger: SlowLedger
) -> None:
    (future,) = submit(committer, NamedTask("batch", is_bulk=True))
    ledger.next_commit()
    ledger.away = True
    ledger.may_end.release()
    with pytest.raises(Unavailable):
        future.wait(WAIT_S)
    ledger.away = False
    end(ledger, submit(committer, NamedTask("a")))
    assert ledger.groups == [["first"], ["a"]]


def test_large_batches_that_wait_are_bounded(
    committer: Committer, ledger: SlowLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "BULK_MAX", 2)
    futures = submit(committer, *(NamedTask(f"batch {n}", is_bulk=True) for n in range(2)))
    assert committer.queued == 2
    assert not committer.idle
    with pytest.raises(Unavailable):
        committer.submit(NamedTask("batch 2", is_bulk=True))
    end(ledger, [*futures, *submit(committer, NamedTask("a"))])
