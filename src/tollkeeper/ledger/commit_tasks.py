"""
The tasks that a group commit is made of: each adds its part to the draft of a group, or fails alone.

A task knows what it writes and which ids it takes. Queueing, writing and failures are the committer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tollkeeper.domain.bookings import Committed, CounterAt, EndedHold, Group, RevokedGrant, StoredHold
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.draws import DrawRun, Draws
from tollkeeper.domain.entitlements import CREDIT_COUNTER, BudgetScope
from tollkeeper.domain.events import Record
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.top_ups import OwnAmount, TopUp
from tollkeeper.errors import BadParameter, HoldEnded
from tollkeeper.gate.gate import Charge, StartedBudget
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.ledger.storable import check_storable

if TYPE_CHECKING:
    import pyarrow as pa

COUNTER_MAX: Final = 2**63 - 1
BULK_ROWS: Final = 500
"""A batch of more rows is a group of its own. Smaller ones gain more by sharing a commit than they cost others."""
encode_rows = msgspec.msgpack.Encoder().encode


class Stale(Exception):
    """The ids or budgets that a batch was prepared against have changed: prepare it again."""


class Draft:
    """
    A group while its tasks add their parts to it.

    Args:
        charges_of: Returns the charges of a record by the budgets of *scopes_version*.
        stored_of: Returns a record with the labels that are stored of it.
        scopes_changed_at: Account → the version from which on its scopes are as they are; of all that ever changed.
    """

    def __init__(
        self,
        now_us: int,
        pending: Pending,
        scopes_version: int,
        charges_of: Callable[[Record], list[Charge]],
        stored_of: Callable[[Record], Record] = lambda record: record,
        scopes_changed_at: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.group = Group(now_us=now_us)
        self.pending = pending
        self.scopes_version = scopes_version
        self.charges_of = charges_of
        self.stored_of = stored_of
        self._scopes_changed_at = scopes_changed_at
        self.rows: list[Record] = []
        self.row_keys: list[str] = []
        self.counted: dict[CounterAt, int] = {}
        self.batches: list[Batch] = []
        self.held_keys: list[str] = []

    def has_scopes_of(self, version: int, accounts: Iterable[str]) -> bool:
        """
        Return whether the scopes of *accounts* are still those of *version*.

        Asked per account: one that makes budgets in a loop must not have the batches of all others prepared again.
        """
        changed_at = self._scopes_changed_at
        return version == self.scopes_version or all(
            changed_at.get(account_id, 0) <= version for account_id in accounts
        )

    def charge(self, at: CounterAt, amount: int, *, counted: bool) -> None:
        """Charge a counter; *counted*: the gate's counter has the amount already."""
        if counted:
            self.counted[at] = self.counted.get(at, 0) + amount
        if at[1] == CREDIT_COUNTER:
            account_id, _, at_us = at
            self._draws_of(account_id).add(at_us, amount)
            at = (account_id, CREDIT_COUNTER, 0)
        self.group.charges[at] = self.group.charges.get(at, 0) + amount

    def draw(self, account_id: str, run: DrawRun) -> None:
        """Charge the credit of an account with the draws of a batch."""
        draws = self._draws_of(account_id)
        before = draws.total_nanos
        draws.add_run(run)
        at = (account_id, CREDIT_COUNTER, 0)
        self.group.charges[at] = self.group.charges.get(at, 0) + draws.total_nanos - before

    def _draws_of(self, account_id: str) -> Draws:
        draws = self.group.draws.get(account_id)
        if draws is None:
            draws = self.group.draws[account_id] = Draws()
        return draws


class CommitTask:
    """
    Something to commit. `add` puts it into the draft whole, or raises to fail alone.

    A task that is `kept` is tried again until the ledger takes it. Any other fails once, and its caller decides.
    *done*, if set, is called with None after the commit, or with the error of a failure. It is called on the commit
    thread before the future ends, so it runs also when the caller is gone; or by `Committer.submit`, when that raises.
    """

    __slots__ = ("done", "future")
    future: CommitFuture | None
    done: Callable[[BaseException | None], None] | None
    is_bulk: bool = False
    """Whether it takes so long to write that it is a group of its own. Never one that is kept."""

    @property
    def kept(self) -> bool:
        return self.future is None

    def add(self, draft: Draft) -> None:
        raise AssertionError("each kind of task defines this")

    def result(self, committed: Committed) -> Any:
        return None


