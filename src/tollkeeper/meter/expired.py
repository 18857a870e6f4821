"""What is said of an event by its id when its record has expired: it counts, and nothing can be done to it any more."""

from __future__ import annotations

import pyarrow as pa

from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.errors import DetailExpired
from tollkeeper.ports import UsageStore


def expired_error(store: UsageStore, account_id: str, id_: str) -> DetailExpired | None:
    """Return the error for an event, adjustment or correction of this id that has expired; None if none has."""
    pair = pa.table({"account_id": [account_id], "id": [id_]})
    if not store.expired_ids(pair).num_rows:
        return None
    from_us_ = store.detail_from_us(account_id)
    since = (
        ""
        if from_us_ is None
        else f" Single events of this account are kept from {to_text(from_us(from_us_))} on."
    )
    return DetailExpired(
        f"The record {id_[:128]!r} has expired. It stays in all totals, and can neither be shown nor corrected: "
        f"post an adjustment to change what was charged.{since}"
    )
