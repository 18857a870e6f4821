"""
Posts top-ups of budgets: each once, durably, and in force for the next decision of the gate.

A budget is named by its id, or by its name in a plan. Where a plan's budget counts several things of an account, the
caller says which. What a top-up adds to is a counter of the account: `domain.top_ups` says which of its periods.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import ID_PATTERN
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.matching import MODEL, VALUE_MARK, folded, scope_counter_of
from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.quantities import quantity_of_unit
from tollkeeper.domain.top_ups import OwnAmount, TopUp, amount_text, parse_amount
from tollkeeper.domain.wanted_scopes import WantedScope
from tollkeeper.errors import BadParameter, Conflict, IdempotencyConflict, NotFound, Unavailable
from tollkeeper.gate.gate import Gate
from tollkeeper.ledger.budget_scopes import ScopeKeeper
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import PostTopUps
from tollkeeper.ledger.committer import Committer
from tollkeeper.ports import LedgerReader

Done: TypeAlias = Callable[[BaseException | None], None]


class TopUpRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to add to which budget. *id* makes it safe to repeat: the same id with the same body counts once."""

    id: str
    """The caller's name for this top-up, unique within the account."""
    amount: str | int
    """In the budget's unit: money as `"5.00"`, a quantity as `"61.5"`; others as `"100"` or 100."""
    until_used: bool = False
    """What is not used of it goes on in the next period. Else it is of the running period alone."""
    plan: str | None = None
    """The plan whose budget it is; needed where an account has several of the name."""
    subscription: str | None = None
    key: str | None = None
    project: str | None = None
    """Which of the subscriptions, keys or projects that each have the budget; needed where there are several."""
    values: dict[str, str] = {}
    """Of a budget that counts values apart, which: `{"tag.user": "u1"}`, each part of its `per` with its value."""


class PostedTopUp(msgspec.Struct, frozen=True, kw_only=True):
    """A top-up that is in force. Amounts are text in the budget's unit: money as `"5.00"`."""

    id: str
    account: str
    budget: str
    counter: str
    """What it adds to, as the ledger names it."""
    unit: str
    amount: str
    until_used: bool
    posted_at: str
    period_starts_at: str | None
    """The period to which it was added first; null where that opens with the next use."""
    period_ends_at: str | None
    allowed: str | None
    """The most of the period that runs now, with all of its top-ups; null where the budget has no bound by now."""
    repeated: bool
    """Whether it was posted before, by the same id: nothing was added this time."""


