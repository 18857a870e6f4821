"""
The price book: which price applies to a model, for an account, at an instant.

The account's own catalog entry wins over the entry for all accounts, either over the built-in list (see
`catalog.listed_prices`). What no source knows has no price: never 0. A variant of a model (`batch`, `flex`) has the
price that is stated for that variant, never the one without. The mark-up comes last, on any price. Prices are resolved
once per model, variant, account and plan into a timeline of exact prices, to the microsecond, time-of-day prices
included; after that a look-up is one dict hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tollkeeper.catalog.listed_prices import ListedPrices
from tollkeeper.catalog.model_names import Listed
from tollkeeper.catalog.price_timeline import TIMELINES_MAX, UNKNOWN, PriceTimeline, in_force, timeline_of
from tollkeeper.domain.catalog import Entry, Markup, ModelAlias, Price
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.model_aliases import alias_target
from tollkeeper.domain.model_patterns import is_pattern, matches
from tollkeeper.domain.price_entries import variant_of
from tollkeeper.domain.pricing import (
    ModelPrice,
    marked_up,
    markup_rank,
    price_of_entry,
    price_of_factor,
    price_rank,
)


class PriceBook:
    """
    Prices of models, resolved and remembered. Any thread may ask; a change of the catalog makes a new book.

    Args:
        prices: The catalog's price entries.
        markups: The catalog's mark-ups.
        aliases: The catalog's other names of models.
        built_in: Whether models without an entry are looked up in the built-in list. Its import (0.2 s) waits
            until a model first needs it.
    """

    def __init__(
        self,
        prices: Sequence[Price],
        markups: Sequence[Markup] = (),
        aliases: Sequence[ModelAlias] = (),
        *,
        built_in: bool = True,
    ) -> None:
        self._stated: tuple[Sequence[Entry], ...] = (prices, markups, aliases)
        self._aliases = {alias.id: alias.target for alias in aliases}
        self._built_in = ListedPrices() if built_in else None
        self._entries: dict[tuple[str, str, str], list[Price]] = {}
        """By the model's name, variant and account, `""` for all."""
        self._factors: dict[str, list[Price]] = {}
        """Entries whose model is a pattern, by variant; all of them have a factor."""
        for entry in prices:
            variant = variant_of(entry.variant)
            if is_pattern(entry.model):
                self._factors.setdefault(variant, []).append(entry)
            else:
                self._entries.setdefault((entry.model, variant, entry.account or ""), []).append(entry)
        self._markups: dict[tuple[str, str], list[Markup]] = {}
        """By account and plan, `""` for all."""
        for markup in markups:
            self._markups.setdefault((markup.account or "", markup.plan or ""), []).append(markup)
        self._timelines: dict[tuple[str, str, str, str], PriceTimeline] = {}
        accounts = [*(entry.account for entry in prices), *(markup.account for markup in markups)]
        self.own_accounts: Final = frozenset(account for account in accounts if account is not None)
        """The accounts that have an entry of their own; all others share the general prices."""
        self.own_plans: Final = frozenset(markup.plan for markup in markups if markup.plan is not None)
        """The plans that have a mark-up of their own."""

    def price_of(
        self, model: str, *, account_id: str, at_us: int, variant: str = "", plan: str = ""
    ) -> ModelPrice | None:
        """
        Return the price of *model* for an event of *account_id* at *at_us*, or None when it has none.

        Args:
            model: As a gateway names it: `gpt-4o`, or `azure/DeepSeek-V3.2` with the seller in front. Catalog
                entries match the whole name exactly.
            account_id: Whose event it is; `""` for nobody's, which sees the general prices.
            at_us: When it occurred, microseconds since the Unix epoch.
            variant: Of the model, in any case; `price_entries.STANDARD_VARIANTS` are none.
            plan: Slug of the plan of the event's key, else of its account; `""` for none.
        """
        return self.timeline(model, account_id, variant, plan).at(at_us)

    def timeline(self, model: str, account_id: str, variant: str = "", plan: str = "") -> PriceTimeline:
        """Return all prices of *model*: what `price_of` and the columns look into."""
        key = (
            model,
            account_id if account_id in self.own_accounts else "",
            variant,
            plan if plan in self.own_plans else "",
        )
        timeline = self._timelines.get(key)
        if timeline is None:
            timeline = self._resolve(key[0], key[1], variant_of(variant), key[3])
            if len(self._timelines) >= TIMELINES_MAX:
                self._timelines.clear()
            self._timelines[key] = timeline
        return timeline

    @property
    def own_names(self) -> list[str]:
        """The names of models that the catalog's entries and aliases have, patterns left out."""
        return sorted({name for name, _, _ in self._entries} | self._aliases.keys())

    def means(self, model: str) -> str:
        """Return the name that *model* stands for; itself where it is no alias."""
        return alias_target(self._aliases, model)

    def listed(self, model: str) -> Listed | None:
        """Return which model of the built-in list a name means, and why; None if it means none."""
        return None if self._built_in is None else self._built_in.found(model)

    def nearest(self, model: str) -> list[str]:
        """Return the names of the built-in list that look most like *model*, the nearest first."""
        return [] if self._built_in is None else self._built_in.nearest(model)

    def listed_prices(self, at_us: int) -> Iterator[tuple[str, str, ModelPrice | None]]:
        """Yield seller, model and price at *at_us* of all that the built-in list has."""
        if self._built_in is not None:
            yield from self._built_in.prices(at_us)

    def replace(
        self, prices: Sequence[Price], markups: Sequence[Markup] = (), aliases: Sequence[ModelAlias] = ()
    ) -> PriceBook:
        """Return a book with these catalog entries and this one's built-in list. This one is unchanged."""
        book = PriceBook(prices, markups, aliases, built_in=False)
        book._built_in = self._built_in
        return book

    def with_entries(self, entries: Iterable[Entry]) -> PriceBook:
        """Return the book as it would be with these prices, mark-ups and aliases put into the catalog, by their ids."""
        put = {(entry.kind, entry.entry_id): entry for entry in entries}
        merged: list[list[Any]] = []
        for kind, stated in zip(("prices", "markups", "models"), self._stated, strict=True):
            by_id = {entry.entry_id: entry for entry in stated}
            by_id |= {entry_id: entry for (of, entry_id), entry in put.items() if of == kind}
            merged.append(list(by_id.values()))
        return self.replace(*merged)

    def _resolve(self, model: str, account_id: str, variant: str, plan: str) -> PriceTimeline:
        if not model:
            return UNKNOWN
        timeline = self._before_markups(model, account_id, variant)
        markups = self._markups_of(model, account_id, plan)
        if not markups:
            return timeline
        starts_us = _merged(timeline.starts_us, markups)
        prices: list[ModelPrice | None] = []
        made: dict[tuple[str, int], ModelPrice] = {}
        for start_us, markup in zip(starts_us, in_force(markups, markup_rank, starts_us), strict=True):
            for part_us in timeline.parts_us:
                price = timeline.cell(start_us, part_us)
                if price is not None and markup is not None:
                    at = (markup.id, id(price))
                    if at not in made:
                        made[at] = marked_up(price, markup)
                    price = made[at]
                prices.append(price)
        return timeline_of(starts_us, timeline.parts_us, prices)

    def _before_markups(self, model: str, account_id: str, variant: str) -> PriceTimeline:
        means = alias_target(self._aliases, model)
        listed = UNKNOWN if self._built_in is None else self._built_in.timeline(means, variant)
        entries = [
            *self._of_name(model, means, account_id, variant),
            *(
                entry
                for entry in self._factors.get(variant, ())
                if entry.account in (None, account_id)
                and (matches(entry.model, model) or matches(entry.model, means))
            ),
        ]
        if not entries:
            return listed
        # Factors are of the price without a variant.
        with_factor = any(entry.factor is not None for entry in entries)
        standard = self._before_markups(model, account_id, "") if with_factor else UNKNOWN
        starts_us = _merged({*listed.starts_us, *standard.starts_us}, entries)
        parts_us = sorted({*listed.parts_us, *standard.parts_us})
        prices: list[ModelPrice | None] = []
        made: dict[tuple[str, int], ModelPrice] = {}
        for start_us, entry in zip(starts_us, in_force(entries, price_rank, starts_us), strict=True):
            for part_us in parts_us:
                if entry is None:
                    prices.append(listed.cell(start_us, part_us))
                    continue
                below = None if entry.factor is None else standard.cell(start_us, part_us)
                at = (entry.id, id(below))
                if at not in made:
                    if entry.factor is None:
                        made[at] = price_of_entry(entry)
                    elif below is not None:
                        made[at] = price_of_factor(entry, below)
                prices.append(made.get(at))
        return timeline_of(starts_us, parts_us, prices)

    def _of_name(self, model: str, means: str, account_id: str, variant: str) -> list[Price]:
        """Return the entries of a model's whole name: of the name as it was sent, else of the one it stands for."""
        for name in (model, means):
            found = [
                entry for owner in {"", account_id} for entry in self._entries.get((name, variant, owner), ())
            ]
            if found:
                return found
        return []

    def _markups_of(self, model: str, account_id: str, plan: str) -> list[Markup]:
        """Return the mark-ups that an event can have, at whatever time; the list's name of a model counts too."""
        found = [
            markup
            for scope in {("", ""), ("", plan), (account_id, "")}
            for markup in self._markups.get(scope, ())
        ]
        means = alias_target(self._aliases, model)
        names = {model, means}
        if found and self._built_in is not None:
            names |= self._built_in.names(means)
        return [markup for markup in found if any(matches(markup.model, name) for name in names)]


def _merged(starts_us: Iterable[int], entries: Iterable[Price | Markup]) -> list[int]:
    return sorted({*starts_us, *(to_us(entry.effective_at) for entry in entries)})
