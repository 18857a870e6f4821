"""What the mark `drawn` leaves out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.effort import left_out

DAYS = [f"2026-11-{day:02}" for day in range(1, 31)]


class Case:
    """A parametrised case with a mark."""

    def __init__(self, ids: tuple[str, ...], mark: Any, test: str = "test_a") -> None:
        self.nodeid = f"tests/test_file.py::{test}[{'-'.join(ids)}]"
        self.callspec = SimpleNamespace(_idlist=list(ids))
        self.mark = mark

    def get_closest_marker(self, name: str) -> Any:
        return self.mark


def kept(cases: list[Any], day: str) -> list[Case]:
    out = left_out(cases, day)
    return [case for case in cases if case not in out]


def test_each_value_is_in_a_case_that_stays() -> None:
    mark = pytest.mark.drawn.mark
    cases = [Case((engine, tag), mark) for engine in ("sqlite", "postgresql") for tag in "abcdef"]
    for day in DAYS:
        stay = kept(cases, day)
        assert {value for case in stay for value in case.callspec._idlist} == {
            "sqlite",
            "postgresql",
            *"abcdef",
        }
        assert len(stay) <= 7
    assert {case for day in DAYS for case in kept(cases, day)} == set(cases), "each has its day"


def test_a_number_of_one_test_or_of_several() -> None:
    of_one = [Case((value,), pytest.mark.drawn(2).mark) for value in "abcd"]
    tests = ("test_b", "test_c", "test_d")
    of_all = [Case(("x",), pytest.mark.drawn(1, of="group").mark, test) for test in tests]
    for day in DAYS:
        stay = kept(of_one + of_all, day)
        assert len([case for case in stay if case in of_one]) == 2
        assert len([case for case in stay if case in of_all]) == 1
        assert stay == kept(of_one + of_all, day), "the same day draws the same"
    assert {case for day in DAYS for case in kept(of_one + of_all, day)} == {*of_one, *of_all}


def test_what_has_no_mark_stays() -> None:
    cases = [Case((value,), None) for value in "ab"]
    assert kept(cases, DAYS[0]) == cases
