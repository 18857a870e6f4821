"""
Brings budgets into force, so that each counter is the sum of events from its first period on.

A new budget must also count the spending of the current period before it was set. The sum is exact while requests
go on: the relay delivers nothing, the caller sums up the usage store within a deadline, and records committed since
are read from the outbox, the last of them on the commit thread between two groups. The sum and the scopes are
written together, so a crash leaves both or neither, and no event is charged to a budget that is half set up. The
commit thread never reads the usage store, which may take long.

A scope whose keys, project or account are new has no events in the usage store, which is then not asked at all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import pyarrow.compute as pc

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import CounterAt, OutboxEntry
from tollkeeper.domain.entitlements import BudgetScope, fingerprint_of
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import VALUE_MARK, scope_counter_of
from tollkeeper.domain.meter import facts_of, units_of
from tollkeeper.errors import DetailExpired, Unavailable
from tollkeeper.gate.gate import Gate
from tollkeeper.ledger.budget_periods import BudgetPeriods
from tollkeeper.ledger.commit_future import SCOPES_WAIT_S, CommitFuture
from tollkeeper.ledger.commit_tasks import ChangeScopes, Draft
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.relay import Relay, Unreadable, records_of_entry, table_of_entry
from tollkeeper.ledger.scope_sums import spent_in
from tollkeeper.ports import LedgerReader, OutboxReader, UsageStore
from tollkeeper.record_columns import records_of

SWITCHED_MAX: Final = 32
"""Scopes per switch: the commit thread reads a counter for each."""
SUM_S_MAX: Final = 5.0
"""How long the sums of one switch may take, and how long it waits for the relay. The relay stands still meanwhile."""
READINGS_MAX: Final = 8
LEFT_RECORDS: Final = 2_000
"""The caller reads the outbox until a reading has at most `LEFT_RECORDS`, or `READINGS_MAX` times; the commit thread
reads the rest."""

log = logging.getLogger("tollkeeper")

Wanted = tuple[BudgetScope, list[str] | None]
"""A scope, and the ids of the keys that it counts: see `Directory.wanted_scopes`."""


class Made(NamedTuple):
    """
    What a change of the catalog made, so that no event of an earlier outbox row than *after_seq* + 1 names it.

    Attributes:
        accounts, projects, keys: Their ids; projects as `(account, id)`.
        after_seq: The newest outbox row when the change began.
    """

    accounts: frozenset[str] = frozenset()
    projects: frozenset[tuple[str, str]] = frozenset()
    keys: frozenset[str] = frozenset()
    after_seq: int = 0

    def has_all_of(self, scope: BudgetScope, key_ids: Collection[str] | None) -> bool:
        """Return whether every event that a scope counts names something that was made."""
        return (
            scope.account_id in self.accounts
            or (scope.account_id, scope.project_id) in self.projects
            or (key_ids is not None and self.keys.issuperset(key_ids))
        )


NOTHING_MADE: Final = Made()


class SwitchScopes(ChangeScopes):
    """
    A change of scopes that brings each counter to the sum of its events, in the same commit.

    Args:
        count: Returns the charges; called on the commit thread when every earlier group is committed.
    """

    __slots__ = ("_count",)

    def __init__(
        self,
        started: list[tuple[BudgetScope, int]],
        ended: list[tuple[str, str]],
        future: CommitFuture,
        count: Callable[[], dict[CounterAt, int]],
        members: Sequence[Wanted] = (),
    ) -> None:
        super().__init__(started, ended, future, members)
        self._count = count

    def add(self, draft: Draft) -> None:
        charges = self._count()
        super().add(draft)
        for at, amount in charges.items():
            draft.charge(at, amount, counted=False)


class ScopeKeeper:
    """Called after every change of the catalog that may touch budgets. One change at a time."""

    def __init__(
        self,
        directory: Directory,
        ledger: LedgerReader,
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
        self._summing = threading.Lock()
        self._periods = BudgetPeriods(directory, store)
        self.sum_s_max = SUM_S_MAX

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep all budgets in or out of force, as they are, until the block ends."""
        with self._lock:
            yield

    def refresh(self, account_id: str, made: Made = NOTHING_MADE) -> None:
        """
        Bring the budgets of an account into and out of force as its catalog says.

        When this returns, every event committed later is charged accordingly and the counters hold what
        the current periods had before. After a failure nothing has changed; a repeat is safe.

        Args:
            made: What the change made that this follows.

        Raises:
            Unavailable: A store failed, or the sums of the usage store took too long.
        """
        with self._lock:
            self._forget(account_id)
            wanted = self._directory.wanted_scopes(account_id)
            active = self._ledger.scopes(account_id)
            started = [
                (scope, keys)
                for counter_id, (scope, keys) in wanted.items()
                if counter_id not in active or active[counter_id][0] != fingerprint_of(scope)
            ]
            ended = [(account_id, counter_id) for counter_id in active if counter_id not in wanted]
            if started or ended:
                self._switch(started, ended, active, made)
            self._forget(account_id)

    def _switch(
        self,
        started: Sequence[Wanted],
        ended: list[tuple[str, str]],
        active: dict[str, tuple[str, int]],
        made: Made,
    ) -> None:
        for first in range(0, max(1, len(started)), SWITCHED_MAX):
            some = started[first : first + SWITCHED_MAX]
            grown = [wanted for wanted in some if _only_grew(wanted, active, made)]
            counted = [wanted for wanted in some if wanted not in grown]
            self._switch_some(counted, grown, [] if first else ended, active, made)

    def _switch_some(
        self,
        counted: Sequence[Wanted],
        grown: Sequence[Wanted],
        ended: list[tuple[str, str]],
        active: dict[str, tuple[str, int]],
        made: Made,
    ) -> None:
        now_us = self._clock.now_us()
        # The counters of those that grew go on, from the period in which they began.
        going_on = [(scope, active[scope.counter_id][1]) for scope, _ in grown]
        future = CommitFuture()
        if not counted:
            count: Callable[[], dict[CounterAt, int]] = dict
            self._committer.submit(SwitchScopes(going_on, ended, future, count, grown))
            future.wait(SCOPES_WAIT_S)
            return
        try:
            with self._relay.exclusive(self.sum_s_max):
                began = [(scope, self._periods.begin(scope, active, now_us)) for scope, _ in counted]
                since = self._sums(counted, dict(began), now_us, made)
                since.read_most(lambda: self._committer.outbox_seq)
                members = [*counted, *grown]
                self._committer.submit(
                    SwitchScopes([*began, *going_on], ended, future, lambda: self._missing(since), members)
                )
                future.wait(SCOPES_WAIT_S)
        except BaseException:
            for scope, _ in counted:
                self._periods.not_begun(scope)
            raise

    def _sums(
        self, counted: Sequence[Wanted], began: dict[BudgetScope, int], now_us: int, made: Made
    ) -> _Since:
        """Return the sums of each scope's periods in the usage store, as of an outbox row. The relay stands still."""
        old = [wanted for wanted in counted if not made.has_all_of(*wanted)]
        if not old and self._relay.delivered_seq <= made.after_seq:
            return _Since(self._ledger.outbox, self._periods, counted, began, now_us, {}, made.after_seq)
        self._relay.deliver_up_to(self._committer.outbox_seq)
        # Exactly these rows are in the usage store: nothing is on its way, and nothing comes meanwhile.
        seq = self._relay.delivered_seq
        sums = self._summed(counted, began, now_us)
        return _Since(self._ledger.outbox, self._periods, counted, began, now_us, sums, seq)

    def _summed(
        self, counted: Sequence[Wanted], began: dict[BudgetScope, int], now_us: int
    ) -> dict[CounterAt, int]:
        """Sum up the usage store. A thread of its own does it, as nothing else bounds how long the store takes."""
        if not self._summing.acquire(blocking=False):
            raise Unavailable("The usage store is still busy with an earlier budget. Try again shortly.")
        ended, given_up = threading.Event(), threading.Event()
        sums: dict[CounterAt, int] = {}
        errors: list[BaseException] = []

        def run() -> None:
            try:
                for scope, key_ids in counted:
                    if scope.first_use_us and scope.by:
                        sums.update(self._periods.spent_by_value(scope, key_ids, began[scope], now_us))
                        continue
                    self._periods.open_for_events(scope, key_ids, began[scope], now_us)
                    for start_us, end_us in self._periods.coming(scope, now_us):
                        if given_up.is_set():
                            return
                        for counter_id, amount in self._kept(scope, key_ids, start_us, end_us).items():
                            sums[scope.account_id, counter_id, start_us] = amount
            except BaseException as exc:
                errors.append(exc)
            finally:
                self._summing.release()
                ended.set()

        threading.Thread(target=run, name="tollkeeper-budget-sum", daemon=True).start()
        if not ended.wait(self.sum_s_max):
            given_up.set()
            raise Unavailable(
                f"The usage store did not sum up a budget's period within {self.sum_s_max:g} s. "
                "The change is kept and comes into force when the store can."
            )
        if errors:
            raise errors[0]
        return sums

    def _kept(
        self, scope: BudgetScope, key_ids: Sequence[str] | None, start_us: int, end_us: int
    ) -> dict[str, int]:
        """Return what a period was charged; of events that cannot be told any more, nothing."""
        try:
            return spent_in(self._store, scope, key_ids, start_us, end_us)
        except DetailExpired as exc:
            log.warning(
                "tollkeeper.budget.detail_expired",
                extra={"account": scope.account_id, "budget": scope.counter_id, "reason": str(exc)},
            )
            return spent_in(self._store, scope, key_ids, exc.fields["detail_from_us"], end_us)

    def _missing(self, since: _Since) -> dict[CounterAt, int]:
        """Return how much each counter lacks of its events. On the commit thread."""
        # Cached before the change, so that no thread reads it from the ledger before the gate has it.
        self._directory.scopes_in_force(since.account_id)
        since.read()
        charges = {}
        has: dict[CounterAt, int] = {}
        for account_id, counter_id, start_us in since.of_values:
            has_by = self._ledger.value_counters(account_id, counter_id, start_us)
            has |= {(account_id, name, start_us): used for name, used in has_by.items()}
        if since.first_use_scopes:
            # What a budget of this id was charged before, in a period that may open yet.
            rows = self._ledger.counter_rows(since.account_id)
            for scope in since.first_use_scopes:
                has |= {
                    (scope.account_id, name, start_us): used
                    for (name, start_us), used in rows.items()
                    if scope_counter_of(name) == scope.counter_id
                    and (name == scope.counter_id) != bool(scope.by)
                    and start_us >= since.from_us(scope)
                }
        # A value, or a period, that was counted in an earlier life of the budget may have no events now.
        for at in dict.fromkeys([*since.sums, *has]):
            # Not 0 when the budget was in force before, with other keys or in an earlier life.
            if at not in has and VALUE_MARK not in at[1]:
                has[at] = self._ledger.counter(*at)[0]
            charges[at] = since.sums.get(at, 0) - has.get(at, 0)
        return charges

    def _forget(self, account_id: str) -> None:
        self._directory.forget(account_id)
        self._gate.forget(account_id)


