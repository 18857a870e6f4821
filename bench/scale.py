"""
Growth: what ingest, usage answers, verify, memory and disk cost at 1 M, 10 M, 100 M events.

`python -m bench scale --events 10000000` fills one `tollkeeper serve` over HTTP step by step, and writes
`docs/growth.md` and `docs/growth.svg`. Events come one every `SPAN_MS`, in order of time, as a service would send
them. They are drawn a million at a time while the server has nothing to do, so drawing takes no time from it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import subprocess
import sys
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench import traces
from bench.client import Client, quantile, timed_ms
from bench.fixture import directory
from bench.processes import tollkeeper
from bench.table import machine

STEPS = (1_000_000, 10_000_000, 100_000_000)
BATCH = 50_000
BURST = 1_000_000
SPAN_MS = 26
"""One event every 26 ms: 100 M events are 30 days."""
BUSY_EVENTS_MAX = 2_000_000
"""How many more come in, as fast as they are taken, while questions are asked."""
ASKED = 200
PAUSE_S = 0.01
"""Between two questions while events come in."""
PATIENCE_S = 600.0
ACCOUNT = "a0"
"""The biggest: a third of all events."""
DAY_MS = 86_400_000

QUESTIONS = {
    "all by model": "group_by=model&measures=requests,cost_nanos,tokens",
    "last 24 h by hour, p95": "granularity=hour&measures=requests,cost_nanos,tokens,latency_ms_p95&from={day}",
}

DISK = """
import sys, clickhouse_connect
client = clickhouse_connect.get_client(dsn=f"chdb://{sys.argv[1]}/usage")
sql = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
print(client.query(sql).result_rows[0][0])
"""


class Latency(NamedTuple):
    """What one question took, in ms."""

    p50: float
    p99: float


class Step(NamedTuple):
    """
    What one size costs.

    Attributes:
        acknowledged: Events/s decoded, priced, deduplicated and durable, in bursts of `BURST`.
        queryable: Events/s until a usage answer has them all.
        fresh: By question: each answer has an event in it that came just before.
        again: By question: nothing has changed since the last answer.
        busy: By question: while more events come in as fast as they are taken.
        disk: Bytes per event: the usage store with its rollups and id index, and the ledger.
    """

    events: int
    acknowledged: float
    queryable: float
    fresh: dict[str, Latency]
    again: dict[str, Latency]
    busy: dict[str, Latency]
    verify_s: float
    private_mb: float
    file_backed_mb: float
    resident_mb_max: float
    disk: float


class Source:
    """Draws what comes next, and counts it."""

    def __init__(self, start_ms: int) -> None:
        self.trace = traces.Trace()
        self.at_ms = start_ms
        self.count = 0

    def batches(self, count: int) -> list[tuple[int, bytes]]:
        """Return the next *count* events in batches of `BATCH`, each with its size."""
        return [self._next(min(BATCH, count - begun), span_ms=SPAN_MS) for begun in range(0, count, BATCH)]

    def one(self) -> tuple[int, bytes]:
        """Return one event of `ACCOUNT`."""
        body = self.trace.one("k0", at_ms=self.at_ms)
        self.at_ms += 1
        self.count += 1
        return 1, body

    def _next(self, count: int, *, span_ms: int) -> tuple[int, bytes]:
        body = self.trace.batch(count, start_ms=self.at_ms, span_ms=span_ms)
        self.at_ms += count * span_ms
        self.count += count
        return count, body


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench scale")
    parser.add_argument("--events", type=int, default=10_000_000, help="how far to go; 10,000,000 by default")
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="directory of the table and the picture"
    )
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("matplotlib") is None:  # Said before the work, not after it.
        sys.exit("the picture needs matplotlib: pip install '.[peers]'")
    # More comes in at each step than its size says, by half at most: the next is twice as big or more.
    sizes = [size for size in STEPS if 2 * size <= given.events] + [given.events]
    started = time.monotonic()
    with directory() as path:
        # The last event, those of the busy phases included, is past when it is sent.
        span = (sizes[-1] + len(sizes) * (BUSY_EVENTS_MAX + 10 * ASKED)) * SPAN_MS
        source = Source(int(time.time() * 1000) - span)
        steps = []
        for size in sizes:
            steps.append(_step(path, source, size))
            print(json.dumps(steps[-1]._asdict()), file=sys.stderr, flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    page = _page(steps, time.monotonic() - started)
    (given.out / "growth.md").write_text(page)
    _picture(steps, given.out / "growth.svg")
    print(page)


def _step(path: Path, source: Source, size: int) -> Step:
    """Grow to *size* events and measure; the server of a step is stopped in the end, so that disk is settled."""
    with tollkeeper(path) as server:
        client = Client(server.port)
        client.call("POST", "/tk/v1/apply", traces.DECLARATION.encode(), "application/toml")
        first, sent_s, drained_s = source.count, 0.0, 0.0
        while source.count < size:
            bodies = source.batches(min(BURST, size - source.count))
            sent_s += sum(client.send(body, count) for count, body in bodies)
            drained_s += _check_total(client, source.count)
        grown = source.count - first
        day = datetime.fromtimestamp((source.at_ms - DAY_MS) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        paths = {
            name: f"/tk/v1/usage?account={ACCOUNT}&" + question.format(day=day)
            for name, question in QUESTIONS.items()
        }
        fresh, again = {}, {}
        for name, asked in paths.items():

            def ask(asked: str = asked) -> object:
                return client.call("GET", asked)

            def new_event() -> None:
                count, body = source.one()
                client.send(body, count)

            fresh[name] = _latency(timed_ms(ask, ASKED, new_event))
            again[name] = _latency(timed_ms(ask, ASKED))
        began = time.perf_counter()
        verdict = client.call("POST", "/tk/v1/verify")
        verify_s = time.perf_counter() - began
        if not verdict["ok"]:
            raise RuntimeError(f"verify found {verdict}")
        busy = _busy(client, server.port, source, min(BUSY_EVENTS_MAX, size // 2), paths)
        _check_total(client, source.count)
        private_mb, file_backed_mb = server.memory_mb()
        resident_mb_max = server.resident_mb_max()
        client.close()
    return Step(
        events=size,
        acknowledged=grown / sent_s,
        queryable=grown / (sent_s + drained_s),
        fresh=fresh,
        again=again,
        busy=busy,
        verify_s=verify_s,
        private_mb=private_mb,
        file_backed_mb=file_backed_mb,
        resident_mb_max=resident_mb_max,
        disk=disk_bytes(path / "data") / source.count,
    )


def _busy(client: Client, port: int, source: Source, more: int, paths: dict[str, str]) -> dict[str, Latency]:
    """Send *more* events while a process of its own asks, and return what its questions took."""
    bodies = source.batches(more)
    here, there = multiprocessing.Pipe()
    asker = multiprocessing.get_context("fork").Process(target=_ask_until_told, args=(there, port, paths))
    asker.start()
    for count, body in bodies:
        client.send(body, count)
    here.send("enough")
    if not here.poll(PATIENCE_S):
        asker.kill()
        raise RuntimeError(f"no usage answer within {PATIENCE_S:.0f} s")
    times: dict[str, list[float]] = here.recv()
    asker.join()
    return {name: _latency(sorted(values)) for name, values in times.items()}


def _ask_until_told(pipe: Connection, port: int, paths: dict[str, str]) -> None:
    client = Client(port)
    times: dict[str, list[float]] = {name: [] for name in paths}
    for name, path in itertools.cycle(paths.items()):
        if pipe.poll(PAUSE_S) and all(times.values()):
            break
        times[name] += timed_ms(lambda path=path: client.call("GET", path), 1)
    pipe.send(times)


def _check_total(client: Client, count: int) -> float:
    """Ask for the number of all events, which waits for them; return the seconds that this took."""
    started = time.perf_counter()
    found = client.call("GET", "/tk/v1/usage?measures=requests")
    took = time.perf_counter() - started
    if int(found["totals"]["requests"]) != count or not found["complete"]:
        raise RuntimeError(f"{count} events were sent; the answer is {found}")
    return took


def disk_bytes(data: Path) -> int:
    """Return the bytes that the installation in *data*, which no process has open, needs on disk."""
    asked = subprocess.run(
        [sys.executable, "-c", DISK, str(data)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    # What merges have replaced stays on disk for some minutes and is not counted.
    ledger = sum(file.stat().st_size for file in data.iterdir() if file.is_file())
    return int(asked.stdout) + ledger


def _latency(times: list[float]) -> Latency:
    return Latency(quantile(times, 0.5), quantile(times, 0.99))


def _page(steps: list[Step], took_s: float) -> str:
    rows: list[tuple[str, list[str]]] = [
        ("ingest, acknowledged as durable, events/s", [f"{step.acknowledged:,.0f}" for step in steps]),
        ("ingest, until a usage answer has them, events/s", [f"{step.queryable:,.0f}" for step in steps]),
    ]
    for kind, what in (
        ("fresh", "after a new event"),
        ("again", "nothing new"),
        ("busy", "while events come in"),
    ):
        for name in QUESTIONS:
            values: list[Latency] = [getattr(step, kind)[name] for step in steps]
            rows.append(
                (f"usage, {name}, {what}: p50 / p99", [f"{v.p50:.1f} / {v.p99:.1f} ms" for v in values])
            )
    rows += [
        ("`verify`", [f"{step.verify_s:.1f} s" for step in steps]),
        (
            "memory, private / file-backed / both at most",
            [
                f"{step.private_mb:,.0f} / {step.file_backed_mb:,.0f} / {step.resident_mb_max:,.0f} MB"
                for step in steps
            ],
        ),
        ("disk, bytes per event", [f"{step.disk:.1f}" for step in steps]),
    ]
    head = "".join(f" {_millions(step.events)} |" for step in steps)
    table = "\n".join(f"| {name} |" + "".join(f" {cell} |" for cell in cells) for name, cells in rows)
    return f"""# Growth

