"""Where the ledger of an attacked installation is, to be copied, put back and emptied."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any, Final, Protocol

from tollkeeper.adapters.sql.copies import ScratchDatabase, read_tables, write_tables
from tollkeeper.prove.server import ServerProcess

_NUMBERS: Final = itertools.count(1)
_FILES: Final = "ledger.sqlite3*"
"""The database with its write-ahead log: together they are what was committed."""


class LedgerPlace(Protocol):
    """A ledger. The maker removes it."""

    @property
    def url(self) -> str | None:
        """What the server is given; None for SQLite in its data directory."""

    def copy(self, server: ServerProcess) -> Any:
        """Return its state as of one instant, while *server* runs or not."""

    def put_back(self, copy: Any) -> None:
        """Bring it to the state of *copy*. No server runs on it."""

    def clear(self) -> None:
        """Make it an empty one."""

    def remove(self) -> None: ...


class SqliteLedger:
    """In a data directory; copies lie beside it."""

    url = None

    def __init__(self, data: Path) -> None:
        self._data = data
        self._copies = 0

    def copy(self, server: ServerProcess) -> Path:
        self._copies += 1
        copy = self._data.with_name(f"{self._data.name}-ledger-{self._copies}")
        copy.mkdir()
        with server.frozen():
            for path in self._data.glob(_FILES):
                shutil.copy2(path, copy)
        return copy

    def put_back(self, copy: Path) -> None:
        self.clear()
        for path in copy.iterdir():
            shutil.copy2(path, self._data)

    def clear(self) -> None:
        for path in self._data.glob(_FILES):
            path.unlink()

    def remove(self) -> None:
        """The directory is removed with all that is in it."""


class PostgresqlLedger:
    """
    In a database of its own, on the server of the URL: *name* and a number, as one before may not be removed yet.

    Raises:
        Unavailable: The role may not create one.
    """

    def __init__(self, url: str, name: str) -> None:
        self._database = ScratchDatabase(url, f"{name}_{next(_NUMBERS)}")
        self.url = self._database.url

    def copy(self, server: ServerProcess) -> Any:
        return read_tables(self._database.engine)

    def put_back(self, copy: Any) -> None:
        # What a second server made of an emptied database has the same schema.
        write_tables(self._database.engine, copy)

    def clear(self) -> None:
        self._database.clear()

    def remove(self) -> None:
        self._database.remove()
