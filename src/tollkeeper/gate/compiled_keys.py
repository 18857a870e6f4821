"""
Compiled keys: the permissions and counters of each key, computed once per key and route.

`CompiledKeys` remembers them by the hash of their secret, and forgets those whose catalog entries changed or that
are idle. What they admitted is still open then; a budget that comes into force counts it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from tollkeeper.domain.catalog import Limit, Route
from tollkeeper.domain.decisions import Amounts, Denial, UnitAmounts, amount_at, amounts_by_unit, unit_index
from tollkeeper.domain.entitlements import BudgetScope, Entitlement
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keyless import Caller, Keyless
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.matching import Facts, ModelList, values_of
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.counter import Counter, Taken
from tollkeeper.gate.credit import CreditPool
from tollkeeper.gate.matched import Matched, MatchedBudget, MatchedLimit
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.routes import RouteTable
from tollkeeper.gate.sources import Sources
from tollkeeper.gate.windows import OwnAmount

_KEYS_MAX: Final = 200_000
_UNKNOWN_KEYS_MAX: Final = 10_000
_IDLE_US: Final = 600 * US_PER_S
"""A key that was not admitted for so long is compiled again when it comes again, in some ms."""
_TRIES_MAX: Final = 8
"""Most compilations of a key for one request. Each further one follows a change of the catalog meanwhile."""

_UNKNOWN_KEY: Final = Denial("key_unknown", "The api key is not known here.")

StartedBudget: TypeAlias = tuple[BudgetScope, "Sequence[str] | None"]
"""A budget that comes into force, and the ids of the keys that it counts; None: every event of its scope."""


_Counting: TypeAlias = tuple[BudgetCounter, "CompiledKey", list[Taken], UnitAmounts, int]
"""`(counter, key, taken, amounts, at_us)`: something open that is to count in a budget in its period of *at_us*."""
HeldBy: TypeAlias = tuple[str, Mapping[str, str], str, str, str]
"""The `Facts` of a request, as a plain tuple: every request makes one."""


class RoutePlan:
    """
    What requests of one key to one route must pass and take, worked out once.

    Attributes:
        checked: Rate limits first, then budgets, then the balance: a request is admitted when it fits all.
        unchecked: Taken from too, but never a reason to refuse: what the budgets of a free route count.
        taken: Both.
        amounts: What a request takes that states no usage.
        refusal: Why no request of the key to the route is admitted, or None.
        matched: What depends on the facts of each request too (`for_request`); None for most keys.
    """

    __slots__ = ("amounts", "checked", "matched", "refusal", "route", "taken", "unchecked")

    def __init__(
        self,
        route: Route,
        checked: tuple[Counter, ...],
        unchecked: tuple[Counter, ...],
        amounts: UnitAmounts,
        refusal: Denial | None,
        matched: Matched | None = None,
    ) -> None:
        self.route = route
        self.matched = matched
        self.checked = checked
        self.unchecked = unchecked
        self.taken = checked + unchecked
        self.amounts = amounts
        self.refusal = refusal

    def for_request(self, facts: Facts, now_us: int) -> RoutePlan:
        """Return the plan of one request: with the counters that count it by its model, tags, kind and route."""
        if self.matched is None:
            return self
        limits, budgets = self.matched.counters(facts, now_us)
        if not limits and not budgets:
            return self
        first = sum(not counter.charged for counter in self.checked)
        checked = (*self.checked[:first], *limits)
        if self.route.free:
            unchecked = (*budgets, *self.unchecked)
        else:
            checked, unchecked = (*checked, *budgets, *self.checked[first:]), self.unchecked
        return RoutePlan(self.route, checked, unchecked, self.amounts, self.refusal)


class CompiledKey:
    """
    One key, compiled: its entitlement and its counters per route.

    Attributes:
        current: False from the moment that the key, its plan or its budgets may have changed. What was
            admitted before is then charged by the budgets that are in force when it is committed.
        limits: Its rate limits with their counters, in the order of its entitlement; and its `budgets`.
        matched: Its limits and budgets that count only some of its requests, or values apart, and its models.
        counts_quantities: Whether a limit or budget of its counts a quantity: amounts are then by unit.
        open: What it admitted and is still open, by the identity of what each took: a budget that comes into
            force counts it too (`CompiledKeys.begin_budgets`).
        used_at_us: About when it was last admitted, or when it was compiled.
    """

    __slots__ = (
        "account_id",
        "budgets",
        "counts_quantities",
        "current",
        "entitlement",
        "expires_at_us",
        "key_id",
        "limits",
        "matched",
        "open",
        "plan_slug",
        "pool",
        "profile",
        "project_id",
        "route_plans",
        "used_at_us",
    )

    def __init__(
        self,
        entitlement: Entitlement,
        limits: list[tuple[Limit, Counter]],
        budgets: list[BudgetCounter],
        pool: CreditPool | None,
        matched: Matched = Matched((), (), ()),
    ) -> None:
        self.matched = matched
        self.entitlement = entitlement
        self.current = True
        self.key_id = entitlement.key.id
        self.project_id = entitlement.key.project or ""
        self.account_id = entitlement.account.id
        self.profile = entitlement.key.profile
        self.plan_slug = "" if entitlement.plan is None else entitlement.plan.slug
        self.limits = limits
        self.budgets = budgets
        self.pool = pool
        expires_at = entitlement.key.expires_at
        self.expires_at_us = 2**62 if expires_at is None else to_us(expires_at)
        subscription = entitlement.subscription
        if subscription is not None and subscription.ends_at is not None:
            self.expires_at_us = min(self.expires_at_us, to_us(subscription.ends_at))
        self.expires_at_us = min(self.expires_at_us, entitlement.valid_until_us)
        self.route_plans: dict[str, RoutePlan] = {}
        units = (
            *(limit.unit for limit, _ in limits),
            *(budget.unit for budget in budgets),
            *(of.limit.unit for of in matched.limits),
            *(of.scope.unit for of in matched.budgets),
        )
        self.counts_quantities = any(isinstance(unit_index(unit), str) for unit in units)
        self.open: dict[int, tuple[list[Taken], UnitAmounts, int, HeldBy]] = {}
        self.used_at_us = 0

    def route_plan(self, route: Route) -> RoutePlan:
        """Return what a request to *route* must pass and take; remember it under the route's id."""
        route_plan = self.route_plans[route.id] = self._route_plan(route)
        return route_plan

    def _amounts(self, amounts: Amounts) -> UnitAmounts:
        return amounts_by_unit(amounts, {}) if self.counts_quantities else amounts

    def _route_plan(self, route: Route) -> RoutePlan:
        limits = tuple(
            counter for limit, counter in self.limits if limit.bucket is None or limit.bucket == route.bucket
        )
        money: tuple[Counter, ...] = (*self.budgets, *(() if self.pool is None else (self.pool,)))
        layers = None if self.entitlement.plan is None else self.entitlement.plan.layers
        refusal = None
        if layers is not None and route.layer and route.layer not in layers:
            refusal = Denial(
                "layer_not_allowed", f"The key's plan does not include the {route.layer} layer of this route."
            )
        matched = self.matched.on(route) if self.matched else None
        if route.free:
            return RoutePlan(route, limits, money, self._amounts(Amounts()), refusal, matched or None)
        amounts = self._amounts(Amounts(1, 0, route.price_nanos, route.credits))
        return RoutePlan(route, (*limits, *money), (), amounts, refusal, matched or None)


