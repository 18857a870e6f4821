"""
Entitlements: what one key permits now, resolved from key, subscription, plan, project and account.

Also names the counters: which budgets an event of a given account, project and key is charged to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, Subscription
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.matching import (
    Conditions,
    Facts,
    Per,
    conditions_of,
    counter_of_values,
    matcher_of,
    parse_per,
    values_of,
)
from tollkeeper.domain.periods import first_use_s, period_of

KEYLESS: Final = "(none)"
"""Stands for the key of what has none, in the names of counters. No id has parentheses."""
CREDIT_COUNTER: Final = "credit"
"""Counter of what an account spent of its credit balance; it has the one period 0."""

RouteCalls = Mapping[str, tuple[str, str]]
"""Route id → method and path: what a `match` that names a route's id stands for."""
NO_ROUTES: Final[RouteCalls] = {}


class BudgetScope(NamedTuple):
    """
    One budget as it applies to one thing: what to count, over which periods, for whose events.

    Attributes:
        counter_id: Names the counter within its account, e.g. `budget:monthly`, `budget:monthly/key:k1`,
            `plan:pro/spend:key:k1`. No two budgets have the same: see `_in_counter`.
        name: The budget's name for people.
        amount: The most per period in *unit*; None counts without a bound.
        project_id, key_id, subscription_id: Whose events; all of the account's when all are None.
        members: Digest of the keys that a plan's budget counts: see `of_members`; "" where that is no matter.
        match: Which of these events; None: all.
        by: Values that are counted apart (`matching.values_of`), each in a counter of its own, up to *amount*.
    """

    account_id: str
    counter_id: str
    name: str
    unit: str
    amount: int | None
    period: str
    time_zone: str
    week_start: str
    anchor_at: datetime | None
    project_id: str | None = None
    key_id: str | None = None
    subscription_id: str | None = None
    members: str = ""
    match: Conditions | None = None
    by: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it counts every event of its account, project or keys, in one counter."""
        return self.match is None and not self.by

    def counter_of(self, facts: Facts) -> str | None:
        """Return the id of the counter that an event of the scope's is charged to; None when it is charged to none."""
        if self.match is not None and not matcher_of(self.match).matches(facts):
            return None
        return counter_of_values(self.counter_id, values_of(self.by, facts)) if self.by else self.counter_id

    def of_members(self, key_ids: Sequence[str]) -> BudgetScope:
        """Return the scope as that of these keys: when others come or go, its counter starts again."""
        digest = hashlib.sha256("\n".join(sorted(key_ids)).encode()).hexdigest()
        return self._replace(members=digest[:16])

    def of_values(self, values: Sequence[str]) -> BudgetScope:
        """Return the scope of one combination of the values that this one counts apart."""
        return self._replace(counter_id=counter_of_values(self.counter_id, values)) if self.by else self

    @property
    def first_use_us(self) -> int:
        """How long a period lasts that opens with the first use, in microseconds; 0 for all others."""
        return first_use_s(self.period) * US_PER_S

    def span_us(self, at_us: int) -> tuple[int, int]:
        """
        Return the period that holds *at_us* as `[start, end)` in microseconds since the epoch.

        Raises:
            ValueError: Periods open with the first use: see `Directory.period_us`.
        """
        span = period_of(
            from_us(at_us),
            self.period,
            time_zone=self.time_zone,
            week_start=self.week_start,
            anchor_at=self.anchor_at,
        )
        return to_us(span.start_at), to_us(span.end_at)


class LimitScope(NamedTuple):
    """
    One rate limit as it applies to one thing; *counter_id* names its counter within the account.

    Attributes:
        own_amount: Another key counts in the same counter and has another amount: see `of_rotations`.
        match, by: As of a `BudgetScope`.
    """

    counter_id: str
    limit: Limit
    own_amount: bool = False
    match: Conditions | None = None
    by: tuple[str, ...] = ()

    @property
    def counted_as(self) -> tuple[str, str, str, str, str]:
        """Return what names the counter: two limits that differ in one of these count apart."""
        return (self.counter_id, self.limit.algorithm, self.limit.unit, self.limit.window, self.counted)

    @property
    def counted(self) -> str:
        """Return a digest of which requests are counted, and what apart; "" for all in one counter."""
        if self.match is None and not self.by:
            return ""
        text = f"{'' if self.match is None else self.match.text}|{'|'.join(self.by)}"
        return hashlib.sha256(text.encode()).hexdigest()[:6]


class Maker(NamedTuple):
    """The key that made this key: its limits and budgets hold for both together."""

    key: Key
    rotation_chain: Sequence[str]
    plan: Plan | None


