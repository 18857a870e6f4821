"""
Copies of the whole ledger as of one instant, for a backup, while it goes on; and the way back, to either engine.

A copy is an SQLite file whatever the engine is, so that a backup of one can be restored on the other.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tollkeeper.adapters.sql import silence
from tollkeeper.adapters.sql.database import check_empty, metadata, migrate, open_engine, upgrade
from tollkeeper.adapters.sql.ledger_database import database_errors
from tollkeeper.adapters.sql.ledger_tables import progress
from tollkeeper.adapters.sql.logins import logins
from tollkeeper.errors import Conflict, Unavailable

_PAGES: Final = 2_000
"""Pages that are copied at a time, some 8 MB: between two steps other threads run."""
_ROWS: Final = {"outbox": 4}
"""Rows that are read at a time, where they may be large: one of the outbox has up to a batch of events."""
_ROWS_OTHERWISE: Final = 2_000
_FIGURES: Final = {
    "accounts": "SELECT count(*) FROM accounts",
    "keys": "SELECT count(*) FROM keys",
    "holds": "SELECT count(*) FROM holds",
    "counters": "SELECT count(*) FROM counters",
    "charged": "SELECT coalesce(sum(used), 0) FROM counters",
    "pending_events": "SELECT coalesce(sum(record_count), 0) FROM outbox WHERE set_aside_reason IS NULL",
}
_NUMBERED: Final = tuple(
    table.name for table in metadata.sorted_tables if table.dialect_options["sqlite"]["autoincrement"]
)
"""Tables whose rows get a number, `seq`, that is never given twice."""
_SEQUENCE: Final = sa.text("SELECT pg_get_serial_sequence(:table, 'seq')")
_SET_SEQUENCE: Final = sa.text("SELECT setval(pg_get_serial_sequence(:table, 'seq'), :last)")


class LedgerCopy(Protocol):
    """The ledger as of one instant."""

    def write_to(self, path: Path) -> None:
        """
        Write it to *path*, which is empty, as a migrated SQLite database in one file.

        Raises:
            Unavailable: The ledger is damaged or cannot be read, or *path* cannot be written.
        """


@contextmanager
def frozen(engine: sa.Engine) -> Iterator[LedgerCopy]:
    """
    Yield the ledger as of the moment that the block is entered, while others go on writing.

    Raises:
        Unavailable: It cannot be read, or is in memory.
    """
    if engine.dialect.name == "postgresql":
        with (
            silence.PATIENCE,
            database_errors("read"),
            engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        ):
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            # The first statement that reads is what fixes the instant.
            connection.execute(sa.select(progress.c.commit_seq)).one()
            yield _OfPostgresql(connection)
        return
    path = engine.url.database
    if path in (None, "", ":memory:"):
        raise Unavailable("A ledger in memory cannot be backed up: it has no file.")
    with file_errors(), closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT commit_seq FROM progress").fetchone()
        yield _OfSqlite(connection)


class _OfSqlite:
    """A transaction that reads: while it is open, what others write is not seen in it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def write_to(self, path: Path) -> None:
        with file_errors(), closing(sqlite3.connect(path)) as copy:
            self._connection.backup(copy, pages=_PAGES)
            # One that has ended since must not be good again in what is restored.
            copy.execute(f"DELETE FROM {logins.name}")  # noqa: S608
            copy.commit()
            _close_copy(copy)


class _OfPostgresql:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def write_to(self, path: Path) -> None:
        engine = open_engine(f"sqlite:///{path}")
        try:
            migrate(engine)
            with database_errors("copied"), engine.begin() as copy:
                _copy_rows(self._connection, copy)
                for table in _NUMBERED:
                    name = self._connection.execute(_SEQUENCE, {"table": table}).scalar_one()
                    last = self._connection.exec_driver_sql(f"SELECT last_value FROM {name}").scalar_one()  # noqa: S608
                    copy.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
                    copy.exec_driver_sql(
                        "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last)
                    )
        finally:
            engine.dispose()
        with file_errors(), closing(sqlite3.connect(path)) as copied:
            _close_copy(copied)


def size_of(engine: sa.Engine) -> int:
    """Return how many bytes a copy of the ledger takes, about."""
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or "")
        return path.stat().st_size if path.is_file() else 0
    with database_errors("read"), engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())


