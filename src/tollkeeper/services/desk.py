"""The desk: what a profile may ask of an installation. One per profile; see `profiles.base.Desk`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Key, KeyState, Limit, Plan, Route, Subscription
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.keys import StoredKey, hash_secret
from tollkeeper.domain.periods import duration_s
from tollkeeper.domain.standing import Session, Standing
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.gate.gate import Gate, Permit
from tollkeeper.ports import CatalogStore, Ledger
from tollkeeper.services.committer import AddCharges, Committer, Settle
from tollkeeper.services.directory import Directory
from tollkeeper.services.manage import Manage
from tollkeeper.services.report import Reports
from tollkeeper.services.sessions import Sessions
from tollkeeper.services.tickets import Ticket


class ProfileDesk:
    """Serves one profile. Blocking; any thread may call."""

    def __init__(
        self,
        profile: str,
        settings: Mapping[str, Any],
        *,
        catalog: CatalogStore,
        directory: Directory,
        gate: Gate,
        ledger: Ledger,
        committer: Committer,
        manage: Manage,
        reports: Reports,
        sessions: Sessions,
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
        session = self._sessions.verify(token)
        account = None if session is None else self._directory.account(session.account_id)
        return session if account is not None and account.active else None

    def entitlement(self, key: StoredKey) -> Entitlement | None:
        return self._directory.entitlement_of(key)

    def pass_limits(self, key: StoredKey, route: Route) -> Denial | None:
        permit = self._permit(key)
        return None if permit is None else self._gate.pass_limits(permit, route)

    def spend(self, account_id: str, name: str, limit: Limit, *, from_first: bool = False) -> Denial | None:
        denial = self._gate.spend(account_id, name, limit, from_first=from_first)
        if denial is None:
            # An empty work makes a commit, which takes the window with it: it must survive a crash.
            ticket = Ticket()
            self._committer.submit(AddCharges({}, ticket))
            ticket.wait()
        return denial

    def standing_of(self, account_id: str, name: str, limit: Limit) -> Standing:
        used, resets_at_us = self._gate.spent(account_id, name, limit)
        resets_at = None if resets_at_us is None else from_us(resets_at_us)
        return Standing(
            kind="limit",
            name=limit.name,
            unit=limit.unit,
            allowed=limit.amount,
            used=used,
            window_s=duration_s(limit.window),
            per_window=limit.amount,
            bucket=limit.bucket,
            starts_at=_window_start(limit, resets_at),
            resets_at=resets_at,
        )

    def record(self, key: StoredKey, route: Route, status: int) -> None:
        self._record(key.entry.account, key.entry.project or "", key.entry.id, route, status)

    def record_unkeyed(self, account_id: str, route: Route, status: int) -> None:
        self._record(account_id, "", "", route, status)

    def _record(self, account_id: str, project_id: str, key_id: str, route: Route, status: int) -> None:
        now_us = self._clock.now_us()
        record = Record(
            account_id, project_id, key_id, now_us, now_us, self._gate.new_id(now_us),
            0, 1, "", route.event_kind, route.method, route.path, status, "", "", None, 0, "", 0, 0, 0, 0, "",
            0, 0, 0, "free", "", {},
        )  # fmt: skip
        version = self._committer.scopes_version
        ticket = Ticket()
        self._committer.submit(
            Settle(
                record,
                self._directory.charges_of(record),
                ticket=ticket,
                counted=False,
                scopes_version=version,
                charges_of=self._directory.charges_of,
            )
        )
        ticket.wait()

    def line(self, key: StoredKey) -> Sequence[str]:
        return self._directory.line_of(key)

    def standings(self, key: StoredKey) -> list[Standing]:
        permit = self._permit(key)
        return [] if permit is None else standings_of(self._gate, permit, self._clock.now_us())

    def usage(self, query: UsageQuery) -> UsageReport:
        return self._reports.usage(query)

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

    def issue_key(self, key: Key) -> tuple[StoredKey, str]:
        issued = self._manage.issue_key(key, by_customer=True)
        assert issued.secret is not None
        return self._manage.stored_key(key.account, issued.entry.id), issued.secret

    def new_key_id(self) -> str:
        return str(uuid.uuid4())

    def set_key_state(self, key: StoredKey, state: KeyState) -> None:
        self._manage.set_key_state(key.entry.account, key.entry.id, state)

    def _permit(self, key: StoredKey) -> Permit | None:
        entitlement = self._directory.entitlement_of(key)
        return None if entitlement is None else self._gate.permit_of(entitlement)


def standings_of(gate: Gate, permit: Permit, now_us: int) -> list[Standing]:
    """Return where each counter of a key stands: its limits in the plan's order, its budgets, its credit."""
    states = gate.state_of(permit, now_us)
    limits = [scope.limit for scope in permit.entitlement.limits]
    budgets = permit.entitlement.budgets
    standings = []
    for index, state in enumerate(states):
        limit = limits[index] if index < len(limits) else None
        resets_at = None if state.resets_at_us is None else from_us(state.resets_at_us)
        starts_at = None if limit is None else _window_start(limit, resets_at)
        if len(limits) <= index < len(limits) + len(budgets) and resets_at is not None:
            starts_at = from_us(budgets[index - len(limits)].span_us(now_us)[0])
        kind = "budget"
        if limit is not None:
            kind = "concurrency" if limit.algorithm == "concurrency" else "limit"
        elif state.reason == "credit_exhausted":
            kind = "credit"
        standings.append(
            Standing(
                kind=kind,
                name=state.limit,
                unit=state.unit,
                allowed=state.allowed,
                used=state.used or 0,
                window_s=duration_s(limit.window) if limit is not None and kind == "limit" else None,
                per_window=limit.amount if limit is not None and kind == "limit" else None,
                bucket=None if limit is None else limit.bucket,
                starts_at=starts_at,
                resets_at=resets_at,
            )
        )
    return standings


def _window_start(limit: Limit, resets_at: datetime | None) -> datetime | None:
    """Return when a fixed window began; the others have no start that all of their requests share."""
    if resets_at is None or limit.algorithm != "fixed":
        return None
    return resets_at - timedelta(seconds=duration_s(limit.window))