class Entitlement(NamedTuple):
    """The entitlement of a key: all data that the gate needs to decide without a further read."""

    key: Key
    account: Account
    plan: Plan | None
    subscription: Subscription | None
    limits: tuple[LimitScope, ...]
    budgets: tuple[BudgetScope, ...]
    draws_on_credit: bool
    models: tuple[tuple[str, ...], ...] = ()
    """Lists of models; one that it may use is in each of them. None at all: it may use any."""
    waits_for: str = ""
    """The name of a budget that the key must not be admitted without and that is not in force yet; or ""."""
    valid_until_us: int = 2**62
    """From when on it is another one, and must be resolved again."""


def resolve(
    key: Key,
    *,
    rotation_chain: Sequence[str],
    account: Account,
    subscription: Subscription | None,
    plan: Plan | None,
    budgets: Sequence[Budget],
    makers: Sequence[Maker] = (),
    routes: RouteCalls = NO_ROUTES,
    limited_as: str = "",
) -> Entitlement:
    """
    Return what *key* permits.

    Args:
        rotation_chain: The ids of the keys that rotations made of one another, *key* among them, the first one first.
            They share their counters, so a rotation does not reset a limit.
        plan: The plan in force: the key's own, else its subscription's, else its account's.
        budgets: The budgets of the account, of any scope.
        makers: The keys that made it, the first one first: making keys frees no key of a bound.
        routes: What matches that name a route's id stand for.
        limited_as: What counts for a caller without a key, whose *rotation_chain* is empty, in limits per key.
    """
    lists = [key.models, None if plan is None else plan.models]
    for maker in makers:
        lists += [maker.key.models, None if maker.plan is None else maker.plan.models]
    return Entitlement(
        key=key,
        account=account,
        plan=plan,
        subscription=subscription,
        limits=limit_scopes(key, rotation_chain or (limited_as,), plan, makers, routes),
        budgets=budget_scopes(
            account.id,
            key.project,
            [*(name for maker in makers for name in maker.rotation_chain), *rotation_chain],
            subscription=subscription,
            plan=plan,
            budgets=budgets,
            routes=routes,
            time_zone=account.time_zone,
        ),
        draws_on_credit=key.draws_on_credit and key.is_metered,
        models=tuple(dict.fromkeys(tuple(models) for models in lists if models is not None)),
    )


def limit_scopes(
    key: Key,
    rotation_chain: Sequence[str],
    plan: Plan | None,
    makers: Sequence[Maker] = (),
    routes: RouteCalls = NO_ROUTES,
) -> tuple[LimitScope, ...]:
    """
    Return the rate limits of *key*, which are its own or its plan's, then those of its makers.

    A key that another one made and that has no limits of its own has its makers' alone. Arguments as in `resolve`.
    """
    scopes: dict[str, LimitScope] = {}
    for holder, holder_chain, holder_plan in (Maker(key, rotation_chain, plan), *reversed(makers)):
        limits = holder.limits
        if limits is None and holder is key and makers:
            continue
        if limits is None:
            limits = [] if holder_plan is None else holder_plan.limits
        for limit in limits:
            per = parse_per(limit.per)
            counter_id = _limit_counter(limit, per, holder, holder_chain[0], holder_plan)
            match = conditions_of(limit.match, routes)
            scopes.setdefault(counter_id, LimitScope(counter_id, limit, match=match, by=per.values))
    return tuple(scopes.values())


def of_rotations(
    limits: Sequence[LimitScope], others: Sequence[Sequence[LimitScope]]
) -> tuple[LimitScope, ...]:
    """
    Return the *limits* of a key whose rotations have the limits *others* and count in the same counters.

    What all of them used counts for each, against its own amount. A bucket of permits is refilled at one pace, so
    there the least of the amounts holds for all. Either way no key gets more than its own limit says.
    """
    found = []
    for scope in limits:
        same = [other.limit for mine in others for other in mine if other.counted_as == scope.counted_as]
        if all(_amounts(other) == _amounts(scope.limit) for other in same):
            found.append(scope)
        elif scope.limit.algorithm == "permits":
            amount, burst = (min(of) for of in zip(*map(_amounts, [scope.limit, *same]), strict=True))
            found.append(
                scope._replace(limit=msgspec.structs.replace(scope.limit, amount=amount, burst=burst))
            )
        else:
            found.append(scope._replace(own_amount=True))
    return tuple(found)


def _amounts(limit: Limit) -> tuple[int, int]:
    return limit.amount, limit.amount if limit.burst is None else limit.burst


def scope_of_budget(budget: Budget, routes: RouteCalls = NO_ROUTES, *, time_zone: str = "UTC") -> BudgetScope:
    """
    Return the scope that a budget of the catalog stands for: that of its account, project or key.

    Args:
        time_zone: Its account's.
    """
    return BudgetScope(
        account_id=budget.account,
        counter_id=f"budget:{budget.id}",
        name=budget.id,
        unit=budget.unit,
        amount=budget.amount,
        period=budget.period,
        time_zone=budget.time_zone or time_zone,
        week_start=budget.week_start,
        anchor_at=budget.anchor_at,
        project_id=budget.project,
        key_id=budget.key,
        match=conditions_of(budget.match, routes),
        by=parse_per(budget.per or []).values,
    )


