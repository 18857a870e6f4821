"""The last batch of each installation that a server's database may have: see `adapters/batch_marks.py`."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from tollkeeper.domain.pairing import BatchMark


class TableMarks:
    """In a table of the database, over a client that one thread uses at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def all(self) -> dict[str, BatchMark]:
        rows = self._client.query(
            "SELECT installation_id, argMax(epoch, batch), max(batch) FROM batches GROUP BY installation_id"
        ).result_rows
        return {id_: BatchMark(id_, epoch, batch) for id_, epoch, batch in rows}

    def note(self, mark: BatchMark) -> None:
        self._client.command(
            "INSERT INTO batches (installation_id, epoch, batch) SELECT {id:String}, {epoch:String}, {batch:UInt64}",
            parameters={"id": mark.installation_id, "epoch": mark.epoch, "batch": mark.batch},
        )
