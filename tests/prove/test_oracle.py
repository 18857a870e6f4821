"""The oracle: it finds nothing in a right history, and names what is wrong in each kind of wrong one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.prove.test_amounts import USED
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.prove.amounts import MODEL, Measures
from tollkeeper.prove.journal import JournaledCall, Line
from tollkeeper.prove.look import BudgetSeen, CreditSeen, Seen
from tollkeeper.prove.oracle import Bound, Hold, check, history
from tollkeeper.prove.plan import (
    AMPLE,
    EVEN_NANOS,
    Correct,
    Manage,
    Scale,
    SpendStep,
    event_of,
    plan_round,
    secret_of,
    steps_of,
)

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


def authorize(key: str, id_: str, at_us: int, open_s: int = 3600, **asked: Any) -> JournaledCall:
    answer = {"expires_at": to_text(from_us(at_us + open_s * SECOND))}
    body = {"key": secret_of(key), "tags": {}, **(asked or {"cost_nanos": EVEN_NANOS})}
    return call("authorize", id_, body, at_us, answer=answer)


def settle(id_: str, at_us: int, status: int = 200, **used: Any) -> JournaledCall:
    return call("settle", id_, {"hold_id": id_, **(used or {"cost_nanos": EVEN_NANOS})}, at_us, status)


def events(id_: str, bodies: dict[str, int | dict[str, Any]], at_us: int, status: int = 200) -> JournaledCall:
    """Return a batch; an event is stated by its cost or its body."""
    body = [
        {"id": name, "key_id": "meter-1", **({"cost_nanos": of} if isinstance(of, int) else of)}
        for name, of in bodies.items()
    ]
    told = {"accepted": len(bodies), "duplicates": 0, "rejected": 0, "errors": []}
    return call("events", id_, body, at_us, status, told)


def top_up(
    id_: str, at_us: int, nanos: int = EVEN_NANOS, status: int = 201, repeated: bool = False
) -> JournaledCall:
    body = {"id": "t", "amount": f"0.{nanos:09d}", "until_used": False}
    return call("top_up", id_, body, at_us, status, {"repeated": repeated})


def adjust(id_: str, at_us: int, nanos: int, key: str = "", status: int = 201) -> JournaledCall:
    body = {"id": id_, "account": "meter-1", "amount_nanos": nanos, "reason": id_}
    return call("adjust", id_, body | ({"key_id": key} if key else {}), at_us, status, {"repeated": False})


def stated(cost: int, count: int = 1) -> Measures:
    return Measures(count, cost, cost)


COUNTED: dict[str, tuple[int, dict[str, Any]]] = {
    "even-1": (3, {}),
    "fixed-1": (2, {}),
    "seconds-1": (2, {"quantities": {"seconds": "1.25"}}),
    "model-1": (1, {"cost_nanos": EVEN_NANOS, "model": "PROVE-A2"}),
    "user-1": (1, {"cost_nanos": EVEN_NANOS, "tags": {"user": "u1"}}),
}
"""Of each key as many requests as fit."""
PRICED = Measures(1, 36_361_573, 26_934_496, 42, 1_500_000, 2_000_000)
"""As `test_amounts` computes it by hand."""


class World:
    """A right history of a round: just as many as fit, a corrected event, and what the server says of it."""

    def __init__(self) -> None:
        at = self.at = itertools.count(T0, 1_000)
        self.calls = []
        held = {}
        for key, (count, asked) in COUNTED.items():
            for index in range(count):
                id_ = f"{key}/{index}"
                used = {"quantities": asked["quantities"]} if "quantities" in asked else {}
                self.calls += [authorize(key, id_, next(at), **asked), settle(id_, next(at), **used)]
                held[id_] = Measures(1, seconds=1_250_000) if used else stated(EVEN_NANOS)
        # Of another model and another user: the limits of the first do not count them.
        for key, id_, asked in (
            ("model-1", "other model", {"cost_nanos": EVEN_NANOS, "model": "prove-b"}),
            ("user-1", "other user", {"cost_nanos": EVEN_NANOS, "tags": {"user": "u2"}}),
            ("topped-1", "before", {}),
        ):
            self.calls += [authorize(key, id_, next(at), **asked), settle(id_, next(at))]
            held[id_] = stated(EVEN_NANOS)
        refused = call("authorize", "no", {"key": secret_of("topped-1"), "cost_nanos": 7}, next(at), 402, {})
        self.calls += [
            refused,
            top_up("first", next(at)),
            top_up("again", next(at), status=200, repeated=True),
            authorize("topped-1", "after", next(at)),
            settle("after", next(at)),
            events("batch", {"a": 5, "b": 6, "c": 7}, next(at)),
            events("priced", {"p": {"model": MODEL, **USED}}, next(at)),
            events("unanswered", {"d": 8}, next(at), status=0),
            call("amend", "x", {"event": "b", "cost_nanos": 60}, next(at)),
            call("amend", "s", {"event": "p", "quantities": {"seconds": "1.5"}}, next(at)),
            call("void_event", "y", {"event": "c"}, next(at)),
            call("grants", "g", {"id": "g", "amount_nanos": 9}, next(at)),
            call("grants", "h", {"id": "h", "amount_nanos": 4}, next(at)),
            call("revoke", "r", {"id": "h"}, next(at), answer={}),
            call("grants", "h again", {"id": "h", "amount_nanos": 4}, next(at)),
            adjust("up", next(at), 5),
            adjust("of the key", next(at), -3, "meter-1"),
            adjust("gone", next(at), 40),
            call("void_event", "z", {"event": "gone"}, next(at)),
            adjust("lost", next(at), -2, status=0),
        ]
        held["after"] = stated(EVEN_NANOS)
        metered = Measures(
            3, 65 + PRICED.cost_nanos, 65 + PRICED.provider_nanos, 42, 1_500_000, 2_000_000, -3
        )
        self.seen = Seen(
            events={**held, "a": stated(5), "b": stated(60), "p": PRICED},
            adjustments={"up": Measures(adjusted_nanos=5), "of the key": Measures(adjusted_nanos=-3)},
            keys={
                "": Measures(adjusted_nanos=5),
                "even-1": stated(21, 3),
                "fixed-1": stated(14, 2),
                "seconds-1": Measures(2, seconds=2_500_000),
                "model-1": stated(14, 2),
                "user-1": stated(14, 2),
                "topped-1": stated(14, 2),
                "meter-1": metered,
            },
            budgets={
                "even-1": BudgetSeen(24, 21),
                "seconds-1": BudgetSeen(2_500_005, 2_500_000),
                "user-1 of u1": BudgetSeen(10, 7),
                "user-1 of u2": BudgetSeen(10, 7),
                "topped-1": BudgetSeen(17, 14),
                "account-1": BudgetSeen(144, 0),
                "meter-1": BudgetSeen(AMPLE, metered.cost_nanos + 3),
                "b1-0": BudgetSeen(AMPLE, metered.cost_nanos + 3 - 5),
            },
            credit={"pools-1": CreditSeen(132, 0), "meter-1": CreditSeen(14, -5)},
            grants={"first-1": 132, "g": 9, "h": 0},
            holds_open=0,
        )

    def budget(self, name: str, allowed: int, used: int) -> None:
        self.see(budgets={**self.seen.budgets, name: BudgetSeen(allowed, used)})

    def key(self, name: str, measures: Measures) -> None:
        self.see(keys={**self.seen.keys, name: measures})

    def adjustment(self, id_: str, measures: Measures) -> None:
        self.see(adjustments={**self.seen.adjustments, id_: measures})

    def refuse(self, key: str, *, sent: int = 1, **asked: Any) -> None:
        """Let one more request be refused, in the end."""
        body = {"key": secret_of(key), "tags": {}, "cost_nanos": EVEN_NANOS, **asked}
        self.calls.append(call("authorize", "refused", body, T0 + SECOND, 429, {}))
        self.calls[-1].sent = sent

    def found(self) -> set[str]:
        return {finding.kind for finding in check(PLAN, self.calls, self.seen, callers=1, kills=0)}

    def see(self, **changes: Any) -> None:
        self.seen = self.seen._replace(**changes)

    def event(self, id_: str, counted: Measures | None) -> None:
        there = {name: value for name, value in self.seen.events.items() if name != id_}
        self.see(events=there if counted is None else {**there, id_: counted})

    def replace(self, id_: str, other: JournaledCall) -> None:
        self.calls = [other if old.id == id_ and old.op == other.op else old for old in self.calls]


def test_a_right_history_has_no_findings() -> None:
    assert World().found() == set()


def test_an_unanswered_call_may_count_or_not_but_everywhere_the_same() -> None:
    world = World()
    world.event("d", stated(8))
    assert world.found() == {"lost"}, "it is among the events, and missing from the sums"
    world.key("meter-1", world.seen.keys["meter-1"].plus(stated(8)))
    for name in ("meter-1", "b1-0"):
        world.budget(name, AMPLE, world.seen.budgets[name].used + 8)
    assert world.found() == set()


@pytest.mark.parametrize(
    ("correction", "there"),
    [
        (call("void_event", "cut", {"event": "a"}, T0 + SECOND, 0), Measures()),
        (call("amend", "cut", {"event": "a", "cost_nanos": 9}, T0 + SECOND, 0), stated(9)),
    ],
)
def test_an_unanswered_correction_is_there_or_not(correction: JournaledCall, there: Measures) -> None:
    world = World()
    world.calls.append(correction)
    assert world.found() == set()
    before = world.seen.events["a"]
    world.event("a", there)
    more = Measures(there.requests - 1, there.cost_nanos - before.cost_nanos, there.provider_nanos - 5)
    world.key("meter-1", world.seen.keys["meter-1"].plus(more))
    for name in ("meter-1", "b1-0"):
        world.budget(name, AMPLE, world.seen.budgets[name].used + more.cost_nanos)
    assert world.found() == set()
    world.event("a", stated(8))
    assert "lost" in world.found()


def test_an_unanswered_void_of_an_adjustment_is_there_or_not() -> None:
    world = World()
    world.replace("z", call("void_event", "z", {"event": "gone"}, T0 + SECOND, 0))
    assert world.found() == set()
    world.adjustment("gone", Measures(adjusted_nanos=39))
    assert "lost" in world.found()


def test_an_unanswered_adjustment_may_count_or_not_but_everywhere_the_same() -> None:
    world = World()
    world.adjustment("lost", Measures(adjusted_nanos=-2))
    assert world.found() >= {"lost", "double-counted"}, "it is in usage, and in no sum"
    world.key("", Measures(adjusted_nanos=3))
    world.budget("b1-0", AMPLE, world.seen.budgets["b1-0"].used + 2)
    world.see(credit={**world.seen.credit, "meter-1": CreditSeen(12, -3)})
    assert world.found() == set()


@pytest.mark.parametrize(
    ("allowed", "found"), [(10, set()), (17, set()), (12, {"double-counted"}), (24, {"double-counted"})]
)
def test_a_top_up_without_an_answer_is_there_once_or_not_at_all(allowed: int, found: set[str]) -> None:
    world = World()
    world.calls = [c for c in world.calls if c.op != "top_up" and c.id != "after"]
    world.event("after", None)
    world.key("topped-1", stated(7))
    world.calls.append(top_up("cut", T0 + SECOND, status=0))
    world.budget("topped-1", allowed, 7)
    assert world.found() == found


def test_a_revocation_without_an_answer_takes_the_grant_or_not() -> None:
    for left, found in ((0, set()), (4, set()), (3, {"lost"})):
        world = World()
        world.replace("r", call("revoke", "r", {"id": "h"}, T0 + 500, status=0))
        world.see(
            grants={**world.seen.grants, "h": left},
            credit={**world.seen.credit, "meter-1": CreditSeen(14 + left, -5)},
        )
        assert world.found() == found


def test_a_refusal_after_a_cut_may_leave_room_unused() -> None:
    """The try that was cut off came late, took the last room, and was voided when its client had been refused."""
    world = World()
    world.calls = [call_ for call_ in world.calls if call_.id != "even-1/2"]
    world.event("even-1/2", None)
    world.key("even-1", stated(14, 2))
    world.budget("even-1", 24, 14)
    assert world.found() == set(), "nobody was refused"
    world.refuse("even-1")
    assert world.found() == {"other"}
    world.calls[-1].sent = 2
    world.calls.append(call("void", "refused", {"hold_id": "refused"}, T0 + 2 * SECOND, 404, {}))
    assert world.found() == set()


WRONG: dict[str, tuple[str, Callable[[World], None]]] = {
    "an acknowledged event is gone": ("lost", lambda w: w.event("a", None)),
    "an acknowledged settlement is gone": ("lost", lambda w: w.event("even-1/0", None)),
    "an acknowledged amendment is gone": ("lost", lambda w: w.event("b", stated(6))),
    "an acknowledged void is gone": ("lost", lambda w: w.event("c", stated(7))),
    "an event counts twice": ("double-counted", lambda w: w.event("a", stated(10, 2))),
    "an unanswered event counts twice": ("double-counted", lambda w: w.event("d", stated(16, 2))),
    "an event that nobody sent counts": ("double-counted", lambda w: w.event("z", stated(1))),
    "an event without a name counts": ("double-counted", lambda w: w.event("", stated(0))),
    "a counter is too high": ("double-counted", lambda w: w.budget("even-1", 24, 28)),
    "a counter is too low": ("lost", lambda w: w.budget("even-1", 24, 14)),
    "a rollup is too high": (
        "double-counted",
        lambda w: w.key("fixed-1", stated(14, 3)),
    ),
    "a rollup is gone": ("lost", lambda w: w.see(keys={})),
    "credit was spent by nobody": (
        "double-counted",
        lambda w: w.see(credit={**w.seen.credit, "pools-1": CreditSeen(131, 1)}),
    ),
    "a grant is gone": ("lost", lambda w: w.see(grants={})),
    "a grant was posted twice": ("double-counted", lambda w: w.see(grants={**w.seen.grants, "g": 18})),
    "a hold never ends": ("other", lambda w: w.see(holds_open=1)),
    "more were accepted than sent": (
        "double-counted",
        lambda w: w.calls.append(events("again", {"a": 5}, T0 + SECOND)),
    ),
    "an acknowledged hold is unknown": (
        "lost",
        lambda w: w.replace("even-1/0", settle("even-1/0", T0 + 500, status=404)),
    ),
    "a call that had to wait for its answer": (
        "unanswered",
        lambda w: setattr(w.calls[0], "timed_out", 1),
    ),
    "a server error": (
        "other",
        lambda w: w.replace("g", call("grants", "g", {"id": "g", "amount_nanos": 9}, T0, 500, {})),
    ),
    "one more than fits the budget": (
        "overshoot",
        lambda w: w.calls.append(authorize("even-1", "more", T0 + SECOND)),
    ),
    "one more than fits the window": (
        "overshoot",
        lambda w: w.calls.append(authorize("fixed-1", "more", T0 + SECOND)),
    ),
    "one was refused that fitted": ("other", lambda w: w.refuse("user-1", tags={"user": "u2"}, cost_nanos=3)),
    "one was refused that no limit counts": ("other", lambda w: w.refuse("model-1", model="prove-b")),
    "a user was refused for another one's requests": (
        "other",
        lambda w: w.refuse("user-1", tags={"user": "u3"}),
    ),
    "one was refused that a top-up had made room for": (
        "other",
        lambda w: w.refuse("topped-1", cost_nanos=3),
    ),
    "one more than fits the seconds": (
        "overshoot",
        lambda w: w.calls.append(
            authorize("seconds-1", "more", T0 + SECOND, quantities={"seconds": "0.000006"})
        ),
    ),
    "one more of the model than its limit": (
        "overshoot",
        lambda w: w.calls.append(authorize("model-1", "more", T0 + SECOND, cost_nanos=7, model="prove-a1")),
    ),
    "one more of a user than fits": (
        "overshoot",
        lambda w: w.calls.append(authorize("user-1", "more", T0 + SECOND, cost_nanos=4, tags={"user": "u2"})),
    ),
    "one more than fits with the top-up": (
        "overshoot",
        lambda w: w.calls.append(authorize("topped-1", "more", T0 + SECOND, cost_nanos=4)),
    ),
    "a request used a top-up before it was posted": (
        "overshoot",
        lambda w: w.calls.append(authorize("topped-1", "early", T0, cost_nanos=7)),
    ),
    "a top-up was applied twice": ("double-counted", lambda w: w.budget("topped-1", 24, 14)),
    "a top-up is gone": ("lost", lambda w: w.budget("topped-1", 10, 14)),
    "a top-up was new twice": (
        "double-counted",
        lambda w: w.replace("again", top_up("again", T0 + SECOND)),
    ),
    "a top-up was there before it was posted": (
        "other",
        lambda w: w.replace("first", top_up("first", T0 + 40_000, repeated=True)),
    ),
    "a budget allows more than was set": ("double-counted", lambda w: w.budget("account-1", 145, 0)),
    "seconds are missing": ("lost", lambda w: w.event("p", PRICED._replace(seconds=0))),
    "images are missing": ("lost", lambda w: w.event("p", PRICED._replace(images=0))),
    "tokens are missing": ("lost", lambda w: w.event("p", PRICED._replace(tokens=41))),
    "a cost is a nano off": ("lost", lambda w: w.event("p", PRICED._replace(cost_nanos=36_361_572))),
    "a provider's cost is a nano off": (
        "lost",
        lambda w: w.event("p", PRICED._replace(provider_nanos=26_934_495)),
    ),
    "seconds of a rollup are missing": ("lost", lambda w: w.key("seconds-1", Measures(2))),
    "seconds of a counter are missing": ("lost", lambda w: w.budget("seconds-1", 2_500_005, 1_250_000)),
    "a user's counter has another one's requests": (
        "double-counted",
        lambda w: w.budget("user-1 of u1", 10, 14),
    ),
    "an adjustment is gone": ("lost", lambda w: w.adjustment("up", Measures())),
    "an adjustment counts twice": (
        "double-counted",
        lambda w: w.adjustment("up", Measures(adjusted_nanos=10)),
    ),
    "an adjustment counts as a request": (
        "double-counted",
        lambda w: w.adjustment("up", Measures(1, adjusted_nanos=5)),
    ),
    "a voided adjustment counts": (
        "double-counted",
        lambda w: w.adjustment("gone", Measures(adjusted_nanos=40)),
    ),
    "an adjustment that nobody sent counts": (
        "double-counted",
        lambda w: w.adjustment("never", Measures(adjusted_nanos=1)),
    ),
    "an adjustment is not in the budget": (
        "double-counted",
        lambda w: w.budget("b1-0", AMPLE, w.seen.budgets["b1-0"].used + 5),
    ),
    "an adjustment of the account moved a key's budget": (
        "lost",
        lambda w: w.budget("meter-1", AMPLE, w.seen.budgets["meter-1"].used - 5),
    ),
    "an adjustment is not in the balance": (
        "lost",
        lambda w: w.see(credit={**w.seen.credit, "meter-1": CreditSeen(9, -5)}),
    ),
    "an adjustment is not in the rollup": ("lost", lambda w: w.key("", Measures())),
    "a revoked grant is still there": (
        "double-counted",
        lambda w: w.see(grants={**w.seen.grants, "h": 4}),
    ),
    "a grant is there that nobody gave": (
        "double-counted",
        lambda w: w.see(grants={**w.seen.grants, "never": 1}),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found_out(name: str) -> None:
    kind, spoil = WRONG[name]
    world = World()
    spoil(world)
    assert kind in world.found()


def hold(sent: int, answered: int, *, expires: int = 10**9, ending: JournaledCall | None = None) -> Hold:
    made = call("authorize", "h", {"cost_nanos": 10, "quantities": {"seconds": "10"}}, sent)
    made.answered_us = answered
    return Hold(made, ending, expires)


def ended(op: str, sent: int, answered: int | None, cost: int = 4) -> JournaledCall:
    body = {"cost_nanos": cost, "quantities": {"seconds": cost}}
    made = call(op, "h", body, sent, status=0 if answered is None else 200)
    made.answered_us = answered
    return made


BUDGET = Bound("b", ("k",), 0, "budget", unit="nanos")
SECONDS = Bound("s", ("k",), 0, "fixed", "366d", unit="seconds")
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
        (SECONDS, hold(10, 20), 30, 10_000_000),
        (SECONDS, hold(10, 20, ending=ended("settle", 30, 40)), 30, 4_000_000),
        (SECONDS, hold(10, 20, ending=ended("settle", 30, 40, cost=99)), 60, 10_000_000),
        (SECONDS, hold(10, 20, ending=ended("void", 30, 40)), 30, 0),
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


def test_a_round_draws_what_it_says() -> None:
    """Else a count of 0 would say nothing of it."""
    scale = Scale(1, 4, 4)
    steps = [step for client in range(4) for at in range(4) for step in steps_of(7, 1, client, at, scale)]
    managed = [step for step in steps if isinstance(step, Manage)]
    assert {step.op for step in managed} == {"grants", "budgets", "top_up", "adjust", "revoke"}
    bodies = {step.body["id"]: step.body for step in managed if step.op in ("top_up", "adjust")}
    assert all(step.body == bodies[step.body["id"]] for step in managed if step.body["id"] in bodies)
    for op in ("top_up", "adjust"):
        ids = [step.body["id"] for step in managed if step.op == op]
        assert len(set(ids)) < len(ids), "several connections send the same"
    assert any(step.op == "top_up" and step.given_up for step in managed)
    assert {body["until_used"] for body in bodies.values() if "until_used" in body} == {False, True}
    amounts = [
        (body["account"], body.get("key_id", ""), body["amount_nanos"] > 0)
        for body in bodies.values()
        if "reason" in body
    ]
    assert len({amount[:2] for amount in amounts}) == 4
    assert {amount[2] for amount in amounts} == {False, True}
    corrected = [step for step in steps if isinstance(step, Correct)]
    assert any(step.event in bodies for step in corrected), "adjustments are voided"
    assert any("quantities" in (step.changes or {}) for step in corrected)
    spent = [step for step in steps if isinstance(step, SpendStep)]
    assert any("usage" in step.used for step in spent)
    sent = [event_of(7, f"e1-{number}") for number in range(100)]
    assert {name for event in sent for name in event} >= {
        "cost_nanos",
        "tokens",
        "usage",
        "usage_of",
        "quantities",
    }
