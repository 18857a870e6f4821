"""In process: key look-up, two limits and one budget, admit and settle; beside two hits of `limits`."""

from __future__ import annotations

import time

from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from bench.fixture import directory, set_up
from bench.table import Figure
from tollkeeper import Denial, Tollkeeper

ROUNDS = 20_000


def run() -> list[Figure]:
    with directory() as path, Tollkeeper.open(str(path)) as toll:
        secret = set_up(toll)[0]
        fixed = FixedWindowRateLimiter(MemoryStorage())
        sliding = SlidingWindowCounterRateLimiter(MemoryStorage())
        per_minute, per_hour = RateLimitItemPerMinute(10**9), RateLimitItemPerHour(10**9)
        ours, theirs = [], []
        for index in range(ROUNDS):
            started = time.perf_counter_ns()
            admission = toll.admit(secret, "POST", "/v1/chat")
            assert not isinstance(admission, Denial)
            toll.settle(admission)
            ours.append(time.perf_counter_ns() - started)
            started = time.perf_counter_ns()
            fixed.hit(per_minute, "k1")
            sliding.hit(per_hour, "k1")
            theirs.append(time.perf_counter_ns() - started)
            if index % 500 == 0:
                time.sleep(0.005)  # The committer's turn, as between requests.
    ours.sort()
    theirs.sort()
    p50, base = ours[ROUNDS // 2] / 1e3, theirs[ROUNDS // 2] / 1e3
    return [
        Figure("admit + settle", "p50", p50, "µs", base, "limits: 2 hits, no money", "≤ 10 µs", p50 <= 10),
        Figure(
            "admit + settle", "p99", ours[ROUNDS * 99 // 100] / 1e3, "µs", theirs[ROUNDS * 99 // 100] / 1e3
        ),
    ]
