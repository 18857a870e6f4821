"""Timelines: every price that a model has, from when on and at which time of day."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from tollkeeper.domain.instants import to_us
from tollkeeper.domain.pricing import ModelPrice

TIMELINES_MAX: Final = 16_384
"""Timelines remembered, some 10 MB: callers choose model names, so they need a bound. Full: start afresh."""

DAY_US: Final = 86_400_000_000
ALWAYS_US: Final = -(2**63)
"""The start of a timeline's first span: before any instant that 64 bits can hold."""


class PriceTimeline(NamedTuple):
    """
    Every price that one model has for one account, constant in each cell of spans by parts of the day.

    Attributes:
        starts_us: Where spans begin, ascending; the first is `ALWAYS_US`.
        parts_us: Where parts of the UTC day begin, ascending from 0; one unless prices vary by time of day.
        prices: Span by span, the price of each part; None where the model has no price.
    """

    starts_us: tuple[int, ...]
    parts_us: tuple[int, ...]
    prices: tuple[ModelPrice | None, ...]

    def at(self, at_us: int) -> ModelPrice | None:
        """Return the price at *at_us*, microseconds since the Unix epoch."""
        if len(self.prices) == 1:
            return self.prices[0]
        return self.cell(at_us, at_us % DAY_US)

    def cell(self, span_us: int, part_us: int) -> ModelPrice | None:
        """Return the price in the span that holds *span_us*, in the part of the day that holds *part_us*."""
        span = bisect_right(self.starts_us, span_us) - 1
        part = bisect_right(self.parts_us, part_us) - 1
        return self.prices[span * len(self.parts_us) + part]


UNKNOWN: Final = PriceTimeline((ALWAYS_US,), (0,), (None,))
"""The timeline of a model that no source knows."""


class EntryLike(Protocol):
    """An entry that is effective from an instant on."""

    @property
    def effective_at(self) -> datetime: ...


E = TypeVar("E", bound=EntryLike)


def in_force(
    entries: Iterable[E], rank: Callable[[E], tuple[Any, ...]], starts_us: Sequence[int]
) -> list[E | None]:
    """Return, for each of ascending instants, the entry of the greatest *rank* that is effective; None before any."""
    waiting = sorted(entries, key=lambda entry: entry.effective_at, reverse=True)
    best: E | None = None
    found: list[E | None] = []
    for start_us in starts_us:
        while waiting and to_us(waiting[-1].effective_at) <= start_us:
            entry = waiting.pop()
            if best is None or rank(entry) > rank(best):
                best = entry
        found.append(best)
    return found


def timeline_of(
    starts_us: Sequence[int], parts_us: Sequence[int], prices: Sequence[ModelPrice | None]
) -> PriceTimeline:
    """Return the timeline of these cells; one cell where all are the same."""
    if all(price is prices[0] for price in prices):
        return PriceTimeline((ALWAYS_US,), (0,), (prices[0],))
    return PriceTimeline(tuple(starts_us), tuple(parts_us), tuple(prices))
