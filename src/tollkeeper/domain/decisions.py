"""
What the gate answers: an admission's amounts, or a denial with its reason.

Refusals are ordered: 401 (who are you), 403 (not for you), 429 (too fast), 402 (no money left).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from tollkeeper.domain.quantities import QUANTITY_PREFIX

Reason = Literal[
    "key_missing",
    "key_unknown",
    "key_inactive",
    "key_revoked",
    "key_expired",
    "key_deleted",
    "session_invalid",
    "session_expired",
    "account_inactive",
    "route_unknown",
    "layer_not_allowed",
    "model_not_allowed",
    "model_required",
    "price_unknown",
    "rate_limited",
    "too_many_concurrent",
    "budget_exhausted",
    "credit_exhausted",
    "unavailable",
]

STATUS_BY_REASON: Final[dict[str, int]] = {
    "key_missing": 401,
    "key_unknown": 401,
    "key_inactive": 401,
    "key_revoked": 401,
    "key_expired": 401,
    "key_deleted": 401,
    "session_invalid": 401,
    "session_expired": 401,
    "account_inactive": 403,
    "route_unknown": 403,
    "layer_not_allowed": 403,
    "model_not_allowed": 403,
    "model_required": 403,
    "price_unknown": 403,
    "rate_limited": 429,
    "too_many_concurrent": 429,
    "budget_exhausted": 402,
    "credit_exhausted": 402,
    "unavailable": 503,
}

UNITS: Final = ("requests", "tokens", "nanos", "credits")


class Amounts(NamedTuple):
    """The amounts that one request takes, per unit, in the order of `UNITS`: at the `unit_index` of each."""

    requests: int = 1
    tokens: int = 0
    nanos: int = 0
    credits: int = 0


class AmountsByUnit(dict[int | str, int]):
    """
    What one request takes, its quantities too: at the `unit_index` of each unit; 0 where nothing is.

    Made only for a request that states quantities and for a key whose limits or budgets count some: a tuple is faster.
    """

    __slots__ = ()

    def __missing__(self, unit_index: int | str) -> int:
        return 0

    @property
    def requests(self) -> int:
        return self[0]

    @property
    def tokens(self) -> int:
        return self[1]

    @property
    def nanos(self) -> int:
        return self[2]

    @property
    def credits(self) -> int:
        return self[3]


UnitAmounts: TypeAlias = Amounts | AmountsByUnit


def unit_index(unit: str) -> Any:
    """Return where amounts have *unit*: its place in `UNITS`, or its name `quantity.NAME`."""
    return UNITS.index(unit) if unit in UNITS else unit


def amounts_by_unit(amounts: Sequence[int], quantities: Mapping[str, int]) -> AmountsByUnit:
    """Return *amounts* (in the order of `UNITS`) with *quantities* (name → micro-units)."""
    by_unit = AmountsByUnit(enumerate(amounts))
    for name, micros in quantities.items():
        by_unit[QUANTITY_PREFIX + name] = micros
    return by_unit


def amount_at(amounts: UnitAmounts, unit_index: Any) -> int:
    """Return the amount of a unit that a request may have been admitted without."""
    if isinstance(unit_index, str) and not isinstance(amounts, AmountsByUnit):
        return 0
    return amounts[unit_index]


class Denial(NamedTuple):
    """
    The gate's no.

    Attributes:
        reason: Why, machine-readable; `STATUS_BY_REASON` has the HTTP status.
        message: Why, for people; safe to show.
        limit: Name of the limit, budget or balance at fault, or "".
        unit: What it counts: one of `UNITS`, `quantity.NAME` (amounts are micro-units), or "".
        allowed: Its most per window or period; None when there is no such number.
        used: What is used or held of it.
        largest_fit: The largest amount, in its unit, that would have been admitted.
        retry_after_s: Seconds until it lifts by itself, at least 1; None when waiting does not help.
        resets_at_us: When its window or period ends; None if it has none.
        match: Which requests it counts, for people, e.g. `model gpt-4o*`; "" for all.
    """

    reason: Reason
    message: str
    limit: str = ""
    unit: str = ""
    allowed: int | None = None
    used: int | None = None
    largest_fit: int | None = None
    retry_after_s: int | None = None
    resets_at_us: int | None = None
    match: str = ""

    @property
    def status(self) -> int:
        return STATUS_BY_REASON[self.reason]
