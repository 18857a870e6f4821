"""
Descriptions of tables that a full disk cut off, so that the engine in this process can start again.

The engine describes each table in a file, which it reads at its start. Where there is no room it leaves an empty one,
of a table that never came to be or that was altered, and from then on it does not start. So there must be room before
tables are made or altered, and what an earlier start left empty is removed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Final

from tollkeeper.errors import Unavailable

_ROOM_BYTES: Final = 1 << 20
"""Some ten descriptions of a few kB each, and a part or two, in blocks of the file system."""

log = logging.getLogger("tollkeeper.usage")


def remove_empty(directory: Path) -> None:
    """
    Remove empty descriptions from the directory of an engine that is not running. They are made again when needed.

    Raises:
        Unavailable: A table that has records lost its description, so that it cannot be made again.
    """
    for path in sorted(directory.glob("store/*/*/*.sql")):
        if path.stat().st_size:
            continue
        if any((directory / "data").glob(f"*/{path.stem}/*/checksums.txt")):
            raise Unavailable(
                f"The usage store is damaged: {path} is empty and the table has records. "
                "Put back a copy of the file, or of the whole directory."
            )
        path.unlink()
        log.warning("tollkeeper.usage.description_removed", extra={"table": path.stem})


def check_room(directory: Path) -> None:
    """
    See that tables can be made and altered in the directory of an engine.

    Raises:
        Unavailable: There is no room for their descriptions.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
    except OSError as exc:
        raise Unavailable(
            f"The usage store in {directory} cannot be changed: {exc.strerror}. Make room, and try again."
        ) from exc
