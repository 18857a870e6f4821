"""Starts and stops the servers under test."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Process:
    """A server under test."""

    def __init__(self, process: subprocess.Popen[str], port: int, path: Path) -> None:
        self.process = process
        self.port = port
        self.path = path

    @property
    def secrets(self) -> list[str]:
        return json.loads((self.path / "secrets.json").read_text())  # type: ignore[no-any-return]

    def memory_mb(self) -> float:
        """Return its resident memory in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1000
        raise RuntimeError("the server is gone")


@contextmanager
def running(name: str, path: Path) -> Iterator[Process]:
    """Run the server *name* of `bench.servers` on *path*."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.servers", name, str(port), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if "ready" not in process.stdout.readline():
        raise RuntimeError(f"{name} did not start")
    try:
        yield Process(process, port, path)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
