"""
The ports: one small Protocol per need of the rooms, written so that an adapter can be made
from it alone. `tests/contract` has a suite for each, run over every adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from tollkeeper.audit import AuditLog
from tollkeeper.domain.bookings import (
    Committed,
    Group,
    OutboxBatch,
    OutboxEntry,
    PendingRow,
    SetAside,
    StoredHold,
    ToppedUp,
)
from tollkeeper.domain.catalog import Entry, Grant, Key, KeyState, Plan, Price
from tollkeeper.domain.events import Record
from tollkeeper.domain.first_use import Span
from tollkeeper.domain.keys import Actor, KeyOrigin, StoredKey
from tollkeeper.domain.matching import Conditions
from tollkeeper.domain.pairing import BatchMark, LedgerPast, StorePast
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.store_answers import CostSum as CostSum
from tollkeeper.domain.store_answers import Losses as Losses
from tollkeeper.domain.store_answers import ReportRows as ReportRows
from tollkeeper.domain.top_ups import TopUp
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.domain.webhooks import DeliveryResult, StoredWebhook, WebhookMessage
from tollkeeper.event_expiry import EventExpiry
from tollkeeper.event_lists import EventLists

if TYPE_CHECKING:
    import pyarrow as pa


class UsageStore(EventExpiry, EventLists, Protocol):
    """
    The projection that answers usage queries: every record, and rollups of them.

    One thread writes (the relay); any may read. Every method raises `Unavailable`, and no other error of the engine.
    """

    def past(self, installation_id: str) -> StorePast:
        """
        Return the batches that were noted by `begin`, and how many records the store has.

        Called before the first batch of a process, and by verify. Takes as long with many records as with few.
        """

    def begin(self, mark: BatchMark) -> None:
        """
        Note that a batch is about to be appended, durably; a repeat changes nothing.

        Called by the relay before the `append` of each batch, so that the store has no batch that was not noted.
        """

    def append(self, records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        """
        Insert *records* (columns of `record_columns.SCHEMA`) and their rollups, all or nothing. Durable when it
        returns, power loss included.

        Called by the relay with the same *records* and *token* until it returned once; a repeat after a
        lost answer, however late, changes nothing.

        Args:
            records: The records to insert.
            token: Names this append.
            begun_after: None when nobody called with *token* before. Else how many records were appended before:
                the earlier call may have been cut short at any step, by the end of its process too. Takes longer.
        """

    def known_ids(self, keys: pa.Table) -> pa.Table:
        """
        Return which of the `(account_id, id)` pairs in *keys* (two string columns of these names) are the
        id of a stored event or of an amendment; in no order, and one of several revisions several times.

        Called by the committer for each batch whose ids are the caller's.
        """

    def records(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        """
        Return the current record (highest revision, `sign` 1) of each `(account_id, id)` that has one.

        A voided event has a current record with `sign` -1: its last. Unknown ids are absent.
        """

    def record_columns(self, keys: pa.Table) -> pa.Table:
        """
        Return the current records of many ids: a table of `record_columns.SCHEMA`, in no order. See `records`.

        Args:
            keys: Two string columns, `account_id` and `id`.
        """

    def owners(self, id_: str) -> list[str]:
        """Return the accounts that have a stored event of this id."""

    def report(self, query: UsageQuery, with_pending: Sequence[Record] = ()) -> ReportRows:
        """
        Answer *query* from rollups where possible, from records where it is finer than any rollup.

        Args:
            query: The query.
            with_pending: Records of sign 1, some hundred at most, that count too. The store must have neither them
                nor a correction of one of them.
        """

    def charged(
        self,
        account_id: str,
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
    ) -> CostSum:
        """
        Sum what events of one account in `[from_us, to_us)` were charged, from records, not rollups.

        Called when a budget is created (to start its counter) and by verify. None for *project_id*, *key_ids* or
        *match* means any. Expired records count; raises `DetailExpired` where the sums that are kept do not tell.
        """

    def charged_by(
        self,
        account_id: str,
        by: Sequence[str],
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
        cuts_us: Sequence[int] = (),
    ) -> dict[tuple[str, ...], CostSum]:
        """
        Return these sums for each combination of the values *by* (`values_of`) of the events; for `()` in any case.

        *cuts_us*: up to 1,000 times from *from_us* on; each combination ends with the start of its part, as text.
        """

    def first_by(
        self,
        account_id: str,
        by: Sequence[str],
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
    ) -> dict[tuple[str, ...], int]:
        """Return when the first event of each of them occurred, voided ones included; without events, it is absent."""

    def unpriced(self, model: str | None, limit: int, after: Record | None = None) -> list[Record]:
        """
        Return up to *limit* current records whose `cost_state` is `unpriced`, those after *after*.

        They are in order of time, then account, then id.
        """

    def export(self, account_id: str | None, from_us: int, to_us: int) -> Iterator[pa.Table]:
        """Yield all records (every revision) of a span, in pieces, for archives and tests."""

    def differences(self, records_min: int = 0) -> list[str]:
        """
        Recompute rollups and the id index from the records; return a line per difference.

        Also when records are damaged, or fewer than *records_min*: how many were appended.
        """

    def duplicates(self) -> list[str]:
        """Return a line per record that is stored more than once: its account, event and key, and how often."""

    def losses(self) -> Losses:
        """
        Return which records, rollups and ids are missing, at the cost of a count: parts that the engine set aside, and
        tables that have fewer records than another one. While rollups or ids are missing, methods that read them
        raise `Unavailable`.

        Called when no append is under way, nor any that failed to be repeated.
        """

    def rebuild(self, records_min: int = 0) -> Mapping[str, int]:
        """
        Rebuild rollups and the id index from the records; return rows written per table.

        Raises:
            Unavailable: Records are damaged, or fewer than *records_min*; nothing was changed.
        """

    def ready(self) -> bool:
        """Return whether the engine answers now."""

    def close(self) -> None:
        """Release the engine. Further calls are an error of the caller."""


ChangeAction = Literal["created", "changed", "unchanged", "deleted"]
"""What a call did to an entry of the catalog; a `put` never deletes."""


class PlanVersion(NamedTuple):
    """One version of a plan, as it was from *created_at_us* until the next version."""

    version: int
    plan: Plan
    created_at_us: int


class Catalog(AuditLog, Protocol):
    """
    Reads and writes of catalog entries. Called by `catalog.manage` and, for look-ups, by the gate.

    *account* is an account's id: with it, an entry of another account does not exist (an entry of a kind
    that has no account, or a price for all, exists for everybody). Entries of projects, subscriptions,
    budgets and grants have ids that are unique within their account only, so `get` and `delete` need it.

    Every method raises `Unavailable` when the engine fails; nothing else of the engine's errors gets out.
    """

    def get(self, kind: str, entry_id: str, account: str | None = None) -> Entry | None:
        """Return one entry, or None. A key has the state that was set, and no `sha256`."""

    def list(
        self, kind: str, *, account: str | None = None, after: str | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """Return up to *limit* entries by `cursor_of`, after *after*: a cursor, or an id where *account* is given."""

    def entries(self, kind: str, account: str | None = None) -> Sequence[Entry]:
        """Return all entries of *kind*, of one account or of all."""

    def put(self, entry: Entry, now_us: int, *, origin: KeyOrigin | None = None) -> ChangeAction:
        """
        Store *entry* whole, in place of the one of its id. A plan that changes gets the next version.

        The caller has checked it. Of a key, everything but its secret; keys are made by `add_key`. *origin* is
        stored with a key that changes; None leaves it as it is.

        Raises:
            NotFound: *entry* is a key that does not exist.
        """

    def delete(self, kind: str, entry_id: str, account: str | None = None) -> bool:
        """Remove an entry (not a key: see `set_key_state`); return whether there was one."""

    def referrers(
        self, kind: str, entry_id: str, account: str | None = None, *, limit: int
    ) -> Sequence[tuple[str, str]]:
        """
        Return `(kind, id)` of entries that name this one, up to *limit*: by kind, then id.

        Deleted keys count for their account only: nothing else is kept for a tombstone.
        """

    def plan_versions(self, slug: str) -> Sequence[PlanVersion]:
        """Return every version of a plan, oldest first; of a deleted plan too."""

    def add_key(
        self,
        entry: Key,
        *,
        secret_sha256: str,
        shown_prefix: str | None,
        now_us: int,
        rotation_chain_id: str | None = None,
        origin: KeyOrigin = KeyOrigin(),
        created_at_us: int | None = None,
    ) -> None:
        """
        Store a new key; *rotation_chain_id* is its own id unless it replaces another, *created_at_us* is *now_us*
        unless it was made before.

        Raises:
            Conflict: The id or the secret is taken, by whatever account.
        """

    def set_key_state(
        self, account: str, key_id: str, state: KeyState, now_us: int, *, by: Actor = "operator"
    ) -> bool:
        """Set the state of a key and who set it; return whether the account has it. `revoked_at` is kept once set."""

    def replace_key(self, account: str, key_id: str, *, by: str, expires_at_us: int, now_us: int) -> bool:
        """Note that a rotation put key *by* in its place and ends it; return whether the account has it."""

    def find_key_by_hash(self, secret_sha256: str) -> StoredKey | None:
        """Return the key of a secret's hash, in whatever state it is."""

    def find_key(self, key_id: str) -> StoredKey | None:
        """Return the key of an id, of whatever account and state."""

    def keys_of_account(self, account: str) -> Sequence[StoredKey]:
        """Return all keys of an account, tombstones too, by id."""

    def touch_keys(self, last_used_at_us: Mapping[str, int]) -> None:
        """Note when keys (by id) were last used. An instant never goes back; unknown ids are ignored."""


