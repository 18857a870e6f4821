"""Ingest over HTTP: decoded, priced, deduped, durable; beside chDB's own insert of the same JSON."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import time

from bench.fixture import OPERATOR_KEY, directory, events
from bench.processes import running
from bench.table import Figure

BATCH = 50_000
BATCHES = 12
WITH_QUANTITIES = 6
START_MS = 1_780_000_000_000

BASELINE = """
import sys, time, clickhouse_connect
client = clickhouse_connect.get_client(dsn="chdb://" + sys.argv[1] + "/baseline")
client.command('''CREATE TABLE events (id String, time DateTime64(3,'UTC'), key_id LowCardinality(String),
  method LowCardinality(String), route LowCardinality(String), status UInt16, latency_ms Float64, bytes_out Int64,
  model LowCardinality(String), tokens Tuple(prompt Int64, completion Int64))
  ENGINE=MergeTree ORDER BY (key_id, time)''')
import pathlib
for path in sorted(pathlib.Path(sys.argv[1]).glob("batch-*.jsonl")):
    body = path.read_bytes()
    started = time.perf_counter()
    client.raw_insert("events", insert_block=body, fmt="JSONEachRow",
                      settings={"date_time_input_format": "best_effort"})
    print(time.perf_counter() - started, flush=True)
"""


def run() -> list[Figure]:
    bodies = [events(BATCH, start_ms=START_MS + index * BATCH) for index in range(BATCHES)]
    with directory() as one, directory() as two:
        for index, body in enumerate(bodies[:6]):
            (one / f"batch-{index}.jsonl").write_bytes(body)
        baseline = subprocess.run(
            [sys.executable, "-c", BASELINE, str(one)], capture_output=True, text=True, check=True
        )
        base = BATCH / statistics.median(float(line) for line in baseline.stdout.split())
        with running("serve", two) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
            headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": "application/x-ndjson"}
            times = []
            cpu_s = server.cpu_s()
            for body in bodies:
                started = time.perf_counter()
                connection.request("POST", "/tk/v1/events", body, headers)
                answer = json.load(connection.getresponse())
                times.append(time.perf_counter() - started)
                assert answer["accepted"] == BATCH, answer
            one_by_one = BATCH / statistics.median(times[2:])
            # Sustained: until the usage store has everything.
            started = time.perf_counter()
            connection.request("GET", "/tk/v1/usage?account=acme&measures=requests", headers=headers)
            total = json.load(connection.getresponse())["totals"]["requests"]
            drained = time.perf_counter() - started
            assert total == BATCH * BATCHES
            sustained = BATCH * BATCHES / (sum(times) + drained)
            per_cpu_s = BATCH * BATCHES / (server.cpu_s() - cpu_s)
            private, file_backed = server.memory_mb()
            with_quantities = BATCH / statistics.median(
                [_new(connection, index, headers) for index in range(BATCHES, BATCHES + WITH_QUANTITIES)][2:]
            )
            retry = statistics.median(_again(connection, body, headers) for body in bodies[:5])
    share = one_by_one / base
    return [
        Figure("ingest", "events/s, one caller", one_by_one, "/s", base, "chDB JSONEachRow", "≥ 250,000 /s",
               one_by_one >= 250_000),
        Figure("ingest", "share of chDB's own insert", share * 100, "%", target="≥ 40 %", reached=share >= 0.4),
        Figure("ingest", "events/s until queryable", sustained, "/s", base, "chDB JSONEachRow"),
        Figure("ingest", "events until queryable, per second of CPU", per_cpu_s, "/s"),
        Figure("ingest", "events/s, one caller, two quantities each", with_quantities, "/s", base,
               "chDB JSONEachRow"),
        Figure("ingest", "retry of a whole batch", retry, "/s", target="≥ 200,000 /s", reached=retry >= 200_000),
        Figure("memory", "loaded, private", private, "MB", target="≤ 450 MB", reached=private <= 450),
        Figure("memory", "loaded, file-backed", file_backed, "MB"),
    ]  # fmt: skip


def _new(connection: http.client.HTTPConnection, index: int, headers: dict[str, str]) -> float:
    """Send a batch with quantities; return how long it took, in s."""
    body = events(BATCH, start_ms=START_MS + index * BATCH, quantities=True)
    started = time.perf_counter()
    connection.request("POST", "/tk/v1/events", body, headers)
    answer = json.load(connection.getresponse())
    assert answer["accepted"] == BATCH, answer
    return time.perf_counter() - started


def _again(connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> float:
    started = time.perf_counter()
    connection.request("POST", "/tk/v1/events", body, headers)
    answer = json.load(connection.getresponse())
    assert answer["duplicates"] == BATCH, answer
    return BATCH / (time.perf_counter() - started)
