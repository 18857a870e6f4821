"""
Bounds: a customer cannot create or change an entry beyond the operator's bounds of its account.

The one predicate of every door: management keys, dashboard sessions, keys that make keys. A budget bounds a
customer only when the customer cannot multiply it. A budget per key is multiplied by making keys, one per project
by making projects; one of the account, of a subscription or the credit balance is not. Rate limits pace each key or
project and are no bound of a sum: `per = "account"` makes one limit of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tollkeeper.domain.catalog import Budget, Key, Plan, PlanBudget, Subscription


class Customer(NamedTuple):
    """
    Who asks, when it is not the operator.

    Attributes:
        key_id: The management or consumption key that asks; None for a dashboard session.
    """

    account_id: str
    key_id: str | None = None


class Terms(NamedTuple):
    """
    What the operator gave an account, as far as one key depends on it.

    Attributes:
        plan: The plan in force for the key: its own, else its subscription's, else its account's.
        budgets: All budgets of the account.
        has_credit: The account was given credit or has credit keys: the balance bounds its money.
    """

    plan: Plan | None
    subscription: Subscription | None
    budgets: Sequence[Budget]
    has_credit: bool


def key_objection(
    key: Key, terms: Terms, *, rotation_chain: Sequence[str] = (), same_plan: bool = False
) -> str | None:
    """
    Return why a customer may not have *key*, as it would be, or None.

    Every unit in which something bounds the account must be bounded for the key too, by what the customer
    cannot multiply.

    Args:
        rotation_chain: The ids of the key's rotations, of a key that exists; budgets of these are its own.
        same_plan: It is on this plan and subscription already, so their budgets per key are its own.
    """
    draws_on_credit = key.type == "credit"
    if terms.plan is None and not draws_on_credit:
        return "The key would be under no plan: name a subscription, or make it of type credit."
    covered = {"nanos"} if draws_on_credit else set()
    needed = {"nanos": "the account's credit balance"} if terms.has_credit else {}
    for budget in terms.budgets:
        if _covers(budget, key, rotation_chain):
            covered.add(budget.unit)
        else:
            needed.setdefault(budget.unit, f"budget {budget.id}")
    for planned in [] if terms.plan is None else terms.plan.budgets:
        if planned.amount is None:
            continue
        if _scope(planned, terms.subscription is not None) != "key" or same_plan:
            covered.add(planned.unit)
        else:
            needed.setdefault(planned.unit, f"budget {planned.name} of its plan, which counts each key alone")
    missing = [(unit, by) for unit, by in needed.items() if unit not in covered]
    if not missing:
        return None
    unit, by = missing[0]
    advice = (
        "make it of type credit, or name a subscription whose plan has a budget in nanos"
        if unit == "nanos"
        else f"name a subscription or project with a budget in {unit}, or ask your provider for one of the account"
    )
    return f"The key would not be bounded by {by}: {advice}."


def project_objection(plans: Iterable[tuple[Plan, bool]], budgets: Sequence[Budget]) -> str | None:
    """
    Return why a customer may not make a project, or None: it must not multiply a budget per project.

    Args:
        plans: The plans of the account's keys, and whether each is in force through a subscription.
        budgets: The budgets of the account.
    """
    of_account = {budget.unit for budget in budgets if budget.project is None and budget.key is None}
    for plan, subscribed in plans:
        shared = {
            planned.unit
            for planned in plan.budgets
            if planned.amount is not None and _scope(planned, subscribed) in ("account", "subscription")
        }
        for planned in plan.budgets:
            counted_alone = planned.per == "project" and planned.amount is not None
            if counted_alone and planned.unit not in shared | of_account:
                return (
                    f"Plan {plan.slug} has a budget per project ({planned.name}), which another project would "
                    f"multiply: ask your provider to make it, or for a budget of the account in {planned.unit}."
                )
    return None


def inherited_objection(key: Key, maker: Key) -> str | None:
    """Return why the consumption key *maker* may not make *key*, or None: it passes on what it has itself."""
    for field in ("account", "type", "project", "subscription", "plan"):
        if getattr(key, field) != getattr(maker, field):
            return f"A key that makes a key passes on its own {field}."
    return None


def _covers(budget: Budget, key: Key, rotation_chain: Sequence[str]) -> bool:
    if budget.key is not None:
        return budget.key in rotation_chain
    return budget.project is None or budget.project == key.project


def _scope(planned: PlanBudget, subscribed: bool) -> str:
    return "key" if planned.per == "subscription" and not subscribed else planned.per
