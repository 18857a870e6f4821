"""
Duplicates: which events of a batch are new, which repeat a known one, and which contradict it.

An event is known by its account and id, in the usage store, among the pending records, or earlier in the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.domain.meter import same_body
from tollkeeper.ledger.pending import SEPARATOR, Pending
from tollkeeper.meter.arrays import Mask, ints, true
from tollkeeper.meter.columns import same_body_columns
from tollkeeper.meter.rejections import REJECTIONS_SHOWN, Rejection
from tollkeeper.meter.resolve import Resolved
from tollkeeper.ports import UsageStore
from tollkeeper.record_columns import SCHEMA, records_of


class Deduped(NamedTuple):
    """The records that are new, how many repeat a known event, and the first that contradict one."""

    fresh: pa.Table
    duplicates: int
    conflicts: list[Rejection]


def dedupe(resolved: Resolved, store: UsageStore, pending: Pending) -> Deduped:
    """Tell new records from known ones. Must be called within `Pending.looking_up`, or one may be missed on its way."""
    table = resolved.table
    if table.num_rows == 0:
        return Deduped(table, 0, [])
    keys = keys_of(table)
    in_store = store.known_ids(table.select(["account_id", "id"]))
    in_pending = not pending.disjoint(keys)
    own = true(pc.ends_with(table.column("id"), pending.own_ids_ending))
    if not in_store.num_rows and not in_pending and not own.any() and len(set(keys)) == len(keys):
        return Deduped(table, 0, [])
    column = pa.array(keys)
    # The id of a request that is under way here is taken, and nothing repeats what is not booked yet.
    known = true(pc.is_in(column, value_set=key_column(in_store))) | own
    if in_pending:
        in_pending_keys = pending.known(keys)
        known |= np.fromiter((key in in_pending_keys for key in keys), np.bool_, len(keys))
    # Of an id that is new, the first row of the batch is the event, and the others are doubtful.
    codes = column.dictionary_encode().indices.to_numpy()
    first_row = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))[codes]
    fresh = ~known & (first_row == np.arange(len(keys)))
    doubtful = np.flatnonzero(~fresh)
    waiting = SCHEMA.empty_table()
    if in_pending:
        waiting = pending.record_columns(in_pending_keys)
        # Asked for after the pending ones, since what is no longer pending is in the store.
        in_store = table.filter(pa.array(known)).select(["account_id", "id"])
    others = [
        waiting,
        store.record_columns(in_store),
        table.take(pa.array(np.unique(first_row[~fresh & ~known]))),
    ]
    repeats = repeats_of(table.take(pa.array(doubtful)), pa.concat_tables(others))
    if in_pending:
        # What cannot be compared any more counted: a retry of it must not be sent under another id.
        repeats |= np.array([pending.is_set_aside(keys[row]) for row in doubtful], np.bool_)
    unlike = table.take(pa.array(doubtful[~repeats]))
    if unlike.num_rows and in_store.num_rows:
        # An event that has expired cannot be compared either, and counts.
        expired = set(key_column(store.expired_ids(unlike.select(["account_id", "id"]))).to_pylist())
        repeats |= np.array([keys[row] in expired for row in doubtful], np.bool_)
    conflicts = [
        Rejection(
            int(resolved.indexes[row]),
            "id",
            "event_conflict",
            "this id names another event or an open hold: use a new id, or send a correction",
        )
        for row in doubtful[~repeats][:REJECTIONS_SHOWN]
    ]
    return Deduped(table.filter(pa.array(fresh)), int(repeats.sum()), conflicts)


def key_column(table: pa.Table) -> pa.ChunkedArray:
    """Return the key of each row, as `ledger.pending.key_of`."""
    accounts = pc.cast(table.column("account_id"), pa.string())
    joined: pa.ChunkedArray = pc.binary_join_element_wise(accounts, table.column("id"), SEPARATOR)
    return joined


def keys_of(table: pa.Table) -> list[str]:
    """Return the key of each row."""
    keys: list[str] = key_column(table).to_pylist()
    return keys


def repeats_of(given: pa.Table, stored: pa.Table) -> Mask:
    """
    Return which records of *given* repeat the one of the same key in *stored*: the first, if it has several.

    Compared column by column, which says who is surely the same; the few others are compared one by one.
    """
    place = pc.index_in(key_column(given), value_set=key_column(stored))
    found = true(place.is_valid())
    if not found.any():
        return found
    given = given.filter(pa.array(found))
    stored = stored.take(pc.drop_null(place)).combine_chunks()
    # An event that was corrected since is not what it was: its retry can only be taken as a repeat.
    same = (ints(stored, "revision") > 0) | (ints(stored, "sign") < 0) | same_body_columns(given, stored)
    unsure = np.flatnonzero(~same)
    pairs = zip(
        records_of(stored.take(pa.array(unsure))), records_of(given.take(pa.array(unsure))), strict=True
    )
    same[unsure] = [same_body(*pair) for pair in pairs]
    found[found] = same
    return found
