"""
The data directory: one process has it at a time, and only its owner can read its files.

It holds the lock, the secrets of this installation, and by default both stores.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import IO, Final

from tollkeeper.errors import DataDirectoryInUse, Unavailable
from tollkeeper.settings import LEDGER_FILE, USAGE_DIRECTORY, Settings

SECRETS: Final = ("session.secret", "webhook.secret")
"""The secrets that an installation has."""
RESTORING_FILE: Final = "restore.incomplete"
"""Is there from the first step of a restore to its last."""
_SECRET_BYTES: Final = 32
_SECRET: Final = re.compile(rb"[0-9a-f]{%d}" % (_SECRET_BYTES * 2))


class DataDirectory:
    """
    The directory of *settings*, locked until `close`.

    Raises:
        DataDirectoryInUse: Another process has it.
        Unavailable: It cannot be written, or has what a restore left that was broken off.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = Path(settings.data_dir)
        self._lock_file = lock_directory(self._path)
        try:
            if (self._path / RESTORING_FILE).exists():
                raise Unavailable(
                    f"A restore into {self._path} was broken off, and what is there is not complete. "
                    "Run the same `tollkeeper restore` again."
                )
            _keep_private(settings)
        except BaseException:
            self._lock_file.close()
            raise

    def secret(self, name: str) -> str:
        """Return a secret of this installation: see `read_or_make_secret`."""
        return read_or_make_secret(self._path, name)

    def close(self) -> None:
        """Release the directory; in a forked child, only the copy of the lock, which would outlive the parent's."""
        self._lock_file.close()


def read_or_make_secret(directory: Path, name: str) -> str:
    """
    Return a secret of this installation, in a file that only its owner reads; it is made at the first start.

    Raises:
        Unavailable: The file cannot be read or written, or is damaged.
    """
    path = directory / name
    if not path.exists():
        made = path.with_suffix(".new")
        try:
            with open(made, "wb", buffering=0, opener=_private) as file:
                file.write(secrets.token_hex(_SECRET_BYTES).encode())
                # A power cut after the rename must not leave an empty file under the name.
                os.fsync(file.fileno())
            made.rename(path)
            _sync_directory(directory)
        except OSError as exc:
            raise _unwritable(directory, exc) from exc
    try:
        found = path.read_bytes()
    except OSError as exc:
        raise Unavailable(f"The secret {path} cannot be read: {exc.strerror}.") from exc
    # A truncated secret could be guessed, and an empty one lets anyone sign.
    if not _SECRET.fullmatch(found):
        raise Unavailable(
            f"The secret {path} is damaged: it must be {_SECRET_BYTES * 2} hexadecimal digits. "
            "Put back a copy of the file, or remove it to have a new one made, "
            "under which what the old one signed is no longer valid."
        )
    return found.decode("ascii")


def _private(name: str, flags: int) -> int:
    """Open a file of the data directory, for its owner only whatever the directory's mode and the umask are."""
    return os.open(name, flags, 0o600)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_private(settings: Settings) -> None:
    """
    Make the embedded stores' files for their owner only.

    SQLite gives its journals the mode of the database, and nobody else enters the directory of the usage store. A
    file that exists keeps its mode: its owner may have shared it.
    """
    directory = Path(settings.data_dir)
    try:
        if not settings.ledger_url:
            with open(directory / LEDGER_FILE, "ab", opener=_private):
                pass
        if not settings.usage_url:
            (directory / USAGE_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        # No directory. That stops no request: the usage store says it when it is opened.
        return
    except OSError as exc:
        raise _unwritable(directory, exc) from exc


def lock_directory(directory: Path) -> IO[bytes]:
    """
    Return the lock of a data directory, which is made if there is none; closed, it is released.

    Raises:
        DataDirectoryInUse: Another process has it.
        Unavailable: It cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered, so that closing never has something left to write to a full disk.
        file = open(directory / "lock", "ab+", buffering=0, opener=_private)  # noqa: SIM115 - held until close
    except OSError as exc:
        raise _unwritable(directory, exc) from exc
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise DataDirectoryInUse(
            f"The data directory {directory} is in use by process {owner}. "
            "Stop it, or ask it over HTTP with --url and --key.",
        ) from None
    except OSError as exc:
        file.close()
        raise _unwritable(directory, exc) from exc
    return file


def _unwritable(directory: Path, exc: OSError) -> Unavailable:
    return Unavailable(
        f"The data directory {directory} cannot be written: {exc.strerror}. Give another one, or make room."
    )
