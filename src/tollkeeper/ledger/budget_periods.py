"""
The periods from which a budget counts that comes into force.

Those that the clock knows are the one of now, and those in which events ahead of the clock may lie. Of those that open
with the first use, the ones that are open go on; else one opens with the first event of the last such span, so that
what was used just before the budget was set counts in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.entitlements import BudgetScope, is_of_first_use
from tollkeeper.domain.events import FUTURE_S_MAX, Record
from tollkeeper.domain.first_use import Span, opens_period
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.ledger.scope_sums import events_of, spent_in, spent_in_spans
from tollkeeper.ports import UsageStore


class BudgetPeriods:
    """Called by `ScopeKeeper` for one change at a time; `of` on the commit thread too."""

    def __init__(self, directory: Directory, store: UsageStore) -> None:
        self._directory = directory
        self._openings = directory.openings
        self._store = store

    def begin(self, scope: BudgetScope, active: Mapping[str, tuple[str, int]], now_us: int) -> int:
        """
        Return from when on *scope* counts. Nothing but the openings in memory is changed.

        Args:
            active: The budgets in force: see `Ledger.scopes`.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        if not scope.first_use_us:
            return scope.span_us(now_us)[0]
        earliest_us = now_us - scope.first_use_us + 1
        if scope.by:
            # Periods of values that are open now began later than that, and go on.
            self._openings.begin(scope, earliest_us, now_us)
            return earliest_us
        spans = self._openings.spans_from(scope, earliest_us)
        fingerprint, _ = active.get(scope.counter_id, ("", 0))
        active_from_us = earliest_us
        if is_of_first_use(fingerprint, scope):
            # It counts others now, in the same periods.
            open_now = [start_us for start_us, end_us in spans if end_us > now_us]
            ended = [end_us for _, end_us in spans if end_us <= now_us]
            active_from_us = min(open_now, default=max([earliest_us, *ended]))
        self._openings.begin(scope, active_from_us, now_us)
        return active_from_us

    def not_begun(self, scope: BudgetScope) -> None:
        """Take `begin` back: the budget did not come into force."""
        if scope.first_use_us:
            self._openings.reread(scope)

    def open_for_events(
        self, scope: BudgetScope, key_ids: Sequence[str] | None, from_us: int, now_us: int
    ) -> None:
        """
        Open the periods that the stored events of *scope* open, from *from_us* on.

        Raises:
            Unavailable: A store cannot be read.
        """
        if not scope.first_use_us or key_ids == []:
            return
        at_us, to_us = from_us, _to_us(now_us)
        while at_us < to_us:
            found = self._store.first_by(scope.account_id, (), **events_of(scope, key_ids, at_us, to_us))
            if not found:
                return
            span = self._openings.period_us(scope, found[()], now_us)
            assert span is not None
            at_us = span[1]

    def spent_by_value(
        self, scope: BudgetScope, key_ids: Sequence[str] | None, from_us: int, now_us: int
    ) -> dict[CounterAt, int]:
        """
        Return what the stored events of each value were charged in each of its periods, from *from_us* on.

        The periods that the events open are opened: each value has its own.

        Raises:
            Unavailable: A store cannot be read.
        """
        if key_ids == []:
            return {}
        to_us = _to_us(now_us)
        self._open_values(scope, key_ids, from_us, to_us, now_us)
        sums: dict[CounterAt, int] = {}
        several: dict[str, Sequence[Span]] = {}
        for counter_id, amount in spent_in(self._store, scope, key_ids, from_us, to_us).items():
            spans = self._openings.spans_from(scope._replace(counter_id=counter_id), from_us)
            if len(spans) == 1:
                # It has all events. There are others where late events opened them, or ones to come.
                sums[scope.account_id, counter_id, spans[0][0]] = amount
            else:
                several[counter_id] = spans
        for (counter_id, start_us), amount in spent_in_spans(self._store, scope, key_ids, several).items():
            sums[scope.account_id, counter_id, start_us] = amount
        return sums

    def _open_values(
        self, scope: BudgetScope, key_ids: Sequence[str] | None, from_us: int, to_us: int, now_us: int
    ) -> None:
        ends: dict[tuple[str, ...], int] = {}
        at_us = from_us
        while at_us < to_us:
            found = self._store.first_by(
                scope.account_id, scope.by, **events_of(scope, key_ids, at_us, to_us)
            )
            if not found:
                return
            for values, first_us in found.items():
                # One whose first event is in its period is looked at again from the end of that on.
                if first_us >= ends.get(values, from_us):
                    span = self._openings.period_us(scope.of_values(values), first_us, now_us)
                    assert span is not None
                    ends[values] = span[1]
            at_us = min((end_us for end_us in ends.values() if end_us > at_us), default=to_us)

    def coming(self, scope: BudgetScope, now_us: int) -> Iterator[Span]:
        """Yield the periods that events may lie in which come now: they may be ahead of the clock."""
        if scope.first_use_us:
            yield from self._openings.spans_from(scope, now_us)
            return
        at_us = now_us
        while at_us <= now_us + FUTURE_S_MAX * US_PER_S:
            span = scope.span_us(at_us)
            yield span
            at_us = span[1]

    def of(self, scope: BudgetScope, record: Record, amount: int) -> Span | None:
        """Return the period of *scope* that counts *amount* of a record, opened if need be; None: it opens none."""
        return self._directory.period_us(scope, record.occurred_at_us, opens=opens_period(record, amount))


def _to_us(now_us: int) -> int:
    """Return the time before which all events lie: they may be ahead of the clock."""
    return now_us + FUTURE_S_MAX * US_PER_S + 1
