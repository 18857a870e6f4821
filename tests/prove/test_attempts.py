"""The oracles of crowds and of backups: right histories pass, and each wrong one is named."""

from __future__ import annotations

import pytest

from tollkeeper.prove.attempts import UNIT_NANOS, Attempt, Spent, check_attempts
from tollkeeper.prove.backups import NEVER, Sent, check_instant
from tollkeeper.prove.look import Counted

ONE = Counted(1, UNIT_NANOS)
UNITS = 5
RIGHT = [
    Attempt("whole", "booked"),
    Attempt("stream", "booked", 2, 3),
    Attempt("gone", "perhaps", 0, 2),
    Attempt("cut", "perhaps"),
    Attempt("no", "refused"),
    Attempt("fill", "booked"),
]
EVENTS = {"whole": ONE, "stream": Counted(1, 2 * UNIT_NANOS), "cut": ONE, "fill": ONE}


def found(
    events: dict[str, Counted],
    used: int = UNITS,
    attempts: list[Attempt] = RIGHT,
    differences: tuple[str, ...] = (),
) -> list[str]:
    spent = Spent(events, used * UNIT_NANOS, differences)
    return [finding.kind for finding in check_attempts(attempts, UNITS, spent)]


def test_a_right_history_has_no_findings() -> None:
    assert found(EVENTS) == []


@pytest.mark.parametrize(
    ("changed", "used", "kinds"),
    [
        ({"whole": Counted(2, 2 * UNIT_NANOS)}, 6, ["double-counted", "overshoot"]),
        ({"whole": Counted(0, 0)}, 4, ["lost", "other"]),
        ({"no": ONE}, 6, ["double-counted", "overshoot"]),
        ({"nobody's": ONE}, 6, ["double-counted", "overshoot"]),
        ({"": ONE}, 6, ["double-counted", "overshoot"]),
        ({"stream": ONE}, 4, ["lost", "other"]),
        ({"stream": Counted(1, 4 * UNIT_NANOS)}, 7, ["double-counted", "overshoot"]),
        ({"gone": Counted(1, 2 * UNIT_NANOS)}, 7, ["overshoot"]),
        ({"cut": Counted(0, 0)}, 4, ["other"]),
        ({}, 4, ["lost"]),
        ({}, 6, ["double-counted"]),
    ],
)
def test_a_wrong_history_is_found_out(changed: dict[str, Counted], used: int, kinds: list[str]) -> None:
    assert found({**EVENTS, **changed}, used) == kinds


def test_what_was_settled_late_may_be_overdraft() -> None:
    events = {**EVENTS, "gone": Counted(1, 2 * UNIT_NANOS)}
    late = [attempt._replace(is_late=attempt.id == "gone") for attempt in RIGHT]
    assert found(events, 7, late) == []
    assert found({**events, "stream": Counted(1, 3 * UNIT_NANOS)}, 8, late) == ["overshoot"]


def test_what_verify_says_is_a_finding() -> None:
    assert found(EVENTS, differences=("kept: budget:bound: expected 5, found 4",)) == ["verify"]


# -- backups ----------------------------------------------------------------------------------------------

BEGAN, ENDED = 10.0, 20.0
CALLS = [
    Sent(("before-1", "before-2"), 1.0, 2.0),
    Sent(("early",), 11.0, 12.0),
    Sent(("late",), 13.0, 14.0),
    Sent(("after",), 21.0, 22.0),
    # Refused after everything, and perhaps booked.
    Sent((), 25.0, 26.0),
    Sent(("perhaps",), 3.0, NEVER),
]


def instant(*there: str, count: int = 1) -> list[str]:
    events = {id_: Counted(count, count * UNIT_NANOS) for id_ in there}
    return [finding.what for finding in check_instant(CALLS, events, BEGAN, ENDED)]


def test_every_instant_between_begin_and_end_is_one() -> None:
    assert instant("before-1", "before-2") == []
    assert instant("before-1", "before-2", "early") == []
    assert instant("before-1", "before-2", "early", "late") == []
    assert instant("before-1", "before-2", "perhaps") == []


@pytest.mark.parametrize(
    ("there", "what"),
    [
        (("early",), "answered before the backup"),
        (("before-1",), "others of their call are not"),
        (("before-1", "before-2", "late"), "are missing, and later ones are there"),
        (("before-1", "before-2", "early", "late", "after"), "sent after the backup"),
        (("before-1", "before-2", "strange"), "never sent"),
    ],
)
def test_what_no_instant_had_is_found_out(there: tuple[str, ...], what: str) -> None:
    assert any(what in said for said in instant(*there))


def test_a_restored_event_that_counts_twice_is_found_out() -> None:
    assert any("more than once" in said for said in instant("before-1", "before-2", count=2))
