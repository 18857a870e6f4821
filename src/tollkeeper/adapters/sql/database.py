"""Opens the SQL truth: SQLite in WAL mode or PostgreSQL, migrated to the newest schema."""

from __future__ import annotations

import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool, StaticPool

from tollkeeper.adapters.sql import (
    catalog_tables,
    ledger_tables,
    logins,
    operator_keys,
    silence,
    webhook_tables,
)
from tollkeeper.adapters.sql.ledger_file import advice_on
from tollkeeper.adapters.sql.metadata import metadata
from tollkeeper.blocking import check_may_wait
from tollkeeper.errors import BadParameter, Conflict, Unavailable

SCHEMA_REVISION = "0016"
"""The newest migration; compared first, so that an up-to-date database opens without loading Alembic."""

_BUSY_TIMEOUT_MS = 10_000
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}

__all__ = [
    "SCHEMA_REVISION",
    "check_empty",
    "catalog_tables",
    "ledger_tables",
    "logins",
    "metadata",
    "migrate",
    "open_engine",
    "operator_keys",
    "remove_tables",
    "upgrade",
    "webhook_tables",
]


def open_engine(url: str, *, memory_pages: int = 4_000) -> sa.Engine:
    """
    Return an engine on *url*: `sqlite:///path`, `sqlite://` (in memory), or `postgresql://…`.

    Raises:
        BadParameter: *url* is no such URL.
    """
    try:
        parsed = sa.make_url(url)
        parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    except (ArgumentError, ValueError, KeyError):
        # Without the URL and its cause, in which there may be a password.
        raise BadParameter(
            "ledger_url is sqlite:///path or postgresql://user@host/name", field="ledger_url"
        ) from None
    # Parameters stay out of errors and logs: among them are hashes of secrets.
    options: dict[str, Any] = {"hide_parameters": True, "poolclass": _Connections}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            # One connection is one transaction at a time: fine for a test of one thread, not for a service.
            options["poolclass"] = _OneConnection
        options["connect_args"] = {"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000}
    else:
        # As many as there are threads that use them; who finds none is answered soon.
        options |= {"pool_size": 10, "max_overflow": 40, "pool_timeout": 5}
        # A connection that the server ended while it was idle is replaced, and no caller hears of it.
        options["pool_pre_ping"] = True
        options["connect_args"] = {name: value for name, value in _link().items() if name not in parsed.query}
    engine = sa.create_engine(parsed, **options)
    if engine.dialect.name == "postgresql":
        engine.dialect.connect = silence.Connection.connect  # type: ignore[method-assign,assignment]
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
            # Payloads of the outbox pass through: without this the WAL never shrinks.
            cursor.execute("PRAGMA journal_size_limit=67108864")
            cursor.close()

    return engine


class _Connections(QueuePool):
    """A pool that gives no connection to a thread that must not wait: its statement might take long."""

    def connect(self) -> PoolProxiedConnection:
        check_may_wait()
        return super().connect()


class _OneConnection(StaticPool):
    """The same for a database in memory."""

    def connect(self) -> PoolProxiedConnection:
        check_may_wait()
        return super().connect()


def _link() -> dict[str, Any]:
    """Return how we connect to PostgreSQL: a server that is not there is found out in seconds, not hours."""
    return {
        "application_name": f"tollkeeper process {os.getpid()} on {socket.gethostname()}"[:63],
        "connect_timeout": 10,
        "options": silence.OPTIONS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }


def migrate(engine: sa.Engine) -> None:
    """
    Bring the schema to the newest revision. Safe to repeat.

    Raises:
        Unavailable: The database cannot be reached or written, is damaged, or is of a later version.
    """
    try:
        if _revision(engine) == SCHEMA_REVISION:
            return
        with silence.PATIENCE, engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            if engine.dialect.name == "sqlite":
                # The driver begins a transaction for data only, and without one a crash leaves half a schema.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            upgrade(connection)
    except (DBAPIError, sqlite3.Error) as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) else exc
        advice = (
            advice_on(cause)
            if getattr(cause, "sqlite_errorcode", None)
            else "Is it running, and the URL right?"
        )
        raise Unavailable(
            f"The database {_name_of(engine)} cannot be opened: {str(cause).strip().rstrip('.')}. {advice}"
        ) from exc


def check_empty(engine: sa.Engine) -> None:
    """
    Check that a PostgreSQL database is empty, in every schema.

    Raises:
        BadParameter: It is no PostgreSQL.
        Conflict: It holds something.
        Unavailable: It cannot be reached.
    """
    if engine.dialect.name != "postgresql":
        raise BadParameter("ledger_url: name a PostgreSQL database, postgresql://…", field="ledger_url")
    query = sa.text(
        "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        r"WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\_%' LIMIT 1"
    )
    try:
        with engine.connect() as connection:
            found = connection.execute(query).scalar()
    except DBAPIError as exc:
        raise Unavailable(f"The database {_name_of(engine)} cannot be opened: {exc.orig}") from exc
    if found is not None:
        raise Conflict(f"The database {_name_of(engine)} is not empty, it has {found}: name an empty one.")


def remove_tables(engine: sa.Engine) -> None:
    """
    Remove all that `migrate` made, with what is in it. Safe to repeat.

    Raises:
        Unavailable: The database cannot be reached or written.
    """
    try:
        with engine.begin() as connection:
            metadata.drop_all(connection)
            connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    except DBAPIError as exc:
        raise Unavailable(f"The tables of {_name_of(engine)} cannot be removed: {exc.orig}") from exc


def upgrade(connection: sa.Connection) -> None:
    """Bring the schema to the newest revision within a transaction of the caller. Raises as `migrate`."""
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
        raise Unavailable(
            f"The database {name} was made by a later version of Tollkeeper than this one: {exc}. "
            "Install that version, or a later one; an older one cannot use it."
        ) from exc


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
