"""In process: key look-up, two limits and one budget, admit and settle; beside two hits of `limits`."""

from __future__ import annotations

import time

from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from bench.fixture import directory, set_up
from bench.table import Figure
from tollkeeper import Denial, Tollkeeper, Usage

ROUNDS = 20_000


MATCHED = """
[[plans]]
slug = "{slug}"
limits = [
  { name = "rpm", amount = 1000000000, window = "1m" },
  { name = "rph", amount = 1000000000, window = "1h", algorithm = "sliding" },
  {limit},
]
[[accounts]]
id = "{slug}"
name = "{slug}"
plan = "{slug}"
[[budgets]]
id = "monthly"
account = "{slug}"
amount = 1000000000000000
[[keys]]
id = "{slug}"
account = "{slug}"
"""
LIMITS = {
    "a limit of gpt-4o*": '{ name = "m", amount = 1000000000, match = { models = ["gpt-4o*"] } }',
    "a limit per key and model": '{ name = "m", amount = 1000000000, per = ["key", "model"] }',
    "a limit per end user": '{ name = "m", amount = 1000000000, per = "tag.user" }',
}
USERS = [{"user": f"u{n}"} for n in range(1_000)]


def run() -> list[Figure]:
    figures = _unmatched()
    for index, (name, limit) in enumerate(LIMITS.items()):
        figures.append(_matched(f"m{index}", name, limit))
    return figures


def _matched(slug: str, name: str, limit: str) -> Figure:
    """The same with one limit more, by model or tag, and requests that name both; beside the one without it."""
    usage = Usage(model="gpt-4o", cost_nanos=1_000)
    with directory() as path, Tollkeeper.open(str(path)) as toll:
        plain = set_up(toll)[0]
        matched = toll.apply(MATCHED.replace("{slug}", slug).replace("{limit}", limit)).issued[0].secret or ""
        taken: dict[str, list[int]] = {plain: [], matched: []}
        for index in range(ROUNDS):
            for secret, times in taken.items():
                started = time.perf_counter_ns()
                admission = toll.admit(secret, "POST", "/v1/chat", usage, tags=USERS[index % len(USERS)])
                assert not isinstance(admission, Denial)
                toll.settle(admission)
                times.append(time.perf_counter_ns() - started)
            if index % 500 == 0:
                time.sleep(0.005)  # The committer's turn, as between requests.
        base, p50 = (sorted(times)[ROUNDS // 2] / 1e3 for times in taken.values())
    return Figure(f"admit + settle, {name}", "p50", p50, "µs", base, "without it", "≤ 10 µs", p50 <= 10)


def _unmatched() -> list[Figure]:
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
