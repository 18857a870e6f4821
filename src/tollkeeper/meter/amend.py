"""
Corrections: amend or void an event that was booked. The old record stays; totals follow.

A correction appends the current record with `sign = -1` and, for an amendment, the new one with the next
`revision`, and charges the difference. Each has an id of its own: the same id again is the same correction.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.events import QUANTITY_CLASSES, Event, Record, latency_us, stated_quantities
from tollkeeper.domain.labels import LABELS, OTHER
from tollkeeper.domain.meter import NOT_OF_BODY, UNKNOWN_ROUTE, recharged, same_fields
from tollkeeper.domain.quantities import QUANTITIES_MAX, BadQuantity
from tollkeeper.errors import BadParameter, EventConflict, NotFound, Unavailable
from tollkeeper.ledger.commit_tasks import Stale
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.ledger.expired import expired_error
from tollkeeper.ledger.labels import Labels
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.meter.booking import book
from tollkeeper.meter.provider_usage import counted_event
from tollkeeper.ports import UsageStore
from tollkeeper.record_columns import records_of, table_of

T = TypeVar("T")

UNPRICED_BATCH: Final = 5_000
_TRIES: Final = 20
_FIXED: Final = ("id", "time", "account", "project", "key_id", "method", "route", "kind")
"""The fields that name an event cannot be corrected: void it and send another."""
_STATED: Final = frozenset({"given", "estimated"})
"""The states of a cost that the caller stated."""


class Correction(NamedTuple):
    """The result of a correction: the record in force (`sign` -1 when voided), and whether it was a repeat."""

    record: Record
    repeated: bool


class Amend:
    """One correction at a time, so that each sees what the one before left. Blocking; any thread may call."""

    def __init__(
        self,
        directory: Directory,
        store: UsageStore,
        pending: Pending,
        committer: Committer,
        delivery: Delivery,
        clock: Clock,
        labels: Labels,
    ) -> None:
        self._directory = directory
        self._store = store
        self._pending = pending
        self._committer = committer
        self._delivery = delivery
        self._clock = clock
        self._labels = labels
        self._lock = threading.Lock()

    def amend(self, account_id: str, event_id: str, correction_id: str, changes: Event) -> Correction:
        """
        Replace what *changes* states of an event; what it leaves out stays; the cost is found again.

        Args:
            correction_id: The caller's name for this correction, unique among its events and corrections.
            changes: An event whose `id` and `time` are not used, without the fields that name an event.

        Raises:
            NotFound: The account has no such event, or it was voided.
            DetailExpired: The event has expired.
            EventConflict: *correction_id* is the id of an event, of an open hold, or of another correction.
            BadParameter: *changes* states a field that cannot be corrected.
            Unavailable: A store failed; the same call again is safe.
        """
        for field in _FIXED[2:]:
            if getattr(changes, field) is not None:
                raise BadParameter(f"{field} names the event and cannot be amended: void it", field=field)
        return self._correct(account_id, event_id, correction_id, changes)

    def void(self, account_id: str, event_id: str, correction_id: str) -> Correction:
        """Take an event out of all totals. Errors as `amend`."""
        return self._correct(account_id, event_id, correction_id, None)

    def _correct(
        self, account_id: str, event_id: str, correction_id: str, changes: Event | None
    ) -> Correction:
        with self._lock:
            for _ in range(_TRIES):
                # Until the commit thread has looked: what is delivered meanwhile must not be missed by both.
                with self._pending.looking_up():
                    try:
                        return self._correct_once(account_id, event_id, correction_id, changes)
                    except Stale:
                        continue
        raise Unavailable("The event keeps changing. Try again.")

    def _correct_once(
        self, account_id: str, event_id: str, correction_id: str, changes: Event | None
    ) -> Correction:
        """Book a correction as the stores are now. Raises `Stale` when they changed before its commit."""
        current = self._current(account_id, event_id)
        key = key_of(account_id, correction_id)
        if self._is_known(account_id, correction_id):
            if (account_id, correction_id) in self._store.records([(account_id, correction_id)]):
                raise EventConflict(f"{correction_id[:128]!r} is the id of an event: use a new id.")
            if not self._is_repeat(current, correction_id, changes):
                raise EventConflict(
                    f"{correction_id[:128]!r} is the id of another correction, which counts: use a new id."
                )
            return Correction(current, True)
        if self._pending.is_held(key) or self._pending.is_own(key):
            raise EventConflict(f"{correction_id[:128]!r} is the id of an open hold: use a new id.")
        if self._pending.is_set_aside(key):
            raise EventConflict(f"{correction_id[:128]!r} is the id of a record that counts: use a new id.")
        if current.sign < 0:
            raise NotFound(f"Event {event_id[:128]!r} was voided: send a new event.")
        if changes is not None and current.adjustment_nanos:
            raise BadParameter(
                f"{event_id[:128]!r} is an adjustment, which cannot be amended: void it and post another",
                field="event",
            )
        received_at_us = self._clock.now_us()
        reversal = current._replace(
            sign=-1,
            received_at_us=received_at_us,
            amendment_id=correction_id if changes is None else "",
        )
        rows = [reversal]
        if changes is not None:
            amended = self._amended(current, changes)._replace(
                revision=current.revision + 1,
                received_at_us=received_at_us,
                amendment_id=correction_id,
            )
            if any(getattr(amended, name) != getattr(current, name) for name in LABELS):
                amended = self._labels.of_record(amended)
            rows.append(amended)
        self._book(rows, [key])
        return Correction(rows[-1], False)

    def price_unpriced(self, model: str | None = None) -> int:
        """
        Price the events that had no price when they came, as far as there are prices now; return how many.

        Safe to repeat: what was priced is no longer found.

        Raises:
            Unavailable: A store failed, or the usage store is behind: some may not be priced yet.
        """
        priced = 0
        last: Record | None = None
        with self._lock:
            # What is priced but not delivered yet would be found again.
            if not self._delivery.fresh(None):
                raise Unavailable("The usage store is behind. Try again.")
            while records := self._store.unpriced(model, UNPRICED_BATCH, last):
                last = records[-1]
                rows = list(self._repriced(records))
                if rows:
                    self._book_repriced(rows)
                    priced += len(rows) // 2
        return priced

    def _book_repriced(self, rows: Sequence[Record]) -> None:
        keys = [key_of(row.account_id, row.amendment_id) for row in rows if row.amendment_id]
        for _ in range(_TRIES):
            try:
                self._book(rows, keys)
            except Stale:
                continue
            return
        raise Unavailable("The budgets keep changing. Try again.")

    def _repriced(self, records: Iterable[Record]) -> Iterable[Record]:
        received_at_us = self._clock.now_us()
        for record in records:
            priced = self._priced(record)
            if priced.cost_state == "unpriced":
                continue
            yield record._replace(sign=-1, received_at_us=received_at_us, amendment_id="")
            yield priced._replace(
                revision=record.revision + 1,
                received_at_us=received_at_us,
                amendment_id=_pricing_id(record),
            )

    def _priced(self, record: Record) -> Record:
        """Return *record* at today's prices: see `domain.meter.recharged`."""
        key = self._directory.key(record.key_id) if record.key_id else None
        profile = "native" if key is None else key.entry.profile
        route = self._directory.route_table().match(record.method, record.route, profile)
        charged = recharged(
            self._directory.price,
            record,
            route or UNKNOWN_ROUTE,
            self._directory.scopes(record.account_id, record.project_id, record.key_id).plan_slug,
        )
        if OTHER in (record.method, record.route) and record.cost_state == "unpriced":
            # What it cost before its model has a price was its route's, which can be found no more.
            return charged._replace(cost_nanos=charged.cost_nanos + record.cost_nanos)
        return charged

    def _amended(self, current: Record, changes: Event) -> Record:
        if changes.usage is not None or changes.usage_of is not None:
            changes = counted_event(changes, in_place_of_others=True)
        tokens = changes.tokens
        new = current._replace(
            status=_or(changes.status, current.status),
            error_type=_or(changes.error_type, current.error_type),
            denied_reason=_or(changes.denied_reason, current.denied_reason),
            latency_us=current.latency_us if changes.latency_ms is None else latency_us(changes.latency_ms),
            bytes_out=_or(changes.bytes_out, current.bytes_out),
            model=_or(changes.model, current.model),
            cache=_or(changes.cache, current.cache),
            credits=_or(changes.credits, current.credits),
            tags=current.tags if changes.tags is None else changes.tags,
            variant=_or(changes.variant, current.variant),
        )
        if changes.quantities is not None or tokens is not None:
            new = new._replace(quantities=_amended_quantities(current.quantities, changes))
        if tokens is not None:
            new = new._replace(
                prompt_tokens=_or(tokens.prompt, current.prompt_tokens),
                cached_prompt_tokens=_or(tokens.cached_prompt, current.cached_prompt_tokens),
                completion_tokens=_or(tokens.completion, current.completion_tokens),
                reasoning_tokens=_or(tokens.reasoning, current.reasoning_tokens),
            )
        if changes.cost_nanos is not None:
            return new._replace(
                cost_nanos=changes.cost_nanos,
                provider_cost_nanos=_or(changes.provider_cost_nanos, changes.cost_nanos),
                cost_state="given",
                price_version="",
            )
        if changes.estimated_cost_nanos is not None:
            estimate = changes.estimated_cost_nanos
            return new._replace(
                cost_nanos=estimate,
                provider_cost_nanos=_or(changes.provider_cost_nanos, estimate),
                estimated_cost_nanos=estimate,
                cost_state="estimated",
                price_version="",
            )
        new = self._repriced_if_changed(current, new)
        if changes.provider_cost_nanos is not None:
            new = new._replace(provider_cost_nanos=changes.provider_cost_nanos)
        return new

    def _repriced_if_changed(self, current: Record, new: Record) -> Record:
        if current.cost_state in _STATED:
            return new
        if _decides_cost(new) == _decides_cost(current):
            return new
        self._check_priceable(new)
        return self._priced(new)

    def _check_priceable(self, record: Record) -> None:
        """Refuse to price by a label that was not kept: the cost would be another's, or nothing."""
        if OTHER in (record.method, record.route):
            raise BadParameter(
                f"The route of this event was stored as `{OTHER}`, so it cannot be priced again: state cost_nanos.",
                field="cost_nanos",
            )
        plan = self._directory.scopes(record.account_id, record.project_id, record.key_id).plan_slug
        known = self._directory.price(
            record.model, record.variant, record.account_id, plan, record.occurred_at_us
        )
        if record.model == OTHER and known is None:
            raise BadParameter(
                f"The model of this event was stored as `{OTHER}`: state the model, or cost_nanos.",
                field="model",
            )

    def _current(self, account_id: str, event_id: str) -> Record:
        if not self._delivery.fresh(account_id):
            raise Unavailable("The usage store is behind. Try again.")
        record = self._store.records([(account_id, event_id)]).get((account_id, event_id))
        if record is None:
            raise expired_error(self._store, account_id, event_id) or NotFound(
                f"There is no event {event_id[:128]!r}."
            )
        return record

    def _is_repeat(self, current: Record, correction_id: str, changes: Event | None) -> bool:
        """Return whether the known correction of this id did to the event what *changes* ask."""
        at_us = current.occurred_at_us
        revisions: dict[int, Record] = {}
        corrected: Record | None = None
        for piece in self._store.export(current.account_id, at_us, at_us + 1):
            for record in records_of(piece.filter(pc.equal(piece["id"], current.id))):
                if record.sign > 0:
                    revisions[record.revision] = record
                if record.amendment_id == correction_id:
                    corrected = record
        if corrected is None or (corrected.sign < 0) != (changes is None):
            return False
        if changes is None:
            return True
        asked = self._amended(revisions[corrected.revision - 1], changes)
        ours = NOT_OF_BODY
        if not _STATED & {asked.cost_state, corrected.cost_state}:
            # Today's prices are ours, not the caller's, as in `same_body`.
            ours |= {"cost_nanos", "provider_cost_nanos", "cost_state"}
        return same_fields(corrected, asked, ours)

    def _is_known(self, account_id: str, id_: str) -> bool:
        pair = pa.table({"account_id": [account_id], "id": [id_]})
        known: int = self._store.known_ids(pair).num_rows
        return known > 0

    def _book(self, rows: Sequence[Record], keys: list[str]) -> None:
        version = self._committer.scopes_version
        charges = self._directory.charges_of_all(rows)
        book(self._committer, table_of(rows), keys, charges, version, corrections=True)


