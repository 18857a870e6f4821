"""
Limits and budgets of a key that count only some of its requests, or values of its requests apart.

Which counters a request takes from depends then on its model, tags, kind and route (`domain.matching.Facts`), and is
found per request. A key that has none of these takes none of this way. The counters of values are not kept here: the
registry has them, bounded, and finds them again in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from tollkeeper.domain.catalog import Limit, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import BudgetScope, LimitScope
from tollkeeper.domain.matching import (
    MODEL,
    TAG,
    Facts,
    ModelList,
    counter_of_values,
    described,
    matcher_of,
    values_of,
)
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.counter import Counter
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.windows import OwnAmount

_SHOWN_MAX: Final = 5
"""Patterns of an allow-list that a refusal names."""


class MatchedLimit:
    """
    One rate limit with a `match`, or with values that it counts apart.

    Attributes:
        whole: Its counter, unless it has one per value.
    """

    __slots__ = ("_account_id", "_counter_id", "_counters", "_matcher", "_version", "limit", "scope", "whole")

    def __init__(
        self,
        account_id: str,
        scope: LimitScope,
        counter_id: str,
        counters: CounterRegistry,
        now_us: int,
        version: int,
    ) -> None:
        self._account_id = account_id
        self._counters = counters
        self._matcher = None if scope.match is None else matcher_of(scope.match)
        self._version = version
        self._counter_id = f"{counter_id}:{scope.counted}"
        self.scope = scope
        self.limit: Limit = scope.limit
        # Without values there is one counter: it stays in memory as long as its key.
        self.whole = None if scope.by else self._find((), now_us)

    def counts(self, facts: Facts) -> bool:
        """Return whether a request is one of those that the limit counts."""
        return self._matcher is None or self._matcher.matches(facts)

    def counter(self, facts: Facts, now_us: int) -> Counter:
        """Return the counter of a request that the limit counts; read from the ledger if it is not in memory."""
        return self.whole or self._find(values_of(self.scope.by, facts), now_us)

    def _find(self, values: tuple[str, ...], now_us: int) -> Counter:
        scope, limit = self.scope, self.limit
        window = self._counters.window(
            self._account_id,
            counter_of_values(self._counter_id, values) if scope.by else self._counter_id,
            limit,
            now_us,
            self._version,
            limit.algorithm,
            match=lambda: words_of(scope, values),
            of_value=bool(scope.by),
        )
        return OwnAmount(window, limit) if scope.own_amount else window


class MatchedBudget:
    """One budget with a `match`, or with values that it counts apart; attributes as of a `MatchedLimit`."""

    __slots__ = ("_counters", "_matcher", "_version", "scope", "whole")

    def __init__(self, scope: BudgetScope, counters: CounterRegistry, version: int) -> None:
        self._counters = counters
        self._matcher = None if scope.match is None else matcher_of(scope.match)
        self._version = version
        self.scope = scope
        self.whole = None if scope.by else counters.budget_of(scope, (), version)

    def counts(self, facts: Facts) -> bool:
        """Return whether a request is one of those that the budget counts."""
        return self._matcher is None or self._matcher.matches(facts)

    def counter(self, facts: Facts) -> BudgetCounter:
        """Return the counter of a request that the budget counts, which may have to be read yet."""
        return self.whole or self._counters.budget_of(
            self.scope, values_of(self.scope.by, facts), self._version
        )


class Matched(NamedTuple):
    """
    What of a key, or of a key on one route, depends on the facts of a request.

    Attributes:
        models: Lists of models: one that is used must be in each of them.
        limits, budgets: Those that may count a request.
        tag_names: The tags that they ask for.
    """

    models: tuple[ModelList, ...]
    limits: tuple[MatchedLimit, ...]
    budgets: tuple[MatchedBudget, ...]
    tag_names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.models or self.limits or self.budgets)

    def on(self, route: Route) -> Matched:
        """Return what may count requests to *route*. A free route uses no model that is to be allowed."""
        limits = tuple(m for m in self.limits if m.limit.bucket is None or m.limit.bucket == route.bucket)
        scopes: list[LimitScope | BudgetScope] = [matched.scope for matched in limits]
        scopes += [matched.scope for matched in self.budgets]
        names = {name for scope in scopes if scope.match is not None for name, _ in scope.match.tags}
        names |= {part.removeprefix(TAG) for scope in scopes for part in scope.by if part != MODEL}
        return Matched(() if route.free else self.models, limits, self.budgets, tuple(sorted(names)))

    def objection(self, model: str) -> Denial | None:
        """Return why a request that states *model* is refused, or None."""
        for allowed in self.models:
            if allowed.allows(model):
                continue
            patterns = allowed.patterns[:_SHOWN_MAX]
            more = len(allowed.patterns) - len(patterns)
            listed = (", ".join(patterns) or "none at all") + (f" and {more} more" if more else "")
            if not model.strip():
                return Denial(
                    "model_required",
                    f"This api key may use certain models only ({listed}): state the model of the request.",
                )
            return Denial(
                "model_not_allowed",
                f"This api key may not use model {model[:128]!r}. It may use {listed}.",
            )
        return None

    def counters(self, facts: Facts, now_us: int) -> tuple[list[Counter], list[Counter]]:
        """Return the limits' and the budgets' counters that count a request of these facts."""
        return (
            [matched.counter(facts, now_us) for matched in self.limits if matched.counts(facts)],
            [matched.counter(facts) for matched in self.budgets if matched.counts(facts)],
        )


def words_of(scope: LimitScope | BudgetScope, values: Iterable[str] = ()) -> str:
    """Return for people which requests a scope counts, and of which values its counter is."""
    return described(scope.match, list(zip(scope.by, values, strict=False)))
