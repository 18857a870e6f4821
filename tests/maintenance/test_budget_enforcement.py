"""Budgets of the catalog come into force in the end, and no key is admitted without one meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from tollkeeper.catalog.budget_readiness import BudgetReadiness
from tollkeeper.domain.catalog import Account, Budget
from tollkeeper.domain.entitlements import fingerprint_of, scope_of_budget
from tollkeeper.errors import Unavailable
from tollkeeper.maintenance.budget_enforcement import BudgetEnforcement

SCOPE = scope_of_budget(Budget(id="b", account="a1", amount=5))


class Stores:
    """The directory, the ledger, the keeper of scopes and the top-ups, of some accounts with a budget each."""

    def __init__(self) -> None:
        self.in_force = {"a1", "a2"}
        self.away = False
        self.own: dict[str, int] = {}
        """Account → the own amount that is kept of its budget, while a top-up of it lasts."""

    def accounts(self) -> list[Account]:
        return [Account(id=name, name=name) for name in ("a1", "a2", "a3")]

    def reload_prices(self) -> None:
        self._check()

    def wanted_scopes(self, account_id: str) -> dict[str, Any]:
        return {SCOPE.counter_id: (SCOPE, None)}

    def scopes(self, account_id: str) -> dict[str, Any]:
        self._check()
        return {SCOPE.counter_id: (fingerprint_of(SCOPE), 0)} if account_id in self.in_force else {}

    def own_amounts(self, account_id: str) -> dict[str, int]:
        return {SCOPE.counter_id: self.own[account_id]} if account_id in self.own else {}

    def keep_own_amounts(self, account_id: str) -> None:
        self._check()
        if account_id in self.own:
            assert SCOPE.amount is not None
            self.own[account_id] = SCOPE.amount

    def refresh(self, account_id: str, made: Any) -> None:
        self._check()
        self.in_force.add(account_id)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("away")


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture
def readiness() -> BudgetReadiness:
    return BudgetReadiness()


@pytest.fixture
def budgets(stores: Any, readiness: BudgetReadiness) -> BudgetEnforcement:
    return BudgetEnforcement(stores, stores, stores, readiness, stores)


def waiting(readiness: BudgetReadiness) -> list[str]:
    return [name for name in ("a1", "a2", "a3") if readiness.must_wait(name)]


def test_every_account_waits_until_it_was_compared(
    stores: Stores, readiness: BudgetReadiness, budgets: BudgetEnforcement
) -> None:
    assert waiting(readiness) == ["a1", "a2", "a3"]
    assert budgets.begin_comparing()
    budgets.compare_some()
    assert waiting(readiness) == ["a3"], "its budget is not in force"
    budgets.retry()
    assert waiting(readiness) == []
    assert stores.in_force == {"a1", "a2", "a3"}
    assert not budgets.begin_comparing()


def test_an_account_that_could_not_be_read_is_not_counted_as_compared(
    stores: Stores, readiness: BudgetReadiness, budgets: BudgetEnforcement
) -> None:
    """Else its keys would be admitted without the budget that a crash kept from coming into force."""
    assert budgets.begin_comparing()
    stores.away = True
    with pytest.raises(Unavailable):
        budgets.compare_some()
    stores.away = False
    assert not budgets.begin_comparing()
    budgets.compare_some()
    assert waiting(readiness) == ["a3"]


def test_a_failed_start_of_comparing_is_repeated(
    stores: Stores, readiness: BudgetReadiness, budgets: BudgetEnforcement
) -> None:
    stores.away = True
    with pytest.raises(Unavailable):
        budgets.begin_comparing()
    budgets.compare_some()
    assert waiting(readiness) == ["a1", "a2", "a3"]
    stores.away = False
    assert budgets.begin_comparing()


def test_a_change_in_doubt_makes_every_account_wait_again(
    readiness: BudgetReadiness, budgets: BudgetEnforcement
) -> None:
    budgets.begin_comparing()
    budgets.compare_some()
    budgets.compare_all()
    assert waiting(readiness) == ["a1", "a2", "a3"]
    assert budgets.begin_comparing()
    budgets.compare_some()
    assert waiting(readiness) == ["a3"]


def test_a_budget_that_failed_is_tried_again_and_its_keys_wait(
    stores: Stores, readiness: BudgetReadiness, budgets: BudgetEnforcement
) -> None:
    budgets.begin_comparing()
    budgets.compare_some()
    budgets.retry()
    stores.away = True
    with pytest.raises(Unavailable):
        budgets.enforce({"a1"})
    assert waiting(readiness) == [], "only new keys must wait: the others have the budgets that they had"
    budgets.wait_for_failed({"a1", "a2"})
    assert waiting(readiness) == ["a1"]
    stores.away = False
    budgets.enforce({"a1"})
    assert waiting(readiness) == []


def test_an_amount_that_was_changed_just_before_a_crash_is_kept_after_it(
    stores: Stores, readiness: BudgetReadiness, budgets: BudgetEnforcement
) -> None:
    """What is left of a top-up depends on the own amount of each period: without it, too much would be left."""
    stores.in_force.add("a3")
    stores.own["a2"] = 3
    assert budgets.begin_comparing()
    budgets.compare_some()
    assert waiting(readiness) == ["a2"]
    budgets.retry()
    assert waiting(readiness) == []
    assert stores.own == {"a2": 5}
