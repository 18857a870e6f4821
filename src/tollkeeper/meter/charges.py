"""
What a batch charges to the counters of the ledger, summed per budget, period and balance.

The twin of `Directory.charges_of_all`, which does it record by record; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.draws import DrawRun
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.matching import counter_of_values
from tollkeeper.meter.arrays import Int64s, combinations, equals, exact_sum, ints, text
from tollkeeper.meter.columns import units_columns
from tollkeeper.meter.matched_rows import MatchedRows, sums_of


class BatchCharges(NamedTuple):
    """What a batch charges: the sum per period of each budget, and the draws on each account's credit."""

    budgets: dict[CounterAt, int]
    draws: dict[str, DrawRun]


def charge_columns(table: pa.Table, directory: Directory) -> BatchCharges:
    """Return what the records of *table* (`record_columns.SCHEMA`) charge."""
    combos = combinations(table, ("account_id", "project_id", "key_id"))
    scopes = [directory.scopes(*(value or "" for value in values)) for values in combos.values]
    charges: dict[CounterAt, int] = {}
    adjusted = ints(table, "adjustment_nanos") != 0
    may_draw = any(scope.draws_from_us is not None for scope in scopes)
    if not may_draw and not any(scope.budgets for scope in scopes) and not adjusted.any():
        return BatchCharges(charges, {})
    drawing: dict[str, list[Int64s]] = {}
    units = units_columns(table)
    nothing = np.zeros(table.num_rows, np.int64)
    matched = MatchedRows(table)
    occurred = ints(table, "occurred_at_us")
    order = np.argsort(combos.codes, kind="stable")
    ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
    first_use: dict[str, tuple[BudgetScope, list[Int64s]]] = {}
    for code, scope in enumerate(scopes):
        rows = order[(ends[code - 1] if code else 0) : ends[code]]
        account_id = combos.values[code][0] or ""
        late = np.zeros(len(rows), bool)
        if scope.draws_from_us is not None:
            late = occurred[rows] >= scope.draws_from_us
        # An adjustment that names no key is of the account's balance.
        drawn = rows[late if combos.values[code][2] else late | adjusted[rows]]
        if len(drawn):
            drawing.setdefault(account_id, []).append(drawn)
        for budget in scope.budgets:
            counted = rows if budget.match is None else matched.of(budget.match, rows)
            if budget.first_use_us:
                # In the order of time, whichever keys used it: the first use opens the period of the others.
                name = f"{account_id}\n{budget.counter_id}"
                first_use.setdefault(name, (budget, []))[1].append(counted)
                continue
            amounts = units.get(budget.unit, nothing)
            active_from_us = directory.active_from_us(account_id, budget.counter_id)
            for start_us, within in _by_period(directory, budget, counted, occurred):
                if start_us < active_from_us:
                    continue
                if not budget.by:
                    _add(charges, (account_id, budget.counter_id, start_us), exact_sum(amounts[within]))
                    continue
                values, places = matched.values(budget.by, within)
                sums = sums_of(places, len(values), amounts[within])
                for value, amount in zip(values, sums, strict=True):
                    _add(charges, (account_id, counter_of_values(budget.counter_id, value), start_us), amount)
    if first_use:
        opening = equals(text(table, "denied_reason"), "") & ~adjusted
        for budget, parts in first_use.values():
            amounts = units.get(budget.unit, nothing)
            rows = np.concatenate(parts)
            # As `domain.first_use.opens_period`; what uses nothing is charged nothing either.
            rows = rows[(amounts[rows] != 0) | opening[rows]]
            active_from_us = directory.active_from_us(budget.account_id, budget.counter_id)
            # Each value has periods of its own.
            for one, of_value in _by_value(budget, rows, matched):
                for start_us, within in _by_period(directory, one, of_value, occurred):
                    if start_us >= active_from_us:
                        _add(charges, (one.account_id, one.counter_id, start_us), exact_sum(amounts[within]))
    nanos = units["nanos"]
    draws = {account_id: _run(occurred, nanos, np.concatenate(rows)) for account_id, rows in drawing.items()}
    return BatchCharges(charges, draws)


def _add(charges: dict[CounterAt, int], at: CounterAt, amount: int) -> None:
    charges[at] = charges.get(at, 0) + amount


def _by_period(
    directory: Directory, budget: BudgetScope, rows: Int64s, occurred: Int64s
) -> Iterator[tuple[int, Int64s]]:
    """Yield the start of each period of *budget* that *rows* are in, and these, in the order of time."""
    while len(rows):
        times = occurred[rows]
        span = directory.period_us(budget, int(times.min()), opens=True)
        assert span is not None
        start_us, end_us = span
        inside = times < end_us
        yield start_us, rows[inside]
        rows = rows[~inside]


def _by_value(
    budget: BudgetScope, rows: Int64s, matched: MatchedRows
) -> Iterator[tuple[BudgetScope, Int64s]]:
    """Yield the scope of each value that *budget* counts apart, and its rows; without values, itself and all."""
    if not budget.by or not len(rows):
        yield budget, rows
        return
    values, places = matched.values(budget.by, rows)
    order = np.argsort(places, kind="stable")
    for value, of_value in zip(
        values, np.split(rows[order], np.cumsum(np.bincount(places, minlength=len(values)))[:-1]), strict=True
    ):
        yield budget.of_values(value), of_value


def _run(occurred: Int64s, nanos: Int64s, rows: Int64s) -> DrawRun:
    rows = rows[np.argsort(occurred[rows], kind="stable")]
    # As numbers of Python: the sum of a batch may pass 64 bits.
    return DrawRun(occurred[rows].tolist(), list(accumulate(nanos[rows].tolist())))
