"""
What a batch charges to the counters of the ledger, summed per budget, period and balance.

The twin of `Directory.charges_of_all`, which does it record by record; a property test holds the two together.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.draws import DrawRun
from tollkeeper.domain.matching import counter_of_values
from tollkeeper.meter.arrays import Int64s, combinations, exact_sum, ints
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
    if not any(scope.budgets or scope.draws_on_credit for scope in scopes) and not adjusted.any():
        return BatchCharges(charges, {})
    drawing: dict[str, list[Int64s]] = {}
    units = units_columns(table)
    nothing = np.zeros(table.num_rows, np.int64)
    matched = MatchedRows(table)
    occurred = ints(table, "occurred_at_us")
    order = np.argsort(combos.codes, kind="stable")
    ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
    for code, scope in enumerate(scopes):
        rows = order[(ends[code - 1] if code else 0) : ends[code]]
        account_id = combos.values[code][0] or ""
        drawn = rows
        if not scope.draws_on_credit:
            # An adjustment that names no key is of the account's balance.
            drawn = rows[:0] if combos.values[code][2] else rows[adjusted[rows]]
        if len(drawn):
            drawing.setdefault(account_id, []).append(drawn)
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
    nanos = units["nanos"]
    draws = {account_id: _run(occurred, nanos, np.concatenate(rows)) for account_id, rows in drawing.items()}
    return BatchCharges(charges, draws)


def _run(occurred: Int64s, nanos: Int64s, rows: Int64s) -> DrawRun:
    rows = rows[np.argsort(occurred[rows], kind="stable")]
    # As numbers of Python: the sum of a batch may pass 64 bits.
    return DrawRun(occurred[rows].tolist(), list(accumulate(nanos[rows].tolist())))
