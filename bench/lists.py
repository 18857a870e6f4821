"""
The two vendors' answers that need most of the usage store: AnyLayer's usage, CheapestInference's list of all keys.

`EVENTS` events (1 M by default) fill the 7 days until now, of 50 and then of 500 keys. One client asks in turn for
AnyLayer's answer by one statement and by single queries, which is the way without `combined.py`; then 8 clients ask
`tollkeeper serve` for each of the two. CheapestInference's 12 calls of a credential are asked with many credentials.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import clickhouse_connect

from bench import load
from bench.client import quantile
from bench.fixture import DECLARATION, directory
from bench.processes import tollkeeper
from bench.table import Figure
from bench.usage import draw
from tollkeeper import Tollkeeper, UsageQuery
from tollkeeper.adapters.clickhouse import combined
from tollkeeper.errors import Unavailable

EVENTS: Final = int(os.environ.get("EVENTS", "1000000"))
KEYS: Final = tuple(map(int, os.environ.get("KEYS", "50,500").split(",")))
WEEK_US: Final = 7 * 24 * 3_600_000_000
ANYLAYER: Final = "/anylayer/v1/developer/usage?timeframe=7d&granularity=hour"
LIST: Final = "/cheapestinference/api/usage"
CALLS_OF_MANAGER: Final = 12
ASKED: Final = int(os.environ.get("ASKED", "60"))
CLIENTS: Final = 8
SECONDS: Final = 5.0
OPENED_S_MAX: Final = 120
CALLS_PER_S_MAX: Final = 250
P50_MS: Final = {50: 20, 500: 60}
CALLS_PER_S: Final = 100
PROFILES: Final = "anylayer,cheapestinference"
SETTINGS: Final = json.dumps({"cheapestinference": {"list_limit_per": "credential"}})


def run() -> list[Figure]:
    return [figure for keys in KEYS for figure in _of_keys(keys)]


def _of_keys(keys: int) -> list[Figure]:
    with directory() as path:
        with Tollkeeper.open(str(path / "data"), profiles=PROFILES, profile_settings=SETTINGS) as toll:
            managers = -(-(2 * ASKED + int(CALLS_PER_S_MAX * SECONDS)) // CALLS_OF_MANAGER) + CLIENTS
            secrets = _set_up(toll, keys, managers)
            now_us = toll.installation.clock.now_us()
            # The store is opened beside the start: only then has it tables to draw into.
            every = UsageQuery(account_id="acme", from_us=0, to_us=now_us, measures=("requests",))
            _until_open(lambda: toll.usage(every))
            client = clickhouse_connect.get_client(dsn=f"chdb://{path}/data/usage")
            draw(client, 0, EVENTS, start_us=now_us - WEEK_US, span_us=WEEK_US // EVENTS, keys=keys)
            toll.installation.reports.invalidate_all()
            assert toll.usage(every).totals["requests"] == EVENTS
            figures = asyncio.run(_in_turn(toll, keys, secrets))
        return figures + _in_a_crowd(path, keys, secrets)


def _set_up(toll: Tollkeeper, keys: int, managers: int) -> dict[str, list[str]]:
    """Return the secrets to ask each vendor with: the list is asked with each of its secrets 12 times."""
    text = DECLARATION.partition("[[keys]]")[0]
    for index in range(keys):
        profile = "anylayer" if index == 0 else "native"
        text += f'[[keys]]\nid = "k{index}"\naccount = "acme"\nprofile = "{profile}"\n'
    for index in range(managers):
        text += f'[[keys]]\nid = "m{index}"\naccount = "acme"\nrole = "management"\n'
    issued = {key.entry.id: key.secret or "" for key in toll.apply(text).issued}
    lists = [issued[f"m{index}"] for index in range(managers) for _ in range(CALLS_OF_MANAGER)]
    return {ANYLAYER: [issued["k0"]] * 2, LIST: lists}


async def _in_turn(toll: Tollkeeper, keys: int, secrets: Mapping[str, list[str]]) -> list[Figure]:
    """Measure the answers of one client, in this process, and the CPU time that they take of all its threads."""
    app = toll.api()
    times: dict[str, list[float]] = {"one": [], "single": [], "list": []}
    cpu: dict[str, list[float]] = {"one": [], "single": [], "list": []}
    lists = iter(secrets[LIST])
    for number in range(ASKED + 2):
        one = await _time(app, ANYLAYER, secrets[ANYLAYER][0])
        with _single_queries():
            single = await _time(app, ANYLAYER, secrets[ANYLAYER][0])
        of_list = await _time(app, LIST, next(lists))
        if number >= 2:
            for name, (took, used) in {"one": one, "single": single, "list": of_list}.items():
                times[name].append(took)
                cpu[name].append(used)
    p50 = {name: quantile(sorted(found), 0.5) for name, found in times.items()}
    ms = {name: quantile(sorted(found), 0.5) for name, found in cpu.items()}
    # Not asked again by the servers' clients.
    del secrets[LIST][: ASKED + 2 + CALLS_OF_MANAGER]
    target, label = P50_MS.get(keys, 60), f"{keys} keys, {EVENTS / 1e6:g} M events: p50"
    return [
        Figure("lists", f"anylayer, {label}", p50["one"], "ms", p50["single"], "single queries",
               f"≤ {target} ms", p50["one"] <= target),
        Figure("lists", f"cheapestinference, {label}", p50["list"], "ms", None, "",
               f"≤ {target} ms", p50["list"] <= target),
        Figure("lists", f"anylayer, {label} of CPU time", ms["one"], "ms", ms["single"], "single queries"),
        Figure("lists", f"cheapestinference, {label} of CPU time", ms["list"], "ms"),
    ]  # fmt: skip


@contextmanager
def _single_queries() -> Iterator[None]:
    """Have every query asked by itself."""
    kept = combined.statement_of
    combined.statement_of = lambda *_: None  # type: ignore[assignment]
    try:
        yield
    finally:
        combined.statement_of = kept


async def _time(app: Any, target: str, secret: str) -> tuple[float, float]:
    """Return how long a good answer took, and the CPU time of this process meanwhile; ms."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"bench"), (b"x-api-key", secret.encode()),
                    (b"authorization", f"Bearer {secret}".encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    sent: list[Any] = []

    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if not requests:
            # The client stays.
            await asyncio.Event().wait()
        return requests.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    started, used = time.perf_counter(), time.process_time()
    await app(scope, receive, send)
    took, used = (time.perf_counter() - started) * 1e3, (time.process_time() - used) * 1e3
    if sent[0]["status"] != 200:
        raise RuntimeError(f"{target}: {sent[0]['status']} {sent[1]['body'][:300]!r}")
    return took, used


def _in_a_crowd(path: Path, keys: int, secrets: Mapping[str, list[str]]) -> list[Figure]:
    figures = []
    with tollkeeper(path, "--profiles", PROFILES, "--profile-settings", SETTINGS) as server:
        for name, target in (("anylayer", ANYLAYER), ("cheapestinference", LIST)):
            # The server opens its usage store beside its start.
            secret = secrets[target].pop()
            _until_open(partial(_ask, server.port, target, secret))
            steps = [_step(target, secrets[target])]
            found = load.run(server.port, steps, connections=CLIENTS, seconds=SECONDS)
            assert not found.failures, found
            what = f"{name}, {keys} keys, {EVENTS / 1e6:g} M events, {CLIENTS} clients"
            reached = found.steps_per_s >= CALLS_PER_S
            figures.append(
                Figure("lists", f"{what}: calls/s", found.steps_per_s, "/s", None, "", "≥ 100 /s", reached)
            )
            figures.append(Figure("lists", f"{what}: p50", found.p50_ms, "ms"))
    return figures


def _ask(port: int, target: str, secret: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", target, headers={"X-API-Key": secret, "Authorization": f"Bearer {secret}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise Unavailable(f"{target}: {answer.status} {body[:300]!r}")


def _until_open(work: Callable[[], object]) -> None:
    """Do *work*, again while the usage store opens."""
    until = time.monotonic() + OPENED_S_MAX
    while True:
        try:
            work()
            return
        except Unavailable:
            if time.monotonic() >= until:
                raise


def _step(target: str, secrets: list[str]) -> Callable[[int, bytes], bytes]:
    """Ask with the next secret each time; with the same one if there is but one."""
    following = iter(secrets) if len(secrets) > 1 else None

    def made(number: int, answer: bytes) -> bytes:
        secret = secrets[0] if following is None else next(following)
        return load.request("GET", target, X_API_Key=secret, Authorization=f"Bearer {secret}")

    return made
