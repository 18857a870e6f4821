"""Restores in memory, at start, what the last process had committed and not relayed, and its open holds."""

from __future__ import annotations

import logging

import msgspec

from tollkeeper.domain.bookings import PendingRow
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.grant_posting import GrantPosting
from tollkeeper.ledger.holds import Holds
from tollkeeper.ledger.pending import Pending, decode_keys, key_of
from tollkeeper.ledger.relay import Relay, keys_of
from tollkeeper.ports import Ledger

log = logging.getLogger("tollkeeper")


def recover(
    ledger: Ledger, pending: Pending, committer: Committer, relay: Relay, holds: Holds, grants: GrantPosting
) -> None:
    """
    Restore all that the last process left. Called once, before committer and relay are started.

    Raises:
        Unavailable: The ledger cannot be read.
    """
    after_seq = 0
    while rows := ledger.outbox.pending(after_seq):
        pending.restored(
            (row.seq, keys, row.record_count, row.committed_at_us)
            for row in rows
            if (keys := _keys(row, ledger, relay)) is not None
        )
        after_seq = rows[-1].seq
    committer.update_refusal()
    # Committed by an earlier process, and due in the usage store before anything is compared with it.
    committer.outbox_seq = after_seq
    records = pending.record_count
    pending.hold(key_of(hold.account_id, hold.hold_id) for hold in ledger.open_holds())
    restored = holds.restore()
    unposted = grants.recover()
    if records or restored or unposted:
        log.info("tollkeeper.restored", extra={"records": records, "holds": restored, "grants": unposted})


def _keys(row: PendingRow, ledger: Ledger, relay: Relay) -> list[str] | None:
    """Return the ids that an outbox row takes, or None when it was set aside."""
    try:
        return decode_keys(row.keys)
    except msgspec.MsgspecError:
        # Damaged, or written before rows had their ids beside them: the records have them too.
        table = relay.read(row.seq, ledger.outbox.entries([row.seq])[row.seq])
        return None if table is None else keys_of(table)
