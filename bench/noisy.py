"""
One customer at its worst: what do the others notice?

    python -m bench noisy --seconds 5 --rounds 2

Each attack of `ATTACKS` runs from a process of its own against a real `tollkeeper serve`, for a bounded time. Beside it
one connection of another account authorizes, settles and asks for its usage. Quiet phases and phases under attack take
turns, so that what else the machine does is in both. It prints a table, and exits with 1 when a call got no answer, or
when the p99 of a call went beyond the bound below.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.client import Client, quantile
from bench.fixture import directory, dumps
from bench.processes import Process, tollkeeper
from bench.table import machine
from tollkeeper.domain.keys import hash_secret

P99_FACTOR: Final = 2.0
"""The p99 under attack may be twice the quiet one."""
ANSWER_S_MAX: Final = 10.0
"""A call that waits longer is unanswered. Its connection is made again."""
WARM_S: Final = 1.0
"""From the start of an attack, or its end, until calls count."""
PAUSE_S: Final = 0.004
"""Between the calls: the other account is no load itself."""
USAGE_EVERY: Final = 10
"""Pairs for each usage query."""
EVENTS: Final = 200_000
"""Of the noisy account, before the first attack: its heavy queries have something to read."""
BATCH: Final = 20_000
ROWS_MAX: Final = 50_000
"""The most rows that a usage query may ask for; one that asks for more is refused at once."""
PAIRS_MIN: Final = 100
"""Of a phase, which lasts up to `LONGER` times as long for them: of fewer the p99 is the slowest."""
LONGER: Final = 4
CALLS: Final = ("authorize", "settle", "usage")

NOISY: Final = "tk_0123456789abcdefghijNoisyKey0001"
MANAGES: Final = "mk_0123456789abcdefghijNoisyKey0002"
OTHER: Final = "tk_0123456789abcdefghijOtherKey0003"

DECLARATION: Final = f"""
[[routes]]
id = "any"
method = "*"
path = "/*"
[[plans]]
slug = "shared"
budgets = [{{ name = "month", amount = 1000000000000000, unit = "nanos", period = "month", per = "account" }}]
[[accounts]]
id = "noisy"
name = "Noisy"
plan = "shared"
[[accounts]]
id = "other"
name = "Other"
plan = "shared"
[[keys]]
id = "noisy"
account = "noisy"
sha256 = "{hash_secret(NOISY)}"
[[keys]]
id = "noisy-manages"
account = "noisy"
role = "management"
sha256 = "{hash_secret(MANAGES)}"
[[keys]]
id = "other"
account = "other"
sha256 = "{hash_secret(OTHER)}"
"""

CommitTask = Callable[[int, int], None]
"""One step of an attack, from the port and a number that grows."""


# -- the attacks ------------------------------------------------------------------------------------------


def _call(
    port: int, method: str, path: str, body: bytes = b"", *, credential: str = MANAGES, **headers: str
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {"Authorization": f"Bearer {credential}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, given)
        connection.getresponse().read()
    finally:
        connection.close()


def _events(port: int, body: bytes) -> None:
    _call(port, "POST", "/tk/v1/events", gzip.compress(body, 1), Content_Type="application/x-ndjson",
          Content_Encoding="gzip")  # fmt: skip


def heavy_query(port: int, index: int) -> None:
    query = "group_by=tag.a,tag.b,model,route&granularity=minute&measures=requests,cost_nanos,latency_ms_p95"
    _call(port, "GET", f"/tk/v1/usage?{query}&offset={index % 97}", credential=NOISY)


def huge_group_by(port: int, index: int) -> None:
    groups = "key,project,route,model,status,tag.a,tag.b,method"
    _call(
        port, "GET", f"/tk/v1/usage?group_by={groups}&limit={ROWS_MAX}&offset={index % 97}", credential=NOISY
    )


def refused_queries(port: int, index: int) -> None:
    _call(port, "GET", f"/tk/v1/usage?group_by=model&limit={ROWS_MAX + 1}", credential=NOISY)


def new_keys(port: int, index: int) -> None:
    _call(port, "POST", "/tk/v1/keys", b"{}")


def new_projects_and_budgets(port: int, index: int) -> None:
    _call(port, "POST", "/tk/v1/projects", dumps({"id": f"p{time.time_ns()}", "name": "p"}))
    _call(port, "POST", "/tk/v1/budgets", dumps({"id": f"b{time.time_ns()}", "amount": 1, "period": "total"}))


def malformed_gzip(port: int, index: int) -> None:
    _events(port, b"1\n" * 2_000_000)


def million_lines(port: int, index: int) -> None:
    _events(port, b"{}\n" * 1_000_000)


def distinct_values(port: int, index: int) -> None:
    _events(port, _noisy_events(f"d{time.time_ns()}", 5_000, distinct=True))


def bad_credentials(port: int, index: int) -> None:
    _call(port, "GET", "/tk/v1/usage", credential=f"tk_made_up_{index}")


def silent_connections(port: int, index: int) -> None:
    with _connections(port, 300):
        time.sleep(2)


def slow_bodies(port: int, index: int) -> None:
    head = f"POST /tk/v1/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {MANAGES}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 9000\r\n\r\n"
    with _connections(port, 100) as opened:
        for connection in opened:
            connection.sendall(head.encode())
        for _ in range(4):
            for connection in opened:
                connection.sendall(b" ")
            time.sleep(0.5)


def deep_json(port: int, index: int) -> None:
    depth = 200_000
    _call(port, "POST", "/tk/v1/events", b"[" * depth + b"]" * depth)
    _call(port, "POST", "/tk/v1/keys", b'{"metadata":' * 5_000 + b"1" + b"}" * 5_000)


def deep_toml(port: int, index: int) -> None:
    _call(port, "POST", "/tk/v1/apply", b"a" + b".a" * 30_000 + b" = 1\n", Content_Type="application/toml")


def endless_exports(port: int, index: int) -> None:
    """Ask for everything as CSV, and read none of it."""
    query = f"group_by=tag.a,tag.b&granularity=minute&limit={ROWS_MAX}&format=csv"
    head = f"GET /tk/v1/usage?{query} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {NOISY}\r\n\r\n"
    with _connections(port, 20) as opened:
        for connection in opened:
            connection.sendall(head.encode())
        time.sleep(2)


class Attack(NamedTuple):
    """What is done, by how many callers at once."""

    work: CommitTask
    callers: int = 1


ATTACKS: Final[dict[str, Attack]] = {
    "4 heavy usage queries at once": Attack(heavy_query, 4),
    "usage by 8 groups": Attack(huge_group_by, 2),
    "refused queries in a loop": Attack(refused_queries, 2),
    "new keys in a loop": Attack(new_keys),
    "new projects and budgets": Attack(new_projects_and_budgets),
    "gzip of 2 M malformed lines": Attack(malformed_gzip, 2),
    "1 M lines a batch": Attack(million_lines),
    "distinct values": Attack(distinct_values),
    "failing credentials": Attack(bad_credentials),
    "300 silent connections": Attack(silent_connections),
    "100 slow bodies": Attack(slow_bodies),
    "deep JSON": Attack(deep_json),
    "deep TOML": Attack(deep_toml),
    "exports that nobody reads": Attack(endless_exports),
}


@contextmanager
def _connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def _noisy_events(prefix: str, count: int, *, distinct: bool) -> bytes:
    lines = []
    for index in range(count):
        name = f"{prefix}-{index}" if distinct else str(index % 500)
        lines.append(
            f'{{"id":"{prefix}-{index}","time":"2025-01-{index % 28 + 1:02}T{index % 24:02}:{index % 60:02}:00Z",'
            f'"key_id":"noisy","route":"/r/{name}","model":"m-{name}","latency_ms":{index % 900},"cost_nanos":1,'
            f'"tags":{{"a":"{name}","b":"{index % 1000}"}}}}'
        )
    return "\n".join(lines).encode()


def attack(name: str, port: int) -> None:
    """Repeat one attack until stdin ends, which it does with the process that started this one."""
    given = ATTACKS[name]

    def repeat() -> None:
        for index in itertools.count():
            try:
                given.work(port, index)
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)  # Refused or cut off, as may be: again.

    for _ in range(given.callers):
        threading.Thread(target=repeat, daemon=True).start()
    sys.stdin.buffer.read()


# -- what the others notice -------------------------------------------------------------------------------


class Other:
    """The other account's gateway, on one connection. Failed and unanswered calls are counted, not raised."""

    def __init__(self, port: int) -> None:
        self._client = Client(port)
        self._port = port
        self.times_ms: dict[str, list[float]] = {name: [] for name in CALLS}
        self.unanswered = 0
        self.refused = 0

    def run(self, seconds: float) -> None:
        """Call for *seconds*, or longer until there are `PAIRS_MIN`."""
        began = time.monotonic()
        for index in itertools.count():
            took = time.monotonic() - began
            if took > seconds and (index >= PAIRS_MIN or took > LONGER * seconds):
                return
            body = {"key": OTHER, "method": "POST", "path": "/v1/chat", "cost_nanos": 1500}
            held = self._timed("authorize", "POST", "/tk/v1/authorize", dumps(body))
            if held is not None:
                ending = {"hold_id": held["hold_id"], "cost_nanos": 1200}
                self._timed("settle", "POST", "/tk/v1/settle", dumps(ending))
            if index % USAGE_EVERY == 0:
                self._timed("usage", "GET", "/tk/v1/usage?account=other&group_by=model", b"")
            time.sleep(PAUSE_S)

    def _timed(self, name: str, method: str, path: str, body: bytes) -> Any:
        """Return the answer of one call; None without one that is good."""
        started = time.perf_counter()
        try:
            status, content = self._client.once(method, path, body, ANSWER_S_MAX)
        except (OSError, http.client.HTTPException):
            self.unanswered += 1
            return None
        self.times_ms[name].append((time.perf_counter() - started) * 1e3)
        if status >= 300:
            self.refused += 1
            return None
        return json.loads(content)


