"""Which budgets of an account the catalog wants in force, and which keys each of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tollkeeper.domain.catalog import Budget, Plan, Subscription
from tollkeeper.domain.entitlements import (
    NO_ROUTES,
    BudgetScope,
    RouteCalls,
    budget_scopes,
    owner_of_budget,
    scope_of_budget,
)
from tollkeeper.domain.keys import StoredKey

WantedScope = tuple[BudgetScope, list[str] | None]
"""
A scope, and the ids of the keys that it counts, "" for what has no key; None: every event of its project or account.
"""


def wanted_scopes(
    account_id: str,
    keys: Sequence[StoredKey],
    budgets: Sequence[Budget],
    plan_of: Callable[[StoredKey], tuple[Subscription | None, Plan | None]],
    project_ids: Sequence[str] = (),
    routes: RouteCalls = NO_ROUTES,
    *,
    time_zone: str = "UTC",
    keyless: tuple[Subscription | None, Plan | None] = (None, None),
) -> dict[str, WantedScope]:
    """
    Return every budget scope of an account by its counter id.

    Args:
        keys: All keys of the account, in any state.
        budgets: All budgets of the account.
        plan_of: Returns the subscription and the plan in force for a key.
        project_ids: All projects of the account.
        routes: What matches that name a route's id stand for.
        time_zone: The account's.
        keyless: The subscription and the plan in force for what has no key.
    """
    bounding_keys_of = _bounding_keys(keys)
    counted_for: dict[str, list[str]] = {}
    for stored in keys:
        for name in bounding_keys_of[stored.entry.id]:
            counted_for.setdefault(name, []).append(stored.entry.id)
    wanted: dict[str, WantedScope] = {}
    per_key = [budget for budget in budgets if owner_of_budget(budget) == "key"]
    per_project = [budget for budget in budgets if owner_of_budget(budget) == "project"]
    for project_id in ("", *project_ids) if per_project else ():
        for scope in budget_scopes(
            account_id,
            project_id,
            (),
            subscription=None,
            plan=None,
            budgets=per_project,
            routes=routes,
            time_zone=time_zone,
        ):
            wanted[scope.counter_id] = (scope, None)
    for budget in budgets:
        if budget in per_key or budget in per_project:
            continue
        scope = scope_of_budget(budget, routes, time_zone=time_zone)
        key_ids = None if budget.key is None else counted_for.get(budget.key, [budget.key])
        wanted[scope.counter_id] = (scope, key_ids)
    on_project: dict[str, list[str]] = {}
    of_keys: set[str] = set()
    for stored in keys:
        subscription, plan = plan_of(stored)
        if not per_key and (plan is None or not plan.budgets):
            continue
        planned = budget_scopes(
            account_id,
            stored.entry.project,
            bounding_keys_of[stored.entry.id],
            subscription=subscription,
            plan=plan,
            budgets=per_key,
            routes=routes,
            time_zone=time_zone,
        )
        for scope in planned:
            known = wanted.setdefault(scope.counter_id, (scope, []))[1]
            assert known is not None
            known.append(stored.entry.id)
            of_keys.add(scope.counter_id)
        if plan is not None and plan.budgets:
            on_project.setdefault(plan.slug, []).append(stored.entry.id)
    subscription, plan = keyless
    if plan is not None and plan.budgets:
        for project_id in ("", *project_ids):
            for scope in budget_scopes(
                account_id,
                project_id,
                (),
                subscription=subscription,
                plan=plan,
                budgets=(),
                routes=routes,
                time_zone=time_zone,
            ):
                known = wanted.setdefault(scope.counter_id, (scope, []))[1]
                assert known is not None
                if "" not in known:
                    known.append("")
                of_keys.add(scope.counter_id)
        on_project.setdefault(plan.slug, []).append("")
    for counter_id in of_keys:
        scope, key_ids = wanted[counter_id]
        if key_ids is not None:
            if scope.project_id is not None:
                # A key without a project may be used for any: its events say which.
                key_ids = on_project[counter_id.removeprefix("plan:").partition("/")[0]]
            wanted[counter_id] = (scope.of_members(key_ids), key_ids)
    return wanted


def _bounding_keys(keys: Sequence[StoredKey]) -> dict[str, list[str]]:
    """Return for each key the ids of the keys whose budgets count it: its makers' rotation chains, then its own."""
    chains: dict[str, list[str]] = {}
    for stored in sorted(keys, key=lambda stored: stored.entry.id != stored.rotation_chain_id):
        chains.setdefault(stored.rotation_chain_id, []).append(stored.entry.id)
    by_id = {stored.entry.id: stored for stored in keys}
    bounding_keys_of: dict[str, list[str]] = {}
    for stored in keys:
        bounding = chains[stored.rotation_chain_id]
        maker = by_id.get(stored.made_by or "")
        while maker is not None:
            bounding = [*chains[maker.rotation_chain_id], *bounding]
            maker = by_id.get(maker.made_by or "")
        bounding_keys_of[stored.entry.id] = bounding
    return bounding_keys_of
