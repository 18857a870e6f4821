"""
How many cases a costly test takes: a few in every run, many in `make test-long`.

`effort` gives a number. The mark `drawn` leaves out parametrised cases, other ones each day:

* `@pytest.mark.drawn` keeps so many that each value of each parameter is in one of them;
* `@pytest.mark.drawn(2)` keeps two;
* `@pytest.mark.drawn(2, of="name")` keeps two of all cases of the module with that name, of whatever test.

The day is `TESTS_DAY`, else today's date, and is printed at the end of a run: the same day draws the same cases.
`make test-long` runs every case, and so does a run of chosen tests (`FILE::TEST` or `-k`).
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pytest

LONG: Final = os.environ.get("LONG_TESTS", "") not in ("", "0")

# Workers of pytest-xdist inherit it: all draw alike, over midnight too.
DAY: Final = os.environ.setdefault("TESTS_DAY", datetime.now(UTC).date().isoformat())


def effort(few: int, many: int) -> int:
    """Return *few*, or *many* in `make test-long`."""
    return many if LONG else few


def left_out(items: Sequence[pytest.Item], day: str = DAY) -> set[pytest.Item]:
    """Return the cases that the mark `drawn` leaves out on *day*."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    numbers: dict[str, int | None] = {}
    for item in items:
        if mark := item.get_closest_marker("drawn"):
            test = mark.kwargs.get("of") or item.nodeid.partition("[")[0].rpartition("::")[2]
            group = f"{item.nodeid.partition('::')[0]}::{test}"
            groups[group].append(item)
            numbers[group] = mark.args[0] if mark.args else None
    out: set[pytest.Item] = set()
    for group, cases in groups.items():
        number = numbers[group]
        shuffled = random.Random(f"{day} {group}").sample(cases, len(cases))
        out.update(_repeats(shuffled) if number is None else shuffled[number:])
    return out


def _repeats(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return those whose values of every parameter are in an earlier case that stays."""
    seen: set[tuple[int, str]] = set()
    found: list[pytest.Item] = []
    for case in cases:
        values = _values(case)
        if values <= seen:
            found.append(case)
        seen |= values
    return found


def _values(case: Any) -> set[tuple[int, str]]:
    """Return the ids of a case: one for each `parametrize` and each fixture with parameters."""
    return set(enumerate(case.callspec._idlist)) if hasattr(case, "callspec") else {(0, "")}