class CatalogStore(Catalog, Protocol):
    """The catalog. Each call is a transaction of its own, unless made on what `transaction` gives."""

    def transaction(self, *, dry_run: bool = False) -> AbstractContextManager[Catalog]:
        """
        Run many calls as one: all kept when the block ends, none when it raises or with *dry_run*.

        One transaction writes the catalog at a time, on however many nodes, from the start of the block:
        what it reads stays true until it ends. It is bound to the thread that opened it.
        """


def cursor_of(entry: Entry) -> str:
    """Return the place of *entry* in lists of its kind: `<account>/<id>`, or the id where that is unique."""
    if "account" in entry.__struct_fields__ and not isinstance(entry, Price):
        account: str = entry.account  # type: ignore[attr-defined]
        return f"{account}/{entry.entry_id}"
    return entry.entry_id


class OutboxReader(Protocol):
    """
    What waits in the outbox, and what became of it. Any thread may call.

    Every method raises `Unavailable` when the database fails.
    """

    def pending(self, after_seq: int = 0, rows_max: int = ...) -> list[PendingRow]:
        """
        Return the first outbox rows after *after_seq* that are to be relayed, at most *rows_max*, oldest first.

        Called until it returns nothing, at start and when a budget comes into force.
        """

    def entries(self, seqs: Sequence[int]) -> dict[int, OutboxEntry]:
        """Return those outbox rows that are still there, by number: relayed ones are not."""

    def delivered_records(self) -> int:
        """Return how many records were delivered, at least: those before this was counted are not among them."""

    def set_asides(self) -> list[SetAside]:
        """Return what was set aside, oldest first."""


