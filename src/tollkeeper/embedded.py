"""
Tollkeeper inside your own process.

    toll = Tollkeeper.open("./data")
    app = toll.middleware(app)

Everything here may be called from any thread. What waits (usage, ingest) blocks: on an event loop, use
`asyncio.to_thread`; the middleware never blocks the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tollkeeper.catalog.changes import Applied, IssuedKey
from tollkeeper.catalog.manage import Manage
from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Key
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Event, Record
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.budget_top_ups import PostedTopUp, TopUpRequest
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.maintenance.reconcile import Verdict
from tollkeeper.settings import load

if TYPE_CHECKING:
    from tollkeeper.asgi import Middleware
    from tollkeeper.http.asgi_types import ASGIApp
    from tollkeeper.meter.ingest import IngestResult


class Tollkeeper:
    """One installation on a data directory. Close it, or use it as a context manager."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation

    @classmethod
    def open(cls, data_dir: str | None = None, *, clock: Clock | None = None, **settings: Any) -> Tollkeeper:
        """
        Open or create the installation in *data_dir*; other settings are those of `settings.Settings`.

        Raises:
            BadParameter: A setting has a bad value.
            DataDirectoryInUse: Another process has the directory.
            Unavailable: A store cannot be opened.
        """
        return cls(Installation(load({"data_dir": data_dir, **settings}), clock=clock))

    # -- one request ----------------------------------------------------------------------------------

    def admit(self, api_key: str, method: str, path: str, expected: Usage = NO_USAGE) -> Admission | Denial:
        """
        Decide one request, in microseconds. Settle or void the admission; dropped, it is voided.

        Args:
            expected: The most that the request may use, so that no budget is passed.
        """
        return self.installation.holds.admit(api_key, method, path, expected)

    def settle(self, admission: Admission, outcome: Outcome = Outcome(), *, wait: bool = False) -> Record:
        """
        Book what an admitted request used; with *wait*, return only when it is durable.

        Raises:
            HoldEnded: It was ended before.
            Unavailable: The ledger cannot be written.
        """
        future = CommitFuture() if wait else None
        record = self.installation.holds.settle(admission, outcome, future)
        if future is not None:
            future.wait()
        return record

    async def settle_durably(self, admission: Admission, outcome: Outcome = Outcome()) -> Record:
        """Book what an admitted request used and return once it is durable, without blocking the loop."""
        future = CommitFuture(asyncio.get_running_loop())
        record = self.installation.holds.settle(admission, outcome, future)
        await future.committed()
        return record

    def void(self, admission: Admission) -> None:
        """End an admission as if the request never was. A repeat changes nothing."""
        self.installation.holds.void(admission)

    def middleware(self, app: ASGIApp, **options: Any) -> Middleware:
        """Return *app* behind the gate: see `asgi.Middleware` for the options."""
        from tollkeeper.asgi import Middleware

        return Middleware(app, self, **options)

    # -- metering and usage ---------------------------------------------------------------------------

    def record(self, events: Sequence[Event | Mapping[str, Any]]) -> IngestResult:
        """Book meter events that did not pass the gate. A repeat of an event counts once."""
        from tollkeeper.meter.decode import decode_events

        now_us = self.installation.clock.now_us()
        return self.installation.ingest.take(decode_events(events, now_us=now_us))

    def usage(self, query: UsageQuery) -> UsageReport:
        """Answer a usage query; the answer contains everything that was durable before the call."""
        return self.installation.reports.usage(query)

    # -- set-up and maintenance -----------------------------------------------------------------------

    @property
    def manage(self) -> Manage:
        """The catalog: put, get, list, delete entries; issue and rotate keys."""
        return self.installation.manage

    def issue_key(self, entry: Key) -> IssuedKey:
        """Make a key; its secret is in the answer and nowhere else."""
        return self.manage.issue_key(entry)

    def top_up(
        self,
        account: str,
        budget: str,
        amount: str | int,
        *,
        id: str,
        until_used: bool = False,
        plan: str | None = None,
        subscription: str | None = None,
        key: str | None = None,
        project: str | None = None,
    ) -> PostedTopUp:
        """
        Add to a budget once: to its running period, or with *until_used* until it is used. A repeat adds nothing.

        Args:
            budget: Its id, or its name in a plan; *plan*, *subscription*, *key* and *project* say which of several.
            amount: In the budget's unit: money as text, `"5.00"`; others as `"100"` or 100.
            id: Names the top-up within its account.

        Raises:
            NotFound, BadParameter, Conflict, IdempotencyConflict, Unavailable: See `BudgetTopUps.post`.
        """
        request = TopUpRequest(
            id=id,
            amount=amount,
            until_used=until_used,
            plan=plan,
            subscription=subscription,
            key=key,
            project=project,
        )
        return self.installation.top_ups.post(account, budget, request)

    def apply(self, toml: str, *, dry_run: bool = False) -> Applied:
        """Set up what a declarative file says; a repeat changes nothing."""
        from tollkeeper.catalog.declaration import apply_declaration, parse_declaration

        return apply_declaration(parse_declaration(toml), self.manage, dry_run=dry_run)

    def verify(self) -> Verdict:
        """Recompute counter = ledger = sum of events."""
        return self.installation.reconcile.verify()

    def rebuild(self) -> Mapping[str, int]:
        """Rebuild rollups and the id index from the records; return rows written per table."""
        return self.installation.reconcile.rebuild()

    def close(self) -> None:
        """Commit and relay what is queued, then release everything. A repeat changes nothing."""
        self.installation.close()

    def __enter__(self) -> Tollkeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
