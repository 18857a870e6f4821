"""
Brings budgets into force, so that each counter is the sum of events from its first period on.

A new budget must also count what was spent in the current period before it was set. That is exact in spite
of requests going on: the commit thread itself sums the events between two groups, when all that is committed
is delivered and nothing more comes, and writes the sum together with the scopes. So a crash leaves both or
neither, and no event is charged to a budget that is half set up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.entitlements import BudgetScope, fingerprint_of
from tollkeeper.domain.events import FUTURE_S_MAX
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.gate.gate import Gate
from tollkeeper.ports import CostSum, Ledger, UsageStore
from tollkeeper.services.committer import ChangeScopes, Committer, Draft
from tollkeeper.services.directory import Directory
from tollkeeper.services.relay import Relay
from tollkeeper.services.tickets import Ticket

SWITCHED_MAX: Final = 32
"""Scopes per switch: it keeps the commit thread for a few ms each, when the account has usage already."""

Wanted = tuple[BudgetScope, list[str] | None]
"""A scope, and the ids of the keys that it counts: see `Directory.wanted_scopes`."""


class SwitchScopes(ChangeScopes):
    """
    A change of scopes that brings each counter to what its events say, in the same commit.

    Args:
        count: Returns what to charge; called on the commit thread when every earlier group is committed.
    """

    __slots__ = ("_count",)

    def __init__(
        self,
        started: list[tuple[BudgetScope, int]],
        ended: list[tuple[str, str]],
        ticket: Ticket,
        count: Callable[[], dict[CounterAt, int]],
    ) -> None:
        super().__init__(started, ended, ticket)
        self._count = count

    def add(self, draft: Draft) -> None:
        charges = self._count()
        super().add(draft)
        for at, amount in charges.items():
            draft.charge(at, amount, counted=False)


class ScopeKeeper:
    """Called after every change of the catalog that may touch budgets. One change at a time."""

    def __init__(
        self,
        directory: Directory,
        ledger: Ledger,
        store: UsageStore,
        committer: Committer,
        relay: Relay,
        gate: Gate,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._store = store
        self._committer = committer
        self._relay = relay
        self._gate = gate
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep all budgets in or out of force, as they are, until the block ends."""
        with self._lock:
            yield

    def refresh(self, account_id: str) -> None:
        """
        Bring the budgets of an account into and out of force as its catalog says.

        When this returns, every event committed later is charged accordingly and the counters hold what
        the current periods had before. After a failure nothing has changed; a repeat is safe.

        Raises:
            Unavailable: A store failed.
        """
        with self._lock:
            self._forget(account_id)
            wanted = self._directory.wanted_scopes(account_id)
            active = self._ledger.scopes(account_id)
            started = [
                (scope, keys)
                for counter_id, (scope, keys) in wanted.items()
                if counter_id not in active or active[counter_id][0] != fingerprint_of(scope)
            ]
            ended = [(account_id, counter_id) for counter_id in active if counter_id not in wanted]
            if started or ended:
                self._switch(started, ended)
            self._forget(account_id)

    def _switch(self, started: Sequence[Wanted], ended: list[tuple[str, str]]) -> None:
        if started:
            # What is delivered now need not be while nothing can be committed.
            self._relay.deliver_up_to(self._committer.outbox_seq)
        for first in range(0, max(1, len(started)), SWITCHED_MAX):
            self._switch_some(started[first : first + SWITCHED_MAX], [] if first else ended)

    def _switch_some(self, started: Sequence[Wanted], ended: list[tuple[str, str]]) -> None:
        now_us = self._clock.now_us()
        ticket = Ticket()
        self._committer.submit(
            SwitchScopes(
                [(scope, scope.span_us(now_us)[0]) for scope, _ in started],
                ended,
                ticket,
                lambda: self._missing(started, now_us),
            )
        )
        ticket.wait()

    def _missing(self, started: Sequence[Wanted], from_us: int) -> dict[CounterAt, int]:
        """Return how much each counter of *started* lacks of its events, from the period of *from_us* on."""
        if not started:
            return {}
        while self._relay.deliver():
            pass
        # Events may be ahead of the clock: they lie in periods that begin only then.
        to_us = max(from_us, self._clock.now_us()) + FUTURE_S_MAX * US_PER_S
        charges: dict[CounterAt, int] = {}
        for scope, key_ids in started:
            at_us = from_us
            while at_us <= to_us:
                start_us, end_us = scope.span_us(at_us)
                spent = self._store.charged(
                    scope.account_id,
                    from_us=start_us,
                    to_us=end_us,
                    project_id=scope.project_id,
                    key_ids=key_ids,
                )
                # Not 0 when the budget was in force before, with other keys or in an earlier life.
                has, _ = self._ledger.counter(scope.account_id, scope.counter_id, start_us)
                charges[scope.account_id, scope.counter_id, start_us] = charged_in(spent, scope.unit) - has
                at_us = end_us
        return charges

    def _forget(self, account_id: str) -> None:
        self._directory.forget(account_id)
        self._gate.forget(account_id)


def charged_in(spent: CostSum, unit: str) -> int:
    """Return what *spent* is in the unit of a budget."""
    return {
        "requests": spent.requests,
        "tokens": spent.tokens,
        "nanos": spent.cost_nanos,
        "credits": spent.credits,
    }[unit]
