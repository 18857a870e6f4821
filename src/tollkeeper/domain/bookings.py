"""
What one group commit writes, as plain data: a group of bookings goes into the ledger whole or not at all.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.draws import Draws
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.requests import Outcome
from tollkeeper.domain.top_ups import OwnAmount, TopUp

CounterAt = tuple[str, str, int]
"""
`(account_id, counter_id, period_start_us)`: names one row of the counters.

A credit balance has one row, with 0. In a charge to it the third is the time of the request that drew on it.
"""

OutboxFormat = Literal["rows", "arrow"]
"""`rows`: MessagePack of a list of records; `arrow`: one Arrow IPC stream."""


class HoldBody(msgspec.Struct, frozen=True):
    """All that must survive a crash of a hold made over HTTP."""

    key_id: str
    method: str
    path: str
    amounts: tuple[int, int, int, int]
    """Requests, tokens, nanos, credits."""
    expected: tuple[int, int, int, int, str]
    """Prompt, cached prompt, completion, reasoning tokens; model."""
    at_us: int
    expires_at_us: int
    fingerprint: str
    """What the caller sent, to distinguish a retry from another request under the same id."""
    tags: dict[str, str] = {}
    project: str | None = None
    """That of the key when the request was admitted, `""` for none; None in holds from before this was kept."""
    quantities: dict[str, int] = {}
    """Expected, in micro-units."""
    variant: str = ""
    at_expiry: Outcome | None = None
    """What is booked when it expires; None voids it."""
    user: str = ""
    """Of a request without a key: who signed in."""
    profile: str = "native"
    """Of a request without a key."""


class StoredHold(NamedTuple):
    """A hold as the ledger has it. A settled hold has no row: its event is the proof."""

    account_id: str
    hold_id: str
    state: Literal["open", "voided", "expired"]
    body: HoldBody


class EndedHold(NamedTuple):
    """The one ending of a hold."""

    account_id: str
    hold_id: str
    ending: Literal["settled", "voided", "expired"]
    at_us: int


class OutboxEntry(NamedTuple):
    """Records on their way to the usage store."""

    format: OutboxFormat
    payload: bytes
    record_count: int
    keys: bytes = b""
    """MessagePack of the list of ids that the records take, each with its account (see `ledger.pending`)."""


class OutboxBatch(NamedTuple):
    """Outbox rows that go to the usage store as one insert, each with its number."""

    mark: BatchMark
    rows: list[tuple[int, OutboxEntry]]


class PendingRow(NamedTuple):
    """An outbox row that is to be relayed, without its records."""

    seq: int
    record_count: int
    keys: bytes
    committed_at_us: int


class SetAside(NamedTuple):
    """An outbox row that cannot be relayed, and why."""

    seq: int
    record_count: int
    reason: str
    keys: bytes


class WindowState(NamedTuple):
    """What one rate counter had counted: `slot → used`, meaningless from `expires_at_us` on."""

    account_id: str
    counter_id: str
    slots: dict[int, int]
    expires_at_us: int


class RevokedGrant(NamedTuple):
    """A grant that is taken back."""

    account_id: str
    grant_id: str


class OpenedPeriod(NamedTuple):
    """A period of a budget that opened with its first use: see `domain.first_use`."""

    account_id: str
    counter_id: str
    period: str
    start_us: int
    end_us: int


class ToppedUp(NamedTuple):
    """
    What was added to one counter, and what decides how much is left of it.

    Attributes:
        posted: Its top-ups, the oldest first.
        own: The own amounts that are kept, the oldest first; none without a top-up that lasts until it is used.
        used: What each of its periods was charged, as of *commit_seq*; empty as *own*.
    """

    posted: list[TopUp]
    own: list[OwnAmount]
    used: dict[int, int]
    commit_seq: int


class Group(msgspec.Struct):
    """Everything that one transaction writes."""

    now_us: int
    opened: list[StoredHold] = []
    amended: list[StoredHold] = []
    """Open holds whose body is another now."""
    ended: list[EndedHold] = []
    charges: dict[CounterAt, int] = {}
    draws: dict[str, Draws] = {}
    """Account → the times of what its credit is charged; the part that is not in here is drawn at *now_us*."""
    windows: list[WindowState] = []
    opened_periods: list[OpenedPeriod] = []
    """Periods that opened with their first use and that the ledger may not have yet."""
    top_ups: list[TopUp] = []
    own_amounts: list[OwnAmount] = []
    outbox: list[OutboxEntry] = []
    grants: list[Grant] = []
    """Posted before anything is drawn."""
    revoked: list[RevokedGrant] = []
    """Revoked after everything is drawn."""
    scopes: list[tuple[BudgetScope, int]] = []
    """Budget counters that come into force, each with the start of the period it counts from."""
    ended_scopes: list[tuple[str, str]] = []
    """`(account_id, counter_id)` of budgets that are no longer in force."""


class Committed(NamedTuple):
    """The result of a group commit."""

    commit_seq: int
    outbox_seqs: list[int]
    books: dict[str, CreditBook]
    """Account → its credit book, for each account whose balance the group changed."""
