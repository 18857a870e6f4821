"""chDB raw: its own insert of the same NDJSON, and the same usage query over its rows, in process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import clickhouse_connect
import msgspec

from bench import traces
from bench.client import Client, quantile, timed_ms
from bench.fixture import directory
from bench.peers.comparison import Comparison, Found, Scale
from bench.processes import tollkeeper

TITLE = "chDB raw"
PACKAGES = ("chdb", "clickhouse-connect")
SECONDS_MAX = 300
BATCH = 50_000
START_MS = 1_780_000_000_000
SPAN_MS = 600
SETTINGS = """
* chDB in process, without HTTP: `INSERT … FORMAT JSONEachRow` of batches of 50,000 into a `MergeTree` ordered
  by key and time, and the usage query as SQL over the rows. No price, no duplicate found, no limit; an
  insert is not fsynced.
* Ours: the same bytes over HTTP to `tollkeeper serve`: decoded, priced, deduplicated, booked to 26 budgets with
  an fsync; the query over HTTP. A new event belongs to the account of the query.
"""

TABLE = """
CREATE TABLE events (id UUID, time DateTime64(3, 'UTC'), key_id LowCardinality(String),
  method LowCardinality(String), route LowCardinality(String), status UInt16, latency_ms Float64, bytes_out Int64,
  model LowCardinality(String), tokens Tuple(prompt Int64, completion Int64))
ENGINE = MergeTree ORDER BY (key_id, time)
"""
SUMS = "SELECT route, count(), sum(tokens.prompt + tokens.completion){} FROM events WHERE key_id = 'k0' GROUP BY route"
QUESTIONS = {
    "an account's sums by route": (SUMS.format(""), "measures=requests,tokens"),
    "with p95": (SUMS.format(", quantile(0.95)(latency_ms)"), "measures=requests,tokens,latency_ms_p95"),
}


class Raw(msgspec.Struct):
    """What the process that has chDB found."""

    events_per_s: float
    answers: dict[str, list[float]]


def run(scale: Scale) -> Found:
    trace = traces.Trace()
    bodies = [
        trace.batch(BATCH, start_ms=START_MS + begun * SPAN_MS, span_ms=SPAN_MS)
        for begun in range(0, scale.events, BATCH)
    ]
    with directory() as path:
        for number, body in enumerate(bodies):
            (path / f"{number:04}.jsonl").write_bytes(body)
        # A process has one chDB engine, and the server has its own.
        child = subprocess.run(
            [sys.executable, "-m", "bench.peers.raw_chdb", str(path), str(scale.asked)],
            capture_output=True,
            check=True,
            timeout=SECONDS_MAX,
        )
        raw = msgspec.json.decode(child.stdout, type=Raw)
    with directory() as path, tollkeeper(path) as server:
        client = Client(server.port)
        client.call("POST", "/tk/v1/apply", traces.DECLARATION.encode(), "application/toml")
        sent_s = sum(client.send(body, BATCH) for body in bodies)
        drained_s = timed_ms(lambda: client.call("GET", "/tk/v1/usage?measures=requests"), 1)[0] / 1e3
        ours = {}
        for name, (_, measures) in QUESTIONS.items():

            def ask(path: str = f"/tk/v1/usage?account=a0&group_by=route&{measures}") -> object:
                return client.call("GET", path)

            def new_event() -> float:
                at_ms = START_MS + scale.events * SPAN_MS
                return client.send(trace.one("k0", at_ms=at_ms), 1)

            ours[name, "after a new event"] = timed_ms(ask, scale.asked, new_event)
            ours[name, "nothing new"] = timed_ms(ask, scale.asked)
        client.close()
    count = len(bodies) * BATCH
    figures = [
        Comparison(
            "ingest, acknowledged: events/s", "chDB insert", raw.events_per_s, count / sent_s, "/s", more=True
        ),
        Comparison(
            "ingest, until in a usage answer: events/s",
            "chDB insert",
            raw.events_per_s,
            count / (sent_s + drained_s),
            "/s",
            more=True,
        ),
    ]
    for (name, kind), times in ours.items():
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            figures.append(
                Comparison(
                    f"usage at {count / 1e6:g} M, {name}, {kind}: {label}",
                    "SQL over the rows",
                    quantile(raw.answers[name], share),
                    quantile(times, share),
                    "ms",
                )
            )
    return Found(figures)


def _raw(path: Path, asked: int) -> Raw:
    client = clickhouse_connect.get_client(dsn=f"chdb://{path}/raw")
    client.command(TABLE)
    files = sorted(path.glob("*.jsonl"))
    took_s = 0.0
    for file in files:
        body = file.read_bytes()
        began = time.perf_counter()
        client.raw_insert("events", insert_block=body, fmt="JSONEachRow",
                          settings={"date_time_input_format": "best_effort"})  # fmt: skip
        took_s += time.perf_counter() - began
    return Raw(
        events_per_s=len(files) * BATCH / took_s,
        answers={
            name: timed_ms(lambda sql=sql: client.query(sql), asked) for name, (sql, _) in QUESTIONS.items()
        },
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_raw(Path(sys.argv[1]), int(sys.argv[2]))))
