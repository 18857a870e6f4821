"""
The remainder of a budget per period.

A `Counter` (`gate/counter.py`). Used is what the ledger has committed, what was settled here and is on its way to the
ledger, and what open holds have set aside. The last two are counted whether or not the first is read; to decide, it
must be read, else `NotRead` is raised. A commit during the reading counts once: `booked` adds it unless what was read
contains it.

The most is the budget's own amount and its top-ups (`domain/top_ups.py`). While some of these last until they are
used, the periods since the first of them are kept, since what they use is what is drawn.
"""

from __future__ import annotations

from typing import ClassVar, Final

from tollkeeper.domain.decisions import unit_index
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.first_use import Span
from tollkeeper.domain.matching import described
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.counter import NotRead
from tollkeeper.gate.openings import NotLoaded, Openings

_UNBOUNDED: Final = 2**127
_NO_SPAN: Final = (0, 0)


class BudgetPeriod:
    """
    What one period of a budget has used: committed, on its way to the ledger, and set aside by open holds.

    Attributes:
        start_us: Its start, which names its row of the ledger.
        used: All three together; without the committed part until it is read.
        held: The part that open holds have set aside.
        uncommitted: The part that was settled here and is not committed yet.
        open_count: Holds that will still settle here.
        as_of_commit: The commit as of which the ledger was read; None until it is.
        reader_count: How many threads read it now.
        meanwhile: `(commit, amount)` of what was committed since the first of them began.
    """

    __slots__ = (
        "as_of_commit",
        "held",
        "meanwhile",
        "open_count",
        "reader_count",
        "start_us",
        "uncommitted",
        "used",
    )

    def __init__(self, start_us: int) -> None:
        self.start_us = start_us
        self.used = self.held = self.uncommitted = self.open_count = self.reader_count = 0
        self.as_of_commit: int | None = None
        self.meanwhile: list[tuple[int, int]] = []

    @property
    def is_needed(self) -> bool:
        return bool(self.open_count or self.uncommitted or self.reader_count)


