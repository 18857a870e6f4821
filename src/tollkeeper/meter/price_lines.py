"""
How the cost of a booked record came about: the lines that add up to it, as far as it is known today.

A record keeps its cost and the version of its price, not the price. So the price in force at its time is looked up
again, and its lines are shown only if they come to the recorded cost, to the nano: else something has changed since,
and what was charged stands.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.shown_prices import decimal_text
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.cost_lines import REQUEST, CostLine, cost_lines, rounded_nanos
from tollkeeper.domain.events import Record
from tollkeeper.domain.labels import OTHER
from tollkeeper.domain.meter import UNKNOWN_ROUTE
from tollkeeper.domain.requests import Usage

ROUTE: Final = "route"
"""The line of what a route charges."""
_CHANGED: Final = (
    "A price, route or plan has changed since: what was charged stands, and its parts are not known."
)
_ESTIMATED: Final = "An estimate, until the actual cost is known."
_GIVEN: Final = "Stated by the sender of the event."
_ADJUSTMENT: Final = "Money given or taken without a request."


class PriceLines:
    """Explains costs. Any thread may call."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def of(self, record: Record) -> dict[str, Any]:
        """
        Return the `price` of an event: `why` it costs what it does, for people, and its `lines`.

        A line has `of` (a token class, a unit, `request` or `route`), `amount`, the rate as decimal text
        (`rate_nanos_per_million`, of a request or route `rate_nanos`), and `nanos`, exact to a billionth. The sum of
        the lines, rounded half up to the nano, is the cost of the event.
        """
        lines: list[CostLine] = []
        why = _why(record)
        if record.cost_state == "priced":
            lines = self._lines(record)
            if rounded_nanos(lines) != record.cost_nanos:
                why, lines = _CHANGED, []
        return {"why": why, "lines": [_line(line) for line in lines]}

    def _lines(self, record: Record) -> list[CostLine]:
        if OTHER in (record.method, record.route, record.model):
            return []
        lines: list[CostLine] = []
        route = self._route(record)
        if route.price_nanos and record.status < 400:
            nanos = Fraction(route.price_nanos)
            lines.append(CostLine(ROUTE, Fraction(1), nanos, nanos))
        if not record.model or record.price_version.startswith("route:"):
            return lines
        plan = self._directory.scopes(record.account_id, record.project_id, record.key_id).plan_slug
        price = self._directory.price(
            record.model, record.variant, record.account_id, plan, record.occurred_at_us
        )
        usage = Usage(
            record.prompt_tokens,
            record.cached_prompt_tokens,
            record.completion_tokens,
            record.reasoning_tokens,
            quantities=record.quantities,
            variant=record.variant,
        )
        if price is None or price.version != record.price_version:
            return []
        return [*lines, *cost_lines(price, usage)]

    def _route(self, record: Record) -> Route:
        key = self._directory.key(record.key_id) if record.key_id else None
        profile = "native" if key is None else key.entry.profile
        return self._directory.route_table().match(record.method, record.route, profile) or UNKNOWN_ROUTE


def _why(record: Record) -> str:
    if record.adjustment_nanos:
        return _ADJUSTMENT
    match record.cost_state:
        case "given":
            return _GIVEN
        case "estimated":
            return _ESTIMATED
        case "unpriced":
            variant = f", variant {record.variant}" if record.variant else ""
            return f"No price for model {record.model}{variant} yet: it is priced when there is one."
        case "priced":
            return f"By {record.price_version}." if record.price_version else "By price."
    if record.denied_reason:
        return "Refused: nothing is charged."
    if record.cache == "hit":
        return "From the cache: nothing is charged."
    return "Its route is free, or no route knows its path."


def _line(line: CostLine) -> dict[str, str]:
    rate = "rate_nanos" if line.of in (REQUEST, ROUTE) else "rate_nanos_per_million"
    return {
        "of": line.of,
        "amount": decimal_text(line.amount),
        rate: decimal_text(line.rate_nanos),
        "nanos": decimal_text(line.nanos),
    }
