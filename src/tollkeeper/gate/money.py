"""
Money: what is left of a budget per period, and of an account's credit balance.

Both are a `Counter` (`gate/counter.py`). Used is what the ledger has committed, what was settled here and is on
its way to the ledger, and what open holds have set aside. The last two are counted whether or not the first is
read; to decide, it must be read, else `NotRead` is raised. A commit during the reading counts once: `booked`
adds it unless what was read contains it.
"""

from __future__ import annotations

from typing import ClassVar, Final

from tollkeeper.domain.decisions import unit_index
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.matching import described
from tollkeeper.domain.pools import CreditBook
from tollkeeper.gate.counter import NotRead

_NEVER_US: Final = 2**62
_UNBOUNDED: Final = 2**127


class BudgetPeriod:
    """
    What one period of a budget has used: committed, on its way to the ledger, and set aside by open holds.

    Attributes:
        start_us: Its start, which names its row of the ledger.
        used: All three together; without the committed part until it is read.
        uncommitted: The part that was settled here and is not committed yet.
        open_count: Holds that will still settle here.
        as_of_commit: The commit as of which the ledger was read; None until it is.
        reader_count: How many threads read it now.
        meanwhile: `(commit, amount)` of what was committed since the first of them began.
    """

    __slots__ = (
        "as_of_commit",
        "meanwhile",
        "open_count",
        "reader_count",
        "start_us",
        "uncommitted",
        "used",
    )

    def __init__(self, start_us: int) -> None:
        self.start_us = start_us
        self.used = self.uncommitted = self.open_count = self.reader_count = 0
        self.as_of_commit: int | None = None
        self.meanwhile: list[tuple[int, int]] = []

    @property
    def is_needed(self) -> bool:
        return bool(self.open_count or self.uncommitted or self.reader_count)


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
        "match",
        "name",
        "reason",
        "scope",
        "start_us",
        "unit",
        "unit_index",
        "value_of",
    )
    charged: ClassVar[bool] = True
    counts_open: ClassVar[bool] = True

    def __init__(self, scope: BudgetScope) -> None:
        self.account_id = scope.account_id
        self.counter_id = scope.counter_id
        self.reason = "budget_exhausted"
        self.value_of: BudgetScope | None = None
        """The scope of which it counts one value, or that has a match; None: it was made for its own scope."""
        self._periods: dict[int, BudgetPeriod] = {}
        # The one of [start_us, end_us), which is read; at first that span is empty.
        self._period = BudgetPeriod(0)
        self.amend(scope)

    def amend(self, scope: BudgetScope) -> None:
        """Take over a changed budget of the same id; what is under way goes on where it began."""
        self.scope = scope
        self.name = scope.name
        self.match = described(scope.match)
        self.unit: str = scope.unit
        self.unit_index = unit_index(scope.unit)
        self._most = _UNBOUNDED if scope.amount is None else scope.amount
        # What a call will cost in money or tokens may not be known beforehand: something must be left for it.
        self._at_least = 0 if scope.unit == "credits" else 1
        self.start_us = self.end_us = 0

    def _turn_to(self, at_us: int) -> None:
        """Count in the period of *at_us* from now on."""
        start_us, end_us = self.scope.span_us(at_us)
        period = self._periods.get(start_us)
        if period is None or period.as_of_commit is None:
            raise NotRead(self)
        self.start_us, self.end_us, self._period = start_us, end_us, period

    # -- reading --------------------------------------------------------------------------------------

    def is_read(self, at_us: int) -> bool:
        """Return whether the period of *at_us* is read."""
        period = self._periods.get(self.scope.span_us(at_us)[0])
        return period is not None and period.as_of_commit is not None

    def begin_read(self, at_us: int) -> BudgetPeriod:
        """Note that the period of *at_us* is being read; `end_read` must follow, whether or not reading works."""
        start_us = self.scope.span_us(at_us)[0]
        if start_us not in self._periods:
            # The one in use stays: late requests of its last microseconds may return to it at any moment.
            self._periods = {
                start: known
                for start, known in self._periods.items()
                if known.is_needed or known is self._period
            }
        period = self._period_at(start_us)
        period.reader_count += 1
        return period

    def end_read(self, period: BudgetPeriod, committed: tuple[int, int] | None) -> None:
        """
        Take over what was read of *period*, unless another reader was first.

        Args:
            committed: The amount and the commit as of which it was read; None when reading failed.
        """
        if committed is not None and period.as_of_commit is None:
            amount, as_of_commit = committed
            period.used += amount + sum(more for commit, more in period.meanwhile if commit > as_of_commit)
            period.as_of_commit = as_of_commit
        period.reader_count -= 1
        if not period.reader_count:
            period.meanwhile.clear()

    # -- counting -------------------------------------------------------------------------------------

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

    def retake(self, amount: int, at_us: int) -> int:
        start_us = self.scope.span_us(at_us)[0]
        period = self._period_at(start_us)
        period.used += amount
        period.open_count += 1
        return start_us

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        return None

    def settle(self, mark: int, held: int, actual: int) -> None:
        period = self._periods[mark]
        period.used += actual - held
        period.uncommitted += actual
        period.open_count -= 1

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        # A settlement of nothing leaves nothing under way: its period may be gone when it is undone.
        period = self._period_at(mark)
        period.used += held - actual
        period.uncommitted -= actual
        period.open_count += 1

    def give_back(self, mark: int, held: int) -> None:
        period = self._periods[mark]
        period.used -= held
        period.open_count -= 1

    def _period_at(self, start_us: int) -> BudgetPeriod:
        period = self._periods.get(start_us)
        if period is None:
            period = self._periods[start_us] = BudgetPeriod(start_us)
        return period

    def booked(self, period_start_us: int, amount: int, *, counted: int, commit: int) -> None:
        """Learn of a commit that charged *amount*, of which *counted* was settled here before."""
        period = self._periods.get(period_start_us)
        if period is None:
            return
        period.uncommitted -= counted
        period.used -= counted
        if period.as_of_commit is None:
            # A reader that begins later finds it in the ledger.
            if period.reader_count:
                period.meanwhile.append((commit, amount))
        elif commit > period.as_of_commit:
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
        return self.is_saved

    @property
    def is_saved(self) -> bool:
        return not any(period.is_needed for period in self._periods.values())


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

    @property
    def is_saved(self) -> bool:
        return not self._out