class Outbox(OutboxReader, Protocol):
    """
    Records that are committed and not yet in the usage store. The relay calls it, one thread at a time.

    `Ledger.commit` adds to it. Everything raises `Unavailable` when the database fails; then nothing of the call was
    written.
    """

    def next_batch(self, records_max: int, *, seq_max: int | None = None) -> OutboxBatch | None:
        """
        Return the batch that was begun and not delivered, else begin one; None when the outbox is empty.

        A batch keeps its mark and its rows until `delivered`. It takes the oldest rows, whole, up to
        *records_max* records (at least one row), none beyond row *seq_max*.

        Raises:
            LedgerInUse: The database lacks a batch that was begun or delivered here: it was restored from a copy.
        """

    def delivered(self, mark: BatchMark) -> None:
        """
        Delete the rows of a batch, and count their records. A repeat changes nothing.

        Raises:
            LedgerInUse: The database has no trace that the batch was begun: it was restored from a copy.
        """

    def past(self) -> LedgerPast:
        """Return what there is to compare with the usage store."""

    def note_behind(self, batch: int, now_us: int) -> None:
        """
        Note that the usage store may have records of the outbox, and of holds, as they are now.

        Batches are numbered from beyond *batch* on. A repeat changes nothing.
        """

    def is_behind(self) -> bool:
        """Return whether such records may still come; when all have, this is forgotten."""

    def raise_delivered(self, records: int) -> None:
        """Count at least so many records as delivered: an earlier version delivered some without counting them."""

    def set_aside(self, seq: int, reason: str) -> None:
        """Take an outbox row that cannot be read out of its batch, and keep it. A repeat changes nothing."""


