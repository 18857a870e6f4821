"""
The gate: decides each request from memory, all-or-nothing over every limit, budget and balance of its key.

Invariants: what is admitted never exceeds a limit or budget, however many callers ask at once; a denial
consumes nothing; each admission has exactly one ending (settle, void or expire). One lock guards all
counters; it is never held across I/O other than the first read of a counter.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Limit, Route
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope, Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.meter import (
    UNKNOWN_ROUTE,
    admitted_record,
    bounded_path,
    cost_of,
    counted_path,
    refused_record,
)
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.pricing import ModelPrice
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.gate.counters import (
    WINDOWS,
    BudgetCounter,
    Counter,
    CreditPool,
    OwnAmount,
    RateCounter,
    Window,
)
from tollkeeper.gate.routes import RouteTable

HOLD_S_DEFAULT: Final = 300
HOLD_S_MAX: Final = 7 * 86_400
_ENTITLEMENTS_MAX: Final = 200_000
_UNKNOWN_KEYS_MAX: Final = 10_000
_IDLE_US: Final = 600 * US_PER_S
"""A key that was not admitted for so long is compiled anew when it comes again, in some ms."""
_PRUNED_AT_ONCE: Final = 1_000
"""Keys or counters that one step of pruning looks at: it keeps the lock for about 1 ms."""
_COMPILED_MAX: Final = 8
"""How often a key is compiled again because the catalog changed meanwhile, before its request is refused."""
_NEVER_CURRENT: Final = -1
"""What is compiled as of this version amends no counter that others share."""
_NO_TAGS: Final[Mapping[str, str]] = {}


class Charge(NamedTuple):
    """What one settled request adds to one counter of the ledger, in the counter's unit."""

    account_id: str
    counter_id: str
    period_start_us: int
    amount: int


class Sources(Protocol):
    """What the gate reads once per key or counter: implemented by services over the stores."""

    def entitlement(self, secret_sha256: str) -> Entitlement | None: ...
    def routes(self) -> list[Route]: ...
    def price(self, model: str, account_id: str, at_us: int) -> ModelPrice | None: ...
    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]: ...
    def slots(self, account_id: str, counter_id: str) -> dict[int, int]: ...
    def book(self, account_id: str) -> tuple[CreditBook, int]: ...


class CountedCall(NamedTuple):
    """One that `Gate.spend` counted, for `Gate.give_back`."""

    counter: Counter
    mark: int


class Settings(NamedTuple):
    """What the gate does where the catalog is silent."""

    unknown_route: Literal["deny", "allow"] = "deny"
    unknown_price: Literal["deny", "allow"] = "deny"
    hold_s: int = HOLD_S_DEFAULT


Taken: TypeAlias = tuple[Counter, int, int]
"""`(counter, amount, mark)`: one amount set aside in one counter. A plain tuple: every request makes some."""


_Actual: TypeAlias = tuple[int, int, int, int]
StartedBudget: TypeAlias = tuple[BudgetScope, "Sequence[str] | None"]
"""A budget that comes into force, and the ids of the keys that it counts; None: every event of its scope."""


class RoutePlan:
    """
    What requests of one key to one route must pass and take, worked out once.

    Attributes:
        checked: Rate limits first, then budgets, then the balance: a request is admitted when it fits all.
        unchecked: Taken from too, but never a reason to refuse: what the budgets of a free route count.
        taken: Both.
        amounts: What a request takes that states no usage.
        refusal: Why no request of the key to the route is admitted, or None.
    """

    __slots__ = ("amounts", "checked", "refusal", "route", "taken", "unchecked")

    def __init__(
        self,
        route: Route,
        checked: tuple[Counter, ...],
        unchecked: tuple[Counter, ...],
        amounts: Amounts,
        refusal: Denial | None,
    ) -> None:
        self.route = route
        self.checked = checked
        self.unchecked = unchecked
        self.taken = checked + unchecked
        self.amounts = amounts
        self.refusal = refusal


