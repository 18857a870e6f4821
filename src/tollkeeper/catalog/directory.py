"""
The directory: resolves and remembers what gate, ledger and meter read of the catalog.

Resolving walks from key to subscription, plan, account and budgets once; `forget` drops what a change of
the catalog touched. Budgets count from the moment that they are in force in the ledger (`ledger.budget_scopes`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar, cast

import msgspec

from tollkeeper.blocking import WouldWait
from tollkeeper.catalog.catalog_reads import CatalogReads
from tollkeeper.catalog.key_families import rotations_of, successor
from tollkeeper.catalog.plans_of import PlansOf
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import CounterAt, ToppedUp
from tollkeeper.domain.catalog import (
    Account,
    Key,
    Markup,
    ModelAlias,
    Plan,
    Price,
    Subscription,
)
from tollkeeper.domain.entitlements import (
    CREDIT_COUNTER,
    BudgetScope,
    Entitlement,
    LimitScope,
    Maker,
    RouteCalls,
    budget_scopes,
    is_of_first_use,
    limit_scopes,
    of_rotations,
    resolve,
)
from tollkeeper.domain.events import Record
from tollkeeper.domain.first_use import Span, opens_period
from tollkeeper.domain.keyless import Keyless, draws_from_us, resolve_keyless
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.matching import matcher_of
from tollkeeper.domain.meter import facts_of, units_of
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.pricing import ModelPrice
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.domain.wanted_scopes import WantedScope, wanted_scopes
from tollkeeper.gate.gate import Charge
from tollkeeper.gate.openings import Openings
from tollkeeper.gate.routes import RouteTable
from tollkeeper.ports import CatalogStore, LedgerReader

_REMEMBERED_MAX: Final = 200_000
_UNSEEN: Final = object()
_ALWAYS_US: Final = -(2**62)

K = TypeVar("K")
V = TypeVar("V")


class Scopes(NamedTuple):
    """
    The counters that an event of one account, project and key is charged to, and the plan whose mark-ups it pays.

    The plan is that of the key's entitlement now, as the catalog keeps no history of subscriptions; without a key, that
    of the account; `""` for none. Events from `draws_from_us` on draw on the credit balance; none where it is None.
    """

    budgets: tuple[BudgetScope, ...]
    draws_from_us: int | None
    plan_slug: str = ""


class Directory(CatalogReads):
    """
    Answers from memory; reads the stores on a miss. Any thread may call.

    Args:
        must_wait: Whether keys of an account must not be admitted without a budget that is not in force yet.
    """

    def __init__(
        self,
        catalog: CatalogStore,
        ledger: LedgerReader,
        clock: Clock,
        *,
        must_wait: Callable[[str], bool] = lambda account_id: False,
    ) -> None:
        super().__init__(catalog)
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._forgotten = 0
        """Number of calls of `forget`: a value that was read before a call must not be cached after it."""
        self._accounts: dict[str, Account | None] = {}
        self._keys: dict[str, StoredKey | None] = {}
        self._projects: dict[tuple[str, str], bool] = {}
        self._scopes: dict[tuple[str, str, str], Scopes] = {}
        self._active: dict[str, dict[str, tuple[str, int]]] = {}
        self._deciding: dict[str, list[BudgetScope]] = {}
        self._route_table: RouteTable | None = None
        self._calls: RouteCalls | None = None
        self._must_wait = must_wait
        self.openings = Openings(ledger.opened_periods)
        self.price_book = PriceBook(*self._price_entries())

    @property
    def version(self) -> int:
        """A number that changes with every `forget`: a value that was read under another one may be out of date."""
        return self._forgotten

    # -- for the gate (`gate.Sources`) ----------------------------------------------------------------

    def entitlement(self, secret_sha256: str) -> Entitlement | None:
        forgotten = self._forgotten
        stored = self._catalog.find_key_by_hash(secret_sha256)
        found = None if stored is None else self.entitlement_of(stored)
        if found is not None:
            # What its events are charged to is known from now on, without reading.
            key = found.key
            at = (key.account, key.project or "", key.id)
            plan = "" if found.plan is None else found.plan.slug
            draws_from_us = _ALWAYS_US if key.draws_on_credit else None
            self._remember(self._scopes, at, Scopes(found.budgets, draws_from_us, plan), forgotten)
        return found

    def keyless_entitlement(self, caller: Keyless) -> Entitlement | None:
        account = self.account(caller.account_id)
        if account is None:
            return None
        if caller.project_id and not self.project_exists(account.id, caller.project_id):
            return None
        subscription, plan = PlansOf(self._catalog, account).without_key()
        entitlement = resolve_keyless(
            caller,
            account=account,
            subscription=subscription,
            plan=plan,
            budgets=self._budgets(account.id),
            routes=self._route_calls(),
            now_us=self._clock.now_us(),
        )
        return self._in_force(entitlement)

    def price(self, model: str, variant: str, account_id: str, plan: str, at_us: int) -> ModelPrice | None:
        return self.price_book.price_of(model, account_id=account_id, at_us=at_us, variant=variant, plan=plan)

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self._ledger.counter(account_id, counter_id, period_start_us)

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return self._ledger.slots(account_id, counter_id)

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        return self._ledger.book(account_id)

    # -- resolving ------------------------------------------------------------------------------------

    def entitlement_of(self, stored: StoredKey) -> Entitlement | None:
        """Return what a key permits, with the budgets that are in force; None without its account."""
        account = self.account(stored.entry.account)
        if account is None:
            return None
        plans = PlansOf(self._catalog, account)
        makers = self.makers_of(stored)
        key = _ended_with(stored.entry, [successor(self._catalog, maker) for maker in makers])
        subscription, plan = plans.of(stored)
        rotations = rotations_of(self._catalog, stored)
        rotation_chain = [other.entry.id for other in rotations]
        made_by: list[Maker] = []
        others: list[Sequence[LimitScope]] = []
        for maker in makers:
            maker_rotations = rotations_of(self._catalog, maker)
            maker_chain = [other.entry.id for other in maker_rotations]
            made_by.append(Maker(maker.entry, maker_chain, plans.of(maker)[1]))
            others += self._other_limits(maker, maker_rotations, plans, ())
        others += self._other_limits(stored, rotations, plans, made_by)
        entitlement = resolve(
            key,
            rotation_chain=rotation_chain,
            account=account,
            subscription=subscription,
            plan=plan,
            budgets=self._budgets(account.id),
            makers=made_by,
            routes=self._route_calls(),
        )
        return self._in_force(entitlement._replace(limits=of_rotations(entitlement.limits, others)))

    def _in_force(self, entitlement: Entitlement) -> Entitlement:
        """Return an entitlement with the budgets that are in force, and with that for which it must wait."""
        account_id = entitlement.account.id
        active = self.scopes_in_force(account_id)
        must_wait = self._must_wait(account_id)
        missing = [
            b
            for b in entitlement.budgets
            if b.counter_id not in active
            # Of an earlier version, whose periods were aligned: its counter is about to begin again.
            or (must_wait and b.first_use_us and not is_of_first_use(active[b.counter_id][0], b))
        ]
        return entitlement._replace(
            budgets=tuple(b for b in entitlement.budgets if b.counter_id in active),
            waits_for=missing[0].name if missing and must_wait else "",
        )

    def _other_limits(
        self, stored: StoredKey, rotations: Sequence[StoredKey], plans: PlansOf, makers: Sequence[Maker]
    ) -> list[Sequence[LimitScope]]:
        """Return the limits of the active keys that count in the same counters as a key, its rotations."""
        rotation_chain = [other.entry.id for other in rotations]
        now_us = self._clock.now_us()
        return [
            limit_scopes(other.entry, rotation_chain, plans.of(other)[1], makers, self._route_calls())
            for other in rotations
            if other.entry.id != stored.entry.id and other.state_at(now_us) == "active"
        ]

    def entitlement_of_id(self, key_id: str) -> Entitlement | None:
        """Return what the key of an id permits, as `entitlement_of`; None without the key or its account."""
        stored = self.key(key_id)
        return None if stored is None else self.entitlement_of(stored)

    def _plan_of(self, stored: StoredKey, account: Account) -> tuple[Subscription | None, Plan | None]:
        return PlansOf(self._catalog, account).of(stored)

    def wanted_scopes(self, account_id: str) -> dict[str, WantedScope]:
        """Return every budget scope of an account, as `domain.wanted_scopes`."""
        account = self.account(account_id)
        if account is None:
            return {}
        keys = self._catalog.keys_of_account(account_id)
        plan_of = PlansOf(self._catalog, account).of
        projects = [project.entry_id for project in self._catalog.entries("projects", account_id)]
        budgets = self._budgets(account_id)
        return wanted_scopes(
            account_id,
            keys,
            budgets,
            plan_of,
            projects,
            self._route_calls(),
            time_zone=account.time_zone,
            keyless=PlansOf(self._catalog, account).without_key(),
        )

    def account(self, account_id: str) -> Account | None:
        """Return an account, or None."""
        known = self._accounts.get(account_id, _UNSEEN)
        if known is not _UNSEEN:
            return cast("Account | None", known)
        forgotten = self._forgotten
        found = cast("Account | None", self._catalog.get("accounts", account_id))
        self._remember(self._accounts, account_id, found, forgotten)
        return found

    def key(self, key_id: str) -> StoredKey | None:
        """Return a key in whatever state, or None."""
        known = self._keys.get(key_id, _UNSEEN)
        if known is not _UNSEEN:
            return cast("StoredKey | None", known)
        forgotten = self._forgotten
        found = self._catalog.find_key(key_id)
        self._remember(self._keys, key_id, found, forgotten)
        return found

    def project_exists(self, account_id: str, project_id: str) -> bool:
        """Return whether an account has a project."""
        at = (account_id, project_id)
        found = self._projects.get(at)
        if found is None:
            forgotten = self._forgotten
            found = self._catalog.get("projects", project_id, account_id) is not None
            self._remember(self._projects, at, found, forgotten)
        return found

    def _route_calls(self) -> RouteCalls:
        """Return the method and path of each route, by its id."""
        calls = self._calls
        if calls is None:
            forgotten = self._forgotten
            calls = {route.id: (route.method, route.path) for route in self.routes()}
            with self._lock:
                if forgotten == self._forgotten:
                    self._calls = calls
        return calls

    def route_table(self) -> RouteTable:
        """Return the compiled route policies."""
        table = self._route_table
        if table is None:
            forgotten = self._forgotten
            table = RouteTable(self.routes())
            with self._lock:
                if forgotten == self._forgotten:
                    self._route_table = table
        return table

    # -- charging -------------------------------------------------------------------------------------

    def scopes(self, account_id: str, project_id: str, key_id: str) -> Scopes:
        """Return the budgets in force that an event is charged to; `""` stands for no project or key."""
        at = (account_id, project_id, key_id)
        found = self._scopes.get(at)
        if found is None:
            forgotten = self._forgotten
            found = self._resolve_scopes(account_id, project_id, key_id)
            self._remember(self._scopes, at, found, forgotten)
        return found

    def _resolve_scopes(self, account_id: str, project_id: str, key_id: str) -> Scopes:
        account = self.account(account_id)
        if account is None:
            return Scopes((), None)
        stored = self.key(key_id) if key_id else None
        if stored is None:
            subscription, plan = PlansOf(self._catalog, account).without_key()
            draws_us = draws_from_us(account)
        else:
            subscription, plan = self._plan_of(stored, account)
            draws_us = _ALWAYS_US if stored.entry.draws_on_credit else None
        budgets = budget_scopes(
            account_id,
            project_id or None,
            [] if stored is None else self._bounding_keys(stored),
            subscription=subscription,
            plan=plan,
            budgets=self._budgets(account_id),
            routes=self._route_calls(),
            time_zone=account.time_zone,
        )
        active = self.scopes_in_force(account_id)
        return Scopes(
            tuple(budget for budget in budgets if budget.counter_id in active),
            draws_us,
            "" if plan is None else plan.slug,
        )

    def active_from_us(self, account_id: str, counter_id: str) -> int:
        """Return from which period on a budget in force counts."""
        return self.scopes_in_force(account_id)[counter_id][1]

    def scopes_in_force(self, account_id: str) -> dict[str, tuple[str, int]]:
        """Return the budgets in force, as `Ledger.scopes`."""
        active = self._active.get(account_id)
        if active is None:
            forgotten = self._forgotten
            active = self._ledger.scopes(account_id)
            self._remember(self._active, account_id, active, forgotten)
        return active

    def period_us(self, scope: BudgetScope, at_us: int, *, opens: bool = False) -> Span | None:
        """
        Return the period of a budget in force that holds *at_us*, as `[start, end)`.

        Args:
            opens: Opens the period where its periods open with the first use and none holds *at_us*; else that is None.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        if not scope.first_use_us:
            return scope.span_us(at_us)
        return self.openings.period_us(scope, at_us, self._clock.now_us(), opens=opens)

    def top_ups(self, scope: BudgetScope) -> tuple[TopUps, dict[int, int], int]:
        """See `gate.Sources.top_ups`."""
        return top_ups_of(self._ledger.topped_up(scope.account_id, scope.counter_id), scope, self.period_us)

    def charges_of(self, record: Record) -> list[Charge]:
        """Return what one record charges, by the scopes in force now."""
        scopes = self.scopes(record.account_id, record.project_id, record.key_id)
        return _charged(record, scopes, self.active_from_us, self.period_us)

    def decides_by(self, account_id: str, field: str, text: str, owner: tuple[str, str] | None) -> bool:
        """
        Return whether a budget of an account counts events by *text* in *field*, a label of theirs.

        Such a label is stored as it is, or the records would not say what was charged.

        Args:
            owner: The project and key of the event; None for any of the account.
        """
        if field not in ("model", "kind", "method", "route"):
            return False
        try:
            scopes = (
                self._deciding_of(account_id) if owner is None else self.scopes(account_id, *owner).budgets
            )
        except WouldWait:
            # Just after a change of the catalog. The text is kept, which costs a label.
            return True
        return any(
            (field == "model" and "model" in scope.by)
            or (scope.match is not None and matcher_of(scope.match).names(field, text))
            for scope in scopes
        )

    def _deciding_of(self, account_id: str) -> Sequence[BudgetScope]:
        found = self._deciding.get(account_id)
        if found is None:
            forgotten = self._forgotten
            found = [scope for scope, _ in self.wanted_scopes(account_id).values() if not scope.is_whole]
            self._remember(self._deciding, account_id, found, forgotten)
        return found

    def charges_of_all(self, records: Iterable[Record]) -> dict[CounterAt, int]:
        """Return the sum of what *records* charge, by counter; `sign` -1 gives back."""
        charges: dict[CounterAt, int] = {}
        for record in records:
            for account_id, counter_id, start_us, amount in self.charges_of(record):
                at = (account_id, counter_id, start_us)
                charges[at] = charges.get(at, 0) + amount
        return charges

    # -- changes --------------------------------------------------------------------------------------

    def forget(self, account_id: str | None = None) -> None:
        """Drop what is remembered of one account, or of all: the catalog or the scopes changed."""
        with self._lock:
            self._forgotten += 1
            self._route_table = self._calls = None
            # Budgets in force are not the catalog's: see `scopes_changed`.
            if account_id is None:
                for memory in (self._accounts, self._keys, self._projects, self._scopes, self._deciding):
                    memory.clear()
                return
            self._accounts.pop(account_id, None)
            self._deciding.pop(account_id, None)
            self._keys = {
                at: key
                for at, key in self._keys.items()
                if key is not None and key.entry.account != account_id
            }
            self._projects = {at: p for at, p in self._projects.items() if at[0] != account_id}
            self._scopes = {at: s for at, s in self._scopes.items() if at[0] != account_id}

    def scopes_changed(self, account_id: str) -> None:
        """Drop what is remembered of an account whose budgets came into or went out of force."""
        with self._lock:
            self._active.pop(account_id, None)
        self.forget(account_id)

    def reload_prices(self) -> None:
        """Take over changed prices."""
        self.price_book = self.price_book.replace(*self._price_entries())

    def _price_entries(self) -> tuple[list[Price], list[Markup], list[ModelAlias]]:
        return (
            cast("list[Price]", list(self._catalog.entries("prices"))),
            cast("list[Markup]", list(self._catalog.entries("markups"))),
            cast("list[ModelAlias]", list(self._catalog.entries("models"))),
        )

    def _remember(self, memory: dict[K, V], at: K, value: V, forgotten: int) -> None:
        with self._lock:
            if forgotten != self._forgotten:
                return
            if len(memory) >= _REMEMBERED_MAX:
                memory.clear()
            memory[at] = value


