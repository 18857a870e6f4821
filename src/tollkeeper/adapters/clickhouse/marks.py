"""The last batch of each installation that a server's database may have: see `adapters/batch_marks.py`."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import StoresMismatch


class TableMarks:
    """
    In a table of the database, over a client that one thread uses at a time.

    A server can be written by two processes, as when a copy of an installation was started beside it. Each of them
    sees the marks of the other and stops: `note` raises `StoresMismatch`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last: dict[str, BatchMark] | None = None

    def all(self) -> dict[str, BatchMark]:
        found = self._read()
        if self._last is None:
            self._last = found
        return found

    def _read(self) -> dict[str, BatchMark]:
        rows = self._client.query(
            "SELECT installation_id, argMax(epoch, batch), max(batch) FROM batches GROUP BY installation_id"
        ).result_rows
        return {id_: BatchMark(id_, epoch, batch) for id_, epoch, batch in rows}

    def note(self, mark: BatchMark) -> None:
        id_ = mark.installation_id
        if self._last is not None:
            found = self._read().get(id_)
            # A call whose answer was lost has noted it already.
            if found not in (self._last.get(id_), mark):
                raise StoresMismatch(
                    f"Another process of installation {id_} writes to this usage store, as a copy of it that was "
                    "started beside it does. Nothing more is relayed from here: stop the one that must not run, and "
                    "start the other again."
                )
        self._client.command(
            "INSERT INTO batches (installation_id, epoch, batch) SELECT {id:String}, {epoch:String}, {batch:UInt64}",
            parameters={"id": id_, "epoch": mark.epoch, "batch": mark.batch},
        )
        if self._last is not None:
            self._last = {**self._last, id_: mark}
