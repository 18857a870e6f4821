"""
Copies of a ledger in PostgreSQL, row by row, as an asynchronous replica has them: the commits up to one instant.

For `tollkeeper prove`, which puts an older copy back. It is not the way to back up: see `ledger_copies.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tollkeeper.adapters.sql.database import open_engine, remove_tables
from tollkeeper.errors import Unavailable

_DROP_TRIES: Final = 3
"""PostgreSQL gives sessions that it ends a few seconds, which a machine under load may not have for them."""
Tables: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""Table name → its rows; tables that others refer to come first."""


def read_tables(engine: sa.Engine) -> Tables:
    """
    Return all rows of all tables as of one instant, while others go on writing.

    Raises:
        Unavailable: The database cannot be reached.
    """
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            tables = sa.MetaData()
            tables.reflect(connection)
            return {
                table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
                for table in tables.sorted_tables
            }
    except DBAPIError as exc:
        raise Unavailable(f"The tables cannot be read: {exc.orig}") from exc


def write_tables(engine: sa.Engine, rows: Tables) -> None:
    """
    Make the tables have exactly *rows*, in one transaction. The schema is that which they were read from.

    Raises:
        Unavailable: The database cannot be reached or written.
    """
    try:
        with engine.begin() as connection:
            tables = sa.MetaData()
            tables.reflect(connection)
            for table in reversed(tables.sorted_tables):
                connection.execute(sa.delete(table))
            for name, content in rows.items():
                if content:
                    connection.execute(sa.insert(tables.tables[name]), list(content))
    except DBAPIError as exc:
        raise Unavailable(f"The tables cannot be written: {exc.orig}") from exc


class ScratchDatabase:
    """
    A database of its own beside the one that a URL names, on the same server. The maker removes it.

    Raises:
        Unavailable: The role may not create databases, or the server cannot be reached.
    """

    def __init__(self, url: str, name: str) -> None:
        self._server = open_engine(url).execution_options(isolation_level="AUTOCOMMIT")
        self._name = name
        try:
            self._run(f'CREATE DATABASE "{name}"')
        except Unavailable:
            self._server.dispose()
            raise
        self.url = sa.make_url(url).set(database=name).render_as_string(hide_password=False)
        self.engine = open_engine(self.url)

    def clear(self) -> None:
        """Remove all tables."""
        remove_tables(self.engine)

    def remove(self) -> None:
        """Remove the database. A session that a killed process left is ended."""
        self.engine.dispose()
        try:
            for _ in range(_DROP_TRIES):
                # Rights were enough to create it, and a server that is gone has nothing to remove.
                with suppress(Unavailable):
                    self._run(f'DROP DATABASE IF EXISTS "{self._name}" WITH (FORCE)')
                    break
        finally:
            self._server.dispose()

    def _run(self, statement: str) -> None:
        try:
            with self._server.connect() as connection:
                connection.execute(sa.text(statement))
        except DBAPIError as exc:
            raise Unavailable(f"{statement}: {exc.orig}") from exc
