"""
When the periods of budgets opened that open with the first use: in memory, saved with the next commit.

Gate, ingest and corrections all ask here, so a period opens once, no matter which of them uses the budget first. What
is charged to it is in a group that has its opening, or in a later one. After a restart the ledger says the same. The
rules are those of `domain.first_use`; this keeps what they decided.

A budget that counts values apart has openings for each of them, by the counter of the value. From when on it counts is
known of the budget as a whole.

`lock` is the gate's: between its question and its taking nobody else opens a period. The ledger is read without it.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tollkeeper.domain.bookings import OpenedPeriod
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.first_use import Span, following, span_at, spans_to_open
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.matching import VALUE_MARK, scope_counter_of
from tollkeeper.domain.periods import FAR_FUTURE

_IDLE_US: Final = 600 * US_PER_S
_NEVER_US: Final = to_us(FAR_FUTURE)
_ENTRIES_MAX: Final = 100_000
"""Counters in memory, some 50 MB: beyond, those go that nobody asked for longest, and are read again when needed."""
_STEP: Final = 1_000
"""Counters that one step of an eviction looks at: it keeps the gate's lock for less than 1 ms."""
_SPANS_MAX: Final = 1_000
_SPANS_KEPT: Final = 100
"""A counter with more periods than `_SPANS_MAX` in memory is cut to its newest `_SPANS_KEPT`."""

ReadOpened: TypeAlias = Callable[[str, str, str, int], tuple[int | None, list[Span]]]
"""`ports.Ledger.opened_periods`."""
_At: TypeAlias = tuple[str, str, str]
"""`(account, counter, period)`: a budget whose period was changed has other openings."""


class NotLoaded(LookupError):
    """The openings of that time must be loaded first (`Openings.load`), without the lock."""


class _Opened:
    """
    The periods of one counter.

    Attributes:
        active_from_us: From when on the budget counts; nothing opens a period before.
        known_from_us: All periods that end later are here.
        spans: Ascending.
        looked_at_us: The latest time that somebody asked for.
    """

    __slots__ = ("active_from_us", "known_from_us", "looked_at_us", "spans")

    def __init__(self, active_from_us: int, known_from_us: int, spans: list[Span]) -> None:
        self.active_from_us = active_from_us
        self.known_from_us = known_from_us
        self.spans = spans
        self.looked_at_us = 0