class Result(NamedTuple):
    """One attack: what the other account's calls took in ms, quiet and meanwhile, and how many got no good answer."""

    attack: str
    quiet: dict[str, list[float]]
    meanwhile: dict[str, list[float]]
    unanswered: int
    refused: int


def measure(server: Process, name: str, *, seconds: float, rounds: int) -> Result:
    """Return what the other account notices of one attack, in *rounds* turns of a quiet phase and one under attack."""
    quiet, meanwhile = Other(server.port), Other(server.port)
    for _ in range(rounds):
        time.sleep(WARM_S)
        quiet.run(seconds)
        with _attacking(name, server.port):
            time.sleep(WARM_S)
            meanwhile.run(seconds)
    return Result(
        name,
        {call: sorted(times) for call, times in quiet.times_ms.items()},
        {call: sorted(times) for call, times in meanwhile.times_ms.items()},
        quiet.unanswered + meanwhile.unanswered,
        quiet.refused + meanwhile.refused,
    )


def beyond(result: Result) -> list[str]:
    """Return what went beyond its bound; nothing when all is well."""
    found = []
    if result.unanswered:
        found.append(f"{result.attack}: {result.unanswered} calls got no answer within {ANSWER_S_MAX:g} s")
    if result.refused:
        found.append(f"{result.attack}: {result.refused} calls were refused")
    for call in CALLS:
        before, then = result.quiet[call], result.meanwhile[call]
        if not before or not then:
            found.append(f"{result.attack}: no {call} was answered")
            continue
        most = P99_FACTOR * quantile(before, 0.99)
        if quantile(then, 0.99) > most:
            found.append(
                f"{result.attack}: the p99 of {call} was {quantile(then, 0.99):.1f} ms, of {most:.1f}"
            )
    return found