class BudgetTopUps:
    """Blocking; any thread may call. One top-up is posted at a time."""

    def __init__(
        self,
        directory: Directory,
        ledger: LedgerReader,
        committer: Committer,
        scopes: ScopeKeeper,
        gate: Gate,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._committer = committer
        self._scopes = scopes
        self._gate = gate
        self._clock = clock
        self._lock = threading.Lock()

    def post(self, account_id: str, budget: str, request: TopUpRequest) -> PostedTopUp:
        """
        Add to a budget, durably; requests that come after this has returned may use it.

        Raises:
            NotFound: There is no such account or budget.
            BadParameter: A field has a bad value, or does not say which of several budgets.
            IdempotencyConflict: The id names another top-up of the account.
            Conflict: The budget has no bound, or no period of it runs that the top-up could be of.
            Unavailable: The ledger cannot be written, or the budget is not in force yet; a repeat is safe.
        """
        if not ID_PATTERN.match(request.id):
            raise BadParameter(
                f"id must be 1 to 128 letters, digits or . _ : @ + -, not {request.id[:64]!r}", field="id"
            )
        # In this order everywhere: a change of budgets waits for its own commits only.
        with self._lock, self._scopes.unchanged():
            scope = self._scope(account_id, budget, request)
            amount = _amount(request.amount, scope.unit)
            earlier = self._ledger.top_up(account_id, request.id)
            if earlier is None:
                top_up = self._post(scope, request, amount)
            elif (earlier.counter_id, earlier.amount, earlier.until_used) == (
                scope.counter_id,
                amount,
                request.until_used,
            ):
                top_up = earlier
            else:
                raise IdempotencyConflict(f"{_described(earlier)}: use another id")
            return self._posted(top_up, scope, repeated=earlier is not None)

    def keep_own_amounts(self, account_id: str) -> None:
        """
        Note the amounts of budgets that changed while top-ups of them last: they decide what is drawn of these.

        Called after each change of the account's budgets. Raises `Unavailable`.
        """
        kept = self._ledger.own_amounts(account_id)
        if not kept:
            return
        with self._lock, self._scopes.unchanged():
            wanted = self._directory.wanted_scopes(account_id)
            changed = [
                OwnAmount(account_id, counter_id, self._clock.now_us(), amount)
                for counter_id, (before, amount) in own_now(kept, wanted).items()
                if amount != before
            ]
            if changed:
                self._commit(PostTopUps([], changed, CommitFuture(), self._in_force(changed)))

    def _post(self, scope: BudgetScope, request: TopUpRequest, amount: int) -> TopUp:
        name = f"budget {scope.name}"
        if scope.amount is None:
            raise Conflict(f"{name} has no bound: there is nothing to add to")
        if scope_counter_of(scope.counter_id) not in self._directory.scopes_in_force(scope.account_id):
            raise Unavailable(f"{name[0].upper()}{name[1:]} is not in force yet. Try again shortly.")
        posted = self._ledger.topped_up(scope.account_id, scope.counter_id).posted
        if scope.amount + amount + sum(top_up.amount for top_up in posted) > NANOS_MAX:
            raise BadParameter(f"amount is too large for {name}", field="amount")
        now_us = self._clock.now_us()
        if not request.until_used and self._directory.period_us(scope, now_us) is None:
            raise Conflict(
                f"No period of {name} runs now: it opens with the next use. "
                "State until_used, so that the top-up waits for it"
            )
        top_up = TopUp(
            account_id=scope.account_id,
            id=request.id,
            counter_id=scope.counter_id,
            budget=scope.name,
            unit=scope.unit,
            amount=amount,
            until_used=request.until_used,
            posted_at_us=now_us,
        )
        own = []
        if request.until_used and scope.counter_id not in self._ledger.own_amounts(scope.account_id):
            own.append(self._own_amount(scope, scope.amount))
        self._commit(PostTopUps([top_up], own, CommitFuture(), self._in_force([top_up])))
        return top_up

    def _own_amount(self, scope: BudgetScope, amount: int) -> OwnAmount:
        return OwnAmount(scope.account_id, scope.counter_id, self._clock.now_us(), amount)

    def _in_force(self, changed: list[TopUp] | list[OwnAmount]) -> Done:
        def done(error: BaseException | None) -> None:
            # After an error too: whether it was committed may be unknown, and reading again is always right.
            for change in changed:
                self._gate.counters.topped_up(change.account_id, change.counter_id)

        return done

    def _commit(self, task: PostTopUps) -> None:
        assert task.future is not None
        future = task.future
        self._committer.submit(task)
        future.wait()

    def _posted(self, top_up: TopUp, scope: BudgetScope, *, repeated: bool) -> PostedTopUp:
        first = self._directory.period_us(scope, top_up.posted_at_us)
        now_us = self._clock.now_us()
        span = self._directory.period_us(scope, now_us)
        allowed = None
        if scope.amount is not None:
            top_ups, used, _ = self._directory.top_ups(scope)
            start_us = now_us if span is None else span[0]
            allowed = scope.amount + top_ups.added(start_us, scope.amount, used)
        return PostedTopUp(
            id=top_up.id,
            account=top_up.account_id,
            budget=top_up.budget,
            counter=top_up.counter_id,
            unit=top_up.unit,
            amount=amount_text(top_up.amount, top_up.unit),
            until_used=top_up.until_used,
            posted_at=to_text(from_us(top_up.posted_at_us)),
            period_starts_at=None if first is None else to_text(from_us(first[0])),
            period_ends_at=None
            if first is None or from_us(first[1]) >= FAR_FUTURE
            else to_text(from_us(first[1])),
            allowed=None if allowed is None else amount_text(allowed, scope.unit),
            repeated=repeated,
        )

    def _scope(self, account_id: str, budget: str, request: TopUpRequest) -> BudgetScope:
        """Return the one scope that a request names."""
        if self._directory.account(account_id) is None:
            raise NotFound(f"There is no account {account_id[:128]!r}.")
        wanted = self._directory.wanted_scopes(account_id)
        own = wanted.get(f"budget:{budget}")
        selectors = (request.plan, request.subscription, request.key, request.project)
        if own is not None and selectors == (None, None, None, None):
            return _of_values(own[0], request.values)
        found = [scope for scope in wanted.values() if _is_named(scope, budget, request)]
        if not found:
            raise NotFound(f"Account {account_id} has no such budget {budget[:128]!r}.")
        if len(found) > 1:
            raise BadParameter(
                f"Account {account_id} has {len(found)} budgets of the name {budget[:128]!r}: {_selectors(found)}",
                field="budget",
            )
        return _of_values(found[0][0], request.values)


def own_now(kept: Mapping[str, int], wanted: Mapping[str, WantedScope]) -> dict[str, tuple[int, int]]:
    """Return the own amount as it is kept and as it is now, of each counter that has both."""
    found = {}
    for counter_id, amount in kept.items():
        scope, _ = wanted.get(scope_counter_of(counter_id), (None, None))
        if scope is not None and scope.amount is not None:
            found[counter_id] = (amount, scope.amount)
    return found


def _of_values(scope: BudgetScope, values: Mapping[str, str]) -> BudgetScope:
    """Return the scope of the values that a request names; a budget that counts none apart must be given none."""
    if values.keys() != set(scope.by):
        example = ", ".join(f'"{part}": "…"' for part in scope.by)
        needed = f"state values, e.g. {{{example}}}" if scope.by else "leave values out"
        raise BadParameter(
            f"values: budget {scope.name} counts {' and '.join(scope.by) or 'no values'} apart: {needed}",
            field="values",
        )
    return scope.of_values([folded(values[part]) if part == MODEL else values[part] for part in scope.by])


def _is_named(wanted: WantedScope, budget: str, request: TopUpRequest) -> bool:
    """Return whether a scope is the budget that a request names: of a plan, or of each key or project of an account."""
    scope, key_ids = wanted
    plan = _plan_of(scope)
    return (
        scope.name == budget
        and (plan is not None or scope.counter_id.startswith(f"budget:{budget}/"))
        and request.plan in (None, plan)
        and request.subscription in (None, scope.subscription_id)
        and request.project in (None, scope.project_id)
        # A rotated key counts under the first of its chain.
        and (request.key is None or (scope.key_id is not None and request.key in (key_ids or ())))
    )


def _plan_of(scope: BudgetScope) -> str | None:
    """Return the plan whose budget a scope is; None for a budget of the catalog."""
    plan, slash, _ = scope.counter_id.partition("/")
    return plan.removeprefix("plan:") if slash and plan.startswith("plan:") else None


def _selectors(found: list[WantedScope]) -> str:
    """Return what tells some scopes apart, for people."""
    shown = []
    for scope, _ in found[:5]:
        of = {
            "plan": _plan_of(scope),
            "subscription": scope.subscription_id,
            "key": scope.key_id,
            "project": scope.project_id,
        }
        shown.append(" ".join(f"{name}={value}" for name, value in of.items() if value))
    return f"state which, e.g. {' or '.join(shown)}"


def _described(posted: TopUp) -> str:
    """Return for people which top-up has an id."""
    value = posted.counter_id.partition(VALUE_MARK)[2]
    return (
        f"Top-up {posted.id} was posted before, of {amount_text(posted.amount, posted.unit)} to budget "
        f"{posted.budget}{f' (value {value})' if value else ''}, "
        f"{'until it is used' if posted.until_used else 'for its period alone'}"
    )


def _amount(text: str | int, unit: str) -> int:
    if isinstance(text, int):
        if unit == "nanos":
            # Nobody can tell whether 5 are units or nanos.
            raise BadParameter(
                f'amount: money must be text: write "{text}.00" for {text} units', field="amount"
            )
        text = str(text)
    try:
        return parse_amount(text, unit)
    except ValueError as exc:
        example = "5.00" if unit == "nanos" else "100" if quantity_of_unit(unit) is None else "61.5"
        raise BadParameter(
            f"amount: {exc}: write it in the budget's unit, e.g. {example}", field="amount"
        ) from None
