"""
What must be there after a crowd has sent requests of some units each to one bound, counted with plain integers.

* A request that was answered as done is booked once, with the units that its answer showed.
* One that was refused is not booked. One without an answer is booked once, or not at all.
* No more is booked than the bound has, except what was settled after its hold had expired: overdraft by design.
* When all holds have ended, exactly the rest of the bound can still be spent: nothing of it is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from tollkeeper.prove.look import Counted
from tollkeeper.prove.oracle import Finding, FindingKind

UNIT_NANOS: Final = 1_000
"""What one unit costs."""
IDS_SHOWN: Final = 5
_NOTHING: Final = Counted(0, 0)


class Attempt(NamedTuple):
    """
    One request, as its client knows it.

    Attributes:
        id: The tag `op` of its event.
        outcome: `booked` for sure, `refused`, or `perhaps` booked: the client cannot know.
        least, most: Units that it costs if it is booked.
        is_late: It may have been settled after its hold had expired.
    """

    id: str
    outcome: Literal["booked", "refused", "perhaps"]
    least: int = 1
    most: int = 1
    is_late: bool = False


class Spent(NamedTuple):
    """
    What the server says in the end.

    Attributes:
        events: Every event that counts, by its tag `op`; "" are those without.
        used: Nanos that the counter of the bound has.
        differences: What verify found.
        is_full: The bound was spent to its end afterwards, by requests that are among the attempts.
    """

    events: Mapping[str, Counted]
    used: int
    differences: tuple[str, ...] = ()
    is_full: bool = True


def check_attempts(attempts: Sequence[Attempt], units: int, spent: Spent) -> list[Finding]:
    """Return everything that is wrong with a bound of so many *units*."""
    return [*_each(attempts, spent.events), *_sums(attempts, units, spent)]


def _each(attempts: Sequence[Attempt], events: Mapping[str, Counted]) -> Iterator[Finding]:
    wrong: dict[tuple[FindingKind, str], list[str]] = {}
    by_id = {attempt.id: attempt for attempt in attempts}
    for id_ in sorted(by_id.keys() | events.keys()):
        count, cost = events.get(id_, _NOTHING)
        attempt = by_id.get(id_)
        if attempt is None:
            if (count, cost) != _NOTHING:
                wrong.setdefault(("double-counted", "were never sent, and count"), []).append(id_)
        elif attempt.outcome == "refused":
            if (count, cost) != _NOTHING:
                wrong.setdefault(("double-counted", "were refused, and count"), []).append(id_)
        elif count > 1:
            wrong.setdefault(("double-counted", "count more than once"), []).append(id_)
        elif count == 0 and attempt.outcome == "booked":
            wrong.setdefault(("lost", "were answered as done and do not count"), []).append(id_)
        elif count and cost < attempt.least * UNIT_NANOS:
            wrong.setdefault(("lost", "cost less than was served"), []).append(id_)
        elif count and cost > attempt.most * UNIT_NANOS:
            wrong.setdefault(("double-counted", "cost more than was served"), []).append(id_)
    for (kind, what), ids in wrong.items():
        yield Finding(kind, f"{len(ids)} requests {what}: {', '.join(ids[:IDS_SHOWN])}", tuple(ids))


def _sums(attempts: Sequence[Attempt], units: int, spent: Spent) -> Iterator[Finding]:
    total = sum(cost for _, cost in spent.events.values())
    bound = units * UNIT_NANOS
    late = sum(attempt.most for attempt in attempts if attempt.is_late) * UNIT_NANOS
    if total > bound + late:
        yield Finding("overshoot", f"{total} nanos are booked where {bound} fit, and {late} may be overdraft")
    elif spent.is_full and total < bound:
        yield Finding("other", f"{total} nanos are booked, and of {bound} no more can be spent")
    if spent.used != total:
        kind: FindingKind = "lost" if spent.used < total else "double-counted"
        yield Finding(kind, f"the counter has {spent.used} nanos, and the events {total}")
    for difference in spent.differences:
        yield Finding("verify", difference)
