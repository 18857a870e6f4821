"""
The directory of one backup: its files, written with checksums, and its manifest, renamed in last.

A directory is a backup as soon as it has a manifest. A later backup into the same directory adds files beside those
of the earlier one and then renames its own manifest over it, so that the earlier one is whole until the later one is;
files that only the earlier one had are removed last. Files that are equal are kept, and those of a backup beside it
are linked, after their checksums were compared.

Everything is for its owner only: a backup has the hashes of keys and the secrets of the installation.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import msgspec
import pyarrow as pa

from tollkeeper.domain.backups import BackupFile, Manifest, is_backup_name
from tollkeeper.errors import BadParameter, Conflict, NotFound, Unavailable

MANIFEST: Final = "manifest.json"
_STARTED: Final = "backup.incomplete"
"""Is there, locked, while a backup is written, and stays when it is broken off."""
_USAGE: Final = "usage"
_NEW: Final = ".new"
_CHUNK: Final = 1 << 20
_ROOM_BYTES: Final = 64 << 20
"""Left free where a backup is on the disk of the data: a full disk stops the gate."""

_OURS: Final = ("ledger", "session.secret", "webhook.secret")
"""How the names of files begin that a backup has beside its manifest and the usage files."""


class _Sealed(msgspec.Struct, frozen=True):
    """The file of a manifest: its bytes, and their SHA-256."""

    sha256: str
    manifest: msgspec.Raw


_unseal: Final = msgspec.json.Decoder(_Sealed).decode
_decode: Final = msgspec.json.Decoder(Manifest).decode


def target_below(root: Path, text: str) -> Path:
    """
    Return where a backup goes that a caller over HTTP asked for: directly below *root*, and nowhere else.

    Args:
        text: A name, or the path of such a directory.

    Raises:
        BadParameter: It is another path.
    """
    given = Path(text)
    name = given.name if given.is_absolute() else text
    is_below = not given.is_absolute() or (
        ".." not in given.parts and given.parent.resolve() == root.resolve()
    )
    if not is_below or not is_backup_name(name) or (root / name).is_symlink():
        raise BadParameter(
            f"target must be a name such as monday, or a path directly below {root}, not {text[:200]!r}. "
            "The server writes backups nowhere else; the setting backup_dir names another directory.",
            field="target",
        )
    return root / name


class BackupWriter:
    """
    Writes one backup into a directory. Use it as a context manager: what fails in the block leaves no new file.

    Raises:
        Conflict: The directory has something else, or another process writes a backup there.
        Unavailable: It cannot be written.
    """

    def __init__(self, path: Path, installation_id: str) -> None:
        self.path = path
        self._installation_id = installation_id
        self._made: list[Path] = []
        self.files: dict[str, BackupFile] = {}
        self.written_bytes = 0
        """How many bytes were not in an earlier backup."""

    def __enter__(self) -> BackupWriter:
        try:
            self._before = self._own_manifest()
            self._is_new = not self.path.exists()
            for directory in (self.path, self.path / _USAGE):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = open(self.path / _STARTED, "ab", buffering=0, opener=_private)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.close()
            raise Conflict(f"Another backup into {self.path} is under way.") from exc
        self._kept = [(self.path, self._before)] if self._before else []
        self._kept += self._siblings()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._undo()
        finally:
            self._lock.close()
        if isinstance(error, OSError):
            raise self._unwritable(error) from error

    def _own_manifest(self) -> Manifest | None:
        """Return the manifest of the earlier backup that is there, if any."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return None
        if (self.path / MANIFEST).exists():
            found = read_manifest(self.path)
            if found.installation_id != self._installation_id:
                raise Conflict(
                    f"{self.path} has a backup of installation {found.installation_id}, and this is "
                    f"installation {self._installation_id}: name another directory."
                )
            return found
        if (self.path / _STARTED).exists():
            # Of a backup that was broken off before it was complete.
            return None
        raise Conflict(
            f"{self.path} has files that are no backup: name a directory that is empty or not there."
        )

    def _siblings(self) -> list[tuple[Path, Manifest]]:
        """Return the newest other backup of this installation beside this one: its files may be linked."""
        found: list[tuple[Path, Manifest]] = []
        for path in self.path.parent.glob(f"*/{MANIFEST}"):
            # What is no backup, or cannot be read, is of no use here, and no fault.
            with suppress(Conflict, NotFound, Unavailable, OSError):
                manifest = read_manifest(path.parent)
                if path.parent != self.path and manifest.installation_id == self._installation_id:
                    found.append((path.parent, manifest))
        return sorted(found, key=lambda pair: -pair[1].made_at_us)[:1]

    def check_room(self, needed_bytes: int, data: Path) -> None:
        """
        See that *needed_bytes* fit, and on the disk of *data* that some room is left.

        Raises:
            Unavailable: They do not.
        """
        free = shutil.disk_usage(self.path).free
        if self.path.stat().st_dev == data.stat().st_dev:
            needed_bytes += _ROOM_BYTES
        if free < needed_bytes:
            raise Unavailable(
                f"The backup needs up to {needed_bytes >> 20} MiB, and {self.path} has {free >> 20} MiB free. "
                "Make room, or name a directory on another disk."
            )

    def keep(self, name: str) -> bool:
        """Take over the usage file *name* from an earlier backup; return whether one has it, undamaged."""
        path = f"{_USAGE}/{name}"
        if path in self.files:
            return True
        for directory, manifest in self._kept:
            known = manifest.files.get(path)
            source = directory / path
            if known is None or not source.is_file() or checksum(source) != known:
                continue
            if directory != self.path:
                self._link(source, self.path / path)
            self.files[path] = known
            return True
        return False

    def has(self, name: str) -> bool:
        """Return whether an earlier backup has the usage file *name*, without reading it."""
        return any(
            f"{_USAGE}/{name}" in manifest.files and (directory / _USAGE / name).is_file()
            for directory, manifest in self._kept
        )

    def _link(self, source: Path, target: Path) -> None:
        new = self._new(target)
        try:
            new.unlink()
            os.link(source, new)
        except OSError:
            # One that has no links.
            shutil.copyfile(source, self._new(target))
            _sync(new)
        new.replace(target)
        self._made.append(target)

    def write_usage(self, name: str, blocks: Iterable[bytes]) -> None:
        """Write the usage file *name*, compressed with zstd."""

        def write(file: IO[bytes]) -> None:
            with pa.CompressedOutputStream(pa.PythonFile(file, "w"), "zstd") as stream:
                for block in blocks:
                    stream.write(block)

        self._write(f"{_USAGE}/{name}", write)

    def write_bytes(self, name: str, content: bytes) -> str:
        """Write a file of *content*; return its path in the backup, which begins with *name*."""
        path = f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
        self._write(path, lambda file: file.write(content))
        return path

    def write_file(self, name: str, make: Callable[[Path], None]) -> str:
        """Have *make* fill an empty file; return its path in the backup, which begins with *name*."""
        new = self._new(self.path / name)
        make(new)
        known = checksum(new)
        path = f"{name}-{known.sha256[:16]}"
        self._take(new, path, known)
        return path

    def _write(self, path: str, write: Callable[[IO[bytes]], Any]) -> None:
        new = self._new(self.path / path)
        with open(new, "wb") as file:
            write(file)
        # Read again: what is on the disk is what is to be restored.
        self._take(new, path, checksum(new))

    def _new(self, target: Path) -> Path:
        """Return a new empty file beside *target*, for its owner only."""
        new = target.with_name(target.name + _NEW)
        # With the journal that a database left there when its process was killed: it is of other pages.
        for left in (new, *new.parent.glob(f"{new.name}-*")):
            left.unlink(missing_ok=True)
        self._made.append(new)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return new

    def _take(self, new: Path, path: str, known: BackupFile) -> None:
        _sync(new)
        self._made.append(self.path / path)
        new.replace(self.path / path)
        self.files[path] = known
        self.written_bytes += known.bytes

    def finish(self, manifest: Manifest) -> None:
        """Complete the backup with *manifest*, whose files were all written or kept."""
        new = self._new(self.path / MANIFEST)
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        sealed = _Sealed(hashlib.sha256(content).hexdigest(), msgspec.Raw(content))
        new.write_bytes(msgspec.json.encode(sealed))
        _sync(new)
        for directory in (self.path / _USAGE, self.path):
            _sync(directory)
        new.replace(self.path / MANIFEST)
        _sync(self.path)
        _sync(self.path.parent)
        self._made.clear()
        self._remove_others(set(manifest.files))
        (self.path / _STARTED).unlink()

    def _remove_others(self, files: set[str]) -> None:
        """Remove what an earlier backup into this directory had, or one that was broken off."""
        for directory in (self.path, self.path / _USAGE):
            for path in directory.iterdir():
                name = str(path.relative_to(self.path))
                is_ours = name.startswith((*_OURS, f"{_USAGE}/")) or name.endswith(_NEW)
                if path.is_file() and is_ours and name not in files:
                    path.unlink()

    def _undo(self) -> None:
        """Remove what this backup wrote, but for what an earlier one has too."""
        kept = set(self._before.files) if self._before else set()
        made = [left for path in self._made for left in (path, *path.parent.glob(f"{path.name}-*"))]
        for path in made:
            if str(path.relative_to(self.path)) not in kept:
                path.unlink(missing_ok=True)
        (self.path / _STARTED).unlink(missing_ok=True)
        if self._is_new:
            # Not if somebody put something there.
            with suppress(OSError):
                (self.path / _USAGE).rmdir()
                self.path.rmdir()

    def _unwritable(self, exc: OSError) -> Unavailable:
        return Unavailable(f"The backup {self.path} cannot be written: {exc.strerror or exc}.")