class CompiledKey:
    """
    One key, compiled: its entitlement and its counters per route.

    Attributes:
        current: False from the moment that the key, its plan or its budgets may have changed. What was
            admitted before is then charged by the budgets that are in force when it is committed.
        open: What it admitted and is open still, by the identity of what each took: a budget that comes into
            force counts it too (`Gate.begin_budgets`).
        used_at_us: About when it was last admitted, or when it was compiled.
    """

    __slots__ = (
        "account_id",
        "budgets",
        "current",
        "entitlement",
        "expires_at_us",
        "key_id",
        "limits",
        "open",
        "pool",
        "profile",
        "project_id",
        "route_plans",
        "used_at_us",
    )

    def __init__(
        self,
        entitlement: Entitlement,
        limits: list[tuple[str | None, Counter]],
        budgets: list[BudgetCounter],
        pool: CreditPool | None,
    ) -> None:
        self.entitlement = entitlement
        self.current = True
        self.key_id = entitlement.key.id
        self.project_id = entitlement.key.project or ""
        self.account_id = entitlement.account.id
        self.profile = entitlement.key.profile
        self.limits = limits
        self.budgets = budgets
        self.pool = pool
        expires_at = entitlement.key.expires_at
        self.expires_at_us = 2**62 if expires_at is None else to_us(expires_at)
        subscription = entitlement.subscription
        if subscription is not None and subscription.ends_at is not None:
            self.expires_at_us = min(self.expires_at_us, to_us(subscription.ends_at))
        self.route_plans: dict[str, RoutePlan] = {}
        self.open: dict[int, tuple[list[Taken], Amounts, int]] = {}
        self.used_at_us = 0

    def route_plan(self, route: Route) -> RoutePlan:
        """Return what a request to *route* must pass and take; remember it under the route's id."""
        route_plan = self.route_plans[route.id] = self._route_plan(route)
        return route_plan

    def _route_plan(self, route: Route) -> RoutePlan:
        limits = tuple(counter for bucket, counter in self.limits if bucket is None or bucket == route.bucket)
        money: tuple[Counter, ...] = (*self.budgets, *(() if self.pool is None else (self.pool,)))
        layers = None if self.entitlement.plan is None else self.entitlement.plan.layers
        refusal = None
        if layers is not None and route.layer and route.layer not in layers:
            refusal = Denial(
                "layer_not_allowed", f"The key's plan does not include the {route.layer} layer of this route."
            )
        if route.free:
            return RoutePlan(route, limits, money, Amounts(), refusal)
        amounts = Amounts(1, 0, route.price_nanos, route.credits)
        return RoutePlan(route, (*limits, *money), (), amounts, refusal)


class Admission:
    """
    The gate's yes, with its hold. Settle or void it once; dropped without an ending, it is voided.

    Attributes:
        id: UUIDv7; the id of the hold and of the meter event that settling it makes.
        expires_at_us: When a hold made over HTTP expires; in-process holds die with the admission.
        durable: Whether the hold was committed to the ledger.
    """

    __slots__ = (
        "__weakref__",
        "_gate",
        "amounts",
        "at_us",
        "compiled_key",
        "durable",
        "expected",
        "expires_at_us",
        "fingerprint",
        "id",
        "method",
        "path",
        "route",
        "state",
        "tags",
        "taken",
    )

    def __init__(
        self,
        gate: Gate,
        id_: str,
        compiled_key: CompiledKey,
        route: Route,
        method: str,
        amounts: Amounts,
        expected: Usage,
        taken: list[Taken],
        at_us: int,
    ) -> None:
        self._gate = gate
        self.id = id_
        self.compiled_key = compiled_key
        self.route = route
        self.method = method
        self.path = route.path
        self.amounts = amounts
        self.expected = expected
        self.taken = taken
        self.at_us = at_us
        self.expires_at_us = 0
        self.durable = False
        self.fingerprint = ""
        self.tags = _NO_TAGS
        self.state: Literal["open", "ending", "ended"] = "open"

    @property
    def account_id(self) -> str:
        return self.compiled_key.account_id

    @property
    def key_id(self) -> str:
        return self.compiled_key.key_id

    def __del__(self) -> None:
        # Runs wherever the last reference goes, perhaps inside the gate's lock: only leave a note.
        if self.state == "open" and not self.durable:
            self._gate.abandoned.append((self.compiled_key, self.taken))


