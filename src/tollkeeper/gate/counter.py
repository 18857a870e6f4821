"""
A counter: what one limit, budget or balance has left on this node. The contract that `admit` relies on.

On one node a counter holds the whole remainder. Every counter answers the same questions, so that `admit` is
one loop to ask and one loop to take:

    fits(amount, now_us)            would it be admitted now?
    take(amount, now_us) → mark     set it aside; the mark says where
    settle(mark, held, actual)      end that hold with what was really used
    unsettle(mark, held, actual)    take such an ending back: its commit failed, the hold is open again
    give_back(mark, held)           end that hold as if it never was
    rehold(mark, held, amount, …)   hold another amount in its place, which the caller found to fit

Callers hold the gate's lock, and call `take` right after `fits` with the same time. Time is microseconds
since the Unix epoch. No counter reads the ledger: one that lacks something raises `NotRead` before it changes
anything, and the caller reads it without the lock and tries again.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeAlias


class NotRead(Exception):
    """The counter must be read from the ledger first (`CounterRegistry.read`), without the gate's lock."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(counter.counter_id)
        self.counter = counter


class Counter(Protocol):
    """The contract between the gate and a limit, budget or balance."""

    account_id: str
    counter_id: str
    name: str
    match: str
    """Which requests it counts, for people; "" for all of its key, project or account."""
    unit: str
    unit_index: Any
    """Where amounts have its unit: see `decisions.unit_index`."""
    reason: str
    charged: ClassVar[bool]
    """Whether the ledger keeps it: a budget or a balance."""
    counts_open: ClassVar[bool]
    """Whether it must learn of every ending, even when a request used exactly what was held."""

    def fits(self, amount: int, now_us: int) -> bool:
        """Return whether *amount* would be admitted. Raises NotRead."""

    def take(self, amount: int, now_us: int) -> int: ...
    def settle(self, mark: int, held: int, actual: int) -> None: ...
    def unsettle(self, mark: int, held: int, actual: int) -> None: ...
    def give_back(self, mark: int, held: int) -> None: ...

    def counted(self, mark: int, held: int, now_us: int) -> int:
        """Return how much of a hold still counts: less than *held* where its window is over. Changes nothing."""

    def rehold(self, mark: int, held: int, amount: int, now_us: int) -> int:
        """
        Hold *amount* in place of *held*; return the new mark.

        Budgets and balances count it at the time of its request, windows now.
        """

    def retake(self, amount: int, at_us: int) -> int:
        """Set aside what a stored hold of *at_us* holds, whether or not it fits; return its mark."""

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        """
        Count a request of *at_us* that ends now and whose hold had expired; return its mark.

        None where it is not counted: in a window that is over, or where the commit counts it.
        """

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        """Return the most that is allowed (None: no bound) and what is used or held now. Raises NotRead."""

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        """Return when *amount* fits again if nothing else happens; None when time does not help."""

    def resets_at_us(self, now_us: int) -> int | None:
        """Return when the current window or period ends; None without one. Raises NotRead."""

    def is_idle(self, now_us: int) -> bool:
        """Return whether one read again from the ledger would say the same, if no hold refers to this one."""

    @property
    def is_saved(self) -> bool:
        """Return the same for a counter that may be needed again soon: the ledger has all of it."""


Taken: TypeAlias = tuple[Counter, int, int]
"""`(counter, amount, mark)`: one amount set aside in one counter. A plain tuple: every request makes some."""
