"""
Copies of the usage store's tables as of one instant, for a backup; and the way back.

Each table is cloned: an empty table like it, to which the parts of the table are attached. The engine links their
files, so that this takes milliseconds and no room, and a clone stays as it is while the table goes on. A clone does
not merge, so its parts are read one by one. The hash of a part's files names it: a part that an earlier backup has
need not be read again.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from clickhouse_connect.driver.client import Client

from tollkeeper.adapters.clickhouse import tables
from tollkeeper.adapters.clickhouse.engine import Engine
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Unavailable

PIECE_SUFFIX: Final = ".native.zst"
BLOCK_ROWS: Final = 100_000
"""Rows that are read at a time: some 30 MB of records."""
_OWN: Final = ("schema_version", "batches")
"""Tables that say something of the store itself: the manifest has it."""
_LOADING: Final = {
    "async_insert": 0,
    "max_partitions_per_insert_block": 0,
    "min_insert_block_size_rows": BLOCK_ROWS,
    "min_insert_block_size_bytes": 64 << 20,
    "optimize_on_insert": 0,
    "max_threads": 2,
}


class PartCopy(NamedTuple):
    """One part of a clone. *file* is the name under which a backup keeps its rows."""

    table: str
    part: str
    file: str
    rows: int
    bytes: int


class TableCopy(NamedTuple):
    """One cloned table."""

    name: str
    columns: list[str]
    parts: list[PartCopy]


class StoreSnapshot:
    """
    The tables as they were when it was made. Any thread may read.

    Attributes:
        schema: The version of the schema.
        marks: The last batch of each installation that the store may have.
    """

    def __init__(
        self, engine: Engine, schema: int, names: Sequence[str], marks: dict[str, BatchMark]
    ) -> None:
        self._engine = engine
        self._names = names
        self.schema = schema
        self.marks = marks

    @cached_property
    def tables(self) -> list[TableCopy]:
        """The tables and their parts; found when they are asked for, since nobody may append before that."""
        with self._engine.scans.lend() as client:
            return [_copy_of(client, name, self.schema) for name in self._names]

    def totals(self) -> tuple[int, int]:
        """Return how many records there are, expired ones included, and what they cost in nanos."""
        return totals(self._engine, clone_of)

    def read(self, part: PartCopy) -> Iterator[bytes]:
        """
        Yield the rows of *part* as blocks of the engine's format `Native`.

        Raises:
            Unavailable: The part is damaged, or has other rows than it had.
        """
        columns = next(", ".join(copy.columns) for copy in self.tables if copy.name == part.table)
        read = 0
        for start in range(0, _last_offset(self._engine, part) + 1, BLOCK_ROWS):
            sql = f"""
                SELECT {columns} FROM {clone_of(part.table)} WHERE _part = '{part.part}'
                AND _part_offset >= {start} AND _part_offset < {start + BLOCK_ROWS}"""
            ((count,),) = self._engine.rows(sql.replace(columns, "count()", 1))
            read += count
            with self._engine.scans.lend() as client:
                yield client.raw_query(sql, fmt="Native")
        if read != part.rows:
            raise Unavailable(
                f"Part {part.part} of {part.table} has {read} rows, and had {part.rows}: try again."
            )


def clone_of(table: str) -> str:
    """Return the name of the clone of *table*."""
    return f"{table}_backup"


def stored_tables(client: Client) -> list[str]:
    """Return the tables that have rows to be kept."""
    names = client.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree' ORDER BY name"
    ).result_rows
    found = [name for (name,) in names]
    return [
        name
        for name in found
        if name not in _OWN and not any(name in (clone_of(of), tables.unfinished(of)) for of in found)
    ]


def clone(engine: Engine, marks: dict[str, BatchMark]) -> StoreSnapshot:
    """
    Return a snapshot of all tables. Nobody appends meanwhile; `drop_clones` ends it.

    Raises:
        Unavailable: There is no room for the descriptions of the clones.
    """
    client = engine.appender
    engine.check_room()
    drop_clones(client)
    names = stored_tables(client)
    for table in names:
        name = clone_of(table)
        client.command(f"CREATE TABLE {name} AS {table}")
        client.command(f"SYSTEM STOP MERGES {name}")
        for (partition,) in client.query(
            "SELECT DISTINCT partition_id FROM system.parts WHERE database = currentDatabase() "
            "AND active AND table = {table:String} ORDER BY partition_id",
            parameters={"table": table},
        ).result_rows:
            client.command(f"ALTER TABLE {name} ATTACH PARTITION ID '{partition}' FROM {table}")
    return StoreSnapshot(engine, tables.schema_of(client), names, marks)


def drop_clones(client: Client) -> None:
    """Drop the clones of a backup that ended, or that a killed process left."""
    for table in stored_tables(client):
        client.command(f"DROP TABLE IF EXISTS {clone_of(table)} SYNC")


def load(engine: Engine, table: str, columns: Sequence[str], path: Path) -> None:
    """Insert the rows of a file that `StoreSnapshot.read` gave, compressed with zstd, into *table* alone."""
    client = engine.appender
    # Two parts of a table may have the same rows, as those of rollups may: neither is a repeat of the other. A token is
    # what every version of the engine goes by; settings that turn deduplication off have changed their names.
    settings = {**_LOADING, "insert_deduplication_token": f"restore-{uuid.uuid4()}"}
    if engine.directory is None:
        with path.open("rb") as file:
            client.raw_insert(table, list(columns), file, settings=settings, fmt="Native", compression="zstd")
        return
    given = ", ".join(f"{name} = '{value}'" for name, value in settings.items())
    with path.open("rb") as file:
        client.command(
            f"INSERT INTO {table} ({', '.join(columns)}) FROM INFILE '/dev/fd/{file.fileno()}' "
            f"COMPRESSION 'zstd' SETTINGS {given} FORMAT Native"
        )


def totals(engine: Engine, name_of: Callable[[str], str] = str) -> tuple[int, int]:
    """
    Return how many records there are, expired ones included, and what they cost in nanos.

    Args:
        name_of: Returns the name of a table, or that of its clone.
    """
    ((count, cost),) = engine.rows(
        f"SELECT (SELECT count() FROM {name_of('events')}) + (SELECT sum(records) FROM {name_of('expired_days')}), "
        f"(SELECT sum(sign * cost_nanos) FROM {name_of('events')}) "
        f"+ (SELECT sum(cost_nanos) FROM {name_of('expired_rollups')})"
    )
    return int(count), int(cost)


def _copy_of(client: Client, table: str, schema: int) -> TableCopy:
    names = client.query(
        "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {table:String} "
        "ORDER BY position",
        parameters={"table": table},
    ).result_rows
    # A part whose rows were deleted still has them in its own count.
    found = client.query(f"SELECT _part, count() FROM {clone_of(table)} GROUP BY _part").result_rows
    rows = {str(part): int(count) for part, count in found}
    parts = client.query(
        "SELECT name, hash_of_all_files, bytes_on_disk FROM system.parts WHERE database = currentDatabase() "
        "AND active AND table = {table:String} ORDER BY name",
        parameters={"table": clone_of(table)},
    ).result_rows
    return TableCopy(
        table,
        [name for (name,) in names],
        [
            PartCopy(table, part, f"{table}-v{schema}-{hash_}{PIECE_SUFFIX}", rows[part], size)
            for part, hash_, size in parts
            if part in rows
        ],
    )


def _last_offset(engine: Engine, part: PartCopy) -> int:
    ((last,),) = engine.rows(
        f"SELECT max(_part_offset) FROM {clone_of(part.table)} WHERE _part = '{part.part}'"
    )
    return int(last)
