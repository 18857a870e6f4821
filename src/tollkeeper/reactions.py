"""
What the parts of an installation do after each commit and each delivery, in one object.

Some of these parts need the committer, so they are made after it. That is why this has the installation and reads the
part when it is called: nothing is committed or delivered before all parts are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from tollkeeper.alerts.webhooks import Webhooks
from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.gate.gate import Gate
from tollkeeper.ledger.commit_tasks import ChangeScopes
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ledger.relay import Relay
from tollkeeper.ports import UsageStore
from tollkeeper.usage.report import Reports


class Site(Protocol):
    """The parts of an installation that a commit or a delivery concerns."""

    store: UsageStore
    directory: Directory
    gate: Gate
    committer: Committer
    relay: Relay
    pairing: Pairing
    reports: Reports
    webhooks: Webhooks
    trim_memory: Callable[[], None]

    def keys_used(self, last_used_at_us: Mapping[str, int]) -> None:
        """Note when keys were used."""


class Reactions:
    """The one listener of committer and relay: see `ledger.listeners` for when each method is called."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def events_added(self, accounts: set[str], after_seq: int) -> None:
        self._site.reports.events_added(accounts, after_seq)

    def scopes_changed(self, change: ChangeScopes) -> None:
        for account_id in change.accounts:
            self._site.directory.scopes_changed(account_id)
            members = [member for member in change.members if member[0].account_id == account_id]
            self._site.gate.begin_budgets(account_id, members)
        # Last: no key that is current asks for what is no longer in force.
        for scope, _ in change.started:
            openings = self._site.directory.openings
            openings.end(scope.account_id, scope.counter_id, but_period=scope.period)
        for account_id, counter_id in change.ended:
            self._site.directory.openings.end(account_id, counter_id)

    def charged(self, counters: Collection[CounterAt]) -> None:
        self._site.webhooks.charged(counters)

    def committed(self) -> None:
        self._site.relay.notify()

    def keys_used(self, last_used_at_us: Mapping[str, int]) -> None:
        self._site.keys_used(last_used_at_us)

    def delivered(self) -> None:
        site = self._site
        site.committer.update_refusal()
        if site.pairing.look_is_due:
            with site.relay.exclusive():
                site.pairing.look_again(site.store)

    def large_batch_delivered(self) -> None:
        self._site.trim_memory()
