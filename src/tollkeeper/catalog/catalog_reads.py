"""What the directory reads of the catalog each time, without remembering it."""

from __future__ import annotations

from typing import cast

from tollkeeper.catalog.key_families import makers_of, rotations_of
from tollkeeper.catalog.lookups import names_routes
from tollkeeper.domain.catalog import Account, Budget, Route
from tollkeeper.domain.keys import StoredKey
from tollkeeper.ports import CatalogStore


class CatalogReads:
    """Any thread may call."""

    def __init__(self, catalog: CatalogStore) -> None:
        self._catalog = catalog

    def rotation_chain_of(self, stored: StoredKey) -> list[str]:
        """Return the ids of the keys that rotations made of one another, the first one first."""
        return [key.entry.id for key in rotations_of(self._catalog, stored)]

    def makers_of(self, stored: StoredKey) -> list[StoredKey]:
        """Return the consumption keys that made a key, the first one first; most keys have none."""
        return makers_of(self._catalog, stored)

    def _bounding_keys(self, stored: StoredKey) -> list[str]:
        """Return the ids of the keys whose budgets count a key: those of its makers' chains, then of its own."""
        makers = [name for maker in self.makers_of(stored) for name in self.rotation_chain_of(maker)]
        return [*makers, *self.rotation_chain_of(stored)]

    def _budgets(self, account_id: str) -> list[Budget]:
        return cast("list[Budget]", list(self._catalog.entries("budgets", account_id)))

    def credit_keys(self, account_id: str) -> list[str]:
        """Return the ids of the keys, deleted ones too, that draw on an account's credit balance."""
        return [
            stored.entry.id
            for stored in self._catalog.keys_of_account(account_id)
            if stored.entry.draws_on_credit
        ]

    def accounts(self) -> list[Account]:
        """Return all accounts."""
        return cast("list[Account]", list(self._catalog.entries("accounts")))

    def accounts_by_route(self) -> set[str]:
        """Return the accounts with budgets that count events by a route's id, which may mean another path now."""
        if any(names_routes(plan) for plan in self._catalog.entries("plans")):
            return {account.id for account in self.accounts()}
        budgets = cast("list[Budget]", list(self._catalog.entries("budgets")))
        return {budget.account for budget in budgets if names_routes(budget)}

    def key_by_hash(self, secret_sha256: str) -> StoredKey | None:
        """Return the key of a secret's hash, in whatever state, or None."""
        return self._catalog.find_key_by_hash(secret_sha256)

    def keys_of(self, account_id: str) -> list[StoredKey]:
        """Return all keys of an account, tombstones too."""
        return list(self._catalog.keys_of_account(account_id))

    def routes(self) -> list[Route]:
        return cast("list[Route]", list(self._catalog.entries("routes")))
