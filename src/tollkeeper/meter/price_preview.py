"""
What a span of history would have cost under other prices: nothing is changed.

Each record of the span is priced again by `domain.meter`, exactly, under the catalog's prices with those of a file put
over them. Reversals are priced like what they reverse, so what was amended or voided comes out as it stands. Records
are read in pieces and summed by account and model, so memory grows with these, not with events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.catalog import Entry
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import from_us as instant
from tollkeeper.domain.instants import to_text
from tollkeeper.domain.labels import OTHER
from tollkeeper.domain.meter import UNKNOWN_ROUTE, PriceOf, recharged
from tollkeeper.domain.pricing import ModelPrice
from tollkeeper.errors import BadParameter, Unavailable
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.ports import UsageStore
from tollkeeper.record_columns import records_of

PRICE_KINDS: Final = ("models", "prices", "markups")
"""Kinds of entry that decide what a model costs."""

Progress = Callable[[int], None]


class PreviewRow(NamedTuple):
    """
    One account's use of one model in the span.

    Attributes:
        events: Requests, less those that were voided.
        cost_nanos: As it is booked.
        new_cost_nanos: As it would be.
        unpriced: Events that have no price as booked; `new_unpriced` those that would have none.
    """

    account_id: str
    model: str
    events: int
    cost_nanos: int
    new_cost_nanos: int
    provider_cost_nanos: int
    new_provider_cost_nanos: int
    unpriced: int
    new_unpriced: int


_MEASURES: Final = len(PreviewRow._fields) - 2


class PricePreview:
    """Prices history again. Operators ask; it takes as long as reading the span takes."""

    def __init__(self, directory: Directory, store: UsageStore, delivery: Delivery) -> None:
        self._directory = directory
        self._store = store
        self._delivery = delivery

    def preview(
        self,
        entries: Sequence[Entry],
        *,
        from_us: int,
        to_us: int,
        account_id: str | None = None,
        progress: Progress = lambda done: None,
    ) -> list[PreviewRow]:
        """
        Return what the span would cost under *entries*, by account and model.

        Costs that callers stated, estimates and what is free stay as they are.

        Args:
            entries: Prices, mark-ups and aliases, put over those of the catalog by their ids.
            from_us: The span, half-open, microseconds since the Unix epoch.
            account_id: Only of this account.
            progress: Called with the records that were read so far.

        Raises:
            BadParameter: An entry is of another kind, or events of the span have expired.
            Unavailable: The usage store is behind, or failed.
        """
        for entry in entries:
            if entry.kind not in PRICE_KINDS:
                raise BadParameter(
                    f"{entry.kind}: a preview takes {', '.join(PRICE_KINDS)} only: leave the others out",
                    field=entry.kind,
                )
        if not self._delivery.fresh(account_id):
            raise Unavailable("The usage store is behind. Try again.")
        detail_from_us = self._store.detail_from_us(account_id)
        if detail_from_us is not None and from_us < detail_from_us:
            raise BadParameter(
                f"from: single events before {to_text(instant(detail_from_us))} have expired, and a preview prices "
                "each of them: begin then, or later",
                field="from",
            )
        price_of = _price_of(self._directory.price_book.with_entries(entries))
        sums: dict[tuple[str, str], list[int]] = {}
        read = 0
        for piece in self._store.export(account_id, from_us, to_us):
            self._add(sums, records_of(piece), price_of)
            read += piece.num_rows
            progress(read)
        return [PreviewRow(*at, *sums[at]) for at in sorted(sums) if any(sums[at])]

    def _add(
        self, sums: dict[tuple[str, str], list[int]], records: Iterable[Record], price_of: PriceOf
    ) -> None:
        for record in records:
            if record.adjustment_nanos:
                continue  # Money given or taken: no price decides it.
            new = self._priced(record, price_of)
            at = (record.account_id, record.model)
            row = sums.get(at)
            if row is None:
                row = sums[at] = [0] * _MEASURES
            sign = record.sign
            row[0] += sign
            row[1] += sign * record.cost_nanos
            row[2] += sign * new.cost_nanos
            row[3] += sign * record.provider_cost_nanos
            row[4] += sign * new.provider_cost_nanos
            row[5] += sign * (record.cost_state == "unpriced")
            row[6] += sign * (new.cost_state == "unpriced")

    def _priced(self, record: Record, price_of: PriceOf) -> Record:
        """Return *record* with its cost under other prices."""
        if record.cost_state not in ("priced", "unpriced") or not record.model or record.model == OTHER:
            return record
        if OTHER in (record.method, record.route):
            return record  # Its route's price can be found no more.
        key = self._directory.key(record.key_id) if record.key_id else None
        profile = "native" if key is None else key.entry.profile
        route = self._directory.route_table().match(record.method, record.route, profile)
        plan = self._directory.scopes(record.account_id, record.project_id, record.key_id).plan_slug
        return recharged(price_of, record, route or UNKNOWN_ROUTE, plan)


def _price_of(book: PriceBook) -> PriceOf:
    def price_of(model: str, variant: str, account_id: str, plan: str, at_us: int) -> ModelPrice | None:
        return book.price_of(model, account_id=account_id, at_us=at_us, variant=variant, plan=plan)

    return price_of
