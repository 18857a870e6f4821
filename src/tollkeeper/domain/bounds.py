"""
Bounds: what a customer makes or changes is never freer than what the operator gave it.

The one predicate of every door: management keys, dashboard sessions, keys that make keys. A budget bounds a
customer only when the customer cannot multiply it. A budget per key is multiplied by making keys, one per project
by making projects; one of the account, of a subscription or the credit balance is not. Rate limits pace each key or
project and are no bound of a sum: `per = "account"` makes one limit of all.

A budget that counts only some requests (`match`), or values apart (`per = "tag.user"`), bounds just these: it stands in
for another of the same match and values only. One that counts all requests stands in for any of its unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tollkeeper.domain.catalog import Budget, Key, Plan, PlanBudget, Subscription
from tollkeeper.domain.entitlements import owner_of_budget
from tollkeeper.domain.matching import Conditions, conditions_of, parse_per, within


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
        model_lists: The models that the account's keys may use, when each of them has a list; else empty.
    """

    plan: Plan | None
    subscription: Subscription | None
    budgets: Sequence[Budget]
    has_credit: bool
    model_lists: Sequence[Sequence[str]] = ()


class _Bound(NamedTuple):
    """What a budget bounds: a unit, of these requests, for each of these values apart."""

    unit: str
    match: Conditions | None = None
    values: tuple[str, ...] = ()

    def is_in(self, covered: set[_Bound]) -> bool:
        return self in covered or _Bound(self.unit) in covered


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
    covered = {_Bound("nanos")} if draws_on_credit else set()
    needed = {_Bound("nanos"): "the account's credit balance"} if terms.has_credit else {}
    for budget in terms.budgets:
        bound = _bound_of(budget, budget.per or [])
        if _covers(budget, key, rotation_chain):
            covered.add(bound)
        else:
            needed.setdefault(bound, f"budget {budget.id}")
    for planned in [] if terms.plan is None else terms.plan.budgets:
        if planned.amount is None:
            continue
        bound = _bound_of(planned, planned.per)
        if _scope(planned, terms.subscription is not None) != "key" or same_plan:
            covered.add(bound)
        else:
            needed.setdefault(bound, f"budget {planned.name} of its plan, which counts each key alone")
    missing = [(bound.unit, by) for bound, by in needed.items() if not bound.is_in(covered)]
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
    of_account = {
        _bound_of(budget, budget.per or [])
        for budget in budgets
        if budget.project is None and budget.key is None and owner_of_budget(budget) == "account"
    }
    for budget in budgets:
        if owner_of_budget(budget) == "project" and not _bound_of(budget, budget.per or []).is_in(of_account):
            return (
                f"Budget {budget.id} is per project, which another project would multiply: ask your provider to "
                f"make it, or for a budget of the account in {budget.unit}."
            )
    for plan, subscribed in plans:
        shared = {
            _bound_of(planned, planned.per)
            for planned in plan.budgets
            if planned.amount is not None and _scope(planned, subscribed) in ("account", "subscription")
        }
        for planned in plan.budgets:
            counted_alone = parse_per(planned.per).owner == "project" and planned.amount is not None
            if counted_alone and not _bound_of(planned, planned.per).is_in(shared | of_account):
                return (
                    f"Plan {plan.slug} has a budget per project ({planned.name}), which another project would "
                    f"multiply: ask your provider to make it, or for a budget of the account in {planned.unit}."
                )
    return None


def models_objection(key: Key, terms: Terms, maker: Key | None) -> str | None:
    """
    Return why a customer may not make *key* because of the models that it could use, or None.

    The lists of its plan and of the consumption keys that made it hold for it anyway (`Entitlement.models`).

    Args:
        maker: The key that asks; None for a dashboard session.
    """
    if maker is not None and maker.models is not None and not maker.is_metered:
        if key.models is None or not within(key.models, maker.models):
            return (
                f"The key may use {_listed(maker.models)} only, as the key that makes it: state its models."
            )
        return None
    if maker is not None and maker.is_metered:
        return None
    own = [
        models
        for models in (key.models, None if terms.plan is None else terms.plan.models)
        if models is not None
    ]
    lists = terms.model_lists
    if lists and not any(within(models, allowed) for models in own for allowed in lists):
        return f"Each key of the account may use certain models only, e.g. {_listed(lists[0])}: state its models."
    return None


def inherited_objection(key: Key, maker: Key) -> str | None:
    """Return why the consumption key *maker* may not make *key*, or None: it passes on what it has itself."""
    for field in ("account", "type", "project", "subscription", "plan"):
        if getattr(key, field) != getattr(maker, field):
            return f"A key that makes a key passes on its own {field}."
    return None


def _bound_of(budget: Budget | PlanBudget, per: str | Sequence[str]) -> _Bound:
    return _Bound(budget.unit, conditions_of(budget.match), parse_per(per).values)


def _listed(models: Sequence[str]) -> str:
    return ", ".join(models) or "no model at all"


def _covers(budget: Budget, key: Key, rotation_chain: Sequence[str]) -> bool:
    if owner_of_budget(budget) == "key":
        # Of a key that is made, a budget of its own is one more; of one that exists, its own already.
        return bool(rotation_chain)
    if budget.key is not None:
        return budget.key in rotation_chain
    return budget.project is None or budget.project == key.project


def _scope(planned: PlanBudget, subscribed: bool) -> str:
    owner = parse_per(planned.per).owner or "account"
    return "key" if owner == "subscription" and not subscribed else owner
