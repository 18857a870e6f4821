"""
A data directory that is being filled from a backup.

A file in it says so from the first step to the last, so that nothing starts on half of an installation, and that the
same restore may be run again. It is made only after everything was found to be empty, and so also says that what is
found later was put there by a restore.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.adapters.clickhouse import restoring as usage_restoring
from tollkeeper.adapters.data_directory import RESTORING_FILE, SECRETS, lock_directory
from tollkeeper.adapters.sql import ledger_copies
from tollkeeper.domain.backups import Manifest
from tollkeeper.errors import Conflict, Unavailable
from tollkeeper.settings import LEDGER_FILE, USAGE_DIRECTORY, Settings

_LOCK: Final = "lock"
_IGNORED: Final = (_LOCK, "lost+found")
_COPY: Final = "restoring.sqlite3"


class Plan(msgspec.Struct, frozen=True):
    """
    What a restore does, as noted in the directory: addresses as hashes, since they may have passwords.

    Attributes:
        backup: Which backup.
        installation_id: The id that the restored installation has.
    """

    backup: str
    installation_id: str
    ledger: str
    usage: str


_decode: Final = msgspec.json.Decoder(Plan).decode


class RestoreDirectory:
    """
    The data directory of *settings*, locked, and found to be empty or left by a restore that was broken off.

    Raises:
        Conflict: The directory, the ledger's database or the usage store is not empty.
        DataDirectoryInUse: Another process has it.
        Unavailable: Something cannot be reached or written.
    """

    def __init__(
        self, settings: Settings, manifest: Manifest, installation_id: str, *, keep_usage: bool
    ) -> None:
        self.path = Path(settings.data_dir)
        self._settings = settings
        self._keep_usage = keep_usage
        self._marker = self.path / RESTORING_FILE
        if not self._marker.exists():
            _check_empty(self.path)
        wanted = Plan(
            f"{manifest.installation_id} {manifest.made_at_us}",
            installation_id,
            _hashed(settings.ledger),
            _hashed(settings.usage),
        )
        self._lock_file = lock_directory(self.path)
        try:
            self._begin(wanted)
        except BaseException:
            self._lock_file.close()
            raise

    def _begin(self, wanted: Plan) -> None:
        ledger, usage = self._settings.ledger, self._settings.usage
        before = self._plan_before()
        self.ledger_is_there = False
        if before is not None:
            # One id for all tries, by which a database that was filled is known again.
            wanted = msgspec.structs.replace(wanted, installation_id=before.installation_id)
            self._clear()
            if before.ledger == wanted.ledger and ledger_copies.restored_id(ledger) == before.installation_id:
                if before.backup != wanted.backup:
                    raise Conflict(
                        "The database of the ledger was filled by a restore of another backup that was broken off. "
                        "Empty it, or restore that backup."
                    )
                self.ledger_is_there = True
        if not self.ledger_is_there:
            ledger_copies.check_nothing_at(ledger)
        if not self._keep_usage:
            if before is not None and before.usage == wanted.usage:
                usage_restoring.clear(usage)
            if not usage_restoring.is_empty(usage):
                raise Conflict(
                    "The usage store is not empty: name an empty one with --usage-url, or one in the data directory "
                    "by leaving it out. To go on with the usage store that survived, say --keep-usage."
                )
        self.installation_id = wanted.installation_id
        with self._file_errors():
            self._write(RESTORING_FILE, msgspec.json.encode(wanted))

    def _plan_before(self) -> Plan | None:
        try:
            return _decode(self._marker.read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as exc:
            raise Unavailable(
                f"{self._marker} is damaged. Empty the directory, and the database that was to be filled."
            ) from exc

    def _clear(self) -> None:
        """Remove what a restore that was broken off left in the directory."""
        with self._file_errors():
            for path in self.path.iterdir():
                if path.name.startswith((LEDGER_FILE, _COPY)) or path.name in SECRETS:
                    path.unlink()
                elif path.name == USAGE_DIRECTORY and not self._settings.usage_url:
                    shutil.rmtree(path)

    def take_secret(self, name: str, file: Path) -> None:
        """Write a secret of the backup."""
        with self._file_errors():
            self._write(name, file.read_bytes())

    def make_usage_directory(self) -> None:
        """Make the directory of a usage store in the data directory, as a start does."""
        with self._file_errors():
            if not self._settings.usage_url:
                (self.path / USAGE_DIRECTORY).mkdir(mode=0o700, exist_ok=True)

    def copy_of(self, ledger: Path) -> Path:
        """Return a copy of the backup's ledger that may be used up."""
        copy = self.path / _COPY
        with self._file_errors():
            copy.unlink(missing_ok=True)
            os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            shutil.copyfile(ledger, copy)
        return copy

    def finish(self) -> None:
        """Say that all is there."""
        with self._file_errors():
            for path in self.path.glob(f"{_COPY}*"):
                path.unlink()
            ledger_copies.sync(self.path)
            self._marker.unlink()
            ledger_copies.sync(self.path)

    def close(self) -> None:
        """Release the directory."""
        self._lock_file.close()

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise Unavailable(
                f"The data directory {self.path} cannot be written: {exc.strerror}. Make room, and run the same "
                "command again."
            ) from exc

    def _write(self, name: str, content: bytes) -> None:
        new = self.path / f"{name}.new"
        with open(new, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / name)
        ledger_copies.sync(self.path)


def _check_empty(path: Path) -> None:
    try:
        found = sorted(entry.name for entry in path.iterdir() if entry.name not in _IGNORED)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise Conflict(f"{path} is no directory: name one that is empty or not there.") from None
    except OSError as exc:
        raise Unavailable(f"{path} cannot be read: {exc.strerror}.") from exc
    if found:
        raise Conflict(
            f"{path} is not empty, it has {found[0]}: a restore overwrites nothing. "
            "Name a directory that is empty or not there."
        )


def _hashed(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
