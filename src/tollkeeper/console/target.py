"""
Where a command works: on a data directory in this process, or on a running server.

The command line wins over the environment, so that `--data DIR` means the directory even where
`TOLLKEEPER_URL` is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tollkeeper import environment
from tollkeeper.console.failures import Failure, misused
from tollkeeper.settings import Settings, load

if TYPE_CHECKING:
    from tollkeeper.console.server_client import Server
    from tollkeeper.embedded import Tollkeeper


def server_of(data: str | None, url: str | None, key: str | None) -> Server | None:
    """
    Return the server to ask, or None when the command works on its data directory, which no process has open.

    A process that has it open is asked through the socket in it, without a key.

    Raises:
        Failure: Both a directory and a server were named, or there is no key for the server.
    """
    if url and data:
        raise misused("--data works on a directory, --url asks a server: drop one.")
    url = url or (None if data else environment.variable("URL", os.environ))
    if not url:
        if key:
            raise misused("--key is for a server: give its --url too.")
        return _owner_of(load({"data_dir": data}).data_dir)
    key = key or environment.variable("KEY", os.environ)
    if not key:
        raise misused(f"{url} asks for a key: give --key, or set TOLLKEEPER_KEY or TOLLKEEPER_KEY_FILE.")
    from tollkeeper.console.server_client import Server

    return Server(url, key)


def _owner_of(data_dir: str) -> Server | None:
    """Return the process that has a data directory open, if it can be asked."""
    from tollkeeper.http.unix_socket import CONTROL_SOCKET

    # Most directories have none: what is only needed to ask takes a while to load.
    if not os.path.lexists(Path(data_dir) / CONTROL_SOCKET):
        return None
    from tollkeeper.console.server_client import owner_of

    return owner_of(data_dir)


def open_data(data: str | None, *, create: bool = False) -> Tollkeeper:
    """
    Open the installation of a data directory.

    Args:
        create: Make the directory if there is none; a command that only reads has nothing to read there.

    Raises:
        Failure: There is no installation in it.
        DataDirectoryInUse, Unavailable: As `Tollkeeper.open`.
    """
    settings = load({"data_dir": data})
    if not create:
        _check_exists(settings)
    from tollkeeper.embedded import Tollkeeper
    from tollkeeper.installation import Installation

    # Without a socket for other commands: this one ends in a moment.
    return Tollkeeper(Installation(settings))


def _check_exists(settings: Settings) -> None:
    # Opening a directory makes this file; a command that only reads shall make none anywhere.
    if not settings.ledger_url and not (Path(settings.data_dir) / "lock").is_file():
        raise Failure(
            f"There is no installation in {settings.data_dir}. "
            "Name one with --data; `tollkeeper apply` and `tollkeeper serve` make a new one."
        )
