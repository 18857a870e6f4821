"""The oracle of installations of which a part went back in time: right histories pass, and each wrong one is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tollkeeper.prove.gone_back import COST_NANOS, Acknowledged, FinalAnswers, check_gone_back
from tollkeeper.prove.look import Counted

ONE = Counted(1, COST_NANOS)
DIFFERS = ("kept: budget:ample: expected 4000, found 3000",)


def ids(text: str) -> frozenset[str]:
    return frozenset(text)


class World:
    """
    An older ledger beside a newer usage store, done right.

    a and b are from before the copy; c, d and h from between, of which c and h were delivered, d not; e is new. Sent
    again after the restore: b and c (known), d (taken as new), h (a settlement that the ledger charged again).
    """

    def __init__(self) -> None:
        self.acknowledged = Acknowledged(
            before=ids("ab"), between=ids("cdh"), after=ids("ebcdh"), charged=ids("ab"), accepted=2, settled=1
        )
        self.answers = FinalAnswers(
            events=dict.fromkeys("abcdeh", ONE),
            rollup=Counted(6, 6 * COST_NANOS),
            used=5 * COST_NANOS,
            differences=DIFFERS,
        )

    def found(self) -> set[str]:
        return {finding.kind for finding in check_gone_back(self.acknowledged, self.answers)}

    def see(self, id_: str, counted: Counted | None) -> None:
        """Change one event, and the rollup with it, so that they agree."""
        events = {name: value for name, value in self.answers.events.items() if name != id_}
        if counted is not None:
            events[id_] = counted
        count = sum(value.events for value in events.values())
        cost = sum(value.cost_nanos for value in events.values())
        self.answers = self.answers._replace(events=events, rollup=Counted(count, cost))


def test_a_right_history_has_no_findings() -> None:
    assert World().found() == set()


def test_what_only_the_lost_ledger_knew_may_be_gone_unless_it_is_sent_again() -> None:
    world = World()
    world.acknowledged = world.acknowledged._replace(after=ids("e"), accepted=1, settled=0)
    world.answers = world.answers._replace(used=3 * COST_NANOS)
    world.see("c", None)
    world.see("d", None)
    assert world.found() == set()
    world.see("a", None)
    assert world.found() == {"lost"}


@pytest.mark.parametrize("used", [4, 5])
def test_a_settlement_that_comes_again_may_be_charged_or_answered_from_before(used: int) -> None:
    world = World()
    world.answers = world.answers._replace(used=used * COST_NANOS)
    assert world.found() == set()


def test_verify_may_say_ok_where_nothing_differs_and_must_where_nothing_went_back() -> None:
    whole = Acknowledged(ids("ab"), ids(""), ids(""), charged=ids("ab"), accepted=0, went_back=False)
    right = FinalAnswers(dict.fromkeys("ab", ONE), Counted(2, 2 * COST_NANOS), 2 * COST_NANOS, ())
    assert check_gone_back(whole, right) == []
    assert [f.kind for f in check_gone_back(whole, right._replace(differences=DIFFERS))] == ["verify"]
    assert [f.kind for f in check_gone_back(whole, right._replace(complete=False))] == ["other"]
    assert check_gone_back(whole._replace(went_back=True), right._replace(differences=DIFFERS)) == []


def test_what_an_older_store_lacks_is_not_passed_over() -> None:
    """The other way round: the ledger has c, the usage store went back to before it."""
    newer = Acknowledged(ids("ab"), ids("c"), ids("e"), charged=ids("abc"), accepted=1)
    missing_members = FinalAnswers(
        dict.fromkeys("abe", ONE), Counted(3, 3 * COST_NANOS), 4 * COST_NANOS, DIFFERS
    )
    assert [(f.kind, f.ids) for f in check_gone_back(newer, missing_members)] == [("lost", ("c",))]
    assert check_gone_back(newer, missing_members._replace(complete=False)) == []


WRONG: dict[str, tuple[str, Callable[[World], None]]] = {
    "an event of before the copy is gone": ("lost", lambda w: w.see("a", None)),
    "an event of after the restore is gone": ("lost", lambda w: w.see("e", None)),
    "an event that was sent again is gone": ("lost", lambda w: w.see("d", None)),
    "an event of after the restore counts twice": (
        "double-counted",
        lambda w: w.see("e", Counted(2, 2 * COST_NANOS)),
    ),
    "an event that was sent again counts twice": (
        "double-counted",
        lambda w: w.see("c", Counted(2, 2 * COST_NANOS)),
    ),
    "a settlement that came again counts twice": (
        "double-counted",
        lambda w: w.see("h", Counted(2, 2 * COST_NANOS)),
    ),
    "an event that nobody sent counts": ("double-counted", lambda w: w.see("z", ONE)),
    "an event has another cost": ("other", lambda w: w.see("a", Counted(1, COST_NANOS + 1))),
    "the rollup lacks an event": (
        "lost",
        lambda w: setattr(w, "answers", w.answers._replace(rollup=Counted(5, 5 * COST_NANOS))),
    ),
    "the rollup has one too many": (
        "double-counted",
        lambda w: setattr(w, "answers", w.answers._replace(rollup=Counted(7, 7 * COST_NANOS))),
    ),
    "the counter lacks what was accepted after the restore": (
        "lost",
        lambda w: setattr(w, "answers", w.answers._replace(used=3 * COST_NANOS)),
    ),
    "the counter has what nobody was told of": (
        "double-counted",
        lambda w: setattr(w, "answers", w.answers._replace(used=6 * COST_NANOS)),
    ),
    "verify says ok where counter and events differ": (
        "verify",
        lambda w: setattr(w, "answers", w.answers._replace(differences=())),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found_out(name: str) -> None:
    kind, spoil = WRONG[name]
    world = World()
    spoil(world)
    assert kind in world.found()
