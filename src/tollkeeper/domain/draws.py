"""
Draws: what requests spend of an account's credit, each at the time of its request.

A grant pays for requests that were made before it expired, whenever they are settled or reported. So a draw has the
time of its request. Draws between the same two expiries are one sum: any of them may draw on the same grants.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class DrawRun(NamedTuple):
    """Many draws of one account: their times, ascending, and the running sums of their amounts."""

    times_us: list[int]
    sums_nanos: list[int]


class Draws:
    """The draws of one account in one group commit. A negative amount gives back."""

    __slots__ = ("_by_time", "_runs", "total_nanos")

    def __init__(self) -> None:
        self.total_nanos = 0
        self._by_time: dict[int, int] = {}
        self._runs: list[DrawRun] = []

    def add(self, at_us: int, amount_nanos: int) -> None:
        """Add the draw of one request."""
        self.total_nanos += amount_nanos
        self._by_time[at_us] = self._by_time.get(at_us, 0) + amount_nanos

    def add_run(self, run: DrawRun) -> None:
        """Add the draws of a batch."""
        if run.times_us:
            self.total_nanos += run.sums_nanos[-1]
            self._runs.append(run)

    def between(self, expiries_us: Sequence[int]) -> list[tuple[int, int]]:
        """
        Return `(at_us, amount)` of each span between two expiries, in order of time, without empty ones.

        Args:
            expiries_us: When the account's grants expire, ascending, each once. A grant that expires at an instant
                pays no request of that instant.

        Returns:
            *at_us* is an instant of the span: the same grants are unexpired then as at any draw of it.
        """
        sums = [0] * (len(expiries_us) + 1)
        for at_us, amount in self._by_time.items():
            sums[bisect_right(expiries_us, at_us)] += amount
        for times_us, running in self._runs:
            before = 0
            for place, expiry_us in enumerate(expiries_us):
                count = bisect_left(times_us, expiry_us)
                until = running[count - 1] if count else 0
                sums[place] += until - before
                before = until
            sums[-1] += running[-1] - before
        starts = (expiries_us[0] - 1, *expiries_us) if expiries_us else (0,)
        return [(at_us, amount) for at_us, amount in zip(starts, sums, strict=True) if amount]
