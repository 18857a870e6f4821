"""
The registry of counters: one per limit, budget and balance in use, shared by all keys that count in it.

Finds, makes, amends and evicts them, reads them from the ledger, and hands over windows to be saved. Methods
take the gate's lock themselves unless they say otherwise. The ledger is read without it, so that a store that
does not answer holds nobody else; what happens meanwhile is either found or noted, never missed:

* A window that somebody else made meanwhile is used instead, and none that is being read is evicted: what was
  read of it is still what the ledger has.
* A budget or balance is in the registry before it is read, so that commits reach it (`gate/budget_counter.py`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.counter import Counter, NotRead
from tollkeeper.gate.money import CreditPool
from tollkeeper.gate.sources import Sources
from tollkeeper.gate.windows import WINDOWS, Window

Place: TypeAlias = tuple[str, str]
"""`(account, counter)`."""


class CounterRegistry:
    """All counters of this node, by account and counter id."""

    def __init__(self, sources: Sources, version: CatalogVersion, lock: threading.Lock) -> None:
        self._sources = sources
        self._version = version
        self._lock = lock
        self._counters: dict[Place, Window | BudgetCounter | CreditPool] = {}
        self._reading: dict[Place, int] = {}
        """Windows that are being read, and by how many threads."""
        self._changed: list[Window] = []
        self._unsaved: set[Window] = set()
        """Windows that the committer took and has not committed yet."""

    # -- finding and making ---------------------------------------------------------------------------

    def window(
        self, account_id: str, counter_id: str, limit: Limit, now_us: int, version: int, algorithm: str
    ) -> Window:
        """
        Return the window of a limit, amended to *limit* if that was read as of a current version.

        Args:
            algorithm: A key of `WINDOWS`.
        """
        place = (account_id, counter_id)
        with self._lock:
            known = self._known_window(place, limit, version)
            if known is not None:
                return known
            self._reading[place] = self._reading.get(place, 0) + 1
        try:
            stored = self._sources.slots(account_id, counter_id)
        except BaseException:
            with self._lock:
                self._end_reading(place)
            raise
        with self._lock:
            self._end_reading(place)
            known = self._known_window(place, limit, version)
            if known is None:
                known = WINDOWS[algorithm](account_id, counter_id, limit, now_us, stored, self._changed)
                self._counters[place] = known
            return known

    def _known_window(self, place: Place, limit: Limit, version: int) -> Window | None:
        known = self._counters.get(place)
        if not isinstance(known, Window):
            return None
        # Others count in it: what was read before a change must not undo the change.
        if self._version.is_current(place[0], version):
            known.amend(limit)
        return known

    def _end_reading(self, place: Place) -> None:
        self._reading[place] -= 1
        if not self._reading[place]:
            del self._reading[place]

    def budget(self, scope: BudgetScope, now_us: int, version: int) -> BudgetCounter:
        """Return the counter of a budget, read, and amended to *scope* if that is of a current version."""
        with self._lock:
            counter = self.budget_unread(scope, amend=self._version.is_current(scope.account_id, version))
        self._read_budget(counter, now_us)
        return counter

    def budget_unread(self, scope: BudgetScope, *, amend: bool) -> BudgetCounter:
        """Return the counter of a budget, which may have to be read yet. The caller has the gate's lock."""
        place = (scope.account_id, scope.counter_id)
        known = self._counters.get(place)
        if not isinstance(known, BudgetCounter):
            known = self._counters[place] = BudgetCounter(scope, self._sources.openings)
        elif amend and known.scope != scope:
            known.amend(scope)
        return known

    def pool(self, account_id: str, now_us: int) -> CreditPool:
        """Return the counter of an account's credit balance, read."""
        place = (account_id, CREDIT_COUNTER)
        with self._lock:
            known = self._counters.get(place)
            if not isinstance(known, CreditPool):
                known = self._counters[place] = CreditPool(account_id)
            is_read = known.book is not None
        if not is_read:
            self.read(known, now_us)
        return known

    # -- reading --------------------------------------------------------------------------------------

    def read(self, counter: Counter, at_us: int) -> None:
        """
        Read a budget's period of *at_us*, or a balance, from the ledger.

        Called after `NotRead`, without the gate's lock; several threads may read one at once.
        """
        if isinstance(counter, CreditPool):
            book, as_of_commit = self._sources.book(counter.account_id)
            with self._lock:
                counter.take_book(book, as_of_commit, at_us)
        elif isinstance(counter, BudgetCounter):
            self._read_budget(counter, at_us)

    def load_openings(self, counters: Iterable[Counter], from_us: int) -> None:
        """Make known when the periods of budgets opened from *from_us* on, of those that open with the first use."""
        for counter in counters:
            if isinstance(counter, BudgetCounter) and counter.opens_with_use:
                self._sources.openings.load(counter.scope, from_us)

    def _read_budget(self, counter: BudgetCounter, at_us: int) -> None:
        """Read what a decision at *at_us* needs of a budget and is not read yet: openings, top-ups, periods."""
        self.load_openings([counter], at_us)
        if counter.needs_top_ups:
            self._read_top_ups(counter)
        with self._lock:
            try:
                periods = [counter.begin_read(start_us) for start_us in counter.unread(at_us)]
            except NotRead:
                # Its openings were forgotten meanwhile: the caller finds that out and asks again.
                return
        for period in periods:
            committed = None
            try:
                committed = self._sources.counter(counter.account_id, counter.counter_id, period.start_us)
            finally:
                with self._lock:
                    counter.end_read(period, committed)

    def _read_top_ups(self, counter: BudgetCounter) -> None:
        with self._lock:
            version, scope = counter.begin_top_ups(), counter.scope
        found = None
        try:
            found = self._sources.top_ups(scope)
        finally:
            with self._lock:
                counter.end_top_ups(version, found)

    def topped_up(self, account_id: str, counter_id: str) -> None:
        """Learn that the ledger has another top-up of a budget."""
        with self._lock:
            counter = self._counters.get((account_id, counter_id))
            if isinstance(counter, BudgetCounter):
                counter.forget_top_ups()

    def top_ups(self, account_id: str, counter_id: str) -> TopUps | None:
        """Return the top-ups by which a budget is decided now; None where none are in memory."""
        with self._lock:
            counter = self._counters.get((account_id, counter_id))
            return counter.top_ups if isinstance(counter, BudgetCounter) else None

    # -- what the ledger wrote, and what it is to write -----------------------------------------------

    def booked(
        self,
        charges: Mapping[tuple[str, str, int], int],
        counted: Mapping[tuple[str, str, int], int],
        books: Mapping[str, CreditBook],
        commit: int,
        now_us: int,
    ) -> None:
        """Learn of a commit: see `Gate.booked`."""
        with self._lock:
            if commit >= 0:
                self._unsaved.clear()
            # What was settled here may be charged to other budgets by now: then it is only counted.
            for at in charges.keys() | counted.keys():
                counter = self._counters.get(at[:2])
                if isinstance(counter, BudgetCounter):
                    counter.booked(at[2], charges.get(at, 0), counted=counted.get(at, 0), commit=commit)
            # A group whose charges to a balance cancel out changes no book.
            for account_id in books.keys() | {at[0] for at in counted if at[1] == CREDIT_COUNTER}:
                pool = self._counters.get((account_id, CREDIT_COUNTER))
                if isinstance(pool, CreditPool):
                    pool.booked(
                        books.get(account_id),
                        counted=counted.get((account_id, CREDIT_COUNTER, 0), 0),
                        commit=commit,
                        now_us=now_us,
                    )

    def take_changed(self) -> list[tuple[str, str, dict[int, int], int]]:
        """Take the windows that changed: `(account, counter, slot → used, expires_at_us)` each."""
        with self._lock:
            taken = [
                (window.account_id, window.counter_id, window.slots(), window.expires_at_us())
                for window in self._changed
            ]
            self._unsaved.update(self._changed)
            self._changed.clear()
            return taken

    # -- evicting -------------------------------------------------------------------------------------

    def places(self) -> list[Place]:
        """Return where there are counters now."""
        # Copied in one step of the interpreter, so without the lock.
        return list(self._counters)

    def evict_idle(self, places: Iterable[Place], now_us: int) -> None:
        """Remove those counters that would be the same if they were read again."""
        with self._lock:
            for at in places:
                counter = self._counters.get(at)
                if counter is None or at in self._reading or not counter.is_idle(now_us):
                    continue
                # A key, a hold, a request that is being decided, a thread that reads it or a window on its way to
                # the ledger may still refer to it: then it goes back. Nobody misses it, as we have the lock.
                del self._counters[at]
                left = weakref.ref(counter)
                del counter
                kept = left()
                if kept is not None:
                    self._counters[at] = kept
