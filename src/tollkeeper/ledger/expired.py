"""What is said of an id whose record has expired: it counts, and nothing can be done to it any more."""

from __future__ import annotations

import pyarrow as pa

from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.errors import DetailExpired
from tollkeeper.ports import UsageStore


def has_expired(store: UsageStore, account_id: str, id_: str) -> bool:
    """Return whether the record of an event, adjustment or correction of this id has expired."""
    pair = pa.table({"account_id": [account_id], "id": [id_]})
    return bool(store.expired_ids(pair).num_rows)


def expired_error(store: UsageStore, account_id: str, id_: str) -> DetailExpired | None:
    """Return the error for an event, adjustment or correction of this id that has expired; None if none has."""
    if not has_expired(store, account_id, id_):
        return None
    detail_from_us = store.detail_from_us(account_id)
    since = (
        ""
        if detail_from_us is None
        else f" Single events of this account are kept from {to_text(from_us(detail_from_us))} on."
    )
    return DetailExpired(
        f"The record {id_[:128]!r} has expired. It stays in all totals, and can neither be shown nor corrected: "
        f"post an adjustment to change what was charged.{since}"
    )
