"""
What must be there, counted from the journals alone with plain integers, held against what the server says.

It knows nothing of how Tollkeeper counts. All its times are those of the clients: a thing was done at some
instant between its first sending and its answer, so whatever is reported here did go wrong, in whichever
order the server took the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.periods import duration_s
from tollkeeper.prove.faults import Fault
from tollkeeper.prove.journal import ANSWER_S_MAX, JournaledCall
from tollkeeper.prove.look import Counted, Seen
from tollkeeper.prove.plan import Bound, Round, secret_of

FindingKind = Literal["overshoot", "lost", "double-counted", "verify", "unanswered", "other"]
KINDS: Final[tuple[FindingKind, ...]] = (
    "overshoot",
    "lost",
    "double-counted",
    "verify",
    "unanswered",
    "other",
)
_NOTHING: Final = Counted(0, 0)


class Finding(NamedTuple):
    """
    One thing that is wrong.

    Attributes:
        what: In words.
        ids: Of the calls and events that show it.
        fault: Which fault was being made.
    """

    kind: FindingKind
    what: str
    ids: tuple[str, ...] = ()
    fault: Fault = "kills"


class Hold(NamedTuple):
    """One request that was admitted for sure, and how it was ended, if anybody tried."""

    made: JournaledCall
    ending: JournaledCall | None
    amount: int
    expires_us: int

    def in_place(self, bound: Bound, at_us: int) -> int:
        """Return what this request surely takes of *bound* at an instant, whatever the server did first."""
        assert self.made.answered_us is not None
        if self.made.answered_us > at_us:
            return 0
        if bound.kind == "sliding":
            # It may have been admitted as early as it was sent.
            return int(
                self.made.sent_us > at_us - duration_s(bound.window) * US_PER_S
                and not self._may_be_void(at_us)
            )
        if bound.kind == "fixed":
            width_us = duration_s(bound.window) * US_PER_S
            return int(self.made.sent_us // width_us == at_us // width_us and not self._may_be_void(at_us))
        ending = self.ending
        if ending is None or ending.sent_us > at_us:
            held = 1 if bound.kind == "concurrency" else self.amount
            return held if at_us < self.expires_us else 0
        if bound.kind == "concurrency" or ending.op == "void":
            return 0
        in_time = (
            ending.acknowledged and ending.answered_us is not None and ending.answered_us < self.expires_us
        )
        if not in_time and at_us >= self.expires_us:
            # It may have been settled late: booked whole, as overdraft that no budget stops.
            return 0
        return int(min(self.amount, ending.body["cost_nanos"]))

    def _may_be_void(self, at_us: int) -> bool:
        voided = self.ending is not None and self.ending.op == "void" and self.ending.sent_us <= at_us
        return voided or at_us >= self.expires_us


class BookedEvent:
    """
    What is due of one event.

    Attributes:
        cost: What it costs when it counts.
        must: Whether it was acknowledged; else it may count or not.
        voided: It was acknowledged that it does not count.
    """

    __slots__ = ("cost", "key", "must", "voided")

    def __init__(self, key: str, cost: int) -> None:
        self.key = key
        self.cost = cost
        self.must = self.voided = False


def check(
    plan: Round, calls: Sequence[JournaledCall], seen: Seen, *, callers: int, kills: int
) -> list[Finding]:
    """
    Return everything that is wrong with one round.

    Args:
        calls: Of all clients of the round.
        seen: What the server says when all of them are through.
        callers: Connections that called at the same time.
        kills: How often the server was killed in the round.
    """
    findings = list(_odd_answers(calls))
    holds = _holds(calls)
    key_of = {secret_of(key): key for bound in plan.bounds for key in bound.keys}
    by_key: dict[str, list[Hold]] = {key: [] for key in key_of.values()}
    for hold in holds:
        by_key[key_of[hold.made.body["key"]]].append(hold)
    for bound in plan.bounds:
        # Refused, while an earlier try that was cut off may have taken the room until it was voided.
        doubtful = sum(
            call.sent > 1 and not call.acknowledged
            for call in calls
            if call.op == "authorize" and key_of[call.body["key"]] in bound.keys
        )
        of_bound = [hold for key in bound.keys for hold in by_key[key]]
        findings += _overshoot(bound, of_bound, doubtful, callers * kills)
    booked = _booked(calls, {hold.made.id: key_of[hold.made.body["key"]] for hold in holds})
    findings += _events(booked, seen)
    findings += _sums(plan, booked, seen)
    findings += _accepted(calls)
    findings += _grants(plan, calls, seen)
    if seen.holds_open:
        findings.append(Finding("other", f"{seen.holds_open} holds are open long after their time"))
    return findings


def history(calls: Iterable[JournaledCall], ids: Iterable[str]) -> list[str]:
    """Return, a line each, the calls that one of *ids* is about, in the order in which they were sent."""
    wanted = set(ids)
    lines = []
    for call in calls:
        if call.op == "events":
            body = [event for event in call.body if event["id"] in wanted]
            of = f"{len(call.body)} events, with {body}" if body or call.id in wanted else ""
        else:
            of = str(call.body) if wanted & {call.id, call.body.get("event"), call.body.get("id")} else ""
        if of:
            took = (
                "no answer"
                if call.answered_us is None
                else f"{call.status} at {call.answered_us}: {call.answer}"
            )
            lines.append(f"{call.sent_us} {call.op} {call.id}, sent {call.sent}x: {of}; {took}")
    return lines


# -- limits and budgets -----------------------------------------------------------------------------------


def _holds(calls: Sequence[JournaledCall]) -> list[Hold]:
    endings = {call.id: call for call in calls if call.op in ("settle", "void")}
    return [
        Hold(call, endings.get(call.id), call.body["cost_nanos"], parse_time_us(call.answer["expires_at"]))
        for call in calls
        if call.op == "authorize" and call.acknowledged
    ]


def _overshoot(
    bound: Bound, holds: Sequence[Hold], doubtful: int, lost_permits_max: int
) -> Iterator[Finding]:
    worst, at_us = 0, 0
    for hold in holds:
        assert hold.made.answered_us is not None
        taken = sum(other.in_place(bound, hold.made.answered_us) for other in holds)
        if taken > worst:
            worst, at_us = taken, hold.made.answered_us
    if worst > bound.allowed:
        ids = tuple(hold.made.id for hold in holds if hold.in_place(bound, at_us))
        yield Finding("overshoot", f"{bound.name}: {worst} of {bound.allowed} in place at {at_us}", ids)
    if not bound.exact:
        return
    if bound.kind == "budget":
        fitting = bound.allowed // holds[0].amount if holds else 1
        least = fitting - doubtful
    else:
        # A window may have stored a permit whose hold the kill undid: so many at most, as each caller has
        # one call under way. They are lost until the window ends; nothing overshoots.
        fitting, least = bound.allowed, bound.allowed - doubtful - lost_permits_max
    if not least <= len(holds) <= fitting:
        kind: FindingKind = "overshoot" if len(holds) > fitting else "other"
        ids = tuple(hold.made.id for hold in holds)
        yield Finding(kind, f"{bound.name}: {len(holds)} were admitted where {fitting} fit", ids)


# -- events and sums --------------------------------------------------------------------------------------


def _booked(calls: Sequence[JournaledCall], holds: dict[str, str]) -> dict[str, BookedEvent]:
    """Return what may count, by the id that its tag `op` has."""
    found: dict[str, BookedEvent] = {}
    for call in calls:
        if call.op == "settle":
            event = found[call.id] = BookedEvent(holds[call.id], call.body["cost_nanos"])
            event.must = call.acknowledged
        elif call.op == "events":
            for body in call.body:
                event = found.setdefault(body["id"], BookedEvent(body["key_id"], body["cost_nanos"]))
                event.must |= call.acknowledged and not call.answer["rejected"]
        elif call.op in ("amend", "void_event") and call.acknowledged:
            event = found[call.body["event"]]
            event.voided = call.op == "void_event"
            event.cost = call.body.get("cost_nanos", event.cost)
    return found


def _events(booked: dict[str, BookedEvent], seen: Seen) -> Iterator[Finding]:
    for id_, event in booked.items():
        count, cost = seen.events.get(id_, _NOTHING)
        if count > 1:
            yield Finding("double-counted", f"{id_} counts {count} times, {cost} nanos", (id_,))
        elif event.voided and (count, cost) != _NOTHING:
            yield Finding("lost", f"{id_} was voided, and counts with {cost} nanos", (id_,))
        elif count == 0 and event.must and not event.voided:
            yield Finding("lost", f"{id_} was acknowledged and does not count", (id_,))
        elif count == 1 and cost != event.cost:
            yield Finding("lost", f"{id_} costs {cost} nanos where {event.cost} was acknowledged", (id_,))
        elif count < 0 or (count == 0 and cost):
            yield Finding("other", f"{id_} counts {count} times, {cost} nanos", (id_,))
    for id_, counted in seen.events.items():
        if id_ not in booked and counted != _NOTHING:
            yield Finding(
                "double-counted", f"{id_ or 'an event'} counts and was never sent: {counted}", (id_,)
            )


def _sums(plan: Round, booked: dict[str, BookedEvent], seen: Seen) -> Iterator[Finding]:
    """Hold sums against what is there: unanswered calls count or not, but the same everywhere."""
    due: dict[str, Counted] = {}
    for id_, event in booked.items():
        there = seen.events.get(id_, _NOTHING)
        before = due.get(event.key, _NOTHING)
        # An event that counts twice is reported above: here it is due once.
        once = there if there.events < 2 else Counted(1, event.cost)
        due[event.key] = Counted(before.events + once.events, before.cost_nanos + once.cost_nanos)
    for key in sorted(due.keys() | seen.keys.keys()):
        yield from _sum(
            f"usage of {key}, requests", due.get(key, _NOTHING).events, seen.keys.get(key, _NOTHING).events
        )
        yield from _sum(
            f"usage of {key}, nanos",
            due.get(key, _NOTHING).cost_nanos,
            seen.keys.get(key, _NOTHING).cost_nanos,
        )
    keys_of = {f"{bound.name}-{plan.number}": bound.keys for bound in plan.bounds if bound.kind == "budget"}
    credit_keys = keys_of.pop(f"credit-{plan.number}")
    for name, used in seen.used.items():
        keys = keys_of.get(name, (f"meter-{plan.number}",))
        yield from _sum(f"budget {name}", sum(due.get(key, _NOTHING).cost_nanos for key in keys), used)
    spent = sum(due.get(key, _NOTHING).cost_nanos for key in credit_keys)
    yield from _sum("credit spent", spent, seen.spent_nanos)


def _sum(what: str, due: int, found: int) -> Iterator[Finding]:
    if found != due:
        yield Finding("lost" if found < due else "double-counted", f"{what}: {found}, and {due} is due")


def _accepted(calls: Sequence[JournaledCall]) -> Iterator[Finding]:
    """Of all that the answers said was new, each event may be new once."""
    posts = [call for call in calls if call.op == "events" and call.acknowledged]
    distinct = {event["id"] for call in posts for event in call.body}
    accepted = sum(call.answer["accepted"] for call in posts)
    if accepted > len(distinct):
        yield Finding("double-counted", f"{accepted} events were accepted where {len(distinct)} were sent")
    for call in posts:
        answer = call.answer
        if answer["accepted"] + answer["duplicates"] + answer["rejected"] != len(call.body):
            yield Finding("other", f"batch {call.id}: the answer does not add up", (call.id,))
        if any(error["code"] != "event_conflict" for error in answer["errors"]):
            yield Finding(
                "other", f"batch {call.id}: events were rejected: {answer['errors'][0]}", (call.id,)
            )


def _grants(plan: Round, calls: Sequence[JournaledCall], seen: Seen) -> Iterator[Finding]:
    for call in calls:
        if call.op == "grants" and call.acknowledged:
            found = seen.grants.get(call.body["id"], 0)
            yield from _sum(f"grant {call.body['id']}", call.body["amount_nanos"], found)
        if call.op == "budgets" and call.acknowledged and call.body["id"] not in seen.used:
            yield Finding("lost", f"budget {call.body['id']} was set and is not in force", (call.id,))


# -- answers ----------------------------------------------------------------------------------------------


def _odd_answers(calls: Sequence[JournaledCall]) -> Iterator[Finding]:
    voided: set[str] = set()
    for call in calls:
        if call.timed_out:
            what = f"{call.op} {call.id}: no answer within {ANSWER_S_MAX} s, {call.timed_out} times"
            yield Finding("unanswered", what, (call.id,))
    refused = {call.id for call in calls if call.op == "authorize" and not call.acknowledged}
    for call in calls:
        if call.op == "void" and call.status == 404 and call.id in refused:
            continue
        if call.op == "void_event" and call.acknowledged:
            voided.add(call.body["event"])
        if call.answered_us is None or call.acknowledged or _may_refuse(call, voided):
            continue
        kind: FindingKind = "lost" if call.status == 404 else "other"
        yield Finding(kind, f"{call.op} {call.id} was answered {call.status}: {_detail(call)}", (call.id,))


def _may_refuse(call: JournaledCall, voided: set[str]) -> bool:
    if call.op == "authorize":
        # 409: tried again after the hold had expired.
        return call.status in (402, 429) or (call.status == 409 and call.answer.get("code") == "hold_ended")
    # A second correction of what the same client voided before.
    return call.status == 404 and call.op in ("amend", "void_event") and call.body["event"] in voided


def _detail(call: JournaledCall) -> Any:
    return call.answer.get("detail") if isinstance(call.answer, dict) else call.answer