def describe(path: Path) -> tuple[str, dict[str, int], dict[str, int]]:
    """
    Return what a copy has: its revision, the rows of each table, and figures (fields of `BackupTotals`).

    Raises:
        Unavailable: It cannot be read.
    """
    with file_errors(), closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as copy:
        names = copy.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
        rows = {name: int(copy.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for (name,) in names}  # noqa: S608
        figures = {name: int(copy.execute(sql).fetchone()[0]) for name, sql in _FIGURES.items()}
        (revision,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(revision), rows, figures


def figures_of(url: str) -> tuple[dict[str, int], dict[str, int]]:
    """
    Return the rows of each table of the ledger at *url*, and figures (fields of `BackupTotals`).

    Raises:
        Unavailable: It cannot be read.
    """
    engine = open_engine(url)
    try:
        with silence.PATIENCE, database_errors("read"), engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            rows = {
                table.name: int(
                    connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                )
                for table in metadata.sorted_tables
            }
            return rows, {
                name: int(connection.exec_driver_sql(sql).scalar_one()) for name, sql in _FIGURES.items()
            }
    finally:
        engine.dispose()


def check_nothing_at(url: str) -> None:
    """
    Check that a restored ledger finds an empty place at *url*.

    Raises:
        Conflict: There is a ledger, or another database, already.
        Unavailable: The database cannot be reached.
    """
    engine = open_engine(url)
    try:
        if engine.dialect.name == "postgresql":
            check_empty(engine)
            return
        path = Path(engine.url.database or "")
        if path.exists() and path.stat().st_size:
            raise Conflict(f"There is a ledger at {path} already: name a path where there is no file.")
    finally:
        engine.dispose()


def restored_id(url: str) -> str | None:
    """Return the installation whose ledger is at *url*; None where there is none."""
    engine = open_engine(url)
    try:
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
            # To open it would make it.
            return None
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table(progress.name):
                return None
            return connection.execute(sa.select(progress.c.installation_id)).scalar()
    except SQLAlchemyError:
        return None
    finally:
        engine.dispose()


def restore(copy: Path, url: str, installation_id: str) -> None:
    """
    Make the ledger at *url* the one in *copy*, all or nothing, under *installation_id*.

    Args:
        copy: A file of the caller that is used up.
        url: An empty place: see `check_nothing_at`.

    Raises:
        Unavailable: The database cannot be written, or the copy is of another version.
    """
    source = open_engine(f"sqlite:///{copy}")
    try:
        migrate(source)
        with database_errors("written"), source.begin() as tx:
            tx.execute(sa.update(progress).values(installation_id=installation_id))
        target = open_engine(url)
        try:
            if target.dialect.name == "postgresql":
                _fill_postgresql(source, target)
                return
        finally:
            target.dispose()
    finally:
        source.dispose()
    with file_errors():
        with closing(sqlite3.connect(copy)) as connection:
            _close_copy(connection)
        path = Path(target.url.database or "")
        # It may be on another disk.
        new = path.with_name(f"{path.name}.new")
        shutil.move(copy, new)
        sync(new)
        new.replace(path)
        sync(path.parent)


def _fill_postgresql(source: sa.Engine, target: sa.Engine) -> None:
    try:
        with silence.PATIENCE, source.connect() as copy, target.begin() as tx:
            tx.exec_driver_sql("SET LOCAL statement_timeout = 0")
            tx.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            # With the rows in one transaction, so that a database is restored whole or stays empty.
            upgrade(tx)
            _copy_rows(copy, tx)
            for table in _NUMBERED:
                last = copy.exec_driver_sql(
                    "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
                ).scalar()
                if last:
                    tx.execute(_SET_SEQUENCE, {"table": table, "last": last})
    except DBAPIError as exc:
        raise Unavailable(f"The ledger cannot be restored: {exc.orig}") from exc


def _copy_rows(source: sa.Connection, target: sa.Connection) -> None:
    """Insert all rows of our tables but the logins; both have the newest schema."""
    for table in metadata.sorted_tables:
        if table is logins:
            continue
        count = _ROWS.get(table.name, _ROWS_OTHERWISE)
        rows = source.execution_options(yield_per=count).execute(sa.select(table))
        for part in rows.mappings().partitions(count):
            target.execute(sa.insert(table), [dict(row) for row in part])


def _close_copy(connection: sqlite3.Connection) -> None:
    """Make a copy one file that is whole by itself, and see that it can be read."""
    connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    # What passed through the outbox left its pages, which may be most of the file.
    connection.execute("VACUUM")
    found = [line for (line,) in connection.execute("PRAGMA quick_check(5)")]
    if found != ["ok"]:
        raise Unavailable(f"The ledger is damaged and cannot be copied: {'; '.join(found)}")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn each error of a file of SQLite into `Unavailable`."""
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise Unavailable(f"The copy of the ledger failed: {exc}") from exc
