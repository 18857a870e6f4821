"""Plans and subscriptions as the vendor shows them, and whether a key may read its usage under them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from tollkeeper.domain.catalog import Limit, Plan, Subscription
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.profiles.base import ProfileContext
from tollkeeper.profiles.toolkit import iso_millis, limits_over


class AccountPlans:
    """Plans and subscriptions of one account's keys, each read once."""

    def __init__(self, context: ProfileContext, account_id: str) -> None:
        self._context = context
        self.subscriptions = {found.id: found for found in context.subscriptions(account_id)}
        self._by_slug = {plan.slug: plan for plan in context.plans()}
        self._default: tuple[str | None] | None = None

    def subscription_of(self, key: StoredKey) -> Subscription | None:
        """Return the subscription of *key*, or None."""
        return None if key.entry.subscription is None else self.subscriptions.get(key.entry.subscription)

    def slug_of(self, key: StoredKey) -> str | None:
        """Return the plan of *key* as lists show it."""
        if key.entry.type == "credit":
            return "credits"
        subscription = self.subscription_of(key)
        slug = key.entry.plan or (subscription.plan if subscription else None) or self._of_account(key)
        return None if slug is None else self.shown(slug)

    def shown(self, slug: str) -> str:
        """Return the vendor's name of a plan."""
        return slug_of(self._by_slug.get(slug)) or slug

    def _of_account(self, key: StoredKey) -> str | None:
        if self._default is None:
            entitlement = self._context.entitlement(key)
            self._default = (None if entitlement is None else entitlement.account.plan,)
        return self._default[0]


def is_active(key: StoredKey, subscription: Subscription | None, now: datetime) -> bool:
    """Return whether *key* is good for metered calls: its own state, and its subscription has not ended."""
    if key.state_at(to_us(now)) != "active":
        return False
    ends_at = None if subscription is None else subscription.ends_at
    return ends_at is None or now < ends_at


def may_read_usage(
    key: StoredKey, subscription: Subscription | None, now: datetime, context: ProfileContext
) -> bool:
    """Return whether *key* may read its usage: it still may for a grace time after its subscription has expired."""
    if is_active(key, subscription, now):
        return True
    if subscription is None or subscription.expires_at is None or key.state_at(to_us(now)) != "active":
        return False  # Canceled at once: no period runs out.
    return now < subscription.expires_at + timedelta(seconds=int(context.settings["expired_grace_s"]))


def plan_status(subscription: Subscription | None, now: datetime) -> tuple[str, str | None]:
    """Return a subscription's status and the instant of its end, None without one."""
    if subscription is None or subscription.expires_at is None:
        return "active" if subscription is None or subscription.ends_at is None else "canceled", None
    status = "expired" if subscription.expires_at <= now else "active"
    return status, iso_millis(subscription.expires_at)


def slug_of(plan: Plan | None) -> str | None:
    """Return the vendor's name of *plan*: several dialects in one installation may each have a plan `pro`."""
    return None if plan is None else plan.metadata.get("slug", plan.slug)


def per_minute(entitlement: Entitlement) -> tuple[int | None, int | None]:
    """Return the requests and tokens that an entitlement allows per minute; None without such a limit."""
    return amounts_per_minute([scope.limit for scope in entitlement.limits])


def amounts_per_minute(limits: Sequence[Limit]) -> tuple[int | None, int | None]:
    """Return the requests and tokens that the first limit of each kind allows per minute."""
    requests, tokens = limits_over(limits, 60), limits_over(limits, 60, "tokens")
    return requests[0].amount if requests else None, tokens[0].amount if tokens else None
