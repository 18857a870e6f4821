"""
What must be there after a part of an installation went back to an earlier state, counted with plain integers.

Every event costs the same, so a counter is a number of events. Nobody can know what only the lost part knew:

* acknowledged before the older of the two copies was taken: exactly once;
* acknowledged afterwards, and before the restore: lost by the restore, or there; never twice;
* acknowledged after the restore, sent for the first time or again: exactly once;
* usage answers that lack what the ledger has charged do not say that they are complete;
* where the counter and the events differ, verify says so. It never says `ok` then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from tollkeeper.prove.look import Counted
from tollkeeper.prove.oracle import Finding, FindingKind

COST_NANOS: Final = 1_000
"""Of every event."""
IDS_SHOWN: Final = 5
_NOTHING: Final = Counted(0, 0)


class Acknowledged(NamedTuple):
    """
    What clients were answered, as ids of events.

    Attributes:
        before: Before the older copy was taken (all that there is when nothing went back).
        between: After it and before the restore.
        after: After the restore, those among them that were sent again.
        charged: Those that the ledger had charged in the state that it went back to.
        accepted: How many events the answers after the restore said were new.
        settled: Holds whose settlement was acknowledged after the restore and was before it too. The ledger may have
            charged each of them then, or have answered from before.
        went_back: Whether a part went back at all. Else verify must find nothing.
    """

    before: frozenset[str]
    between: frozenset[str]
    after: frozenset[str]
    charged: frozenset[str]
    accepted: int
    settled: int = 0
    went_back: bool = True


class FinalAnswers(NamedTuple):
    """
    What the server says in the end.

    Attributes:
        events: Every event that counts, by its tag `op`; from the events themselves.
        rollup: The sum of all, from the rollups.
        used: Nanos that the key's counter has.
        differences: What verify found; nothing when it said `ok`.
        complete: Whether the usage answers say that they are.
    """

    events: Mapping[str, Counted]
    rollup: Counted
    used: int
    differences: tuple[str, ...]
    complete: bool = True


def check_gone_back(acknowledged: Acknowledged, answers: FinalAnswers) -> list[Finding]:
    """Return everything that is wrong."""
    return [
        *_events(acknowledged, answers.events),
        *_sums(acknowledged, answers),
    ]


def _events(acknowledged: Acknowledged, events: Mapping[str, Counted]) -> Iterator[Finding]:
    must = acknowledged.before | acknowledged.after
    wrong: dict[tuple[FindingKind, str], list[str]] = {}
    for id_ in sorted(must | acknowledged.between | events.keys()):
        count, cost = events.get(id_, _NOTHING)
        if id_ not in must and id_ not in acknowledged.between:
            if (count, cost) != _NOTHING:
                wrong.setdefault(("double-counted", "were never sent, and count"), []).append(id_)
        elif count > 1:
            wrong.setdefault(("double-counted", "count more than once"), []).append(id_)
        elif count == 0 and id_ in must:
            when = "after the restore" if id_ in acknowledged.after else "before the copy was taken"
            wrong.setdefault(("lost", f"were acknowledged {when} and do not count"), []).append(id_)
        elif cost != count * COST_NANOS:
            wrong.setdefault(("other", f"do not cost {COST_NANOS} nanos each"), []).append(id_)
    for (kind, what), ids in wrong.items():
        yield Finding(kind, f"{len(ids)} events {what}: {', '.join(ids[:IDS_SHOWN])}", tuple(ids))


def _sums(acknowledged: Acknowledged, answers: FinalAnswers) -> Iterator[Finding]:
    there = Counted(
        sum(counted.events for counted in answers.events.values()),
        sum(counted.cost_nanos for counted in answers.events.values()),
    )
    if answers.rollup != there:
        yield Finding(
            "lost" if answers.rollup < there else "double-counted",
            f"usage by key has {answers.rollup.events} events of {answers.rollup.cost_nanos} nanos, "
            f"usage by event has {there.events} of {there.cost_nanos}",
        )
    least = COST_NANOS * (len(acknowledged.charged) + acknowledged.accepted)
    most = least + COST_NANOS * acknowledged.settled
    if not least <= answers.used <= most:
        due = f"{least}" if least == most else f"{least} to {most}"
        yield Finding(
            "lost" if answers.used < least else "double-counted",
            f"the counter has {answers.used} nanos, and {due} are due",
        )
    if answers.used != there.cost_nanos and not answers.differences:
        yield Finding(
            "verify",
            f"verify says ok, with {answers.used} nanos in the counter and {there.cost_nanos} in the events",
        )
    # Those that must be there are findings already.
    lacking = acknowledged.charged - answers.events.keys() - acknowledged.before - acknowledged.after
    if lacking and answers.complete:
        what = f"{len(lacking)} events that the ledger has charged are missing from answers that say complete"
        yield Finding("lost", what, tuple(sorted(lacking)))
    if not acknowledged.went_back:
        if not answers.complete:
            yield Finding("other", "the usage answers do not become complete")
        for difference in answers.differences:
            yield Finding("verify", difference)
