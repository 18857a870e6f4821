"""What a usage store answers (`ports.UsageStore`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class ReportRows(NamedTuple):
    """The answer of a usage store to a query; `UsageReport` describes the members."""

    rows: list[dict[str, Any]]
    totals: dict[str, Any]
    row_count: int


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


class Losses(NamedTuple):
    """
    What a usage store lacks, as far as a cheap check can find out; a line each.

    Attributes:
        records: Answers have too little, and no rebuild brings it back.
        derived: Rollups or ids: nothing is answered from them until a rebuild.
    """

    records: list[str]
    derived: list[str]