class _Since:
    """
    The sums of some scopes of one account as of an outbox row, brought further by the rows after it.

    The relay must deliver none of them meanwhile.
    """

    def __init__(
        self,
        outbox: OutboxReader,
        periods: BudgetPeriods,
        counted: Sequence[Wanted],
        began: dict[BudgetScope, int],
        now_us: int,
        sums: dict[CounterAt, int],
        seq: int,
    ) -> None:
        self.account_id = counted[0][0].account_id
        self.sums = {
            (scope.account_id, scope.counter_id, start_us): 0
            for scope, _ in counted
            if not scope.by
            for start_us, _ in periods.coming(scope, now_us)
        } | sums
        self.of_values = [
            (scope.account_id, scope.counter_id, start_us)
            for scope, _ in counted
            if scope.by and not scope.first_use_us
            for start_us, _ in periods.coming(scope, now_us)
        ]
        """The scopes and periods that have a counter for each value."""
        self._outbox = outbox
        self._periods = periods
        self._began = began
        self._scopes = [
            (scope, None if key_ids is None else frozenset(key_ids), began[scope])
            for scope, key_ids in counted
        ]
        self._seq = seq

    @property
    def first_use_scopes(self) -> list[BudgetScope]:
        return [scope for scope, _, _ in self._scopes if scope.first_use_us]

    def from_us(self, scope: BudgetScope) -> int:
        """Return from when on *scope* counts."""
        return self._began[scope]

    def read_most(self, newest_seq: Callable[[], int]) -> None:
        """Read most rows of the outbox, so that little is left for the commit thread."""
        for _ in range(READINGS_MAX):
            # Up to here and no further: under load there are always newer rows.
            if self.read(newest_seq()) <= LEFT_RECORDS:
                return

    def read(self, seq_max: int | None = None) -> int:
        """Add the rows that were committed since, at least up to *seq_max*; return how many records they had."""
        count = 0
        while (seq_max is None or self._seq < seq_max) and (rows := self._outbox.pending(self._seq)):
            entries = self._outbox.entries([row.seq for row in rows])
            for row in rows:
                # One that cannot be read is for the relay to set aside, and counts nowhere.
                with suppress(Unreadable):
                    self._add(entries[row.seq])
                count += row.record_count
            self._seq = rows[-1].seq
        return count

    def _add(self, entry: OutboxEntry) -> None:
        for record in self._records(entry):
            if record.account_id != self.account_id:
                continue
            for scope, key_ids, from_us in self._scopes:
                if (key_ids is None or record.key_id in key_ids) and (
                    scope.project_id is None or record.project_id == scope.project_id
                ):
                    counter_id = scope.counter_of(facts_of(record))
                    if counter_id is None:
                        continue
                    amount = units_of(record).get(scope.unit, 0)
                    one = scope._replace(counter_id=counter_id) if scope.by else scope
                    span = self._periods.of(one, record, amount)
                    if span is not None and span[0] >= from_us:
                        at = (scope.account_id, counter_id, span[0])
                        self.sums[at] = self.sums.get(at, 0) + amount

    def _records(self, entry: OutboxEntry) -> list[Record]:
        if entry.format == "rows":
            return records_of_entry(entry)
        table = table_of_entry(entry)
        # As columns first: most of a bulk may be of other accounts.
        return records_of(table.filter(pc.equal(table.column("account_id"), self.account_id)))


def _only_grew(wanted: Wanted, active: dict[str, tuple[str, int]], made: Made) -> bool:
    """
    Return whether a scope in force counts the keys that it did and new ones: then its counter is right as it is.

    An event of a new key is charged to it, since it is in force by its name.
    """
    scope, key_ids = wanted
    if scope.counter_id not in active or key_ids is None or not scope.members:
        return False
    before = [key_id for key_id in key_ids if key_id not in made.keys]
    return active[scope.counter_id][0] == fingerprint_of(scope.of_members(before))
