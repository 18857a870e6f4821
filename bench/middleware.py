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


def run() -> list[Figure]:
    with (
        directory() as one,
        directory() as two,
        directory() as three,
        running("hello", one) as bare,
        running("middleware", two) as durable,
        running("middleware-async", three) as quick,
    ):
        plain = [lambda number, answer: load.request("GET", "/")]
        ours = [_with_key(durable.secrets)]
        ours_quick = [_with_key(quick.secrets)]
        rounds = [
            (
                load.run(bare.port, plain, connections=CONNECTIONS, seconds=SECONDS),
                load.run(durable.port, ours, connections=CONNECTIONS, seconds=SECONDS),
                load.run(quick.port, ours_quick, connections=CONNECTIONS, seconds=SECONDS),
            )
            for _ in range(PAIRS)
        ]
    base = statistics.median(r[0].steps_per_s for r in rounds)
    figures = []
    for index, what in ((1, "answers durable"), (2, "booked within ms")):
        value = statistics.median(r[index].steps_per_s for r in rounds)
        share = statistics.median(r[index].steps_per_s / r[0].steps_per_s for r in rounds)
        assert not any(r[index].failures for r in rounds)
        figures.append(
            Figure("middleware", f"requests/s, {what}", value, "/s", base, "bare app", "≥ 70 %", share >= 0.7)
        )
        p99 = statistics.median(r[index].p99_ms for r in rounds)
        figures.append(
            Figure(
                "middleware",
                f"p99, {what}",
                p99,
                "ms",
                statistics.median(r[0].p99_ms for r in rounds),
                "bare app",
            )
        )
    return figures


def _with_key(secrets: list[str]) -> load.Step:
    requests = [load.request("GET", "/", Authorization=f"Bearer {secret}") for secret in secrets]
    return lambda number, answer: requests[number % len(requests)]
