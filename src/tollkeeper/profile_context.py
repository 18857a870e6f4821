"""
The `ProfileContext` of an installation: the reads and writes that one profile may use.

It binds every call to its profile: keys of another profile do not exist here. It is not a service: it holds no
state and no rules, and passes each call on to the room that owns it (catalog, gate, ledger, usage). The methods'
contracts are those of `profiles.base.ProfileContext`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.manage import Manage
from tollkeeper.catalog.sessions import AccountSessions
from tollkeeper.clock import Clock
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key, KeyState, Limit, Plan, Route, Subscription
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.keys import StoredKey, hash_secret
from tollkeeper.domain.limit_status import LimitStatus, Session
from tollkeeper.domain.meter import free_record, refused_record
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.gate.gate import CompiledKey, CountedCall, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import AddCharges, Settle
from tollkeeper.ledger.committer import Committer
from tollkeeper.ports import CatalogStore, LedgerReader
from tollkeeper.profiles.toolkit import ACCOUNT_ZONE
from tollkeeper.usage.report import Reports


class LocalProfileContext:
    """
    The context of one profile over the installation of this process.

    All methods block; any thread may call them. Keys are read from the directory in memory; balances, plans and
    subscriptions from their stores. A write is durable when its method returns.

    Args:
        profile: The profile's name.
        settings: All settings of the profile, checked.
    """

    def __init__(
        self,
        profile: str,
        settings: Mapping[str, Any],
        *,
        catalog: CatalogStore,
        directory: Directory,
        gate: Gate,
        ledger: LedgerReader,
        committer: Committer,
        manage: Manage,
        reports: Reports,
        sessions: AccountSessions,
        clock: Clock,
    ) -> None:
        self.profile = profile
        self.settings = settings
        self._catalog = catalog
        self._directory = directory
        self._gate = gate
        self._ledger = ledger
        self._committer = committer
        self._manage = manage
        self._reports = reports
        self._sessions = sessions
        self._clock = clock

    def find_key(self, secret: str) -> StoredKey | None:
        stored = self._directory.key_by_hash(hash_secret(secret)) if secret else None
        if stored is None or stored.entry.profile != self.profile or stored.entry.role != "consumption":
            return None
        return stored

    def find_management_key(self, secret: str) -> StoredKey | None:
        stored = self._directory.key_by_hash(hash_secret(secret)) if secret else None
        return stored if stored is not None and stored.entry.role == "management" else None

    def session(self, token: str) -> Session | None:
        session = self._sessions.find(token)
        return None if isinstance(session, Denial) else session

    def entitlement(self, key: StoredKey) -> Entitlement | None:
        return self._directory.entitlement_of(key)

    def pass_limits(self, key: StoredKey, route: Route) -> Denial | None:
        counted = self.count_call(key, route)
        return counted if isinstance(counted, Denial) else None

    def count_call(self, key: StoredKey, route: Route) -> Denial | tuple[CountedCall, ...]:
        compiled_key = self._compiled_key(key)
        return () if compiled_key is None else self._gate.pass_limits(compiled_key, route)

    def spend(
        self, account_id: str, name: str, limit: Limit, *, from_first: bool = False
    ) -> Denial | CountedCall:
        counted = self._gate.keyless.spend(account_id, name, limit, from_first=from_first)
        if isinstance(counted, CountedCall):
            self._save_windows()
        return counted

    def give_back(self, counted: CountedCall | tuple[CountedCall, ...]) -> None:
        if isinstance(counted, CountedCall):
            self._gate.keyless.give_back(counted)
            self._save_windows()
            return
        for call in counted:
            self._gate.keyless.give_back(call)

    def _save_windows(self) -> None:
        # A task without charges makes a commit, and each commit saves the changed windows: they must survive a crash.
        future = CommitFuture()
        self._committer.submit(AddCharges({}, future))
        future.wait()

    def limit_status_of(self, account_id: str, name: str, limit: Limit) -> LimitStatus:
        return self._gate.keyless.status(account_id, name, limit)

    def record(self, key: StoredKey, route: Route, status: int, denial: Denial | None = None) -> None:
        self._record(key.entry.account, key.entry.project or "", key.entry.id, route, status, denial)

    def record_unkeyed(
        self, account_id: str, route: Route, status: int, denial: Denial | None = None
    ) -> None:
        self._record(account_id, "", "", route, status, denial)

    def _record(
        self, account_id: str, project_id: str, key_id: str, route: Route, status: int, denial: Denial | None
    ) -> None:
        now_us = self._clock.now_us()
        id_ = self._gate.new_id(now_us)
        record = free_record(
            account_id, project_id, key_id, now_us, id_, route, route.method, route.path, status
        )
        if denial is not None:
            record = refused_record(record, denial)._replace(status=status)
        version = self._committer.scopes_version
        future = CommitFuture()
        charges = self._directory.charges_of(record)
        self._committer.book(Settle(record, charges, version, counted=False, future=future))
        future.wait()

    def rotation_chain(self, key: StoredKey) -> Sequence[str]:
        return self._directory.rotation_chain_of(key)

    def time_zone(self, account_id: str) -> str:
        stated = str(self.settings.get("time_zone", ACCOUNT_ZONE))
        if stated != ACCOUNT_ZONE:
            return stated
        account = self._directory.account(account_id)
        return "UTC" if account is None else account.time_zone

    def limit_statuses(self, key: StoredKey) -> list[LimitStatus]:
        compiled_key = self._compiled_key(key)
        if compiled_key is None:
            return []
        return self._gate.limit_statuses(compiled_key, self._clock.now_us())

    def usage(self, query: UsageQuery) -> UsageReport:
        report = self._reports.usage(query)
        if report.lacks_detail:
            raise Unavailable(
                "The usage answer needs single events that have expired (retention): ask for a later time."
            )
        if not report.complete:
            # A dialect cannot say that events are missing, and its client would go on spending.
            raise Unavailable(
                "The usage answer would lack acknowledged requests. Try again shortly; /readyz says why."
            )
        return report

    def balance_nanos(self, account_id: str) -> int:
        return self._ledger.book(account_id)[0].balance_nanos(self._clock.now())

    def top_ups_nanos(self, account_id: str) -> int:
        return sum(grant.amount_nanos for grant in self._ledger.book(account_id)[0].grants)

    def keys(self, account_id: str) -> list[StoredKey]:
        mine = [
            stored
            for stored in self._directory.keys_of(account_id)
            if stored.entry.profile == self.profile and stored.entry.role == "consumption"
        ]
        return sorted(mine, key=lambda stored: (-stored.created_at_us, stored.entry.id))

    def key(self, key_id: str) -> StoredKey | None:
        stored = self._directory.key(key_id)
        if stored is None or stored.entry.profile != self.profile or stored.entry.role != "consumption":
            return None
        return stored

    def subscriptions(self, account_id: str) -> list[Subscription]:
        return cast("list[Subscription]", list(self._catalog.entries("subscriptions", account_id)))

    def plans(self) -> list[Plan]:
        return cast("list[Plan]", list(self._catalog.entries("plans")))

    def issue_key(self, key: Key, by: Customer) -> tuple[StoredKey, str]:
        issued = self._manage.issue_key(key, by=by)
        assert issued.secret is not None
        return self._manage.stored_key(key.account, issued.entry.id), issued.secret

    def new_key_id(self) -> str:
        return str(uuid.uuid4())

    def set_key_state(self, key: StoredKey, state: KeyState, by: Customer) -> None:
        self._manage.set_key_state(key.entry.account, key.entry.id, state, by=by)

    def _compiled_key(self, key: StoredKey) -> CompiledKey | None:
        return self._gate.compiled_key_of(lambda: self._directory.entitlement_of_id(key.entry.id))
