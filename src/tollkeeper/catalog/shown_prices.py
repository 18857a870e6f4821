"""
Which price a model's name has, from which seller, and why: the price book's answer in words and numbers.

`price_of` in the price book decides; this module says what was decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Final, NamedTuple

from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.domain.pricing import ModelPrice, Tier, exact_rates, exact_request_nanos

NEAREST_MAX: Final = 5
OWN: Final = "own"
"""The seller of a price that the catalog states."""
_DECIMALS: Final = 9
"""Of a rate's text; an exact rate with more (a sixtieth, a mark-up) is rounded half to even there, and only there."""


class ShownTier(NamedTuple):
    """
    The rates of one tier.

    Attributes:
        over: Prompt tokens of all classes that a request must exceed; 0 of the first tier.
        rates: Name of the token class or unit → nanos per million units, as decimal text.
    """

    over: int
    rates: dict[str, str]


class ShownPrice(NamedTuple):
    """
    The price of a name.

    Attributes:
        name: As it was asked for.
        model: The model of the list, or of the catalog's entry, whose price it is.
        seller: The seller in the list, `own` for an entry of the catalog.
        why: How the name led there, in words for people.
        version: As records of this price have it in `price_version`.
        rates: Of the first tier, as `ShownTier.rates`; and `request_nanos`, nanos per request.
        tiers: All tiers, ascending.
    """

    name: str
    model: str
    seller: str
    why: str
    version: str
    rates: dict[str, str]
    tiers: list[ShownTier]


class NoPrice(NamedTuple):
    """A name that has no price: why, and the names that look most like it, the nearest first."""

    name: str
    why: str
    nearest: list[str]


def show_price(
    book: PriceBook, name: str, *, at_us: int, account_id: str = "", variant: str = "", plan: str = ""
) -> ShownPrice | NoPrice:
    """
    Return the price that *name* has for an event at *at_us*; arguments as `PriceBook.price_of`.

    Of a listed price, `rates` has the classes and units that the list prices; the others cost as the class that they
    are part of.
    """
    price = book.price_of(name, account_id=account_id, at_us=at_us, variant=variant, plan=plan)
    means = book.means(name)
    alias = "" if means == name else f"an alias of {means}; "
    listed = book.listed(means)
    if price is None:
        if listed is None:
            why = f"{alias}neither the catalog nor the price list has a model of this name"
        elif variant:
            why = f"{alias}{listed.seller.id} lists {listed.model.id}, but not its variant {variant}"
        else:
            why = f"{alias}{listed.seller.id} lists {listed.model.id} without a price for this time"
        return NoPrice(name, why, _nearest(book, means))
    source, *markups = price.version.split(" markups:")
    if source.startswith("prices:"):
        model, seller, why = name, OWN, f"price entry {source.removeprefix('prices:')}"
    else:
        assert listed is not None
        model, seller, why = str(listed.model.id), str(listed.seller.id), listed.why
    notes = "".join(f", with mark-up {markup}" for markup in markups)
    tiers = [ShownTier(tier.prompt_tokens_over, _rates(price, tier)) for tier in price.tiers]
    rates = {**tiers[0].rates, "request_nanos": decimal_text(exact_request_nanos(price))}
    return ShownPrice(name, model, seller, f"{alias}{why}{notes}", price.version, rates, tiers)


def built_in_prices(book: PriceBook, *, at_us: int, seller: str = "") -> Iterator[ShownPrice]:
    """Yield the price that each model of the built-in list has at *at_us*, those of *seller* only; no mark-ups."""
    for of_seller, model, price in book.listed_prices(at_us):
        if (seller and of_seller != seller) or price is None:
            continue
        tiers = [ShownTier(tier.prompt_tokens_over, _rates(price, tier)) for tier in price.tiers]
        rates = {**tiers[0].rates, "request_nanos": decimal_text(exact_request_nanos(price))}
        yield ShownPrice(
            f"{of_seller}/{model}", model, of_seller, "the built-in list", price.version, rates, tiers
        )


def price_json(shown: ShownPrice) -> dict[str, Any]:
    """Return a price as HTTP, command line and library show it."""
    return {
        "name": shown.name,
        "model": shown.model,
        "seller": shown.seller,
        "why": shown.why,
        "version": shown.version,
        "rates": shown.rates,
        "request_nanos": shown.rates["request_nanos"],
        "tiers": [{"prompt_tokens_over": tier.over, "rates": tier.rates} for tier in shown.tiers],
    }


def no_price_json(shown: NoPrice) -> dict[str, Any]:
    """Return what is said of a name without a price."""
    return {"name": shown.name, "model": None, "why": shown.why, "nearest": shown.nearest}


def decimal_text(value: Fraction) -> str:
    """Return *value* as decimal text without trailing zeros, at most `_DECIMALS` places."""
    scaled = round(value * 10**_DECIMALS)
    whole, part = divmod(scaled, 10**_DECIMALS)
    digits = f"{part:0{_DECIMALS}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _rates(price: ModelPrice, tier: Tier) -> dict[str, str]:
    rates: Mapping[str, Fraction] = exact_rates(price, tier)
    return {name: decimal_text(rate) for name, rate in rates.items()}


def _nearest(book: PriceBook, name: str) -> list[str]:
    own = get_close_matches(name, book.own_names, n=NEAREST_MAX)
    return [*own, *(near for near in book.nearest(name) if near not in own)][:NEAREST_MAX]
