"""
Tollkeeper inside your own process.

    toll = Tollkeeper.open("./data")
    app = toll.middleware(app)

Everything here may be called from any thread. What waits (usage, ingest) blocks: on an event loop, use
`asyncio.to_thread`; the middleware never blocks the loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tollkeeper import greenlets
from tollkeeper.catalog.changes import Applied, Change, IssuedKey
from tollkeeper.catalog.manage import Manage
from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Key
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.event_pages import EventPage, EventQuery
from tollkeeper.domain.events import Event, Record
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keyless import Keyless, check_keyless
from tollkeeper.domain.matching import NO_TAGS
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.usage import UsageQuery, UsageReport, quantities_as_text
from tollkeeper.gate.gate import Admission
from tollkeeper.http.control import open_control
from tollkeeper.installation import Installation
from tollkeeper.ledger.budget_top_ups import PostedTopUp, TopUpRequest
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.maintenance.backups import BackupTaken
from tollkeeper.maintenance.reconcile import Verdict
from tollkeeper.settings import load

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from tollkeeper import asgi, wsgi
    from tollkeeper.api.key_status import KeyStatus
    from tollkeeper.http.asgi_types import ASGIApp
    from tollkeeper.http.mounted import MountedApi
    from tollkeeper.meter.adjustments import Adjusted
    from tollkeeper.meter.ingest import IngestResult
    from tollkeeper.meter.price_preview import PreviewRow
    from tollkeeper.restoring import Restored


class Tollkeeper:
    """One installation on a data directory. Close it, or use it as a context manager."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self._closing = ExitStack()

    @classmethod
    def open(cls, data_dir: str | None = None, *, clock: Clock | None = None, **settings: Any) -> Tollkeeper:
        """
        Open or create the installation in *data_dir*; other settings are those of `settings.Settings`.

        The commands of this user that name the directory work meanwhile, through a socket in it (`http.control`).

        Raises:
            BadParameter: A setting has a bad value.
            DataDirectoryInUse: Another process has the directory.
            GreenletsRefused: gevent or eventlet changed the threads of this process (`greenlets`).
            PackageMissing: The usage store needs chDB, which is not installed.
            Unavailable: A store cannot be opened.
        """
        toll = cls(Installation(load({"data_dir": data_dir, **settings}), clock=clock))
        toll._closing.callback(open_control(toll.installation).close)
        return toll

    # -- one request ----------------------------------------------------------------------------------

    def admit(
        self,
        api_key: str,
        method: str,
        path: str,
        expected: Usage = NO_USAGE,
        *,
        tags: Mapping[str, str] = NO_TAGS,
        session: str = "",
        account: str = "",
        user: str = "",
        project: str = "",
        profile: str = "",
    ) -> Admission | Denial:
        """
        Decide one request, in microseconds. Settle or void the admission; dropped, it is voided.

        A request without a key has an empty *api_key* and names its *session* or *account*. It draws on the account's
        own pools, as the requests of its keys do.

        Args:
            expected: The most that the request may use, so that no budget is passed, and its model.
            tags: Those of its event, by which limits and budgets may count it; `Outcome.tags` replace them.
            session: The token of a user who signed in: its account pays. An expired or foreign one is refused (401).
            account: The account that pays, as your own backend knows it.
            user: With *account*, who signed in: rate limits per key count each user apart.
            project: With *session* or *account*, the project that the request is for.
            profile: With *session* or *account*, the profile whose routes are called; all unless given.

        Raises:
            BadParameter: Two of *api_key*, *session* and *account* are given, or *user* or *project* goes with none.
        """
        greenlets.check()
        if not (session or account or user or project or profile):
            return self.installation.holds.admit(api_key, method, path, expected, tags)
        caller = self._without_key(api_key, session, account, user, project, profile)
        if isinstance(caller, Denial):
            self.installation.holds.record_denial("", method, path, caller)
            return caller
        return self.installation.holds.admit(caller, method, path, expected, tags)

    def _without_key(
        self, api_key: str, session: str, account: str, user: str, project: str, profile: str
    ) -> Keyless | Denial:
        check_keyless(api_key, session, account, user)
        if account:
            return Keyless(account, user, project, profile)
        found = self.installation.account_sessions.find(session)
        if isinstance(found, Denial):
            return found
        return Keyless(found.account_id, found.user_id, project, profile)

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

    def middleware(self, app: ASGIApp, **options: Any) -> asgi.Middleware:
        """Return an ASGI app behind the gate: see `asgi.Middleware` for the options."""
        from tollkeeper.asgi import Middleware

        return Middleware(app, self, **options)

    def wsgi_middleware(self, app: WSGIApplication, **options: Any) -> wsgi.Middleware:
        """Return a WSGI app (Flask, Django) behind the gate: see `wsgi.Middleware` for the options."""
        from tollkeeper.wsgi import Middleware

        return Middleware(app, self, **options)

    def api(self, *, operator_key: str | None = None) -> MountedApi:
        """
        Return the API of this installation as an ASGI app: `/tk/v1`, the profiles and the metrics, as `serve` has them.

        It may be mounted under any path; close the installation last. Call it once.

        Args:
            operator_key: Replaces the installation's operator key, as `TOLLKEEPER_OPERATOR_KEY` does, which is taken
                unless this is given. An installation that never had one serves its customers' keys only.

        Raises:
            BadParameter: *operator_key* does not begin with `ok_`, or is too short.
        """
        from tollkeeper.http.app import build_app
        from tollkeeper.http.mounted import MountedApi
        from tollkeeper.http.server import ensure_operator_key

        given = operator_key or os.environ.get("TOLLKEEPER_OPERATOR_KEY")
        if given:
            ensure_operator_key(self.installation, given)
        app = build_app(self.installation)
        self._closing.callback(app.close)
        return MountedApi(app)

    # -- metering and usage ---------------------------------------------------------------------------

    def record(self, events: Sequence[Event | Mapping[str, Any]]) -> IngestResult:
        """Book meter events that did not pass the gate. A repeat of an event counts once."""
        from tollkeeper.meter.decode import decode_events

        now_us = self.installation.clock.now_us()
        return self.installation.ingest.take(decode_events(events, now_us=now_us))

    def adjust(
        self,
        account: str,
        amount: str | int,
        *,
        id: str,
        reason: str,
        event: str = "",
        key_id: str = "",
        project: str = "",
        time: datetime | None = None,
    ) -> Adjusted:
        """
        Move an account's money without a request, once per *id*; durable and in force when it returns.

        Args:
            amount: Decimal text (`"25.00"` gives, `"-25.00"` takes), or whole nanos.
            event: The event that it corrects.
            key_id: Moves what this key's requests are charged to, in place of the account's budgets and credit.
            time: When it counts; now unless given.

        Raises:
            BadParameter: A field breaks a rule, or names what the account does not have.
            NotFound: There is no such account.
            EventConflict: The id names something else, or the same with another body.
            Unavailable: A store failed; the same call again is safe.
        """
        from tollkeeper.api.adjustments import adjustment_of
        from tollkeeper.domain.instants import to_text

        fields: dict[str, Any] = {"id": id, "account": account, "amount": amount, "reason": reason}
        fields |= {"event": event, "key_id": key_id, "project": project}
        if time is not None:
            fields["time"] = to_text(time)
        return self.installation.adjustments.post(adjustment_of(fields))

    def revoke_grant(self, account: str, grant_id: str) -> Change:
        """
        Take a grant back, as if it had never been given; a repeat changes nothing.

        What is left of it goes; what was spent of it is drawn on the rest of the balance, then overdraft.

        Raises:
            NotFound: The account has no such grant.
            Unavailable: The ledger cannot be written; the same call again is safe.
        """
        return self.manage.revoke_grant(account, grant_id)

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Answer a usage query; the answer contains everything that was durable before the call.

        Measures `quantity.NAME` are decimal text of units; money is whole nanos.
        """
        return quantities_as_text(query, self.installation.reports.usage(query))

    def events(self, query: EventQuery) -> EventPage:
        """Return a page of single events, newest first, each as it stands now; `next_cursor` asks for the next."""
        return self.installation.event_pages.page(query)

    def key_status(
        self, key_id: str, *, account: str | None = None, params: Mapping[str, str] = {}
    ) -> KeyStatus:
        """
        Return what a key has left of each limit and budget, and of the account's credit, as `GET …/keys/{id}/state`.

        Args:
            account: Another account's key is not found; any account's is when None.
            params: Of limits and budgets that count values apart, which: `{"model": "gpt-4o", "tag.user": "u1"}`.

        Raises:
            NotFound: There is no such key.
        """
        from tollkeeper.api.key_status import facts_of, key_status_of

        site = self.installation
        stored = site.manage.stored_key(account, key_id)
        return key_status_of(stored, site.directory, site.gate, site.clock.now_us(), facts_of(params))

    def price(
        self,
        name: str,
        *,
        account_id: str = "",
        variant: str = "",
        plan: str = "",
        at: datetime | None = None,
    ) -> dict[str, Any]:
        """
        Return the price of a model's name: `name`, `model`, `seller`, `why`, `rates`, `request_nanos`, `tiers`.

        Rates are decimal text, nanos per million units. A name without a price has `model` None, and `nearest`.

        Args:
            account_id: Whose price; `""` sees the general ones.
            at: An aware instant; defaults to now.
        """
        from tollkeeper.catalog.shown_prices import NoPrice, no_price_json, price_json, show_price

        shown = show_price(
            self.installation.directory.price_book,
            name,
            at_us=self.installation.clock.now_us() if at is None else to_us(at),
            account_id=account_id,
            variant=variant,
            plan=plan,
        )
        return no_price_json(shown) if isinstance(shown, NoPrice) else price_json(shown)

    def preview_prices(
        self,
        toml: str,
        *,
        start: datetime,
        end: datetime,
        account_id: str | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[PreviewRow]:
        """
        Return what a span of history would cost under a file's prices, by account and model. Changes nothing.

        Args:
            toml: Prices, mark-ups and aliases, put over those of the catalog by their ids.
            start: The span, half-open, in aware instants.
            account_id: Only of this account.
            progress: Called with the records that were read so far.

        Raises:
            BadParameter, Malformed: The file is wrong, or has entries of another kind.
            Unavailable: The usage store is behind, or failed.
        """
        from tollkeeper.catalog.declaration import parse_declaration

        return self.installation.price_preview.preview(
            parse_declaration(toml),
            from_us=to_us(start),
            to_us=to_us(end),
            account_id=account_id,
            progress=progress,
        )

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
        values: Mapping[str, str] = {},
    ) -> PostedTopUp:
        """
        Add to a budget once: to its running period, or with *until_used* until it is used. A repeat adds nothing.

        Args:
            budget: Its id, or its name in a plan; *plan*, *subscription*, *key* and *project* say which of several.
            amount: In the budget's unit: money as `"5.00"`, a quantity as `"61.5"`; others as `"100"` or 100.
            values: Of a budget that counts values apart, which: `{"tag.user": "u1"}`.
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
            values=dict(values),
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

    def backup(self, target: str | Path) -> BackupTaken:
        """
        Write a complete backup into the directory *target*: new, empty, or an earlier backup of this installation.

        Raises:
            Conflict: *target* has something else, or another backup is under way.
            Unavailable: A store cannot be read, or *target* cannot be written. An earlier backup there is whole.
        """
        return self.installation.backups.take(Path(target))

    @staticmethod
    def restore(
        source: str | Path, data_dir: str | None = None, *, keep_usage: bool = False, **settings: Any
    ) -> Restored:
        """
        Restore a backup into an empty data directory, and verify it. Open the directory afterwards.

        Args:
            keep_usage: Restore the ledger only, to go on with the usage store at `usage_url`, which survived.
            settings: `ledger_url`, `usage_url` and others of `settings.Settings`.

        Raises:
            Conflict, DataDirectoryInUse, NotFound, Unavailable: See `restoring.restore`.
        """
        from tollkeeper.restoring import restore

        return restore(Path(source), load({"data_dir": data_dir, **settings}), keep_usage=keep_usage)

    def close(self) -> None:
        """Commit and relay what is queued, then release everything. A repeat changes nothing."""
        try:
            self._closing.close()
        finally:
            self.installation.close()

    def __enter__(self) -> Tollkeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
