"""
Brings the budgets of the catalog into force, and tries again what failed: a store was away, or a crash came
between the change of the catalog and its budgets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

from tollkeeper.catalog.budget_readiness import BudgetReadiness
from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.entitlements import fingerprint_of
from tollkeeper.errors import Unavailable
from tollkeeper.ledger.budget_scopes import NOTHING_MADE, Made, ScopeKeeper
from tollkeeper.ledger.budget_top_ups import BudgetTopUps, own_now
from tollkeeper.ports import LedgerReader

RETRY_S: Final = 0.5
"""The shortest wait before a budget that could not be brought into force is tried again."""
RETRY_S_MAX: Final = 60.0
"""The longest: each try keeps the relay for the time of its sums."""
COMPARED_MAX: Final = 200
"""Accounts that one call of `compare_some` compares."""


class BudgetEnforcement:
    """Any thread may call `enforce`, `wait_for_failed` and `compare_all`; the rest is the maintenance thread's."""

    def __init__(
        self,
        directory: Directory,
        ledger: LedgerReader,
        scopes: ScopeKeeper,
        readiness: BudgetReadiness,
        top_ups: BudgetTopUps,
    ) -> None:
        self._top_ups = top_ups
        self._directory = directory
        self._ledger = ledger
        self._scopes = scopes
        self._readiness = readiness
        self._lock = threading.Lock()
        self._failed: set[str] = set()
        self._failures = 0
        self._retry_from_s = 0.0
        self._in_doubt = True
        self._uncompared: list[str] = []

    def enforce(self, accounts: Iterable[str], made: Made = NOTHING_MADE) -> None:
        """
        Make the budgets of *accounts* count as the catalog says.

        Raises:
            Unavailable: A store failed; `retry` does what this did not.
        """
        left = sorted(accounts)
        try:
            while left:
                self._scopes.refresh(left[-1], made)
                self._top_ups.keep_own_amounts(left[-1])
                self._readiness.in_force(left.pop())
        finally:
            with self._lock:
                self._failed.update(left)

    def wait_for_failed(self, accounts: Iterable[str]) -> None:
        """Have those of *accounts* wait whose budgets could not be brought into force."""
        with self._lock:
            self._readiness.wait(self._failed.intersection(accounts))

    def compare_all(self) -> None:
        """Have every account wait until its budgets in force were compared with the catalog, which may have changed."""
        self._readiness.doubt_all()
        self._in_doubt = True

    def begin_comparing(self) -> bool:
        """Return whether all accounts are to be compared from now on, as after `compare_all`. Raises `Unavailable`."""
        if not self._in_doubt:
            return False
        # Lowered first, as it may be raised meanwhile.
        self._in_doubt = False
        try:
            self._directory.reload_prices()
            self._uncompared = [account.id for account in self._directory.accounts()]
        except Unavailable:
            self._in_doubt = True
            raise
        return True

    def compare_some(self) -> None:
        """Compare some of the accounts that are left to compare. Raises `Unavailable`."""
        for _ in range(min(COMPARED_MAX, len(self._uncompared))):
            account_id = self._uncompared[-1]
            differs = self._differs(account_id)
            # Only now: an account that could not be read is still to be compared.
            self._uncompared.pop()
            if differs:
                with self._lock:
                    self._failed.add(account_id)
            self._readiness.compared(account_id, differs=differs)
        if not self._uncompared and not self._in_doubt:
            self._readiness.all_compared()

    def retry(self) -> None:
        """Try again what failed, less and less often. Raises `Unavailable`."""
        now_s = time.monotonic()
        if now_s < self._retry_from_s:
            return
        with self._lock:
            failed, self._failed = self._failed, set()
        self._failures += 1
        try:
            self.enforce(failed)
            self._failures = 0
        finally:
            self._retry_from_s = now_s + min(RETRY_S_MAX, RETRY_S * 2**self._failures)

    def _differs(self, account_id: str) -> bool:
        """Return whether the budgets in force are not those of the catalog: a crash came between."""
        wanted = self._directory.wanted_scopes(account_id)
        active = self._ledger.scopes(account_id)
        own = own_now(self._ledger.own_amounts(account_id), wanted)
        return {counter_id: fingerprint_of(scope) for counter_id, (scope, _) in wanted.items()} != {
            counter_id: fingerprint for counter_id, (fingerprint, _) in active.items()
        } or any(before != amount for before, amount in own.values())
