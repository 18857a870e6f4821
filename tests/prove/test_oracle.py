"""The oracle: it finds nothing in a right history, and names what is wrong in each kind of wrong one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.prove.journal import JournaledCall, Line
from tollkeeper.prove.look import Counted, Seen
from tollkeeper.prove.oracle import Bound, Hold, check, history
from tollkeeper.prove.plan import EVEN_NANOS, Scale, plan_round, secret_of, steps_of

T0 = 1_790_000_000_000_000
SECOND = 1_000_000
PLAN = plan_round(1, 1, Scale(1, 1, 1))


def call(op: Any, id_: str, body: Any, at_us: int, status: int = 200, answer: Any = None) -> JournaledCall:
    """Return a call that was sent at *at_us* and answered 10 µs later; status 0: never."""
    made = JournaledCall(Line(at_us, op, id_, body))
    made.sent = 1
    if status:
        made.answered_us, made.status, made.answer = at_us + 10, status, answer
    return made


def authorize(key: str, id_: str, at_us: int, amount: int = EVEN_NANOS, open_s: int = 3600) -> JournaledCall:
    answer = {"expires_at": to_text(from_us(at_us + open_s * SECOND))}
    return call("authorize", id_, {"key": secret_of(key), "cost_nanos": amount}, at_us, answer=answer)


def settle(id_: str, cost: int, at_us: int, status: int = 200) -> JournaledCall:
    return call("settle", id_, {"hold_id": id_, "cost_nanos": cost}, at_us, status)


def events(id_: str, costs: dict[str, int], at_us: int, status: int = 200) -> JournaledCall:
    body = [{"id": name, "key_id": "meter-1", "cost_nanos": cost} for name, cost in costs.items()]
    told = {"accepted": len(costs), "duplicates": 0, "rejected": 0, "errors": []}
    return call("events", id_, body, at_us, status, told)


class World:
    """A right history of a round: just as many as fit, a corrected event, and what the server says of it."""

    def __init__(self) -> None:
        at = itertools.count(T0, 1_000)
        self.calls = []
        for key, count in (("even-1", 3), ("fixed-1", 2)):
            for index in range(count):
                self.calls.append(authorize(key, f"{key}/{index}", next(at)))
                self.calls.append(settle(f"{key}/{index}", EVEN_NANOS, next(at)))
        self.calls += [
            events("batch", {"a": 5, "b": 6, "c": 7}, next(at)),
            events("unanswered", {"d": 8}, next(at), status=0),
            call("amend", "x", {"event": "b", "cost_nanos": 60}, next(at)),
            call("void_event", "y", {"event": "c"}, next(at)),
            call("grants", "g", {"id": "g", "amount_nanos": 9}, next(at)),
        ]
        held = {call_.id: Counted(1, EVEN_NANOS) for call_ in self.calls if call_.op == "settle"}
        self.seen = Seen(
            events={**held, "a": Counted(1, 5), "b": Counted(1, 60)},
            keys={"even-1": Counted(3, 21), "fixed-1": Counted(2, 14), "meter-1": Counted(2, 65)},
            used={"even-1": 21, "ample-1": 65, "account-1": 0},
            spent_nanos=0,
            grants={"g": 9},
            holds_open=0,
        )

    def found(self) -> set[str]:
        return {finding.kind for finding in check(PLAN, self.calls, self.seen, callers=1, kills=0)}

    def see(self, **changes: Any) -> None:
        self.seen = self.seen._replace(**changes)

    def event(self, id_: str, counted: Counted | None) -> None:
        there = {name: value for name, value in self.seen.events.items() if name != id_}
        self.see(events=there if counted is None else {**there, id_: counted})

    def replace(self, id_: str, other: JournaledCall) -> None:
        self.calls = [other if old.id == id_ and old.op == other.op else old for old in self.calls]


def test_a_right_history_has_no_findings() -> None:
    assert World().found() == set()


def test_an_unanswered_call_may_count_or_not_but_everywhere_the_same() -> None:
    world = World()
    world.event("d", Counted(1, 8))
    assert world.found() == {"lost"}, "it is among the events, and missing from the sums"
    world.see(keys={**world.seen.keys, "meter-1": Counted(3, 73)}, used={**world.seen.used, "ample-1": 73})
    assert world.found() == set()


def test_a_refusal_after_a_cut_may_leave_room_unused() -> None:
    """The try that was cut off came late, took the last room, and was voided when its client had been refused."""
    world = World()
    world.calls = [call_ for call_ in world.calls if call_.id != "even-1/2"]
    world.event("even-1/2", None)
    world.see(keys={**world.seen.keys, "even-1": Counted(2, 14)}, used={**world.seen.used, "even-1": 14})
    assert world.found() == {"other"}
    refused = call("authorize", "cut", {"key": secret_of("even-1")}, T0 + SECOND, 402, {})
    refused.sent = 2
    world.calls += [refused, call("void", "cut", {"hold_id": "cut"}, T0 + 2 * SECOND, 404, {})]
    assert world.found() == set()


WRONG: dict[str, tuple[str, Callable[[World], None]]] = {
    "an acknowledged event is gone": ("lost", lambda w: w.event("a", None)),
    "an acknowledged settlement is gone": ("lost", lambda w: w.event("even-1/0", None)),
    "an acknowledged amendment is gone": ("lost", lambda w: w.event("b", Counted(1, 6))),
    "an acknowledged void is gone": ("lost", lambda w: w.event("c", Counted(1, 7))),
    "an event counts twice": ("double-counted", lambda w: w.event("a", Counted(2, 10))),
    "an unanswered event counts twice": ("double-counted", lambda w: w.event("d", Counted(2, 16))),
    "an event that nobody sent counts": ("double-counted", lambda w: w.event("z", Counted(1, 1))),
    "an event without a name counts": ("double-counted", lambda w: w.event("", Counted(1, 0))),
    "a counter is too high": ("double-counted", lambda w: w.see(used={**w.seen.used, "even-1": 28})),
    "a counter is too low": ("lost", lambda w: w.see(used={**w.seen.used, "even-1": 14})),
    "a rollup is too high": (
        "double-counted",
        lambda w: w.see(keys={**w.seen.keys, "fixed-1": Counted(3, 14)}),
    ),
    "a rollup is gone": ("lost", lambda w: w.see(keys={})),
    "credit was spent by nobody": ("double-counted", lambda w: w.see(spent_nanos=1)),
    "a grant is gone": ("lost", lambda w: w.see(grants={})),
    "a grant was posted twice": ("double-counted", lambda w: w.see(grants={"g": 18})),
    "a hold never ends": ("other", lambda w: w.see(holds_open=1)),
    "more were accepted than sent": (
        "double-counted",
        lambda w: w.calls.append(events("again", {"a": 5}, T0 + SECOND)),
    ),
    "an acknowledged hold is unknown": (
        "lost",
        lambda w: w.replace("even-1/0", settle("even-1/0", EVEN_NANOS, T0 + 500, status=404)),
    ),
    "a call that had to wait for its answer": (
        "unanswered",
        lambda w: setattr(w.calls[0], "timed_out", 1),
    ),
    "a server error": ("other", lambda w: w.replace("g", call("grants", "g", {"id": "g"}, T0, 500, {}))),
    "one more than fits the budget": (
        "overshoot",
        lambda w: w.calls.append(authorize("even-1", "more", T0 + SECOND)),
    ),
    "one more than fits the window": (
        "overshoot",
        lambda w: w.calls.append(authorize("fixed-1", "more", T0 + SECOND)),
    ),
    "one was refused that fitted": (
        "other",
        lambda w: setattr(w, "calls", [c for c in w.calls if c.id != "even-1/2"]),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found_out(name: str) -> None:
    kind, spoil = WRONG[name]
    world = World()
    spoil(world)
    assert kind in world.found()


def hold(
    sent: int, answered: int, *, expires: int = 10**9, amount: int = 10, ending: JournaledCall | None = None
) -> Hold:
    made = call("authorize", "h", {}, sent)
    made.answered_us = answered
    return Hold(made, ending, amount, expires)


def ended(op: str, sent: int, answered: int | None, cost: int = 4) -> JournaledCall:
    made = call(op, "h", {"cost_nanos": cost}, sent, status=0 if answered is None else 200)
    made.answered_us = answered
    return made


BUDGET = Bound("b", ("k",), 0, "budget")
SLIDING = Bound("s", ("k",), 0, "sliding", "1s")
AT_ONCE = Bound("c", ("k",), 0, "concurrency")


@pytest.mark.parametrize(
    ("bound", "held", "at_us", "takes"),
    [
        (BUDGET, hold(10, 20), 19, 0),  # Perhaps not admitted yet.
        (BUDGET, hold(10, 20), 20, 10),
        (BUDGET, hold(10, 20, expires=50), 50, 0),
        (BUDGET, hold(10, 20, ending=ended("settle", 30, 40)), 30, 4),
        (BUDGET, hold(10, 20, ending=ended("settle", 30, 40, cost=99)), 60, 10),  # Beyond it: overdraft.
        (BUDGET, hold(10, 20, ending=ended("settle", 30, None)), 60, 4),  # Held or settled: at least this.
        (BUDGET, hold(10, 20, expires=35, ending=ended("settle", 30, 40)), 60, 0),  # Perhaps settled late.
        (BUDGET, hold(10, 20, ending=ended("void", 30, 40)), 29, 10),
        (BUDGET, hold(10, 20, ending=ended("void", 30, 40)), 30, 0),
        (SLIDING, hold(10, 20), SECOND + 9, 1),
        (SLIDING, hold(10, 20), SECOND + 10, 0),  # Perhaps admitted just when it was sent.
        (SLIDING, hold(10, 20, ending=ended("settle", 30, 40)), 60, 1),
        (SLIDING, hold(10, 20, ending=ended("void", 30, 40)), 60, 0),
        (AT_ONCE, hold(10, 20), 29, 1),
        (AT_ONCE, hold(10, 20, ending=ended("settle", 30, 40)), 30, 0),
    ],
)
def test_only_what_is_surely_in_place_counts_against_a_bound(
    bound: Bound, held: Hold, at_us: int, takes: int
) -> None:
    """So that a finding is one whichever of two calls the server took first."""
    assert held.in_place(bound, at_us) == takes


def test_the_history_of_a_finding_is_of_its_ids_alone() -> None:
    world = World()
    lines = history(world.calls, ["b"])
    assert [line.split()[1] for line in lines] == ["events", "amend"]
    assert "'id': 'a'" not in lines[0]


def test_the_same_seed_is_the_same_plan() -> None:
    scale = Scale(1, 2, 2)
    assert plan_round(7, 3, scale) == plan_round(7, 3, scale) != plan_round(8, 3, scale)
    assert list(steps_of(7, 3, 1, 1, scale)) == list(steps_of(7, 3, 1, 1, scale))
    assert list(steps_of(7, 3, 1, 1, scale)) != list(steps_of(7, 3, 1, 0, scale))
