"""The middleware with the gate of a server, over TCP and a Unix socket, beside the one in process and the bare app."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench import load
from bench.fixture import directory
from bench.middleware import _with_key
from bench.processes import Process, running
from bench.table import Figure

CONNECTIONS = 64
ONE_AT_A_TIME = 1
SECONDS = 3.0
ROUNDS = 3
TRANSPORTS = {"remote-tcp": "over TCP", "remote-unix": "over a Unix socket"}
"""Server of `bench.servers` → what it stands for. It runs the application; the gate runs in a process of its own."""


def run() -> list[Figure]:
    figures = []
    with directory() as one, running("hello", one) as bare:
        plain = [lambda number, answer: load.request("GET", "/")]
        base_ms = _median(bare, plain, ONE_AT_A_TIME).p50_ms
        with directory() as two, running("middleware", two) as embedded:
            keyed = [_with_key(embedded.secrets)]
            inside = _median(embedded, keyed, CONNECTIONS)
            inside_ms = _median(embedded, keyed, ONE_AT_A_TIME).p50_ms - base_ms
        for name, what in TRANSPORTS.items():
            with directory() as three, running("serve-uds", three) as gate:
                (three / "app").mkdir()
                (three / "app" / "gate.txt").write_text(_url(name, gate.port, three))
                with running(name, three / "app") as ours:
                    keyed = [_with_key(gate.secrets)]
                    found = _median(ours, keyed, CONNECTIONS)
                    added_ms = _median(ours, keyed, ONE_AT_A_TIME).p50_ms - base_ms
            figures += [
                Figure(
                    "remote middleware", f"requests/s, {what}", found.steps_per_s, "/s", inside.steps_per_s,
                    "in process",
                ),
                Figure("remote middleware", f"p99, {what}", found.p99_ms, "ms", inside.p99_ms, "in process"),
                Figure(
                    "remote middleware", f"added p50 of one client, {what}", added_ms, "ms", inside_ms,
                    "in process",
                ),
            ]  # fmt: skip
    return figures


def _median(process: Process, steps: list[load.Step], connections: int) -> load.Load:
    """Return the run with the median rate, after one that warms up."""
    load.run(process.port, steps, connections=8, seconds=1)
    runs = [load.run(process.port, steps, connections=connections, seconds=SECONDS) for _ in range(ROUNDS)]
    assert not any(found.failures for found in runs)
    rate = statistics.median(found.steps_per_s for found in runs)
    return next(found for found in runs if found.steps_per_s == rate)


def _url(name: str, port: int, path: Path) -> str:
    return f"unix:{path / 's'}" if name == "remote-unix" else f"http://127.0.0.1:{port}"
