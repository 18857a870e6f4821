"""Durable authorize + settle over HTTP, beside a hello-world on the same server."""

from __future__ import annotations

import statistics

from bench import load
from bench.fixture import OPERATOR_KEY, directory, dumps
from bench.processes import running
from bench.table import Figure

CONNECTIONS = 64
SECONDS = 4.0
PAIRS = 3


def run() -> list[Figure]:
    with (
        directory() as one,
        directory() as two,
        running("hello", one) as bare,
        running("serve", two) as server,
    ):
        plain = [lambda number, answer: load.request("POST", "/", b"{}")]
        ours = steps(server.secrets)
        load.run(server.port, ours, connections=8, seconds=1)
        rounds = [
            (
                load.run(bare.port, plain, connections=CONNECTIONS, seconds=SECONDS),
                load.run(server.port, ours, connections=CONNECTIONS, seconds=SECONDS),
            )
            for _ in range(PAIRS)
        ]
    assert not any(r[1].failures for r in rounds)
    pairs = statistics.median(r[1].rounds_per_s for r in rounds)
    p99 = statistics.median(r[1].p99_ms for r in rounds)
    base = statistics.median(r[0].steps_per_s for r in rounds) / 2
    return [
        Figure(
            "authorize + settle", "pairs/s", pairs, "/s", base, "hello-world ÷ 2", "≥ 8,000 /s", pairs >= 8_000
        ),
        Figure(
            "authorize + settle", "p99 of a call", p99, "ms", statistics.median(r[0].p99_ms for r in rounds),
            "hello-world", "≤ 20 ms", p99 <= 20,
        ),
    ]  # fmt: skip


def steps(secrets: list[str]) -> list[load.Step]:
    """Return the two steps of a pair: authorize, then settle the hold that it answered with."""
    key = f"Bearer {OPERATOR_KEY}"
    authorize = [
        load.request(
            "POST",
            "/tk/v1/authorize",
            dumps({"key": secret, "method": "POST", "path": "/v1/chat", "cost_nanos": 1500}),
            Authorization=key,
        )
        for secret in secrets
    ]

    def settle(number: int, answer: bytes) -> bytes:
        at = answer.find(b'"hold_id":"') + 11
        body = b'{"hold_id":"' + answer[at : at + 36] + b'","cost_nanos":1200,"latency_ms":12.5}'
        return load.request("POST", "/tk/v1/settle", body, Authorization=key)

    return [lambda number, answer: authorize[number % len(authorize)], settle]
