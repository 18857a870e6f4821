"""
One installation of Tollkeeper: its stores, rooms and threads, wired once. The only place where ports meet
adapters, and where the rooms meet each other; it decides nothing.

Library, server and command line all drive an `Installation`; `tollkeeper.Tollkeeper` is its interface inside
another process.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper import forks, greenlets, packages
from tollkeeper.adapters.backup_sources import backup_sources
from tollkeeper.adapters.data_directory import DataDirectory
from tollkeeper.adapters.jwt_tokens import JwtTokens
from tollkeeper.adapters.paired_store import check_at_start, must_compare, open_in_background
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.database import migrate, open_engine
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.logins import SqlLogins
from tollkeeper.adapters.sql.operator_keys import SqlOperatorKeys
from tollkeeper.adapters.sql.ownership import Ownership
from tollkeeper.adapters.sql.webhooks import SqlWebhooks
from tollkeeper.adapters.webhook_sender import HttpWebhookSender
from tollkeeper.alerts.webhooks import Webhooks
from tollkeeper.catalog.budget_readiness import BudgetReadiness
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.last_used import LastUsed
from tollkeeper.catalog.logins import Logins
from tollkeeper.catalog.manage import Manage
from tollkeeper.catalog.sessions import AccountSessions, Sessions, check_login
from tollkeeper.clock import Clock, SystemClock
from tollkeeper.gate.gate import Gate, GateSettings
from tollkeeper.ledger.balances import Balances
from tollkeeper.ledger.budget_scopes import ScopeKeeper
from tollkeeper.ledger.budget_top_ups import BudgetTopUps
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.ledger.grant_posting import GrantPosting
from tollkeeper.ledger.holds import Holds
from tollkeeper.ledger.labels import Labels
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ledger.pending import Pending
from tollkeeper.ledger.recovery import recover
from tollkeeper.ledger.relay import Relay, read_back
from tollkeeper.maintenance.backups import Backups
from tollkeeper.maintenance.budget_enforcement import BudgetEnforcement
from tollkeeper.maintenance.catalog_changes import CatalogChanges
from tollkeeper.maintenance.reconcile import Reconcile
from tollkeeper.maintenance.retention import Retention
from tollkeeper.maintenance.rounds import Job, MaintenanceThread
from tollkeeper.meter.adjustments import Adjustments
from tollkeeper.meter.amend import Amend
from tollkeeper.meter.ingest import Ingest
from tollkeeper.meter.price_lines import PriceLines
from tollkeeper.meter.price_preview import PricePreview
from tollkeeper.ports import UsageStore
from tollkeeper.profile_context import LocalProfileContext
from tollkeeper.profiles import switches, webhook_headers
from tollkeeper.profiles.base import Profile
from tollkeeper.reactions import Reactions
from tollkeeper.settings import Settings
from tollkeeper.usage.event_lookup import EventLookup
from tollkeeper.usage.event_pages import EventPages
from tollkeeper.usage.fresh_reads import FreshReads
from tollkeeper.usage.freshness import Freshness
from tollkeeper.usage.query_turns import QueryTurns
from tollkeeper.usage.report import Reports
from tollkeeper.version import __version__

_SAVE_EVERY: Final = 4
_PRICE_EVERY: Final = 20
_RETENTION_EVERY: Final = 20
_PURGE_EVERY: Final = 600
"""In rounds of maintenance (`maintenance.rounds.ROUND_S`)."""


class Installation:
    """
    Everything that one process runs. Close it to commit what is queued.

    Raises:
        BadParameter: `profile_settings` names no profile, or no setting of it, or a value it cannot have;
            `session_jwks` has no issuer and audience, or comes over plain http.
        DataDirectoryInUse: Another process has the data directory.
        Forked: This process was forked from one that has an installation open.
        GreenletsRefused: gevent or eventlet changed the threads of this process in a way that it cannot be gated.
        PackageMissing: The usage store needs chDB, which is not installed.
        LedgerInUse: Another process has the PostgreSQL database.
        StoresMismatch: The ledger and the usage store do not belong together.
        Unavailable: A store cannot be opened or written.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        store: UsageStore | None = None,
        store_is_shared: bool = False,
        trim_memory: Callable[[], None] = lambda: None,
        sends_webhooks: bool = True,
    ) -> None:
        """
        Args:
            sends_webhooks: False for one that is only looked at, as after a restore: what is due stays due.
            store: In place of the one that the settings name, for tests.
            store_is_shared: Whether other installations use *store* too, so that it cannot be compared with the
                ledger. False in production: no setting changes it.
            trim_memory: Called when the memory of a large batch is free.
        """
        self.trim_memory = trim_memory
        # chDB changes the working directory of the process while it is imported, which a thread does meanwhile.
        self.settings = msgspec.structs.replace(settings, data_dir=os.path.abspath(settings.data_dir))
        self.clock = clock or SystemClock()
        self._opened = ExitStack()
        try:
            self._open(store, store_is_shared, sends_webhooks)
        except BaseException:
            self._opened.close()
            raise

    def _open(self, store: UsageStore | None, store_is_shared: bool, sends_webhooks: bool) -> None:
        settings = self.settings
        self._switches = switches(settings.profile_settings)
        check_login(settings.session_jwks, settings.session_issuer, settings.session_audience)
        forks.check_not_forked()
        greenlets.check()
        if store is None:
            packages.check_usage_store(settings.usage)
        self._data_directory = DataDirectory(settings)
        self._opened.callback(self._data_directory.close)
        engine = open_engine(settings.ledger)
        self._opened.callback(engine.dispose)
        self._ownership = Ownership(engine)
        self._opened.callback(self._ownership.close)
        migrate(engine)
        self.engine = engine
        self.ledger = SqlLedger(engine)
        self.ledger.claim()
        self.catalog = SqlCatalogStore(engine)
        self.operator_keys = SqlOperatorKeys(engine)
        self._opened.callback(self.ledger.close)
        self.pairing = Pairing(self.ledger.outbox, self.clock, shared=store_is_shared)
        self.store: UsageStore = store or open_in_background(settings, self.pairing)
        self._opened.callback(self.store.close)
        check_at_start(self.store, self.ledger, self.pairing, settings.usage)
        readiness = BudgetReadiness()
        self.directory = Directory(self.catalog, self.ledger, self.clock, must_wait=readiness.must_wait)
        self.gate = Gate(
            self.directory,
            self.clock,
            GateSettings(settings.unknown_route, settings.unknown_price, settings.hold_s),
        )
        self.pending = Pending(read_back(self.ledger.outbox), self.clock.now_us, self.gate.own_ids_ending)
        reactions = Reactions(self)
        self.labels = Labels(settings.distinct_values_per_day_max, decides=self.directory.decides_by)
        self.committer = Committer(
            self.ledger,
            self.gate,
            self.pending,
            self.clock,
            self.directory.charges_of,
            self.labels.of_record,
            reactions,
            self.directory.openings,
        )
        self.relay = Relay(self.ledger.outbox, self.store, self.pending, self._must_compare, reactions)
        self.holds = Holds(
            self.gate,
            self.directory,
            self.ledger,
            self.store,
            self.committer,
            self.pending,
            self.clock,
            hold_s=settings.hold_s,
        )
        self.ingest = Ingest(
            self.directory, self.store, self.pending, self.committer, self.clock, self.labels
        )
        self.delivery = Delivery(self.committer, self.pending, self.relay)
        freshness = Freshness(self.ledger.outbox, self.relay, self.pending, self.pairing)
        turns = QueryTurns()
        self.reports = Reports(self.store, freshness, self.delivery, self.clock, turns)
        self.event_pages = EventPages(
            self.store,
            FreshReads(freshness, self.delivery),
            self.delivery,
            turns,
            self.clock,
            PriceLines(self.directory),
        )
        self.amend = Amend(
            self.directory, self.store, self.pending, self.committer, self.delivery, self.clock, self.labels
        )
        self.adjustments = Adjustments(self.directory, self.store, self.pending, self.committer, self.clock)
        self.price_preview = PricePreview(self.directory, self.store, self.delivery)
        self.scopes = ScopeKeeper(
            self.directory, self.ledger, self.store, self.committer, self.relay, self.gate, self.clock
        )
        self.top_ups = BudgetTopUps(
            self.directory, self.ledger, self.committer, self.scopes, self.gate, self.clock
        )
        self.reconcile = Reconcile(
            self.directory,
            self.ledger,
            self.store,
            self.committer,
            self.relay,
            self.scopes,
            self.clock,
            self.reports.invalidate_all,
            self.pairing,
            self.gate,
        )
        self.backups = Backups(
            backup_sources(engine, self.store, self._data_directory, self.ledger.installation_id),
            self.relay,
            self.scopes,
            self.clock,
            installation_id=self.ledger.installation_id,
            version=__version__,
            data_dir=Path(settings.data_dir),
            below=Path(settings.backups),
        )
        self.retention = Retention(
            self.directory,
            self.store,
            self.committer,
            self.relay,
            self.scopes,
            self.clock,
            default=settings.retention,
            must_wait=self._must_compare,
            forget_answers=self.reports.invalidate_all,
        )
        self.balances = Balances(self.gate, self.directory, self.ledger, self.clock)
        self.event_lookup = EventLookup(self.store, self.delivery)
        self._grants = GrantPosting(self.ledger, self.committer)
        self._catalog_changes = CatalogChanges(
            self.directory,
            self.gate,
            self.committer,
            BudgetEnforcement(self.directory, self.ledger, self.scopes, readiness, self.top_ups),
            readiness,
            self.amend,
            self._notify_webhooks,
        )
        self.manage = Manage(
            self.catalog,
            self.clock,
            on_change=self._catalog_changes.changed,
            on_begin=self._catalog_changes.begins,
            on_doubt=self._catalog_changes.doubted,
            post_grant=self._grants.post,
            revoke_grant=self._grants.revoke,
            has_usage=self._has_usage,
            plain_http=settings.webhook_allow_private,
            quotas={
                "keys": settings.keys_per_account_max,
                "projects": settings.projects_per_account_max,
                "webhooks": settings.webhooks_per_account_max,
            },
        )
        self.webhooks = Webhooks(
            SqlWebhooks(engine),
            HttpWebhookSender(allow_private=settings.webhook_allow_private),
            self.ledger,
            self.directory,
            self.manage,
            self.clock,
            root=self._data_directory.secret("webhook.secret").encode(),
            vendor_headers=webhook_headers,
        )
        self.sessions = Sessions(
            self.clock,
            self._data_directory.secret("session.secret"),
            JwtTokens(),
            jwks=settings.session_jwks,
            issuer=settings.session_issuer,
            audience=settings.session_audience,
            account_claim=settings.session_account_claim,
        )
        self.account_sessions = AccountSessions(self.sessions, self.directory)
        self.logins = Logins(SqlLogins(engine), self.clock, settings.login_hours, secrets.choice)
        self._last_used = LastUsed(self.catalog, self.gate.take_last_used)
        recover(self.ledger, self.pending, self.committer, self.relay, self.holds, self._grants)
        self._catalog_changes.compare_at_start()
        self._opened.callback(self._last_used.save)
        self.committer.start()
        self.relay.start()
        self._opened.callback(self.relay.close)
        self._opened.callback(self.committer.close)
        # Closed before the committer, through which it makes keys inactive.
        self._opened.callback(self.webhooks.close)
        if sends_webhooks:
            self.webhooks.start()
        else:
            self.webhooks.close()
        self.relay.notify()
        # Events expire in a thread of their own: holds must not wait for it.
        retention = Job(self.retention.round, every=_RETENTION_EVERY, repeats=True)
        for thread in (MaintenanceThread(self._jobs()), MaintenanceThread([retention])):
            self._opened.callback(thread.close)
            thread.start()
        ours = [
            part
            for name, part in vars(self).items()
            if name not in ("settings", "clock", "store")
            and hasattr(part, "__dict__")
            and type(part).__module__.startswith("tollkeeper.")
        ]
        forks.refuse_in_children(self, [*ours, self.store])

    def left_to_parent(self) -> None:
        """In a forked child: close the copy of the directory's lock, which would outlive the parent's."""
        self._data_directory.close()

    def _must_compare(self) -> bool:
        return must_compare(self.store, self.pairing)

    def profile_settings(self, profile: Profile) -> Mapping[str, Any]:
        """Return the settings of *profile*, with the values that this deployment sets."""
        return self._switches.get(profile.name, profile.settings)

    def context(self, profile: Profile) -> LocalProfileContext:
        """Return the context of *profile*, with the settings that this deployment sets."""
        return LocalProfileContext(
            profile.name,
            self.profile_settings(profile),
            catalog=self.catalog,
            directory=self.directory,
            gate=self.gate,
            ledger=self.ledger,
            committer=self.committer,
            manage=self.manage,
            reports=self.reports,
            sessions=self.account_sessions,
            clock=self.clock,
        )

    def close(self) -> None:
        """Commit and relay what is queued, then release stores and directory. A repeat changes nothing."""
        forks.closed(self)
        # In the reverse of the order of opening; what fails does not keep the rest open.
        self._opened.pop_all().close()

    def _jobs(self) -> list[Job]:
        return [
            Job(self.holds.expire),
            Job(self.gate.evict_idle),
            Job(self._ownership.keep, every=_SAVE_EVERY),
            Job(self._last_used.save, every=_SAVE_EVERY),
            Job(self._grants.retry),
            Job(self._catalog_changes.retry),
            Job(self._catalog_changes.price_deferred, every=_PRICE_EVERY, at=1),
            Job(self.pairing.maintain, every=_PURGE_EVERY),
            Job(lambda: self.ledger.purge(self.clock.now_us()), every=_PURGE_EVERY, repeats=True),
            Job(self.webhooks.purge, every=_PURGE_EVERY),
            Job(self.logins.purge, every=_PURGE_EVERY),
            Job(lambda: self.directory.openings.evict_idle(self.clock.now_us()), every=_PURGE_EVERY),
        ]

    # -- called by one service for another that is made later -----------------------------------------

    def keys_used(self, last_used_at_us: Mapping[str, int]) -> None:
        """Note when keys were used, to be saved by the maintenance thread."""
        self._last_used.note(last_used_at_us)

    def _notify_webhooks(self, account_ids: Iterable[str], *, hooks: bool = False) -> None:
        # Webhooks make keys inactive, which is a change of the catalog: neither can be made with the other.
        self.webhooks.changed(account_ids, hooks=hooks)

    def _has_usage(self, account_id: str) -> bool:
        self.delivery.fresh(account_id)
        spent = self.store.charged(account_id, from_us=0, to_us=2**62, project_id=None, key_ids=None)
        return spent.events > 0


def build(
    settings: Settings, *, clock: Clock | None = None, trim_memory: Callable[[], None] = lambda: None
) -> Installation:
    """Return a running installation of *settings*."""
    return Installation(settings, clock=clock, trim_memory=trim_memory)