class BudgetCounter:
    """
    The remainder of one budget, per period; a new period is a new row of the ledger, found from the clock or opened by
    its first use.

    A request counts in the period of its own time. Around the turn of a period, requests of both come in any
    order, and holds of the old one still settle: a period is kept until nothing of it is under way.
    """

    __slots__ = (
        "__weakref__",
        "_at_least",
        "_following",
        "_history_readers",
        "_meanwhile",
        "_most",
        "_openings",
        "_opens",
        "_own",
        "_past_changed",
        "_period",
        "_periods",
        "_top_ups",
        "_top_ups_as_of",
        "_top_ups_version",
        "_unusual",
        "_width_us",
        "account_id",
        "counter_id",
        "end_us",
        "match",
        "name",
        "reason",
        "scope",
        "span",
        "start_us",
        "unit",
        "unit_index",
        "value_of",
    )
    charged: ClassVar[bool] = True
    counts_open: ClassVar[bool] = True

    def __init__(self, scope: BudgetScope, openings: Openings) -> None:
        self.account_id = scope.account_id
        self.counter_id = scope.counter_id
        self.reason = "budget_exhausted"
        self.value_of: BudgetScope | None = None
        """The scope of which it counts one value, or that has a match; None: it was made for its own scope."""
        self._openings = openings
        self._periods: dict[int, BudgetPeriod] = {}
        # The one of [start_us, end_us), which is read; at first that span is empty.
        self._period = BudgetPeriod(0)
        self._top_ups: TopUps | None = None
        self._top_ups_as_of = self._top_ups_version = self._history_readers = 0
        self._meanwhile: list[tuple[int, int, int]] = []
        """`(commit, period start, amount)` of what was committed while the periods of the past were read."""
        self.amend(scope)

    def amend(self, scope: BudgetScope) -> None:
        """Take over a changed budget of the same id; what is under way goes on where it began."""
        self.scope = scope
        self.name = scope.name
        self.match = described(scope.match)
        self.unit: str = scope.unit
        self.unit_index = unit_index(scope.unit)
        self._own = _UNBOUNDED if scope.amount is None else scope.amount
        # What a call will cost in money or tokens may not be known beforehand: something must be left for it.
        self._at_least = 0 if scope.unit == "credits" else 1
        self._width_us = scope.first_use_us
        # Which period a top-up belongs to may be another now.
        self.forget_top_ups()

    def forget_top_ups(self) -> None:
        """Read the top-ups again before the next decision: there are others, or they are of other periods."""
        self._top_ups = None
        self._top_ups_version += 1
        self._forget_span()

    def _forget_span(self) -> None:
        self._most = 0
        self._opens = False
        self._following: tuple[BudgetPeriod, ...] = ()
        self._unusual = False
        self._past_changed = False
        self.start_us, self.end_us = self.span = _NO_SPAN

    def _turn_to(self, at_us: int) -> None:
        """Count in the period of *at_us* from now on, or until the next question in the one that its use would open."""
        self._forget_span()
        if self._top_ups is None:
            raise NotRead(self)
        span = self._span(at_us)
        if span is None:
            self._opens = True
            self.span = (at_us, at_us + self._width_us)
            period = self._periods.get(at_us)
            if period is None:
                # What is charged to it from now on is not in it yet. It is read once it is open: see `_open`.
                period = BudgetPeriod(at_us)
                period.as_of_commit = -1
            elif period.as_of_commit is None:
                raise NotRead(self)
            # Else it is known of the time before the budget was deleted: what was settled then is on its way yet.
            self._period = period
        else:
            period = self._periods.get(span[0])
            if period is None or period.as_of_commit is None:
                raise NotRead(self)
            self.span, self._period = span, period
        if self._width_us:
            starts = self._following_starts(at_us)
            # In `_periods`, or this was not read and `NotRead` was raised.
            self._following = tuple(self._read_period(start) for start in starts)
        self._unusual = bool(self._following or self._top_ups.lasting)
        self._most = self._own + self._added()
        if not self._opens and not self._following:
            self.start_us, self.end_us = self.span

    def _span(self, at_us: int) -> Span | None:
        """Return the period of *at_us*; None when its use would open one."""
        if not self._width_us:
            return self.scope.span_us(at_us)
        try:
            return self._openings.find(self.scope, at_us)
        except NotLoaded:
            raise NotRead(self) from None

    def _following_starts(self, at_us: int) -> list[int]:
        return [start for start, _ in self._openings.following(self.scope, at_us)]

    def _read_period(self, start_us: int) -> BudgetPeriod:
        period = self._periods.get(start_us)
        if period is None or period.as_of_commit is None:
            raise NotRead(self)
        return period

    def _added(self) -> int:
        """Return what top-ups add to the own amount in the period of `span`."""
        assert self._top_ups is not None
        if not self._top_ups.lasting:
            return self._top_ups.once.get(self.span[0], 0)
        used = {start: period.used for start, period in self._periods.items()}
        return self._top_ups.added(self.span[0], self._own, used)

    # -- reading --------------------------------------------------------------------------------------

    @property
    def opens_with_use(self) -> bool:
        return self._width_us > 0

    @property
    def needs_top_ups(self) -> bool:
        return self._top_ups is None

    @property
    def top_ups(self) -> TopUps | None:
        """The top-ups as they were read; None before."""
        return self._top_ups

    def begin_top_ups(self) -> int:
        """Note that the top-ups are being read; `end_top_ups` must follow, whether or not reading works."""
        self._history_readers += 1
        return self._top_ups_version

    def end_top_ups(self, version: int, found: tuple[TopUps, dict[int, int], int] | None) -> None:
        """
        Take over what was read, unless the top-ups changed since or another reader was first.

        Args:
            version: Of `begin_top_ups`.
            found: The top-ups, what each period was charged (where some top-ups last), and the commit as of which
                that was; None when reading failed.
        """
        self._history_readers -= 1
        if found is not None and self._top_ups is None and version == self._top_ups_version:
            self._top_ups, charged, self._top_ups_as_of = found
            if self._top_ups.lasting:
                self._take_history(charged, self._top_ups_as_of)
                self._past_changed = True
        if not self._history_readers:
            self._meanwhile.clear()

    def _take_history(self, charged: dict[int, int], as_of_commit: int) -> None:
        starts = charged.keys() | self._periods.keys() | {start for _, start, _ in self._meanwhile}
        for start_us in starts:
            if not self._is_history(start_us):
                continue
            period = self._period_at(start_us)
            if period.as_of_commit is None:
                since = [
                    m for commit, start, m in self._meanwhile if start == start_us and commit > as_of_commit
                ]
                period.used += charged.get(start_us, 0) + sum(since)
                period.as_of_commit = as_of_commit

    def _is_history(self, start_us: int) -> bool:
        """Return whether what a period uses decides what is left of top-ups."""
        top_ups = self._top_ups
        return top_ups is not None and bool(top_ups.lasting) and start_us >= top_ups.first_lasting_us

    def unread(self, at_us: int) -> list[int]:
        """
        Return the starts of the periods that a decision at *at_us* needs and that are not read.

        Raises:
            NotRead: The openings of that time must be loaded first.
        """
        span = self._span(at_us)
        # One that is not open may be known of the time before the budget was deleted.
        starts = [span[0]] if span is not None else [at_us] if at_us in self._periods else []
        if self._width_us:
            starts += self._following_starts(at_us)
        return [
            start for start in starts if (p := self._periods.get(start)) is None or p.as_of_commit is None
        ]

    def begin_read(self, start_us: int) -> BudgetPeriod:
        """Note that a period is being read; `end_read` must follow, whether or not reading works."""
        if start_us not in self._periods:
            self._drop_unneeded()
        period = self._period_at(start_us)
        period.reader_count += 1
        return period

    def _drop_unneeded(self) -> None:
        # The one in use stays: late requests of its last microseconds may return to it at any moment.
        self._periods = {
            start: known
            for start, known in self._periods.items()
            if known.is_needed or known is self._period or known in self._following or self._is_history(start)
        }

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
            self._note(period)
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
        if self._unusual:
            if self._past_changed:
                # Of top-ups that last, something else is left: all periods since the first of them are gone through.
                self._past_changed = False
                self._most = self._own + self._added()
            amount += sum(period.used for period in self._following)
        return self._period.used + amount <= self._most

    def take(self, amount: int, now_us: int) -> int:
        if self._opens:
            self._open(now_us)
        period = self._period
        period.used += amount
        period.held += amount
        period.open_count += 1
        return period.start_us

    def _open(self, now_us: int) -> None:
        """Open a period now: the lock is held since `fits` found none, so it is still so."""
        self.span = self._openings.open(self.scope, now_us, now_us)
        assert self.span[0] == self._period.start_us == now_us
        self._opens = False
        self._drop_unneeded()
        # A budget of this id that was deleted, or one that begins now, may charge it in a commit under way: it is read
        # before the next decision.
        self._period.as_of_commit = None
        self._periods[now_us] = self._period

    def retake(self, amount: int, at_us: int) -> int:
        span = self._span(at_us)
        if span is None:
            span = self._openings.open(self.scope, at_us, at_us)
        period = self._period_at(span[0])
        period.used += amount
        period.held += amount
        period.open_count += 1
        self._note(period)
        return span[0]

    def counts_at(self, mark: int, at_us: int) -> bool:
        """Return whether a hold of *at_us* that counts in the period *mark* is in the right one. Raises `NotRead`."""
        span = self._span(at_us)
        return span is not None and span[0] == mark

    def _note(self, period: BudgetPeriod) -> None:
        """Note that *period* was used by more or less: what is left of top-ups may depend on it."""
        if period is not self._period:
            self._past_changed = True

    def take_late(self, amount: int, at_us: int, now_us: int) -> int | None:
        return None

    def settle(self, mark: int, held: int, actual: int) -> None:
        period = self._periods[mark]
        period.used += actual - held
        period.held -= held
        period.uncommitted += actual
        period.open_count -= 1
        if period is not self._period:
            self._past_changed = True

    def unsettle(self, mark: int, held: int, actual: int) -> None:
        # A settlement of nothing leaves nothing under way: its period may be gone when it is undone.
        period = self._period_at(mark)
        period.used += held - actual
        period.held += held
        period.uncommitted -= actual
        period.open_count += 1
        self._note(period)

    def give_back(self, mark: int, held: int) -> None:
        period = self._periods[mark]
        period.used -= held
        period.held -= held
        period.open_count -= 1
        self._note(period)

    def counted(self, mark: int, held: int, now_us: int) -> int:
        return held

    def rehold(self, mark: int, held: int, amount: int, now_us: int) -> int:
        period = self._periods[mark]
        period.used += amount - held
        period.held += amount - held
        self._note(period)
        return mark

    def _period_at(self, start_us: int) -> BudgetPeriod:
        period = self._periods.get(start_us)
        if period is None:
            period = self._periods[start_us] = BudgetPeriod(start_us)
        return period

    def booked(self, period_start_us: int, amount: int, *, counted: int, commit: int) -> None:
        """Learn of a commit that charged *amount*, of which *counted* was settled here before."""
        if self._history_readers:
            self._meanwhile.append((commit, period_start_us, amount))
        period = self._periods.get(period_start_us)
        if period is None:
            if not self._is_history(period_start_us):
                return
            # The first charge to a period of the past, since these were read.
            period = self._period_at(period_start_us)
            period.as_of_commit = self._top_ups_as_of
        period.uncommitted -= counted
        period.used -= counted
        if period.as_of_commit is None:
            # A reader that begins later finds it in the ledger.
            if period.reader_count:
                period.meanwhile.append((commit, amount))
        elif commit > period.as_of_commit:
            period.used += amount
        self._note(period)

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        self.fits(0, now_us)
        return None if self.scope.amount is None else self._most, self._period.used

    def held(self, now_us: int) -> int:
        """Return the part of what `allowed_used` returns as used that open holds have set aside."""
        self.fits(0, now_us)
        return self._period.held

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return None

    def resets_at_us(self, now_us: int) -> int | None:
        self.fits(0, now_us)
        return self.span[1]

    def is_idle(self, now_us: int) -> bool:
        return self.is_saved

    @property
    def is_saved(self) -> bool:
        return not any(period.is_needed for period in self._periods.values())
