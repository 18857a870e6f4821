"""
The file of an SQLite ledger: notices when it, or its log, was removed or replaced while it is open.

SQLite goes on writing to a file that has no name any more, and all that it writes is gone with the process. One
connection is kept open here, so that the write-ahead log stays the same file for as long as this process lives.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Final

import sqlalchemy as sa

from tollkeeper.errors import Unavailable

_LOG_SUFFIX: Final = "-wal"
_DAMAGED: Final = (
    "The ledger's file is damaged, and trying again does not help: stop Tollkeeper, check the disk, put a backup of "
    "the whole data directory back, and start it again."
)
_ADVICE: Final = {
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_FULL: "The disk is full: make room, then try again.",
    sqlite3.SQLITE_READONLY: "The file must be writable for the user that Tollkeeper runs as.",
    sqlite3.SQLITE_IOERR: "The disk reports an error: look into the system's log.",
}
"""Primary result code of SQLite → what to do."""


class LedgerFile:
    """Remembers which files the ledger is in. On PostgreSQL, and in memory, there are none."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection: sa.Connection | None = None
        self._files: dict[str, tuple[int, int]] = {}
        path = engine.url.database
        if engine.dialect.name != "sqlite" or path in (None, "", ":memory:"):
            return
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        # The log is opened by the first read.
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar()
        self._connection = connection
        self._files = {name: _identity(name) for name in (path, path + _LOG_SUFFIX)}

    def check(self) -> None:
        """
        See that the files are where they were. Costs a few microseconds.

        Raises:
            Unavailable: One was removed or replaced.
        """
        for name, identity in self._files.items():
            try:
                is_there = _identity(name) == identity
            except FileNotFoundError:
                is_there = False
            except OSError as exc:
                raise Unavailable(f"The ledger's file {name} cannot be read: {exc.strerror}.") from exc
            if not is_there:
                raise Unavailable(
                    f"The ledger's file {name} was removed or replaced while it was in use: nothing more is "
                    "booked. Stop this process, put the file back, and start it again."
                )

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def advice_on(error: BaseException | None) -> str:
    """Return what helps against an error of the database's driver: a damaged file does not mend by waiting."""
    code = getattr(error, "sqlite_errorcode", None)
    return "Try again shortly." if code is None else _ADVICE.get(code & 0xFF, "Try again shortly.")


def _identity(name: str) -> tuple[int, int]:
    found = os.stat(name)
    return found.st_dev, found.st_ino
