"""The file of a Unix socket: checked before a server listens on it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tollkeeper.errors import BadParameter, Unavailable

MODE: Final = 0o600
"""Only the server's own user may connect."""
_PATH_BYTES_MAX: Final = 107
"""`sun_path` of unix(7) has 108 bytes, the last of which is zero; macOS has 104."""
_ANSWER_S: Final = 2.0
CONTROL_SOCKET: Final = "control.sock"
"""In a data directory: the socket of its owner (`http.control`)."""


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """
    Yield an address of the socket *path* that fits into a `sun_path`, good inside of the block.

    Raises:
        OSError: Its directory cannot be opened, or this system has no way to a path of that length.
    """
    path = path.absolute()
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {_PATH_BYTES_MAX} bytes here")
    # Linux: by the directory's handle the name is short, however long its path is.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connection to the server that listens on *path*. Raises OSError where none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with address_of(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def claim(path: Path) -> Path:
    """
    Return the absolute path of a socket that may be made now; the file of a server that is gone is removed.

    Raises:
        BadParameter: The path is too long, or its directory does not exist.
        Unavailable: Another server listens there, or the file is no socket.
    """
    path = path.absolute()
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise BadParameter(
            f"uds must be a path of at most {_PATH_BYTES_MAX} bytes, which is all that a socket's address holds, "
            f"not {path}",
            field="uds",
        )
    if not path.parent.is_dir():
        raise BadParameter(f"uds must be in a directory that exists; {path.parent} does not", field="uds")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISSOCK(mode):
        raise Unavailable(f"{path} exists and is no socket: remove it, or give another --uds.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return path
        except OSError as exc:
            raise Unavailable(f"{path} cannot be used: {exc.strerror or exc}. Give another --uds.") from exc
    raise Unavailable(f"Another server listens on {path}: stop it, or give another --uds.")
