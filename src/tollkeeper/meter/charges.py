"""
What a batch charges to the counters of the ledger, summed per budget, period and balance.

The twin of `Directory.charges_of_all`, which does it record by record; a property test holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.draws import DrawRun
from tollkeeper.meter.arrays import Int64s, combinations, ints
from tollkeeper.meter.columns import units_columns


class BatchCharges(NamedTuple):
    """What a batch charges: the sum per period of each budget, and the draws on each account's credit."""

    budgets: dict[CounterAt, int]
    draws: dict[str, DrawRun]


def charge_columns(table: pa.Table, directory: Directory) -> BatchCharges:
    """Return what the records of *table* (`record_columns.SCHEMA`) charge."""
    combos = combinations(table, ("account_id", "project_id", "key_id"))
    scopes = [directory.scopes(*(value or "" for value in values)) for values in combos.values]
    charges: dict[CounterAt, int] = {}
    if not any(scope.budgets or scope.draws_on_credit for scope in scopes):
        return BatchCharges(charges, {})
    drawing: dict[str, list[Int64s]] = {}
    units = units_columns(table)
    nothing = np.zeros(table.num_rows, np.int64)
    occurred = ints(table, "occurred_at_us")
    order = np.argsort(combos.codes, kind="stable")
    ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
    for code, scope in enumerate(scopes):
        rows = order[(ends[code - 1] if code else 0) : ends[code]]
        account_id = combos.values[code][0] or ""
        if scope.draws_on_credit:
            drawing.setdefault(account_id, []).append(rows)
        for budget in scope.budgets:
            amounts = units.get(budget.unit, nothing)
            active_from_us = directory.active_from_us(account_id, budget.counter_id)
            left = rows
            while len(left):
                times = occurred[left]
                start_us, end_us = budget.span_us(int(times.min()))
                inside = times < end_us
                if start_us >= active_from_us:
                    at = (account_id, budget.counter_id, start_us)
                    charges[at] = charges.get(at, 0) + int(amounts[left[inside]].sum())
                left = left[~inside]
    nanos = units["nanos"]
    draws = {account_id: _run(occurred, nanos, np.concatenate(rows)) for account_id, rows in drawing.items()}
    return BatchCharges(charges, draws)


def _run(occurred: Int64s, nanos: Int64s, rows: Int64s) -> DrawRun:
    rows = rows[np.argsort(occurred[rows], kind="stable")]
    return DrawRun(occurred[rows].tolist(), np.cumsum(nanos[rows]).tolist())
