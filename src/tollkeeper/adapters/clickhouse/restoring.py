"""
Fills an empty usage store from a backup.

Every table is loaded as it was. Where the schema of the backup is older, what is derived from the records is derived
again if its meaning changed since.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tollkeeper.adapters.batch_marks import FileMarks, Marks
from tollkeeper.adapters.clickhouse import snapshots, tables
from tollkeeper.adapters.clickhouse.engine import Engine, engine_errors
from tollkeeper.adapters.clickhouse.marks import TableMarks
from tollkeeper.adapters.clickhouse.rebuild import rebuild
from tollkeeper.domain.backups import UsageTable
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Conflict, Unavailable


def is_empty(url: str) -> bool:
    """
    Return whether there is nothing in the usage store at *url*.

    Raises:
        Unavailable: It cannot be reached.
    """
    if directory := directory_of(url):
        return not directory.exists() or not any(directory.iterdir())
    with engine_errors():
        engine = Engine(url)
        try:
            ((count,),) = engine.rows("SELECT count() FROM system.tables WHERE database = currentDatabase()")
            return not count
        finally:
            engine.close()


def installations_at(url: str) -> list[str]:
    """
    Return the installations that the usage store at *url* has records of.

    Raises:
        Unavailable: It cannot be reached, or is none.
    """
    if directory := directory_of(url):
        return sorted(FileMarks(directory).all())
    with engine_errors():
        engine = Engine(url)
        try:
            return sorted(TableMarks(engine.appender).all())
        finally:
            engine.close()


def clear(url: str) -> None:
    """Remove all tables of a usage store that a restore began to fill."""
    if directory := directory_of(url):
        if directory.exists():
            for path in directory.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        return
    with engine_errors():
        engine = Engine(url)
        try:
            client = engine.appender
            names = client.query(
                "SELECT name FROM system.tables WHERE database = currentDatabase() "
                "ORDER BY engine = 'MaterializedView' DESC"
            ).result_rows
            for (name,) in names:
                if name in tables.ours():
                    client.command(f"DROP TABLE IF EXISTS {name} SYNC")
        finally:
            engine.close()


def restore(
    url: str,
    backed_up: Sequence[UsageTable],
    backup: Path,
    *,
    schema: int,
    mark: BatchMark | None,
    memory_bytes_max: int | None = None,
) -> tuple[int, int]:
    """
    Fill the empty usage store at *url*; return how many records it has then, and what they cost in nanos.

    Args:
        schema: Of the backup.
        mark: The last batch that the store may have.

    Raises:
        Conflict: The backup has a table that this version does not know, or other rows than it says.
        Unavailable: The store cannot be written.
    """
    with engine_errors():
        engine = Engine(url, memory_bytes_max)
        try:
            _fill(engine, backed_up, backup, schema)
            if mark is not None:
                _marks(engine).note(mark)
            return snapshots.totals(engine)
        finally:
            engine.close()


def _fill(engine: Engine, backed_up: Sequence[UsageTable], backup: Path, schema: int) -> None:
    client = engine.appender

    def rebuild_now() -> None:
        rebuild(client, engine.check_room)

    tables.migrate(client, rebuild_now, engine.check_room)
    known = snapshots.stored_tables(client)
    tables.drop_views(client)
    for table in backed_up:
        if table.name not in known:
            raise Conflict(f"The backup has a table {table.name}, which this version does not know.")
        # Merged, rows of rollups become fewer: until they are counted they stay as they came.
        client.command(f"SYSTEM STOP MERGES {table.name}")
        for piece in table.pieces:
            snapshots.load(engine, table.name, table.columns, backup / piece.file)
        found = client.query(f"SELECT count() FROM {table.name}").result_rows[0][0]  # noqa: S608
        if found != table.rows:
            raise Unavailable(
                f"{table.name} has {found} rows after the restore, and {table.rows} in the backup: try again."
            )
        client.command(f"SYSTEM START MERGES {table.name}")
    tables.create_views(client)
    if not tables.REDERIVED.isdisjoint(range(schema + 1, tables.newest_schema() + 1)):
        rebuild_now()


def _marks(engine: Engine) -> Marks:
    return TableMarks(engine.connect()) if engine.directory is None else FileMarks(engine.directory)


def directory_of(url: str) -> Path | None:
    """Return the directory of a usage store in this process; None for one on a server."""
    return Path(url.removeprefix("chdb://")) if url.startswith("chdb:") else None
