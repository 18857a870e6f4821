"""Books a table of records as one piece: what ingest, corrections and adjustments do once they know what counts."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.draws import DrawRun
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import Batch, ReadBarrier
from tollkeeper.ledger.committer import Committer
from tollkeeper.record_columns import to_ipc


def book(
    committer: Committer,
    records: pa.Table,
    keys: list[str],
    charges: dict[CounterAt, int],
    scopes_version: int,
    *,
    draws: Mapping[str, DrawRun] = {},
    corrections: bool = False,
) -> None:
    """
    Book *records*, columns of `record_columns.SCHEMA`; they are durable when this returns. See `Batch`.

    Args:
        scopes_version: Read from *committer* before *charges* were made.

    Raises:
        Stale: An id was taken, or a budget changed, since the records were looked up: look again.
        Unavailable: Nothing was booked, or the outcome is unknown.
    """
    accounts = set(records.column("account_id").unique().to_pylist())
    future = CommitFuture()
    committer.submit(
        Batch(
            records,
            to_ipc(records),
            keys,
            accounts,
            charges,
            scopes_version,
            future,
            draws=draws,
            corrections=corrections,
        )
    )
    future.wait()


def wait_for_commits(committer: Committer) -> None:
    """
    Return when what is being committed now is durable, or has failed.

    A repeat waits for the record that it repeats: its answer says that the record is booked.

    Raises:
        Unavailable: The ledger cannot be written.
    """
    future = CommitFuture()
    committer.submit(ReadBarrier(lambda: None, future))
    future.wait()
