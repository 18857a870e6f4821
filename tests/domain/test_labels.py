"""A caller has so many distinct labels a day and no more; what was kept once is kept again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.labels import (
    COMBINATIONS_PER_VALUE,
    LABELS,
    OTHER,
    DistinctLabels,
    label_day,
    same_label,
)

DAY_US = 86_400_000_000
texts = st.sampled_from(["", OTHER, *"abcdefgh"])
rows = st.lists(st.tuples(*[texts] * len(LABELS)), max_size=60)


@given(rows, st.integers(1, 6))
def test_each_label_and_their_combinations_are_bounded(given_rows, values_max):
    """Disk and memory of the rollups follow the distinct combinations, those of the object its hashes."""
    labels = DistinctLabels(values_max)
    kept = [labels.admit(row) for row in given_rows]
    for values in zip(*kept, strict=True):
        assert len(set(values) - {"", OTHER}) <= values_max
    combined = {row for row in kept if set(row) - {"", OTHER}}
    assert len(combined) <= values_max * COMBINATIONS_PER_VALUE
    assert len(labels) <= values_max * (len(LABELS) + COMBINATIONS_PER_VALUE)


@given(rows, st.integers(1, 6))
def test_a_row_is_stored_the_same_however_often_it_comes(given_rows, values_max):
    """A batch is mapped by its distinct rows, which is right only when a repeat changes nothing."""
    labels = DistinctLabels(values_max)
    first = {}
    for row in [*given_rows, *reversed(given_rows)]:
        kept = labels.admit(row)
        assert first.setdefault(row, kept) == kept
        assert labels.admit(row) == kept
        if labels.knows(row):
            assert kept == row


@given(rows, st.integers(1, 6))
def test_a_label_is_kept_or_other_and_absent_stays_absent(given_rows, values_max):
    """`denied_reason` tells denied requests by being present, and so must stay present."""
    labels = DistinctLabels(values_max)
    for row in given_rows:
        for text, kept in zip(row, labels.admit(row), strict=True):
            assert kept == text or (kept == OTHER and text != "")
            assert same_label(kept, text)


@given(rows)
def test_below_the_bound_nothing_is_replaced(given_rows):
    labels = DistinctLabels(100)
    assert [labels.admit(row) for row in given_rows] == given_rows


def test_one_noisy_label_leaves_the_others_alone():
    """An error type with a request id in it must not cost the account its routes and models."""
    labels = DistinctLabels(5)
    kept = [labels.admit(("POST", f"/r{i % 3}", "request", f"id-{i}", "", "m")) for i in range(100)]
    assert {row[1] for row in kept} == {"/r0", "/r1", "/r2"}
    assert {row[5] for row in kept} == {"m"}
    assert {row[3] for row in kept} == {*(f"id-{i}" for i in range(5)), OTHER}


@given(st.integers(-30, 3), st.integers(20_000, 20_002))
def test_days_far_from_today_share_one_bound(days_later, today):
    """There are many days since 2000, and each with its own bound would be no bound."""
    received_at_us = today * DAY_US + 7
    day = label_day(received_at_us + days_later * DAY_US, received_at_us)
    assert day == (today + days_later if -2 <= days_later <= 1 else -today)
