"""Usage answers over HTTP for an account without new events, each as fresh as a new one; beside a hello-world."""

from __future__ import annotations

import http.client
import statistics

from bench import load
from bench.fixture import OPERATOR_KEY, directory, events
from bench.processes import running
from bench.table import Figure

EVENTS = 100_000
START_MS = 1_780_000_000_000
CONNECTIONS = 16
SECONDS = 3.0
PAIRS = 3
PATH = (
    "/tk/v1/usage?account=acme&group_by=key&granularity=day&from=2026-05-01T00:00:00Z&to=2026-08-01T00:00:00Z"
)


def run() -> list[Figure]:
    with (
        directory() as one,
        directory() as two,
        running("hello", one) as bare,
        running("serve", two) as server,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": "application/x-ndjson"}
        connection.request("POST", "/tk/v1/events", events(EVENTS, start_ms=START_MS), headers)
        assert connection.getresponse().read()
        plain = [lambda number, answer: load.request("GET", "/")]
        question = load.request("GET", PATH, Authorization=f"Bearer {OPERATOR_KEY}")
        asked = [lambda number, answer: question]
        connection.request("GET", PATH, headers=headers)  # The first answer imports and delivers.
        assert connection.getresponse().read()
        load.run(server.port, asked, connections=2, seconds=1)
        rounds = [
            (
                load.run(bare.port, plain, connections=CONNECTIONS, seconds=SECONDS),
                load.run(server.port, asked, connections=CONNECTIONS, seconds=SECONDS),
            )
            for _ in range(PAIRS)
        ]
    assert not any(r[1].failures for r in rounds)
    answers = statistics.median(r[1].steps_per_s for r in rounds)
    return [
        Figure(
            "usage, account unchanged", "answers/s", answers, "/s",
            statistics.median(r[0].steps_per_s for r in rounds), "hello-world", "≥ 1,000 /s", answers >= 1_000,
        ),
        Figure(
            "usage, account unchanged", "p99", statistics.median(r[1].p99_ms for r in rounds), "ms",
            statistics.median(r[0].p99_ms for r in rounds), "hello-world", "≤ 20 ms",
            statistics.median(r[1].p99_ms for r in rounds) <= 20,
        ),
    ]  # fmt: skip
