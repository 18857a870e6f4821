"""Starts and stops the servers under test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.fixture import OPERATOR_KEY
from tollkeeper.memory import memory_of

START_S_MAX = 120.0


class Process:
    """A server under test."""

    def __init__(self, process: subprocess.Popen[str], port: int, path: Path) -> None:
        self.process = process
        self.port = port
        self.path = path

    @property
    def secrets(self) -> list[str]:
        return json.loads((self.path / "secrets.json").read_text())  # type: ignore[no-any-return]

    def memory_mb(self) -> tuple[float, float]:
        """Return its private and its file-backed memory in MB (`tollkeeper.memory`)."""
        found = memory_of(self.process.pid)
        if found is None:
            raise RuntimeError("the server is gone")
        return found.private_bytes / 1e6, found.file_backed_bytes / 1e6

    def resident_mb_max(self) -> float:
        """Return the most memory, private and file-backed, that it ever had in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000
        raise RuntimeError("the server is gone")

    def cpu_s(self) -> float:
        """Return the seconds of CPU that it has used."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(name: str, path: Path) -> Iterator[Process]:
    """Run the server *name* of `bench.servers` on *path*."""
    port = free_port()
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


@contextmanager
def started(
    command: Sequence[str],
    port: int,
    path: Path,
    *,
    answers: str = "/",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """
    Run *command*, a server that will listen on *port*, in *path*; go on once it answers at *answers* at all.

    Raises:
        RuntimeError: It ended, or did not answer within `START_S_MAX`; with the end of what it printed.
    """
    log = path / "server.log"
    modules = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=path,
            env={**os.environ, "PYTHONPATH": modules, **(environment or {})},
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_S_MAX
        while not _answers(f"http://127.0.0.1:{port}{answers}"):
            if process.poll() is not None or time.monotonic() > until:
                end = log.read_text(errors="replace")[-1500:]
                raise RuntimeError(f"{command[0]} did not start: {end}")
            time.sleep(0.05)
        yield Process(process, port, path)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        with contextlib.suppress(ProcessLookupError):  # None of its workers is left, as it should be.
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def tollkeeper(path: Path, *options: str) -> Iterator[Process]:
    """Run the real `tollkeeper serve` on the data directory *path*/data, with `OPERATOR_KEY`."""
    port = free_port()
    command = [sys.executable, "-m", "tollkeeper", "serve", "--data", str(path / "data"), "--port", str(port)]
    environment = {"TOLLKEEPER_OPERATOR_KEY": OPERATOR_KEY}
    with started([*command, *options], port, path, answers="/readyz", environment=environment) as process:
        yield process


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True  # It speaks HTTP; a 404 is an answer.
    except OSError:
        return False