def _pricing_id(record: Record) -> str:
    """Return the id of the correction that prices *record*: longer than any id that a caller may give."""
    digest = blake2b(record.id.encode()).hexdigest()
    return f"price:{record.revision + 1}:{digest}"


def _amended_quantities(current: Mapping[str, int], changes: Event) -> dict[str, int]:
    """Return quantities with those that *changes* state in their place, and without those that it states as 0."""
    try:
        stated = stated_quantities(changes.quantities, changes.tokens)
    except BadQuantity as exc:
        raise BadParameter(str(exc), field=exc.field) from None
    named = {name for name, value in (changes.quantities or {}).items() if value is not None}
    if changes.tokens is not None:
        named |= {f"{name}_tokens" for name in QUANTITY_CLASSES if getattr(changes.tokens, name) is not None}
    merged = {name: micros for name, micros in current.items() if name not in named} | stated
    if len(merged) > QUANTITIES_MAX:
        raise BadParameter(f"an event has at most {QUANTITIES_MAX} quantities", field="quantities")
    return {name: merged[name] for name in sorted(merged)}


def _or(value: T | None, other: T) -> T:
    return other if value is None else value


def _decides_cost(record: Record) -> tuple[object, ...]:
    """Return what the price of a record depends on, of what can be corrected."""
    return (
        record.status >= 400,
        bool(record.denied_reason),
        record.cache == "hit",
        record.model,
        record.prompt_tokens,
        record.cached_prompt_tokens,
        record.completion_tokens,
        record.reasoning_tokens,
        record.quantities,
        record.variant,
    )
