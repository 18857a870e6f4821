"""
Which accounts may have a budget that the catalog has and that is not in force yet.

The directory asks before a key of such an account is admitted: without its budget the key would be unbounded.
At start, and after a failed change, that may be any account until its budgets were compared with the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterable


class BudgetReadiness:
    """Any thread may call: each step is one operation on one set."""

    def __init__(self) -> None:
        self._waiting: set[str] = set()
        self._compared: set[str] | None = set()
        """Accounts whose budgets were compared with the catalog since the last `doubt_all`; None when all were."""

    def must_wait(self, account_id: str) -> bool:
        """Return whether keys of an account must not be admitted without a budget that is not in force yet."""
        compared = self._compared
        return account_id in self._waiting or (compared is not None and account_id not in compared)

    def wait(self, account_ids: Iterable[str]) -> None:
        """Have keys of these accounts wait until `in_force`."""
        self._waiting.update(account_ids)

    def in_force(self, account_id: str) -> None:
        """Note that the budgets of an account are those of its catalog."""
        self._waiting.discard(account_id)
        self.compared(account_id, differs=False)

    def compared(self, account_id: str, *, differs: bool) -> None:
        """Note the outcome of comparing one account, while not all are compared."""
        compared = self._compared
        if compared is None:
            return
        if differs:
            self._waiting.add(account_id)
        else:
            compared.add(account_id)

    def doubt_all(self) -> None:
        """Have every account wait until it was compared."""
        self._compared = set()

    def all_compared(self) -> None:
        """Note that every account was compared: those wait that differ."""
        self._compared = None
