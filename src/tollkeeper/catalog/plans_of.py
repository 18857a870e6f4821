"""Finds the plan in force for a key, or for what an account does without one."""

from __future__ import annotations

from typing import cast

from tollkeeper.domain.catalog import Account, Plan, Subscription
from tollkeeper.domain.keyless import plan_without_key
from tollkeeper.domain.keys import StoredKey
from tollkeeper.ports import CatalogStore


class PlansOf:
    """Which plan is in force for keys of one account, and without one; each plan and subscription is read once."""

    def __init__(self, catalog: CatalogStore, account: Account) -> None:
        self._catalog = catalog
        self._account = account
        self._subscriptions: dict[str, Subscription | None] = {}
        self._plans: dict[str, Plan | None] = {}

    def of(self, stored: StoredKey) -> tuple[Subscription | None, Plan | None]:
        key = stored.entry
        subscription = None
        if key.subscription is not None:
            if key.subscription not in self._subscriptions:
                found = self._catalog.get("subscriptions", key.subscription, self._account.id)
                self._subscriptions[key.subscription] = cast("Subscription | None", found)
            subscription = self._subscriptions[key.subscription]
        slug = key.plan or (subscription.plan if subscription else None) or self._account.plan
        if slug is None:
            return subscription, None
        return subscription, self._plan(slug)

    def without_key(self) -> tuple[Subscription | None, Plan | None]:
        """Return the subscription and the plan in force for what the account does without a key."""
        subscriptions = cast(
            "list[Subscription]", list(self._catalog.entries("subscriptions", self._account.id))
        )
        subscription, slug = plan_without_key(self._account, subscriptions)
        return subscription, None if slug is None else self._plan(slug)

    def _plan(self, slug: str) -> Plan | None:
        if slug not in self._plans:
            self._plans[slug] = cast("Plan | None", self._catalog.get("plans", slug))
        return self._plans[slug]
