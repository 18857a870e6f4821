"""Runs the real `tollkeeper` command, as a script or a person would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

TIMEOUT_S: Final = 120
"""A hung command fails the test instead of holding up the run."""

COMMAND: Final = (sys.executable, "-m", "tollkeeper.cli")


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what would change a command, and with *variables*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return {**kept, **variables}


def tollkeeper(
    *arguments: object, stdin: bytes = b"", variables: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end and return exit code, stdout and stderr."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment(**variables),
        timeout=TIMEOUT_S,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def answer_of(done: subprocess.CompletedProcess[str], exit_code: int = 0) -> Any:
    """Return the one JSON value that a command printed, after checking how it ended."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    return msgspec.json.decode(done.stdout)


def free_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
