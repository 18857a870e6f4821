"""
One installation of Tollkeeper: its stores, threads and services, put together once (`build`).

`Installation` is what library, server and command line all drive; `tollkeeper.Tollkeeper` is its friendly
face inside somebody's process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from tollkeeper.adapters.opening import OpeningUsageStore
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.database import migrate, open_engine
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.operator_keys import SqlOperatorKeys
from tollkeeper.clock import Clock, SystemClock
from tollkeeper.domain.catalog import Grant
from tollkeeper.errors import DataDirectoryInUse, TollkeeperError, Unavailable
from tollkeeper.gate.gate import Gate
from tollkeeper.gate.gate import Settings as GateSettings
from tollkeeper.ports import UsageStore
from tollkeeper.services.amend import Amend
from tollkeeper.services.committer import Committer, PostGrants
from tollkeeper.services.directory import Directory
from tollkeeper.services.holds import Holds
from tollkeeper.services.ingest import Ingest
from tollkeeper.services.manage import Change, Manage
from tollkeeper.services.pending import Pending, key_of
from tollkeeper.services.reconcile import Reconcile
from tollkeeper.services.relay import Relay, table_of_entry
from tollkeeper.services.report import Reports
from tollkeeper.services.scopes import ScopeKeeper
from tollkeeper.services.tickets import Ticket
from tollkeeper.settings import Settings

MAINTAIN_S: Final = 0.5
_PURGE_EVERY: Final = 600
_SCOPED_KINDS: Final = frozenset({"accounts", "projects", "subscriptions", "keys", "budgets"})

log = logging.getLogger("tollkeeper")


class Installation:
    """
    Everything that one process runs. Close it to commit what is queued.

    Raises:
        DataDirectoryInUse: Another process has the data directory.
        Unavailable: A store cannot be opened or written.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock | None = None, store: UsageStore | None = None
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self._lock_file = _lock(Path(settings.data_dir))
        engine = open_engine(settings.ledger)
        migrate(engine)
        self.engine = engine
        self.ledger = SqlLedger(engine)
        self.catalog = SqlCatalogStore(engine)
        self.operator_keys = SqlOperatorKeys(engine)
        self.store: UsageStore = store or OpeningUsageStore(lambda: _open_usage(settings))
        self.directory = Directory(self.catalog, self.ledger)
        self.gate = Gate(
            self.directory,
            self.clock,
            GateSettings(settings.unknown_route, settings.unknown_price, settings.hold_s),
        )
        self.pending = Pending()
        self.committer = Committer(self.ledger, self.gate, self.pending, self.clock)
        self.relay = Relay(self.ledger, self.store, self.pending)
        self.committer.on_commit = self.relay.notify
        self.committer.on_last_used = self._touch_keys
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
        self.ingest = Ingest(self.directory, self.store, self.pending, self.committer, self.clock)
        self.reports = Reports(self.store, self.relay, self.pending, self.clock)
        self.amend = Amend(
            self.directory, self.store, self.pending, self.committer, self.reports, self.clock
        )
        self.reconcile = Reconcile(self.directory, self.ledger, self.store, self.reports, self.clock)
        self.scopes = ScopeKeeper(
            self.directory, self.ledger, self.store, self.committer, self.relay, self.gate, self.clock
        )
        self.manage = Manage(
            self.catalog,
            self.clock,
            on_change=self._changed,
            post_grant=self._post_grant,
            has_usage=self._has_usage,
        )
        self._used: dict[str, int] = {}
        self._closing = threading.Event()
        self._take_up()
        self.committer.start()
        self.relay.start()
        self.relay.notify()
        self._maintainer = threading.Thread(target=self._maintain, name="tollkeeper-maintain", daemon=True)
        self._maintainer.start()

    def close(self) -> None:
        """Commit and relay what is queued, then release stores and directory. A repeat changes nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._maintainer.join(5)
        self.committer.close()
        self.relay.close()
        if self._used:
            self._save_last_used()
        self.store.close()
        self.ledger.close()
        self._lock_file.close()

    # -- start ----------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Take up where the last process ended: what it had committed but not relayed, and open holds."""
        for seq, entry in self.ledger.pending():
            table = table_of_entry(entry)
            accounts = table.column("account_id").to_pylist()
            ids = table.column("id").to_pylist()
            amendments = table.column("amendment_id").to_pylist()
            # As in the usage store's index: an amendment's id is taken too.
            keys = [
                key_of(account, amendment or id_)
                for account, id_, amendment in zip(accounts, ids, amendments, strict=True)
            ]
            self.pending.add(keys, table)
            self.pending.committed(seq, keys, set(accounts), entry.record_count)
        restored = self.holds.restore()
        unposted = self.ledger.unposted_grants()
        if restored or unposted:
            log.info("tollkeeper.restored", extra={"holds": restored, "grants": len(unposted)})
        if unposted:
            self.committer.submit(PostGrants(unposted, Ticket()))

    # -- changes of the catalog -----------------------------------------------------------------------

    def _changed(self, changes: Sequence[Change]) -> None:
        kinds = {change.kind for change in changes}
        accounts: set[str] = set()
        for change in changes:
            if change.account_id is not None and change.kind in _SCOPED_KINDS:
                accounts.add(change.account_id)
            if change.kind == "plans" and (change.action != "changed" or "budgets" in change.fields):
                accounts |= {account.id for account in self.directory.accounts()}
        if kinds & {"plans", "routes", "prices"}:
            self.directory.forget()
            self.gate.forget()
        for account_id in accounts:
            self.directory.forget(account_id)
            self.gate.forget(account_id)
        for account_id in sorted(accounts):
            self.scopes.refresh(account_id)
        if "prices" in kinds:
            self.directory.reload_prices()
            self.amend.price_unpriced()

    def _post_grant(self, grant: Grant) -> bool:
        book, _ = self.ledger.book(grant.account)
        if any(balance.grant_id == grant.id for balance in book.grants):
            return False
        ticket = Ticket()
        self.committer.submit(PostGrants([grant], ticket))
        ticket.wait()
        return True

    def _has_usage(self, account_id: str) -> bool:
        self.reports.fresh(account_id)
        spent = self.store.charged(account_id, from_us=0, to_us=2**62, project_id=None, key_ids=None)
        return spent.events > 0

    # -- upkeep ---------------------------------------------------------------------------------------

    def _touch_keys(self, used: dict[str, int]) -> None:
        self._used.update(used)

    def _save_last_used(self) -> None:
        used, self._used = self._used, {}
        self.catalog.touch_keys(used)

    def _maintain(self) -> None:
        rounds = 0
        while not self._closing.wait(MAINTAIN_S):
            rounds += 1
            try:
                self.holds.expire()
                if self._used and rounds % 4 == 0:
                    self._save_last_used()
                if rounds % _PURGE_EVERY == 0:
                    self.ledger.purge(self.clock.now_us())
            except Unavailable as exc:
                log.warning("tollkeeper.maintain.unavailable", extra={"reason": str(exc)})
            except TollkeeperError:
                log.exception("tollkeeper.maintain.failed")


def build(settings: Settings, *, clock: Clock | None = None) -> Installation:
    """Return a running installation of *settings*."""
    return Installation(settings, clock=clock)


def _open_usage(settings: Settings) -> UsageStore:
    from tollkeeper.adapters.clickhouse.store import ClickHouseUsageStore

    return ClickHouseUsageStore.open(
        settings.usage, memory_bytes_max=settings.usage_memory_bytes_max or None
    )


def _lock(directory: Path) -> IO[str]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / "lock", "a+", encoding="ascii")  # noqa: SIM115 - held until close
    except OSError as exc:
        raise Unavailable(
            f"The data directory {directory} cannot be written: {exc.strerror}. Give another one, or make room.",
        ) from exc
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise DataDirectoryInUse(
            f"The data directory {directory} is in use by process {owner}. "
            "Stop it, or ask it over HTTP with --url and --key.",
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
