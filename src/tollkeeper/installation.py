"""
One installation of Tollkeeper: its stores, threads and services, put together once (`build`).

`Installation` is what library, server and command line all drive; `tollkeeper.Tollkeeper` is its friendly
face inside somebody's process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlparse

import msgspec

from tollkeeper import forks
from tollkeeper.adapters.batch_marks import FileMarks
from tollkeeper.adapters.jwt_tokens import JwtTokens
from tollkeeper.adapters.lazy_store import LazyUsageStore
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.database import migrate, open_engine
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.operator_keys import SqlOperatorKeys
from tollkeeper.adapters.sql.ownership import Ownership
from tollkeeper.adapters.sql.webhooks import SqlWebhooks
from tollkeeper.adapters.webhook_sender import WebhookSender
from tollkeeper.alerts.webhooks import Webhooks
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.manage import Change, Manage
from tollkeeper.catalog.sessions import Sessions, check_login
from tollkeeper.clock import Clock, SystemClock
from tollkeeper.domain.bookings import PendingRow
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.entitlements import fingerprint_of
from tollkeeper.errors import DataDirectoryInUse, StoresMismatch, Unavailable
from tollkeeper.gate.gate import Gate
from tollkeeper.gate.gate import Settings as GateSettings
from tollkeeper.ledger.budget_scopes import NOTHING_MADE, Made, ScopeKeeper
from tollkeeper.ledger.commit_future import CommitFuture, finish
from tollkeeper.ledger.committer import ChangeScopes, Committer, PostGrants
from tollkeeper.ledger.holds import Holds
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ledger.pending import Pending, decode_keys, key_of
from tollkeeper.ledger.relay import Relay, keys_of, read_back
from tollkeeper.maintenance.reconcile import Reconcile
from tollkeeper.meter.amend import Amend
from tollkeeper.meter.ingest import Ingest
from tollkeeper.ports import UsageStore
from tollkeeper.profile_context import LocalProfileContext
from tollkeeper.profiles import switches
from tollkeeper.profiles.base import Profile
from tollkeeper.settings import LEDGER_FILE, USAGE_DIRECTORY, Settings
from tollkeeper.usage.report import Reports

MAINTAIN_S: Final = 0.5
NEW_LEDGER_WAITS_S: Final = 10.0
"""How long the start with a new ledger waits for a usage store that was used before, or is on a server."""
_MAINTAIN_ENDS_S: Final = 30.0
_SAVE_EVERY: Final = 4
_PRICE_EVERY: Final = 20
_PURGE_EVERY: Final = 600
_CHECKS_A_ROUND: Final = 200
_DUE_S_MAX: Final = 60.0
"""The longest wait before a budget that could not be brought into force is tried again."""
_SECRET_BYTES: Final = 32
_SECRET: Final = re.compile(rb"[0-9a-f]{%d}" % (_SECRET_BYTES * 2))
_SCOPED_KINDS: Final = frozenset({"accounts", "projects", "subscriptions", "keys", "budgets"})

log = logging.getLogger("tollkeeper")


class Installation:
    """
    Everything that one process runs. Close it to commit what is queued.

    Raises:
        BadParameter: `profile_settings` names no profile, or no setting of it, or a value it cannot have;
            `session_jwks` has no issuer and audience, or comes over plain http.
        DataDirectoryInUse: Another process has the data directory.
        Forked: This process was forked from one that has an installation open.
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
    ) -> None:
        """
        Args:
            store: In place of the one that the settings name, for tests.
            store_is_shared: Whether other installations use *store* too, which then cannot be told to be the ledger's
                own. Never so in production: no setting says it.
        """
        self.settings = settings
        self.clock = clock or SystemClock()
        self._closing = threading.Event()
        self._opened = ExitStack()
        try:
            self._open(store, store_is_shared)
        except BaseException:
            self._opened.close()
            raise

    def _open(self, store: UsageStore | None, store_is_shared: bool) -> None:
        settings = self.settings
        self._switches = switches(settings.profile_settings)
        check_login(settings.session_jwks, settings.session_issuer, settings.session_audience)
        forks.check_not_forked()
        self._lock_file = _lock(Path(settings.data_dir))
        self._opened.callback(self._lock_file.close)
        _keep_private(settings)
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
        self.pairing = Pairing(self.ledger, self.clock, shared=store_is_shared)
        self.store: UsageStore = store or self._open_in_background()
        self._opened.callback(self.store.close)
        self._check_pair()
        self.directory = Directory(self.catalog, self.ledger, self.clock)
        self.gate = Gate(
            self.directory,
            self.clock,
            GateSettings(settings.unknown_route, settings.unknown_price, settings.hold_s),
        )
        self.pending = Pending(read_back(self.ledger), self.clock.now_us)
        self.committer = Committer(self.ledger, self.gate, self.pending, self.clock)
        self.relay = Relay(self.ledger, self.store, self.pending, self._must_compare)
        self.committer.on_commit = self.relay.notify
        self.relay.on_delivered = self._delivered
        self.committer.on_last_used = self._touch_keys
        self.committer.before_scopes_change = self._scopes_changed
        self.directory.must_wait = self._must_wait
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
        self.reports = Reports(
            self.store,
            self.ledger,
            self.relay,
            self.pending,
            self.committer,
            self.clock,
            lambda: self.pairing.is_complete,
        )
        self.amend = Amend(self.directory, self.store, self.pending, self.committer, self.reports, self.clock)
        self.scopes = ScopeKeeper(
            self.directory, self.ledger, self.store, self.committer, self.relay, self.gate, self.clock
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
        )
        self.manage = Manage(
            self.catalog,
            self.clock,
            on_change=self._changed,
            on_begin=self._change_begins,
            on_doubt=self._doubted,
            post_grant=self._post_grant,
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
            WebhookSender(allow_private=settings.webhook_allow_private),
            self.ledger,
            self.directory,
            self.manage,
            self.clock,
            root=_secret(Path(settings.data_dir), "webhook.secret").encode(),
        )
        self.committer.on_charged = self.webhooks.charged
        self.sessions = Sessions(
            self.clock,
            _secret(Path(settings.data_dir), "session.secret"),
            JwtTokens(),
            jwks=settings.session_jwks,
            issuer=settings.session_issuer,
            audience=settings.session_audience,
            account_claim=settings.session_account_claim,
        )
        self._used: dict[str, int] = {}
        self._used_lock = threading.Lock()
        self._grants_posted = CommitFuture()
        self._due_lock = threading.Lock()
        self._due_accounts: set[str] = set()
        self._due_failures = 0
        self._due_from_s = 0.0
        self._begun = threading.local()
        """`seq`: the newest outbox row when the change that this thread makes to the catalog began."""
        self._waiting: set[str] = set()
        """Accounts with new keys that must not be admitted before their budgets are in force."""
        self._checked: set[str] | None = set()
        """Accounts whose budgets were compared with the catalog since the start; None when all were."""
        self._due_prices = True
        self._unchecked: list[str] = []
        self._in_doubt = True
        self._recover()
        self._opened.callback(self._save_last_used)
        self.committer.start()
        self.relay.start()
        self._opened.callback(self.relay.close)
        self._opened.callback(self.committer.close)
        # Closed before the committer, through which it makes keys inactive.
        self._opened.callback(self.webhooks.close)
        self.webhooks.start()
        self.relay.notify()
        self._maintainer = threading.Thread(target=self._maintain, name="tollkeeper-maintain", daemon=True)
        self._maintainer.start()
        ours = [
            part
            for name, part in vars(self).items()
            if name not in ("settings", "clock", "store")
            and hasattr(part, "__dict__")
            and type(part).__module__.startswith("tollkeeper.")
        ]
        forks.refuse_in_children(self, [*ours, self.store])

    def left_to_parent(self) -> None:
        """In a forked child: give up the copy of the directory's lock, which would outlive the parent's."""
        self._lock_file.close()

    # -- ledger and usage store -----------------------------------------------------------------------

    def _open_in_background(self) -> LazyUsageStore:
        """Open the usage store beside the start; it is nobody's to use before it was compared with the ledger."""
        settings = self.settings

        def open_() -> UsageStore:
            store = _open_usage(settings)
            try:
                self.pairing.check(store)
            except BaseException:
                store.close()
                raise
            return store

        if others := _installations_at(settings):
            # Told by a file: who gave the wrong directory need not wait for the engine to hear of it.
            self.pairing.refuse_foreign(others)
        return LazyUsageStore(open_)

    def _check_pair(self) -> None:
        """Raise `StoresMismatch` at once where that can be told soon; else the usage store says it when it is open."""
        if isinstance(self.store, LazyUsageStore):
            # A ledger that never relayed anything may be beside a store with a past. Where there is none yet, the
            # first start waits for nothing.
            if not self.ledger.past().last.batch and _may_be_used(self.settings.usage):
                self.store.check(NEW_LEDGER_WAITS_S)
            return
        try:
            self.pairing.check(self.store)
        except StoresMismatch:
            raise
        except Unavailable as exc:
            # The relay tries again before it delivers anything.
            log.warning("tollkeeper.pairing.unavailable", extra={"reason": str(exc)})

    def _must_compare(self) -> bool:
        if isinstance(self.store, LazyUsageStore):
            self.store.wait()
        return self.pairing.must_compare(self.store)

    def _delivered(self) -> None:
        self.committer.look_at_waiting()
        if self.pairing.look_is_due:
            with self.relay.exclusive():
                self.pairing.look_again(self.store)

    def context(self, profile: Profile) -> LocalProfileContext:
        """Return what *profile* asks, with the switches that this deployment sets."""
        return LocalProfileContext(
            profile.name,
            self._switches.get(profile.name, profile.settings),
            catalog=self.catalog,
            directory=self.directory,
            gate=self.gate,
            ledger=self.ledger,
            committer=self.committer,
            manage=self.manage,
            reports=self.reports,
            sessions=self.sessions,
            clock=self.clock,
        )

    def close(self) -> None:
        """Commit and relay what is queued, then release stores and directory. A repeat changes nothing."""
        forks.closed(self)
        self._closing.set()
        self._maintainer.join(_MAINTAIN_ENDS_S)
        # In the reverse of the order of opening; what fails does not keep the rest open.
        self._opened.pop_all().close()

    # -- start ----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Take up where the last process ended: what it had committed but not relayed, and open holds."""
        after_seq = 0
        while rows := self.ledger.pending(after_seq):
            self.pending.restored(
                (row.seq, keys, row.record_count, row.committed_at_us)
                for row in rows
                if (keys := self._keys(row)) is not None
            )
            after_seq = rows[-1].seq
        self.committer.look_at_waiting()
        # Committed by an earlier process, and due in the usage store before anything is compared with it.
        self.committer.outbox_seq = after_seq
        records = self.pending.record_count
        self.pending.hold(key_of(hold.account_id, hold.hold_id) for hold in self.ledger.open_holds())
        restored = self.holds.restore()
        unposted = self.ledger.unposted_grants()
        if unposted:
            self.committer.submit(PostGrants(unposted, self._grants_posted))
        else:
            finish([self._grants_posted])
        if records or restored or unposted:
            log.info(
                "tollkeeper.restored",
                extra={"records": records, "holds": restored, "grants": len(unposted)},
            )

    def _keys(self, row: PendingRow) -> list[str] | None:
        """Return the ids that an outbox row takes, or None when it was set aside."""
        try:
            return decode_keys(row.keys)
        except msgspec.MsgspecError:
            # Damaged, or written before rows said their ids: the records say them too.
            table = self.relay.read(row.seq, self.ledger.entries([row.seq])[row.seq])
            return None if table is None else keys_of(table)

    # -- changes of the catalog -----------------------------------------------------------------------

    def _changed(self, changes: Sequence[Change]) -> None:
        kinds = {change.kind for change in changes}
        accounts: set[str] = set()
        for change in changes:
            if change.account_id is not None and change.kind in _SCOPED_KINDS:
                accounts.add(change.account_id)
            if change.kind == "plans" and (change.action != "changed" or "budgets" in change.fields):
                accounts |= {account.id for account in self.directory.accounts()}
        made = _made_by(changes, getattr(self._begun, "seq", -1))
        if made.keys:
            # First, as a key whose secret was brought may be used before this returns.
            self._waiting |= accounts
        if kinds & {"plans", "routes", "prices"}:
            self.directory.forget()
            self.gate.forget()
        for account_id in accounts:
            self.directory.forget(account_id)
            self.gate.forget(account_id)
        self.webhooks.changed(accounts, hooks="webhooks" in kinds)
        try:
            self._bring_into_force(accounts, made)
        except Unavailable as exc:
            if not made.keys:
                raise
            # A secret is shown once, so the answer must have it. Until its budgets are in force, the key is refused.
            with self._due_lock:
                self._waiting |= accounts & self._due_accounts
            log.warning("tollkeeper.budgets.deferred", extra={"reason": str(exc), "keys": len(made.keys)})
        if "prices" in kinds:
            self.directory.reload_prices()
            self._price_unpriced()

    def _doubted(self) -> None:
        """A change of the catalog may have taken place: read it anew, and have upkeep bring it into force."""
        self.directory.forget()
        self.gate.forget()
        self._checked = set()
        self._in_doubt = True
        self.webhooks.changed((), hooks=True)

    def _change_begins(self) -> None:
        self._begun.seq = self.committer.outbox_seq

    def _must_wait(self, account_id: str) -> bool:
        """Return whether keys of an account must not be admitted without a budget that is not in force yet."""
        checked = self._checked
        return account_id in self._waiting or (checked is not None and account_id not in checked)

    def _bring_into_force(self, accounts: Iterable[str], made: Made = NOTHING_MADE) -> None:
        """Make the budgets of *accounts* count as the catalog says; what fails is tried again by upkeep."""
        left = sorted(accounts)
        try:
            while left:
                self.scopes.refresh(left[-1], made)
                self._in_force(left.pop())
        finally:
            with self._due_lock:
                self._due_accounts.update(left)

    def _in_force(self, account_id: str) -> None:
        """Note that the budgets of an account are those of its catalog."""
        self._waiting.discard(account_id)
        if self._checked is not None:
            self._checked.add(account_id)

    def _price_unpriced(self) -> None:
        """Price what had no price when it came; what fails is tried again by upkeep."""
        self._due_prices = True
        try:
            self.amend.price_unpriced()
            self._due_prices = False
        except Unavailable as exc:
            # The price is in force. That old events wait for the usage store is no matter of who set it.
            log.warning("tollkeeper.prices.unavailable", extra={"reason": str(exc)})

    def _scopes_changed(self, change: ChangeScopes) -> None:
        for account_id in change.accounts:
            self.directory.scopes_changed(account_id)
            self.gate.begin_budgets(account_id, [m for m in change.members if m[0].account_id == account_id])

    def _post_grant(self, grant: Grant) -> bool:
        book, _ = self.ledger.book(grant.account)
        if any(balance.grant_id == grant.id for balance in book.grants):
            return False
        future = CommitFuture()
        self.committer.submit(PostGrants([grant], future))
        future.wait()
        return True

    def _has_usage(self, account_id: str) -> bool:
        self.reports.fresh(account_id)
        spent = self.store.charged(account_id, from_us=0, to_us=2**62, project_id=None, key_ids=None)
        return spent.events > 0

    # -- upkeep ---------------------------------------------------------------------------------------

    def _touch_keys(self, used: dict[str, int]) -> None:
        with self._used_lock:
            self._used.update(used)

    def _save_last_used(self) -> None:
        # Also of requests that were never settled, so that no commit took them.
        self._touch_keys(self.gate.take_last_used())
        with self._used_lock:
            used, self._used = self._used, {}
        if not used:
            return
        try:
            self.catalog.touch_keys(used)
        except Unavailable as exc:
            # Not worth failing for: the next round has later instants for the keys that are in use.
            log.warning("tollkeeper.last_used.unavailable", extra={"reason": str(exc), "keys": len(used)})
            with self._used_lock:
                self._used = {**used, **self._used}

    def _maintain(self) -> None:
        rounds = 0
        while not self._closing.wait(MAINTAIN_S):
            rounds += 1
            try:
                self.holds.expire()
                self.gate.evict_idle()
                if rounds % _SAVE_EVERY == 0:
                    self._ownership.keep()
                    self._save_last_used()
                self._retry_deferred(rounds)
                if rounds % _PURGE_EVERY == 0:
                    self.pairing.maintain()
                    while self.ledger.purge(self.clock.now_us()) and not self._closing.is_set():
                        pass
                    self.webhooks.purge()
            except Unavailable as exc:
                log.warning("tollkeeper.maintain.unavailable", extra={"reason": str(exc)})
            except Exception:
                # Whatever it is, holds must go on expiring.
                log.exception("tollkeeper.maintain.failed")

    def _retry_deferred(self, rounds: int) -> None:
        """Do what was left undone when a store failed, or when the last process ended between two steps."""
        if self._grants_posted.ended and self._grants_posted.error is not None:
            self._grants_posted = CommitFuture()
            self.committer.submit(PostGrants(self.ledger.unposted_grants(), self._grants_posted))
        if self._in_doubt:
            # Lowered first, as it may be raised meanwhile.
            self._in_doubt = False
            try:
                self.directory.reload_prices()
                self._unchecked = [account.id for account in self.directory.accounts()]
            except Unavailable:
                self._in_doubt = True
                raise
            self._due_prices = True
        for _ in range(min(_CHECKS_A_ROUND, len(self._unchecked))):
            account_id = self._unchecked.pop()
            if self._is_due(account_id):
                with self._due_lock:
                    self._due_accounts.add(account_id)
                if self._checked is not None:
                    self._waiting.add(account_id)
            elif self._checked is not None:
                self._checked.add(account_id)
        if not self._unchecked and not self._in_doubt:
            self._checked = None
        self._bring_due_into_force()
        if self._due_prices and rounds % _PRICE_EVERY == 1:
            self._price_unpriced()

    def _bring_due_into_force(self) -> None:
        """Try again what failed, less and less often: each try keeps the relay for the time of its sums."""
        now_s = time.monotonic()
        if now_s < self._due_from_s:
            return
        with self._due_lock:
            due, self._due_accounts = self._due_accounts, set()
        self._due_failures += 1
        try:
            self._bring_into_force(due)
            self._due_failures = 0
        finally:
            self._due_from_s = now_s + min(_DUE_S_MAX, MAINTAIN_S * 2**self._due_failures)

    def _is_due(self, account_id: str) -> bool:
        """Return whether the budgets in force are not those of the catalog: a crash came between."""
        wanted = self.directory.wanted_scopes(account_id)
        active = self.ledger.scopes(account_id)
        return {counter_id: fingerprint_of(scope) for counter_id, (scope, _) in wanted.items()} != {
            counter_id: fingerprint for counter_id, (fingerprint, _) in active.items()
        }


