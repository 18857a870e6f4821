"""
Where the usage store keeps the last batch of each installation that it may have: see `domain/pairing.py`.

It is noted before the batch is appended, and on the disk by then. On a server it is in the table `batches`. The engine
in this process has a file beside its own: synced, it takes 1 ms where an insert takes 14, and it can be read without
loading the engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

import msgspec

from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Unavailable

FILE: Final = "batches.json"


class Marks(Protocol):
    """The last batch of each installation."""

    def all(self) -> dict[str, BatchMark]:
        """Return them by installation id."""

    def note(self, mark: BatchMark) -> None:
        """Put *mark* in the place of the last one of its installation, durably."""


class _Entry(msgspec.Struct, frozen=True):
    epoch: str
    batch: int


_decode: Final = msgspec.json.Decoder(dict[str, _Entry]).decode


class FileMarks:
    """In a file of the engine's directory. One process writes it: the one that has the directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE

    def all(self) -> dict[str, BatchMark]:
        """
        Return them by installation id; nothing without a file, as of an earlier version.

        Raises:
            Unavailable: The file is damaged.
        """
        try:
            entries = _decode(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as exc:
            raise Unavailable(
                f"{self._path} is damaged. Put back a copy of the file; without one, remove it: "
                "ledger and usage store are then compared by how many records they have."
            ) from exc
        return {id_: BatchMark(id_, entry.epoch, entry.batch) for id_, entry in entries.items()}

    def note(self, mark: BatchMark) -> None:
        marks = self.all() | {mark.installation_id: mark}
        made = self._path.with_suffix(".new")
        with open(made, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode({id_: _Entry(m.epoch, m.batch) for id_, m in marks.items()}))
            file.flush()
            os.fsync(file.fileno())
        made.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
