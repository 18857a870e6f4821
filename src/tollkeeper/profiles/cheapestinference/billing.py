"""`GET /api/plans` and `/api/billing/*`: offers, subscriptions and credit."""

from __future__ import annotations

from tollkeeper.domain.money import format_nanos
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.cheapestinference.callers import dashboard_account
from tollkeeper.profiles.cheapestinference.plans import AccountPlans, amounts_per_minute, plan_status, slug_of
from tollkeeper.profiles.cheapestinference.settings import NAME
from tollkeeper.profiles.cheapestinference.wording import wrapped


def answer_plans(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /api/plans`."""
    sold = [plan for plan in context.plans() if plan.sellable and plan.metadata.get("profile", NAME) == NAME]
    offers = []
    by_price = context.settings["plans_order"] == "price"
    for plan in sorted(sold, key=lambda plan: (plan.price_nanos if by_price else 0, plan.slug)):
        rpm, tpm = amounts_per_minute(plan.limits)
        # The vendor sells both, so a plan that lacks one belongs to another dialect.
        if rpm is not None and tpm is not None:
            offers.append(
                {
                    "slug": slug_of(plan),
                    "name": plan.name,
                    "priceUsdc": format_nanos(plan.price_nanos, places_min=0),
                    "rateLimits": {"tpm_limit": tpm, "rpm_limit": rpm},
                }
            )
    return Reply(200, offers)


def answer_billing_status(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /api/billing/status`."""
    account_id = dashboard_account(call, context)
    plans = AccountPlans(context, account_id)
    keys = [key for key in context.keys(account_id) if key.entry.state != "deleted"]
    subscriptions = []
    for subscription in plans.subscriptions.values():
        own = [key.entry for key in keys if key.entry.subscription == subscription.id]
        _, ends_at = plan_status(subscription, call.now)
        canceled = subscription.status == "canceled"
        over = subscription.expires_at is not None and subscription.expires_at <= call.now
        subscriptions.append(
            {
                "id": subscription.id,
                "planSlug": plans.shown(subscription.plan),
                # A canceled subscription stays active to the end of the paid period.
                "status": "canceled" if over or (canceled and subscription.expires_at is None) else "active",
                "currentPeriodEnd": ends_at,
                "cancelAtPeriodEnd": canceled and not over and subscription.expires_at is not None,
                "keyCount": len(own),
                "keys": [{"id": entry.id, "name": entry.name} for entry in own],
            }
        )
    status = {
        "subscriptions": subscriptions,
        "creditBalance": format_nanos(context.balance_nanos(account_id)),
        "legacySubscriptionKeys": [],
    }
    return Reply(200, wrapped(status, context.settings["billing_envelope"]))


def answer_billing_credits(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /api/billing/credits`."""
    account_id = dashboard_account(call, context)
    credit_keys = [
        key.entry.id
        for key in context.keys(account_id)
        if key.entry.type == "credit" and key.entry.state != "deleted"
    ]
    credits = {
        "totalTopUp": format_nanos(context.top_ups_nanos(account_id)),
        "remaining": format_nanos(context.balance_nanos(account_id)),
        "hasCreditKey": bool(credit_keys),
        "creditKeyId": credit_keys[0] if credit_keys else None,
    }
    return Reply(200, wrapped(credits, context.settings["billing_envelope"]))