def refusal_of(entitlement: Entitlement, *, keyless: bool = False) -> Denial | None:
    """Return why no request of a key, or of an account without one, is admitted now: by their state; or None."""
    key = entitlement.key
    if key.state != "active":
        return Denial(f"key_{key.state}", f"The api key is {key.state}.")  # type: ignore[arg-type]
    if not entitlement.account.active:
        whose = f"Account {entitlement.account.id}" if keyless else "The account of this api key"
        return Denial("account_inactive", f"{whose} is not active.")
    if entitlement.waits_for:
        return Denial(
            "unavailable",
            f"Budget {entitlement.waits_for} of this {'account' if keyless else 'key'} is not in force yet. "
            "Try again shortly.",
            limit=entitlement.waits_for,
            retry_after_s=1,
        )
    return None


def place_of(caller: Caller) -> str:
    """Return the name of a caller's compiled key."""
    return hash_secret(caller) if isinstance(caller, str) else caller.place


def _no_account(caller: Keyless) -> Denial:
    project = f" with a project {caller.project_id[:128]!r}" if caller.project_id else ""
    return Denial("account_inactive", f"There is no account {caller.account_id[:128]!r}{project}.")


class CompiledKeys:
    """
    The keys in use, compiled, and the table of routes.

    Attributes:
        by_hash: The compiled keys by the SHA-256 of their secret, and those of callers without a key by their place.
        routes: The compiled route policies; None until they are read again.
        last_used: When each key was last admitted, since `take_last_used`. Written with the gate's lock.
    """

    def __init__(
        self,
        sources: Sources,
        counters: CounterRegistry,
        version: CatalogVersion,
        lock: threading.Lock,
        now_us: Callable[[], int],
    ) -> None:
        self._sources = sources
        self._counters = counters
        self._version = version
        self._lock = lock
        self._now_us = now_us
        self.by_hash: dict[str, CompiledKey] = {}
        self._hashes_by_account: dict[str, set[str]] = {}
        self._unknown: set[str] = set()
        self._dropped: dict[str, list[CompiledKey]] = {}
        """Keys that are no longer current, by account, while something that they admitted is open."""
        self.routes: RouteTable | None = None
        self.last_used: dict[CompiledKey, int] = {}

    # -- compiling ------------------------------------------------------------------------------------

    def find(self, caller: Caller, now_us: int) -> CompiledKey | Denial:
        """Return the key of *caller* that is not compiled yet, or why it is refused."""
        if not caller:
            return Denial("key_missing", "The request has no api key.")
        place = place_of(caller)
        if place in self._unknown:
            return _UNKNOWN_KEY
        for _ in range(_TRIES_MAX):
            found = self._find(caller, place, now_us)
            if found is not None:
                return found
        return Denial(
            "unavailable", "The catalog is being changed too often to read this key.", retry_after_s=1
        )

    def _find(self, caller: Caller, secret_sha256: str, now_us: int) -> CompiledKey | Denial | None:
        """Compile a key; None when the catalog changed while it was read."""
        version = self._version.current
        keyless = isinstance(caller, Keyless)
        if isinstance(caller, Keyless):
            entitlement = self._sources.keyless_entitlement(caller)
            if entitlement is None:
                return _no_account(caller)
        else:
            entitlement = self._sources.entitlement(secret_sha256)
        if entitlement is None or not entitlement.key.is_metered:
            with self._lock:
                if version == self._version.current:
                    if len(self._unknown) >= _UNKNOWN_KEYS_MAX:
                        self._unknown.clear()
                    self._unknown.add(secret_sha256)
            return _UNKNOWN_KEY
        if (refusal := refusal_of(entitlement, keyless=keyless)) is not None:
            return refusal
        compiled_key = self._compile(entitlement, now_us, version)
        with self._lock:
            if not self._version.is_current(compiled_key.account_id, version):
                return None
            known = self.by_hash.get(secret_sha256)
            if known is not None:
                return known
            if len(self.by_hash) >= _KEYS_MAX:
                self._drop(None)
            compiled_key.used_at_us = now_us
            self.by_hash[secret_sha256] = compiled_key
            self._hashes_by_account.setdefault(compiled_key.account_id, set()).add(secret_sha256)
            return compiled_key

    def outdate(self, compiled_key: CompiledKey, place: str) -> None:
        """Drop a key whose entitlement is another one from now on."""
        with self._lock:
            if self.by_hash.get(place) is compiled_key:
                del self.by_hash[place]
                self._hashes_by_account[compiled_key.account_id].discard(place)
                self._end(compiled_key)

    def compile_without_secret(self, read: Callable[[], Entitlement | None]) -> CompiledKey | None:
        """
        Return a compiled key that was found without its secret, in whatever state it is. It is not remembered.

        Args:
            read: Reads its entitlement from the catalog. Called again when the catalog changed meanwhile, so that
                no shared counter is amended to what was in force before.

        Returns:
            None when *read* does.
        """
        for _ in range(_TRIES_MAX):
            version = self._version.current
            entitlement = read()
            if entitlement is None:
                return None
            # A key that is not admitted must not change what others of its rotations may use.
            admitted = entitlement.key.state == "active" and entitlement.key.role == "consumption"
            compiled_key = self._compile(
                entitlement, self._now_us(), version if admitted else CatalogVersion.NEVER_CURRENT
            )
            # It is not among those that `forget` drops.
            compiled_key.current = False
            if self._version.is_current(compiled_key.account_id, version):
                break
        return compiled_key

    def _compile(self, entitlement: Entitlement, now_us: int, version: int) -> CompiledKey:
        account_id = entitlement.account.id
        counters = self._counters
        limits: list[tuple[Limit, Counter]] = []
        matched: list[MatchedLimit] = []
        for scope in entitlement.limits:
            limit = scope.limit
            counter_id = f"{scope.counter_id}:{limit.algorithm}:{limit.unit}:{limit.window}"
            if scope.counted:
                matched.append(MatchedLimit(account_id, scope, counter_id, counters, now_us, version))
                continue
            window = counters.window(account_id, counter_id, limit, now_us, version, limit.algorithm)
            limits.append((limit, OwnAmount(window, limit) if scope.own_amount else window))
        budgets = [counters.budget(s, now_us, version) for s in entitlement.budgets if s.is_whole]
        pool = counters.pool(account_id, now_us) if entitlement.draws_on_credit else None
        by_facts = Matched(
            tuple(ModelList(patterns) for patterns in entitlement.models),
            tuple(matched),
            tuple(MatchedBudget(s, counters, version) for s in entitlement.budgets if not s.is_whole),
        )
        return CompiledKey(entitlement, limits, budgets, pool, by_facts)

    def load_routes(self) -> RouteTable:
        """Read and compile the route policies; remember them unless the catalog changed meanwhile."""
        version = self._version.current
        table = RouteTable(self._sources.routes())
        with self._lock:
            if version == self._version.current:
                self.routes = table
        return table

    # -- what is open ---------------------------------------------------------------------------------

    def keep_open(
        self, compiled_key: CompiledKey, taken: list[Taken], amounts: UnitAmounts, at_us: int, facts: HeldBy
    ) -> None:
        """Note what a key has admitted, with the gate's lock. `admit` does as much for a current key."""
        compiled_key.open[id(taken)] = (taken, amounts, at_us, facts)
        if not compiled_key.current:
            self._keep_dropped(compiled_key)

    def begin_budgets(self, account_id: str, started: Iterable[StartedBudget]) -> None:
        """See `Gate.begin_budgets`."""
        started = list(started)
        known = self._counters.of_budgets(account_id, {scope.counter_id for scope, _ in started})
        while True:
            with self._lock:
                # A key that is compiled from here on has the budgets: only those in `_dropped` lack them.
                self._forget(account_id)
                for counter in known:
                    # Of an earlier life of the budget, whose periods are not those of this one.
                    counter.forget_top_ups()
                open_now = self._open_in(account_id, started)
                not_loaded = [
                    (counter.scope, at_us)
                    for counter, _, _, _, at_us in open_now
                    if counter.opens_with_use and not self._sources.openings.is_loaded(counter.scope, at_us)
                ]
                if not not_loaded:
                    # In the order of time: a period that a later one opens would cut an earlier one short.
                    for one in sorted(open_now, key=lambda one: one[-1]):
                        _count_open(*one)
                    return
            # Without the lock: what is open is found in its period, and nothing is read under it.
            for scope, at_us in not_loaded:
                self._sources.openings.load(scope, at_us)

    def _open_in(self, account_id: str, started: Sequence[StartedBudget]) -> list[_Counting]:
        """Return what is open and counts in the budgets that start, or is to. The lock is held."""
        holding = self._dropped[account_id] = [k for k in self._dropped.get(account_id, ()) if k.open]
        if not holding:
            del self._dropped[account_id]
        found: list[_Counting] = []
        for scope, key_ids in started:
            members = None if key_ids is None else frozenset(key_ids)
            for compiled_key in holding:
                if not (members is None or compiled_key.key_id in members):
                    continue
                if scope.project_id is not None and compiled_key.project_id != scope.project_id:
                    continue
                for taken, amounts, at_us, held_by in compiled_key.open.values():
                    facts = Facts(*held_by)
                    if scope.is_whole:
                        counter = self._counters.budget_unread(scope, amend=True)
                    elif scope.counter_of(facts) is not None:
                        values = values_of(scope.by, facts)
                        counter = self._counters.budget_of_unread(scope, values, amend=True)
                    else:
                        continue
                    found.append((counter, compiled_key, taken, amounts, at_us))
        return found

    def take_last_used(self) -> dict[str, int]:
        """Take the keys admitted since the last call: key id → when last."""
        with self._lock:
            taken, self.last_used = self.last_used, {}
            for compiled_key, at_us in taken.items():
                compiled_key.used_at_us = at_us
            return {
                compiled_key.key_id: at_us for compiled_key, at_us in taken.items() if compiled_key.key_id
            }

    # -- forgetting -----------------------------------------------------------------------------------

    def forget(self, account_id: str | None) -> None:
        """Drop what was compiled of one account, or of all: the catalog changed. Counters stay."""
        with self._lock:
            self._forget(account_id)

    def _forget(self, account_id: str | None) -> None:
        self._version.advance(account_id)
        self._unknown.clear()
        self.routes = None
        self._drop(account_id)

    def _drop(self, account_id: str | None) -> None:
        if account_id is None:
            dropped = list(self.by_hash.values())
            self.by_hash.clear()
            self._hashes_by_account.clear()
        else:
            dropped = [self.by_hash.pop(at) for at in self._hashes_by_account.pop(account_id, ())]
        for compiled_key in dropped:
            self._end(compiled_key)

    def _end(self, compiled_key: CompiledKey) -> None:
        compiled_key.current = False
        if compiled_key.open:
            self._keep_dropped(compiled_key)

    def _keep_dropped(self, compiled_key: CompiledKey) -> None:
        dropped = self._dropped.get(compiled_key.account_id, ())
        self._dropped[compiled_key.account_id] = [k for k in dropped if k.open and k is not compiled_key] + [
            compiled_key
        ]

    def hashes(self) -> list[str]:
        """Return the hashes of the secrets of all compiled keys."""
        # Copied in one step of the interpreter, so without the lock.
        return list(self.by_hash)

    def evict_idle(self, hashes: Iterable[str]) -> None:
        """Drop those of the keys that were not admitted for a while."""
        idle_since_us = self._now_us() - _IDLE_US
        with self._lock:
            for secret_sha256 in hashes:
                compiled_key = self.by_hash.get(secret_sha256)
                if compiled_key is None or compiled_key.used_at_us > idle_since_us:
                    continue
                # No later change of the catalog would reach what it admitted and is still open.
                self._end(compiled_key)
                del self.by_hash[secret_sha256]
                others = self._hashes_by_account[compiled_key.account_id]
                others.discard(secret_sha256)
                if not others:
                    del self._hashes_by_account[compiled_key.account_id]

    def evict_ended(self) -> None:
        """Drop the keys that are no longer current and have nothing open."""
        with self._lock:
            for account_id in list(self._dropped):
                if not any(compiled_key.open for compiled_key in self._dropped[account_id]):
                    del self._dropped[account_id]


def _count_open(
    counter: BudgetCounter, compiled_key: CompiledKey, taken: list[Taken], amounts: UnitAmounts, at_us: int
) -> None:
    """Make what is open count in a budget, in the period of its time: in no other. The lock is held."""
    place = next((place for place, (other, _, _) in enumerate(taken) if other is counter), None)
    if place is not None and counter.counts_at(taken[place][2], at_us):
        return
    amount = amount_at(amounts, counter.unit_index)
    compiled_key.counts_quantities |= isinstance(counter.unit_index, str)
    if place is None:
        taken.append((counter, amount, counter.retake(amount, at_us)))
    else:
        # It counts in a period of the budget as it was before.
        _, held, mark = taken[place]
        counter.give_back(mark, held)
        taken[place] = (counter, amount, counter.retake(amount, at_us))
