"""The middleware on a bare ASGI app, beside the same app without it, on the same server."""

from __future__ import annotations

import statistics

from bench import load
from bench.fixture import directory
from bench.processes import running
from bench.table import Figure

CONNECTIONS = 64
SECONDS = 3.0
PAIRS = 3


KINDS = {
    "middleware": "answers durable",
    "middleware-frozen": "answers durable, with freeze_gc()",
    "middleware-async": "booked within ms",
    "middleware-async-frozen": "booked within ms, with freeze_gc()",
}
"""Server of `bench.servers` → what it stands for."""


def run() -> list[Figure]:
    figures = []
    for name, what in KINDS.items():
        # One at a time, so that no other server's maintenance takes CPU from it.
        with (
            directory() as one,
            directory() as two,
            running("hello", one) as bare,
            running(name, two) as ours,
        ):
            plain = [lambda number, answer: load.request("GET", "/")]
            keyed = [_with_key(ours.secrets)]
            load.run(ours.port, keyed, connections=8, seconds=1)
            rounds = [
                (
                    load.run(bare.port, plain, connections=CONNECTIONS, seconds=SECONDS),
                    load.run(ours.port, keyed, connections=CONNECTIONS, seconds=SECONDS),
                )
                for _ in range(PAIRS)
            ]
        assert not any(r[1].failures for r in rounds)
        share = statistics.median(r[1].steps_per_s / r[0].steps_per_s for r in rounds)
        figures += [
            Figure(
                "middleware", f"requests/s, {what}", statistics.median(r[1].steps_per_s for r in rounds), "/s",
                statistics.median(r[0].steps_per_s for r in rounds), "bare app", "≥ 70 %", share >= 0.7,
            ),
            Figure(
                "middleware", f"p99, {what}", statistics.median(r[1].p99_ms for r in rounds), "ms",
                statistics.median(r[0].p99_ms for r in rounds), "bare app",
            ),
        ]  # fmt: skip
    return figures


def _with_key(secrets: list[str]) -> load.Step:
    requests = [load.request("GET", "/", Authorization=f"Bearer {secret}") for secret in secrets]
    return lambda number, answer: requests[number % len(requests)]
