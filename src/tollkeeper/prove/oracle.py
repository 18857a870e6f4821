"""
What must be there, counted from the journals alone with plain integers, held against what the server says.

It knows nothing of how Tollkeeper counts. All its times are those of the clients: a thing was done at some
instant between its first sending and its answer, so whatever is reported here did go wrong, in whichever
order the server took the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.periods import duration_s
from tollkeeper.prove.amounts import Measures, measures_of
from tollkeeper.prove.faults import Fault
from tollkeeper.prove.journal import ANSWER_S_MAX, JournaledCall
from tollkeeper.prove.look import BudgetSeen, CreditSeen, Seen
from tollkeeper.prove.plan import AMPLE, TOPPED, Bound, Round, accounts_of, label_of, secret_of

FindingKind = Literal["overshoot", "lost", "double-counted", "verify", "unanswered", "other"]
KINDS: Final[tuple[FindingKind, ...]] = (
    "overshoot",
    "lost",
    "double-counted",
    "verify",
    "unanswered",
    "other",
)
_NOTHING: Final = Measures()


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
    expires_us: int

    def in_place(self, bound: Bound, at_us: int) -> int:
        """Return what this request surely takes of *bound* at an instant, whatever the server did first."""
        assert self.made.answered_us is not None
        if self.made.answered_us > at_us:
            return 0
        if bound.kind == "sliding":
            # It may have been admitted as early as it was sent.
            inside = self.made.sent_us > at_us - duration_s(bound.window) * US_PER_S
            return self._least(bound, at_us) if inside and not self._may_be_void(at_us) else 0
        if bound.kind == "fixed":
            width_us = duration_s(bound.window) * US_PER_S
            inside = self.made.sent_us // width_us == at_us // width_us
            return self._least(bound, at_us) if inside and not self._may_be_void(at_us) else 0
        ending = self.ending
        if ending is None or ending.sent_us > at_us:
            return self._held(bound) if at_us < self.expires_us else 0
        if bound.kind == "concurrency" or ending.op == "void":
            return 0
        in_time = (
            ending.acknowledged and ending.answered_us is not None and ending.answered_us < self.expires_us
        )
        if not in_time and at_us >= self.expires_us:
            # It may have been settled late: booked whole, as overdraft that no budget stops.
            return 0
        return self._least(bound, at_us)

    def _held(self, bound: Bound) -> int:
        return measures_of(self.made.body).of(bound.unit)

    def _least(self, bound: Bound, at_us: int) -> int:
        """Return the lesser of what it held and what it was settled with, which may be in force."""
        if self.ending is None or self.ending.op == "void" or self.ending.sent_us > at_us:
            return self._held(bound)
        return min(self._held(bound), measures_of(settled_body(self.made, self.ending)).of(bound.unit))

    def _may_be_void(self, at_us: int) -> bool:
        voided = self.ending is not None and self.ending.op == "void" and self.ending.sent_us <= at_us
        return voided or at_us >= self.expires_us


class Raise(NamedTuple):
    """What is added to a bound for good: at the earliest when it was sent, at the latest when it was acknowledged."""

    amount: int
    sent_us: int
    answered_us: int | None


class BookedEvent:
    """
    What is due of one event.

    Attributes:
        body: What it states, as it was corrected last.
        must: Whether it was acknowledged; else it may count or not.
        voided: It was acknowledged that it does not count.
        perhaps: What it may count as instead, after a correction without an answer.
    """

    __slots__ = ("body", "key", "must", "perhaps", "voided")

    def __init__(self, key: str, body: Mapping[str, Any]) -> None:
        self.key = key
        self.body = body
        self.must = self.voided = False
        self.perhaps: Measures | None = None

    def amended(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return its body after a correction."""
        quantities = {**self.body.get("quantities", {}), **changes.get("quantities", {})}
        return {**self.body, **changes, "quantities": quantities}


