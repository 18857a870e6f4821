"""
The counters that a node decides from. Each holds this node's allotment of one limit, budget or balance.

On one node the allotment is the whole remainder. Every counter answers the same four questions, so that
`admit` is one loop to ask and one loop to take:

    fits(amount, now_us)            would it be admitted now?
    take(amount, now_us) → mark     set it aside; the mark says where
    settle(mark, held, actual)      end that hold with what was really used
    unsettle(mark, held, actual)    take such an ending back: its commit failed, the hold is open again
    give_back(mark, held)           end that hold as if it never was

Callers hold the gate's lock, and call `take` right after `fits` with the same time. Time is microseconds
since the Unix epoch. Rate limits never roll backwards: when the clock jumps back, the later window goes on
counting, so a jump can delay a request but not overshoot. Budgets count each request in the period of its
own time, as the meter does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final, Protocol, TypeAlias

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.decisions import UNITS
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.periods import duration_s
from tollkeeper.domain.pools import CreditBook

SLIDING_SLOTS: Final = 60
_OVER: Final = -(2**62)
"""Never the start of a window or slot."""
_NEVER_US: Final = 2**62
_UNBOUNDED: Final = 2**127


class Slots(Protocol):
    """Reads what a rate counter had stored: `slot → used` for one counter."""

    def __call__(self, account_id: str, counter_id: str) -> dict[int, int]: ...


class Counter(Protocol):
    """What `admit` needs of a limit, budget or balance."""

    account_id: str
    counter_id: str
    name: str
    unit: str
    unit_index: int
    reason: str
    charged: ClassVar[bool]
    """Whether the ledger keeps it: a budget or a balance."""
    counts_open: ClassVar[bool]
    """Whether it must hear of every ending, even when a request used just what was held."""

    def fits(self, amount: int, now_us: int) -> bool: ...
    def take(self, amount: int, now_us: int) -> int: ...
    def settle(self, mark: int, held: int, actual: int) -> None: ...
    def unsettle(self, mark: int, held: int, actual: int) -> None: ...
    def give_back(self, mark: int, held: int) -> None: ...
    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        """Return the most that is allowed (None: no bound) and what is used or held now."""

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        """Return when *amount* fits again if nothing else happens; None when time does not help."""

    def resets_at_us(self, now_us: int) -> int | None:
        """Return when the current window or period ends; None without one."""

    def is_idle(self, now_us: int) -> bool:
        """Return whether a counter read anew from the ledger would say the same, if no hold refers to this one."""


class RateCounter:
    """
    Base of the windows: what they share is their identity, and that a crash must not empty them.

    A counter that changed puts itself on the gate's list of `changed` ones, once, for the next commit.
    """

    __slots__ = (
        "__weakref__",
        "account_id",
        "allowed",
        "changed",
        "counter_id",
        "dirty",
        "name",
        "reason",
        "unit",
        "unit_index",
        "width_us",
    )
    charged: ClassVar[bool] = False
    counts_open: ClassVar[bool] = False

    def __init__(self, account_id: str, counter_id: str, limit: Limit, changed: list[RateCounter]) -> None:
        self.changed = changed
        self.account_id = account_id
        self.counter_id = counter_id
        self.name = limit.name
        self.unit: str = limit.unit
        self.unit_index = UNITS.index(limit.unit)
        self.allowed = limit.amount
        self.reason = "rate_limited"
        self.width_us = 0 if limit.algorithm == "concurrency" else duration_s(limit.window) * US_PER_S
        self.dirty = False

    def amend(self, limit: Limit) -> None:
        """Take over a changed amount of the same limit; what is used stays used."""
        self.allowed = limit.amount

    def mark_dirty(self) -> None:
        if not self.dirty:
            self.dirty = True
            self.changed.append(self)

    def take_late(self, amount: int, at_us: int, now_us: int) -> int:
        """
        Count a request of *at_us* that ends now and holds nothing any more; return its mark, as `take`.

        One that is in no window that still counts is not counted: its mark is `_OVER`.
        """
        raise AssertionError("every window that is not of open holds counts late requests")

    def slots(self) -> dict[int, int]:
        """Return what must survive a crash, and clear `dirty`: `slot → used`."""
        raise AssertionError("every window stores its own slots")

    def expires_at_us(self) -> int:
        """Return from when on the stored slots mean nothing."""
        raise AssertionError("every window knows its own end")

    def is_idle(self, now_us: int) -> bool:
        return not self.dirty and self.expires_at_us() <= now_us


class FixedWindow(RateCounter):
    """At most `allowed` per window; windows are aligned to the Unix epoch."""

    __slots__ = ("start_us", "used")

    def __init__(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        stored: dict[int, int],
        changed: list[RateCounter],
    ) -> None:
        super().__init__(account_id, counter_id, limit, changed)
        self.start_us = max(now_us - now_us % self.width_us, max(stored, default=0))
        self.used = stored.get(self.start_us, 0)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us >= self.start_us + self.width_us:
            self.start_us = now_us - now_us % self.width_us
            self.used = 0
        return self.used + amount <= self.allowed

    def take(self, amount: int, now_us: int) -> int:
        self.used += amount
        if not self.dirty:
            self.mark_dirty()
        return self.start_us

    def take_late(self, amount: int, at_us: int, now_us: int) -> int:
        self.fits(0, now_us)
        # While the clock is behind the window, the window counts for every instant, as in `take`.
        begun = self.start_us <= at_us or now_us < self.start_us
        return self.take(amount, now_us) if begun and now_us < self.start_us + self.width_us else _OVER

    def settle(self, mark: int, held: int, actual: int) -> None:
        if mark == self.start_us:
            self.used += actual - held
            self.mark_dirty()

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.settle(mark, actual, held)

    def give_back(self, mark: int, held: int) -> None:
        self.settle(mark, held, 0)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return self.allowed, self.used

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return self.start_us + self.width_us if amount <= self.allowed else None

    def resets_at_us(self, now_us: int) -> int | None:
        return max(self.start_us, now_us - now_us % self.width_us) + self.width_us

    def slots(self) -> dict[int, int]:
        self.dirty = False
        return {self.start_us: self.used}

    def expires_at_us(self) -> int:
        return self.start_us + self.width_us


class FirstCallWindow(FixedWindow):
    """At most `allowed` per window; a window opens with the first request after the one before ended."""

    __slots__ = ()

    def __init__(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        stored: dict[int, int],
        changed: list[RateCounter],
    ) -> None:
        super().__init__(account_id, counter_id, limit, now_us, stored, changed)
        # None is open yet, or one that is over: either way the next request opens one.
        self.start_us = max(stored, default=-self.width_us)
        self.used = stored.get(self.start_us, 0)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us >= self.start_us + self.width_us:
            self.used = 0
        return self.used + amount <= self.allowed

    def take(self, amount: int, now_us: int) -> int:
        if now_us >= self.start_us + self.width_us:
            self.start_us = now_us
        return super().take(amount, now_us)

    def resets_at_us(self, now_us: int) -> int | None:
        start_us = self.start_us if now_us < self.start_us + self.width_us else now_us
        return start_us + self.width_us


class SlidingWindow(RateCounter):
    """
    At most `allowed` in any span as long as the window.

    Counts in sixtieths of the window and lets a sixtieth go only when all of it has left the span, so it
    never overshoots; a denial may outlast the exact instant by one sixtieth. While the clock is behind the
    latest instant that it showed, it stands still there.
    """

    __slots__ = ("_slots", "latest_us", "slot_us", "used")

    def __init__(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        stored: dict[int, int],
        changed: list[RateCounter],
    ) -> None:
        super().__init__(account_id, counter_id, limit, changed)
        self.slot_us = max(1, self.width_us // SLIDING_SLOTS)
        # Also those that count nothing yet: a hold by estimate may settle there.
        self._slots: deque[list[int]] = deque([start, used] for start, used in sorted(stored.items()))
        self.used = sum(used for _, used in self._slots)
        self.latest_us = max(stored, default=now_us)
        self.fits(0, now_us)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us < self.latest_us:
            now_us = self.latest_us
        else:
            self.latest_us = now_us
        slots = self._slots
        oldest = now_us - self.width_us - self.slot_us
        while slots and slots[0][0] <= oldest:
            self.used -= slots.popleft()[1]
        return self.used + amount <= self.allowed

    def take(self, amount: int, now_us: int) -> int:
        slots = self._slots
        now_us = max(now_us, self.latest_us)
        start = now_us - now_us % self.slot_us
        if slots and slots[-1][0] >= start:
            slots[-1][1] += amount
            start = slots[-1][0]
        else:
            slots.append([start, amount])
        self.used += amount
        if not self.dirty:
            self.mark_dirty()
        return start

    def take_late(self, amount: int, at_us: int, now_us: int) -> int:
        self.fits(0, now_us)
        if max(at_us, self.latest_us) > now_us:
            return self.take(amount, now_us)
        start = at_us - at_us % self.slot_us
        if start <= now_us - self.width_us - self.slot_us:
            return _OVER
        slots = self._slots
        place = len(slots)
        while place and slots[place - 1][0] > start:
            place -= 1
        if place and slots[place - 1][0] == start:
            slots[place - 1][1] += amount
        else:
            slots.insert(place, [start, amount])
        self.used += amount
        self.mark_dirty()
        return start

    def settle(self, mark: int, held: int, actual: int) -> None:
        # From the newest on: most requests end soon.
        for slot in reversed(self._slots):
            if slot[0] <= mark:
                if slot[0] == mark:
                    slot[1] += actual - held
                    self.used += actual - held
                    self.mark_dirty()
                return

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.settle(mark, actual, held)

    def give_back(self, mark: int, held: int) -> None:
        self.settle(mark, held, 0)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return self.allowed, self.used

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        if amount > self.allowed:
            return None
        left = self.used
        for start, used in self._slots:
            left -= used
            if left + amount <= self.allowed:
                return start + self.slot_us + self.width_us
        return now_us

    def resets_at_us(self, now_us: int) -> int | None:
        return self._slots[-1][0] + self.slot_us + self.width_us if self._slots else now_us

    def slots(self) -> dict[int, int]:
        self.dirty = False
        return dict(self._slots)  # type: ignore[arg-type]  # Lists of two.

    def expires_at_us(self) -> int:
        return (self._slots[-1][0] if self._slots else 0) + self.slot_us + self.width_us


_PERMITS, _LAST_US, _PART = 0, 1, 2
"""The slots of a stored permit bucket."""


class PermitBucket(RateCounter):
    """
    A token bucket of permits: up to *burst* at once, refilled by `allowed` per window.

    Levels are whole numbers of permits × µs of the window, so refilling loses nothing to rounding.
    """

    __slots__ = ("burst", "last_us", "level")

    def __init__(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        stored: dict[int, int],
        changed: list[RateCounter],
    ) -> None:
        super().__init__(account_id, counter_id, limit, changed)
        self.burst = limit.burst if limit.burst is not None else limit.amount
        permits, part = stored.get(_PERMITS), stored.get(_PART, 0)
        self.level = self.burst * self.width_us if permits is None else permits * self.width_us + part
        self.last_us = stored.get(_LAST_US, now_us)

    def amend(self, limit: Limit) -> None:
        super().amend(limit)
        self.burst = limit.burst if limit.burst is not None else limit.amount
        self.level = min(self.level, self.burst * self.width_us)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us > self.last_us:
            self.level = min(self.burst * self.width_us, self.level + (now_us - self.last_us) * self.allowed)
            self.last_us = now_us
        return amount * self.width_us <= self.level

    def take(self, amount: int, now_us: int) -> int:
        self.level -= amount * self.width_us
        self.mark_dirty()
        return 0

    def take_late(self, amount: int, at_us: int, now_us: int) -> int:
        # As if it were asked now, however long ago it was: a bucket does not remember when it was full last.
        self.fits(0, now_us)
        return self.take(amount, now_us)

    def settle(self, mark: int, held: int, actual: int) -> None:
        self.level = min(self.burst * self.width_us, self.level + (held - actual) * self.width_us)
        self.mark_dirty()

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.settle(mark, actual, held)

    def give_back(self, mark: int, held: int) -> None:
        self.settle(mark, held, 0)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return self.burst, self.burst - self.level // self.width_us

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        if amount > self.burst or not self.allowed:
            return None
        missing = max(0, amount * self.width_us - self.level)
        return self.last_us + -(-missing // self.allowed)

    def resets_at_us(self, now_us: int) -> int | None:
        return self.lifts_at_us(self.burst, now_us)

    def slots(self) -> dict[int, int]:
        self.dirty = False
        # Whole permits and the part of the next one, since their product may need more than 64 bits.
        permits, part = divmod(self.level, self.width_us)
        return {_PERMITS: permits, _PART: part, _LAST_US: self.last_us}

    def expires_at_us(self) -> int:
        full = self.lifts_at_us(self.burst, self.last_us)
        return _NEVER_US if full is None else full


class Concurrency(RateCounter):
    """At most `allowed` under way at once. Only open holds count, so a restart recounts them."""

    __slots__ = ("used",)
    counts_open: ClassVar[bool] = True

    def __init__(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        stored: dict[int, int],
        changed: list[RateCounter],
    ) -> None:
        super().__init__(account_id, counter_id, limit, changed)
        self.reason = "too_many_concurrent"
        self.used = 0

    def fits(self, amount: int, now_us: int) -> bool:
        return self.used + 1 <= self.allowed

    def take(self, amount: int, now_us: int) -> int:
        self.used += 1
        return 0

    def settle(self, mark: int, held: int, actual: int) -> None:
        self.used -= 1

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.used += 1

    def give_back(self, mark: int, held: int) -> None:
        self.used -= 1

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        return self.allowed, self.used

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return now_us + US_PER_S if self.allowed else None

    def resets_at_us(self, now_us: int) -> int | None:
        return None

    def slots(self) -> dict[int, int]:
        self.dirty = False
        return {}

    def expires_at_us(self) -> int:
        return 0

    def is_idle(self, now_us: int) -> bool:
        return not self.used


Window: TypeAlias = FixedWindow | SlidingWindow | PermitBucket | Concurrency
WINDOWS: Final[dict[str, type[Window]]] = {
    "fixed": FixedWindow,
    "from_first": FirstCallWindow,
    "sliding": SlidingWindow,
    "permits": PermitBucket,
    "concurrency": Concurrency,
}


class OwnAmount:
    """
    One key's own amount of a window whose counts it shares with keys of other amounts.

    Rotations share a window; when their limits differ, each is held to its own amount of what all of them used.
    """

    __slots__ = (
        "_allowed",
        "_window",
        "account_id",
        "counter_id",
        "give_back",
        "is_idle",
        "name",
        "reason",
        "settle",
        "slot_us",
        "take",
        "unit",
        "unit_index",
        "unsettle",
        "width_us",
    )
    charged: ClassVar[bool] = False
    counts_open: ClassVar[bool] = True

    def __init__(self, window: Window, limit: Limit) -> None:
        self._window = window
        self._allowed = limit.amount
        self.account_id = window.account_id
        self.counter_id = window.counter_id
        self.name = window.name
        self.unit: str = window.unit
        self.unit_index = window.unit_index
        self.reason = window.reason
        self.width_us = window.width_us
        self.slot_us: int | None = getattr(window, "slot_us", None)
        self.take = window.take
        self.settle = window.settle
        self.unsettle = window.unsettle
        self.give_back = window.give_back
        self.is_idle = window.is_idle

    def fits(self, amount: int, now_us: int) -> bool:
        return self._mine().fits(amount, now_us)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        return self._mine().allowed_used(now_us)

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return self._mine().lifts_at_us(amount, now_us)

    def resets_at_us(self, now_us: int) -> int | None:
        return self._mine().resets_at_us(now_us)

    def _mine(self) -> Window:
        """Return the window as this key has it. All callers hold the gate's lock, so nobody else asks meanwhile."""
        self._window.allowed = self._allowed
        return self._window


