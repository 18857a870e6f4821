"""
A server under high load for a while: does anything grow that should not?

    python -m bench.soak --seconds 600

Durable pairs of authorize and settle on many connections, batches of events and usage questions all at once.
Per interval it samples memory, open handles, the outbox and the latency of the calls, prints a table, lets the
server verify its books, and exits with 1 when something drifted beyond the bounds below.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from bench import authorize, load
from bench.client import Client
from bench.fixture import OPERATOR_KEY, directory, events
from bench.processes import Process, running

CONNECTIONS: Final = 32
BATCH: Final = 2_000
BATCH_EVERY_S: Final = 0.25
"""8,000 events a second beside the pairs: some load on ingest, not its limit."""
INTERVALS: Final = 12
WARM: Final = 2
"""Intervals before the first that counts: caches of the engines fill, and every thread exists."""

PRIVATE_MB_MAX: Final = 450
"""DESIGN: the most private memory under load; file-backed pages are reported beside it."""
PRIVATE_GROWTH_MB: Final = 60
"""From the first interval that counts to the last: half of the engine's caches may still fill."""
HANDLES_GROWTH: Final = 16
"""A keep-alive connection or a part that is being merged more or less is no leak."""
HANDLES_MAX: Final = 768
"""All of them at any look, merges included: three quarters of what a process may usually open."""
THREADS_MAX: Final = 160
"""The engine's pool for input and output goes up to 100, as many as there were files to sync at one time; it keeps
three files open for each."""
HANDLES_EVERY_S: Final = 0.5
"""The handles of an interval are the median of its looks: a merge has a hundred files open while it lasts."""
OUTBOX_S_MAX: Final = 6.0
"""Records that wait, in seconds of the load: the relay gathers for one and takes a few for a large batch."""
DRAIN_S_MAX: Final = 15.0
P99_FACTOR: Final = 2.0
P99_SLACK_MS: Final = 10.0
"""The p99 of the last third may be twice that of the first third that counts, and this: the machine is shared."""


class Open(NamedTuple):
    """Open handles and threads at one moment."""

    handles: int
    threads: int


class Sample(NamedTuple):
    """What one interval saw: most of it at its end, the handles as `HANDLES_EVERY_S` says."""

    at_s: float
    private_mb: float
    file_backed_mb: float
    handles: int
    handles_max: int
    threads: int
    outbox: int
    records_per_s: float
    pairs_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the load lasts (default 600)")
    seconds = max(12.0, parser.parse_args().seconds)
    with directory() as path, running("serve", path) as server:
        samples, drained_s, ok = soak(server, seconds)
    show(samples)
    found = drifts(samples)
    if drained_s > DRAIN_S_MAX:
        found.append(f"the outbox was not empty {DRAIN_S_MAX:g} s after the load")
    if not ok:
        found.append("verify found differences")
    for line in found:
        print(f"drift: {line}")
    if not found:
        print(f"no drift; the outbox was empty {drained_s:.1f} s after the load; verify: ok")
    sys.exit(bool(found))


def soak(server: Process, seconds: float) -> tuple[list[Sample], float, bool]:
    """Load *server*; return the samples, how long the outbox took to drain, and whether verify was content."""
    steps = authorize.steps(server.secrets)
    ended = threading.Event()
    sent = [0]
    failures: list[BaseException] = []
    feeder = threading.Thread(target=_feed, args=(server.port, ended, sent, failures))
    feeder.start()
    samples: list[Sample] = []
    started = time.perf_counter()
    try:
        for _ in range(INTERVALS):
            sent_before, began = sent[0], time.perf_counter()
            with _looking(server) as looks:
                run = load.run(server.port, steps, connections=CONNECTIONS, seconds=seconds / INTERVALS)
            took = time.perf_counter() - began
            samples.append(
                Sample(
                    time.perf_counter() - started,
                    *server.memory_mb(),
                    statistics.median_low(look.handles for look in looks),
                    max(look.handles for look in looks),
                    max(look.threads for look in looks),
                    _outbox(server.port),
                    run.rounds_per_s + (sent[0] - sent_before) / took,
                    run.rounds_per_s,
                    run.p50_ms,
                    run.p99_ms,
                    run.failures + len(failures),
                )
            )
    finally:
        ended.set()
        feeder.join()
    drained_s = _drain(server.port)
    verdict = Client(server.port).call("POST", "/tk/v1/verify")
    return samples, drained_s, bool(verdict["ok"])


