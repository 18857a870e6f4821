"""What a usage store answers (`ports.UsageStore`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tollkeeper.domain.event_pages import EventPlace
from tollkeeper.domain.events import Record


class ReportRows(NamedTuple):
    """
    The answer of a usage store to a query; `UsageReport` describes the members.

    Attributes:
        lacks_detail: It needs records that have expired, and has too little without them.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, Any]
    row_count: int
    detail_from_us: int | None = None
    lacks_detail: bool = False


class EventRows(NamedTuple):
    """
    A page of the events of a usage store, newest first.

    Attributes:
        reached: The place down to which it has looked, below which the next page begins; None: nothing is left.
        detail_from_us, lacks_detail: As of `ReportRows`, about the span of this page.
    """

    records: list[Record]
    reached: EventPlace | None
    detail_from_us: int | None = None
    lacks_detail: bool = False


class CostSum(NamedTuple):
    """The charges of one scope in one span, as summed from events."""

    events: int
    requests: int
    tokens: int
    cost_nanos: int
    """Less what adjustments gave."""
    credits: int
    quantities: Mapping[str, int] = {}
    """Name → micro-units."""
    adjustments_nanos: int = 0
    """What adjustments gave; `cost_nanos` is less by it."""

    def plus(self, other: CostSum) -> CostSum:
        """Return the charges of both."""
        names = {*self.quantities, *other.quantities}
        quantities = {name: self.quantities.get(name, 0) + other.quantities.get(name, 0) for name in names}
        return CostSum(
            self.events + other.events,
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.cost_nanos + other.cost_nanos,
            self.credits + other.credits,
            {name: micros for name, micros in quantities.items() if micros},
            self.adjustments_nanos + other.adjustments_nanos,
        )


class Losses(NamedTuple):
    """
    What a usage store lacks, as far as a cheap check can find out; a line each.

    Attributes:
        records: Answers have too little, and no rebuild brings it back.
        derived: Rollups or ids: nothing is answered from them until a rebuild.
    """

    records: list[str]
    derived: list[str]