class BookedAdjustment:
    """What is due of one adjustment, in the words of `BookedEvent`."""

    __slots__ = ("account", "amount", "key", "must", "perhaps_void", "voided")

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.account: str = body["account"]
        self.key: str = body.get("key_id", "")
        self.amount: int = body["amount_nanos"]
        self.must = self.voided = self.perhaps_void = False

    def moves(self, bound: Bound) -> bool:
        """Return whether it is given to what *bound* counts: of its key, or of its account as a whole."""
        if self.key:
            return self.key in bound.keys
        return bound.whole and self.account == bound.account


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
    adjusted = _adjusted(calls)
    counters = [_Counter(bound, key_of, calls, adjusted) for bound in plan.bounds]
    for counter in counters:
        findings += _overshoot(counter, [hold for hold in holds if counter.counts(hold.made)])
    # A window may have stored a permit whose hold the kill undid: so many at most, as each caller has one call
    # under way. They are lost until the window ends; nothing overshoots.
    findings += _refusals(counters, calls, callers * kills)
    booked = _booked(calls, {hold.made.id: hold.made for hold in holds}, key_of)
    findings += _events(booked, seen)
    findings += _adjustments(adjusted, seen)
    findings += _sums(plan, booked, adjusted, seen)
    findings += _accepted(calls)
    findings += _top_ups(plan, calls, seen)
    findings += _grants(plan, calls, seen)
    if seen.holds_open:
        findings.append(Finding("other", f"{seen.holds_open} holds are open long after their time"))
    return findings


def settled_body(made: JournaledCall, ending: JournaledCall) -> dict[str, Any]:
    """Return what a settlement states, with the model and tags of its hold."""
    stated = {name: made.body[name] for name in ("model", "tags") if name in made.body}
    return {**stated, **ending.body}


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


class _Counter:
    """What the journals say of one bound: who tried to take of it, and what was added to it."""

    def __init__(
        self,
        bound: Bound,
        key_of: Mapping[str, str],
        calls: Sequence[JournaledCall],
        adjusted: Mapping[str, BookedAdjustment],
    ) -> None:
        self.bound = bound
        self._key_of = key_of
        # Admitted, or perhaps: without an answer, or refused when an earlier try may have taken the room.
        self.taken = [
            (call.sent_us, measures_of(call.body).of(bound.unit))
            for call in calls
            if call.op == "authorize"
            and self.counts(call)
            and (call.acknowledged or call.sent > 1 or call.answered_us is None)
        ]
        self.raises = _raises(bound, calls, adjusted)

    def counts(self, call: JournaledCall) -> bool:
        return self._key_of[call.body["key"]] in self.bound.keys and self.bound.counts(call.body)

    def at_most(self, at_us: int) -> int:
        """Return what may have been allowed at an instant."""
        return self.bound.allowed + sum(
            more.amount for more in self.raises if more.amount > 0 and more.sent_us <= at_us
        )

    def had_room(self, refused: JournaledCall, lost_permits_max: int) -> bool:
        """Return whether a refused request fitted, whichever of the other calls came first."""
        assert refused.answered_us is not None
        taken = sum(amount for sent_us, amount in self.taken if sent_us < refused.answered_us)
        taken += measures_of(refused.body).of(self.bound.unit)
        allowed = self.bound.allowed + sum(
            more.amount
            for more in self.raises
            if more.answered_us is not None and more.answered_us <= refused.sent_us
        )
        return taken + (0 if self.bound.kind == "budget" else lost_permits_max) <= allowed


def _raises(
    bound: Bound, calls: Sequence[JournaledCall], adjusted: Mapping[str, BookedAdjustment]
) -> list[Raise]:
    """Return what was added to *bound*: each id once, no matter who sent it."""
    found: dict[str, Raise] = {}
    for call in calls:
        if call.op == "top_up" and bound.name == TOPPED:
            amount = top_up_nanos(call.body)
        elif call.op == "adjust" and bound.unit == "nanos" and adjusted[call.body["id"]].moves(bound):
            amount = call.body["amount_nanos"]
        else:
            continue
        answered_us = call.answered_us if call.acknowledged else None
        earlier = found.get(call.body["id"])
        if earlier is None:
            found[call.body["id"]] = Raise(amount, call.sent_us, answered_us)
        elif answered_us is not None:
            first = answered_us if earlier.answered_us is None else min(answered_us, earlier.answered_us)
            found[call.body["id"]] = earlier._replace(answered_us=first)
    return list(found.values())


