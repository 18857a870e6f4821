"""The same request log on SQLite: WAL, `synchronous=FULL`, one writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.fixture import MODELS
from bench.traces import ACCOUNTS

CONFIGURATION = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA cache_size = -524288;
PRAGMA mmap_size = 2147483648;
PRAGMA temp_store = MEMORY;
PRAGMA wal_autocheckpoint = 20000;
"""
SCHEMA = """
CREATE TABLE IF NOT EXISTS api_keys (key_id TEXT PRIMARY KEY, account_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prices (model TEXT PRIMARY KEY, prompt_nanos INT NOT NULL, completion_nanos INT NOT NULL)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS request_log (
  event_id BLOB PRIMARY KEY, account_id TEXT NOT NULL, key_id TEXT NOT NULL, occurred_at_ms INT NOT NULL,
  method TEXT NOT NULL, route TEXT NOT NULL, status INT NOT NULL, latency_ms REAL NOT NULL,
  bytes_out INT NOT NULL, model TEXT NOT NULL, prompt_tokens INT NOT NULL, completion_tokens INT NOT NULL,
  cost_nanos INT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS request_log_of_account ON request_log (account_id, occurred_at_ms);
CREATE TABLE IF NOT EXISTS usage_hourly (
  account_id TEXT, hour INT, key_id TEXT, route TEXT, model TEXT, status INT,
  requests INT NOT NULL, prompt_tokens INT NOT NULL, completion_tokens INT NOT NULL, cost_nanos INT NOT NULL,
  bytes_out INT NOT NULL, latency_ms_sum REAL NOT NULL,
  PRIMARY KEY (account_id, hour, key_id, route, model, status)
) WITHOUT ROWID;
CREATE TEMPORARY TABLE staging (
  event_id BLOB PRIMARY KEY, occurred_at_ms INT, key_id TEXT, method TEXT, route TEXT, status INT,
  latency_ms REAL, bytes_out INT, model TEXT, prompt_tokens INT, completion_tokens INT
) WITHOUT ROWID;
"""
BOOK = """
INSERT INTO request_log
SELECT s.event_id, k.account_id, s.key_id, s.occurred_at_ms, s.method, s.route, s.status, s.latency_ms, s.bytes_out,
       s.model, s.prompt_tokens, s.completion_tokens,
       s.prompt_tokens * p.prompt_nanos + s.completion_tokens * p.completion_nanos
FROM staging s JOIN api_keys k USING (key_id) LEFT JOIN prices p USING (model)
"""
ROLL_UP = """
INSERT INTO usage_hourly AS u
SELECT k.account_id, s.occurred_at_ms / 3600000, s.key_id, s.route, s.model, s.status, count(*), sum(s.prompt_tokens),
       sum(s.completion_tokens),
       coalesce(sum(s.prompt_tokens * p.prompt_nanos + s.completion_tokens * p.completion_nanos), 0),
       sum(s.bytes_out), sum(s.latency_ms)
FROM staging s JOIN api_keys k USING (key_id) LEFT JOIN prices p USING (model)
WHERE true GROUP BY 1, 2, 3, 4, 5, 6
ON CONFLICT (account_id, hour, key_id, route, model, status) DO UPDATE SET
  requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens, cost_nanos = cost_nanos + excluded.cost_nanos,
  bytes_out = bytes_out + excluded.bytes_out, latency_ms_sum = latency_ms_sum + excluded.latency_ms_sum
"""
QUESTIONS = {
    "sums": """
SELECT route, sum(requests), sum(prompt_tokens + completion_tokens), sum(cost_nanos)
FROM usage_hourly WHERE account_id = ? GROUP BY route
""",
    # SQLite has no percentile of its own; ranked rows are the quickest that it does.
    "p95": """
SELECT route, max(n), sum(tokens), sum(cost_nanos), max(latency_ms) FILTER (WHERE at <= (n * 19 + 19) / 20) FROM (
  SELECT route, prompt_tokens + completion_tokens AS tokens, cost_nanos, latency_ms,
         row_number() OVER (PARTITION BY route ORDER BY latency_ms) AS at, count(*) OVER (PARTITION BY route) AS n
  FROM request_log WHERE account_id = ?
) GROUP BY route
""",
}


class Tokens(msgspec.Struct):
    """As in an event."""

    prompt: int
    completion: int


class Event(msgspec.Struct):
    """As on the wire."""

    id: str
    time: datetime
    key_id: str
    method: str
    route: str
    status: int
    latency_ms: float
    bytes_out: int
    model: str
    tokens: Tokens


DECODER = msgspec.json.Decoder(Event)


class SqliteLog:
    """One connection. Each call is one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self._connection.executescript(CONFIGURATION + SCHEMA)
        self._connection.executemany(
            "INSERT OR IGNORE INTO api_keys VALUES (?, ?)",
            [(f"k{number}", f"a{number}") for number in range(ACCOUNTS)],
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO prices VALUES (?, 2500, 10000)", [(model,) for model in MODELS]
        )

    def book(self, body: bytes) -> int:
        """Book a batch of events from NDJSON; return how many were new."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            insert = f"INSERT OR IGNORE INTO staging VALUES ({', '.join('?' * 11)})"
            self._connection.executemany(insert, _rows(body))
            run(
                "DELETE FROM staging WHERE EXISTS (SELECT 1 FROM request_log r WHERE r.event_id = staging.event_id)"
            )
            new = run(BOOK).rowcount
            run(ROLL_UP)
            run("DELETE FROM staging")
        except BaseException:
            run("ROLLBACK")
            raise
        run("COMMIT")
        return new

    def usage(self, question: str, account_id: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(QUESTIONS[question], (account_id,)).fetchall()

    def bytes_used(self) -> int:
        return sum(file.stat().st_size for file in self._path.parent.glob(f"{self._path.name}*"))

    def version(self) -> str:
        return sqlite3.sqlite_version


def _rows(body: bytes) -> Iterator[tuple[Any, ...]]:
    for event in DECODER.decode_lines(body):
        yield (
            bytes.fromhex(event.id.replace("-", "")),
            int(event.time.timestamp() * 1000),
            event.key_id,
            event.method,
            event.route,
            event.status,
            event.latency_ms,
            event.bytes_out,
            event.model,
            event.tokens.prompt,
            event.tokens.completion,
        )
