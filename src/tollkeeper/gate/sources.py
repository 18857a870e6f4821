"""What the gate reads of the catalog and the ledger: once per key, counter or period, never with its lock held."""

from __future__ import annotations

from typing import Protocol

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.pricing import ModelPrice


class Sources(Protocol):
    """Implemented by the directory, over the stores. Any thread may call; a store that is away raises Unavailable."""

    def entitlement(self, secret_sha256: str) -> Entitlement | None: ...
    def routes(self) -> list[Route]: ...
    def price(
        self, model: str, variant: str, account_id: str, plan: str, at_us: int
    ) -> ModelPrice | None: ...

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        """Return what a budget's period was charged, and the number of the commit as of which it was."""

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        """Return what a window saved: `slot → used`."""

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        """Return an account's credit, and the number of the commit as of which it was."""
