"""
Retention: removes the events of each account whose time is over. What they add up to stays, in usage as in verify.

A step takes some days of some accounts. It begins with nothing on its way to the usage store, and no budget comes into
force meanwhile; requests are admitted and settled all the time. How a step is completed after a crash is the business
of the usage store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Account
from tollkeeper.domain.expiry import DAY_US, HOUR_US, expires_before_us
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.retention import retention_us
from tollkeeper.event_expiry import ExpiringDay
from tollkeeper.ledger.budget_scopes import ScopeKeeper
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.relay import Relay
from tollkeeper.ports import UsageStore

STEP_RECORDS: Final = 500_000
STEP_DAYS: Final = 1_000
"""Of one step, at least a day of an account: the relay stands still for as long as it takes."""
PLAN_EVERY_US: Final = HOUR_US

log = logging.getLogger("tollkeeper")


class Retention:
    """
    Any thread may call.

    Args:
        default: How long events are kept of accounts that do not say (`domain.retention`).
        must_wait: Whether records may come again that the usage store has already: nothing expires then.
        forget_answers: Called when records were removed.
    """

    def __init__(
        self,
        directory: Directory,
        store: UsageStore,
        committer: Committer,
        relay: Relay,
        scopes: ScopeKeeper,
        clock: Clock,
        *,
        default: str,
        must_wait: Callable[[], bool],
        forget_answers: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._store = store
        self._committer = committer
        self._relay = relay
        self._scopes = scopes
        self._clock = clock
        self._default_us = retention_us(default)
        self._must_wait = must_wait
        self._forget_answers = forget_answers
        self._lock = threading.Lock()
        self._due: list[ExpiringDay] = []
        self._must_reclaim = True
        """After a start too: the process before may have been killed with room still to free."""
        self._planned_at_us = -PLAN_EVERY_US
        self.expired_records = 0
        """Records that have been removed since start."""
        self.kept_up_at_us: int | None = None
        """When there was nothing left to remove last; None: not since start."""

    @property
    def due_records(self) -> int:
        """The records whose time is over and that are there, as far as the last plan knows."""
        return sum(day.records for day in list(self._due))

    def run(self) -> int:
        """Remove all events whose time is over now; return how many records."""
        with self._lock:
            self._plan()
            removed = 0
            while self._due:
                removed += self._step()
            self._reclaim()
            return removed

    def round(self) -> bool:
        """Do the next step, if one is due; return whether more is."""
        with self._lock:
            now_us = self._clock.now_us()
            # The clock may have been put back.
            if not self._due and not self._planned_at_us <= now_us < self._planned_at_us + PLAN_EVERY_US:
                self._plan()
            if self._due:
                self._step()
            if not self._due:
                self._reclaim()
            return bool(self._due)

    def _plan(self) -> None:
        now_us = self._clock.now_us()
        if self._must_wait():
            return
        before_us = {
            account.id: us
            for account in self._directory.accounts()
            if (us := self._before_us(account, now_us)) is not None
        }
        self._due = self._store.expiring(before_us) if before_us else []
        self._planned_at_us = now_us
        if not self._due:
            self.kept_up_at_us = now_us

    def _before_us(self, account: Account, now_us: int) -> int | None:
        kept_us = self._default_us if account.retention is None else retention_us(account.retention)
        if kept_us is None:
            return None
        scopes = (scope for scope, _ in self._directory.wanted_scopes(account.id).values())
        return expires_before_us(kept_us, scopes, now_us)

    def _step(self) -> int:
        days = self._next_days()
        with self._scopes.unchanged(), self._relay.exclusive():
            # A batch that failed half-way must be whole before: its repeat would add what has expired.
            self._relay.deliver_up_to(self._committer.outbox_seq)
            if self._must_wait():
                self._due = []
                return 0
            # As the catalog is now: an account may be to keep more than when this was planned.
            removed = self._store.expire(self._still_due(days))
        del self._due[: len(days)]
        if not self._due:
            self.kept_up_at_us = self._planned_at_us
        if removed:
            self.expired_records += removed
            self._must_reclaim = True
            self._forget_answers()
            log.info(
                "tollkeeper.events.expired",
                extra={
                    "records": removed,
                    "accounts": len({day.account_id for day in days}),
                    "from": to_text(from_us(min(day.day_us for day in days))),
                    "to": to_text(from_us(max(day.day_us for day in days) + DAY_US)),
                },
            )
        return removed

    def _next_days(self) -> list[ExpiringDay]:
        days = self._due[:1]
        records = days[0].records
        for day in self._due[1:STEP_DAYS]:
            records += day.records
            if records > STEP_RECORDS:
                break
            days.append(day)
        return days

    def _still_due(self, days: Iterable[ExpiringDay]) -> list[ExpiringDay]:
        now_us = self._clock.now_us()
        before_us: dict[str, int] = {}
        for account_id in {day.account_id for day in days}:
            account = self._directory.account(account_id)
            us = None if account is None else self._before_us(account, now_us)
            before_us[account_id] = us or 0
        return [day for day in days if day.day_us + DAY_US <= before_us[day.account_id]]

    def _reclaim(self) -> None:
        if self._must_reclaim:
            self._store.reclaim()
            self._must_reclaim = False
