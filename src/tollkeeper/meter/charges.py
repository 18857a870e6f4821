"""
What a batch charges to the counters of the ledger, summed per budget, period and balance.

The twin of `Directory.charges_of_all`, which does it record by record; a property test holds the two together.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.matching import counter_of_values
from tollkeeper.meter.arrays import combinations, exact_sum, ints
from tollkeeper.meter.columns import units_columns
from tollkeeper.meter.matched_rows import MatchedRows, sums_of


def charge_columns(table: pa.Table, directory: Directory) -> dict[CounterAt, int]:
    """Return what the records of *table* (`record_columns.SCHEMA`) charge, summed per counter."""
    combos = combinations(table, ("account_id", "project_id", "key_id"))
    scopes = [directory.scopes(*(value or "" for value in values)) for values in combos.values]
    charges: dict[CounterAt, int] = {}
    if not any(scope.budgets or scope.draws_on_credit for scope in scopes):
        return charges
    units = units_columns(table)
    nothing = np.zeros(table.num_rows, np.int64)
    matched = MatchedRows(table)
    occurred = ints(table, "occurred_at_us")
    order = np.argsort(combos.codes, kind="stable")
    ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
    for code, scope in enumerate(scopes):
        rows = order[(ends[code - 1] if code else 0) : ends[code]]
        account_id = combos.values[code][0] or ""
        if scope.draws_on_credit:
            at = (account_id, CREDIT_COUNTER, 0)
            charges[at] = charges.get(at, 0) + int(units["nanos"][rows].sum())
        for budget in scope.budgets:
            amounts = units.get(budget.unit, nothing)
            active_from_us = directory.active_from_us(account_id, budget.counter_id)
            left = rows if budget.match is None else matched.of(budget.match, rows)
            while len(left):
                times = occurred[left]
                start_us, end_us = budget.span_us(int(times.min()))
                inside = times < end_us
                within, left = left[inside], left[~inside]
                if start_us < active_from_us:
                    continue
                if not budget.by:
                    at = (account_id, budget.counter_id, start_us)
                    charges[at] = charges.get(at, 0) + exact_sum(amounts[within])
                    continue
                values, places = matched.values(budget.by, within)
                sums = sums_of(places, len(values), amounts[within])
                for value, amount in zip(values, sums, strict=True):
                    at = (account_id, counter_of_values(budget.counter_id, value), start_us)
                    charges[at] = charges.get(at, 0) + amount
    return charges