class OpenHold(CommitTask):
    """
    A hold made over HTTP, or one of this process that is to outlive it.

    Args:
        own: Its id is one that only this process may book. It is kept: its request has begun.
    """

    __slots__ = ("hold", "own")

    def __init__(
        self,
        hold: StoredHold,
        future: CommitFuture,
        done: Callable[[BaseException | None], None],
        *,
        own: bool = False,
    ) -> None:
        self.hold = hold
        self.own = own
        self.future = future
        self.done = done

    @property
    def kept(self) -> bool:
        return self.own

    def add(self, draft: Draft) -> None:
        key = key_of(self.hold.account_id, self.hold.hold_id)
        if draft.pending.is_own(key) != self.own or not draft.pending.disjoint((key,)):
            raise HoldEnded(f"Id {self.hold.hold_id} names an event, a correction or a hold: use a new id.")
        draft.pending.hold((key,))
        draft.held_keys.append(key)
        draft.group.opened.append(self.hold)


class AmendHold(CommitTask):
    """Another body of a hold that is open; one that has ended meanwhile stays as it ended."""

    __slots__ = ("hold",)

    def __init__(self, hold: StoredHold, future: CommitFuture | None) -> None:
        self.hold = hold
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.group.amended.append(self.hold)


class EndHold(CommitTask):
    """A void or an expiry of a durable hold."""

    __slots__ = ("ended",)

    def __init__(
        self,
        ended: EndedHold,
        future: CommitFuture | None,
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.ended = ended
        self.future = future
        self.done = done

    def add(self, draft: Draft) -> None:
        draft.group.ended.append(self.ended)


class Settle(CommitTask):
    """
    One record with its charges, and the end of its hold if that is durable.

    Args:
        record: With the labels as they were sent: price and charges go by them. What is stored of them is decided when
            the group is written, off the path of the caller.
        scopes_version: Read from the committer before the charges were made. When the account's scopes have changed
            since, they are made again from the scopes in force.
        counted: The gate's counters have the charges already.
        ended: The hold that the record ends. Its id is checked again here: of several that name an event by this
            id at the same time, only the first one is committed.
        late: The hold has expired, so its id may name another event by now.
    """

    __slots__ = ("charges", "counted", "ended", "late", "record", "scopes_version")

    def __init__(
        self,
        record: Record,
        charges: list[Charge],
        scopes_version: int,
        counted: bool = True,
        future: CommitFuture | None = None,
        ended: EndedHold | None = None,
        late: bool = False,
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.record = record
        self.charges = charges
        self.scopes_version = scopes_version
        self.counted = counted
        self.future = future
        self.ended = ended
        self.late = late
        self.done = done

    @property
    def kept(self) -> bool:
        # An admission of this process has ended, so nobody can settle it again; a stored hold is open again.
        return self.future is None or self.ended is None

    def add(self, draft: Draft) -> None:
        check_storable(self.record)
        # First, since it may read a store and fail: nothing of the draft may have changed then.
        stored = draft.stored_of(self.record)
        charges = self.charges
        key = key_of(self.record.account_id, self.record.id)
        if not draft.has_scopes_of(self.scopes_version, (self.record.account_id,)):
            counted = {charge[:3]: charge.amount for charge in charges} if self.counted else {}
            charges_now = draft.charges_of(self.record)
            if self.ended is not None:
                self._take_id(draft, key)
            for charge in charges_now:
                draft.charge(charge[:3], charge.amount, counted=False)
            for at, amount in counted.items():
                draft.counted[at] = draft.counted.get(at, 0) + amount
        else:
            if self.ended is not None:
                self._take_id(draft, key)
            for account_id, counter_id, period_start_us, amount in charges:
                draft.charge((account_id, counter_id, period_start_us), amount, counted=self.counted)
        draft.rows.append(stored)
        draft.row_keys.append(key)
        if self.ended is not None:
            draft.group.ended.append(self.ended)

    def _take_id(self, draft: Draft, key: str) -> None:
        """Raise `HoldEnded` unless the event is the one of its id. Nothing of the draft may fail after this."""
        pending = draft.pending
        if pending.is_held(key):
            # By the hold that this ends: nothing else can have taken the id.
            return
        if not self.late or not pending.disjoint((key,)):
            raise HoldEnded(f"Id {self.record.id} names an event or a correction by now: use a new id.")
        # So that a batch of the same group finds the id taken.
        pending.hold((key,))
        draft.held_keys.append(key)


class Batch(CommitTask):
    """
    Many records as one Arrow table, with their charges. Fails with `Stale` when one of the ids was taken since.

    Args:
        keys: `pending.key_of` of each id that the batch takes: that of row i in place i, unless
            they are of corrections.
        accounts: The accounts of the rows.
        payload: The table as an Arrow IPC stream.
        draws: Account → what its events draw on its credit, where it is not among the *charges*.
        corrections: The rows are corrections; *keys* are the corrections' ids.
    """

    __slots__ = (
        "accounts",
        "charges",
        "corrections",
        "draws",
        "encoded_keys",
        "is_bulk",
        "keys",
        "payload",
        "scopes_version",
        "table",
    )

    def __init__(
        self,
        table: pa.Table,
        payload: bytes,
        keys: list[str],
        accounts: set[str],
        charges: dict[CounterAt, int],
        scopes_version: int,
        future: CommitFuture,
        *,
        draws: Mapping[str, DrawRun] = {},
        corrections: bool = False,
    ) -> None:
        self.corrections = corrections
        self.draws = draws
        self.table = table
        self.payload = payload
        self.keys = keys
        self.is_bulk = len(keys) > BULK_ROWS
        # Here, on the caller's thread: all callers wait for the commit thread.
        self.encoded_keys = encode_rows(keys)
        self.accounts = accounts
        self.charges = charges
        self.scopes_version = scopes_version
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        if not draft.has_scopes_of(self.scopes_version, self.accounts) or not draft.pending.disjoint(
            self.keys
        ):
            raise Stale
        draws = {
            (account_id, CREDIT_COUNTER, 0): run.sums_nanos[-1]
            for account_id, run in self.draws.items()
            if run.times_us
        }
        for at, amount in (*self.charges.items(), *draws.items()):
            if abs(amount + draft.group.charges.get(at, 0)) > COUNTER_MAX:
                # A counter has 64 bits: the whole group would fail.
                raise BadParameter(
                    f"The events charge {at[1]} more than a counter can hold: send fewer at once.",
                    field="events",
                )
        draft.pending.add(self.keys, None if self.corrections else self.table)
        for at, amount in self.charges.items():
            draft.charge(at, amount, counted=False)
        for account_id, run in self.draws.items():
            draft.draw(account_id, run)
        draft.batches.append(self)


class PostGrants(CommitTask):
    """Grants and top-ups of credit."""

    __slots__ = ("grants",)

    def __init__(self, grants: list[Grant], future: CommitFuture) -> None:
        self.grants = grants
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.group.grants.extend(self.grants)


class RevokeGrant(CommitTask):
    """
    The revocation of a grant that is on its account's balance; a repeat changes nothing.

    Its result is the account's credit book after it.
    """

    __slots__ = ("grant",)

    def __init__(self, grant: RevokedGrant, future: CommitFuture) -> None:
        self.grant = grant
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        draft.group.revoked.append(self.grant)

    def result(self, committed: Committed) -> CreditBook:
        return committed.books[self.grant.account_id]


class PostTopUps(CommitTask):
    """
    Top-ups of budgets, and own amounts of budgets to be kept.

    Args:
        done: Called on the commit thread before anybody has an answer, so that the gate decides by them at once.
    """

    __slots__ = ("own_amounts", "top_ups")

    def __init__(
        self,
        top_ups: Sequence[TopUp],
        own_amounts: Sequence[OwnAmount],
        future: CommitFuture,
        done: Callable[[BaseException | None], None],
    ) -> None:
        self.top_ups = top_ups
        self.own_amounts = own_amounts
        self.future = future
        self.done = done

    def add(self, draft: Draft) -> None:
        draft.group.top_ups.extend(self.top_ups)
        draft.group.own_amounts.extend(self.own_amounts)


class ChangeScopes(CommitTask):
    """
    Budgets that come into or go out of force; from this group on, events are charged accordingly.

    Its result is the outbox row up to which events were charged to the scopes as they were before.
    """

    __slots__ = ("ended", "members", "started")

    def __init__(
        self,
        started: list[tuple[BudgetScope, int]],
        ended: list[tuple[str, str]],
        future: CommitFuture,
        members: Sequence[StartedBudget] = (),
    ) -> None:
        self.members = members
        """The scopes that start, each with the keys that it counts."""
        self.started = started
        self.ended = ended
        self.future = future
        self.done = None

    @property
    def accounts(self) -> set[str]:
        return {scope.account_id for scope, _ in self.started} | {account_id for account_id, _ in self.ended}

    def add(self, draft: Draft) -> None:
        draft.group.scopes.extend(self.started)
        draft.group.ended_scopes.extend(self.ended)


class ReadBarrier(CommitTask):
    """
    A read between two groups, when the ledger is as of one commit and nothing writes it.

    Its result is the value that *read* returned, and the outbox row up to which events are in the ledger.
    """

    __slots__ = ("read",)

    def __init__(self, read: Callable[[], Any], future: CommitFuture) -> None:
        self.read = read
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        # Nothing is written: it only has its place in the order of tasks.
        return


class AddCharges(CommitTask):
    """Charges without events. With none at all, a commit that takes the changed windows with it."""

    __slots__ = ("charges",)

    def __init__(self, charges: dict[CounterAt, int], future: CommitFuture) -> None:
        self.charges = charges
        self.future = future
        self.done = None

    def add(self, draft: Draft) -> None:
        for at, amount in self.charges.items():
            draft.charge(at, amount, counted=False)
