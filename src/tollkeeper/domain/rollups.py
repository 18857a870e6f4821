"""
Rollups: usage summed into UTC hours and days, per every dimension or some of them. A rollup is a pure function
of the event set.

Latency percentiles come from a histogram with logarithmic bins, because its counts can be added and, for a
correction, subtracted (a digest's cannot). With a growth of 2 % per bin and the bin's geometric middle as
its value, a percentile is off by at most 1 % of the nearest-rank one. (DDSketch: Masson, Rim, Lee, 2019.)
The ClickHouse schema computes the same bins; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

BIN_GROWTH: Final = 1.02
RELATIVE_ERROR_MAX: Final = 0.01

_LOG_GROWTH: Final = math.log(BIN_GROWTH)


def latency_bin(latency_us: int) -> int:
    """Return the bin of a latency: 0 for 0 µs, else 1 + ⌊log₁.₀₂ latency⌋."""
    if latency_us <= 0:
        return 0
    return 1 + math.floor(math.log(latency_us) / _LOG_GROWTH)


def bin_latency_us(bin_: int) -> float:
    """Return the latency that stands for a bin: the geometric middle of its two ends."""
    if bin_ <= 0:
        return 0.0
    return math.pow(BIN_GROWTH, bin_ - 0.5)


def percentile_us(counts: Mapping[int, int], quantile: float) -> float | None:
    """
    Return the nearest-rank percentile of a histogram in µs, or None when it is empty.

    Args:
        counts: Bin → count. Counts of 0 are ignored.
        quantile: In (0, 1], e.g. 0.95.
    """
    total = sum(counts.values())
    if total <= 0:
        return None
    rank = math.ceil(quantile * total)
    seen = 0
    for bin_ in sorted(counts):
        seen += counts[bin_]
        if seen >= rank:
            return bin_latency_us(bin_)
    raise ValueError("a histogram's counts are never negative")