def show(results: list[Result]) -> None:
    """Print a row for each attack and call."""
    table = Table(title=machine())
    names = ("attack", "call", "p50 ms", "meanwhile", "p99 ms", "meanwhile", "ratio", "unanswered", "refused")
    for name in names:
        table.add_column(name, justify="left" if name in ("attack", "call") else "right")
    for result in results:
        for call in CALLS:
            before, then = result.quiet[call], result.meanwhile[call]
            first = call == CALLS[0]
            cells = ["–"] * 5
            if before and then:
                p99, p99_then = quantile(before, 0.99), quantile(then, 0.99)
                values = (quantile(before, 0.5), quantile(then, 0.5), p99, p99_then)
                cells = [f"{value:.1f}" for value in values] + [f"{p99_then / p99:.1f}"]
            ends = [str(result.unanswered), str(result.refused)] if first else ["", ""]
            table.add_row(result.attack if first else "", call, *cells, *ends)
    Console(width=140).print(table)


@contextmanager
def _attacking(name: str, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.noisy", "--attack", name, "--port", str(port)], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench noisy", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase (default 5)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="quiet and noisy phases of each attack (default 2)"
    )
    parser.add_argument("--only", choices=ATTACKS, help="one attack alone")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.attack:
        attack(given.attack, given.port)
        return
    results = []
    for name in [given.only] if given.only else ATTACKS:
        print(f"… {name}", file=sys.stderr, flush=True)
        # Each on an installation of its own: what one attack leaves behind is no burden of the next.
        with directory() as path, tollkeeper(path, "--log-level", "error") as server:
            _set_up(server)
            results.append(measure(server, name, seconds=given.seconds, rounds=given.rounds))
    show(results)
    found = [line for result in results for line in beyond(result)]
    for line in found:
        print(f"beyond its bound: {line}")
    if not found:
        print(f"all answered; every p99 within {P99_FACTOR:g} × the quiet one")
    sys.exit(bool(found))


def _set_up(server: Process) -> None:
    client = Client(server.port)
    client.call("POST", "/tk/v1/apply", DECLARATION.encode(), "application/toml")
    for begun in range(0, EVENTS, BATCH):
        client.send(_noisy_events(f"s{begun}", BATCH, distinct=False), BATCH)
    # By then the usage store has them all, and the caches are warm: neither is of the first quiet phase.
    client.call("POST", "/tk/v1/verify")
    Other(server.port).run(WARM_S)


if __name__ == "__main__":
    main(sys.argv[1:])
