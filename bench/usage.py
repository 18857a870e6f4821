"""Usage answers at 1 M and 10 M events, beside the same sums as SQL over the raw rows; bytes per event."""

from __future__ import annotations

import statistics
import time
from typing import Any

import clickhouse_connect

from bench.fixture import directory, events, set_up
from bench.table import Figure
from tollkeeper import Tollkeeper, UsageQuery
from tollkeeper.services.decode import decode_ndjson

BATCH = 100_000
START_MS = 1_780_000_000_000
SPAN_MS = 60
"""One event every 60 ms: 10 M events cover a week."""
ASKED = 40

RAW = """
SELECT key_id, sum(sign), sum(sign * cost_nanos), sum(sign * (prompt_tokens + completion_tokens))
FROM events WHERE account_id = 'acme' GROUP BY key_id
"""


def run(sizes: tuple[int, ...] = (1_000_000, 10_000_000)) -> list[Figure]:
    figures = []
    with directory() as path, Tollkeeper.open(str(path)) as toll:
        set_up(toll)
        query = UsageQuery(
            account_id="acme", from_us=0, to_us=4_000_000_000_000_000, group_by=("key",),
            measures=("requests", "cost_nanos", "tokens", "latency_ms_p95"),
        )  # fmt: skip
        done = 0
        first_p99 = None
        for size in sizes:
            while done < size:
                body = events(BATCH, start_ms=START_MS + done * SPAN_MS, span_ms=SPAN_MS)
                decoded = decode_ndjson(body, now_us=toll.installation.clock.now_us() + 10**15)
                result = toll.installation.ingest.take(decoded)
                assert result.accepted == BATCH, result.rejections[:2]
                done += BATCH
            toll.usage(query)
            times, raw = [], []
            client = clickhouse_connect.get_client(dsn=f"chdb://{path}/usage")
            for _ in range(ASKED):
                started = time.perf_counter()
                report = toll.usage(query)
                times.append(time.perf_counter() - started)
                assert report.totals["requests"] == size
            for _ in range(7):
                started = time.perf_counter()
                client.query(RAW)
                raw.append(time.perf_counter() - started)
            times.sort()
            p99 = times[-1] * 1e3
            first_p99 = first_p99 or statistics.median(times) * 1e3
            label = f"{size // 1_000_000} M events"
            p50 = statistics.median(times) * 1e3
            figures += [
                Figure(
                    "usage answer",
                    f"p50 at {label}",
                    p50,
                    "ms",
                    statistics.median(raw) * 1e3,
                    "SQL on raw rows",
                ),
                Figure(
                    "usage answer",
                    f"max of {ASKED} at {label}",
                    p99,
                    "ms",
                    target="≤ 20 ms",
                    reached=p99 <= 20,
                ),
            ]
            if size != sizes[0]:
                growth = p50 / first_p99
                figures.append(
                    Figure("usage answer", f"p50 against {sizes[0] // 1_000_000} M", growth, "×", target="≤ 1.5 ×",
                           reached=growth <= 1.5)
                )  # fmt: skip
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


def _bytes_on_disk(client: Any) -> int:
    """Return the bytes of all tables once their parts are merged, as they are in the end."""
    for table in ("events", "event_ids", "usage_hourly"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    sql = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    return int(client.query(sql).result_rows[0][0])
