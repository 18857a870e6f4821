"""Usage answers at 1 M and 10 M events, beside the same sums as SQL over the raw rows; bytes per event."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import clickhouse_connect

from bench.fixture import directory, fill, set_up
from bench.table import Figure
from tollkeeper import Tollkeeper, UsageQuery

START_MS = 1_780_000_000_000
SPAN_MS = 60
"""One event every 60 ms: 10 M events cover a week."""
ASKED = 40

SUMS = "sum(sign), sum(sign * cost_nanos), sum(sign * (prompt_tokens + completion_tokens))"
QUESTIONS = (
    ("sums by key", ("requests", "cost_nanos", "tokens"), SUMS),
    (
        "and p95",
        ("requests", "cost_nanos", "tokens", "latency_ms_p95"),
        SUMS + ", quantile(0.95)(latency_us)",
    ),
)
"""What is asked, its measures, and the same over the raw rows."""


def run(sizes: tuple[int, ...] = (1_000_000, 10_000_000)) -> list[Figure]:
    figures = []
    with directory() as path, Tollkeeper.open(str(path)) as toll:
        set_up(toll)
        done = 0
        first: dict[str, float] = {}
        for size in sizes:
            done = fill(toll, done, size, start_ms=START_MS, span_ms=SPAN_MS)
            client = clickhouse_connect.get_client(dsn=f"chdb://{path}/usage")
            for name, measures, sql in QUESTIONS:
                figures += _ask(toll, client, name, measures, sql, size, first)
        per_event = _bytes_on_disk(client) / done
        figures.append(
            Figure(
                "disk",
                "usage store per event",
                per_event,
                "bytes",
                target="≤ 60 bytes",
                reached=per_event <= 60,
            )
        )
    return figures


def _ask(
    toll: Tollkeeper,
    client: Any,
    name: str,
    measures: tuple[str, ...],
    sql: str,
    size: int,
    first: dict[str, float],
) -> list[Figure]:
    """Ask one question many times, ours and over the raw rows."""
    query = UsageQuery(
        account_id="acme", from_us=0, to_us=4_000_000_000_000_000, group_by=("key",), measures=measures
    )
    assert toll.usage(query).totals["requests"] == size
    ours = sorted(_times(lambda: toll.usage(query), ASKED))
    raw = _times(
        lambda: client.query(f"SELECT key_id, {sql} FROM events WHERE account_id = 'acme' GROUP BY key_id"), 7
    )
    p50, most, base = statistics.median(ours), ours[-1], statistics.median(raw)
    growth = p50 / first.setdefault(name, p50)
    what = f"{name}, {size // 1_000_000} M events"
    figures = [
        Figure("usage answer", f"{what}: p50", p50, "ms", base, "SQL on raw rows"),
        Figure("usage answer", f"{what}: max of {ASKED}", most, "ms", target="≤ 20 ms", reached=most <= 20),
    ]
    if growth != 1:
        figures.append(
            Figure("usage answer", f"{what}: growth", growth, "×", target="≤ 1.5 ×", reached=growth <= 1.5)
        )
    return figures


def _times(work: Callable[[], object], count: int) -> list[float]:
    """Return how long *work* took each time, in ms."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _bytes_on_disk(client: Any) -> int:
    """Return the bytes of all tables once their parts are merged, as they are in the end."""
    for table in ("events", "event_ids", "usage_hourly"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    sql = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    return int(client.query(sql).result_rows[0][0])