class Stored(Protocol):
    """Reads the truth of one budget counter: what is committed, and as of which commit."""

    def __call__(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]: ...


class BudgetPeriod:
    """
    What one period of a budget has used: committed, on its way to the ledger, and set aside by open holds.

    Attributes:
        used: All three together.
        uncommitted: The part that was settled here and is not committed yet.
        open_count: Holds that will still settle here.
        as_of_commit: The commit as of which the ledger was read.
    """

    __slots__ = ("as_of_commit", "open_count", "uncommitted", "used")

    def __init__(self, committed: int, as_of_commit: int) -> None:
        self.used = committed
        self.as_of_commit = as_of_commit
        self.uncommitted = self.open_count = 0


class BudgetCounter:
    """
    What is left of one budget, per period; a new period is a new row of the ledger, found from the clock.

    A request counts in the period of its own time. Around the turn of a period, requests of both come in any
    order, and holds of the old one still settle: a period is kept until nothing of it is under way.
    """

    __slots__ = (
        "__weakref__",
        "_at_least",
        "_most",
        "_period",
        "_periods",
        "account_id",
        "counter_id",
        "end_us",
        "name",
        "reason",
        "scope",
        "start_us",
        "stored",
        "unit",
        "unit_index",
    )
    charged: ClassVar[bool] = True
    counts_open: ClassVar[bool] = True

    def __init__(self, scope: BudgetScope, now_us: int, stored: Stored) -> None:
        self.account_id = scope.account_id
        self.counter_id = scope.counter_id
        self.reason = "budget_exhausted"
        self.stored = stored
        self._periods: dict[int, BudgetPeriod] = {}
        self.start_us = self.end_us = 0
        self._take_over(scope)
        self._turn_to(now_us)

    def _take_over(self, scope: BudgetScope) -> None:
        self.scope = scope
        self.name = scope.name
        self.unit: str = scope.unit
        self.unit_index = UNITS.index(scope.unit)
        self._most = _UNBOUNDED if scope.amount is None else scope.amount
        # What a call will cost in money or tokens may not be known beforehand: something must be left for it.
        self._at_least = 0 if scope.unit == "credits" else 1

    def _turn_to(self, at_us: int) -> None:
        """Count in the period of *at_us* from now on."""
        start_us, end_us = self.scope.span_us(at_us)
        period = self._periods.get(start_us)
        if period is None:
            left = self._periods.get(self.start_us)
            period = BudgetPeriod(*self.stored(self.account_id, self.counter_id, start_us))
            self._periods = {
                start: known
                for start, known in self._periods.items()
                # The one just left stays, as late-comers may turn back to it any moment.
                if known.open_count or known.uncommitted or known is left
            }
            self._periods[start_us] = period
        self.start_us, self.end_us, self._period = start_us, end_us, period

    def amend(self, scope: BudgetScope, now_us: int) -> None:
        """Take over a changed budget of the same id; what is under way goes on where it began."""
        self._take_over(scope)
        self._turn_to(now_us)

    def fits(self, amount: int, now_us: int) -> bool:
        if not self.start_us <= now_us < self.end_us:
            self._turn_to(now_us)
        if not amount:
            if not self._at_least:
                return True
            amount = 1
        return self._period.used + amount <= self._most

    def take(self, amount: int, now_us: int) -> int:
        period = self._period
        period.used += amount
        period.open_count += 1
        return self.start_us

    def take_at(self, amount: int, at_us: int) -> int:
        """Set aside what was admitted at *at_us*, before this counter was asked, whether or not it fits."""
        start_us = self.scope.span_us(at_us)[0]
        period = self._period_at(start_us)
        period.used += amount
        period.open_count += 1
        return start_us

    def settle(self, mark: int, held: int, actual: int) -> None:
        period = self._periods[mark]
        period.used += actual - held
        period.uncommitted += actual
        period.open_count -= 1

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        period = self._period_at(mark)
        period.used += held - actual
        period.uncommitted -= actual
        period.open_count += 1

    def give_back(self, mark: int, held: int) -> None:
        period = self._periods[mark]
        period.used -= held
        period.open_count -= 1

    def _period_at(self, start_us: int) -> BudgetPeriod:
        # A settlement of nothing leaves nothing under way: its period may be gone when it is undone.
        period = self._periods.get(start_us)
        if period is None:
            stored = self.stored(self.account_id, self.counter_id, start_us)
            period = self._periods[start_us] = BudgetPeriod(*stored)
        return period

    def booked(self, period_start_us: int, amount: int, *, counted: int, commit: int) -> None:
        """Learn of a commit that charged *amount*, of which *counted* was settled here before."""
        period = self._periods.get(period_start_us)
        if period is not None:
            period.uncommitted -= counted
            period.used -= counted
            if commit > period.as_of_commit:
                period.used += amount

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return self.scope.amount, self._period.used

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return None

    def resets_at_us(self, now_us: int) -> int | None:
        self.fits(0, now_us)
        return self.end_us

    def is_idle(self, now_us: int) -> bool:
        return not any(period.open_count or period.uncommitted for period in self._periods.values())