def _holds(calls: Sequence[JournaledCall]) -> list[Hold]:
    endings = {call.id: call for call in calls if call.op in ("settle", "void")}
    return [
        Hold(call, endings.get(call.id), parse_time_us(call.answer["expires_at"]))
        for call in calls
        if call.op == "authorize" and call.acknowledged
    ]


def _overshoot(counter: _Counter, holds: Sequence[Hold]) -> Iterator[Finding]:
    bound = counter.bound
    worst, beyond, at_us, allowed = 0, 0, 0, 0
    for hold in holds:
        instant = hold.made.answered_us
        assert instant is not None
        taken, most = sum(other.in_place(bound, instant) for other in holds), counter.at_most(instant)
        if taken - most > beyond:
            worst, beyond, at_us, allowed = taken, taken - most, instant, most
    if beyond:
        ids = tuple(hold.made.id for hold in holds if hold.in_place(bound, at_us))
        of_user = f" of {bound.user}" if bound.user else ""
        yield Finding("overshoot", f"{bound.name}{of_user}: {worst} of {allowed} in place at {at_us}", ids)


def _refusals(
    counters: Sequence[_Counter], calls: Sequence[JournaledCall], lost_permits_max: int
) -> Iterator[Finding]:
    """Yield the requests that were refused though no bound counts them, or each that does had room for sure."""
    for call in calls:
        if call.op == "authorize" and call.status in (402, 429):
            of_call = [counter for counter in counters if counter.counts(call)]
            if all(c.bound.exact and c.had_room(call, lost_permits_max) for c in of_call):
                names = " and ".join(c.bound.name for c in of_call) or "what counts no request of its kind"
                yield Finding("other", f"{call.id} was refused, and fitted into {names}", (call.id,))


# -- events and sums --------------------------------------------------------------------------------------


def _booked(
    calls: Sequence[JournaledCall], made: Mapping[str, JournaledCall], key_of: Mapping[str, str]
) -> dict[str, BookedEvent]:
    """Return what may count, by the id that its tag `op` has."""
    found: dict[str, BookedEvent] = {}
    for call in calls:
        if call.op == "settle":
            hold = made[call.id]
            event = found[call.id] = BookedEvent(key_of[hold.body["key"]], settled_body(hold, call))
            event.must = call.acknowledged
        elif call.op == "events":
            for body in call.body:
                event = found.setdefault(body["id"], BookedEvent(body["key_id"], body))
                event.must |= call.acknowledged and not call.answer["rejected"]
        elif call.op in ("amend", "void_event") and call.body["event"] in found:
            event = found[call.body["event"]]
            if call.acknowledged:
                event.voided = call.op == "void_event"
                event.body = event.amended(call.body)
            elif call.answered_us is None:
                # The last that its client did: a call without an answer ends its connection.
                voids = call.op == "void_event"
                event.perhaps = _NOTHING if voids else measures_of(event.amended(call.body))
    return found


def _adjusted(calls: Sequence[JournaledCall]) -> dict[str, BookedAdjustment]:
    """Return the adjustments that may count, by their ids."""
    found: dict[str, BookedAdjustment] = {}
    for call in calls:
        if call.op == "adjust":
            adjustment = found.setdefault(call.body["id"], BookedAdjustment(call.body))
            adjustment.must |= call.acknowledged
        elif call.op == "void_event" and call.body["event"] in found:
            found[call.body["event"]].voided |= call.acknowledged
            found[call.body["event"]].perhaps_void |= call.answered_us is None
    return found


