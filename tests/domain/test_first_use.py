"""Periods that open with the first use: each use is in exactly one, and none overlaps another."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.first_use import Span, following, span_at, spans_to_open

WIDTH = 10
uses = st.lists(st.tuples(st.integers(0, 5), st.sampled_from((0, 0, 0, -1, -7, -25, 3, 14))), max_size=40)
"""How much later than the use before it is noticed, and when it was before or after that."""


class Oracle:
    """The rules as one would apply them with a list and a finger, one microsecond after the other."""

    def __init__(self) -> None:
        self.period_of: dict[int, int] = {}
        """Microsecond → the number of the period that has it."""
        self.count = 0

    def use(self, at: int, now: int) -> None:
        cursor = min(at, now)
        while True:
            if cursor not in self.period_of:
                self.count += 1
                for moment in range(cursor, cursor + WIDTH):
                    if moment in self.period_of:
                        break
                    self.period_of[moment] = self.count
            number = self.period_of[cursor]
            if self.period_of.get(at) == number:
                return
            while self.period_of.get(cursor) == number:
                cursor += 1

    def spans(self) -> list[Span]:
        found: dict[int, list[int]] = {}
        for moment, number in self.period_of.items():
            found.setdefault(number, []).append(moment)
        return sorted((min(moments), max(moments) + 1) for moments in found.values())


def opened_by(steps: list[tuple[int, int]]) -> tuple[list[Span], list[int], Oracle]:
    spans: list[Span] = []
    used: list[int] = []
    oracle = Oracle()
    now = 1_000
    for later, off in steps:
        now += later
        at = now + off
        used.append(at)
        oracle.use(at, now)
        before = list(spans)
        new = spans_to_open(spans, at, now, WIDTH)
        spans = sorted([*spans, *new])
        assert set(before) <= set(spans), "what is open stays as it is"
        assert span_at(spans, at) is not None
        assert spans_to_open(spans, at, now, WIDTH) == [], "a second use at the same time opens nothing"
    return spans, used, oracle


@given(uses)
@example([(0, 0), (5, 14), (5, 0), (5, 0)])
def test_every_use_is_in_one_period_and_none_overlap(steps):
    spans, used, oracle = opened_by(steps)
    assert all(0 < end - start <= WIDTH for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for at in used:
        assert sum(start <= at < end for start, end in spans) == 1
    assert spans == oracle.spans()


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from((0, 0, 3, 14))), max_size=40))
def test_only_late_uses_make_a_period_shorter(steps):
    """So no request gets a second amount sooner than a whole period after the first, also with uses ahead of it."""
    spans, _, _ = opened_by(steps)
    assert all(end - start == WIDTH for start, end in spans)


@pytest.mark.parametrize(
    ("spans", "at", "expected"),
    [
        ([(0, 10)], 10, []),
        ([(0, 10), (15, 25)], 12, [(15, 25)]),
        ([(12, 15), (15, 25)], 12, [(15, 25)]),
        ([(12, 15), (15, 18), (18, 28)], 13, [(15, 18), (18, 28)]),
        ([(12, 22), (22, 32)], 13, []),
        ([], 13, []),
    ],
)
def test_what_begins_less_than_a_period_later_counts_too_when_the_clock_went_back(spans, at, expected):
    assert following(spans, at, WIDTH) == expected
