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
from tollkeeper.meter.arrays import combinations, equals, ints, text
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
    denied = ~equals(text(table, "denied_reason"), "")
    order = np.argsort(combos.codes, kind="stable")
    ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
    for code, scope in enumerate(scopes):
        rows = order[(ends[code - 1] if code else 0) : ends[code]]
        account_id = combos.values[code][0] or ""
        if scope.draws_on_credit:
            at = (account_id, CREDIT_COUNTER, 0)
            charges[at] = charges.get(at, 0) + int(units["nanos"][rows].sum())
        for budget in scope.budgets:
            amounts = units[budget.unit]
            active_from_us = directory.active_from_us(account_id, budget.counter_id)
            left = rows
            if budget.first_use_us:
                # As `domain.first_use.opens_period`; what uses nothing is charged nothing either.
                left = rows[(amounts[rows] != 0) | ~denied[rows]]
            while len(left):
                times = occurred[left]
                span = directory.period_us(budget, int(times.min()), opens=True)
                assert span is not None
                start_us, end_us = span
                inside = times < end_us
                if start_us >= active_from_us:
                    at = (account_id, budget.counter_id, start_us)
                    charges[at] = charges.get(at, 0) + int(amounts[left[inside]].sum())
                left = left[~inside]
    return charges
