"""
Brings budgets into force, so that each counter is the sum of events from its first period on.

A new budget must also count what was spent in the current period before it was set. That is exact in spite
of requests going on: the commit thread switches to the new scopes between two groups; everything before the
switch is delivered to the usage store, with the relay held there, and summed; that sum is then added.
"""

from __future__ import annotations

import threading

from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.entitlements import BudgetScope, fingerprint_of
from tollkeeper.gate.gate import Gate
from tollkeeper.ports import CostSum, Ledger, UsageStore
from tollkeeper.services.committer import AddCharges, ChangeScopes, Committer
from tollkeeper.services.directory import Directory
from tollkeeper.services.relay import Relay
from tollkeeper.services.tickets import Ticket


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

    def refresh(self, account_id: str) -> None:
        """
        Bring the budgets of an account into and out of force as its catalog says.

        When this returns, every event committed later is charged accordingly and the counters hold what
        the current periods had before. A repeat after a failure is safe.

        Raises:
            Unavailable: A store failed.
        """
        with self._lock:
            self._forget(account_id)
            wanted = self._directory.wanted_scopes(account_id)
            active = self._ledger.scopes(account_id)
            changed = {
                counter_id
                for counter_id, (scope, _) in wanted.items()
                if counter_id in active and active[counter_id][0] != fingerprint_of(scope)
            }
            started = [scope for c, (scope, _) in wanted.items() if c not in active or c in changed]
            ended = [(account_id, c) for c in active if c not in wanted or c in changed]
            if started or ended:
                keys_by_counter = {counter_id: keys for counter_id, (_, keys) in wanted.items()}
                self._switch(account_id, started, ended, keys_by_counter)
            self._forget(account_id)

    def _switch(
        self,
        account_id: str,
        started: list[BudgetScope],
        ended: list[tuple[str, str]],
        keys_by_counter: dict[str, list[str] | None],
    ) -> None:
        now_us = self._clock.now_us()
        with self._relay.exclusive():
            if ended:
                self._change([], ended)
            if not started:
                return
            # Nobody charges a scope that is not in force: what its counter has now is from an earlier time.
            starts = [(scope, scope.span_us(now_us)[0]) for scope in started]
            before = {
                scope.counter_id: self._ledger.counter(account_id, scope.counter_id, start_us)[0]
                for scope, start_us in starts
            }
            self._relay.deliver_up_to(self._change(starts, []))
            charges: dict[CounterAt, int] = {}
            for scope, start_us in starts:
                spent = self._store.charged(
                    account_id,
                    from_us=start_us,
                    to_us=scope.span_us(now_us)[1],
                    project_id=scope.project_id,
                    key_ids=keys_by_counter[scope.counter_id],
                )
                used = charged_in(spent, scope.unit)
                charges[account_id, scope.counter_id, start_us] = used - before[scope.counter_id]
            ticket = Ticket()
            self._committer.submit(AddCharges(charges, ticket))
            ticket.wait()

    def _change(self, started: list[tuple[BudgetScope, int]], ended: list[tuple[str, str]]) -> int:
        ticket = Ticket()
        self._committer.submit(ChangeScopes(started, ended, ticket))
        return int(ticket.wait())

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
