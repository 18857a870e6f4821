"""
The gate: decides each request from memory, all-or-nothing over every limit, budget and balance of its key.

Invariants: what is admitted never exceeds a limit or budget, however many callers ask at once; a denial
consumes nothing; each admission has exactly one ending (settle, void or expire). One lock guards all
counters and keys; it is never held while a store is read or written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Amounts, Denial, UnitAmounts, amount_at
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.keyless import Caller
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.matching import NO_TAGS, Facts
from tollkeeper.domain.meter import UNKNOWN_ROUTE, bounded_path, facts_of
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.requests import HOLD_S_DEFAULT, HOLD_S_MAX, NO_USAGE, Outcome, Usage
from tollkeeper.gate.admission import Admission, Charge, CountedCall
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.compiled_keys import CompiledKey, CompiledKeys, StartedBudget, place_of
from tollkeeper.gate.counter import NotRead, Taken
from tollkeeper.gate.denials import denial_of, denied_record, expired
from tollkeeper.gate.estimates import amounts_of, unpriced
from tollkeeper.gate.eviction import eviction
from tollkeeper.gate.ids import Ids
from tollkeeper.gate.keyless_limits import KeylessLimits
from tollkeeper.gate.limit_statuses import counters_for, every_counter, limit_statuses
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.reholding import Reholds
from tollkeeper.gate.request_plans import RequestPlans
from tollkeeper.gate.settling import Moves, moves_of, settle, take_late, unsettle, used_by
from tollkeeper.gate.sources import Sources

__all__ = [
    "HOLD_S_DEFAULT",
    "HOLD_S_MAX",
    "Admission",
    "Charge",
    "CompiledKey",
    "CountedCall",
    "Gate",
    "GateSettings",
    "StartedBudget",
]


class GateSettings(NamedTuple):
    """The decision of the gate where the catalog has none."""

    unknown_route: Literal["deny", "allow"] = "deny"
    unknown_price: Literal["deny", "allow"] = "deny"
    hold_s: int = HOLD_S_DEFAULT


class Gate:
    """All admission state of this node."""

    def __init__(self, sources: Sources, clock: Clock, settings: GateSettings = GateSettings()) -> None:
        self.abandoned: deque[tuple[CompiledKey, list[Taken]]] = deque()
        """The amounts of admissions that were garbage-collected without an ending; they are given back."""
        self.refusing: str | None = None
        """Why nothing is admitted now (the ledger cannot be written, or too much waits), or None."""
        self.admitted_count = 0
        """Requests admitted since start."""
        self._ids, self._own_ids = Ids(), Ids()
        self.own_ids_ending: Final = self._own_ids.ending
        """How the ids of requests end that are under way in this process and in no store yet."""
        self._sources = sources
        self._settings = settings
        self._now_us = clock.now_us
        # Of the openings, so that nobody opens a period between the question and the taking.
        self._lock = sources.openings.lock
        self._version = version = CatalogVersion()
        self.counters = self._counters = CounterRegistry(sources, version, self._lock)
        self.keyless = KeylessLimits(self._counters, version, self._lock, clock.now_us)
        """Rate limits that belong to no key."""
        self._keys = CompiledKeys(sources, self._counters, version, self._lock, clock.now_us)
        self._plans = RequestPlans()
        self._eviction = eviction(self._keys, self._counters, self._plans, clock.now_us)
        self.reholds = Reholds(
            sources, settings.unknown_price, self._counters, self._keys, self._plans, version, clock.now_us
        )
        """Changes what requests hold that are under way."""

    # -- deciding -------------------------------------------------------------------------------------

    def admit(
        self,
        caller: Caller,
        method: str,
        path: str,
        expected: Usage = NO_USAGE,
        *,
        hold_id: str | None = None,
        tags: Mapping[str, str] = NO_TAGS,
    ) -> Admission | Denial:
        """
        Decide one request.

        Args:
            caller: The api key as the caller sent it, or a caller without a key.
            path: The path as called, or a route's template.
            expected: The most that the request may use; what it did use comes with `settle`.
            hold_id: Names the hold; when None, the request is named by an id that only this process may book.
            tags: Those of its event. With the model of *expected*, limits and budgets are matched by them.

        Returns:
            An `Admission`, or a `Denial` after which nothing has changed.
        """
        if self.refusing is not None:
            return Denial("unavailable", self.refusing, retry_after_s=1)
        now_us = self._now_us()
        keys = self._keys
        compiled_key = keys.by_hash.get(hash_secret(caller) if isinstance(caller, str) else caller.place)
        if compiled_key is None or now_us >= compiled_key.expires_at_us:
            found = self.compiled_key(caller)
            if isinstance(found, Denial):
                return found
            compiled_key = found
        routes = keys.routes or keys.load_routes()
        route = routes.match(method, path, compiled_key.profile)
        if route is None:
            if self._settings.unknown_route == "deny":
                return Denial("route_unknown", f"{method} {path[:128]} is not a known route of this API.")
            route = UNKNOWN_ROUTE
        route_plan = compiled_key.route_plans.get(route.id)
        # Compared by identity, since a changed route keeps its id.
        if route_plan is None or route_plan.route is not route:
            route_plan = compiled_key.route_plan(route)
        if route_plan.refusal is not None:
            return route_plan.refusal
        counted = route.path if route is not UNKNOWN_ROUTE else bounded_path(path)
        matched = route_plan.matched
        if matched is not None:
            objection = matched.objection(expected.model)
            if objection is not None:
                return objection
        amounts = route_plan.amounts
        if expected is not NO_USAGE:
            unknown_price = self._settings.unknown_price
            stated = amounts_of(self._sources, unknown_price, compiled_key, route, expected, now_us)
            if stated is None:
                return Denial(
                    "price_unknown",
                    unpriced(expected),
                )
            amounts = stated
        held_by = (expected.model, tags, route.event_kind, method, counted)
        if matched is not None:
            # Last, since what is not in memory is read.
            route_plan = self._plans.of(route_plan, held_by, now_us)
        if self.abandoned:
            self._collect_abandoned()
        taken: list[Taken] = []
        try:
            with self._lock:
                current = compiled_key.current
                if current:
                    for counter in route_plan.checked:
                        if not counter.fits(amounts[counter.unit_index], now_us):
                            return denial_of(counter, route_plan.checked, amounts, now_us)
                    for counter in route_plan.unchecked:
                        counter.fits(0, now_us)
                    # Nothing can fail from here on: what one counter took, all have taken.
                    for counter in route_plan.taken:
                        amount = amounts[counter.unit_index]
                        taken.append((counter, amount, counter.take(amount, now_us)))
                    compiled_key.open[id(taken)] = (taken, amounts, now_us, held_by)
                    keys.last_used[compiled_key] = now_us
                    self.admitted_count += 1
        except NotRead as exc:
            # A budget's period has turned. It is read without the lock, and the request is decided again.
            self._counters.read(exc.counter, now_us)
            current = False
        if not current:
            # Or the catalog changed since the key was looked up: a budget may be lower by now.
            return self.admit(caller, method, path, expected, hold_id=hold_id, tags=tags)
        admission = Admission(
            self.abandoned,
            hold_id or self._own_ids.new_id(now_us),
            compiled_key,
            route,
            method,
            amounts,
            expected,
            taken,
            now_us,
        )
        admission.path = counted
        admission.tags = tags
        if matched is not None:
            admission.matched = matched
            # As they are now: they say what the hold is given back to.
            admission.tags = dict(tags)
        return admission

    def pass_limits(self, compiled_key: CompiledKey, route: Route) -> Denial | tuple[CountedCall, ...]:
        """
        Count a request to *route* against the rate limits of a key, and nothing else.

        For requests that are limited but not metered, such as the usage endpoints' own. Returns why it is
        refused, or what was counted, for `keyless.give_back`.
        """
        now_us = self._now_us()
        facts = Facts("", NO_TAGS, route.event_kind, route.method, route.path)
        checked = compiled_key.route_plan(route).for_request(facts, now_us).checked
        counters = [c for c in checked if c.reason == "rate_limited" and c.unit == "requests"]
        with self._lock:
            for counter in counters:
                if not counter.fits(1, now_us):
                    return denial_of(counter, counters, Amounts(), now_us)
            return tuple(CountedCall(counter, counter.take(1, now_us)) for counter in counters)

    def limit_statuses(
        self, compiled_key: CompiledKey, now_us: int, facts: Facts | None = None, *, every: bool = False
    ) -> list[LimitStatus]:
        """
        Return where each counter of a key stands: its limits in the plan's order, its budgets, its credit.

        Args:
            facts: Of a request: those with a match or values are told too, if they count it.
            every: All of them are told; the *facts* say of which values.
        """
        if self.abandoned:
            self._collect_abandoned()
        matched = (every_counter if every else counters_for)(compiled_key, facts, now_us)
        while True:
            try:
                with self._lock:
                    return limit_statuses(compiled_key, matched, now_us)
            except NotRead as exc:
                self._counters.read(exc.counter, now_us)

    def credit_of(self, compiled_key: CompiledKey, now_us: int) -> tuple[CreditBook, int] | None:
        """
        Return the committed book that a key draws on, and the amount settled or held beyond it, as of one moment.
        None without a balance.
        """
        pool = compiled_key.pool
        if pool is None:
            return None
        if pool.book is None:
            self._counters.read(pool, now_us)
        with self._lock:
            assert pool.book is not None
            return pool.book, pool.out_nanos

    # -- ending ---------------------------------------------------------------------------------------

    def settle(
        self, admission: Admission, outcome: Outcome, received_at_us: int
    ) -> tuple[Record, list[Charge]]:
        """
        End *admission* with what was really used; return the record and what it charges.

        The caller has claimed the admission (`claim`) and hands both to the committer.
        """
        record = admission.record(self._sources.price, outcome, received_at_us)
        moves = None if admission.matched is None else moves_of(admission, record, received_at_us)
        while True:
            try:
                with self._lock:
                    return record, self._settled(admission, record, moves, received_at_us)
            except NotRead as exc:
                self._counters.load_openings([exc.counter], admission.at_us)

    def finish(
        self, admission: Admission, outcome: Outcome, received_at_us: int
    ) -> tuple[Record, list[Charge]] | None:
        """Do `claim` and `settle` in one step; None when another caller ended *admission*, or is ending it."""
        while True:
            expected = admission.expected
            record = admission.record(self._sources.price, outcome, received_at_us)
            moves = None if admission.matched is None else moves_of(admission, record, received_at_us)
            try:
                with self._lock:
                    if admission.state != "open":
                        return None
                    if admission.expected is not expected:
                        # Its hold was replaced meanwhile, by another thread.
                        continue
                    charges = self._settled(admission, record, moves, received_at_us)
                    admission.state = "ended"
                    return record, charges
            except NotRead as exc:
                self._counters.load_openings([exc.counter], admission.at_us)

    def _settled(
        self, admission: Admission, record: Record, moves: Moves | None, received_at_us: int
    ) -> list[Charge]:
        """End *admission* with the lock held. Raises `NotRead`, after which nothing has changed."""
        actual = used_by(record, admission.compiled_key)
        charges = settle(admission, actual, moves, received_at_us)
        admission.compiled_key.open.pop(id(admission.taken), None)
        return charges

    def unsettle(self, admission: Admission, record: Record) -> None:
        """Take a settlement back whose commit failed: the hold is open again."""
        with self._lock:
            unsettle(admission, used_by(record, admission.compiled_key))
            self._keys.keep_open(
                admission.compiled_key, admission.taken, admission.amounts, admission.at_us, admission.facts
            )
            admission.state = "open"

    def count_late(self, admission: Admission, record: Record, now_us: int) -> None:
        """
        Count a request whose hold had expired in the rate windows that its time falls into, fit or not.

        Budgets and balances learn of it from the commit; `void` takes it back when that fails. What is admitted
        after this finds the windows as if the hold had been settled in time.
        """
        route_plan = admission.compiled_key.route_plan(admission.route).for_request(facts_of(record), now_us)
        with self._lock:
            actual = used_by(record, admission.compiled_key)
            admission.taken = take_late(route_plan.checked, actual, admission.at_us, now_us)

    def void(self, admission: Admission) -> None:
        """End *admission* as if it never was. The caller has claimed it."""
        with self._lock:
            _give_back(admission.compiled_key, admission.taken)

    def claim(self, admission: Admission) -> bool:
        """Make the caller the one that ends *admission*; False when another caller did or does."""
        with self._lock:
            if admission.state != "open":
                return False
            admission.state = "ending"
            return True

    def record_of(self, admission: Admission, outcome: Outcome, received_at_us: int) -> Record:
        """Return the priced record of a request's outcome."""
        return admission.record(self._sources.price, outcome, received_at_us)

    def denied_record(
        self, compiled_key: CompiledKey, method: str, path: str, denial: Denial, now_us: int, model: str = ""
    ) -> Record:
        """Return the record that counts a refused request in the statistics; it costs nothing."""
        routes = self._keys.routes or self._keys.load_routes()
        route = routes.match(method, path, compiled_key.profile) or UNKNOWN_ROUTE
        return denied_record(compiled_key, self.new_id(now_us), route, method, path, denial, now_us, model)

    # -- keys -----------------------------------------------------------------------------------------

    def compiled_key(self, caller: Caller) -> CompiledKey | Denial:
        """Return the compiled key of *caller*, or why it is refused (401, or 403 for its account)."""
        place = place_of(caller)
        compiled_key = self._keys.by_hash.get(place)
        now_us = self._now_us()
        if compiled_key is not None and now_us >= compiled_key.entitlement.valid_until_us:
            self._keys.outdate(compiled_key, place)
            compiled_key = None
        found = compiled_key if compiled_key is not None else self._keys.find(caller, now_us)
        if isinstance(found, CompiledKey) and now_us >= found.expires_at_us:
            return expired(found, now_us)
        return found

    def compiled_key_of(self, read: Callable[[], Entitlement | None]) -> CompiledKey | None:
        """Return a key that was found without its secret: see `CompiledKeys.compile_without_secret`."""
        return self._keys.compile_without_secret(read)

    def forget(self, account_id: str | None = None) -> None:
        """Drop what was compiled of one account, or of all: the catalog changed. Counters stay."""
        self._keys.forget(account_id)

    def begin_budgets(self, account_id: str, started: Iterable[StartedBudget]) -> None:
        """
        Make budgets that come into force count what the keys of their scope hold open, and forget the account.

        Called on the commit thread when the ledger has the budgets, before any request can be admitted under
        them. Both are one step, so that no request is admitted without them and missed by them.
        """
        self._collect_abandoned()
        self._keys.begin_budgets(account_id, started)

    def evict_idle(self) -> None:
        """
        Evict the idle ones of the next keys and counters, a bounded number. Called about every half second.
        No decision changes: an evicted key or counter is read again when it is needed.
        """
        next(self._eviction)

    # -- for the committer ----------------------------------------------------------------------------

    def refuse(self, reason: str | None) -> None:
        """Admit nothing from now on, for *reason*; with None, admit again. Nobody else sets `refusing`."""
        self.refusing = reason

    def booked(
        self,
        charges: Mapping[tuple[str, str, int], int],
        counted: Mapping[tuple[str, str, int], int],
        books: Mapping[str, CreditBook],
        commit: int,
    ) -> None:
        """
        Learn what a commit wrote.

        Args:
            charges: `(account, counter, period start)` → amount that the ledger was charged.
            counted: The part of each that was settled in this gate before.
            books: Account → its credit book after the commit.
            commit: Its number; negative when nothing was written.
        """
        self._counters.booked(charges, counted, books, commit, self._now_us())

    def dirty_windows(self) -> list[tuple[str, str, dict[int, int], int]]:
        """Take what rate counters changed: `(account, counter, slot → used, expires_at_us)` each."""
        return self._counters.take_changed()

    def take_last_used(self) -> dict[str, int]:
        """Take the keys admitted since the last call: key id → when last."""
        return self._keys.take_last_used()

    def hold_again(
        self,
        compiled_key: CompiledKey,
        route: Route,
        admission_id: str,
        amounts: UnitAmounts,
        at_us: int,
        facts: Facts,
    ) -> Admission:
        """Set aside the amounts of a stored hold after a restart, whether or not they still fit."""
        route_plan = compiled_key.route_plan(route)
        matched = route_plan.matched
        route_plan = route_plan.for_request(facts, at_us)
        taken: list[Taken] = []
        self._counters.load_openings(route_plan.taken, at_us)
        with self._lock:
            for counter in route_plan.taken:
                amount = amount_at(amounts, counter.unit_index)
                taken.append((counter, amount, counter.retake(amount, at_us)))
            self._keys.keep_open(compiled_key, taken, amounts, at_us, facts)
        admission = Admission(
            self.abandoned, admission_id, compiled_key, route, facts.method, amounts, NO_USAGE, taken, at_us
        )
        admission.matched = matched
        return admission

    def new_id(self, now_us: int) -> str:
        """Return a fresh id: see `Ids`."""
        return self._ids.new_id(now_us)

    def _collect_abandoned(self) -> None:
        while self.abandoned:
            try:
                compiled_key, taken = self.abandoned.popleft()
            except IndexError:
                return
            with self._lock:
                _give_back(compiled_key, taken)


def _give_back(compiled_key: CompiledKey, taken: list[Taken]) -> None:
    """Take back what was set aside. The gate's lock is held."""
    compiled_key.open.pop(id(taken), None)
    for counter, held, mark in taken:
        counter.give_back(mark, held)
