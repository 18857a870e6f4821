"""Opens the SQL truth: SQLite in WAL mode or PostgreSQL, migrated to the newest schema."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from tollkeeper.adapters.sql import catalog_tables, ledger_tables, operator_keys, webhook_tables
from tollkeeper.adapters.sql.metadata import metadata
from tollkeeper.errors import Unavailable

SCHEMA_REVISION = "0003"
"""The newest migration; compared first, so that an up-to-date database opens without loading Alembic."""

_BUSY_TIMEOUT_MS = 10_000

__all__ = [
    "SCHEMA_REVISION",
    "catalog_tables",
    "ledger_tables",
    "metadata",
    "migrate",
    "open_engine",
    "operator_keys",
    "webhook_tables",
]


def open_engine(url: str, *, memory_pages: int = 4_000) -> sa.Engine:
    """
    Return an engine on *url*: `sqlite:///path`, `sqlite://` (in memory), or `postgresql://…`.

    Raises:
        Unavailable: The database cannot be opened or written.
    """
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    # Parameters stay out of errors and logs: among them are hashes of secrets.
    options: dict[str, Any] = {"hide_parameters": True}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            # One connection is one transaction at a time: fine for a test of one thread, not for a service.
            options["poolclass"] = StaticPool
        options["connect_args"] = {"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000}
    engine = sa.create_engine(parsed, **options)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            # FULL: an acknowledged commit survives power loss. Measured 0.25 ms per group commit.
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
            cursor.execute(f"PRAGMA cache_size={memory_pages}")
            # Payloads of the outbox pass through: without this the WAL keeps its largest size for ever.
            cursor.execute("PRAGMA journal_size_limit=67108864")
            cursor.close()

    return engine


def migrate(engine: sa.Engine) -> None:
    """
    Bring the schema to the newest revision. Safe to repeat.

    Raises:
        Unavailable: The database cannot be reached or written, is damaged, or is of a later version.
    """
    try:
        if _revision(engine) == SCHEMA_REVISION:
            return
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                # The driver begins a transaction for data only, and without one a crash leaves half a schema.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            _upgrade(connection)
    except (DBAPIError, sqlite3.Error) as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) else exc
        raise Unavailable(f"The database {_name_of(engine)} cannot be opened: {cause}") from exc


def _upgrade(connection: sa.Connection) -> None:
    # Here, since an up-to-date database opens without it, and it takes long to load.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        name = _name_of(connection.engine)
        raise Unavailable(f"The database {name} was made by another version of Tollkeeper: {exc}") from exc


def _name_of(engine: sa.Engine) -> str:
    url = engine.url
    return (
        url.database or "" if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    )


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