def owner_of_budget(budget: Budget) -> str:
    """Return what has a budget of the catalog each for itself: `key` or `project` of the account, or `account`."""
    return parse_per(budget.per or []).owner or "account"


def budget_scopes(
    account_id: str,
    project_id: str | None,
    rotation_chain: Sequence[str],
    *,
    subscription: Subscription | None,
    plan: Plan | None,
    budgets: Sequence[Budget],
    routes: RouteCalls = NO_ROUTES,
    time_zone: str = "UTC",
) -> tuple[BudgetScope, ...]:
    """
    Return the budgets that an event of this account, project and key is charged to.

    Which of them count it depends on its model, tags, kind and route too: see `BudgetScope.counter_of`.

    Args:
        rotation_chain: As in `resolve`, after the chains of its makers; empty for an event without a key. What has no
            key counts as one key of the account, `KEYLESS`, in the budgets of a plan.
        time_zone: The account's: that of the budgets which state none.
    """
    scopes = []
    for budget in budgets:
        if not (budget.project is None or budget.project == project_id):
            continue
        if not (budget.key is None or budget.key in rotation_chain):
            continue
        scope, owned_by = scope_of_budget(budget, routes, time_zone=time_zone), owner_of_budget(budget)
        if owned_by == "project":
            owner = project_id or ""
            scope = scope._replace(counter_id=f"{scope.counter_id}/project:{owner}", project_id=owner)
        elif owned_by == "key":
            if not rotation_chain:
                continue
            owner = rotation_chain[0]
            scope = scope._replace(counter_id=f"{scope.counter_id}/key:{owner}", key_id=owner)
        scopes.append(scope)
    if plan is None:
        return tuple(scopes)
    for planned in plan.budgets:
        parts = parse_per(planned.per)
        per = parts.owner or "account"
        if per == "subscription" and subscription is None:
            per = "key"
        owner_id = {
            "subscription": subscription.id if subscription else None,
            "key": rotation_chain[0] if rotation_chain else KEYLESS,
            # What has no project shares one scope, which counts as a project of its own.
            "project": project_id or "",
            "account": account_id,
        }[per]
        assert owner_id is not None
        scopes.append(
            BudgetScope(
                account_id=account_id,
                counter_id=f"plan:{plan.slug}/{_in_counter(planned.name)}:{per}:{owner_id}",
                name=planned.name,
                unit=planned.unit,
                amount=planned.amount,
                period=planned.period,
                time_zone=planned.time_zone or time_zone,
                week_start=planned.week_start,
                anchor_at=subscription.started_at if subscription else None,
                project_id=owner_id if per == "project" else None,
                key_id=owner_id if per == "key" else None,
                subscription_id=owner_id if per == "subscription" else None,
                match=conditions_of(planned.match, routes),
                by=parts.values,
            )
        )
    return tuple(scopes)


def fingerprint_of(scope: BudgetScope) -> str:
    """Return what decides which events a scope counts: when it changes, the counter starts again."""
    anchor = "" if scope.anchor_at is None else str(to_us(scope.anchor_at))
    parts: tuple[str, ...] = (
        scope.unit,
        # Told apart from periods of this name that were aligned to the day, before they opened with the first use.
        f"first use {scope.period}" if scope.first_use_us else scope.period,
        scope.time_zone,
        scope.week_start,
        anchor,
        scope.project_id or "",
        scope.key_id or "",
        scope.subscription_id or "",
        scope.members,
    )
    if not scope.is_whole:
        parts += ("" if scope.match is None else scope.match.text, *scope.by)
    return "|".join(parts)


def is_of_first_use(fingerprint: str, scope: BudgetScope) -> bool:
    """Return whether a counter in force has the periods of *scope*, which open with the first use."""
    return fingerprint.startswith(f"{scope.unit}|first use {scope.period}|")


def _limit_counter(limit: Limit, per: Per, key: Key, line_id: str, plan: Plan | None) -> str:
    # Values alone, as `tag.user`, are those of the whole account; in a key's own limits, those of the key.
    owned_by = per.owner or ("account" if key.limits is None else "key")
    name = _in_counter(limit.name)
    if owned_by == "account" or (owned_by == "project" and key.project is not None):
        # Of its plan: another plan's limit of this name is another limit, however many keys share either.
        owner = owned_by if owned_by == "account" else f"project:{key.project}"
        source = f"plan:{_in_counter(plan.slug)}/" if plan is not None and key.limits is None else ""
        return f"limit:{owner}:{source}{name}"
    return f"limit:key:{line_id}:{name}"


def _in_counter(name: str) -> str:
    """
    Return a name as it is in the id of a counter, between ids that may have colons of their own.

    Ids of the catalog have no `!`, `/` or `#`, so that no two limits or budgets can make the same id of a counter.
    """
    return name.replace(":", "!")
