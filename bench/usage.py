"""
Usage answers at 1 M, 10 M and 100 M events, beside the same sums as SQL over the raw rows; bytes per event.

An event comes every 60 ms, so that 100 M events are 70 days; each question is about all of them or nearly so. It
is asked while nothing else happens, and while events of another account come in. `EVENTS=100000000 python -m
bench usage` goes on to 100 M (10 M by default). The events are drawn by the engine and booked as they are.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import clickhouse_connect
import msgspec

from bench.client import quantile
from bench.fixture import KEYS, MODELS, ROUTES, directory, events, set_up
from bench.table import Figure
from tollkeeper import Tollkeeper, UsageQuery
from tollkeeper.meter.decode import decode_ndjson

STEPS: Final = (1_000_000, 10_000_000, 100_000_000)
EVENTS: Final = int(os.environ.get("EVENTS", "10000000"))
DRAWN_MAX: Final = 10_000_000
"""Events per statement that draws."""
ASKED: Final = 200
ASKED_RAW: Final = 3

TWO_QUANTITIES: Final = (
    "map('images', toInt64(1 + rand(20) % 5) * 1000000, 'seconds', toInt64(1 + rand(21) % 9000) * 100000)"
)
SPAN_US: Final = 60_000
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
START_US: Final = 1_779_926_400_000_000
"""A midnight, of the first event."""

BUSY_BATCH: Final = 5_000
BUSY_PAUSE_S: Final = 0.25
BUSY_BATCHES: Final = 100
"""Events come in at 20,000/s at most, for 25 s at least."""
OTHER: Final = '[[accounts]]\nid = "other"\nname = "Other"\n' + "".join(
    f'[[keys]]\nid = "o{i}"\naccount = "other"\n' for i in range(KEYS)
)


class Question(NamedTuple):
    """
    What is asked.

    Attributes:
        raw: The same as SQL over the raw rows, without the total.
    """

    name: str
    query: UsageQuery
    raw: str


def questions(size: int) -> list[Question]:
    """Return what is asked when there are *size* events."""
    end_us = START_US + size * SPAN_US
    whole_days = (START_US, -(-end_us // DAY_US) * DAY_US)
    until_now = (START_US, end_us + 7)
    ragged = (START_US + 5 * HOUR_US + 17, end_us - 2 * HOUR_US + 7)
    return [
        _question("whole days, sums by key", whole_days, "key", "key_id", p95=False),
        _question("until now, sums by key", until_now, "key", "key_id", p95=False),
        _question("until now, p95 by key", until_now, "key", "key_id", p95=True),
        _question("until now, p95 by model", until_now, "model", "model", p95=True),
        _question("ragged ends, sums by key", ragged, "key", "key_id", p95=False),
        _question("ragged ends, p95 by model", ragged, "model", "model", p95=True),
    ]


def _question(name: str, span: tuple[int, int], dimension: str, column: str, *, p95: bool) -> Question:
    sums = ("requests", "cost_nanos", "tokens")
    query = UsageQuery(
        account_id="acme",
        from_us=span[0],
        to_us=span[1],
        group_by=(dimension,),
        measures=(*sums, "latency_ms_p95") if p95 else sums,
    )
    raw = f"""
        SELECT {column}, sum(sign), sum(sign * cost_nanos), sum(sign * (prompt_tokens + completion_tokens))
            {", quantile(0.95)(latency_us)" if p95 else ""}
        FROM events WHERE account_id = 'acme'
            AND occurred_at >= fromUnixTimestamp64Micro({span[0]}, 'UTC')
            AND occurred_at < fromUnixTimestamp64Micro({span[1]}, 'UTC')
        GROUP BY {column}"""
    return Question(name, query, raw)


def run() -> list[Figure]:
    figures = []
    first: dict[str, float] = {}
    done = 0
    with directory() as path, Tollkeeper.open(str(path)) as toll:
        set_up(toll)
        toll.apply(OTHER)
        # The store is opened beside the start: not before it has its tables is there anything to draw into.
        toll.usage(questions(STEPS[0])[0].query)
        client = clickhouse_connect.get_client(dsn=f"chdb://{path}/usage")
        for size in [step for step in STEPS if step <= EVENTS]:
            done = _draw(client, done, size)
            client.command("OPTIMIZE TABLE usage_rollups FINAL")
            asked = questions(size)
            assert toll.usage(asked[0].query).totals["requests"] == size
            for number, question in enumerate(asked):
                figures += _ask(toll, client, question, size, number, first)
        figures.append(_disk(client, done, "usage store per event"))
        for table in ("events", "event_ids", "usage_rollups"):
            client.command(f"TRUNCATE TABLE {table}")
        done = _draw(client, 0, STEPS[0], quantities=TWO_QUANTITIES)
        figures.append(_disk(client, done, "usage store per event, two quantities each"))
    return figures


def _ask(
    toll: Tollkeeper, client: Any, question: Question, size: int, seed: int, first: dict[str, float]
) -> list[Figure]:
    """Ask one question many times, ours in peace and in a crowd, and over the raw rows."""
    # Each with a page size of its own, so that no answer is one that was kept.
    again = (msgspec.structs.replace(question.query, limit=limit) for limit in itertools.count(1_000))
    quiet = _times(lambda: toll.usage(next(again)), ASKED)
    with _crowd(toll, size, seed):
        busy = _times(lambda: toll.usage(next(again)), ASKED)
    raw = quantile(_times(lambda: client.query(question.raw), ASKED_RAW), 0.5)
    what = f"{question.name}, {size // 1_000_000} M"
    p50, p99, busy_p99 = quantile(quiet, 0.5), quantile(quiet, 0.99), quantile(busy, 0.99)
    figures = [
        Figure("usage answer", f"{what}: p50", p50, "ms", raw, "SQL on raw rows"),
        Figure("usage answer", f"{what}: p99", p99, "ms"),
        Figure("usage answer", f"{what}: p50 while ingesting", quantile(busy, 0.5), "ms"),
        Figure("usage answer", f"{what}: p99 while ingesting", busy_p99, "ms", target="≤ 20 ms",
               reached=busy_p99 <= 20),
    ]  # fmt: skip
    growth = p50 / first.setdefault(question.name, p50)
    if size > STEPS[0]:
        figures.append(
            Figure("usage answer", f"{what}: p50 as against 1 M", growth, "×", target="≤ 1.5 ×",
                   reached=growth <= 1.5)
        )  # fmt: skip
    return figures


@contextmanager
def _crowd(toll: Tollkeeper, size: int, seed: int) -> Iterator[None]:
    """Have events of another account come in, each batch durable before the next, for the length of the block."""
    now_us = toll.installation.clock.now_us() + 10**15
    start_ms = (START_US + size * SPAN_US) // 1000
    bodies = [
        events(BUSY_BATCH, start_ms=start_ms + number * BUSY_BATCH, seed=seed).replace(b':"k', b':"o')
        for number in range(BUSY_BATCHES)
    ]
    done = threading.Event()
    taken: list[int] = []

    def ingest() -> None:
        for body in bodies:
            decoded = decode_ndjson(body, now_us=now_us)
            taken.append(toll.installation.ingest.take(decoded).accepted)
            if done.wait(BUSY_PAUSE_S):
                return

    thread = threading.Thread(target=ingest)
    thread.start()
    try:
        yield
    finally:
        crowded = thread.is_alive()
        done.set()
        thread.join()
    assert crowded, "the events did not last"
    assert set(taken) == {BUSY_BATCH}, taken


def _draw(client: Any, done: int, size: int, *, quantities: str = "map()") -> int:
    """Book events until there are *size* where *done* are; return *size*."""
    for begun in range(done, size, DRAWN_MAX):
        client.command(
            f"""
            INSERT INTO events SELECT 'acme', '', concat('k', toString(rand(1) % {KEYS})),
                fromUnixTimestamp64Micro(toInt64({START_US} + number * {SPAN_US}), 'UTC') AS at,
                at + INTERVAL 1 SECOND,
                lower(concat(substring(hex(toUInt64(({START_US} + number * {SPAN_US}) DIV 1000)) AS h, 5, 8), '-',
                    substring(h, 13, 4), '-7', substring(hex(rand(10)), 1, 3), '-',
                    substring(hex(rand(11)), 1, 4), '-', substring(hex(rand64(12)), 1, 12))),
                0, 1, '', 'request', 'POST', arrayElement({list(ROUTES)}, 1 + rand(2) % {len(ROUTES)}),
                if(rand(3) % 100 < 97, 200, 500), '', '', toInt64(exp(6 + randNormal(0, 1, 4)) * 1000),
                200 + rand(5) % 8800, arrayElement({list(MODELS)}, 1 + rand(6) % {len(MODELS)}),
                20 + rand(7) % 4000, 0, 1 + rand(8) % 600, 0, 'none', 0,
                rand(9) % 100000000, rand(9) % 100000000, 'priced', 'v1', map(), {quantities}, 0, '', 0
            FROM numbers({begun}, {min(DRAWN_MAX, size - begun)})""",
            settings={
                "max_insert_block_size": 1_000_000,
                "min_insert_block_size_rows": 1_000_000,
                "max_partitions_per_insert_block": 0,
                "optimize_on_insert": 0,
            },
        )
    return size


def _times(work: Callable[[], object], count: int) -> list[float]:
    """Return how long *work* took each time, in ms, sorted."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)


def _disk(client: Any, count: int, what: str) -> Figure:
    """Return the bytes per event of all tables once their parts are merged, as they are in the end."""
    for table in ("events", "event_ids", "usage_rollups"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    sql = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    per_event = int(client.query(sql).result_rows[0][0]) / count
    return Figure("disk", what, per_event, "bytes", target="≤ 60 bytes",
                  reached=per_event <= 60)  # fmt: skip
