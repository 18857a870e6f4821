"""
The counters that a node decides from. Each holds this node's allotment of one limit, budget or balance.

On one node the allotment is the whole remainder. Every counter answers the same four questions, so that
`admit` is one loop to ask and one loop to take:

    fits(amount, now_us)            would it be admitted now?
    take(amount, now_us) → mark     set it aside; the mark says where
    settle(mark, held, actual)      end that hold with what was really used
    give_back(mark, held)           end that hold as if it never was

Callers hold the gate's lock. Time is microseconds since the Unix epoch. Counters never roll backwards: when
the clock jumps back, the later window goes on counting, so a jump can delay a request but not overshoot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.decisions import UNITS
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.periods import duration_s
from tollkeeper.domain.pools import CreditBook

SLIDING_SLOTS: Final = 60
_NEVER_US: Final = 2**62


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

    def fits(self, amount: int, now_us: int) -> bool: ...
    def take(self, amount: int, now_us: int) -> int: ...
    def settle(self, mark: int, held: int, actual: int) -> None: ...
    def give_back(self, mark: int, held: int) -> None: ...
    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        """Return the most that is allowed (None: no bound) and what is used or held now."""

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        """Return when *amount* fits again if nothing else happens; None when time does not help."""

    def resets_at_us(self, now_us: int) -> int | None:
        """Return when the current window or period ends; None without one."""


class RateCounter:
    """
    Base of the windows: what they share is their identity, and that a crash must not empty them.

    A counter that changed puts itself on the gate's list of `changed` ones, once, for the next commit.
    """

    __slots__ = (
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

    def slots(self) -> dict[int, int]:
        """Return what must survive a crash, and clear `dirty`: `slot → used`."""
        raise AssertionError("every window stores its own slots")

    def expires_at_us(self) -> int:
        """Return from when on the stored slots mean nothing."""
        raise AssertionError("every window knows its own end")


class FixedWindow(RateCounter):
    """At most `allowed` per window; windows are aligned to the Unix epoch."""

    __slots__ = ("start_us", "used")

    def __init__(
        self, account_id: str, counter_id: str, limit: Limit, now_us: int, stored: dict[int, int], changed: list[RateCounter]
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
        self.mark_dirty()
        return self.start_us

    def settle(self, mark: int, held: int, actual: int) -> None:
        if mark == self.start_us:
            self.used += actual - held
            self.mark_dirty()

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


class SlidingWindow(RateCounter):
    """
    At most `allowed` in any span as long as the window.

    Counts in sixtieths of the window and lets a sixtieth go only when all of it has left the span, so it
    never overshoots; a denial may outlast the exact instant by one sixtieth.
    """

    __slots__ = ("_slots", "slot_us", "used")

    def __init__(
        self, account_id: str, counter_id: str, limit: Limit, now_us: int, stored: dict[int, int], changed: list[RateCounter]
    ) -> None:
        super().__init__(account_id, counter_id, limit, changed)
        self.slot_us = max(1, self.width_us // SLIDING_SLOTS)
        self._slots: deque[list[int]] = deque([start, used] for start, used in sorted(stored.items()) if used)
        self.used = sum(used for _, used in self._slots)
        self.fits(0, now_us)

    def fits(self, amount: int, now_us: int) -> bool:
        slots = self._slots
        oldest = now_us - self.width_us - self.slot_us
        while slots and slots[0][0] <= oldest:
            self.used -= slots.popleft()[1]
        return self.used + amount <= self.allowed

    def take(self, amount: int, now_us: int) -> int:
        slots = self._slots
        start = now_us - now_us % self.slot_us
        if slots and slots[-1][0] >= start:
            slots[-1][1] += amount
            start = slots[-1][0]
        else:
            slots.append([start, amount])
        self.used += amount
        self.mark_dirty()
        return start

    def settle(self, mark: int, held: int, actual: int) -> None:
        for slot in self._slots:
            if slot[0] == mark:
                slot[1] += actual - held
                self.used += actual - held
                self.mark_dirty()
                return

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
        return {start: used for start, used in self._slots}

    def expires_at_us(self) -> int:
        return (self._slots[-1][0] if self._slots else 0) + self.slot_us + self.width_us


class PermitBucket(RateCounter):
    """
    A token bucket of permits: up to *burst* at once, refilled by `allowed` per window.

    Levels are whole numbers of permits × µs of the window, so refilling loses nothing to rounding.
    """

    __slots__ = ("burst", "last_us", "level")

    def __init__(
        self, account_id: str, counter_id: str, limit: Limit, now_us: int, stored: dict[int, int], changed: list[RateCounter]
    ) -> None:
        super().__init__(account_id, counter_id, limit, changed)
        self.burst = limit.burst if limit.burst is not None else limit.amount
        self.level = stored.get(0, self.burst * self.width_us)
        self.last_us = stored.get(1, now_us)

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

    def settle(self, mark: int, held: int, actual: int) -> None:
        self.level = min(self.burst * self.width_us, self.level + (held - actual) * self.width_us)
        self.mark_dirty()

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
        return {0: self.level, 1: self.last_us}

    def expires_at_us(self) -> int:
        full = self.lifts_at_us(self.burst, self.last_us)
        return _NEVER_US if full is None else full


class Concurrency(RateCounter):
    """At most `allowed` under way at once. Only open holds count, so a restart recounts them."""

    __slots__ = ("used",)

    def __init__(
        self, account_id: str, counter_id: str, limit: Limit, now_us: int, stored: dict[int, int], changed: list[RateCounter]
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


WINDOWS: Final[dict[str, type[FixedWindow] | type[SlidingWindow] | type[PermitBucket] | type[Concurrency]]] = {
    "fixed": FixedWindow,
    "sliding": SlidingWindow,
    "permits": PermitBucket,
    "concurrency": Concurrency,
}


class Stored(Protocol):
    """Reads the truth of one budget counter: what is committed, and as of which commit."""

    def __call__(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]: ...


class BudgetCounter:
    """
    What is left of one budget in its current period.

    `committed` is what the ledger says, `uncommitted` what was settled here and is on its way there, `held`
    what open holds set aside. A new period is a new row of the ledger, found from the clock.
    """

    __slots__ = (
        "account_id",
        "as_of_commit",
        "committed",
        "counter_id",
        "end_us",
        "held",
        "name",
        "reason",
        "scope",
        "start_us",
        "stored",
        "uncommitted",
        "unit",
        "unit_index",
    )

    def __init__(self, scope: BudgetScope, now_us: int, stored: Stored) -> None:
        self.scope = scope
        self.account_id = scope.account_id
        self.counter_id = scope.counter_id
        self.name = scope.name
        self.unit = scope.unit
        self.unit_index = UNITS.index(scope.unit)
        self.reason = "budget_exhausted"
        self.stored = stored
        self.start_us = self.end_us = 0
        self.committed = self.uncommitted = self.held = self.as_of_commit = 0
        self._roll(now_us)

    def _roll(self, now_us: int) -> None:
        self.start_us, self.end_us = self.scope.span_us(now_us)
        self.committed, self.as_of_commit = self.stored(self.account_id, self.counter_id, self.start_us)
        self.uncommitted = self.held = 0

    def amend(self, scope: BudgetScope, now_us: int) -> None:
        """Take over a changed budget of the same id; a changed period starts from its own ledger row."""
        span = scope.span_us(now_us)
        self.scope = scope
        if span != (self.start_us, self.end_us):
            self._roll(now_us)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us >= self.end_us:
            self._roll(now_us)
        most = self.scope.amount
        # Money needs something left even for a call whose cost is not known beforehand.
        if not amount and self.unit != "nanos":
            return True
        return most is None or self.committed + self.uncommitted + self.held + max(amount, 1) <= most

    def take(self, amount: int, now_us: int) -> int:
        self.held += amount
        return self.start_us

    def settle(self, mark: int, held: int, actual: int) -> None:
        if mark == self.start_us:
            self.held -= held
            self.uncommitted += actual

    def give_back(self, mark: int, held: int) -> None:
        if mark == self.start_us:
            self.held -= held

    def booked(self, period_start_us: int, amount: int, *, counted: int, commit: int) -> None:
        """Learn of a commit that charged *amount*, of which *counted* was settled here before."""
        if period_start_us == self.start_us:
            self.uncommitted -= counted
            if commit > self.as_of_commit:
                self.committed += amount

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return self.scope.amount, self.committed + self.uncommitted + self.held

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return None

    def resets_at_us(self, now_us: int) -> int | None:
        self.fits(0, now_us)
        return self.end_us


class CreditPool:
    """What is left of one account's credit balance: the committed book, less what is settled or held here."""

    __slots__ = (
        "account_id",
        "as_of_commit",
        "balance",
        "book",
        "counter_id",
        "falls_at_us",
        "held",
        "name",
        "reason",
        "uncommitted",
        "unit",
        "unit_index",
    )

    def __init__(
        self, account_id: str, now_us: int, stored: Callable[[str], tuple[CreditBook, int]]
    ) -> None:
        self.account_id = account_id
        self.counter_id = self.name = "credit"
        self.unit = "nanos"
        self.unit_index = UNITS.index("nanos")
        self.reason = "credit_exhausted"
        self.held = self.uncommitted = 0
        self.book, self.as_of_commit = stored(account_id)
        self.balance = 0
        self.falls_at_us = 0
        self._count(now_us)

    def _count(self, now_us: int) -> None:
        now = from_us(now_us)
        self.balance = self.book.balance_nanos(now)
        falls_at = self.book.next_expiry(now)
        self.falls_at_us = _NEVER_US if falls_at is None else to_us(falls_at)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us >= self.falls_at_us:
            self._count(now_us)
        # A credit key needs a balance even for a call whose cost is not known beforehand.
        return self.balance - self.uncommitted - self.held >= max(amount, 1)

    def take(self, amount: int, now_us: int) -> int:
        self.held += amount
        return 0

    def settle(self, mark: int, held: int, actual: int) -> None:
        self.held -= held
        self.uncommitted += actual

    def give_back(self, mark: int, held: int) -> None:
        self.held -= held

    def booked(self, book: CreditBook, *, counted: int, commit: int, now_us: int) -> None:
        """Learn of a commit that left the account with *book*; *counted* of it was settled here before."""
        self.uncommitted -= counted
        if commit > self.as_of_commit:
            self.book = book
            self.as_of_commit = commit
            self._count(now_us)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return max(0, self.balance), self.uncommitted + self.held

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return None

    def resets_at_us(self, now_us: int) -> int | None:
        return None