`make scale EVENTS={steps[-1].events}` fills one `tollkeeper serve` over HTTP and measures at each size.
This run: {machine()}; SQLite with `synchronous=FULL`, chDB; {took_s / 60:.0f} minutes. The client shares the machine.

| at | {head.strip()}
|---|{"---:|" * len(steps)}
{table}

![Growth](growth.svg)

* The events are drawn with the cardinality of real traces: {traces.ACCOUNTS} accounts with a key and a budget
  each, the biggest with a third of all events, {traces.ROUTES} routes, {len(set(traces.MODELS))} models,
  {len(traces.STATUS_WEIGHTS)} statuses, one event every {SPAN_MS} ms, so 100 M are 30 days. Ids are UUIDv7.
  Batches of {BATCH:,}, {BURST // 1_000_000} M in a row, one caller.
* All queries are about the biggest account, {ASKED} of each kind; a new event belongs to it. "All by model" covers
  all events, so it has more hours to sum at each size. "While events come in" queries while up to
  {BUSY_EVENTS_MAX // 1_000_000} M more events are sent at full speed, a third of them of that account: each
  answer waits for the batches of {BATCH:,} that were acknowledged before it.
* Memory is that of the server after the step, and its maximum so far: private (anonymous) pages, file-backed pages, and
  both together. Disk is the active parts of the usage store with its rollups and id index, as far as they were merged,
  and the ledger.
"""


def _picture(steps: list[Step], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "growth",
            "svg.fonttype": "none",
            "font.size": 8,
            "axes.grid": True,
            "grid.alpha": 0.3,
        }
    )
    from matplotlib import pyplot

    events = [step.events for step in steps]
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.2), layout="constrained")
    first, second = QUESTIONS
    panels = (
        ("Ingest, events/s", [("acknowledged", [s.acknowledged for s in steps]),
                              ("in a usage answer", [s.queryable for s in steps])]),
        (f"Usage, {first}: ms", _curves(steps, first)),
        (f"Usage, {second}: ms", _curves(steps, second)),
        ("verify, s", [("", [s.verify_s for s in steps])]),
        ("Memory, MB", [("private", [s.private_mb for s in steps]), ("file-backed", [s.file_backed_mb for s in steps]),
                        ("both at most", [s.resident_mb_max for s in steps])]),
        ("Disk, bytes per event", [("", [s.disk for s in steps])]),
    )  # fmt: skip
    for axis, (title, curves) in zip(axes.flat, panels, strict=True):
        for name, values in curves:
            axis.plot(events, values, marker="o", label=name)
        axis.set_title(title)
        axis.set_xscale("log")
        axis.set_xticks(events, [_millions(count) for count in events], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_ylim(bottom=0)
        if len(curves) > 1:
            axis.legend()
    figure.suptitle(machine())
    figure.savefig(path, metadata={"Date": None})


def _curves(steps: list[Step], name: str) -> list[tuple[str, list[float]]]:
    return [
        ("fresh, p50", [s.fresh[name].p50 for s in steps]),
        ("fresh, p99", [s.fresh[name].p99 for s in steps]),
        ("busy, p50", [s.busy[name].p50 for s in steps]),
        ("busy, p99", [s.busy[name].p99 for s in steps]),
    ]


def _millions(count: int) -> str:
    return f"{count / 1e6:g} M"
