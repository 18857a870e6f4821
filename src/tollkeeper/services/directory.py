"""
The directory: what gate and meter read of the catalog and the ledger, resolved and remembered.

Resolving walks from key to subscription, plan, account and budgets once; `forget` drops what a change of
the catalog touched. Budgets count from the moment that they are in force in the ledger (`services.scopes`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar, cast

from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.catalog import Account, Budget, Plan, Price, Route, Subscription
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope, Entitlement, budget_scopes, resolve, scope_of_budget
from tollkeeper.domain.events import Record
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.pricing import ModelPrice
from tollkeeper.gate.gate import Charge
from tollkeeper.gate.routes import RouteTable
from tollkeeper.ports import CatalogStore, Ledger
from tollkeeper.services.price_book import PriceBook

_REMEMBERED_MAX: Final = 200_000

K = TypeVar("K")
V = TypeVar("V")


class Scopes(NamedTuple):
    """What an event of one account, project and key is charged to."""

    budgets: tuple[BudgetScope, ...]
    draws_on_credit: bool


class Directory:
    """Answers from memory; reads the stores for what it has not seen. Any thread may call."""

    def __init__(self, catalog: CatalogStore, ledger: Ledger) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._lock = threading.Lock()
        self._accounts: dict[str, Account | None] = {}
        self._keys: dict[str, StoredKey | None] = {}
        self._projects: dict[tuple[str, str], bool] = {}
        self._scopes: dict[tuple[str, str, str], Scopes] = {}
        self._active: dict[str, dict[str, tuple[str, int]]] = {}
        self._route_table: RouteTable | None = None
        self.price_book = PriceBook(cast("list[Price]", catalog.entries("prices")))
        self.version: Callable[[], int] = lambda: 0

    # -- for the gate (`gate.Sources`) ----------------------------------------------------------------

    def entitlement(self, secret_sha256: str) -> Entitlement | None:
        stored = self._catalog.find_key_by_hash(secret_sha256)
        return None if stored is None else self.entitlement_of(stored)

    def routes(self) -> list[Route]:
        return cast("list[Route]", list(self._catalog.entries("routes")))

    def price(self, model: str, account_id: str, at_us: int) -> ModelPrice | None:
        return self.price_book.price_of(model, account_id=account_id, at_us=at_us)

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self._ledger.counter(account_id, counter_id, period_start_us)

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return self._ledger.slots(account_id, counter_id)

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        return self._ledger.book(account_id)

    # -- resolving ------------------------------------------------------------------------------------

    def entitlement_of(self, stored: StoredKey) -> Entitlement | None:
        """Return what a key permits, with the budgets that are in force; None without its account."""
        key = stored.entry
        account = self.account(key.account)
        if account is None:
            return None
        subscription, plan = self._plan_of(stored, account)
        entitlement = resolve(
            key,
            line=self.line_of(stored),
            account=account,
            subscription=subscription,
            plan=plan,
            budgets=self._budgets(account.id),
        )
        active = self._active_scopes(account.id)
        return entitlement._replace(budgets=tuple(b for b in entitlement.budgets if b.counter_id in active))

    def _plan_of(self, stored: StoredKey, account: Account) -> tuple[Subscription | None, Plan | None]:
        key = stored.entry
        subscription = None
        if key.subscription is not None:
            subscription = cast(
                "Subscription | None", self._catalog.get("subscriptions", key.subscription, account.id)
            )
        slug = key.plan or (subscription.plan if subscription else None) or account.plan
        plan = None if slug is None else cast("Plan | None", self._catalog.get("plans", slug))
        return subscription, plan

    def line_of(self, stored: StoredKey) -> list[str]:
        """Return the ids of the keys that rotations made of one another, the first one first."""
        if stored.lineage_id == stored.entry.id and stored.replaced_by is None:
            return [stored.entry.id]
        line = [
            other.entry.id
            for other in self._catalog.keys_of_account(stored.entry.account)
            if other.lineage_id == stored.lineage_id
        ]
        return sorted(line, key=lambda key_id: key_id != stored.lineage_id)

    def _line_of_id(self, key_id: str) -> list[str]:
        stored = self.key(key_id)
        return [key_id] if stored is None else self.line_of(stored)

    def _budgets(self, account_id: str) -> list[Budget]:
        return cast("list[Budget]", list(self._catalog.entries("budgets", account_id)))

    def wanted_scopes(self, account_id: str) -> dict[str, tuple[BudgetScope, list[str] | None]]:
        """
        Return every budget scope of an account: counter id → (scope, ids of the keys that it counts).

        None for the keys means every event of the scope's project or account, keyless ones too.
        """
        account = self.account(account_id)
        if account is None:
            return {}
        wanted: dict[str, tuple[BudgetScope, list[str] | None]] = {}
        for budget in self._budgets(account_id):
            scope = scope_of_budget(budget)
            line = None if budget.key is None else self._line_of_id(budget.key)
            wanted[scope.counter_id] = (scope, line)
        for stored in self._catalog.keys_of_account(account_id):
            subscription, plan = self._plan_of(stored, account)
            planned = budget_scopes(
                account_id,
                stored.entry.project,
                self.line_of(stored),
                subscription=subscription,
                plan=plan,
                budgets=[],
            )
            for scope in planned:
                known = wanted.setdefault(scope.counter_id, (scope, []))[1]
                assert known is not None
                known.append(stored.entry.id)
        return wanted

    def credit_keys(self, account_id: str) -> list[str]:
        """Return the ids of the keys, deleted ones too, that draw on an account's credit balance."""
        return [
            stored.entry.id
            for stored in self._catalog.keys_of_account(account_id)
            if stored.entry.type == "credit" and stored.entry.role == "consumption"
        ]

    def account(self, account_id: str) -> Account | None:
        """Return an account, or None."""
        if account_id not in self._accounts:
            found = cast("Account | None", self._catalog.get("accounts", account_id))
            self._remember(self._accounts, account_id, found)
            return found
        return self._accounts[account_id]

    def accounts(self) -> list[Account]:
        """Return all accounts."""
        return cast("list[Account]", list(self._catalog.entries("accounts")))

    def key(self, key_id: str) -> StoredKey | None:
        """Return a key in whatever state, or None."""
        if key_id not in self._keys:
            found = self._catalog.find_key(key_id)
            self._remember(self._keys, key_id, found)
            return found
        return self._keys[key_id]

    def key_by_hash(self, secret_sha256: str) -> StoredKey | None:
        """Return the key of a secret's hash, in whatever state, or None."""
        return self._catalog.find_key_by_hash(secret_sha256)

    def keys_of(self, account_id: str) -> list[StoredKey]:
        """Return all keys of an account, tombstones too."""
        return list(self._catalog.keys_of_account(account_id))

    def project_exists(self, account_id: str, project_id: str) -> bool:
        """Return whether an account has a project."""
        at = (account_id, project_id)
        if at not in self._projects:
            found = self._catalog.get("projects", project_id, account_id) is not None
            self._remember(self._projects, at, found)
            return found
        return self._projects[at]

    def route_table(self) -> RouteTable:
        """Return the compiled route policies."""
        table = self._route_table
        if table is None:
            table = self._route_table = RouteTable(self.routes())
        return table

    # -- charging -------------------------------------------------------------------------------------

    def scopes(self, account_id: str, project_id: str, key_id: str) -> Scopes:
        """Return the budgets in force that an event is charged to; `""` stands for no project or key."""
        at = (account_id, project_id, key_id)
        found = self._scopes.get(at)
        if found is None:
            found = self._resolve_scopes(account_id, project_id, key_id)
            self._remember(self._scopes, at, found)
        return found

    def _resolve_scopes(self, account_id: str, project_id: str, key_id: str) -> Scopes:
        account = self.account(account_id)
        if account is None:
            return Scopes((), False)
        stored = self.key(key_id) if key_id else None
        subscription, plan = (None, None) if stored is None else self._plan_of(stored, account)
        budgets = budget_scopes(
            account_id,
            project_id or None,
            [] if stored is None else self.line_of(stored),
            subscription=subscription,
            plan=plan,
            budgets=self._budgets(account_id),
        )
        active = self._active_scopes(account_id)
        return Scopes(
            tuple(budget for budget in budgets if budget.counter_id in active),
            stored is not None and stored.entry.type == "credit",
        )

    def active_from_us(self, account_id: str, counter_id: str) -> int:
        """Return from which period on a budget in force counts."""
        return self._active_scopes(account_id)[counter_id][1]

    def _active_scopes(self, account_id: str) -> dict[str, tuple[str, int]]:
        active = self._active.get(account_id)
        if active is None:
            active = self._ledger.scopes(account_id)
            self._remember(self._active, account_id, active)
        return active

    def charges_of(self, record: Record) -> list[Charge]:
        """Return what one record charges, by the scopes in force now."""
        scopes = self.scopes(record.account_id, record.project_id, record.key_id)
        by_unit = units_of(record)
        charges = []
        for scope in scopes.budgets:
            start_us = scope.span_us(record.occurred_at_us)[0]
            if start_us >= self.active_from_us(record.account_id, scope.counter_id):
                charges.append(Charge(record.account_id, scope.counter_id, start_us, by_unit[scope.unit]))
        if scopes.draws_on_credit:
            charges.append(Charge(record.account_id, CREDIT_COUNTER, 0, by_unit["nanos"]))
        return charges

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
            self._route_table = None
            if account_id is None:
                for memory in (self._accounts, self._keys, self._projects, self._scopes, self._active):
                    memory.clear()
                return
            self._accounts.pop(account_id, None)
            self._active.pop(account_id, None)
            self._keys = {at: k for at, k in self._keys.items() if k is not None and k.entry.account != account_id}
            self._projects = {at: p for at, p in self._projects.items() if at[0] != account_id}
            self._scopes = {at: s for at, s in self._scopes.items() if at[0] != account_id}

    def reload_prices(self) -> None:
        """Take over changed prices."""
        self.price_book = self.price_book.replace(cast("list[Price]", list(self._catalog.entries("prices"))))

    def _remember(self, memory: dict[K, V], at: K, value: V) -> None:
        with self._lock:
            if len(memory) >= _REMEMBERED_MAX:
                memory.clear()
            memory[at] = value


def units_of(record: Record) -> dict[str, int]:
    """Return what a record counts in each unit, with its sign."""
    sign = record.sign
    tokens = (
        record.prompt_tokens + record.cached_prompt_tokens + record.completion_tokens + record.reasoning_tokens
    )
    return {
        # A denied request used nothing, whatever it asked for.
        "requests": 0 if record.denied_reason else sign,
        "tokens": sign * tokens,
        "nanos": sign * record.cost_nanos,
        "credits": sign * record.credits,
    }

