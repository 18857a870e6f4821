"""
Pages of single events, newest first, each with what explains its numbers.

A page has every event that was acknowledged before the call, or says that it is not complete, as a report does. It
shows each event as it stands: an amended one in its newest version, with what its corrections changed; a voided one
not at all, as no total has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa

from tollkeeper.clock import Clock
from tollkeeper.domain.event_pages import EventPage, EventQuery, cursor_of, merged, place_at, place_of
from tollkeeper.domain.events import Record, record_to_event
from tollkeeper.domain.increments import is_selected
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.store_answers import EventRows
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.ports import UsageStore
from tollkeeper.record_columns import records_of
from tollkeeper.usage.fresh_reads import FreshReads
from tollkeeper.usage.query_turns import QueryTurns

_NOT_CHANGED: Final = frozenset({"id", "time", "received_at", "account", "revision", "provider_cost_nanos"})
"""Fields of an event that its corrections do not list: they name it, differ each time, or are the operator's."""


class ExplainsPrices(Protocol):
    """Says how the cost of a record came about: `meter.price_lines.PriceLines`."""

    def of(self, record: Record) -> Mapping[str, Any]:
        """Return the `price` of an event."""


class EventPages:
    """Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(
        self,
        store: UsageStore,
        reads: FreshReads,
        delivery: Delivery,
        turns: QueryTurns,
        clock: Clock,
        prices: ExplainsPrices,
    ) -> None:
        self._store = store
        self._reads = reads
        self._delivery = delivery
        self._turns = turns
        self._clock = clock
        self._prices = prices

    def page(self, query: EventQuery) -> EventPage:
        """
        Return a page of events.

        Raises:
            BadParameter: The cursor is not one of this query, or a filter names no dimension.
            QueryTooLarge, QueryTooSlow: A part of the search takes more than a query may.
            TooManyQueries: Others of the same account are under way (`callers.CALLER`).
            Unavailable: The usage store cannot be read.
        """
        place_at(query)  # A bad cursor is refused before anything is waited for.
        as_of_us = self._clock.now_us()
        booked = self._delivery.booked()
        with self._turns.of_caller(query.account_id):
            found = self._reads.read(
                query.account_id, lambda pending: self._rows(query, pending), booked=booked
            )
            rows = found.answer
            earlier = self._earlier(rows.records)
        return EventPage(
            events=[self._event(record, earlier.get(_key(record), [])) for record in rows.records],
            next_cursor=None if rows.reached is None else cursor_of(rows.reached, query),
            as_of_us=as_of_us,
            complete=found.complete and not rows.lacks_detail,
            behind_s=found.behind_s,
            detail_from_us=rows.detail_from_us,
            lacks_detail=rows.lacks_detail,
        )

    def _rows(self, query: EventQuery, pending: Sequence[Record]) -> EventRows:
        stored = self._store.latest(query)
        place = place_at(query)
        newer = [
            record
            for record in pending
            if is_selected(query, record)
            and query.denied in (None, bool(record.denied_reason))
            and (place is None or place_of(record) < place)
        ]
        records, reached = merged(stored.records, newer, stored.reached, query.limit)
        return stored._replace(records=records, reached=reached)

    def _earlier(self, records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
        """Return the versions before the newest of those events that were amended, oldest first."""
        revised = {_key(record): record.revision for record in records if record.revision}
        if not revised:
            return {}
        accounts, ids = zip(*revised, strict=True)
        keys = pa.table({"account_id": pa.array(accounts, pa.string()), "id": pa.array(ids, pa.string())})
        versions: dict[tuple[str, str], list[Record]] = {}
        for version in sorted(records_of(self._store.revisions(keys)), key=lambda found: found.revision):
            if version.revision < revised[_key(version)]:
                versions.setdefault(_key(version), []).append(version)
        return versions

    def _event(self, record: Record, earlier: Sequence[Record]) -> dict[str, Any]:
        event = record_to_event(record) | {"voided": False, "price": self._prices.of(record)}
        if earlier:
            event["corrections"] = [
                _correction(old, new) for old, new in zip(earlier, [*earlier[1:], record], strict=True)
            ]
        return event


def _correction(old: Record, new: Record) -> dict[str, Any]:
    """Return what the correction that made *new* of *old* changed: field → the value before, and after."""
    before, after = record_to_event(old), record_to_event(new)
    changed = {
        name: [before.get(name), after.get(name)]
        for name in sorted(before.keys() | after.keys())
        if name not in _NOT_CHANGED and before.get(name) != after.get(name)
    }
    return {
        "id": new.amendment_id,
        "at": to_text(from_us(new.received_at_us)),
        "revision": new.revision,
        "changed": changed,
    }


def _key(record: Record) -> tuple[str, str]:
    return record.account_id, record.id