def build(settings: Settings, *, clock: Clock | None = None) -> Installation:
    """Return a running installation of *settings*."""
    return Installation(settings, clock=clock)


def _made_by(changes: Iterable[Change], after_seq: int) -> Made:
    """Return what *changes* made, after outbox row *after_seq* was written."""
    made = [change for change in changes if change.action == "created"]
    return Made(
        frozenset(change.id for change in made if change.kind == "accounts"),
        frozenset((str(change.account_id), change.id) for change in made if change.kind == "projects"),
        frozenset(change.id for change in made if change.kind == "keys"),
        after_seq,
    )


def _open_usage(settings: Settings) -> UsageStore:
    from tollkeeper.adapters.clickhouse.readers import QueryLimits
    from tollkeeper.adapters.clickhouse.store import ClickHouseUsageStore

    return ClickHouseUsageStore.open(
        settings.usage,
        memory_bytes_max=settings.usage_memory_bytes_max or None,
        limits=QueryLimits(
            settings.usage_query_s_max,
            settings.usage_query_memory_bytes_max,
            settings.usage_query_groups_max,
        ),
    )


def _installations_at(settings: Settings) -> list[str]:
    """Return whose the usage store in a directory is, without loading its engine."""
    directory = _usage_directory(settings.usage)
    if directory is None or not directory.exists():
        return []
    try:
        return sorted(FileMarks(directory).all())
    except OSError as exc:
        # Where that cannot be read, no usage store can be opened, which stops no request.
        log.warning("tollkeeper.pairing.unavailable", extra={"reason": str(exc)})
        return []


