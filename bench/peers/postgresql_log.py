"""A request log on PostgreSQL as a good engineer writes it in a day: COPY, dedupe by unique id, roll-up, index."""

from __future__ import annotations

import io
from typing import Any

import psycopg
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.json

from bench.fixture import MODELS
from bench.traces import ACCOUNTS

CONFIGURATION = """
shared_buffers = 1GB
max_wal_size = 8GB
checkpoint_timeout = 15min
work_mem = 64MB
random_page_cost = 1.1
jit = off
"""
"""Beside the defaults: fsync, full_page_writes and synchronous_commit are on."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS api_keys (key_id text PRIMARY KEY, account_id text NOT NULL);
CREATE TABLE IF NOT EXISTS prices (
  model text PRIMARY KEY, prompt_nanos bigint NOT NULL, completion_nanos bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS request_log (
  event_id uuid PRIMARY KEY, account_id text NOT NULL, key_id text NOT NULL, occurred_at timestamptz NOT NULL,
  method text NOT NULL, route text NOT NULL, status smallint NOT NULL, latency_ms real NOT NULL,
  bytes_out bigint NOT NULL, model text NOT NULL, prompt_tokens int NOT NULL, completion_tokens int NOT NULL,
  cost_nanos bigint
);
CREATE INDEX IF NOT EXISTS request_log_of_account ON request_log (account_id, occurred_at);
CREATE TABLE IF NOT EXISTS usage_hourly (
  account_id text, hour timestamptz, key_id text, route text, model text, status smallint,
  requests bigint NOT NULL, prompt_tokens bigint NOT NULL, completion_tokens bigint NOT NULL,
  cost_nanos bigint NOT NULL, bytes_out bigint NOT NULL, latency_ms_sum double precision NOT NULL,
  PRIMARY KEY (account_id, hour, key_id, route, model, status)
);
"""
STAGING = """
CREATE TEMPORARY TABLE staging (
  event_id uuid, occurred_at timestamptz, key_id text, method text, route text, status smallint,
  latency_ms real, bytes_out bigint, model text, prompt_tokens int, completion_tokens int
) ON COMMIT DELETE ROWS
"""
BOOK = """
WITH fresh AS (
  INSERT INTO request_log
  SELECT s.event_id, k.account_id, s.key_id, s.occurred_at, s.method, s.route, s.status, s.latency_ms, s.bytes_out,
         s.model, s.prompt_tokens, s.completion_tokens,
         s.prompt_tokens * p.prompt_nanos + s.completion_tokens * p.completion_nanos
  FROM staging s JOIN api_keys k USING (key_id) LEFT JOIN prices p USING (model)
  ON CONFLICT (event_id) DO NOTHING
  RETURNING account_id, occurred_at, key_id, route, model, status, prompt_tokens, completion_tokens, cost_nanos,
            bytes_out, latency_ms
), rolled_up AS (
  INSERT INTO usage_hourly AS u
  SELECT account_id, date_trunc('hour', occurred_at), key_id, route, model, status, count(*), sum(prompt_tokens),
         sum(completion_tokens), coalesce(sum(cost_nanos), 0), sum(bytes_out), sum(latency_ms)
  FROM fresh GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
  ON CONFLICT (account_id, hour, key_id, route, model, status) DO UPDATE SET
    requests = u.requests + excluded.requests, prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = u.completion_tokens + excluded.completion_tokens,
    cost_nanos = u.cost_nanos + excluded.cost_nanos, bytes_out = u.bytes_out + excluded.bytes_out,
    latency_ms_sum = u.latency_ms_sum + excluded.latency_ms_sum
)
SELECT count(*) FROM fresh
"""
QUESTIONS = {
    "sums": """
SELECT route, sum(requests)::bigint, sum(prompt_tokens + completion_tokens)::bigint, sum(cost_nanos)::bigint
FROM usage_hourly WHERE account_id = %s GROUP BY route
""",
    "p95": """
SELECT route, count(*), sum(prompt_tokens + completion_tokens)::bigint, sum(cost_nanos)::bigint,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY latency_ms)
FROM request_log WHERE account_id = %s GROUP BY route
""",
}
EVENT = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("time", pyarrow.string()),
        ("key_id", pyarrow.string()),
        ("method", pyarrow.string()),
        ("route", pyarrow.string()),
        ("status", pyarrow.int16()),
        ("latency_ms", pyarrow.float64()),
        ("bytes_out", pyarrow.int64()),
        ("model", pyarrow.string()),
        ("tokens", pyarrow.struct([("prompt", pyarrow.int32()), ("completion", pyarrow.int32())])),
    ]
)


class PostgresqlLog:
    """One connection. Each call is one transaction."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        with self._connection.cursor() as cursor:
            cursor.execute(SCHEMA)
            cursor.executemany(
                "INSERT INTO api_keys VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [(f"k{number}", f"a{number}") for number in range(ACCOUNTS)],
            )
            cursor.executemany(
                "INSERT INTO prices VALUES (%s, 2500, 10000) ON CONFLICT DO NOTHING",
                [(model,) for model in MODELS],
            )
            cursor.execute(STAGING)

    def book(self, body: bytes) -> int:
        """Book a batch of events from NDJSON; return how many were new."""
        # Decoded and written as CSV by Arrow: no Python object per event.
        options = pyarrow.json.ParseOptions(explicit_schema=EVENT, unexpected_field_behavior="ignore")
        table = pyarrow.json.read_json(io.BytesIO(body), parse_options=options).flatten()
        csv = io.BytesIO()
        pyarrow.csv.write_csv(table, csv, pyarrow.csv.WriteOptions(include_header=False))
        with self._connection.transaction(), self._connection.cursor() as cursor:
            with cursor.copy("COPY staging FROM STDIN (FORMAT csv)") as copy:
                copy.write(csv.getbuffer())
            found = cursor.execute(BOOK).fetchone()
        assert found is not None
        return int(found[0])

    def usage(self, question: str, account_id: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(QUESTIONS[question], (account_id,), prepare=True).fetchall()

    def bytes_used(self) -> int:
        found = self._connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert found is not None
        return int(found[0])

    def version(self) -> str:
        found = self._connection.execute("SHOW server_version").fetchone()
        assert found is not None
        return str(found[0])
