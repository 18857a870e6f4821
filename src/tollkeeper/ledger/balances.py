"""The credit of an account as it stands: what the ledger has, and what open holds set aside."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.keyless import Keyless
from tollkeeper.domain.pools import CreditBook
from tollkeeper.gate.gate import Gate
from tollkeeper.ports import LedgerReader


class CreditState(NamedTuple):
    """An account's grants and spending as of the last commit, and the sum of its open holds."""

    book: CreditBook
    held_nanos: int


class Balances:
    """Reads balances. Any thread may call."""

    def __init__(self, gate: Gate, directory: Directory, ledger: LedgerReader, clock: Clock) -> None:
        self._gate = gate
        self._directory = directory
        self._ledger = ledger
        self._clock = clock

    def book(self, account_id: str) -> CreditBook:
        """Return the committed book of an account."""
        return self._ledger.book(account_id)[0]

    def of(self, account_id: str) -> CreditState:
        """Return the credit of an existing account."""
        now_us = self._clock.now_us()
        caller = Keyless(account_id)
        compiled_key = self._gate.compiled_key_of(partial(self._directory.keyless_entitlement, caller))
        found = None if compiled_key is None else self._gate.credit_of(compiled_key, now_us)
        if found is not None:
            return CreditState(*found)
        for stored in self._directory.keys_of(account_id):
            if not (stored.entry.draws_on_credit and stored.entry.is_metered):
                continue
            if stored.state_at(now_us) != "active":
                continue
            compiled_key = self._gate.compiled_key_of(
                partial(self._directory.entitlement_of_id, stored.entry.id)
            )
            found = None if compiled_key is None else self._gate.credit_of(compiled_key, now_us)
            if found is not None:
                return CreditState(*found)
        # Nothing draws on it, so the gate holds nothing of it.
        return CreditState(self._ledger.book(account_id)[0], 0)
