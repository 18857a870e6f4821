"""
Changes what a request under way holds: another model, another maximum, or more of the same.

The old hold is replaced by the new one in one step under the gate's lock, all or nothing over every limit, budget and
balance: at no moment neither counts or both do. A denial changes nothing.

A request counts in the budgets and on the balance of its own time, which it keeps. In rate windows an amount that
changes counts from now on, as its tokens are used now; what does not change stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tollkeeper.domain.decisions import Denial, UnitAmounts, amount_at, unit_index
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.extensions import Extension, part_of, plus, size_of
from tollkeeper.domain.requests import Usage
from tollkeeper.errors import HoldEnded
from tollkeeper.gate.admission import Admission
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.compiled_keys import CompiledKey, CompiledKeys, HeldBy, RoutePlan, refusal_of
from tollkeeper.gate.counter import Counter, NotRead, Taken
from tollkeeper.gate.credit import CreditPool
from tollkeeper.gate.denials import denial_of, expired
from tollkeeper.gate.estimates import amounts_of, unpriced
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.request_plans import RequestPlans
from tollkeeper.gate.sources import Sources

_TRIES_MAX: Final = 8
"""Each further try follows a change of the catalog meanwhile."""

ReadEntitlement = Callable[[], "Entitlement | None"]


class Reholds:
    """The holds of open requests, replaced. Any thread may call. Stores are read before anything changes."""

    def __init__(
        self,
        sources: Sources,
        unknown_price: str,
        counters: CounterRegistry,
        keys: CompiledKeys,
        plans: RequestPlans,
        version: CatalogVersion,
        now_us: Callable[[], int],
    ) -> None:
        self._sources = sources
        self._unknown_price = unknown_price
        self._counters = counters
        self._keys = keys
        self._plans = plans
        self._version = version
        self._now_us = now_us
        self._lock = sources.openings.lock

    def replace(
        self,
        admission: Admission,
        expected: Usage,
        read: ReadEntitlement,
        tags: Mapping[str, str] | None = None,
    ) -> Denial | None:
        """
        Hold *expected* in place of what *admission* holds, or return why it is refused; nothing has changed then.

        Args:
            expected: The most that the request may use in all. Without a model or variant it has those of the hold.
            read: Reads the entitlement of its key again, after a change of the catalog.
            tags: Those of its event; those of the hold unless given.

        Raises:
            HoldEnded: The request was ended, or is being ended.
        """
        held = admission.expected
        if not (expected.model and expected.variant):
            expected = expected._replace(
                model=expected.model or held.model, variant=expected.variant or held.variant
            )
        tags = admission.tags if tags is None else dict(tags)
        for _ in range(_TRIES_MAX):
            version = self._version.current
            now_us = self._now_us()
            compiled_key = self._key_of(admission, read, now_us)
            if isinstance(compiled_key, Denial):
                return compiled_key
            found = self._planned(admission, compiled_key, expected, tags, now_us)
            if isinstance(found, Denial):
                return found
            route_plan, amounts, held_by = found
            try:
                with self._lock:
                    if admission.state != "open":
                        raise HoldEnded(f"Request {admission.id} has ended: its hold cannot be changed.")
                    if not (
                        compiled_key.current or self._version.is_current(compiled_key.account_id, version)
                    ):
                        continue
                    if (denial := _rehold(admission, route_plan, amounts, now_us)) is not None:
                        return denial
                    admission.compiled_key = compiled_key
                    admission.amounts = amounts
                    admission.expected = expected
                    admission.tags = tags
                    self._keys.keep_open(compiled_key, admission.taken, amounts, admission.at_us, held_by)
                    return None
            except NotRead as exc:
                is_pool = isinstance(exc.counter, CreditPool)
                self._counters.read(exc.counter, now_us if is_pool else admission.at_us)
        return Denial(
            "unavailable", "The catalog is being changed too often to read this key.", retry_after_s=1
        )

    def extend(self, admission: Admission, base: Usage, more: Usage, read: ReadEntitlement) -> Extension:
        """
        Hold *base* and as much of *more* as fits, in place of what *admission* holds.

        The largest whole part that fits is granted; of an amount that others take meanwhile, the next smaller one. When
        none fits, nothing has changed.

        Raises:
            HoldEnded: The request was ended, or is being ended.
        """
        size = count = size_of(more)
        why: Denial | None = None
        while count:
            part = part_of(more, count, size)
            denial = self.replace(admission, plus(base, part), read)
            if denial is None:
                return Extension(part, why)
            why = why or denial
            count = self._largest(admission, base, more, count, denial)
        return Extension(part_of(more, 0, size), why) if size else Extension(more)

    def _largest(
        self, admission: Admission, base: Usage, more: Usage, refused_count: int, denial: Denial
    ) -> int:
        """Return the most parts of *more*, less than *refused_count*, that a denial leaves room for."""
        room = denial.largest_fit
        if room is None or denial.reason == "too_many_concurrent":
            return 0
        at, size, now_us = unit_index(denial.unit), size_of(more), self._now_us()
        fits, beyond = 0, refused_count
        while beyond - fits > 1:
            count = (fits + beyond) // 2
            amounts = self._amounts(
                admission, admission.compiled_key, plus(base, part_of(more, count, size)), now_us
            )
            if amounts is not None and amount_at(amounts, at) <= room:
                fits = count
            else:
                beyond = count
        return fits

    def _amounts(
        self, admission: Admission, compiled_key: CompiledKey, expected: Usage, now_us: int
    ) -> UnitAmounts | None:
        return amounts_of(self._sources, self._unknown_price, compiled_key, admission.route, expected, now_us)

    def _planned(
        self,
        admission: Admission,
        compiled_key: CompiledKey,
        expected: Usage,
        tags: Mapping[str, str],
        now_us: int,
    ) -> tuple[RoutePlan, UnitAmounts, HeldBy] | Denial:
        """Return which counters count the request by its new facts, and what it takes from them."""
        route = admission.route
        route_plan = compiled_key.route_plans.get(route.id)
        if route_plan is None or route_plan.route is not route:
            route_plan = compiled_key.route_plan(route)
        if route_plan.refusal is not None:
            return route_plan.refusal
        if route_plan.matched is not None:
            objection = route_plan.matched.objection(expected.model)
            if objection is not None:
                return objection
        amounts = self._amounts(admission, compiled_key, expected, now_us)
        if amounts is None:
            return Denial("price_unknown", unpriced(expected))
        held_by = (expected.model, tags, route.event_kind, admission.method, admission.path)
        return self._plans.of(route_plan, held_by, now_us), amounts, held_by

    def _key_of(self, admission: Admission, read: ReadEntitlement, now_us: int) -> CompiledKey | Denial:
        """Return the key of a request as it is in force now, or why it is refused by now."""
        compiled_key = admission.compiled_key
        if not compiled_key.current:
            # Without an entry in the catalog it goes on with what it was admitted with.
            compiled_key = self._keys.compile_without_secret(read) or compiled_key
            keyless = not admission.key_id
            if (refusal := refusal_of(compiled_key.entitlement, keyless=keyless)) is not None:
                return refusal
        return expired(compiled_key, now_us) if now_us >= compiled_key.expires_at_us else compiled_key


def _rehold(admission: Admission, route_plan: RoutePlan, amounts: UnitAmounts, now_us: int) -> Denial | None:
    """
    Replace what *admission* has taken, with the gate's lock held; or return why it does not fit.

    Raises:
        NotRead: Nothing has changed.
    """
    at_us = admission.at_us
    before: dict[str, list[Taken]] = {}
    for taken in admission.taken:
        before.setdefault(taken[0].counter_id, []).append(taken)
    steps: list[tuple[Counter, int, Taken | None]] = []
    for counter in route_plan.taken:
        same = before.get(counter.counter_id)
        steps.append((counter, amount_at(amounts, counter.unit_index), same.pop() if same else None))
    checked = len(route_plan.checked)
    for place, (counter, amount, held) in enumerate(steps):
        at = _time_of(counter, held, at_us, now_us)
        if held is None:
            fits = counter.fits(amount if place < checked else 0, at)
        else:
            fits = place >= checked or amount == held[1] or _fits_more(counter, amount, held, at)
        if not fits:
            rest: list[Any] = [_Without(c, h, _time_of(c, h, at_us, now_us)) for c, _, h in steps[:checked]]
            return denial_of(rest[place], rest, amounts, now_us)
    # Nothing can fail from here on.
    admission.compiled_key.open.pop(id(admission.taken), None)
    admission.taken = [_taken(*step, at_us, now_us) for step in steps]
    for left in before.values():
        for counter, amount, mark in left:
            counter.give_back(mark, amount)
    return None


def _time_of(counter: Counter, held: Taken | None, at_us: int, now_us: int) -> int:
    """Return the time by which a counter decides: of a budget that of the request, whose period counts it."""
    if not isinstance(counter, BudgetCounter):
        return now_us
    return at_us if held is None else held[2]


def _fits_more(counter: Counter, amount: int, held: Taken, at_us: int) -> bool:
    if counter.reason == "too_many_concurrent":
        return True  # It is one of those under way, whatever it holds.
    more = amount - counter.counted(held[2], held[1], at_us)
    return more <= 0 or counter.fits(more, at_us)


def _taken(counter: Counter, amount: int, held: Taken | None, at_us: int, now_us: int) -> Taken:
    if held is not None:
        mark = held[2]
        if amount != held[1]:
            mark = counter.rehold(mark, held[1], amount, now_us)
        return counter, amount, mark
    if isinstance(counter, CreditPool):
        return counter, amount, counter.retake(amount, at_us)
    return counter, amount, counter.take(amount, at_us if isinstance(counter, BudgetCounter) else now_us)


class _Without:
    """A counter as it would be without what the request itself holds, for the words of a denial."""

    def __init__(self, counter: Counter, held: Taken | None, at_us: int) -> None:
        self._counter = counter
        self._at_us = at_us
        self._own = 0 if held is None else counter.counted(held[2], held[1], at_us)
        self.name = counter.name
        self.match = counter.match
        self.unit = counter.unit
        self.unit_index = counter.unit_index
        self.reason = counter.reason

    def allowed_used(self, now_us: int) -> tuple[int | None, int]:
        allowed, used = self._counter.allowed_used(self._at_us)
        return allowed, used - self._own

    def lifts_at_us(self, amount: int, now_us: int) -> int | None:
        return self._counter.lifts_at_us(max(0, amount - self._own), now_us)

    def resets_at_us(self, now_us: int) -> int | None:
        return self._counter.resets_at_us(self._at_us)
