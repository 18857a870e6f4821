"""
For tests of Tollkeeper and of programs that use it: a clock that a test moves, installations on real stores, and
adapters that fail on purpose.

    clock = ManualClock()
    with installation(tmp_path, clock=clock) as site:
        secrets = set_up(site, Account(id="acme", name="Acme"), Key(id="k1", account="acme"), ...)
        clock.advance(seconds=60)

Every store is the real one. The embedded usage store opens one directory per process at a time: where
several installations are open at once, or opening it for each takes too long, they share one of the test
(`store=`), and keep apart by account ids (`unique`). A store of one installation must have just the records that its
ledger delivered, and is refused to any other; a shared one cannot be compared so, and only the batches of each are.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Entry
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.errors import Unavailable
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import AddCharges
from tollkeeper.maintenance.reconcile import Verdict
from tollkeeper.ports import UsageStore
from tollkeeper.settings import load

NOON: Final = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
"""A Wednesday in the middle of a month, no year, month, week, day or hour about to end."""


class ManualClock:
    """A `Clock` that stands still until it is moved, in either direction."""

    def __init__(self, at: datetime = NOON) -> None:
        self._now_us = to_us(at)

    def now(self) -> datetime:
        return from_us(self._now_us)

    def now_us(self) -> int:
        return self._now_us

    def advance(self, *, seconds: int = 0, us: int = 0) -> None:
        """Move by so much; a negative span moves back."""
        self._now_us += seconds * US_PER_S + us

    def set(self, at: datetime) -> None:
        """Move to *at*, aware."""
        self._now_us = to_us(at)


class KeptOpen:
    """A port that its users do not close: all calls but `close` go to *target*."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def close(self) -> None:
        """Leave *target* open: its maker closes it."""


class Faulty:
    """
    A port with one method that fails when a test says so; all other calls go to *target*.

    Args:
        target: The adapter.
        method: Name of the method that fails.
    """

    def __init__(self, target: Any, method: str) -> None:
        self.target = target
        self.calls = 0
        """Calls of the method that were let through to the target."""
        self._method = method
        self._lock = threading.Lock()
        self._refusals = 0
        self._losses = 0
        self._repeats = 0
        self._delays = 0
        self.delayed = threading.Event()
        """Set when a call waits, by `delay`."""
        self._go_on = threading.Event()

    def refuse(self, times: int = 1) -> None:
        """Fail the next *times* calls before anything is done."""
        with self._lock:
            self._refusals = times

    def lose_replies(self, times: int = 1) -> None:
        """Fail the next *times* calls after all is done: the caller cannot know that it was."""
        with self._lock:
            self._losses = times

    def repeat(self, times: int = 1) -> None:
        """Do the next *times* calls twice, as a network may: the second answer is given."""
        with self._lock:
            self._repeats = times

    def delay(self, times: int = 1) -> None:
        """Let the next *times* calls wait until `go_on`, while later ones pass them."""
        self.delayed.clear()
        self._go_on.clear()
        with self._lock:
            self._delays = times

    def go_on(self) -> None:
        """Let the delayed calls go on."""
        self._go_on.set()

    def __getattr__(self, name: str) -> Any:
        return self._call if name == self._method else getattr(self.target, name)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            refused, repeated, delayed = self._refusals > 0, self._repeats > 0, self._delays > 0
            self._refusals -= refused
            self._repeats -= repeated
            self._delays -= delayed
        if refused:
            raise Unavailable("refused by the test")
        if delayed:
            self.delayed.set()
            self._go_on.wait()
        call = getattr(self.target, self._method)
        if repeated:
            call(*args, **kwargs)
        answer = call(*args, **kwargs)
        with self._lock:
            self.calls += 1
            lost = self._losses > 0
            self._losses -= lost
        if lost:
            raise Unavailable("the answer was lost by the test")
        return answer


def open_installation(
    directory: str | Path,
    *,
    clock: Clock | None = None,
    store: UsageStore | None = None,
    store_is_shared: bool = True,
    **settings: Any,
) -> Installation:
    """
    Return a running installation in *directory*; close it.

    Args:
        store: A usage store to share: it stays open when the installation is closed.
        store_is_shared: Whether other installations use *store* too. False: it is compared with the ledger as in
            production.
        settings: As those of `settings.Settings`.
    """
    shared = None if store is None else cast("UsageStore", KeptOpen(store))
    values = {**settings, "data_dir": str(directory)}
    return Installation(
        load(values, environ={}),
        clock=clock,
        store=shared,
        store_is_shared=store_is_shared and shared is not None,
    )


@contextmanager
def installation(
    directory: str | Path, *, clock: Clock | None = None, store: UsageStore | None = None, **settings: Any
) -> Iterator[Installation]:
    """Yield what `open_installation` returns, and close it in the end."""
    opened = open_installation(directory, clock=clock, store=store, **settings)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def faulty_ledger(site: Installation, method: str = "commit") -> Iterator[Faulty]:
    """Yield a `Faulty` ledger that the committer of *site* writes to until the block ends."""
    committer: Any = site.committer
    faulty = Faulty(committer._ledger, method)
    committer._ledger = faulty
    try:
        yield faulty
    finally:
        committer._ledger = faulty.target


@contextmanager
def lost_commits(site: Installation, times: int = 1) -> Iterator[None]:
    """Make the database of *site* lose the answers of the next *times* commits: they are committed, then raise."""
    dialect: Any = site.engine.dialect
    do_commit = dialect.do_commit
    left = times

    def commit_and_lose(connection: Any) -> None:
        nonlocal left
        do_commit(connection)
        if left > 0:
            left -= 1
            raise dialect.dbapi.OperationalError("the answer was lost by the test")

    dialect.do_commit = commit_and_lose
    try:
        yield
    finally:
        dialect.do_commit = do_commit


def commit_all(site: Installation) -> None:
    """Return when everything that was submitted before is committed."""
    future = CommitFuture()
    site.committer.submit(AddCharges({}, future))
    future.wait()


def verify(site: Installation) -> Verdict:
    """Return the verdict on all that was submitted before; nothing may be submitted meanwhile."""
    commit_all(site)
    return site.reconcile.verify()


def set_up(site: Installation, *entries: Entry) -> dict[str, str]:
    """Put *entries*, in any order; return the secrets of the keys that this made, by key id."""
    applied = site.manage.apply(entries)
    return {issued.entry.id: issued.secret for issued in applied.issued if issued.secret is not None}


def unique(prefix: str) -> str:
    """Return an id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"