def _usage_directory(url: str) -> Path | None:
    return Path(urlparse(url).path) if url.startswith("chdb:") else None


def _may_be_used(url: str) -> bool:
    """Return whether a usage store may have records already: not where there is no directory yet."""
    directory = _usage_directory(url)
    return directory is None or (directory.is_dir() and any(directory.iterdir()))


def _secret(directory: Path, name: str) -> str:
    """Return a secret of this installation, in a file that only its owner reads; made at first start."""
    path = directory / name
    if not path.exists():
        made = path.with_suffix(".new")
        try:
            with open(made, "wb", buffering=0, opener=_private) as file:
                file.write(secrets.token_hex(_SECRET_BYTES).encode())
                # A power cut after the rename must not leave an empty file under the name.
                os.fsync(file.fileno())
            made.rename(path)
            _sync_directory(directory)
        except OSError as exc:
            raise _unwritable(directory, exc) from exc
    try:
        found = path.read_bytes()
    except OSError as exc:
        raise Unavailable(f"The secret {path} cannot be read: {exc.strerror}.") from exc
    # One that was cut off could be guessed, and what an empty one signs anybody can sign.
    if not _SECRET.fullmatch(found):
        raise Unavailable(
            f"The secret {path} is damaged: it must be {_SECRET_BYTES * 2} hexadecimal digits. "
            "Put back a copy of the file, or remove it to have a new one made, "
            "under which what the old one signed is no longer valid."
        )
    return found.decode("ascii")


