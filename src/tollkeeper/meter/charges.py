"""
What a batch charges to the counters of the ledger, summed per budget, period and balance.

The twin of `Directory.charges_of_all`, which does it record by record; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.meter.arrays import Int64s, combinations, equals, ints, text
from tollkeeper.meter.columns import units_columns


def charge_columns(table: pa.Table, directory: Directory) -> dict[CounterAt, int]:
    """Return what the records of *table* (`record_columns.SCHEMA`) charge, summed per counter."""
    combos = combinations(table, ("account_id", "project_id", "key_id"))
    scopes = [directory.scopes(*(value or "" for value in values)) for values in combos.values]
    charges: dict[CounterAt, int] = {}
    if not any(scope.budgets or scope.draws_on_credit for scope in scopes):
        return charges
    units = units_columns(table)
    occurred = ints(table, "occurred_at_us")
    order = np.argsort(combos.codes, kind="stable")
    ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
    first_use: dict[str, tuple[BudgetScope, list[Int64s]]] = {}
    for code, scope in enumerate(scopes):
        rows = order[(ends[code - 1] if code else 0) : ends[code]]
        account_id = combos.values[code][0] or ""
        if scope.draws_on_credit:
            at = (account_id, CREDIT_COUNTER, 0)
            charges[at] = charges.get(at, 0) + int(units["nanos"][rows].sum())
        for budget in scope.budgets:
            if budget.first_use_us:
                # In the order of time, whichever keys used it: the first use opens the period of the others.
                name = f"{account_id}\n{budget.counter_id}"
                first_use.setdefault(name, (budget, []))[1].append(rows)
            else:
                _charge(charges, directory, budget, rows, occurred, units)
    if first_use:
        denied = ~equals(text(table, "denied_reason"), "")
        for budget, parts in first_use.values():
            rows = np.concatenate(parts)
            # As `domain.first_use.opens_period`; what uses nothing is charged nothing either.
            rows = rows[(units[budget.unit][rows] != 0) | ~denied[rows]]
            _charge(charges, directory, budget, rows, occurred, units)
    return charges


def _charge(
    charges: dict[CounterAt, int],
    directory: Directory,
    budget: BudgetScope,
    rows: Int64s,
    occurred: Int64s,
    units: Mapping[str, Int64s],
) -> None:
    """Add to *charges* what *rows* charge to one budget, period by period in the order of time."""
    amounts = units[budget.unit]
    active_from_us = directory.active_from_us(budget.account_id, budget.counter_id)
    while len(rows):
        times = occurred[rows]
        span = directory.period_us(budget, int(times.min()), opens=True)
        assert span is not None
        start_us, end_us = span
        inside = times < end_us
        if start_us >= active_from_us:
            at = (budget.account_id, budget.counter_id, start_us)
            charges[at] = charges.get(at, 0) + int(amounts[rows[inside]].sum())
        rows = rows[~inside]
