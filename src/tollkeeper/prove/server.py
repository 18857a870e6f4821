"""The server under attack: a real `tollkeeper serve` in a process of its own, to be killed and started again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from tollkeeper.console.server_defaults import HOST, OPERATOR_KEY_VARIABLE
from tollkeeper.errors import Unavailable

OPERATOR_KEY: Final = "ok_prove_0123456789abcdefghijABCD"
"""Of installations that are thrown away, on loopback."""
START_S_MAX: Final = 400
"""A start takes 5 s of CPU, and a machine that is shared may give a tenth of that."""
STOP_S_MAX: Final = 180
_PORTS: Final = range(15_000, 30_000)
"""
Below those that systems give to outgoing connections (from 32768 on Linux, 49152 elsewhere): a client that
calls while the server is down could be given the server's own port, and connect to itself.
"""
_LOG_CHARS_SHOWN: Final = 1_000


class ServerProcess:
    """One server on one directory and one port, through all its deaths."""

    def __init__(self, directory: Path, log: Path, ledger_url: str | None = None) -> None:
        self.directory = directory
        self.ledger_url = ledger_url
        self._settings = {} if ledger_url is None else {"TOLLKEEPER_LEDGER_URL": ledger_url}
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.kills = 0
        self._log = log
        self._log_begun = 0
        """Bytes of the log when the process started."""
        self._not_ready = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """
        Start it and return once it answers.

        Raises:
            Unavailable: It ended, or does not answer in time: what it said.
        """
        process = self.spawn()
        until = time.monotonic() + START_S_MAX
        while not self._answers():
            if process.poll() is not None or time.monotonic() > until:
                said = self._log.read_text(errors="replace")[-_LOG_CHARS_SHOWN:].strip()
                ended = f"ended with {process.poll()}" if process.poll() is not None else "does not answer"
                self.kill()
                raise Unavailable(f"The server cannot start: it {ended}. It said: {said or 'nothing'}")
            time.sleep(0.01)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and wait for nothing."""
        command = [sys.executable, "-m", "tollkeeper", "serve", "--data", str(self.directory)]
        # The usage store inserts from temporary files, which a killed process leaves behind.
        temporary = self._log.with_name("tmp")
        temporary.mkdir(exist_ok=True)
        variables = {OPERATOR_KEY_VARIABLE: OPERATOR_KEY, "TMPDIR": str(temporary), **self._settings}
        self._not_ready = ""
        with self._log.open("ab") as log:
            self._log_begun = log.tell()
            self._process = subprocess.Popen(
                [*command, "--host", HOST, "--port", str(self.port), "--log-level", "warning"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(variables),
                # Ctrl-C reaches the parent process, which then ends this one.
                start_new_session=True,
            )
        return self._process

    def opens(self, within_s: float) -> bool:
        """
        Start it where it may refuse to; return whether it is ready. It is left running if it does not end.

        It has refused when its process ended, or when it answers for *within_s* seconds that it is not ready.

        Raises:
            Unavailable: It neither ends nor answers.
        """
        process = self.spawn()
        started = time.monotonic()
        answered: float | None = None
        while process.poll() is None:
            status = self._ready_status()
            now = time.monotonic()
            if status == 200:
                return True
            answered = now if answered is None and status else answered
            if answered is not None and now > answered + within_s:
                return False
            if now > started + START_S_MAX:
                raise Unavailable(f"The server neither ends nor answers within {START_S_MAX} s.")
            time.sleep(0.05)
        return False

    def refusal(self) -> str:
        """Return why it did not start: the end of its log since then, and the last answer of `/readyz`."""
        logged = self._log.read_bytes()[self._log_begun :].decode(errors="replace")
        return f"{logged[-_LOG_CHARS_SHOWN:]}\n{self._not_ready}".strip()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the process still, so that its files can be copied as they are at one instant."""
        process = self._process
        if process is None:
            yield
            return
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would. A repeat changes nothing."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
                self.kills += 1
            process.wait()

    def stop(self) -> None:
        """
        End it as an operator would.

        Raises:
            Unavailable: It did not end, or not well.
        """
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"The server did not stop within {STOP_S_MAX} s.") from None
        self._process = None
        if code:
            raise Unavailable(f"The server stopped with exit code {code}.")

    def _answers(self) -> bool:
        return self._ready_status() == 200

    def _ready_status(self) -> int:
        """Return the status of `/readyz`; 0 without an answer."""
        connection = HTTPConnection(HOST, self.port, timeout=START_S_MAX)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            self._not_ready = "" if answer.status == 200 else answer.read().decode(errors="replace")
            return answer.status
        except (OSError, HTTPException):
            return 0
        finally:
            connection.close()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with *variables*, without settings that could name a real installation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return {**kept, **variables}


def free_port() -> int:
    """
    Return a port of loopback that nothing listens on now.

    Raises:
        Unavailable: There is none.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise Unavailable(f"No port of {HOST} is free.")