def _charged(
    record: Record,
    scopes: Scopes,
    active_from_us: Callable[[str, str], int],
    period_us: Callable[..., Span | None],
) -> list[Charge]:
    """Return what a record charges to *scopes*: a budget counts from the period on in which it came into force."""
    by_unit = units_of(record)
    facts = facts_of(record)
    charges = []
    for scope in scopes.budgets:
        counter_id = scope.counter_of(facts)
        if counter_id is None:
            continue
        amount = by_unit.get(scope.unit, 0)
        # Each value has periods of its own, where these open with the first use.
        counted = scope._replace(counter_id=counter_id) if scope.by else scope
        span = period_us(counted, record.occurred_at_us, opens=opens_period(record, amount))
        if span is not None and span[0] >= active_from_us(record.account_id, scope.counter_id):
            charges.append(Charge(record.account_id, counter_id, span[0], amount))
    # An adjustment that names no key is of the account's balance.
    at_us = record.occurred_at_us
    draws = scopes.draws_from_us is not None and at_us >= scopes.draws_from_us
    if draws or (record.adjustment_nanos and not record.key_id):
        charges.append(Charge(record.account_id, CREDIT_COUNTER, at_us, by_unit["nanos"]))
    return charges


def top_ups_of(
    found: ToppedUp, scope: BudgetScope, period_us: Callable[[BudgetScope, int], Span | None]
) -> tuple[TopUps, dict[int, int], int]:
    """
    Return the top-ups of a counter by the periods of *scope*, as `gate.Sources.top_ups`.

    Those in another unit than the budget has now add nothing: 5.00 is not so many requests.
    """

    def start_us(at_us: int) -> int:
        span = period_us(scope, at_us)
        return at_us if span is None else span[0]

    once: dict[int, int] = {}
    lasting = []
    for top_up in found.posted:
        if top_up.unit != scope.unit:
            continue
        at_us = start_us(top_up.posted_at_us)
        if top_up.until_used:
            lasting.append((at_us, top_up.amount))
        else:
            once[at_us] = once.get(at_us, 0) + top_up.amount
    own = tuple((start_us(amount.from_us), amount.amount) for amount in found.own)
    # Rows of periods that the budget no longer has count no more.
    used = {at: used for at, used in found.used.items() if start_us(at) == at}
    return TopUps(once, tuple(sorted(lasting)), own), used, found.commit_seq


def _ended_with(key: Key, makers: Iterable[StoredKey]) -> Key:
    """Return a key as its makers leave it: it ends with one that the operator ended, or that expired."""
    for maker in makers:
        if maker.state_by == "operator" and maker.entry.state != "active" and key.state == "active":
            key = msgspec.structs.replace(key, state=maker.entry.state)
        ends_at = maker.entry.expires_at
        if ends_at is not None and (key.expires_at is None or ends_at < key.expires_at):
            key = msgspec.structs.replace(key, expires_at=ends_at)
    return key
