"""
The rate windows: what a limit allows per window, and how many requests may be under way at once.

Each is a `Counter` (`gate/counter.py`). A window never rolls backwards: when the clock jumps back, the later
window goes on counting, so that a jump can delay a request but not overshoot. What a window counted is saved
with the next commit, so that a crash does not empty it.

`fits`, `take` and `settle` stand in full in each window: every request calls them, and a shared step would cost
about 0.1 µs a call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar, Final

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.decisions import unit_index
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.periods import duration_s

SLIDING_SLOTS: Final = 60
_NEVER_US: Final = 2**62


class Window(ABC):
    """
    Base of the windows: one limit of one account, and how to save it.

    A window that changed adds itself once to the registry's list of `changed` ones, for the next commit.
    """

    __slots__ = (
        "__weakref__",
        "account_id",
        "allowed",
        "changed",
        "counter_id",
        "dirty",
        "match",
        "name",
        "reason",
        "unit",
        "unit_index",
        "width_us",
    )
    charged: ClassVar[bool] = False
    counts_open: ClassVar[bool] = False

    def __init__(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        stored: dict[int, int],
        changed: list[Window],
    ) -> None:
        self.changed = changed
        self.account_id = account_id
        self.counter_id = counter_id
        self.name = limit.name
        self.unit: str = limit.unit
        self.unit_index = unit_index(limit.unit)
        self.allowed = limit.amount
        self.match = ""
        self.reason = "rate_limited"
        self.width_us = 0 if limit.algorithm == "concurrency" else duration_s(limit.window) * US_PER_S
        self.dirty = False
        self._restore(limit, now_us, stored)

    @abstractmethod
    def _restore(self, limit: Limit, now_us: int, stored: dict[int, int]) -> None:
        """Begin with what was saved: `slot → used`, as `slots` returned it; empty for a new window."""

    def amend(self, limit: Limit) -> None:
        """Take over a changed amount of the same limit; what is used stays used."""
        self.allowed = limit.amount

    def mark_dirty(self) -> None:
        if not self.dirty:
            self.dirty = True
            self.changed.append(self)

    @abstractmethod
    def fits(self, amount: int, now_us: int) -> bool: ...

    @abstractmethod
    def take(self, amount: int, now_us: int) -> int: ...

    def retake(self, amount: int, at_us: int) -> int:
        # The saved window already contains the hold: only find where it is.
        return at_us - at_us % self.width_us

    @abstractmethod
    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None: ...

    @abstractmethod
    def settle(self, mark: int, held: int, actual: int) -> None: ...

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.settle(mark, actual, held)

    def give_back(self, mark: int, held: int) -> None:
        self.settle(mark, held, 0)

    def counted(self, mark: int, held: int, now_us: int) -> int:
        _, with_it = self.allowed_used(now_us)
        self.settle(mark, held, 0)
        _, without = self.allowed_used(now_us)
        self.settle(mark, 0, held)
        return with_it - without

    def rehold(self, mark: int, held: int, amount: int, now_us: int) -> int:
        self.settle(mark, held, 0)
        # Of its window, if that is over, nothing is left to count in.
        return self.take(amount, now_us)

    @abstractmethod
    def allowed_used(self, now_us: int) -> tuple[int | None, int]: ...

    @abstractmethod
    def lifts_at_us(self, amount: int, now_us: int) -> int | None: ...

    @abstractmethod
    def resets_at_us(self, now_us: int) -> int | None: ...

    @abstractmethod
    def slots(self) -> dict[int, int]:
        """Return what must survive a crash, and clear `dirty`: `slot → used`."""

    @abstractmethod
    def expires_at_us(self) -> int:
        """Return from when on the saved slots mean nothing."""

    def is_idle(self, now_us: int) -> bool:
        return not self.dirty and self.expires_at_us() <= now_us

    @property
    def is_saved(self) -> bool:
        return not self.dirty


class FixedWindow(Window):
    """At most `allowed` per window; windows are aligned to the Unix epoch."""

    __slots__ = ("start_us", "used")

    def _restore(self, limit: Limit, now_us: int, stored: dict[int, int]) -> None:
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

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        self.fits(0, now_us)
        # While the clock is behind the window, the window counts for every instant, as in `take`.
        begun = self.start_us <= at_us or now_us < self.start_us
        return self.take(amount, now_us) if begun and now_us < self.start_us + self.width_us else None

    def settle(self, mark: int, held: int, actual: int) -> None:
        if mark == self.start_us:
            self.used += actual - held
            self.mark_dirty()

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

    def _restore(self, limit: Limit, now_us: int, stored: dict[int, int]) -> None:
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

    def retake(self, amount: int, at_us: int) -> int:
        # Its saved window, or one before it that is over.
        return self.start_us if self.start_us <= at_us < self.start_us + self.width_us else -1

    def resets_at_us(self, now_us: int) -> int | None:
        start_us = self.start_us if now_us < self.start_us + self.width_us else now_us
        return start_us + self.width_us


class SlidingWindow(Window):
    """
    At most `allowed` in any span as long as the window.

    Counts in sixtieths of the window and lets a sixtieth go only when all of it has left the span, so it
    never overshoots; a denial may outlast the exact instant by one sixtieth. While the clock is behind the
    latest instant that it showed, it stands still there.
    """

    __slots__ = ("_slots", "latest_us", "slot_us", "used")

    def _restore(self, limit: Limit, now_us: int, stored: dict[int, int]) -> None:
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

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        self.fits(0, now_us)
        if max(at_us, self.latest_us) > now_us:
            return self.take(amount, now_us)
        start = at_us - at_us % self.slot_us
        if start <= now_us - self.width_us - self.slot_us:
            return None
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

    def retake(self, amount: int, at_us: int) -> int:
        return at_us - at_us % self.slot_us

    def settle(self, mark: int, held: int, actual: int) -> None:
        # From the newest on: most requests end soon.
        for slot in reversed(self._slots):
            if slot[0] <= mark:
                if slot[0] == mark:
                    slot[1] += actual - held
                    self.used += actual - held
                    self.mark_dirty()
                return

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


class PermitBucket(Window):
    """
    A token bucket of permits: up to *burst* at once, refilled by `allowed` per window.

    Levels are whole numbers of permits × µs of the window, so refilling loses nothing to rounding.
    """

    __slots__ = ("burst", "last_us", "level")

    def _restore(self, limit: Limit, now_us: int, stored: dict[int, int]) -> None:
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

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        # As if it were asked now, however long ago it was: a bucket does not remember when it was full last.
        self.fits(0, now_us)
        return self.take(amount, now_us)

    def counted(self, mark: int, held: int, now_us: int) -> int:
        return held

    def rehold(self, mark: int, held: int, amount: int, now_us: int) -> int:
        self.settle(mark, held, amount)
        return mark

    def settle(self, mark: int, held: int, actual: int) -> None:
        self.level = min(self.burst * self.width_us, self.level + (held - actual) * self.width_us)
        self.mark_dirty()

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


class Concurrency(Window):
    """At most `allowed` under way at once. Only open holds count, so a restart recounts them."""

    __slots__ = ("used",)
    counts_open: ClassVar[bool] = True

    def _restore(self, limit: Limit, now_us: int, stored: dict[int, int]) -> None:
        self.reason = "too_many_concurrent"
        self.used = 0

    def fits(self, amount: int, now_us: int) -> bool:
        return self.used + 1 <= self.allowed

    def take(self, amount: int, now_us: int) -> int:
        self.used += 1
        return 0

    def retake(self, amount: int, at_us: int) -> int:
        return self.take(amount, at_us)

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        return None

    def settle(self, mark: int, held: int, actual: int) -> None:
        self.used -= 1

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.used += 1

    def give_back(self, mark: int, held: int) -> None:
        self.used -= 1

    def counted(self, mark: int, held: int, now_us: int) -> int:
        # A request is one, whatever it holds.
        return held

    def rehold(self, mark: int, held: int, amount: int, now_us: int) -> int:
        return mark

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

    @property
    def is_saved(self) -> bool:
        return not self.used


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
        "counted",
        "counter_id",
        "give_back",
        "is_idle",
        "match",
        "name",
        "reason",
        "rehold",
        "retake",
        "settle",
        "take",
        "take_late",
        "unit",
        "unit_index",
        "unsettle",
    )
    charged: ClassVar[bool] = False
    counts_open: ClassVar[bool] = True

    def __init__(self, window: Window, limit: Limit) -> None:
        self._window = window
        self._allowed = limit.amount
        self.account_id = window.account_id
        self.counter_id = window.counter_id
        self.match = window.match
        self.name = window.name
        self.unit: str = window.unit
        self.unit_index = window.unit_index
        self.reason = window.reason
        self.take = window.take
        self.retake = window.retake
        self.take_late = window.take_late
        self.settle = window.settle
        self.unsettle = window.unsettle
        self.give_back = window.give_back
        self.counted = window.counted
        self.rehold = window.rehold
        self.is_idle = window.is_idle

    @property
    def is_saved(self) -> bool:
        return self._window.is_saved

    def fits(self, amount: int, now_us: int) -> bool:
        return self._mine().fits(amount, now_us)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        return self._mine().allowed_used(now_us)

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return self._mine().lifts_at_us(amount, now_us)

    def resets_at_us(self, now_us: int) -> int | None:
        return self._mine().resets_at_us(now_us)

    def _mine(self) -> Window:
        """Return the window as this key has it. Callers hold the gate's lock, so no other key asks meanwhile."""
        self._window.allowed = self._allowed
        return self._window
