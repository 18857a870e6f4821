"""A real `tollkeeper serve` in a process of its own, and a client that knows its operator key."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

OPERATOR_KEY: Final = "ok_0123456789abcdefghijABCDEFGHIJ42"
START_S_MAX: Final = 60


class Refused(Exception):
    """An answer other than 2xx: its status and body."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class Server:
    """The running server. `call` speaks JSON as the operator."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path,
            data=body,
            method=method,
            headers={"Authorization": f"Bearer {OPERATOR_KEY}", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as exc:
            raise Refused(exc.code, json.loads(exc.read() or b"{}")) from exc

    def post(self, path: str, body: Any) -> dict[str, Any]:
        return self.call("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def put(self, path: str, body: Any) -> dict[str, Any]:
        return self.call("PUT", path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def running_server(directory: Path, *options: str, handles: int | None = None) -> Iterator[Server]:
    """Start a server on *directory* and a free port of loopback; stop it cleanly at the end."""
    server = start_server(directory, *options, handles=handles)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0, "a stopped server exits with 0"


def start_server(directory: Path, *options: str, handles: int | None = None) -> Server:
    """Start a server, which may have so many file *handles*, and return once it accepts connections."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(["prlimit", f"--nofile={handles}:{handles}"] if handles else []),
            sys.executable,
            "-m",
            "tollkeeper",
            "serve",
            "--data",
            str(directory),
            "--port",
            str(port),
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TOLLKEEPER_OPERATOR_KEY": OPERATOR_KEY},
    )
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        if f"http://127.0.0.1:{port}" in line:
            return Server(process, f"http://127.0.0.1:{port}")
    raise AssertionError(f"the server did not start (exit {process.wait(START_S_MAX)}): {''.join(output)}")


def free_port() -> int:
    """Return a port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
