"""
Who may run on a PostgreSQL database: one process at a time, as one process has a data directory.

The gate decides from its own memory, so two processes would both admit the same remainder. A lock of a database session
keeps the second one out. The database releases it when the session ends, however its process did; until the
owner has taken it again somebody else may, which is why the ledger also sees another's commits
(`SqlLedger.claim`).

SQLite needs none of it: its file is in a data directory, which has a lock of its own.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from tollkeeper.errors import LedgerInUse, Unavailable

TAKE_MS_MAX: Final = 5_000
"""How long a start waits: the session of a killed process ends a moment after it."""
_CLASS: Final = 0x746F6C6C
"""Keeps our locks apart from those of others; one-number locks, as of the catalog, are another space anyway."""
_SESSION: Final = (
    # The wait for the lock has a limit of its own, with an error of its own.
    "SET statement_timeout = 0",
    f"SET lock_timeout = {TAKE_MS_MAX}",
    # A machine that lost its power says no goodbye: ask after it, or its lock stays for two hours.
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)
_TAKE: Final = sa.text("SELECT pg_advisory_lock(:class, hashtext(current_schema()))").bindparams(
    **{"class": _CLASS}
)
_OWNER: Final = sa.text(
    "SELECT application_name FROM pg_stat_activity WHERE pid = ("
    "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
    "WHERE locktype = 'advisory' AND datname = current_database() AND granted "
    "AND classid = :class AND objid = CAST(hashtext(current_schema()) AS oid) LIMIT 1)"
).bindparams(**{"class": _CLASS})


class Ownership:
    """
    The right of this process to run on a database. Close it to let another one.

    Raises:
        LedgerInUse: Another process has it.
        Unavailable: The database cannot be reached.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._session: sa.Connection | None = None
        self.keep()

    def keep(self) -> None:
        """
        Take it again if the session that had it was cut off; to be called every few seconds.

        Raises:
            LedgerInUse: Another process took it meanwhile.
            Unavailable: The database cannot be reached.
        """
        if self._engine.dialect.name != "postgresql":
            return
        try:
            if self._session is not None:
                self._session.exec_driver_sql("SELECT 1")
                return
        except SQLAlchemyError:
            self.close()
        try:
            self._session = self._take()
        except SQLAlchemyError as exc:
            cause = " ".join(str(getattr(exc, "orig", exc)).split())
            raise Unavailable(f"The ledger cannot be reached: {cause}. Try again shortly.") from exc

    def close(self) -> None:
        """Release the lock. A repeat changes nothing."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _take(self) -> sa.Connection:
        # Outside a transaction, which would keep the database from cleaning up, and out of the pool.
        session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        session.detach()
        try:
            for statement in _SESSION:
                session.exec_driver_sql(statement)
            try:
                session.execute(_TAKE)
            except OperationalError as exc:
                if getattr(exc.orig, "sqlstate", None) != "55P03":  # lock_not_available
                    raise
                owner = session.execute(_OWNER).scalar() or "another process"
                name = self._engine.url.render_as_string(hide_password=True)
                raise LedgerInUse(
                    f"The database {name} is in use by {owner}. "
                    "Stop it, or ask it over HTTP with --url and --key."
                ) from exc
        except BaseException:
            session.close()
            raise
        return session
