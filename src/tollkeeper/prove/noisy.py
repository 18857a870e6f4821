"""
One customer who does all at once what costs a server most, in a process of its own:

    python -m tollkeeper.prove.noisy PORT ROUND

For each byte on stdin it takes one turn of each kind, all kinds at once. The parent process writes one per
`TURN_ANSWERS` answers of the other customers: so the noise lasts as long as their traffic, kills included, and a slow
machine makes no more of it than a fast one. It ends with its stdin.

Its answers are not checked. Checked are the calls of all other customers: answered meanwhile, and exact.
"""

from __future__ import annotations

import gzip
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from queue import SimpleQueue
from typing import Final

import msgspec

from tollkeeper.api.paths import PREFIX
from tollkeeper.console.server_defaults import HOST
from tollkeeper.prove.journal import ANSWER_S_MAX
from tollkeeper.prove.plan import management_id_of, secret_of

LINES: Final = 300_000
"""Of a malformed body: 600 KB that gzip makes 1 KB of."""
DISTINCT: Final = 2_000
"""Events of a batch, each with values of its own."""
SILENT: Final = 40
"""Connections that are opened and say nothing."""
KEYS: Final = 10
CREDENTIALS: Final = 20
"""New keys, and credentials that are made up, of one turn."""
TURN_ANSWERS: Final = 80
"""Some 16 turns in a round of the default size: 32,000 events with values of their own, 64 heavy queries."""
_MEASURES: Final = "requests,cost_nanos,latency_ms_p95"
_QUERY: Final = f"group_by=tag.a,tag.b,route,model&granularity=minute&measures={_MEASURES}&limit=1000"


class Noise:
    """The customer of one round."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._account = f"noisy-{number}"
        self._manages = secret_of(management_id_of(self._account))

    def kinds(self) -> dict[str, Callable[[int], None]]:
        """Return a turn of each kind, by name; they are called with 0, 1, 2 …"""
        return {
            "malformed gzip": self.malformed,
            "distinct values": self.distinct,
            "many keys": self.keys,
            "bad credentials": self.bad_credentials,
            "heavy query 1": self.query,
            "heavy query 2": self.query,
            "heavy query 3": self.query,
            "heavy query 4": self.query,
            "silent connections": self.silent,
        }

    def malformed(self, index: int) -> None:
        body = gzip.compress(b"1\n" * LINES, 1)
        self._call("POST", "/events", body, "application/x-ndjson", {"Content-Encoding": "gzip"})

    def distinct(self, index: int) -> None:
        events = [
            {
                "id": f"{self._account}-{index}-{at}", "time": f"2025-01-{at % 28 + 1:02}T00:{at % 60:02}:00Z",
                "key_id": self._account, "route": f"/r/{index}/{at}", "model": f"m{index}-{at}",
                "latency_ms": at, "tags": {"a": f"{index}-{at}", "b": f"{at}"},
            }
            for at in range(DISTINCT)
        ]  # fmt: skip
        self._call("POST", "/events", msgspec.json.encode(events))

    def keys(self, index: int) -> None:
        for _ in range(KEYS):
            self._call("POST", "/keys", b"{}")

    def bad_credentials(self, index: int) -> None:
        for at in range(CREDENTIALS):
            self._call("GET", "/usage", credential=f"tk_made_up_{index}_{at}")

    def query(self, index: int) -> None:
        self._call("GET", f"/usage?{_QUERY}&offset={index % 7}")

    def silent(self, index: int) -> None:
        opened = [socket.create_connection((HOST, self._port), ANSWER_S_MAX) for _ in range(SILENT)]
        time.sleep(1)
        for connection in opened:
            connection.close()

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
        credential: str = "",
    ) -> None:
        connection = HTTPConnection(HOST, self._port, timeout=ANSWER_S_MAX)
        try:
            sent = {"Authorization": f"Bearer {credential or self._manages}", "Content-Type": content_type}
            connection.request(method, f"{PREFIX}{path}", body, {**sent, **(headers or {})})
            connection.getresponse().read()
        finally:
            connection.close()


def main(port: int, number: int, stdin: int = 0) -> None:
    """Take turns until *stdin*, a file descriptor, ends."""

    def take(work: Callable[[int], None], turns: SimpleQueue[int]) -> None:
        while True:
            try:
                work(turns.get())
            except (OSError, HTTPException):
                # The server is being killed, or refuses: it is there again soon.
                time.sleep(1)

    queues: list[SimpleQueue[int]] = []
    for work in Noise(port, number).kinds().values():
        turns: SimpleQueue[int] = SimpleQueue()
        queues.append(turns)
        threading.Thread(target=take, args=(work, turns), daemon=True).start()
    index = 0
    # It ends with the process that started this one, however that ended.
    while count := len(os.read(stdin, 1_024)):
        for turns in queues:
            for turn in range(index, index + count):
                turns.put(turn)
        index += count


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
