"""
Credit: the remainder of an account's balance, which is the committed book less the amounts settled or held here.

A `Counter` (`gate/counter.py`). A grant pays for requests that were made before it expired. So what is held or on
its way to the ledger is kept apart by the expiries in between: requests since the last expiry are one sum, and those
of each span before are drawn on the book at their own time, as the ledger will. The balance is what that leaves. A new
request therefore finds paid money untouched while an older hold is open on a grant that has expired since.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import ClassVar, Final

from tollkeeper.domain.decisions import unit_index
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.pools import CreditBook
from tollkeeper.gate.counter import NotRead

_NEVER_US: Final = 2**62


class CreditPool:
    """
    The counter of one account's credit balance. A mark is the time of the request.

    Attributes:
        book: The account's book as of `as_of_commit`; None until it is read.
        balance: What the book leaves after what is under way of earlier spans, as of the last count.
        falls_at_us: From when on the balance must be counted again; `rises_before_us`: before when, should the clock
            be set back.
    """

    __slots__ = (
        "__weakref__",
        "_earlier",
        "_expiries_us",
        "_out",
        "_since_us",
        "account_id",
        "as_of_commit",
        "balance",
        "book",
        "counter_id",
        "falls_at_us",
        "match",
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
        self.match = ""
        self.unit = "nanos"
        self.unit_index = unit_index("nanos")
        self.reason = "credit_exhausted"
        # Held, or settled and on its way to the ledger, by requests made since the last expiry.
        self._out = 0
        # The same of earlier requests: the last microsecond of a span (or the time of one request) → the sum.
        self._earlier: dict[int, int] = {}
        # When grants of the book expire, ascending, and the last of these that is over: unknown until it is read.
        self._expiries_us: list[int] = []
        self._since_us = _NEVER_US
        self.book: CreditBook | None = None
        self.as_of_commit = -1
        self.balance = 0
        # Until the book is read, there is no time at which the balance is known.
        self.falls_at_us = self.rises_before_us = 0

    @property
    def out_nanos(self) -> int:
        """All that is held, or settled and on its way to the ledger."""
        return self._out + sum(self._earlier.values())

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
        self._sort(self.book, now_us)
        book = self.book
        for at_us, amount in sorted(self._earlier.items()):
            book = book.charged(amount, from_us(at_us))
        self.balance = book.balance_nanos(now)
        # A grant with nothing left counts too: it may be given something back.
        over = bisect_right(self._expiries_us, now_us)
        self.falls_at_us = self._expiries_us[over] if over < len(self._expiries_us) else _NEVER_US
        # A clock that is set back before a grant's expiry makes it count again, as it does in the ledger.
        self.rises_before_us = self._since_us

    def _sort(self, book: CreditBook, now_us: int) -> None:
        """Sort what is under way into the spans between the expiries of *book*, as of *now_us*."""
        earlier, self._earlier = self._earlier, {}
        if self._out:
            # If its span is over by now, all of it was taken before the end.
            place = bisect_right(self._expiries_us, self._since_us)
            ends_us = self._expiries_us[place : place + 1]
            last_us = min(now_us, ends_us[0] - 1) if ends_us else now_us
            earlier[last_us] = earlier.get(last_us, 0) + self._out
        self._expiries_us = [to_us(at) for at in book.expiries]
        over = bisect_right(self._expiries_us, now_us)
        self._since_us = self._expiries_us[over - 1] if over else 0
        self._out = 0
        for at_us, amount in earlier.items():
            self._add(at_us, amount)

    def _add(self, at_us: int, amount: int) -> None:
        """Add *amount*, of a request of *at_us*, to what is under way of its span."""
        if at_us >= self._since_us:
            self._out += amount
            return
        if self.book is not None:
            # The balance depends on it: it is counted again before the next decision.
            self.falls_at_us = 0
            at_us = self._expiries_us[bisect_right(self._expiries_us, at_us)] - 1
        left = self._earlier.get(at_us, 0) + amount
        if left:
            self._earlier[at_us] = left
        else:
            self._earlier.pop(at_us, None)

    def fits(self, amount: int, now_us: int) -> bool:
        if now_us >= self.falls_at_us or now_us < self.rises_before_us:
            self._count(now_us)
        # A credit key needs a balance even for a call whose cost is not known beforehand.
        return self.balance - self._out >= (amount or 1)

    def take(self, amount: int, now_us: int) -> int:
        self._out += amount
        return now_us

    def retake(self, amount: int, at_us: int) -> int:
        self._add(at_us, amount)
        return at_us

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        return None

    def settle(self, mark: int, held: int, actual: int) -> None:
        if mark >= self._since_us:
            self._out += actual - held
        else:
            self._add(mark, actual - held)

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        self.settle(mark, actual, held)

    def give_back(self, mark: int, held: int) -> None:
        self.settle(mark, held, 0)

    def counted(self, mark: int, held: int, now_us: int) -> int:
        return held

    def rehold(self, mark: int, held: int, amount: int, now_us: int) -> int:
        self.settle(mark, held, amount)
        return mark

    def booked(
        self, book: CreditBook | None, *, counted: Iterable[tuple[int, int]], commit: int, now_us: int
    ) -> None:
        """
        Learn of a commit.

        Args:
            book: The account's book after the commit; None when it is as it was.
            counted: `(mark, amount)` of what it contains that was settled here before.
        """
        for mark, amount in counted:
            self.settle(mark, amount, 0)
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
        return self.is_saved

    @property
    def is_saved(self) -> bool:
        return not self._out and not self._earlier