class Gate:
    """All admission state of this node."""

    def __init__(self, sources: Sources, clock: Clock, settings: Settings = Settings()) -> None:
        self.lock = threading.Lock()
        self.abandoned: deque[tuple[CompiledKey, list[Taken]]] = deque()
        self.refusing: str | None = None
        """Why nothing is admitted now (the ledger cannot be written, or too much waits), or None."""
        self._sources = sources
        self._clock = clock
        self._settings = settings
        self._now_us = clock.now_us
        self._compiled_keys: dict[str, CompiledKey] = {}
        self._compiled_keys_by_account: dict[str, set[str]] = {}
        self._unknown: set[str] = set()
        self._forgotten = 0
        """
        How often `forget` was called, which is the version of the catalog: what was read as of an older one must
        neither be remembered nor amend a counter.
        """
        self._forgotten_all = 0
        self._forgotten_of: dict[str, int] = {}
        """The version from which on what is read of all, or of one account, is current."""
        self._dropped: dict[str, list[CompiledKey]] = {}
        """Permits that are current no more, by account, while something that they admitted is open."""
        self._counters: dict[tuple[str, str], RateCounter | BudgetCounter | CreditPool] = {}
        self._changed: list[RateCounter] = []
        self._unsaved: set[RateCounter] = set()
        """Windows that the committer took and has not committed yet."""
        self._pruning = self._prune_on()
        self._routes: RouteTable | None = None
        self._ids = itertools.count()
        self._id_ending = "-" + os.urandom(6).hex()
        self._id_beginning = (-1, "")
        self._last_used: dict[CompiledKey, int] = {}
        """When each was last admitted, since `take_last_used`."""
        self.admitted_count = 0
        """Requests admitted since start."""

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
            hold_id: Names the hold; made here when None.

        Returns:
            An `Admission`, or a `Denial` after which nothing has changed.
        """
        if self.refusing is not None:
            return Denial("unavailable", self.refusing, retry_after_s=1)
        now_us = self._now_us()
        compiled_key = self._compiled_keys.get(hash_secret(secret))
        if compiled_key is None:
            found = self._compiled_key(secret, now_us)
            if isinstance(found, Denial):
                return found
            compiled_key = found
        if now_us >= compiled_key.expires_at_us:
            return _expired(compiled_key, now_us)
        routes = self._routes or self._load_routes()
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
        with self.lock:
            current = compiled_key.current
            if current:
                for counter in route_plan.checked:
                    if not counter.fits(amounts[counter.unit_index], now_us):
                        return self._denial(counter, route_plan.checked, amounts, now_us)
                for counter in route_plan.unchecked:
                    counter.fits(0, now_us)
                # Nothing can fail from here on: what one counter took, all have taken.
                for counter in route_plan.taken:
                    amount = amounts[counter.unit_index]
                    taken.append((counter, amount, counter.take(amount, now_us)))
                compiled_key.open[id(taken)] = (taken, amounts, now_us)
                self._last_used[compiled_key] = now_us
                self.admitted_count += 1
        if not current:
            # The catalog changed since the key was looked up: a budget may be lower by now.
            return self.admit(secret, method, path, expected, hold_id=hold_id)
        admission = Admission(
            self,
            hold_id or self.new_id(now_us),
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
        with self.lock:
            for counter in counters:
                if not counter.fits(1, now_us):
                    return self._denial(counter, counters, Amounts(), now_us)
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
        counter_id = f"limit:{name}:{algorithm}:{limit.window}"
        counter = self._window(account_id, counter_id, limit, now_us, self._forgotten, algorithm)
        with self.lock:
            if not counter.fits(1, now_us):
                return self._denial(counter, [counter], Amounts(), now_us)
            return CountedCall(counter, counter.take(1, now_us))

    def give_back(self, counted: CountedCall) -> None:
        """Take back what `spend` counted, once: the call failed through no fault of its caller."""
        with self.lock:
            counted.counter.give_back(counted.mark, 1)

    def spent(self, account_id: str, name: str, limit: Limit) -> tuple[int, int | None]:
        """Return what is used of a limit that `spend` counts, and when its window ends."""
        now_us = self._now_us()
        counter_id = f"limit:{name}:{limit.algorithm}:{limit.window}"
        counter = self._window(account_id, counter_id, limit, now_us, self._forgotten)
        with self.lock:
            return counter.allowed_used(now_us)[1], counter.resets_at_us(now_us)

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

    def _denial(self, counter: Counter, counters: Iterable[Counter], amounts: Amounts, now_us: int) -> Denial:
        amount = amounts[counter.unit_index]
        allowed, used = counter.allowed_used(now_us)
        lifts_at_us = counter.lifts_at_us(amount, now_us)
        rooms = []
        for other in counters:
            if other.unit == counter.unit and other.reason != "too_many_concurrent":
                most, taken = other.allowed_used(now_us)
                if most is not None:
                    rooms.append(most - taken)
        retry_after_s = None
        if lifts_at_us is not None:
            retry_after_s = max(1, -(-(lifts_at_us - now_us) // US_PER_S))
        return Denial(
            reason=counter.reason,  # type: ignore[arg-type]
            message=_denial_message(counter, amount, allowed, used),
            limit=counter.name,
            unit=counter.unit,
            allowed=allowed,
            used=used,
            largest_fit=0 if counter.reason == "too_many_concurrent" else max(0, min(rooms, default=0)),
            retry_after_s=retry_after_s,
            resets_at_us=counter.resets_at_us(now_us),
        )

    # -- ending ---------------------------------------------------------------------------------------

    def settle(
        self, admission: Admission, outcome: Outcome, received_at_us: int
    ) -> tuple[Record, list[Charge]]:
        """
        End *admission* with what was really used; return the record and what it charges.

        The caller has claimed the admission (see `claim`) and hands both to the committer.
        """
        record = self.record_of(admission, outcome, received_at_us)
        actual = _used(record)
        with self.lock:
            admission.compiled_key.open.pop(id(admission.taken), None)
            return record, _settle(admission.taken, actual)

    def finish(
        self, admission: Admission, outcome: Outcome, received_at_us: int
    ) -> tuple[Record, list[Charge]] | None:
        """Do `claim` and `settle` in one step; None when somebody else ended *admission*, or does."""
        record = self.record_of(admission, outcome, received_at_us)
        actual = _used(record)
        with self.lock:
            if admission.state != "open":
                return None
            admission.state = "ended"
            admission.compiled_key.open.pop(id(admission.taken), None)
            return record, _settle(admission.taken, actual)

    def unsettle(self, admission: Admission, record: Record) -> None:
        """Take a settlement back whose commit failed: the hold is open again."""
        actual = _used(record)
        with self.lock:
            for counter, held, mark in admission.taken:
                counter.unsettle(mark, held, actual[counter.unit_index])
            self._keep_open(admission)
            admission.state = "open"

    def count_late(self, admission: Admission, record: Record, now_us: int) -> None:
        """
        Count a request whose hold had expired in the rate windows that its time falls into, fit or not.

        Budgets and balances learn of it from the commit; `void` takes it back when that fails. What is admitted
        after this finds the windows as if the hold had been settled in time.
        """
        actual = _used(record)
        taken: list[Taken] = []
        with self.lock:
            for counter in admission.compiled_key.route_plan(admission.route).checked:
                if isinstance(counter, RateCounter) and not counter.counts_open:
                    amount = actual[counter.unit_index]
                    taken.append((counter, amount, counter.take_late(amount, admission.at_us, now_us)))
            admission.taken = taken

    def void(self, admission: Admission) -> None:
        """End *admission* as if it never was. The caller has claimed it."""
        with self.lock:
            self._give_back(admission.compiled_key, admission.taken)

    def claim(self, admission: Admission) -> bool:
        """Make the caller the one that ends *admission*; False when somebody else did or does."""
        with self.lock:
            if admission.state != "open":
                return False
            admission.state = "ending"
            return True

    def record_of(self, admission: Admission, outcome: Outcome, received_at_us: int) -> Record:
        """Return the priced record of a request's outcome."""
        compiled_key = admission.compiled_key
        return admitted_record(
            self._sources.price,
            compiled_key.account_id,
            compiled_key.project_id,
            compiled_key.key_id,
            admission.at_us,
            received_at_us,
            admission.id,
            admission.route,
            admission.method,
            admission.path,
            admission.amounts.nanos,
            admission.expected.model,
            admission.tags,
            outcome,
        )

    def denied_record(
        self, compiled_key: CompiledKey, method: str, path: str, denial: Denial, now_us: int, model: str = ""
    ) -> Record:
        """Return the record that counts a refused request in the statistics; it costs nothing."""
        routes = self._routes or self._load_routes()
        route = routes.match(method, path, compiled_key.profile) or UNKNOWN_ROUTE
        return refused_record(
            compiled_key.account_id,
            compiled_key.project_id,
            compiled_key.key_id,
            now_us,
            self.new_id(now_us),
            route,
            method,
            counted_path(route, path),
            denial,
            model,
        )

    # -- keys and counters ----------------------------------------------------------------------------

    def compiled_key(self, secret: str) -> CompiledKey | Denial:
        """Return the compiled key of *secret*, or why it is refused (401, or 403 for its account)."""
        compiled_key = self._compiled_keys.get(hash_secret(secret))
        now_us = self._clock.now_us()
        found = compiled_key if compiled_key is not None else self._compiled_key(secret, now_us)
        if isinstance(found, CompiledKey) and now_us >= found.expires_at_us:
            return _expired(found, now_us)
        return found

    def _compiled_key(self, secret: str, now_us: int) -> CompiledKey | Denial:
        if not secret:
            return Denial("key_missing", "The request has no api key.")
        secret_sha256 = hash_secret(secret)
        if secret_sha256 in self._unknown:
            return _UNKNOWN_KEY
        for _ in range(_COMPILED_MAX):
            found = self._compiled(secret_sha256, now_us)
            if found is not None:
                return found
        return Denial(
            "unavailable", "The catalog is being changed too often to read this key.", retry_after_s=1
        )

    def _compiled(self, secret_sha256: str, now_us: int) -> CompiledKey | Denial | None:
        """Compile a key; None when the catalog changed while it was read."""
        forgotten = self._forgotten
        entitlement = self._sources.entitlement(secret_sha256)
        if entitlement is None or not entitlement.key.is_metered:
            with self.lock:
                if forgotten == self._forgotten:
                    if len(self._unknown) >= _UNKNOWN_KEYS_MAX:
                        self._unknown.clear()
                    self._unknown.add(secret_sha256)
            return _UNKNOWN_KEY
        key = entitlement.key
        if key.state != "active":
            return Denial(f"key_{key.state}", f"The api key is {key.state}.")  # type: ignore[arg-type]
        if not entitlement.account.active:
            return Denial("account_inactive", "The account of this api key is not active.")
        if entitlement.waits_for:
            return Denial(
                "unavailable",
                f"Budget {entitlement.waits_for} of this key is not in force yet. Try again shortly.",
                limit=entitlement.waits_for,
                retry_after_s=1,
            )
        compiled_key = self._compile(entitlement, now_us, forgotten)
        with self.lock:
            if not self._is_current(compiled_key.account_id, forgotten):
                return None
            known = self._compiled_keys.get(secret_sha256)
            if known is not None:
                return known
            if len(self._compiled_keys) >= _ENTITLEMENTS_MAX:
                self._drop_compiled_keys(None)
            compiled_key.used_at_us = now_us
            self._compiled_keys[secret_sha256] = compiled_key
            self._compiled_keys_by_account.setdefault(compiled_key.account_id, set()).add(secret_sha256)
            return compiled_key

    def compiled_key_of(self, read: Callable[[], Entitlement | None]) -> CompiledKey | None:
        """
        Return a permit for a key that was found without its secret, in whatever state it is.

        Args:
            read: Reads its entitlement from the catalog, again when that changed meanwhile; a permit is not
                to amend a shared counter to what was in force before.

        Returns:
            None when *read* does.
        """
        for _ in range(_COMPILED_MAX):
            forgotten = self._forgotten
            entitlement = read()
            if entitlement is None:
                return None
            # A key that is not admitted must not change what others of its rotations may use.
            admitted = entitlement.key.state == "active" and entitlement.key.role == "consumption"
            compiled_key = self._compile(
                entitlement, self._now_us(), forgotten if admitted else _NEVER_CURRENT
            )
            # It is not among those that `forget` drops.
            compiled_key.current = False
            if self._is_current(compiled_key.account_id, forgotten):
                break
        return compiled_key

    def _is_current(self, account_id: str, forgotten: int) -> bool:
        """Return whether what was read of an account when `_forgotten` was *forgotten* is in force still."""
        return forgotten >= self._forgotten_all and forgotten >= self._forgotten_of.get(account_id, 0)

    def _compile(self, entitlement: Entitlement, now_us: int, forgotten: int) -> CompiledKey:
        account_id = entitlement.account.id
        limits: list[tuple[str | None, Counter]] = []
        for scope in entitlement.limits:
            limit = scope.limit
            counter_id = f"{scope.counter_id}:{limit.algorithm}:{limit.unit}:{limit.window}"
            window = self._window(account_id, counter_id, limit, now_us, forgotten)
            limits.append((limit.bucket, OwnAmount(window, limit) if scope.own_amount else window))
        budgets = [self._budget(scope, now_us, forgotten) for scope in entitlement.budgets]
        pool = self._pool(account_id, now_us) if entitlement.draws_on_credit else None
        return CompiledKey(entitlement, limits, budgets, pool)

    def _window(
        self,
        account_id: str,
        counter_id: str,
        limit: Limit,
        now_us: int,
        forgotten: int,
        algorithm: str | None = None,
    ) -> Window:
        with self.lock:
            known = self._counters.get((account_id, counter_id))
            if isinstance(known, RateCounter):
                # Others count in it: what was read before a change must not undo the change.
                if self._is_current(account_id, forgotten):
                    known.amend(limit)
                return known  # type: ignore[return-value]
            stored = self._sources.slots(account_id, counter_id)
            window = WINDOWS[algorithm or limit.algorithm]
            made = window(account_id, counter_id, limit, now_us, stored, self._changed)
            self._counters[account_id, counter_id] = made
            return made

    def _budget(self, scope: BudgetScope, now_us: int, forgotten: int) -> BudgetCounter:
        with self.lock:
            return self._budget_counter(scope, now_us, amend=self._is_current(scope.account_id, forgotten))

    def _budget_counter(self, scope: BudgetScope, now_us: int, *, amend: bool) -> BudgetCounter:
        known = self._counters.get((scope.account_id, scope.counter_id))
        if isinstance(known, BudgetCounter):
            if amend:
                known.amend(scope, now_us)
            return known
        made = BudgetCounter(scope, now_us, self._sources.counter)
        self._counters[scope.account_id, scope.counter_id] = made
        return made

    def _pool(self, account_id: str, now_us: int) -> CreditPool:
        with self.lock:
            known = self._counters.get((account_id, CREDIT_COUNTER))
            if isinstance(known, CreditPool):
                return known
            made = CreditPool(account_id, now_us, self._sources.book)
            self._counters[account_id, CREDIT_COUNTER] = made
            return made

    def forget(self, account_id: str | None = None) -> None:
        """Drop what was compiled of one account, or of all: the catalog changed. Counters stay."""
        with self.lock:
            self._forget(account_id)

    def _forget(self, account_id: str | None) -> None:
        self._forgotten += 1
        if account_id is None:
            self._forgotten_all = self._forgotten
            self._forgotten_of.clear()
        else:
            self._forgotten_of[account_id] = self._forgotten
        self._unknown.clear()
        self._routes = None
        self._drop_compiled_keys(account_id)

    def begin_budgets(self, account_id: str, started: Iterable[StartedBudget]) -> None:
        """
        Have budgets that come into force count what the keys that they are of hold open, and forget the account.

        Called on the commit thread when the ledger has the budgets, before anybody can be admitted under them.
        Both are one step, so that no request is admitted without them and missed by them.
        """
        self._collect_abandoned()
        now_us = self._now_us()
        with self.lock:
            self._forget(account_id)
            holding = self._dropped[account_id] = [p for p in self._dropped.get(account_id, ()) if p.open]
            if not holding:
                del self._dropped[account_id]
            for scope, key_ids in started:
                members = None if key_ids is None else frozenset(key_ids)
                for compiled_key in holding:
                    if (members is None or compiled_key.key_id in members) and (
                        scope.project_id is None or compiled_key.project_id == scope.project_id
                    ):
                        counter = self._budget_counter(scope, now_us, amend=True)
                        for taken, amounts, at_us in compiled_key.open.values():
                            if all(other is not counter for other, _, _ in taken):
                                amount = amounts[counter.unit_index]
                                taken.append((counter, amount, counter.take_at(amount, at_us)))

    def _drop_compiled_keys(self, account_id: str | None) -> None:
        if account_id is None:
            dropped = list(self._compiled_keys.values())
            self._compiled_keys.clear()
            self._compiled_keys_by_account.clear()
        else:
            dropped = [
                self._compiled_keys.pop(at) for at in self._compiled_keys_by_account.pop(account_id, ())
            ]
        for compiled_key in dropped:
            compiled_key.current = False
            if compiled_key.open:
                self._keep_dropped(compiled_key)

    # -- forgetting what is idle ----------------------------------------------------------------------

    def evict_idle(self) -> None:
        """
        Look at the next keys and counters, a bounded number, and let go of those that are idle. Called every
        half second or so; decides nothing: what is let go of is read anew, as it was, when it is asked for.
        """
        next(self._pruning)

    def _prune_on(self) -> Iterator[None]:
        """Go round all keys and then all counters, for ever; each step ends when it gave back the lock."""
        while True:
            # Copied in one step of the interpreter, so without the lock.
            secrets = list(self._compiled_keys)
            for first in range(0, len(secrets), _PRUNED_AT_ONCE):
                self._prune_permits(secrets[first : first + _PRUNED_AT_ONCE])
                yield
            # Keys first, as a counter stays while a key refers to it.
            places = list(self._counters)
            for first in range(0, len(places), _PRUNED_AT_ONCE):
                self._prune_counters(places[first : first + _PRUNED_AT_ONCE])
                yield
            self._prune_dropped()
            if not secrets and not places:
                yield

    def _prune_dropped(self) -> None:
        with self.lock:
            for account_id in list(self._dropped):
                if not any(compiled_key.open for compiled_key in self._dropped[account_id]):
                    del self._dropped[account_id]

    def _prune_permits(self, secrets: Iterable[str]) -> None:
        idle_since_us = self._now_us() - _IDLE_US
        with self.lock:
            for secret_sha256 in secrets:
                compiled_key = self._compiled_keys.get(secret_sha256)
                if compiled_key is None or compiled_key.used_at_us > idle_since_us:
                    continue
                # What it admitted and is still open would not hear of a change any more.
                compiled_key.current = False
                if compiled_key.open:
                    self._keep_dropped(compiled_key)
                del self._compiled_keys[secret_sha256]
                others = self._compiled_keys_by_account[compiled_key.account_id]
                others.remove(secret_sha256)
                if not others:
                    del self._compiled_keys_by_account[compiled_key.account_id]

    def _prune_counters(self, places: Iterable[tuple[str, str]]) -> None:
        now_us = self._now_us()
        with self.lock:
            for at in places:
                counter = self._counters.get(at)
                if counter is None or not counter.is_idle(now_us):
                    continue
                # Whoever refers to it (a key, a hold, a request that is being decided, a window on its way to the
                # ledger) keeps it alive: then it goes back. Nobody misses it meanwhile, as we have the lock.
                del self._counters[at]
                left = weakref.ref(counter)
                del counter
                kept = left()
                if kept is not None:
                    self._counters[at] = kept

    def _load_routes(self) -> RouteTable:
        forgotten = self._forgotten
        table = RouteTable(self._sources.routes())
        with self.lock:
            if forgotten == self._forgotten:
                self._routes = table
        return table

    # -- for the committer ----------------------------------------------------------------------------

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
        now_us = self._clock.now_us()
        with self.lock:
            if commit >= 0:
                self._unsaved.clear()
            # What was settled here may be charged to other budgets by now: then it is only counted.
            for at in charges.keys() | counted.keys():
                counter = self._counters.get(at[:2])
                if isinstance(counter, BudgetCounter):
                    counter.booked(at[2], charges.get(at, 0), counted=counted.get(at, 0), commit=commit)
            # A group whose charges to a balance cancel out changes no book.
            for account_id in books.keys() | {at[0] for at in counted if at[1] == CREDIT_COUNTER}:
                pool = self._counters.get((account_id, CREDIT_COUNTER))
                if isinstance(pool, CreditPool):
                    pool.booked(
                        books.get(account_id),
                        counted=counted.get((account_id, CREDIT_COUNTER, 0), 0),
                        commit=commit,
                        now_us=now_us,
                    )

    def dirty_windows(self) -> list[tuple[str, str, dict[int, int], int]]:
        """Take what rate counters changed: `(account, counter, slot → used, expires_at_us)` each."""
        with self.lock:
            taken = [
                (counter.account_id, counter.counter_id, counter.slots(), counter.expires_at_us())
                for counter in self._changed
            ]
            self._unsaved.update(self._changed)
            self._changed.clear()
            return taken

    def take_last_used(self) -> dict[str, int]:
        """Take the keys admitted since the last call: key id → when last."""
        with self.lock:
            taken, self._last_used = self._last_used, {}
            for compiled_key, at_us in taken.items():
                compiled_key.used_at_us = at_us
            return {compiled_key.key_id: at_us for compiled_key, at_us in taken.items()}

    def hold_again(
        self, compiled_key: CompiledKey, route: Route, admission_id: str, amounts: Amounts, at_us: int
    ) -> Admission:
        """Set aside the amounts of a stored hold after a restart, whether or not they still fit."""
        route_plan = compiled_key.route_plan(route)
        taken: list[Taken] = []
        with self.lock:
            for counter in route_plan.taken:
                amount = amounts[counter.unit_index]
                if not counter.charged and counter.reason != "too_many_concurrent":
                    # The stored window already contains the hold: only find where it is.
                    taken.append((counter, amount, _mark_of(counter, at_us)))
                    continue
                counter.fits(0, at_us)
                taken.append((counter, amount, counter.take(amount, at_us)))
            admission = Admission(
                self, admission_id, compiled_key, route, "", amounts, NO_USAGE, taken, at_us
            )
            self._keep_open(admission)
        return admission

    def state_of(self, compiled_key: CompiledKey, now_us: int) -> list[Denial]:
        """Return, as denials that nobody got, where each counter of a key stands."""
        with self.lock:
            counters: list[Counter] = [counter for _, counter in compiled_key.limits]
            counters += compiled_key.budgets
            if compiled_key.pool is not None:
                counters.append(compiled_key.pool)
            states = []
            for counter in counters:
                allowed, used = counter.allowed_used(now_us)
                fit = None if allowed is None else max(0, allowed - used)
                states.append(
                    Denial(
                        counter.reason,  # type: ignore[arg-type]
                        "",
                        counter.name,
                        counter.unit,
                        allowed,
                        used,
                        fit,
                        None,
                        counter.resets_at_us(now_us),
                    )
                )
            return states

    def new_id(self, now_us: int) -> str:
        """
        Return a fresh UUIDv7: time-ordered, so that id look-ups stay in one place of the index.

        A count tells apart up to 16,384 ids of one millisecond, 60 random bits those of two gates.
        """
        ms = now_us // 1000
        beginning_ms, beginning = self._id_beginning
        if ms != beginning_ms:
            digits = f"{ms:012x}{random.getrandbits(12):03x}"
            beginning = f"{digits[:8]}-{digits[8:12]}-7{digits[12:]}-"
            self._id_beginning = (ms, beginning)
        return f"{beginning}{0x8000 | next(self._ids) & 0x3FFF:x}{self._id_ending}"

    def _collect_abandoned(self) -> None:
        while self.abandoned:
            try:
                compiled_key, taken = self.abandoned.popleft()
            except IndexError:
                return
            with self.lock:
                self._give_back(compiled_key, taken)

    def _keep_open(self, admission: Admission) -> None:
        compiled_key = admission.compiled_key
        compiled_key.open[id(admission.taken)] = (admission.taken, admission.amounts, admission.at_us)
        if not compiled_key.current:
            self._keep_dropped(compiled_key)

    def _keep_dropped(self, compiled_key: CompiledKey) -> None:
        dropped = self._dropped.get(compiled_key.account_id, ())
        self._dropped[compiled_key.account_id] = [p for p in dropped if p.open and p is not compiled_key] + [
            compiled_key
        ]

    def _give_back(self, compiled_key: CompiledKey, taken: list[Taken]) -> None:
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