def _events(booked: Mapping[str, BookedEvent], seen: Seen) -> Iterator[Finding]:
    for id_, event in booked.items():
        there, due = seen.events.get(id_, _NOTHING), measures_of(event.body)
        count = there.requests
        if there == event.perhaps and not event.voided:
            continue
        if count > 1:
            yield Finding("double-counted", f"{id_} counts {count} times: {there}", (id_,))
        elif event.voided and there != _NOTHING:
            yield Finding("lost", f"{id_} was voided, and counts: {there}", (id_,))
        elif count == 0 and event.must and not event.voided:
            yield Finding("lost", f"{id_} was acknowledged and does not count", (id_,))
        elif count == 1 and there != due:
            yield Finding("lost", f"{id_} counts as {there} where {due} was acknowledged", (id_,))
        elif count < 0 or (count == 0 and there != _NOTHING):
            yield Finding("other", f"{id_} counts {count} times: {there}", (id_,))
    for id_, counted in seen.events.items():
        # Adjustments are no requests and have no tag `op`.
        what = counted if id_ else counted._replace(adjusted_nanos=0)
        if id_ not in booked and what != _NOTHING:
            yield Finding(
                "double-counted", f"{id_ or 'an event'} counts and was never sent: {counted}", (id_,)
            )


def _adjustments(adjusted: Mapping[str, BookedAdjustment], seen: Seen) -> Iterator[Finding]:
    for id_, adjustment in adjusted.items():
        there = seen.adjustments.get(id_, _NOTHING)
        nanos = there.adjusted_nanos
        allowed = {0} if adjustment.voided else {adjustment.amount}
        if not adjustment.must or adjustment.perhaps_void:
            allowed.add(0)
        if there != _NOTHING._replace(adjusted_nanos=nanos):
            yield Finding("double-counted", f"adjustment {id_} counts as a request: {there}", (id_,))
        elif nanos not in allowed:
            kind: FindingKind = "lost" if abs(nanos) < abs(adjustment.amount) else "double-counted"
            what = "void" if adjustment.voided else f"of {adjustment.amount}"
            yield Finding(kind, f"adjustment {id_} is {what}, and counts {nanos} nanos", (id_,))
    for id_ in seen.adjustments.keys() - adjusted.keys() - {""}:
        yield Finding("double-counted", f"adjustment {id_} counts and was never sent", (id_,))


def _sums(
    plan: Round, booked: Mapping[str, BookedEvent], adjusted: Mapping[str, BookedAdjustment], seen: Seen
) -> Iterator[Finding]:
    """Hold sums against what is there: unanswered calls count or not, but the same everywhere."""
    once: dict[str, Measures] = {}
    due: dict[str, Measures] = {}
    for id_, event in booked.items():
        there = seen.events.get(id_, _NOTHING)
        # An event that counts twice is reported above: here it is due once.
        once[id_] = there if there.requests < 2 else measures_of(event.body)
        due[event.key] = due.get(event.key, _NOTHING).plus(once[id_])
    given: dict[str, int] = {}
    for id_, adjustment in adjusted.items():
        nanos = seen.adjustments.get(id_, _NOTHING).adjusted_nanos
        given[id_] = nanos if nanos in (0, adjustment.amount) else adjustment.amount
        of_key = due.get(adjustment.key, _NOTHING)
        due[adjustment.key] = of_key.plus(Measures(adjusted_nanos=given[id_]))
    for key in sorted(due.keys() | seen.keys.keys()):
        for field, expected, found in zip(
            Measures._fields, due.get(key, _NOTHING), seen.keys.get(key, _NOTHING), strict=True
        ):
            yield from _sum(f"usage of {key or 'no key'}, {field}", expected, found)

    def used(bound: Bound) -> int:
        """Return what is due of a bound: its requests, less what was given."""
        spent = sum(
            once[id_].of(bound.unit)
            for id_, event in booked.items()
            if event.key in bound.keys and bound.counts(event.body)
        )
        return spent - sum(given[id_] for id_, adjustment in adjusted.items() if adjustment.moves(bound))

    bounds = {label_of(bound, plan.number): bound for bound in plan.bounds}
    meter = accounts_of(plan.number)[2]
    whole = Bound("", (f"meter-{plan.number}",), AMPLE, "budget", unit="nanos", account=meter, whole=True)
    for name, budget in seen.budgets.items():
        bound = bounds.get(name, whole)
        yield from _sum(f"budget {name}", used(bound), budget.used)
        if bound.name != TOPPED:
            yield from _sum(f"budget {name}, allowed", bound.allowed, budget.allowed)
    # No key of the other accounts is of type credit: only adjustments without a key move their balances.
    credits = {account: whole._replace(keys=(), account=account) for account in accounts_of(plan.number)}
    credits |= {bound.account: bound for bound in plan.bounds if bound.name == "credit"}
    for account, bound in credits.items():
        spent = used(bound)
        credit = seen.credit.get(account, CreditSeen(0, 0))
        yield from _sum(f"credit spent by {account}", spent, credit.spent_nanos)
        granted = sum(amount for id_, amount in seen.grants.items() if _account_of(plan, id_) == account)
        yield from _sum(f"balance of {account}", granted - spent, credit.balance_nanos)


