"""The reads of the gate from catalog and ledger: once per key, counter or period, never with its lock held."""

from __future__ import annotations

from typing import Protocol

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.entitlements import BudgetScope, Entitlement
from tollkeeper.domain.keyless import Keyless
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.pricing import ModelPrice
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.openings import Openings


class Sources(Protocol):
    """Implemented by the directory, over the stores. Any thread may call; a store that is away raises Unavailable."""

    @property
    def openings(self) -> Openings:
        """When the periods of budgets opened that open with the first use. Their lock is the gate's."""

    def entitlement(self, secret_sha256: str) -> Entitlement | None: ...
    def keyless_entitlement(self, caller: Keyless) -> Entitlement | None:
        """Return what a caller without a key may do; None for an unknown account or project."""

    def routes(self) -> list[Route]: ...
    def price(
        self, model: str, variant: str, account_id: str, plan: str, at_us: int
    ) -> ModelPrice | None: ...

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        """Return what a budget's period was charged, and the number of the commit as of which it was."""

    def top_ups(self, scope: BudgetScope) -> tuple[TopUps, dict[int, int], int]:
        """
        Return the top-ups of a budget by its periods; where some last until they are used, also what each period was
        charged, and the number of the commit as of which that is.
        """

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        """Return what a window saved: `slot → used`."""

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        """Return an account's credit, and the number of the commit as of which it was."""
