"""
The connections of this process to one engine: in process (chDB) or on a server.

A client serialises its calls, so each kind of query has clients of its own: a report must not keep a look-up of the
gate waiting. All clients of one process share the engine.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlparse

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from tollkeeper import packages
from tollkeeper.adapters.clickhouse import descriptions
from tollkeeper.adapters.clickhouse.engine_threads import EngineThreads
from tollkeeper.adapters.clickhouse.readers import Readers
from tollkeeper.errors import BadParameter, Unavailable

REPORTS: Final = (4, 5.0)
"""How many run at once, and seconds that another waits. More would only wait: one keeps two cores busy."""
LOOK_UPS: Final = (4, 5.0)
"""Of few ids: calls of the gate wait for them."""
LOOK_UP_S_MAX: Final = 5
"""One takes some ms. Beside heavier work it must not keep its caller, and its client, for as long as that lasts."""
SCANS: Final = (2, 60.0)
"""Of all records: verification, export, prices that come late."""
READY_S_MAX: Final = 2.0
UNGATHERED: Final = {"async_insert": 0}
"""Setting of an insert whose rows must be there when it returns: a server's default may gather them."""
_MARK_CACHE_BYTES: Final = 64 << 20
_IN_PROCESS: Final = {
    # Few rows per query: to compile its expressions takes longer than to run them.
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
}
_DAMAGED_FILE: Final = re.compile(r"While reading or decompressing \S*?([^/\s]+/[^/\s]+) ")
"""The engine names the file by its whole path, which callers must not see."""
_UNKNOWN_ZONE: Final = "Cannot load time zone"


class Engine:
    """
    Clients of one engine, by kind of query. Any thread may call; a client serves one thread at a time.

    Attributes:
        directory: Of the engine in this process; None on a server.
        appender: The one client that appends and rebuilds.
    """

    def __init__(self, url: str, memory_bytes_max: int | None = None) -> None:
        """
        Args:
            url: `chdb:///absolute/path` or `clickhouse://user:password@host[:port]/database`.
            memory_bytes_max: The most that the engine in this process, or one query on a server, may use.

        Raises:
            PackageMissing: *url* is in this process, and chDB is not installed.
            Unavailable: A table of the directory lost its description. What the driver raises goes through, for
                `engine_errors` around the call.
        """
        packages.check_usage_store(url)
        self.url = url
        self.directory = Path(urlparse(url).path) if url.startswith("chdb:") else None
        self._options: dict[str, Any] = {}
        self._settings: dict[str, Any] = {}
        if self.directory is not None:
            descriptions.remove_empty(self.directory)
            self._options["mark_cache_size"] = _MARK_CACHE_BYTES
            self._settings |= _IN_PROCESS
            if memory_bytes_max is not None:
                self._options["max_server_memory_usage"] = memory_bytes_max
        elif memory_bytes_max is not None:
            self._settings["max_memory_usage"] = memory_bytes_max
        self._clients: list[Client] = []
        self._closed = False
        self._threads = EngineThreads()
        self.reports = self._readers(*REPORTS)
        self.look_ups = self._look_ups()
        self.scans = self._readers(*SCANS)
        self.probes = self._readers(1, READY_S_MAX)
        self.stoppers = self._readers(1, READY_S_MAX)
        self.appender = self.connect()

    def _readers(self, count: int, wait_s: float, connect: Callable[[], Client] | None = None) -> Readers:
        return Readers(connect or self.connect, count, wait_s, check_open=self.check_open)

    def _look_ups(self) -> Readers:
        return self._readers(*LOOK_UPS, connect=lambda: self.connect(most_s(LOOK_UP_S_MAX)))

    def connect(self, settings: Mapping[str, Any] = MappingProxyType({})) -> Client:
        """Return a new client, which `close` closes; *settings* are of all its statements."""
        self.check_open()
        client = clickhouse_connect.get_client(
            dsn=self.url,
            settings={**self._settings, **settings} or None,
            **({"chdb_options": self._options} if self._options else {}),
        )
        self._clients.append(client)
        return client

    def check_open(self) -> None:
        """Raise `Unavailable` after `close`: clients of a server would go on answering."""
        if self._closed:
            raise Unavailable("the usage store is closed")

    def check_room(self) -> None:
        """Raise `Unavailable` unless there is room for the descriptions of new tables."""
        if self.directory is not None:
            descriptions.check_room(self.directory)

    def rows(
        self,
        sql: str,
        parameters: dict[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        readers: Readers | None = None,
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query, run by one of *readers* (by default of those for scans)."""
        with engine_errors(), (readers or self.scans).lend() as client:
            result = client.query(sql, parameters=parameters or {}, settings=dict(settings or {}))
            return list(map(tuple, result.result_rows))

    def insert(self, client: Client, table: str, rows: pa.Table, settings: Mapping[str, Any]) -> None:
        """Write *rows* as one statement."""
        if self.directory is None:
            client.insert_arrow(table, rows, settings=dict(settings))
            return
        # The engine in this process takes rows from a file. The driver's would outlive a crash, in the system's
        # directory for temporary files, with customers' events; one without a name ends with the process.
        self._threads.give_way()
        with tempfile.TemporaryFile(dir=self.directory) as file:
            with pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)
            file.seek(0)
            # Settings within the statement: beside it, the driver sets each for the session, and back.
            given = ", ".join(f"{name} = {_quoted(value)}" for name, value in settings.items())
            client.command(
                f"INSERT INTO {table} ({', '.join(rows.column_names)}) FROM INFILE '/dev/fd/{file.fileno()}' "
                f"{f'SETTINGS {given} ' if given else ''}FORMAT Arrow"
            )

    def close(self) -> None:
        """Close every client. On a server too nothing is answered afterwards."""
        self._closed = True
        with engine_errors():
            for client in self._clients:
                client.close()


@contextmanager
def engine_errors() -> Iterator[None]:
    """Let no error of the driver out: chDB raises RuntimeErrors too, and a full disk is an OSError."""
    try:
        yield
    except (ClickHouseError, RuntimeError, OSError, pa.ArrowException) as exc:
        if _UNKNOWN_ZONE in str(exc):
            # The database of zones of another engine may be older than ours.
            raise BadParameter("time_zone is not known to the usage store", field="time_zone") from exc
        damaged = _DAMAGED_FILE.search(str(exc))
        said = f"is damaged: {damaged[1]}" if damaged else "cannot answer now"
        raise Unavailable(f"the usage store {said}", detail=str(exc)) from exc


def most_s(seconds: int) -> dict[str, Any]:
    """Return the settings of statements that may take so long."""
    return {"max_execution_time": seconds, "timeout_overflow_mode": "throw"}


def is_damage(exc: Exception) -> bool:
    """Return whether the engine says of *exc* that a file is damaged."""
    return _DAMAGED_FILE.search(str(exc)) is not None


def _quoted(value: object) -> str:
    """Return *value* as a string of SQL; the engine reads numbers from it too."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