def _account_of(plan: Round, grant: str) -> str:
    """Return whose grant it is: the one of the declaration is the pools', those of the traffic the meter's."""
    return accounts_of(plan.number)[1 if grant == f"first-{plan.number}" else 2]


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


def top_up_nanos(body: Mapping[str, Any]) -> int:
    """Return the amount of a top-up, which it states as money."""
    units, _, part = body["amount"].partition(".")
    return int(units) * 10**9 + int(part.ljust(9, "0"))


def _top_ups(plan: Round, calls: Sequence[JournaledCall], seen: Seen) -> Iterator[Finding]:
    """A budget has its own amount and each acknowledged top-up once; one that nobody heard of is there or not."""
    posts: dict[str, list[JournaledCall]] = {}
    for call in calls:
        if call.op == "top_up":
            posts.setdefault(call.body["id"], []).append(call)
    (bound,) = (bound for bound in plan.bounds if bound.name == TOPPED)
    least, possible = bound.allowed, {bound.allowed}
    for id_, of_id in posts.items():
        told = [call for call in of_id if call.acknowledged]
        new = [call for call in told if not call.answer["repeated"]]
        if len(new) > 1:
            yield Finding("double-counted", f"top-up {id_} was new {len(new)} times", (id_,))
        elif not new and all(call.acknowledged and call.sent == 1 for call in of_id):
            yield Finding("other", f"top-up {id_} was there before it was posted", (id_,))
        amount = top_up_nanos(of_id[0].body)
        # With an answer it is there; a call without one may have been the last that was tried.
        possible = {sum_ + amount for sum_ in possible} | (set() if told else possible)
        least += amount if told else 0
    label = label_of(bound, plan.number)
    allowed = seen.budgets.get(label, BudgetSeen(0, 0)).allowed
    if allowed not in possible:
        kind: FindingKind = "lost" if allowed < least else "double-counted"
        what = (
            f"budget {label} allows {allowed}, and with its top-ups {' or '.join(map(str, sorted(possible)))}"
        )
        yield Finding(kind, f"{what} is due", tuple(posts))


def _grants(plan: Round, calls: Sequence[JournaledCall], seen: Seen) -> Iterator[Finding]:
    """A grant is there once; a revoked one is worth nothing, also when it is posted again."""
    due = {f"first-{plan.number}": {bound.allowed} for bound in plan.bounds if bound.name == "credit"}
    for call in calls:
        if call.op == "grants":
            amounts = due.setdefault(call.body["id"], {0, call.body["amount_nanos"]})
            if call.acknowledged:
                amounts.discard(0)
        if call.op == "budgets" and call.acknowledged and call.body["id"] not in seen.budgets:
            yield Finding("lost", f"budget {call.body['id']} was set and is not in force", (call.id,))
    for call in calls:
        if call.op == "revoke":
            due[call.body["id"]] = {0} if call.acknowledged else due[call.body["id"]] | {0}
    for id_ in sorted(due.keys() | seen.grants.keys()):
        found, amounts = seen.grants.get(id_, 0), due.get(id_, {0})
        if found not in amounts:
            yield from _sum(f"grant {id_}", max(amounts), found)


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
