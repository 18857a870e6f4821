"""
Brings a change of the catalog into force: in the memory of directory and gate, in the budgets, in the prices.

`Manage` calls `begins` before a change, `changed` after its commit, and `doubted` when it cannot know whether the
change took place. The maintenance thread calls `retry` and `price_deferred`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from tollkeeper.catalog.budget_readiness import BudgetReadiness
from tollkeeper.catalog.changes import Change
from tollkeeper.catalog.directory import Directory
from tollkeeper.errors import Unavailable
from tollkeeper.gate.gate import Gate
from tollkeeper.ledger.budget_scopes import Made
from tollkeeper.ledger.committer import Committer
from tollkeeper.maintenance.budget_enforcement import BudgetEnforcement
from tollkeeper.meter.amend import Amend

_SCOPED_KINDS: Final = frozenset({"accounts", "projects", "subscriptions", "keys", "budgets"})
"""Kinds whose entries have a part in which budgets count which events."""

log = logging.getLogger("tollkeeper")


class NotifyWebhooks(Protocol):
    def __call__(self, account_ids: Iterable[str], *, hooks: bool = False) -> None:
        """As `Webhooks.changed`."""


class CatalogChanges:
    """Any thread may call."""

    def __init__(
        self,
        directory: Directory,
        gate: Gate,
        committer: Committer,
        budgets: BudgetEnforcement,
        readiness: BudgetReadiness,
        amend: Amend,
        notify_webhooks: NotifyWebhooks,
    ) -> None:
        self._directory = directory
        self._gate = gate
        self._committer = committer
        self._budgets = budgets
        self._readiness = readiness
        self._amend = amend
        self._notify_webhooks = notify_webhooks
        self._begun = threading.local()
        """`seq`: the newest outbox row when the change that this thread makes to the catalog began."""
        self._due_prices = True

    def begins(self) -> None:
        """Note that this thread begins a change."""
        self._begun.seq = self._committer.outbox_seq

    def changed(self, changes: Sequence[Change]) -> None:
        """
        Bring committed *changes* into force before this returns.

        Raises:
            Unavailable: A store failed; the maintenance thread tries again. Not when the changes made keys, whose
                secrets are shown once: these are refused until their budgets are in force.
        """
        kinds = {change.kind for change in changes}
        accounts = self._accounts_of(changes)
        made = _made_by(changes, getattr(self._begun, "seq", -1))
        if made.keys:
            # First, as a key whose secret was brought may be used before this returns.
            self._readiness.wait(accounts)
        if kinds & {"plans", "routes", "prices"}:
            self._directory.forget()
            self._gate.forget()
        for account_id in accounts:
            self._directory.forget(account_id)
            self._gate.forget(account_id)
        self._notify_webhooks(accounts, hooks="webhooks" in kinds)
        try:
            self._budgets.enforce(accounts, made)
        except Unavailable as exc:
            if not made.keys:
                raise
            self._budgets.wait_for_failed(accounts)
            log.warning("tollkeeper.budgets.deferred", extra={"reason": str(exc), "keys": len(made.keys)})
        if "prices" in kinds:
            self._directory.reload_prices()
            self._price_unpriced()

    def doubted(self) -> None:
        """Read the catalog again, which may have changed; maintenance brings the change into force."""
        self._directory.forget()
        self._gate.forget()
        self._budgets.compare_all()
        self._notify_webhooks((), hooks=True)

    def compare_at_start(self) -> None:
        """
        Compare the budgets in force of the first accounts before anything is served.

        A budget that is set right after a start must not look like one that a crash left behind.
        """
        try:
            self._compare()
        except Unavailable as exc:
            # The maintenance thread compares them. Until then their keys wait.
            log.warning("tollkeeper.budgets.deferred", extra={"reason": str(exc), "keys": 0})

    def retry(self) -> None:
        """Finish the steps that a failed store or an ended process left open."""
        self._compare()
        self._budgets.retry()

    def _compare(self) -> None:
        if self._budgets.begin_comparing():
            self._due_prices = True
        self._budgets.compare_some()

    def price_deferred(self) -> None:
        """Price what a new price could not be applied to when it came."""
        if self._due_prices:
            self._price_unpriced()

    def _accounts_of(self, changes: Sequence[Change]) -> set[str]:
        """Return the accounts whose budgets *changes* may touch."""
        accounts: set[str] = set()
        for change in changes:
            if change.account_id is not None and change.kind in _SCOPED_KINDS:
                accounts.add(change.account_id)
            if change.kind == "plans" and (change.action != "changed" or "budgets" in change.fields):
                accounts |= {account.id for account in self._directory.accounts()}
        return accounts

    def _price_unpriced(self) -> None:
        """Price what had no price when it came; maintenance tries again what fails."""
        self._due_prices = True
        try:
            self._amend.price_unpriced()
            self._due_prices = False
        except Unavailable as exc:
            # The price is in force. That old events wait for the usage store is no error of the call that set it.
            log.warning("tollkeeper.prices.unavailable", extra={"reason": str(exc)})


def _made_by(changes: Iterable[Change], after_seq: int) -> Made:
    """Return what *changes* made, after outbox row *after_seq* was written."""
    made = [change for change in changes if change.action == "created"]
    return Made(
        frozenset(change.id for change in made if change.kind == "accounts"),
        frozenset((str(change.account_id), change.id) for change in made if change.kind == "projects"),
        frozenset(change.id for change in made if change.kind == "keys"),
        after_seq,
    )
