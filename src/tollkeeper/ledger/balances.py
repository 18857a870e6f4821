"""The credit of an account as it stands: what the ledger has, and what open holds set aside."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.pools import CreditBook
from tollkeeper.gate.counters import CreditPool
from tollkeeper.gate.gate import Gate
from tollkeeper.ports import Ledger


class CreditState(NamedTuple):
    """An account's grants and spending as of the last commit, and the sum of its open holds."""

    book: CreditBook
    held_nanos: int


class Balances:
    """Reads balances. Any thread may call."""

    def __init__(self, gate: Gate, directory: Directory, ledger: Ledger, clock: Clock) -> None:
        self._gate = gate
        self._directory = directory
        self._ledger = ledger
        self._clock = clock

    def of(self, account_id: str) -> CreditState:
        """Return the credit of an existing account."""
        pool = self._pool_of(account_id)
        if pool is None:
            return CreditState(self._ledger.book(account_id)[0], 0)
        now_us = self._clock.now_us()
        with self._gate.lock:
            # Together, so that a commit in between moves nothing out of sight.
            return CreditState(pool.book, pool.allowed_used(now_us)[1])

    def _pool_of(self, account_id: str) -> CreditPool | None:
        """Return the gate's counter of an account's balance; None when no key draws on it."""
        for stored in self._directory.keys_of(account_id):
            if stored.entry.type != "credit" or stored.entry.role != "consumption":
                continue
            if stored.state_at(self._clock.now_us()) != "active":
                continue
            compiled_key = self._gate.compiled_key_of(
                partial(self._directory.entitlement_of_id, stored.entry.id)
            )
            if compiled_key is not None:
                return compiled_key.pool
        return None
