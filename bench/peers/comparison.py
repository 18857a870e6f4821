"""What a peer's module gives: `NAME`, `PACKAGES`, `SETTINGS` and `run(scale)`."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Comparison(NamedTuple):
    """
    One figure, theirs beside ours.

    Attributes:
        more: Whether more is better; less is, for times and bytes.
        baseline: Whether *peer* is no rival but what the same work costs without either.
    """

    what: str
    peer: str
    theirs: float
    ours: float
    unit: str
    more: bool = False
    baseline: bool = False

    @property
    def ratio(self) -> float:
        """How many times better ours is; less than 1 where the peer wins."""
        return self.ours / self.theirs if self.more else self.theirs / self.ours


class Absent(NamedTuple):
    """A peer that could not be measured, and why."""

    peer: str
    reason: str


class Found(msgspec.Struct):
    """
    What one module of peers found.

    Attributes:
        versions: Of what was measured, by name, as they were in this run.
    """

    comparisons: list[Comparison]
    versions: dict[str, str] = {}
    absent: list[Absent] = []


class Scale(NamedTuple):
    """How much is measured: all of it for a figure to keep, little to see that it works."""

    rounds: int
    seconds: float
    events: int
    asked: int


FULL = Scale(rounds=20_000, seconds=5.0, events=1_000_000, asked=100)
LITTLE = Scale(rounds=2_000, seconds=1.0, events=100_000, asked=10)