class LedgerReader(Protocol):
    """
    What the ledger has of each account, as of its last commit. Any thread may call.

    The port of services that read the ledger and write nothing. Every method raises `Unavailable` when the database
    fails.
    """

    @property
    def outbox(self) -> OutboxReader:
        """Records of the same database that must still be relayed."""

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        """Return what one counter was charged, and the number of the commit as of which that is."""

    def value_counters(self, account_id: str, counter_id: str, period_start_us: int) -> dict[str, int]:
        """Return the counters of values that a budget counts apart (`matching.counter_of_values`): id → charged."""

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        """Return the stored `slot → used` of a rate counter."""

    def opened_periods(
        self, account_id: str, counter_id: str, period: str, ends_after_us: int
    ) -> tuple[int | None, list[Span]]:
        """
        Return from when on a budget in force counts (None: it is not in force), and its periods of the name *period*
        that opened with their first use since then and that end after *ends_after_us*, ascending.
        """

    def top_up(self, account_id: str, top_up_id: str) -> TopUp | None:
        """Return one top-up of a budget, or None."""

    def topped_up(self, account_id: str, counter_id: str) -> ToppedUp:
        """Return the top-ups of one counter, and what decides how much is left of them."""

    def own_amounts(self, account_id: str) -> dict[str, int]:
        """Return the newest own amount that is kept of each counter that has a top-up which lasts."""

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        """Return an account's credit book, and the number of a commit that it is not older than."""

    def scopes(self, account_id: str) -> dict[str, tuple[str, int]]:
        """Return the budget counters in force: counter id → (fingerprint, start of its first period)."""

    def counter_rows(self, account_id: str) -> dict[tuple[str, int], int]:
        """Return all counters of an account: (counter id, period start) → used."""

    def posting_sums(self, account_id: str) -> dict[tuple[str, int], int]:
        """Return the same as `counter_rows`, summed from the postings."""

    def charged_accounts(self) -> list[str]:
        """Return the accounts that have counters."""


class Ledger(LedgerReader, Protocol):
    """
    The truth about money. Everything raises `Unavailable` when the database fails; then nothing of the call was
    written.
    """

    installation_id: str
    """The permanent id of this installation; part of every deduplication token."""

    @property
    def outbox(self) -> Outbox:
        """Records of the same database that must still be relayed."""

    def commit(self, group: Group) -> Committed:
        """
        Write *group* in one transaction, durably.

        Called by the committer only, one group at a time. Charging 0 writes nothing; a grant that is
        posted already is left alone, and so is one to be revoked that is not on the balance. Draws on credit are
        charged to the grants of their own time (`domain.draws`), after grants are posted and before they are revoked.
        When the database's answer to the commit itself is lost, this finds out what came of it before it returns or
        raises.

        Raises:
            InvariantBroken: A credit book would not balance.
            Conflict: A hold of the group exists.
            BadInput: A value does not fit its column.
        """

    def unposted_grants(self) -> list[Grant]:
        """Return grants of the catalog that are not on a balance yet: a crash came between. Called at start."""

    def open_holds(self) -> list[StoredHold]:
        """Return all holds that have no ending, oldest first. Called at start."""

    def hold(self, account_id: str, hold_id: str) -> StoredHold | None:
        """Return a hold that is open, voided or expired; None for one that was settled or never made."""

    def hold_owners(self, hold_id: str) -> list[str]:
        """Return the accounts that have a hold of this id, in whatever state."""

    def purge(self, now_us: int) -> int:
        """Delete windows and ended holds that mean nothing any more; return how many rows."""

    def ping(self) -> None:
        """Raise `Unavailable` unless the database answers."""

    def close(self) -> None:
        """Release the database."""


