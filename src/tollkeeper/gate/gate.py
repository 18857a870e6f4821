"""
The gate: decides each request from memory, all-or-nothing over every limit, budget and balance of its key.

Invariants: what is admitted never exceeds a limit or budget, however many callers ask at once; a denial
consumes nothing; each admission has exactly one ending (settle, void or expire). One lock guards all
counters and keys; it is never held while a store is read or written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Limit, Route
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.meter import (
    UNKNOWN_ROUTE,
    bounded_path,
    cost_of,
    counted_path,
    free_record,
    refused_record,
)
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.gate.admission import Admission, Charge, CountedCall
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.compiled_keys import CompiledKey, CompiledKeys, StartedBudget
from tollkeeper.gate.counter import NotRead, Taken
from tollkeeper.gate.denials import denial_of, expired
from tollkeeper.gate.eviction import eviction
from tollkeeper.gate.ids import Ids
from tollkeeper.gate.limit_statuses import limit_statuses, status_of_limit
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.sources import Sources
from tollkeeper.gate.windows import Window

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

HOLD_S_DEFAULT: Final = 300
HOLD_S_MAX: Final = 7 * 86_400


class GateSettings(NamedTuple):
    """The decision of the gate where the catalog has none."""

    unknown_route: Literal["deny", "allow"] = "deny"
    unknown_price: Literal["deny", "allow"] = "deny"
    hold_s: int = HOLD_S_DEFAULT


_Actual: TypeAlias = tuple[int, int, int, int]


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
        self._keys = CompiledKeys(sources, self._counters, version, self._lock, clock.now_us)
        self._eviction = eviction(self._keys, self._counters, clock.now_us)

    # -- deciding -------------------------------------------------------------------------------------

    def admit(
        self,
        secret: str,
        method: str,
        path: str,
        expected: Usage = NO_USAGE,
        *,
        hold_id: str | None = None,
    ) -> Admission | Denial:
        """
        Decide one request.

        Args:
            secret: The api key as the caller sent it.
            path: The path as called, or a route's template.
            expected: The most that the request may use; what it did use comes with `settle`.
            hold_id: Names the hold; when None, the request is named by an id that only this process may book.

        Returns:
            An `Admission`, or a `Denial` after which nothing has changed.
        """
        if self.refusing is not None:
            return Denial("unavailable", self.refusing, retry_after_s=1)
        now_us = self._now_us()
        keys = self._keys
        compiled_key = keys.by_hash.get(hash_secret(secret))
        if compiled_key is None:
            found = keys.find(secret, now_us)
            if isinstance(found, Denial):
                return found
            compiled_key = found
        if now_us >= compiled_key.expires_at_us:
            return expired(compiled_key, now_us)
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
        amounts = route_plan.amounts
        if expected is not NO_USAGE:
            stated = self._amounts(compiled_key, route, expected, now_us)
            if stated is None:
                return Denial(
                    "price_unknown",
                    f"There is no price for model {expected.model[:128]!r}: set one, or state cost_nanos.",
                )
            amounts = stated
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
                    compiled_key.open[id(taken)] = (taken, amounts, now_us)
                    keys.last_used[compiled_key] = now_us
                    self.admitted_count += 1
        except NotRead as exc:
            # A budget's period has turned. It is read without the lock, and the request is decided again.
            self._counters.read(exc.counter, now_us)
            current = False
        if not current:
            # Or the catalog changed since the key was looked up: a budget may be lower by now.
            return self.admit(secret, method, path, expected, hold_id=hold_id)
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
        if route is UNKNOWN_ROUTE:
            admission.path = bounded_path(path)
        return admission

    def pass_limits(self, compiled_key: CompiledKey, route: Route) -> Denial | None:
        """
        Count a request to *route* against the rate limits of a key, and nothing else.

        For requests that are limited but not metered, such as the usage endpoints' own. Returns why it is
        refused, or None.
        """
        now_us = self._now_us()
        checked = compiled_key.route_plan(route).checked
        counters = [c for c in checked if c.reason == "rate_limited" and c.unit == "requests"]
        with self._lock:
            for counter in counters:
                if not counter.fits(1, now_us):
                    return denial_of(counter, counters, Amounts(), now_us)
            for counter in counters:
                counter.take(1, now_us)
        return None

    def spend(
        self, account_id: str, name: str, limit: Limit, *, from_first: bool = False
    ) -> Denial | CountedCall:
        """
        Count one against a rate limit that belongs to no key; return why it is refused, or what was counted.

        Args:
            name: Names the counter within the account.
            from_first: A `fixed` window opens with its first request instead of at a multiple of its length.
        """
        now_us = self._now_us()
        algorithm = "from_first" if from_first and limit.algorithm == "fixed" else limit.algorithm
        counter = self._spent_window(account_id, name, limit, now_us, algorithm)
        with self._lock:
            if not counter.fits(1, now_us):
                return denial_of(counter, [counter], Amounts(), now_us)
            return CountedCall(counter, counter.take(1, now_us))

    def give_back(self, counted: CountedCall) -> None:
        """Take back what `spend` counted, once: the call failed through no fault of its caller."""
        with self._lock:
            counted.counter.give_back(counted.mark, 1)

    def limit_status(self, account_id: str, name: str, limit: Limit) -> LimitStatus:
        """Return where a limit stands that `spend` counts (without *from_first*)."""
        now_us = self._now_us()
        counter = self._spent_window(account_id, name, limit, now_us, limit.algorithm)
        with self._lock:
            return status_of_limit(limit, counter, now_us)

    def _spent_window(self, account_id: str, name: str, limit: Limit, now_us: int, algorithm: str) -> Window:
        counter_id = f"limit:{name}:{algorithm}:{limit.window}"
        return self._counters.window(account_id, counter_id, limit, now_us, self._version.current, algorithm)

    def limit_statuses(self, compiled_key: CompiledKey, now_us: int) -> list[LimitStatus]:
        """Return where each counter of a key stands: its limits in the plan's order, its budgets, its credit."""
        if self.abandoned:
            self._collect_abandoned()
        while True:
            try:
                with self._lock:
                    return limit_statuses(compiled_key, now_us)
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
            used = pool.allowed_used(now_us)[1]
            assert pool.book is not None
            return pool.book, used

    def _amounts(self, compiled_key: CompiledKey, route: Route, usage: Usage, now_us: int) -> Amounts | None:
        """Return what a request takes that may use *usage*; None when its model must have a price and has none."""
        if route.free:
            return Amounts(1, usage.tokens, 0, 0)
        nanos, state, credits, _ = cost_of(
            self._sources.price, compiled_key.account_id, now_us, route, usage, usage.model, 200, ""
        )
        if state == "unpriced" and self._settings.unknown_price == "deny":
            return None
        return Amounts(1, usage.tokens, nanos, credits)

    # -- ending ---------------------------------------------------------------------------------------

    def settle(
        self, admission: Admission, outcome: Outcome, received_at_us: int
    ) -> tuple[Record, list[Charge]]:
        """
        End *admission* with what was really used; return the record and what it charges.

        The caller has claimed the admission (`claim`) and hands both to the committer.
        """
        record = admission.record(self._sources.price, outcome, received_at_us)
        actual = _used(record)
        with self._lock:
            admission.compiled_key.open.pop(id(admission.taken), None)
            return record, _settle(admission.taken, actual)

    def finish(
        self, admission: Admission, outcome: Outcome, received_at_us: int
    ) -> tuple[Record, list[Charge]] | None:
        """Do `claim` and `settle` in one step; None when another caller ended *admission*, or is ending it."""
        record = admission.record(self._sources.price, outcome, received_at_us)
        actual = _used(record)
        with self._lock:
            if admission.state != "open":
                return None
            admission.state = "ended"
            admission.compiled_key.open.pop(id(admission.taken), None)
            return record, _settle(admission.taken, actual)

    def unsettle(self, admission: Admission, record: Record) -> None:
        """Take a settlement back whose commit failed: the hold is open again."""
        actual = _used(record)
        with self._lock:
            for counter, held, mark in admission.taken:
                counter.unsettle(mark, held, actual[counter.unit_index])
            self._keys.keep_open(admission.compiled_key, admission.taken, admission.amounts, admission.at_us)
            admission.state = "open"

    def count_late(self, admission: Admission, record: Record, now_us: int) -> None:
        """
        Count a request whose hold had expired in the rate windows that its time falls into, fit or not.

        Budgets and balances learn of it from the commit; `void` takes it back when that fails. What is admitted
        after this finds the windows as if the hold had been settled in time.
        """
        actual = _used(record)
        taken: list[Taken] = []
        with self._lock:
            for counter in admission.compiled_key.route_plan(admission.route).checked:
                amount = actual[counter.unit_index]
                mark = counter.take_late(amount, admission.at_us, now_us)
                if mark is not None:
                    taken.append((counter, amount, mark))
            admission.taken = taken

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
        record = free_record(
            compiled_key.account_id,
            compiled_key.project_id,
            compiled_key.key_id,
            now_us,
            self.new_id(now_us),
            route,
            method,
            counted_path(route, path),
            denial.status,
        )
        return refused_record(record, denial, model)

    # -- keys -----------------------------------------------------------------------------------------

    def compiled_key(self, secret: str) -> CompiledKey | Denial:
        """Return the compiled key of *secret*, or why it is refused (401, or 403 for its account)."""
        compiled_key = self._keys.by_hash.get(hash_secret(secret))
        now_us = self._now_us()
        found = compiled_key if compiled_key is not None else self._keys.find(secret, now_us)
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
        self, compiled_key: CompiledKey, route: Route, admission_id: str, amounts: Amounts, at_us: int
    ) -> Admission:
        """Set aside the amounts of a stored hold after a restart, whether or not they still fit."""
        taken: list[Taken] = []
        self._counters.load_openings(compiled_key.budgets, at_us)
        with self._lock:
            for counter in compiled_key.route_plan(route).taken:
                amount = amounts[counter.unit_index]
                taken.append((counter, amount, counter.retake(amount, at_us)))
            self._keys.keep_open(compiled_key, taken, amounts, at_us)
        return Admission(
            self.abandoned, admission_id, compiled_key, route, "", amounts, NO_USAGE, taken, at_us
        )

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


def _used(record: Record) -> _Actual:
    """Return what a record takes per unit, in the order of `UNITS`."""
    return (1, record.tokens, record.cost_nanos, record.credits)


def _settle(taken: list[Taken], actual: _Actual) -> list[Charge]:
    """End every hold of *taken* with what was really used; return what the ledger must be charged."""
    charges = []
    for counter, held, mark in taken:
        amount = actual[counter.unit_index]
        if amount != held or counter.counts_open:
            counter.settle(mark, held, amount)
            if counter.charged:
                charges.append(Charge(counter.account_id, counter.counter_id, mark, amount))
    return charges
