"""
Credit: what is left of an account's balance, a `Counter` (`gate/counter.py`).

Used is what was settled here and is on its way to the ledger, and what open holds have set aside; the ledger's book
has the rest. To decide, the book must be read, else `NotRead` is raised.
"""

from __future__ import annotations

from typing import ClassVar, Final

from tollkeeper.domain.decisions import UNITS
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.pools import CreditBook
from tollkeeper.gate.counter import NotRead

_NEVER_US: Final = 2**62


class CreditPool:
    """The remainder of one account's credit balance: the committed book, less the amounts settled or held here."""

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

    def __init__(self, account_id: str) -> None:
        self.account_id = account_id
        self.counter_id = self.name = CREDIT_COUNTER
        self.unit = "nanos"
        self.unit_index = UNITS.index("nanos")
        self.reason = "credit_exhausted"
        # Held, or settled and on its way to the ledger.
        self._out = 0
        self.book: CreditBook | None = None
        self.as_of_commit = -1
        self.balance = 0
        # Until the book is read, there is no time at which the balance is known.
        self.falls_at_us = self.rises_before_us = 0

    def take_book(self, book: CreditBook, as_of_commit: int, now_us: int) -> None:
        """Take over the account's book as of a commit, unless a later one is known."""
        if self.book is None or as_of_commit > self.as_of_commit:
            self.book = book
            self.as_of_commit = as_of_commit
            self._count(now_us)

    def _count(self, now_us: int) -> None:
        if self.book is None:
            raise NotRead(self)
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

    def retake(self, amount: int, at_us: int) -> int:
        self._out += amount
        return 0

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        return None

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
        if book is not None:
            self.take_book(book, commit, now_us)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return max(0, self.balance), self._out

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return None

    def resets_at_us(self, now_us: int) -> int | None:
        return None

    def is_idle(self, now_us: int) -> bool:
        return not self._out
