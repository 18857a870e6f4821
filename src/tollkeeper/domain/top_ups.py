"""
Top-ups of a budget: money, or whatever it counts, added once to its running period, or until it is used.

The amount in force of a period is the budget's own amount, the top-ups for this period alone, and what is left of
those that last until they are used. It follows from the ledger alone: the top-ups, what each period was charged, and
the own amount as it was at the end of each period. These are the rules; they are pure.

Rules:
* A top-up is of the period that holds the instant at which it was posted.
* Of a period, first the own amount is used, then the top-ups for this period alone, and only what is used beyond both
  is drawn from those that last. What was not drawn is there in the next period, and so on.
* What is given back later (a correction) or comes late changes what its period drew, and so what is left.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final, NamedTuple

from tollkeeper.domain.money import NANOS_MAX, format_nanos, parse_nanos
from tollkeeper.domain.quantities import micros_of, quantity_of_unit, quantity_text

_WHOLE: Final = re.compile(r"[0-9]{1,19}\Z")


class TopUp(NamedTuple):
    """
    One top-up, as the ledger has it. It is never changed.

    Attributes:
        id: Unique within its account.
        counter_id: The counter of the budget that it adds to.
        budget: The budget's name.
        unit: The budget's unit, of which *amount* is.
        until_used: Whether what is left of it goes on in the next period.
        posted_at_us: Says which period it adds to.
    """

    account_id: str
    id: str
    counter_id: str
    budget: str
    unit: str
    amount: int
    until_used: bool
    posted_at_us: int


class OwnAmount(NamedTuple):
    """The own amount of a budget from the period on that holds an instant, until the next one of the same counter."""

    account_id: str
    counter_id: str
    from_us: int
    amount: int


class TopUps(NamedTuple):
    """
    All top-ups of one counter, by the starts of its periods.

    Attributes:
        once: Period start → added to that period alone.
        lasting: `(period start, added from it on until it is used)`, ascending.
        own: `(period start, own amount from it on)`, ascending; kept since the first lasting top-up.
    """

    once: Mapping[int, int] = {}
    lasting: tuple[tuple[int, int], ...] = ()
    own: tuple[tuple[int, int], ...] = ()

    @property
    def first_lasting_us(self) -> int:
        """The start of the period from which on what was used decides what is left."""
        return self.lasting[0][0]

    @property
    def total(self) -> int:
        return sum(self.once.values()) + sum(amount for _, amount in self.lasting)

    def own_at(self, start_us: int, otherwise: int) -> int:
        """Return the own amount at the end of a period that is over."""
        place = bisect_right(self.own, start_us, key=lambda step: step[0])
        return self.own[place - 1][1] if place else otherwise

    def added(self, start_us: int, own: int, used: Mapping[int, int]) -> int:
        """
        Return how much the period that begins at *start_us* has beyond its own amount.

        Args:
            own: The budget's own amount now, for periods whose own amount is not kept.
            used: Period start → used, of the periods from `first_lasting_us` on before this one; others are ignored.
        """
        added = self.once.get(start_us, 0)
        if self.lasting and start_us >= self.first_lasting_us:
            added += self._left(start_us, own, used)
        return added

    def _left(self, start_us: int, own: int, used: Mapping[int, int]) -> int:
        """Return what lasting top-ups have left for the period of *start_us*."""
        before = {at for at in used if self.first_lasting_us <= at < start_us}
        posted: dict[int, int] = {}
        for at, amount in self.lasting:
            if at <= start_us:
                posted[at] = posted.get(at, 0) + amount
        left = 0
        for at in sorted(before | posted.keys()):
            left += posted.get(at, 0)
            if at < start_us:
                drawn = used.get(at, 0) - self.own_at(at, own) - self.once.get(at, 0)
                left -= min(left, max(0, drawn))
        return left


def parse_amount(text: str, unit: str) -> int:
    """
    Return an amount of *unit* that is written for people: money as `5.00`, a quantity as `61.5`, others as `100`.

    Raises:
        ValueError: It is not written so, is not more than 0, or does not fit in 64 bits.
    """
    if unit == "nanos":
        if "." not in text:
            raise ValueError(f"{text[:64]!r} may be units or nanos: write money with a decimal point")
        amount = parse_nanos(text)
    elif quantity_of_unit(unit) is not None:
        amount = micros_of("amount", text)
    else:
        if not _WHOLE.match(text):
            raise ValueError(f"{text[:64]!r} is not a whole number of {unit} such as 100")
        amount = int(text)
    if not 0 < amount <= NANOS_MAX:
        raise ValueError(f"{text[:64]!r} is not more than 0, or too large")
    return amount


def amount_text(amount: int, unit: str) -> str:
    """Return an amount of *unit* as `parse_amount` reads it."""
    if unit == "nanos":
        return format_nanos(amount)
    return str(amount) if quantity_of_unit(unit) is None else quantity_text(amount)
