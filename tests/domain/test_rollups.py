"""The latency histogram: bins that can be added and subtracted, percentiles within 1 %."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.events import LATENCY_MS_MAX
from tollkeeper.domain.rollups import (
    BIN_GROWTH,
    RELATIVE_ERROR_MAX,
    bin_latency_us,
    latency_bin,
    percentile_us,
)

latencies_us = st.integers(0, LATENCY_MS_MAX * 1000)
quantiles = st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99, 1.0])


@given(latencies_us.filter(bool))
@example(1)
@example(2)
@example(LATENCY_MS_MAX * 1000)
def test_a_bin_stands_for_its_latencies_within_one_percent(latency_us: int) -> None:
    """The promise on the API: any percentile shown is off by at most this."""
    shown = bin_latency_us(latency_bin(latency_us))
    assert abs(shown - latency_us) <= RELATIVE_ERROR_MAX * latency_us


@given(latencies_us, latencies_us)
def test_bins_keep_the_order_of_latencies(one: int, other: int) -> None:
    """A percentile walks the bins in order; a slower request must not lie in an earlier one."""
    assert (latency_bin(one) <= latency_bin(other)) or one > other


@given(st.integers(1, 1370))
def test_a_bin_begins_at_a_power_of_the_growth(power: int) -> None:
    """No latency belongs to two bins or to none."""
    edge = math.ceil(BIN_GROWTH**power)
    assert latency_bin(edge) >= power + 1
    assert latency_bin(edge - 1) <= power


def test_bins_fit_sixteen_bits() -> None:
    """The stored histogram has keys of 16 bits."""
    assert (latency_bin(0), latency_bin(1)) == (0, 1)
    assert latency_bin(LATENCY_MS_MAX * 1000) < 2**16
    assert bin_latency_us(0) == 0.0


@given(st.lists(latencies_us, min_size=1, max_size=200), quantiles)
def test_a_percentile_is_the_nearest_rank_within_one_percent(values: list[int], quantile: float) -> None:
    """Compared with sorting all latencies."""
    exact = sorted(values)[math.ceil(quantile * len(values)) - 1]
    shown = percentile_us(Counter(map(latency_bin, values)), quantile)
    assert shown is not None
    assert abs(shown - exact) <= RELATIVE_ERROR_MAX * exact


@given(st.lists(latencies_us, max_size=50), st.lists(latencies_us, max_size=50), quantiles)
def test_what_is_added_and_subtracted_was_never_there(
    kept: list[int], taken: list[int], quantile: float
) -> None:
    """A correction subtracts its old latency; zero counts that stay behind change nothing."""
    counts = Counter(map(latency_bin, kept))
    counts.update(map(latency_bin, taken))
    counts.subtract(Counter(map(latency_bin, taken)))
    assert percentile_us(counts, quantile) == percentile_us(Counter(map(latency_bin, kept)), quantile)


def test_an_empty_histogram_has_no_percentile() -> None:
    """Null, not 0 ms: nobody waited."""
    assert percentile_us({}, 0.5) is None
    assert percentile_us({3: 0}, 0.5) is None


def test_a_negative_count_is_refused() -> None:
    """It would mean that a correction was booked without what it corrects."""
    with pytest.raises(ValueError, match="never negative"):
        percentile_us({1: 5, 2: -3}, 3.0)