_UNKNOWN_KEY: Final = Denial("key_unknown", "The api key is not known here.")


def _expired(compiled_key: CompiledKey, now_us: int) -> Denial:
    subscription = compiled_key.entitlement.subscription
    ends_at = None if subscription is None else subscription.ends_at
    if ends_at is not None and now_us >= to_us(ends_at):
        return Denial("key_expired", "The subscription of this api key has ended. Renew it to go on.")
    return Denial("key_expired", "The api key has expired. Ask for a new one.")


def _mark_of(counter: Counter, at_us: int) -> int:
    slot_us = getattr(counter, "slot_us", None) or getattr(counter, "width_us", 0)
    return at_us - at_us % slot_us if slot_us else 0


def _denial_message(counter: Counter, amount: int, allowed: int | None, used: int) -> str:
    if counter.reason == "credit_exhausted":
        return "The account's credit balance is used up. Top up to continue."
    if counter.reason == "budget_exhausted":
        return f"Budget {counter.name} is used up: {used} of {allowed} {counter.unit}, {amount} asked."
    if counter.reason == "too_many_concurrent":
        return f"Limit {counter.name}: {used} of {allowed} requests are under way."
    return f"Rate limit {counter.name} exceeded: {used} of {allowed} {counter.unit} used, {amount} asked."
