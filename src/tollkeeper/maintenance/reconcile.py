"""
Verify: counter = ledger = sum of events, recomputed from the stores. Rebuild: derived tables, from the records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.domain.expiry import is_told_by_hours
from tollkeeper.domain.first_use import Span
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.matching import scope_counter_of
from tollkeeper.domain.pools import CreditBook
from tollkeeper.errors import DetailExpired, Unavailable
from tollkeeper.gate.gate import Gate
from tollkeeper.ledger.budget_scopes import ScopeKeeper
from tollkeeper.ledger.commit_future import SCOPES_WAIT_S, CommitFuture
from tollkeeper.ledger.commit_tasks import ReadBarrier
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ledger.relay import Relay
from tollkeeper.ledger.scope_sums import spent_in, spent_in_parts, spent_in_spans
from tollkeeper.ports import CostSum, LedgerReader, UsageStore

_ENDLESS_US: Final = 2**62
CHANGE_TRIES: Final = 5
CHANGE_WAIT_S: Final = 0.05
"""A budget is in force some ms after the catalog has it: verify compares again so often, after so long."""
_IN_FORCE: Final = "budget"


class Difference(NamedTuple):
    """Two figures that should be equal. *what* names both, *account_id* may be "" for stores as a whole."""

    account_id: str
    what: str
    expected: int
    found: int


class Verdict(NamedTuple):
    """
    The result of verify: `ok` when there are no differences and everything could be compared.

    Attributes:
        expired: Counters that could be compared with their postings only: their events have expired, and sums of hours
            do not tell what they were charged.
    """

    ok: bool
    differences: list[Difference]
    store_differences: list[str]
    accounts: int
    counters: int
    expired: int = 0


class _Compared:
    """The differences of one account, and how many counters its events do not tell any more."""

    def __init__(self) -> None:
        self.differences: list[Difference] = []
        self.expired = 0


class Books(NamedTuple):
    """One account in the ledger, as of one commit."""

    counters: dict[tuple[str, int], int]
    postings: dict[tuple[str, int], int]
    scopes: dict[str, tuple[str, int]]
    credit: CreditBook
    opened: dict[str, list[Span]]
    """Counter id → the periods in force that opened with the first use, ascending."""


class Reconcile:
    """
    Exact with traffic going on: the ledger is read between two commits, and the relay is held until the
    usage store was compared with just those commits.
    """

    def __init__(
        self,
        directory: Directory,
        ledger: LedgerReader,
        store: UsageStore,
        committer: Committer,
        relay: Relay,
        scopes: ScopeKeeper,
        clock: Clock,
        forget_answers: Callable[[], None],
        pairing: Pairing,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._pairing = pairing
        self._directory = directory
        self._ledger = ledger
        self._store = store
        self._committer = committer
        self._relay = relay
        self._scopes = scopes
        self._clock = clock
        self._forget_answers = forget_answers

    def verify(self, progress: Callable[[str], None] = lambda account_id: None) -> Verdict:
        """
        Recompute everything and return every difference.

        Args:
            progress: Called with each account before it is compared.

        Raises:
            Unavailable: A store cannot be read.
        """
        differences: list[Difference] = []
        store_differences: list[str] = []
        try:
            self._relay.deliver_up_to(self._committer.outbox_seq)
        except Unavailable:
            # Then events cannot be compared with anything.
            return Verdict(False, [], ["the outbox could not be delivered to the usage store"], 0, 0)
        store_differences += [
            f"outbox row {seq}: its {record_count} records cannot be read and are set aside: {reason}"
            for seq, record_count, reason, _ in self._ledger.outbox.set_asides()
        ]
        accounts = sorted({a.id for a in self._directory.accounts()} | set(self._ledger.charged_accounts()))
        counters = expired = 0
        for account_id in accounts:
            progress(account_id)
            found, count = self._verify_account(account_id)
            differences += found.differences
            counters += count
            expired += found.expired
        with self._scopes.unchanged(), self._relay.exclusive():
            # Both copies of an event are in the rollups, and where no budget counts it in no other sum.
            store_differences += self._store.differences(self._ledger.outbox.delivered_records())
            store_differences += self._store.duplicates()
            store_differences += self._pairing.recount(self._store)
        return Verdict(
            not differences and not store_differences,
            differences,
            store_differences,
            len(accounts),
            counters,
            expired,
        )

    def rebuild(self) -> Mapping[str, int]:
        """Rebuild rollups and the id index of the usage store from its records; return rows written per table."""
        with self._scopes.unchanged(), self._relay.exclusive():
            # A batch that failed half-way must be whole before: its repeat would add to what was rebuilt.
            self._relay.deliver_up_to(self._committer.outbox_seq)
            try:
                rebuilt = self._store.rebuild(self._ledger.outbox.delivered_records())
                self._pairing.recount(self._store)
                return rebuilt
            finally:
                # They were computed from the tables before, or from half of the new ones.
                self._forget_answers()

    def _verify_account(self, account_id: str) -> tuple[_Compared, int]:
        for _ in range(CHANGE_TRIES):
            found, count = self._compare_once(account_id)
            if not any(difference.what.startswith(_IN_FORCE) for difference in found.differences):
                break
            # Perhaps a budget was just set and is about to come into force.
            time.sleep(CHANGE_WAIT_S)
        return found, count

    def _compare_once(self, account_id: str) -> tuple[_Compared, int]:
        # In this order: a change of budgets has the commit thread ask the relay, which must not wait for us.
        with self._scopes.unchanged(), self._relay.exclusive():
            future = CommitFuture()
            self._committer.submit(ReadBarrier(lambda: self._books(account_id), future))
            books, seq = future.wait(SCOPES_WAIT_S)
            self._relay.deliver_up_to(seq)
            return self._compare(account_id, books), len(books.counters)

    def _books(self, account_id: str) -> Books:
        ledger = self._ledger
        rows = ledger.counter_rows(account_id)
        wanted = self._directory.wanted_scopes(account_id)
        opened: dict[str, list[Span]] = {}
        for name in dict.fromkeys([*wanted, *(name for name, _ in rows)]):
            scope, _ = wanted.get(scope_counter_of(name), (None, None))
            if scope is not None and scope.first_use_us:
                opened[name] = ledger.opened_periods(account_id, name, scope.period, 0)[1]
        return Books(
            rows,
            ledger.posting_sums(account_id),
            ledger.scopes(account_id),
            ledger.book(account_id)[0],
            opened,
        )

    def _compare(self, account_id: str, books: Books) -> _Compared:
        compared = _Compared()
        differences = compared.differences
        counters, postings, active = books.counters, books.postings, books.scopes
        for at in sorted({*counters, *postings}):
            used, posted = counters.get(at, 0), postings.get(at, 0)
            if used != posted:
                differences.append(
                    Difference(account_id, f"counter {_name(at)} against its postings", posted, used)
                )
        wanted = self._directory.wanted_scopes(account_id)
        for counter_id in sorted(wanted.keys() ^ active.keys()):
            what = f"{_IN_FORCE} {counter_id} in the catalog (expected) and in force (found)"
            differences.append(Difference(account_id, what, counter_id in wanted, counter_id in active))
        counters_of: dict[str, list[tuple[str, int]]] = {}
        for name, start_us in counters:
            counters_of.setdefault(scope_counter_of(name), []).append((name, start_us))
        for counter_id, (_, active_from_us) in active.items():
            if counter_id not in wanted:
                continue
            scope, key_ids = wanted[counter_id]
            names = [name for name, _ in counters_of.get(counter_id, ())]
            if scope.first_use_us:
                differences += self._compare_first_use(scope, key_ids, active_from_us, books, compared)
            else:
                differences += self._compare_periods(
                    scope, key_ids, active_from_us, counters_of.get(counter_id, ()), counters, compared
                )
            for name in dict.fromkeys([counter_id, *names]):
                differences += self._compare_top_ups(scope, name)
        differences += self._compare_credit(account_id, books, compared)
        return compared

    def _compare_periods(
        self,
        scope: BudgetScope,
        key_ids: Sequence[str] | None,
        active_from_us: int,
        counted: Sequence[tuple[str, int]],
        counters: Mapping[tuple[str, int], int],
        compared: _Compared,
    ) -> list[Difference]:
        """Compare the periods of a budget in force that were charged, or that now is in, with their events."""
        differences = []
        # A budget whose period was changed has rows of the old periods too, which count no more.
        used_by_start: dict[int, dict[str, int]] = {scope.span_us(self._clock.now_us())[0]: {}}
        for name, start_us in counted:
            is_of_scope = (name == scope.counter_id) != bool(scope.by)
            if is_of_scope and start_us >= active_from_us and scope.span_us(start_us)[0] == start_us:
                used_by_start.setdefault(start_us, {})[name] = counters[name, start_us]
        detail_from_us = self._store.detail_from_us(scope.account_id) or 0
        for start_us in [us for us in used_by_start if us < detail_from_us]:
            if not is_told_by_hours(scope, *scope.span_us(start_us)):
                compared.expired += len(used_by_start.pop(start_us))
        times_us = {us for start_us in used_by_start for us in (start_us, scope.span_us(start_us)[1])}
        spent: dict[int, dict[str, int]] = {start_us: {} for start_us in used_by_start}
        if not scope.by:
            spent = {start_us: {scope.counter_id: 0} for start_us in used_by_start}
        for name, part_us, amount in spent_in_parts(self._store, scope, key_ids, times_us):
            # Between periods that were charged there may be others, which were not.
            if part_us in spent:
                spent[part_us][name] = amount
        for start_us, has in sorted(used_by_start.items()):
            differences += _differing(scope.account_id, start_us, spent[start_us], has)
        return differences

    def _compare_first_use(
        self,
        scope: BudgetScope,
        key_ids: Sequence[str] | None,
        active_from_us: int,
        books: Books,
        compared: _Compared,
    ) -> list[Difference]:
        """Compare the periods that opened with their first use with one another, and with the events of all time."""
        differences = []
        account_id = scope.account_id
        detail_from_us = self._store.detail_from_us(account_id) or 0
        opened = {
            name: spans
            for name, spans in books.opened.items()
            if scope_counter_of(name) == scope.counter_id and (name == scope.counter_id) != bool(scope.by)
        }
        if active_from_us < detail_from_us:
            # Hours tell nothing of periods that open at any instant: those that began since are compared.
            told = {
                name: [span for span in spans if span[0] >= detail_from_us] for name, spans in opened.items()
            }
            compared.expired += sum(map(len, opened.values())) - sum(map(len, told.values()))
            for (name, start_us), spent in spent_in_spans(self._store, scope, key_ids, told).items():
                used = books.counters.get((name, start_us), 0)
                differences += _differing(account_id, start_us, {name: spent}, {name: used})
            return differences
        events = spent_in(self._store, scope, key_ids, active_from_us, _ENDLESS_US)
        # Of a value with one period, the comparison of all periods together is the same.
        several = {name: spans for name, spans in opened.items() if len(spans) > 1 or not scope.by}
        for (name, start_us), spent in spent_in_spans(self._store, scope, key_ids, several).items():
            used = books.counters.get((name, start_us), 0)
            differences += _differing(account_id, start_us, {name: spent}, {name: used})
        for name in sorted(events.keys() | opened.keys()):
            spans = opened.get(name, [])
            for (_, end_us), (start_us, _) in pairwise(spans):
                if start_us < end_us:
                    what = f"budget {name}: start of a period against the end of the one before"
                    differences.append(Difference(account_id, what, end_us, start_us))
            used = sum(books.counters.get((name, start_us), 0) for start_us, _ in spans)
            if events.get(name, 0) != used:
                since = to_text(from_us(active_from_us))
                what = f"budget {name}: all periods since {since} against their events"
                differences.append(Difference(account_id, what, events.get(name, 0), used))
        return differences

    def _compare_top_ups(self, scope: BudgetScope, counter_id: str) -> list[Difference]:
        """Compare the top-ups by which the gate decides with those of the ledger."""
        account_id = scope.account_id
        known = self._gate.counters.top_ups(account_id, counter_id)
        if known is None:
            return []
        found = self._ledger.topped_up(account_id, counter_id).posted
        posted = sum(top_up.amount for top_up in found if top_up.unit == scope.unit)
        if posted == known.total:
            return []
        what = f"top-ups of {counter_id} in the gate against the ledger"
        return [Difference(account_id, what, posted, known.total)]

    def _compare_credit(self, account_id: str, books: Books, compared: _Compared) -> list[Difference]:
        differences = []
        book = books.credit
        used = books.counters.get((CREDIT_COUNTER, 0), 0)
        if book.spent_nanos != used:
            differences.append(
                Difference(account_id, "credit counter against the grants drawn on", book.spent_nanos, used)
            )
        try:
            spent_nanos = self._spent_of_credit(account_id)
        except DetailExpired:
            # Its events without a key draw on it from an instant within an hour.
            compared.expired += 1
        else:
            if spent_nanos != used:
                what = "credit counter against the events"
                differences.append(Difference(account_id, what, spent_nanos, used))
        for grant in book.grants:
            if not 0 <= grant.remaining_nanos <= grant.amount_nanos:
                what = f"what is left of grant {grant.grant_id}, from 0 to its amount (expected)"
                differences.append(Difference(account_id, what, grant.amount_nanos, grant.remaining_nanos))
        if book.overdraft_nanos and book.surplus_nanos:
            what = "surplus of an account that has an overdraft"
            differences.append(Difference(account_id, what, 0, book.surplus_nanos))
        return differences

    def _spent_of_credit(self, account_id: str) -> int:
        """Return what the events of an account drew on its credit, less what adjustments gave, as its records say."""

        def charged(key_ids: Sequence[str], from_us: int = 0) -> CostSum:
            return self._store.charged(
                account_id, from_us=from_us, to_us=2**62, project_id=None, key_ids=key_ids
            )

        key_ids = self._directory.credit_keys(account_id)
        of_keys = charged(key_ids).cost_nanos if key_ids else 0
        # Adjustments that name no key are the account's whenever they are; other records from when it says so.
        of_account = -charged([""]).adjustments_nanos
        draws_from_us = self._directory.scopes(account_id, "", "").draws_from_us
        if draws_from_us is not None:
            late = charged([""], max(0, draws_from_us))
            of_account += late.cost_nanos + late.adjustments_nanos
        return of_keys + of_account


def _differing(
    account_id: str, start_us: int, events: Mapping[str, int], has: Mapping[str, int]
) -> list[Difference]:
    """Return where the counters of a period are not the sums of its events."""
    return [
        Difference(
            account_id,
            f"counter {_name((name, start_us))} against its events",
            events.get(name, 0),
            has.get(name, 0),
        )
        for name in sorted(events.keys() | has.keys())
        if events.get(name, 0) != has.get(name, 0)
    ]


def _name(at: tuple[str, int]) -> str:
    counter_id, start_us = at
    return counter_id if not start_us else f"{counter_id} from {to_text(from_us(start_us))}"