class Openings:
    """The openings of all budgets on this node. Methods that say so are called with `lock` held; the rest take it."""

    def __init__(self, read: ReadOpened) -> None:
        self.lock = threading.Lock()
        self._read = read
        self._entries: dict[_At, _Opened] = {}
        self._unsaved: dict[_At, set[Span]] = {}
        """Periods that no commit had yet."""

    # -- with the lock held -----------------------------------------------------------------------------

    def find(self, scope: BudgetScope, at_us: int) -> Span | None:
        """
        Return the period of *scope* that holds *at_us*, or None; before the budget counts, `(0, active from)`.

        Raises:
            NotLoaded: The openings of that time are not in memory.
        """
        entry = self._entry(scope, at_us)
        if at_us < entry.active_from_us:
            return (0, entry.active_from_us)
        return span_at(entry.spans, at_us)

    def open(self, scope: BudgetScope, at_us: int, now_us: int) -> Span:
        """Return the period of *scope* that holds *at_us*; open it if it is not. Raises `NotLoaded`."""
        entry = self._entry(scope, at_us)
        if at_us < entry.active_from_us:
            return (0, entry.active_from_us)
        # Nothing opens before the budget counts, however far the clock was set back.
        now_us = max(now_us, entry.active_from_us)
        self._entry(scope, min(at_us, now_us))
        opened = spans_to_open(entry.spans, at_us, now_us, scope.first_use_us)
        for span in opened:
            insort(entry.spans, span)
            self._unsaved.setdefault(_at(scope), set()).add(span)
        found = span_at(entry.spans, at_us)
        assert found is not None
        return found

    def following(self, scope: BudgetScope, at_us: int) -> list[Span]:
        """See `domain.first_use.following`. Raises `NotLoaded`."""
        return following(self._entry(scope, at_us).spans, at_us, scope.first_use_us)

    def _entry(self, scope: BudgetScope, from_us: int) -> _Opened:
        entry = self._entries.get(_at(scope))
        if entry is None or (from_us < entry.known_from_us and from_us >= entry.active_from_us):
            raise NotLoaded
        entry.looked_at_us = max(entry.looked_at_us, from_us)
        return entry

    def is_loaded(self, scope: BudgetScope, at_us: int) -> bool:
        """Return whether the openings of *scope* at that time are in memory."""
        try:
            self._entry(scope, at_us)
        except NotLoaded:
            return False
        return True

    # -- of any thread ----------------------------------------------------------------------------------

    def load(self, scope: BudgetScope, from_us: int) -> None:
        """
        Make the openings of *scope* from a time on known.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        at = _at(scope)
        with self.lock:
            entry = self._entries.get(at)
            if entry is not None:
                from_us = max(from_us, entry.active_from_us)
                if from_us >= entry.known_from_us:
                    return
        active_from_us, spans = self._read(*at, from_us)
        with self.lock:
            active_from_us = self._began(at, active_from_us)
            if active_from_us is None:
                # Not in force, so nothing is in a period of it until `begin`.
                self._entries.setdefault(at, _Opened(_NEVER_US, _NEVER_US, []))
                return
            entry = self._entries.get(at)
            if entry is not None and entry.active_from_us > active_from_us:
                # Began to count again since it was read.
                return
            known = {span for span in spans if span[0] >= active_from_us} | self._unsaved.get(at, set())
            if entry is not None:
                known.update(entry.spans)
                from_us = min(from_us, entry.known_from_us)
            self._entries[at] = _Opened(active_from_us, from_us, sorted(known))

    def _began(self, at: _At, read_us: int | None) -> int | None:
        """Return from when on a counter counts; *read_us* is what the ledger had, perhaps before a `begin`."""
        account_id, counter_id, period = at
        whole = self._entries.get((account_id, scope_counter_of(counter_id), period))
        if whole is None or VALUE_MARK not in counter_id:
            return read_us
        if whole.active_from_us == _NEVER_US:
            return None
        return max(read_us or 0, whole.active_from_us)

    def period_us(self, scope: BudgetScope, at_us: int, now_us: int, *, opens: bool = True) -> Span | None:
        """
        Return the period of *scope* that holds *at_us*, opened if it is not yet; with *opens* False only if it is.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        while True:
            with self.lock:
                try:
                    return self.open(scope, at_us, now_us) if opens else self.find(scope, at_us)
                except NotLoaded:
                    pass
            self.load(scope, min(at_us, now_us))

    def spans_from(self, scope: BudgetScope, from_us: int) -> list[Span]:
        """Return the periods that end after *from_us*, ascending. Raises `Unavailable`."""
        self.load(scope, from_us)
        with self.lock:
            entry = self._entries.get(_at(scope))
            return [] if entry is None else [span for span in entry.spans if span[1] > from_us]

    # -- budgets that come into force -------------------------------------------------------------------

    def begin(self, scope: BudgetScope, active_from_us: int, now_us: int) -> None:
        """Count from *active_from_us* on: what opened before that is over; what opened since goes on."""
        at = _at(scope)
        with self.lock:
            known = self._entries.get(at)
            spans = set(() if known is None else known.spans) | self._unsaved.get(at, set())
            kept = sorted(span for span in spans if span[0] >= active_from_us)
            entry = self._entries[at] = _Opened(active_from_us, active_from_us, kept)
            # Not idle before the ledger has it.
            entry.looked_at_us = now_us
            unsaved = self._unsaved.pop(at, set()).intersection(kept)
            if unsaved:
                self._unsaved[at] = unsaved
        # After that, since what is loaded from here on has it. Found without the lock: there may be many.
        values = self._values_of(at)
        with self.lock:
            for of_value in values:
                # Read again when it is used: what the ledger has of it goes on too.
                self._entries.pop(of_value, None)
                later = {span for span in self._unsaved.pop(of_value, ()) if span[0] >= active_from_us}
                if later:
                    self._unsaved[of_value] = later

    def end(self, account_id: str, counter_id: str, *, but_period: str = "") -> None:
        """Forget a budget that is no longer in force, but for periods of the name *but_period*."""
        ended = [at for at in self._known_at(account_id, counter_id) if at[2] != but_period]
        with self.lock:
            for at in ended:
                self._entries.pop(at, None)
                self._unsaved.pop(at, None)

    def reread(self, scope: BudgetScope) -> None:
        """Drop what is known of *scope* but for what is not saved: the ledger did not take its beginning."""
        known = (_at(scope), *self._values_of(_at(scope)))
        with self.lock:
            for at in known:
                self._entries.pop(at, None)

    def _known_at(self, account_id: str, counter_id: str) -> set[_At]:
        """Return where a budget and its values are known."""
        # Copied in one step of the interpreter each, so without the lock.
        known = {*list(self._entries), *list(self._unsaved)}
        return {at for at in known if at[0] == account_id and scope_counter_of(at[1]) == counter_id}

    def _values_of(self, at: _At) -> set[_At]:
        return {known for known in self._known_at(*at[:2]) if known != at and known[2] == at[2]}

    # -- for the committer ------------------------------------------------------------------------------

    def unsaved(self) -> list[OpenedPeriod]:
        """Return the periods that no commit had yet, in one order."""
        if not self._unsaved:
            return []
        with self.lock:
            return [
                OpenedPeriod(*at, *span) for at in sorted(self._unsaved) for span in sorted(self._unsaved[at])
            ]

    def saved(self, opened: Sequence[OpenedPeriod]) -> None:
        """Note that the ledger has *opened*."""
        if not opened:
            return
        with self.lock:
            for account_id, counter_id, period, start_us, end_us in opened:
                at = (account_id, counter_id, period)
                left = self._unsaved.get(at)
                if left is not None:
                    left.discard((start_us, end_us))
                    if not left:
                        del self._unsaved[at]

    def evict_idle(self, now_us: int) -> None:
        """Forget counters that nobody asked for in a while, and old periods; they are read again when needed."""
        # Copied in one step of the interpreter, so without the lock; then some at a time with it.
        entries = list(self._entries.items())
        excess = len(entries) - _ENTRIES_MAX
        if excess > 0:
            # Made-up values cannot grow it: those that nobody asked for longest go.
            entries.sort(key=lambda known: known[1].looked_at_us)
        for first in range(0, len(entries), _STEP):
            with self.lock:
                for place, (at, entry) in enumerate(entries[first : first + _STEP], first):
                    if self._entries.get(at) is entry and at not in self._unsaved:
                        self._evict(
                            at, entry, is_idle=place < excess or entry.looked_at_us < now_us - _IDLE_US
                        )

    def _evict(self, at: _At, entry: _Opened, *, is_idle: bool) -> None:
        if is_idle:
            del self._entries[at]
        elif len(entry.spans) > _SPANS_MAX:
            del entry.spans[:-_SPANS_KEPT]
            # Those before ended when this one began, at the latest.
            entry.known_from_us = entry.spans[0][0]


def _at(scope: BudgetScope) -> _At:
    return (scope.account_id, scope.counter_id, scope.period)
