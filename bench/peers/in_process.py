"""One decision in process: the `limits` package with its memory storage, beside our gate."""

from __future__ import annotations

import time
from collections.abc import Callable

from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bench.fixture import directory, set_up
from bench.peers.comparison import Comparison, Found, Scale
from tollkeeper import Admission, Denial, Tollkeeper

TITLE = "A decision in process"
PACKAGES = ("limits",)
SECONDS_MAX = 180
SETTINGS = """
* Both in one thread of one process, in turn, so that they see the same machine. `limits`: `MemoryStorage`,
  limits of 10⁶ per minute and hour, one key.
* Ours: the key looked up by its hash, a limit per minute (fixed window) and one per hour (sliding), a budget,
  the route's price held; `settle` books what was used. "Everything included" is the time of all calls until the
  last of them is committed with an fsync, shared out. `limits` keeps counts in memory: no key, no money,
  nothing after a restart.
"""


def run(scale: Scale) -> Found:
    per_minute, per_hour = RateLimitItemPerMinute(10**6), RateLimitItemPerHour(10**6)
    fixed = FixedWindowRateLimiter(MemoryStorage())
    counter = SlidingWindowCounterRateLimiter(MemoryStorage())
    moving = MovingWindowRateLimiter(MemoryStorage())

    def two_limits() -> None:
        fixed.hit(per_minute, "k1")
        counter.hit(per_hour, "k1")

    theirs: dict[str, Callable[[], object]] = {
        "fixed window, one hit": lambda: fixed.hit(per_minute, "k2"),
        "moving window, one hit": lambda: moving.hit(per_minute, "k3"),
        "two limits: a fixed and a sliding hit": two_limits,
    }
    times: dict[str, list[int]] = {name: [] for name in (*theirs, "admit", "admit + settle")}
    with directory() as path, Tollkeeper.open(str(path)) as toll:
        secret = set_up(toll)[0]
        for index in range(scale.rounds):
            for name, hit in theirs.items():
                began = time.perf_counter_ns()
                hit()
                times[name].append(time.perf_counter_ns() - began)
            began = time.perf_counter_ns()
            admission = _admit(toll, secret)
            admitted = time.perf_counter_ns()
            toll.settle(admission)
            settled = time.perf_counter_ns()
            times["admit"].append(admitted - began)
            times["admit + settle"].append(settled - began)
            if index % 500 == 0:
                time.sleep(0.005)  # The committer's turn, as between requests.
        toll.settle(_admit(toll, secret), wait=True)
        began = time.perf_counter_ns()
        for _ in range(scale.rounds - 1):
            toll.settle(_admit(toll, secret))
        toll.settle(_admit(toll, secret), wait=True)
        included_us = (time.perf_counter_ns() - began) / scale.rounds / 1e3
        began = time.perf_counter_ns()
        for _ in range(scale.rounds):
            two_limits()
        two_limits_us = (time.perf_counter_ns() - began) / scale.rounds / 1e3
    figures = []
    for name in theirs:
        ours = "admit + settle" if name.startswith("two") else "admit"
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            figures.append(
                Comparison(
                    f"{ours}, {label}",
                    f"`limits`, {name}",
                    _quantile_us(times[name], share),
                    _quantile_us(times[ours], share),
                    "µs",
                )
            )
    what = "admit + settle, everything included"
    figures.append(
        Comparison(what, "`limits`, two limits: a fixed and a sliding hit", two_limits_us, included_us, "µs")
    )
    return Found(figures)


def _admit(toll: Tollkeeper, secret: str) -> Admission:
    admission = toll.admit(secret, "POST", "/v1/chat")
    assert not isinstance(admission, Denial)
    return admission


def _quantile_us(times: list[int], share: float) -> float:
    return sorted(times)[int(len(times) * share)] / 1e3