class WebhookStore(Protocol):
    """
    Webhooks, and the messages that were sent or are due. Called by `alerts.webhooks`.

    Every method raises `Unavailable` when the engine fails; then nothing of the call was written.
    """

    def hooks(self) -> Sequence[StoredWebhook]:
        """Return all webhooks of the catalog."""

    def hook(self, account_id: str, webhook_id: str) -> StoredWebhook | None:
        """Return one webhook, or None."""

    def add(self, messages: Sequence[WebhookMessage]) -> Sequence[WebhookMessage]:
        """
        Store *messages* as due and return those that are new, durably.

        One that the store has is left alone: of one webhook, budget, period and threshold there is one, by
        whichever of several callers at a time.
        """

    def due(self, now_us: int, *, limit: int, but_accounts: Collection[str] = ()) -> Sequence[WebhookMessage]:
        """Return up to *limit* messages that are due at *now_us*, the longest due first."""

    def postpone(self, message_id: str, *, attempts: int, due_at_us: int) -> None:
        """Note that a message was sent *attempts* times in vain, and is due again at *due_at_us*."""

    def ended(self, message_id: str, outcome: Literal["delivered", "failed"], *, attempts: int) -> None:
        """Note that a message is not sent any more."""

    def disabling(self) -> Sequence[WebhookMessage]:
        """Return the messages whose keys are to become inactive and were not said to be so by `disabled`."""

    def disabled(self, message_id: str) -> None:
        """Note that the keys of a message are inactive."""

    def purge(self, before_us: int) -> None:
        """Remove the sent messages of periods that ended before *before_us*, and all messages of deleted webhooks."""


class WebhookSender(Protocol):
    """Brings one message to its receiver. Any thread may call."""

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> DeliveryResult:
        """
        POST *body* once, without following a redirect, and return what came of it, in bounded time.

        Never raises for what network or receiver do, nor for an address that may not be sent to.
        """

    def close(self) -> None:
        """End what is under way, as failed."""


class TokenHeader(NamedTuple):
    """
    What a token says of itself before anything is verified.

    Attributes:
        algorithm: As in the token: of any JSON type.
        key_id: Names the public key; "" when the token names none.
    """

    algorithm: object
    key_id: str


class TokenVerifier(Protocol):
    """Signs and verifies session tokens (JWT), for `catalog.sessions`. Any thread may call."""

    def sign(self, claims: Mapping[str, Any], secret: str, algorithm: str) -> str:
        """Return a token that says *claims*, signed with a shared *secret*."""

    def header(self, token: str) -> TokenHeader:
        """Return what *token* says of itself. Raises `ValueError` when it is not a token."""

    def verify(
        self, token: str, key: object, *, algorithms: Sequence[str], issuer: str, audience: str
    ) -> dict[str, Any]:
        """
        Return the claims of *token*, among them `exp` and `sub`. The caller checks their types, and the times.

        Args:
            key: A shared secret, or a key of `public_keys`.
            audience: The `aud` that the token must have; "" when it need not have one.

        Raises:
            ValueError: The signature is not of *key* by one of *algorithms*, or a claim is missing or another.
        """

    def public_keys(self, source: str) -> Mapping[str, object]:
        """
        Return the public keys at *source* (an https URL or a path, which `check_login` has passed) by their ids.

        Raises:
            OSError: It cannot be read, in bounded time.
            ValueError: It is not a JWKS.
        """
