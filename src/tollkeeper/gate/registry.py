"""
The registry of counters: one per limit, budget and balance in use, shared by all keys that count in it.

Finds, makes, amends and evicts them, reads them from the ledger, and hands over windows to be saved. Methods
take the gate's lock themselves unless they say otherwise. The ledger is read without it, so that a store that
does not answer holds nobody else; what happens meanwhile is either found or noted, never missed:

* A window that somebody else made meanwhile is used instead, and none that is being read is evicted: what was
  read of it is still what the ledger has.
* A budget or balance is in the registry before it is read, so that commits reach it (`budget_counter.py`, `credit.py`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.domain.matching import counter_of_values, described, scope_counter_of
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.counter import Counter, NotRead
from tollkeeper.gate.credit import CreditPool
from tollkeeper.gate.sources import Sources
from tollkeeper.gate.windows import WINDOWS, Window

Place: TypeAlias = tuple[str, str]
"""`(account, counter)`."""

VALUES_MAX: Final = 50_000
"""Counters of values (`per = "tag.user"`) in memory, some 50 MB: beyond, those go that the ledger has as they are."""
_EVICTED_PER_VALUE: Final = 4
"""Counters of values that a new one looks at when there are too many: more than one, so that they become fewer."""


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
        self._values: dict[Place, None] = {}
        """The counters of values; those first that were made, or found in use, longest ago."""

    # -- finding and making ---------------------------------------------------------------------------

    def window(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        version: int,
        algorithm: str,
        *,
        match: Callable[[], str] = str,
        of_value: bool = False,
    ) -> Window:
        """
        Return the window of a limit, amended to *limit* if that was read as of a current version.

        Args:
            algorithm: A key of `WINDOWS`.
            match: Returns for people which requests it counts.
            of_value: It is of one value of many, of which a bounded number is kept.
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
                known.match = match()
                self._counters[place] = known
                if of_value:
                    self._keep_value(place)
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

    def budget_of(self, scope: BudgetScope, values: Sequence[str], version: int) -> BudgetCounter:
        """
        Return the counter of a budget that has a match, or of *values* that it counts apart.

        It may have to be read yet. It is amended to *scope* if that is of a current version.
        """
        with self._lock:
            return self.budget_of_unread(
                scope, values, amend=self._version.is_current(scope.account_id, version)
            )

    def budget_of_unread(self, scope: BudgetScope, values: Sequence[str], *, amend: bool) -> BudgetCounter:
        """Do what `budget_of` does, for a caller that has the gate's lock."""
        counter_id = counter_of_values(scope.counter_id, values) if scope.by else scope.counter_id
        place = (scope.account_id, counter_id)
        known = self._counters.get(place)
        is_new = not isinstance(known, BudgetCounter)
        if isinstance(known, BudgetCounter):
            if not amend or known.value_of is scope or known.value_of == scope:
                return known
            known.amend(scope._replace(counter_id=counter_id))
        else:
            one = scope._replace(counter_id=counter_id)
            known = self._counters[place] = BudgetCounter(one, self._sources.openings)
        known.value_of = scope
        known.match = described(scope.match, list(zip(scope.by, values, strict=True)))
        if is_new and scope.by:
            self._keep_value(place)
        return known

    def of_budgets(self, account_id: str, counter_ids: Collection[str]) -> list[BudgetCounter]:
        """Return the counters of some budgets of an account that are in memory, those of their values among them."""
        # Copied in one step of the interpreter, so without the lock.
        return [
            counter
            for (owner, counter_id), counter in list(self._counters.items())
            if owner == account_id
            and isinstance(counter, BudgetCounter)
            and scope_counter_of(counter_id) in counter_ids
        ]

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
            settled: dict[str, list[tuple[int, int]]] = {}
            for at, amount in counted.items():
                if at[1] == CREDIT_COUNTER:
                    settled.setdefault(at[0], []).append((at[2], amount))
            # A group whose charges to a balance cancel out changes no book.
            for account_id in books.keys() | settled.keys():
                pool = self._counters.get((account_id, CREDIT_COUNTER))
                if isinstance(pool, CreditPool):
                    pool.booked(
                        books.get(account_id),
                        counted=settled.get(account_id, ()),
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
                if self._is_idle(at, now_us):
                    self._evict(at)

    def _is_idle(self, at: Place, now_us: int) -> bool:
        counter = self._counters.get(at)
        if counter is None or not counter.is_idle(now_us):
            return False
        # No key refers to it between two requests: it would be read again for each of them.
        return not (at in self._values and isinstance(counter, BudgetCounter) and now_us < counter.end_us)

    def _evict(self, at: Place) -> bool:
        """Remove a counter that nothing refers to; return whether it is gone. The lock is held."""
        if at in self._reading:
            return False
        # A key, a hold, a request that is being decided, a thread that reads it or a window on its way to
        # the ledger may still refer to it: then it goes back. Nobody misses it, as we have the lock.
        left = weakref.ref(self._counters.pop(at))
        kept = left()
        if kept is not None:
            self._counters[at] = kept
            return False
        self._values.pop(at, None)
        return True

    def _keep_value(self, at: Place) -> None:
        """Note a counter of a value, and evict others that the ledger has as they are. The lock is held."""
        self._values[at] = None
        for _ in range(_EVICTED_PER_VALUE):
            if len(self._values) <= VALUES_MAX:
                return
            oldest = next(iter(self._values))
            if not (self._counters[oldest].is_saved and self._evict(oldest)):
                # To the end.
                del self._values[oldest]
                self._values[oldest] = None
