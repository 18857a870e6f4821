"""
Backups of a running installation, its ledger and its usage store as of one instant.

The relay stands still while the two copies begin, the usage store's first: so the ledger copy is never older than the
usage store's, and what the one has delivered the other has. Records that were committed between the two are in the
outbox of the ledger copy. Then the relay goes on, and the copies are written from what was frozen. Requests are
admitted and settled all the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from tollkeeper.clock import Clock
from tollkeeper.domain.backups import (
    FORMAT,
    BackupFile,
    BackupTotals,
    Manifest,
    UsagePiece,
    UsageTable,
)
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Conflict
from tollkeeper.ledger.budget_scopes import ScopeKeeper
from tollkeeper.ledger.relay import Relay

RELAY_S_MAX: Final = 60.0
"""How long a backup waits for a batch that is on its way."""
_LEDGER: Final = "ledger.sqlite3"


class Part(Protocol):
    """One part of a table: see `adapters.clickhouse.snapshots`."""

    @property
    def file(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class Table(Protocol):
    """One table of a usage store as of one instant."""

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def parts(self) -> Sequence[Any]: ...


class UsageCopy(Protocol):
    """A usage store as of one instant."""

    schema: int
    marks: dict[str, BatchMark]

    @property
    def tables(self) -> Sequence[Table]: ...

    def totals(self) -> tuple[int, int]:
        """Return its records, and what they cost in nanos."""

    def read(self, part: Any) -> Iterator[bytes]:
        """Yield the rows of one part. Raises `Unavailable` when it is damaged."""


class LedgerCopy(Protocol):
    """A ledger as of one instant."""

    def write_to(self, path: Path) -> None:
        """Write it to an empty file. Raises `Unavailable`."""


class Writer(Protocol):
    """Where a backup is written: see `adapters.backup_directory`."""

    files: dict[str, BackupFile]
    written_bytes: int

    def check_room(self, needed_bytes: int, data: Path) -> None: ...
    def has(self, name: str) -> bool: ...
    def keep(self, name: str) -> bool: ...
    def write_usage(self, name: str, blocks: Iterable[bytes]) -> None: ...
    def write_bytes(self, name: str, content: bytes) -> str: ...
    def write_file(self, name: str, make: Callable[[Path], None]) -> str: ...
    def finish(self, manifest: Manifest) -> None: ...


class BackupSources(NamedTuple):
    """
    What a backup is made of, as of the moment that each is entered.

    Attributes:
        describe: Returns of a written ledger its revision, the rows of each table, and figures of `BackupTotals`.
        ledger_bytes: Returns how large the ledger is, about.
        secrets: Returns the secrets of the data directory, by name.
        write: Begins a backup in a directory.
        place: Returns where a backup goes that a caller over HTTP asked for: directly below a directory.
    """

    usage: Callable[[], AbstractContextManager[UsageCopy]]
    ledger: Callable[[], AbstractContextManager[LedgerCopy]]
    describe: Callable[[Path], tuple[str, dict[str, int], dict[str, int]]]
    ledger_bytes: Callable[[], int]
    secrets: Callable[[], Mapping[str, str]]
    write: Callable[[Path], AbstractContextManager[Writer]]
    place: Callable[[Path, str], Path]


class BackupTaken(NamedTuple):
    """A complete backup, and how many bytes of it were not in an earlier one."""

    path: Path
    manifest: Manifest
    written_bytes: int


class Backups:
    """
    Takes backups, one at a time. Any thread may call.

    Args:
        below: The directory below which callers over HTTP may have backups written.
    """

    def __init__(
        self,
        sources: BackupSources,
        relay: Relay,
        scopes: ScopeKeeper,
        clock: Clock,
        *,
        installation_id: str,
        version: str,
        data_dir: Path,
        below: Path,
    ) -> None:
        self._sources = sources
        self._relay = relay
        self._scopes = scopes
        self._clock = clock
        self._installation_id = installation_id
        self._version = version
        self._data_dir = data_dir
        self._below = below
        self._lock = threading.Lock()
        self.last_made_at_us = 0
        """What the last backup of this process shows; 0 if it took none."""

    def take(self, target: Path) -> BackupTaken:
        """
        Write a complete backup into *target*, which is new, empty, or an earlier backup of this installation.

        Raises:
            Conflict: *target* has something else, or another backup is under way.
            Unavailable: A store cannot be read, or *target* cannot be written. An earlier backup there is whole.
        """
        if not self._lock.acquire(blocking=False):
            raise Conflict("A backup is under way. Wait until it is complete.")
        try:
            with self._sources.write(target) as writer:
                taken = BackupTaken(target, self._write(writer), writer.written_bytes)
            self.last_made_at_us = taken.manifest.made_at_us
            return taken
        finally:
            self._lock.release()

    def take_below(self, target: str) -> BackupTaken:
        """
        Take a backup for a caller over HTTP: directly below the directory that the operator configured.

        Raises:
            BadParameter: *target* is elsewhere.
            Conflict, Unavailable: As `take`.
        """
        return self.take(self._sources.place(self._below, target))

    def _write(self, writer: Writer) -> Manifest:
        started_at_us = self._clock.now_us()
        with ExitStack() as copies:
            # In this order: a change of budgets has the commit thread ask the relay, which must not wait for us.
            with self._scopes.unchanged(), self._relay.exclusive(RELAY_S_MAX):
                usage = copies.enter_context(self._sources.usage())
                ledger = copies.enter_context(self._sources.ledger())
                made_at_us = self._clock.now_us()
            parts = [(table, part) for table in usage.tables for part in table.parts]
            new_bytes = sum(part.bytes for _, part in parts if not writer.has(part.file))
            writer.check_room(new_bytes + self._sources.ledger_bytes(), self._data_dir)
            # First, since while it is frozen the log of the database grows.
            ledger_file, described = self._write_ledger(writer, ledger)
            secrets = {
                name: writer.write_bytes(name, secret.encode())
                for name, secret in self._sources.secrets().items()
            }
            for _, part in parts:
                if not writer.keep(part.file):
                    writer.write_usage(part.file, usage.read(part))
            revision, rows, figures = described
            events, cost_nanos = usage.totals()
            mark = usage.marks.get(self._installation_id, BatchMark(self._installation_id, "", 0))
            manifest = Manifest(
                format=FORMAT,
                version=self._version,
                installation_id=self._installation_id,
                started_at_us=started_at_us,
                made_at_us=made_at_us,
                ledger_revision=revision,
                ledger_file=ledger_file,
                ledger_rows=rows,
                usage_schema=usage.schema,
                usage=[
                    UsageTable(
                        table.name,
                        table.columns,
                        [UsagePiece(f"usage/{part.file}", part.rows) for part in table.parts],
                    )
                    for table in usage.tables
                ],
                batch_epoch=mark.epoch,
                batch=mark.batch,
                secrets=secrets,
                totals=BackupTotals(**figures, events=events, cost_nanos=cost_nanos),
                files=dict(writer.files),
            )
        writer.finish(manifest)
        return manifest

    def _write_ledger(
        self, writer: Writer, ledger: LedgerCopy
    ) -> tuple[str, tuple[str, dict[str, int], dict[str, int]]]:
        described: list[tuple[str, dict[str, int], dict[str, int]]] = []

        def make(path: Path) -> None:
            ledger.write_to(path)
            described.append(self._sources.describe(path))

        return writer.write_file(_LEDGER, make), described[0]
