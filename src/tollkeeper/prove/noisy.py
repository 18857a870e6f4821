"""
One customer who does all at once what costs a server most, in a process of its own, until it is ended:

    python -m tollkeeper.prove.noisy PORT ROUND

Its answers are not checked. Checked are the calls of all other customers: answered meanwhile, and exact.
"""

from __future__ import annotations

import gzip
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Final

import msgspec

from tollkeeper.api.paths import PREFIX
from tollkeeper.console.server_defaults import HOST
from tollkeeper.prove.plan import management_id_of, secret_of

ANSWER_S_MAX: Final = 60
LINES: Final = 300_000
"""Of a malformed body: 600 KB that gzip makes 1 KB of."""
DISTINCT: Final = 2_000
"""Events of a batch, each with values of its own."""
SILENT: Final = 40
"""Connections that are opened and say nothing."""
PAUSE_S: Final = 0.05
_MEASURES: Final = "requests,cost_nanos,latency_ms_p95"
_QUERY: Final = f"group_by=tag.a,tag.b,route,model&granularity=minute&measures={_MEASURES}&limit=1000"


class Noise:
    """The customer of one round."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._account = f"noisy-{number}"
        self._manages = secret_of(management_id_of(self._account))

    def kinds(self) -> dict[str, Callable[[int], None]]:
        """Return what it does, by name; each is called with 0, 1, 2 …"""
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
        self._call("POST", "/keys", b"{}")

    def bad_credentials(self, index: int) -> None:
        self._call("GET", "/usage", credential=f"tk_made_up_{index}")

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


def main(port: int, number: int) -> None:
    """Make noise until the process is ended."""

    def repeat(work: Callable[[int], None]) -> None:
        for index in itertools.count():
            try:
                work(index)
            except (OSError, HTTPException):
                # The server is being killed, or refuses: it is there again soon.
                time.sleep(1)
            time.sleep(PAUSE_S)

    threads = [
        threading.Thread(target=repeat, args=(work,), daemon=True)
        for work in Noise(port, number).kinds().values()
    ]
    for thread in threads:
        thread.start()
    sys.stdin.buffer.read()  # Ends with the process that started this one, however that ended.


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
