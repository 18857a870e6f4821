"""Runs the real `tollkeeper` command, as a script or a person would, or in this process, which is sooner."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Final
from unittest import mock

import msgspec

from tollkeeper.cli.app import run

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


def in_process(
    *arguments: object, stdin: bytes = b"", variables: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run one command in this process, sooner than in one of its own; return what `tollkeeper` does."""
    printed, told = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with (
        tempfile.TemporaryFile() as file,
        io.TextIOWrapper(file, "utf-8") as given,
        mock.patch.dict(os.environ, environment(**variables), clear=True),
        mock.patch.multiple(sys, stdin=given, stdout=printed, stderr=told),
    ):
        file.write(stdin)
        file.seek(0)
        exit_code = run([*map(str, arguments)])
    texts = []
    for stream in (printed, told):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, exit_code, *texts)


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
