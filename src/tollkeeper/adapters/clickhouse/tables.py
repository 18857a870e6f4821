"""The tables of the usage store: how their schema is brought up to date, and what the materialized views derive."""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from tollkeeper.errors import Unavailable

VIEWS: Final = {
    "event_ids_of_events": "event_ids",
    "event_ids_of_amendments": "event_ids",
    "usage_rollups_of_events": "usage_rollups",
}
"""Materialized view → the table that it fills from `events`."""
DERIVED: Final = tuple(dict.fromkeys(VIEWS.values()))
DERIVING: Final = {
    "insert_deduplicate": 0,
    "max_partitions_per_insert_block": 0,
    "min_insert_block_size_rows": 100_000,
    "max_insert_block_size": 100_000,
    "max_threads": 2,
    "max_bytes_before_external_group_by": 128 << 20,
}
"""Settings of an INSERT that derives from many records, in bounded memory."""
STEP: Final = "toYYYYMMDD({}) BETWEEN {{first:UInt32}} AND {{last:UInt32}}"
"""The condition of one step of a rebuild or comparison: see `day_spans`."""
_STEP_RECORDS: Final = 1_000_000
"""Records per step, by whole UTC days, of which no rollup has two: bounds the memory."""

_VIEW: Final = "CREATE MATERIALIZED VIEW IF NOT EXISTS "
REVIEWED: Final = frozenset({5, 7, 8, 9})
"""Versions of the schema that drop a view, whose own file tells another form of it since."""
REDERIVED: Final = frozenset({5})
"""Of these, the versions after which rollups from before must be derived again."""


def unfinished(table: str) -> str:
    """Return the name under which *table* is rebuilt; after the exchange, the name of the table before."""
    return f"{table}_rebuilt"


def drop_unfinished(client: Client) -> None:
    """Drop what a rebuild made, or left when it was killed."""
    for table in DERIVED:
        client.command(f"DROP TABLE IF EXISTS {unfinished(table)} SYNC")


def schema_of(client: Client) -> int:
    """Return the version of the schema that a database has."""
    return int(client.query("SELECT max(version) FROM schema_version").result_rows[0][0])


def newest_schema() -> int:
    """Return the newest version of the schema."""
    return max(_schema_files())


def drop_views(client: Client) -> None:
    """Drop the materialized views, so that an insert fills one table only."""
    for view in VIEWS:
        client.command(f"DROP VIEW IF EXISTS {view} SYNC")


def create_views(client: Client) -> None:
    """Create the materialized views that are missing."""
    for statement in _views(_schema_files()):
        client.command(statement)


def ours() -> set[str]:
    """Return the names of all tables and views that `migrate` makes."""
    made = re.compile(r"CREATE (?:TABLE|MATERIALIZED VIEW) IF NOT EXISTS (\w+)")
    return {"schema_version", *(name for text in _schema_files().values() for name in made.findall(text))}


def migrate(client: Client, rebuild: Callable[[], object], check_room: Callable[[], None]) -> None:
    """
    Apply the schema files that the database does not have yet. Repeating one changes nothing.

    Where the views of an older database changed, *rebuild* derives again what they say. *check_room* is called before
    the first change.
    """
    client.command(
        "CREATE TABLE IF NOT EXISTS schema_version (version UInt32, applied_at DateTime DEFAULT now()) "
        "ENGINE = MergeTree ORDER BY version"
    )
    stored = schema_of(client)
    files = _schema_files()
    if stored > max(files):
        raise Unavailable(
            "the usage store was made by a later version of Tollkeeper", stored=stored, known=max(files)
        )
    if stored < max(files):
        check_room()
    versions = [version for version in sorted(files) if version > stored]
    for version in versions:
        for statement in _statements(files[version]):
            client.command(statement)
    if not REVIEWED.isdisjoint(versions):
        # Last, since the views are told as they are now, over all columns that there are.
        create_views(client)
    if stored and not REDERIVED.isdisjoint(versions):
        rebuild()
    # What was applied without this is applied again at the next start.
    for version in versions:
        client.command(
            "INSERT INTO schema_version (version) SELECT {version:UInt32}", parameters={"version": version}
        )


def _schema_files() -> dict[int, str]:
    folder = resources.files("tollkeeper.adapters.clickhouse") / "schema"
    return {
        int(file.name.split("_")[0]): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }


def _statements(text: str) -> list[str]:
    return [statement.strip() for statement in text.split(";\n") if statement.strip()]


def _views(files: Mapping[int, str]) -> list[str]:
    return [
        statement[statement.index(_VIEW) :]
        for text in files.values()
        for statement in _statements(text)
        if _VIEW in statement
    ]


def derivation(view: str, condition: str | None = None) -> str:
    """Return the SELECT of a materialized view, over the records for which *condition* holds."""
    opening = f"{_VIEW}{view} TO "
    select = next(text for text in _views(_schema_files()) if text.startswith(opening)).split(" AS\n", 1)[1]
    if condition is None:
        return select
    return select.replace("FROM events", f"FROM (SELECT * FROM events WHERE {condition})")


def day_spans(counts: Sequence[Sequence[Any]]) -> list[tuple[int, int]]:
    """Return spans of days (first, last) that cover *counts*, pairs of day and records in order."""
    spans: list[tuple[int, int]] = []
    held = 0
    for day, count in counts:
        if spans and held + count <= _STEP_RECORDS:
            spans[-1] = (spans[-1][0], day)
            held += count
        else:
            spans.append((day, day))
            held = count
    return spans
