"""
Bounds the distinct labels of each account and day (`domain.labels`), for one record and for columns.

Called with records that are priced, charged and known to be new, just before they are committed. Counted in memory:
after a restart, and for an account and day that was dropped for room, counting begins at zero.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tollkeeper.domain.events import RECORD_FIELDS, Record
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.labels import (
    DAYS_AHEAD,
    DAYS_BACK,
    LABELS,
    DistinctLabels,
    Texts,
    label_day,
)

log = logging.getLogger("tollkeeper.labels")

HASHES_MAX: Final = 2_000_000
"""Of all accounts and days together, some 160 MB; then those that had no new label for longest begin again."""
DAY_COST: Final = 16
"""What an account and day takes beside its hashes, in hashes."""
_US_PER_DAY: Final = 86_400 * US_PER_S
_CODES_MAX: Final = 2**62
_DENSE: Final = 4
"""Codes of at most this many times the rows are made distinct by counting, which is faster than sorting them."""

_texts_of: Final[Callable[[Record], Texts]] = itemgetter(*map(RECORD_FIELDS.index, LABELS))
_place_of: Final[Callable[[Record], tuple[str, int, int]]] = itemgetter(
    *map(RECORD_FIELDS.index, ("account_id", "occurred_at_us", "received_at_us"))
)

Int64s = npt.NDArray[np.int64]

Decides = Callable[[str, str, str, "tuple[str, str] | None"], bool]
"""`(account_id, field, text, owner)` → whether a budget of the account counts by *text*. *owner* is the project and key
of the event, or None for any of the account."""


def nothing_decides(account_id: str, field: str, text: str, owner: tuple[str, str] | None) -> bool:
    """No budget counts by labels."""
    return False


class Labels:
    """
    The labels of all accounts. Any thread or event loop may call: no store is asked, no lock held for long.

    Args:
        values_max: Distinct values of each label, per account and UTC day; 0: no bound.
        decides: Whether a budget counts by a text in a field: such a text is stored as it is. See `nothing_decides`.
    """

    def __init__(
        self,
        values_max: int,
        *,
        hashes_max: int = HASHES_MAX,
        decides: Decides = nothing_decides,
    ) -> None:
        self._values_max = values_max
        self._decides = decides
        self._hashes_max = hashes_max
        self._lock = threading.Lock()
        self._days: dict[tuple[str, int], DistinctLabels] = {}
        """By account and `label_day`, the one that had a new label last at the end."""
        self._hash_count = 0
        self._today = 0
        self._reported: set[tuple[str, int]] = set()

    @property
    def hash_count(self) -> int:
        """What is kept, in hashes; at most `hashes_max` and one account and day."""
        return self._hash_count

    def of_record(self, record: Record) -> Record:
        """Return *record* with the labels that are stored of it."""
        if not self._values_max:
            return record
        texts = _texts_of(record)
        account_id, occurred_at_us, received_at_us = _place_of(record)
        day = label_day(occurred_at_us, received_at_us)
        known = self._days.get((account_id, day))
        # Without the lock: this is every request, and a label that is missed here is found below.
        if known is not None and known.knows(texts):
            return record
        kept = self._admitted(
            account_id, day, texts, received_at_us // _US_PER_DAY, (record.project_id, record.key_id)
        )
        if kept == texts:
            return record
        method, route, kind, error_type, denied_reason, model = kept
        return record._replace(
            method=method,
            route=route,
            kind=kind,
            error_type=error_type,
            denied_reason=denied_reason,
            model=model,
        )

    def of_table(self, table: pa.Table) -> pa.Table:
        """Return *table* (`columns.SCHEMA`, one instant of receipt) as `of_record` of its rows one after the other."""
        if not self._values_max or not table.num_rows:
            return table
        received_at_us = int(table.column("received_at_us")[0].as_py())
        occurred: Int64s = table.column("occurred_at_us").to_numpy()
        today = received_at_us // _US_PER_DAY
        # The days one by one from 1, and 0 for all others: `label_day` in columns.
        days = occurred // _US_PER_DAY - (today - DAYS_BACK) + 1
        days[(days < 1) | (days > DAYS_BACK + DAYS_AHEAD + 1)] = 0
        columns = [_single(table.column(name)) for name in ("account_id", *LABELS)]
        indices = [column.indices.to_numpy(zero_copy_only=False) for column in columns]
        first, codes = _distinct(
            [days, *indices],
            [DAYS_BACK + DAYS_AHEAD + 2, *(len(column.dictionary) for column in columns)],
        )
        accounts, *labels = (
            column.dictionary.take(pa.array(index[first])).to_pylist()
            for column, index in zip(columns, indices, strict=True)
        )
        given: list[Texts] = list(zip(*labels, strict=True))
        kept: list[Texts] = list(given)
        replaced = False
        # In the order of the rows, which is the order in which they are counted.
        for at in np.argsort(first, kind="stable").tolist():
            day = label_day(int(occurred[first[at]]), received_at_us)
            kept[at] = self._admitted(accounts[at], day, given[at], today, None)
            replaced |= kept[at] != given[at]
        if not replaced:
            return table
        for name, values in zip(LABELS, zip(*kept, strict=True), strict=True):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), _encoded(codes, values))
        return table

    def _admitted(
        self, account_id: str, day: int, texts: Texts, today: int, owner: tuple[str, str] | None
    ) -> Texts:
        kept = self._admit(account_id, day, texts, today)
        if kept == texts:
            return texts
        # What a budget was charged for must be in the record, or nothing could tell what it was charged for.
        return tuple(
            text if text != one and self._decides(account_id, name, text, owner) else one
            for name, text, one in zip(LABELS, texts, kept, strict=True)
        )

    def _admit(self, account_id: str, day: int, texts: Texts, today: int) -> Texts:
        at = (account_id, day)
        with self._lock:
            found = self._days.get(at)
            if found is not None and found.knows(texts):
                return texts
            if today > self._today:
                self._forget_before(today)
            if found is None:
                found = DistinctLabels(self._values_max)
                self._hash_count += DAY_COST
            # To the end: it had a new label last.
            self._days.pop(at, None)
            self._days[at] = found
            before = len(found)
            kept = found.admit(texts)
            self._hash_count += len(found) - before
            while self._hash_count > self._hashes_max and len(self._days) > 1:
                self._forget(next(iter(self._days)))
            first_time = kept != texts and at not in self._reported
            if first_time:
                self._reported.add(at)
        if first_time:
            fields = [name for name, one, other in zip(LABELS, texts, kept, strict=True) if one != other]
            log.warning("tollkeeper.labels.replaced", extra={"account": account_id, "fields": fields})
        return kept

    def _forget_before(self, today: int) -> None:
        """Drop the days that no event counts in any more, since *today* has begun."""
        self._today = today
        for at in [at for at in self._days if at[1] < today - DAYS_BACK and at[1] != -today]:
            self._forget(at)

    def _forget(self, at: tuple[str, int]) -> None:
        self._hash_count -= len(self._days.pop(at)) + DAY_COST
        self._reported.discard(at)


def _distinct(columns: Sequence[Int64s], sizes: Sequence[int]) -> tuple[Int64s, Int64s]:
    """
    Return the distinct rows of *columns*: the first place of each, and per row the number of its own.

    Args:
        columns: Codes, each below its size in *sizes*.
    """
    combined: Int64s = np.zeros(len(columns[0]), np.int64)
    span = 1
    for column, size in zip(columns, sizes, strict=True):
        if span * size > _CODES_MAX:
            distinct, combined = np.unique(combined, return_inverse=True)
            span = len(distinct)
        combined = combined * size + column
        span *= size
    n = len(combined)
    if span > _DENSE * n:
        _, first, codes = np.unique(combined, return_index=True, return_inverse=True)
        return first, codes
    place = np.full(span, -1, np.int64)
    # Backwards, so that the first row of each is what stays.
    place[combined[::-1]] = np.arange(n - 1, -1, -1)
    present = place >= 0
    return place[present], (np.cumsum(present) - 1)[combined]


def _encoded(codes: Int64s, values: Sequence[str]) -> pa.DictionaryArray:
    """Return the column that has, per row, the value of its code."""
    distinct = {value: index for index, value in enumerate(dict.fromkeys(values))}
    index_of = np.array([distinct[value] for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(index_of[codes]), pa.array(list(distinct), pa.string()))


def _single(column: pa.ChunkedArray) -> Any:
    """Return a column as one array with one dictionary."""
    return column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()
