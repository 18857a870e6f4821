"""Reads of the catalog what the operator gave an account: the bounds of what its own calls may make."""

from __future__ import annotations

from typing import cast

from tollkeeper.domain.bounds import Terms
from tollkeeper.domain.catalog import Budget, Key, Plan, Subscription
from tollkeeper.ports import Catalog


def budgets_of(catalog: Catalog, account: str) -> list[Budget]:
    """Return all budgets of an account."""
    return cast("list[Budget]", list(catalog.entries("budgets", account)))


def plans_of(catalog: Catalog, account: str) -> list[tuple[Plan, bool]]:
    """Return the plans that keys of an account are or may come to be on, and whether by a subscription."""
    found = catalog.get("accounts", account)
    subscriptions = cast("list[Subscription]", catalog.entries("subscriptions", account))
    slugs: set[tuple[str | None, bool]] = {(subscription.plan, True) for subscription in subscriptions}
    slugs.add((getattr(found, "plan", None), False))
    slugs |= {
        (stored.entry.plan, stored.entry.subscription is not None)
        for stored in catalog.keys_of_account(account)
    }
    plans = [
        (catalog.get("plans", slug), subscribed)
        for slug, subscribed in sorted(slugs, key=str)
        if slug is not None
    ]
    return [(cast("Plan", plan), subscribed) for plan, subscribed in plans if plan is not None]


def terms_of(catalog: Catalog, key: Key) -> Terms:
    """Return what the operator gave the account of *key*, as far as the key depends on it."""
    subscription = None
    if key.subscription is not None:
        found = catalog.get("subscriptions", key.subscription, key.account)
        subscription = cast("Subscription | None", found)
    account = catalog.get("accounts", key.account)
    slug = key.plan or (subscription.plan if subscription else None) or getattr(account, "plan", None)
    plan = None if slug is None else cast("Plan | None", catalog.get("plans", slug))
    in_use = [
        stored.entry
        for stored in catalog.keys_of_account(key.account)
        if stored.entry.state not in ("revoked", "deleted")
    ]
    has_credit = bool(catalog.entries("grants", key.account)) or any(
        other.draws_on_credit for other in in_use
    )
    lists = [other.models for other in in_use if other.is_metered and other.id != key.id]
    return Terms(
        plan,
        subscription,
        budgets_of(catalog, key.account),
        has_credit,
        [models for models in lists if models is not None] if None not in lists else [],
    )
