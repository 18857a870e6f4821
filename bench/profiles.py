"""
Each profile's usage endpoint over HTTP, at 1 M and 10 M events, beside the native answer of the same range.

The events are those of `bench.usage`, ending now: what the profiles read of them is the same data. The limits of
the usage endpoints do not stop the measurement: RegSn's is lifted by its setting, CheapestInference's list of
keys (12 per 12 hours) is asked with many management keys under `list_limit_per = "credential"`, and the plan of
the keys allows a thousand million requests.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from bench.fixture import DECLARATION, KEYS, OPERATOR_KEY, directory, fill
from bench.processes import tollkeeper
from bench.table import Figure
from tollkeeper import Tollkeeper

SPAN_MS = 60
"""As `bench.usage`: 10 M events cover a week."""
ASKED = 200
WARMED = 4
LISTS_PER_MANAGER = 12
PROFILES = ("regpilot", "shoal", "regsn", "anylayer", "cheapestinference")
"""The first keys have a profile each; every key is of one project, so that RegPilot reads all events."""
SETTINGS = {"regsn": {"reads_per_minute": 10**9}, "cheapestinference": {"list_limit_per": "credential"}}
MANAGERS = "managers"
ANSWER_S_MAX = 600
DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Asked(NamedTuple):
    """
    One endpoint and its native counterpart.

    Attributes:
        key: Whose secret to ask with: a key's, or those of the managers in turn.
        native: Parameters of `GET /tk/v1/usage` that say the same, `from` and `to` included.
    """

    what: str
    path: str
    key: str
    native: dict[str, str]


def run(sizes: tuple[int, ...] = (1_000_000, 10_000_000)) -> list[Figure]:
    figures: list[Figure] = []
    start_ms = int(time.time() * 1000) - sizes[-1] * SPAN_MS
    managers = -(-len(sizes) * (ASKED + WARMED) // LISTS_PER_MANAGER)
    secrets: dict[str, Iterator[str]] = {}
    done = 0
    with directory() as path:
        for size in sizes:
            # Made in this process, which is quicker, and served by one of its own.
            with Tollkeeper.open(str(path / "data")) as toll:
                secrets = secrets or _set_up(toll, managers)
                done = fill(toll, done, size, start_ms=start_ms, span_ms=SPAN_MS)
            figures += _measure(path, size, secrets)
    return figures


def _set_up(toll: Tollkeeper, managers: int) -> dict[str, Iterator[str]]:
    """Apply the declaration of `bench.fixture` with profiles; return what to ask with, by key id."""
    text = DECLARATION.partition("[[keys]]")[0] + '[[projects]]\nid = "web"\naccount = "acme"\n'
    for index in range(KEYS):
        profile = PROFILES[index] if index < len(PROFILES) else "native"
        text += f'[[keys]]\nid = "k{index}"\naccount = "acme"\nproject = "web"\nprofile = "{profile}"\n'
    for index in range(managers):
        text += f'[[keys]]\nid = "{MANAGERS}{index}"\naccount = "acme"\nrole = "management"\n'
    secrets = {issued.entry.id: issued.secret or "" for issued in toll.apply(text).issued}
    lists = [secrets[f"{MANAGERS}{index}"] for index in range(managers) for _ in range(LISTS_PER_MANAGER)]
    return {**{id_: repeat(secret) for id_, secret in secrets.items()}, MANAGERS: iter(lists)}


def _questions(now: datetime) -> list[Asked]:
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    week_ago, month_ago, tomorrow = now - 7 * DAY, now - 30 * DAY, today + DAY
    days = urlencode({"from": month_ago.isoformat(), "to": now.isoformat(), "group_by": "day"})
    return [
        Asked(
            "regpilot: a project's month by model",
            "/regpilot/api/usage?projectId=web&period=month",
            "k0",
            {"project": "web", "group_by": "model", **_range(month, tomorrow)}
            | {"measures": "requests,tokens,cost_nanos,cache_hits,cache_misses"},
        ),
        Asked(
            "shoal: a key's day, week and month",
            "/shoal/v1/usage",
            "k1",
            {"key": "k1", "measures": "requests", **_range(month, tomorrow)},
        ),
        Asked(
            "regsn: an account's 30 days by day",
            f"/regsn/v1/usage?{days}",
            "k2",
            {"measures": "requests,cost_nanos,kinds", "granularity": "day", **_range(month_ago, now)},
        ),
        Asked(
            "anylayer: an account's 7 days by the hour, with breakdown and errors",
            "/anylayer/v1/developer/usage?timeframe=7d&granularity=hour",
            "k3",
            {"measures": "requests,errors,latency_ms_avg,latency_ms_max,bytes_out", "granularity": "hour"}
            | _range(week_ago, now),
        ),
        Asked(
            "cheapestinference: the calling key",
            "/cheapestinference/v1/usage",
            "k4",
            {"key": "k4", "measures": "requests,cost_nanos", **_range(month_ago, now)},
        ),
        Asked(
            "cheapestinference: all keys, four windows",
            "/cheapestinference/api/usage",
            MANAGERS,
            {"group_by": "key", "measures": "requests,tokens", **_range(month_ago, now)},
        ),
    ]


def _range(start: datetime, end: datetime) -> dict[str, str]:
    return {"from": start.isoformat(), "to": end.isoformat()}


def _measure(path: Path, size: int, secrets: dict[str, Iterator[str]]) -> list[Figure]:
    figures = []
    operator = repeat(OPERATOR_KEY)
    options = ("--profiles", ",".join(PROFILES), "--profile-settings", json.dumps(SETTINGS))
    with tollkeeper(path, *options) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_S_MAX)
        everything = {"key": [f"k{index}" for index in range(KEYS)], "measures": "requests"}
        found = _ask(connection, _native(everything | _range(EPOCH, datetime.now(UTC) + DAY)), OPERATOR_KEY)
        assert found["totals"]["requests"] >= size, found["totals"]
        for what, vendor, key, native in _questions(datetime.now(UTC)):
            ours = _times(connection, vendor, secrets[key])
            same = _times(connection, _native(native), operator)
            for name, at in (("p50", 50), ("p99", 99)):
                value, base = (times[len(times) * at // 100] for times in (ours, same))
                label = f"{what}, {size / 1e6:g} M events: {name}"
                figures.append(Figure("profiles", label, value, "ms", base, "native answer"))
        connection.close()
    return figures


def _native(params: Mapping[str, Any]) -> str:
    return "/tk/v1/usage?" + urlencode({"account": "acme", **params}, doseq=True)


def _times(connection: http.client.HTTPConnection, path: str, secrets: Iterator[str]) -> list[float]:
    """Return how long each answer took, in ms, shortest first."""
    for _ in range(WARMED):
        _ask(connection, path, next(secrets))
    times = []
    for _ in range(ASKED):
        secret = next(secrets)
        started = time.perf_counter()
        _ask(connection, path, secret)
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)


def _ask(connection: http.client.HTTPConnection, path: str, secret: str) -> Any:
    """Return the JSON of a good answer."""
    connection.request("GET", path, headers={"X-API-Key": secret, "Authorization": f"Bearer {secret}"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {body[:300]!r}")
    return json.loads(body)