def _private(name: str, flags: int) -> int:
    """Open a file of the data directory, for its owner only whatever the directory's mode and the umask are."""
    return os.open(name, flags, 0o600)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_private(settings: Settings) -> None:
    """
    Make what the stores will write to for its owner only.

    SQLite gives its journals the mode of the database, and nobody else enters the directory of the usage store. What
    is there already keeps its mode: its owner may have shared it.
    """
    directory = Path(settings.data_dir)
    try:
        if not settings.ledger_url:
            with open(directory / LEDGER_FILE, "ab", opener=_private):
                pass
        if not settings.usage_url:
            (directory / USAGE_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise _unwritable(directory, exc) from exc


def _lock(directory: Path) -> IO[bytes]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered, so that closing never has something left to write to a full disk.
        file = open(directory / "lock", "ab+", buffering=0, opener=_private)  # noqa: SIM115 - held until close
    except OSError as exc:
        raise _unwritable(directory, exc) from exc
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise DataDirectoryInUse(
            f"The data directory {directory} is in use by process {owner}. "
            "Stop it, or ask it over HTTP with --url and --key.",
        ) from None
    except OSError as exc:
        file.close()
        raise _unwritable(directory, exc) from exc
    return file


def _unwritable(directory: Path, exc: OSError) -> Unavailable:
    return Unavailable(
        f"The data directory {directory} cannot be written: {exc.strerror}. Give another one, or make room."
    )