class CreditPool:
    """What is left of one account's credit balance: the committed book, less what is settled or held here."""

    __slots__ = (
        "__weakref__",
        "_out",
        "account_id",
        "as_of_commit",
        "balance",
        "book",
        "counter_id",
        "falls_at_us",
        "name",
        "reason",
        "rises_before_us",
        "unit",
        "unit_index",
    )
    charged: ClassVar[bool] = True
    counts_open: ClassVar[bool] = True

    def __init__(self, account_id: str, now_us: int, stored: Callable[[str], tuple[CreditBook, int]]) -> None:
        self.account_id = account_id
        self.counter_id = self.name = CREDIT_COUNTER
        self.unit = "nanos"
        self.unit_index = UNITS.index("nanos")
        self.reason = "credit_exhausted"
        # Held, or settled and on its way to the ledger.
        self._out = 0
        self.book, self.as_of_commit = stored(account_id)
        self.balance = 0
        self.falls_at_us = self.rises_before_us = 0
        self._count(now_us)

    def _count(self, now_us: int) -> None:
        now = from_us(now_us)
        self.balance = self.book.balance_nanos(now)
        falls_at = self.book.next_expiry(now)
        self.falls_at_us = _NEVER_US if falls_at is None else to_us(falls_at)
        # A clock that is set back before a grant's expiry makes it count again, as it does in the ledger.
        fell_at = self.book.last_expiry(now)
        self.rises_before_us = 0 if fell_at is None else to_us(fell_at)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us >= self.falls_at_us or now_us < self.rises_before_us:
            self._count(now_us)
        # A credit key needs a balance even for a call whose cost is not known beforehand.
        return self.balance - self._out >= (amount or 1)

    def take(self, amount: int, now_us: int) -> int:
        self._out += amount
        return 0

    def settle(self, mark: int, held: int, actual: int) -> None:
        self._out += actual - held

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self._out += held - actual

    def give_back(self, mark: int, held: int) -> None:
        self._out -= held

    def booked(self, book: CreditBook | None, *, counted: int, commit: int, now_us: int) -> None:
        """
        Learn of a commit that contains *counted*, which was settled here before.

        Args:
            book: The account's book after the commit; None when it is as it was.
        """
        self._out -= counted
        if book is not None and commit > self.as_of_commit:
            self.book = book
            self.as_of_commit = commit
            self._count(now_us)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return max(0, self.balance), self._out

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return None

    def resets_at_us(self, now_us: int) -> int | None:
        return None

    def is_idle(self, now_us: int) -> bool:
        return not self._out