def read_manifest(path: Path) -> Manifest:
    """
    Return the manifest of the backup in *path*.

    Raises:
        Conflict: It was broken off before it was complete, or its manifest is damaged.
        NotFound: There is no backup.
        Unavailable: It cannot be read.
    """
    try:
        sealed = _unseal((path / MANIFEST).read_bytes())
        if hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise msgspec.DecodeError("it has another checksum than when it was written")
        return _decode(sealed.manifest)
    except FileNotFoundError:
        if (path / _STARTED).exists():
            raise Conflict(
                f"The backup {path} is incomplete: it was broken off before its manifest was written. "
                "Take it again, or restore another one."
            ) from None
        raise NotFound(f"There is no backup in {path}: it has no {MANIFEST}.") from None
    except (NotADirectoryError, msgspec.MsgspecError) as exc:
        raise Conflict(f"The manifest of {path} is damaged: {exc}. Restore another backup.") from exc
    except OSError as exc:
        raise Unavailable(f"The backup {path} cannot be read: {exc.strerror}.") from exc


def damages(path: Path, manifest: Manifest) -> list[str]:
    """Return a line for each file of a backup that is missing or not as it was written. Reads all of them."""
    found = []
    for name, known in sorted(manifest.files.items()):
        try:
            there = checksum(path / name)
        except OSError as exc:
            found.append(f"{name} cannot be read: {exc.strerror}")
            continue
        if there.bytes != known.bytes:
            found.append(f"{name} has {there.bytes} bytes and must have {known.bytes}")
        elif there.sha256 != known.sha256:
            found.append(f"{name} has another checksum than when it was written")
    return found


def checksum(path: Path) -> BackupFile:
    """Return size and checksum of a file."""
    digest = hashlib.sha256()
    count = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            count += len(chunk)
    return BackupFile(count, digest.hexdigest())


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