def drifts(samples: list[Sample]) -> list[str]:
    """Return what went beyond its bound; nothing when all is well."""
    counted = samples[WARM:]
    first, last = counted[0], counted[-1]
    third = max(1, len(counted) // 3)
    early_ms = statistics.median(s.p99_ms for s in counted[:third])
    late_ms = statistics.median(s.p99_ms for s in counted[-third:])
    found = []
    if max(s.private_mb for s in samples) > PRIVATE_MB_MAX:
        found.append(f"private memory went beyond {PRIVATE_MB_MAX} MB")
    if last.private_mb - first.private_mb > PRIVATE_GROWTH_MB:
        found.append(f"private memory grew from {first.private_mb:.0f} to {last.private_mb:.0f} MB")
    if last.handles - first.handles > HANDLES_GROWTH:
        found.append(f"open handles grew from {first.handles} to {last.handles}")
    if (most := max(s.handles_max for s in samples)) > HANDLES_MAX:
        found.append(f"{most} handles were open at once")
    if (most := max(s.threads for s in samples)) > THREADS_MAX:
        found.append(f"there were {most} threads")
    for sample in counted:
        if sample.outbox > OUTBOX_S_MAX * sample.records_per_s:
            found.append(f"the outbox had {sample.outbox:,} records after {sample.at_s:.0f} s")
    if late_ms > P99_FACTOR * early_ms + P99_SLACK_MS:
        found.append(f"the p99 of a call grew from {early_ms:.1f} to {late_ms:.1f} ms")
    if failed := sum(s.failures for s in samples):
        found.append(f"{failed} calls failed")
    return found


def show(samples: list[Sample]) -> None:
    """Print a row per interval; those before the first that counts are marked."""
    table = Table(title=f"{CONNECTIONS} connections, {BATCH / BATCH_EVERY_S:,.0f} events/s beside them")
    names = (
        "s",
        "private MB",
        "file MB",
        "handles",
        "at most",
        "threads",
        "outbox",
        "pairs/s",
        "p50 ms",
        "p99 ms",
        "failed",
        "",
    )
    for name in names:
        table.add_column(name, justify="right")
    for index, s in enumerate(samples):
        table.add_row(
            f"{s.at_s:.0f}", f"{s.private_mb:.0f}", f"{s.file_backed_mb:.0f}", str(s.handles),
            str(s.handles_max), str(s.threads), f"{s.outbox:,}", f"{s.pairs_per_s:,.0f}",
            f"{s.p50_ms:.1f}", f"{s.p99_ms:.1f}", str(s.failures),
            "warming up" if index < WARM else "",
        )  # fmt: skip
    Console(width=120).print(table)


def _feed(port: int, ended: threading.Event, sent: list[int], failures: list[BaseException]) -> None:
    client = Client(port)
    at_ms = int(time.time() * 1000) - 86_400_000
    try:
        while not ended.wait(BATCH_EVERY_S):
            client.send(events(BATCH, start_ms=at_ms), BATCH)
            at_ms += BATCH
            sent[0] += BATCH
            client.call("GET", "/tk/v1/usage?account=acme&group_by=model")
    except BaseException as exc:
        failures.append(exc)
        print(f"events or usage: {exc!r}", file=sys.stderr)


def _drain(port: int) -> float:
    started = time.perf_counter()
    while _outbox(port) and time.perf_counter() - started <= DRAIN_S_MAX:
        time.sleep(0.1)
    return time.perf_counter() - started


@contextmanager
def _looking(server: Process) -> Iterator[list[Open]]:
    """Give a list that gets what is open every now and then until the block ends."""
    ended = threading.Event()
    seen: list[Open] = []

    def look() -> None:
        while not ended.wait(HANDLES_EVERY_S):
            seen.append(_look(Path(f"/proc/{server.process.pid}")))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()


def _look(process: Path) -> Open:
    return Open(*(sum(1 for _ in (process / kind).iterdir()) for kind in ("fd", "task")))


def _outbox(port: int) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {OPERATOR_KEY}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("tollkeeper_outbox_records "):
                return int(line.split()[1])
    raise RuntimeError("the metrics do not tell the outbox")


if __name__ == "__main__":
    main()
