"""
What the gate answers: an admission's amounts, or a denial with its reason.

Refusals are ordered: 401 (who are you), 403 (not for you), 429 (too fast), 402 (no money left).
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Reason = Literal[
    "key_missing",
    "key_unknown",
    "key_inactive",
    "key_revoked",
    "key_expired",
    "key_deleted",
    "account_inactive",
    "route_unknown",
    "layer_not_allowed",
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
    "account_inactive": 403,
    "route_unknown": 403,
    "layer_not_allowed": 403,
    "price_unknown": 403,
    "rate_limited": 429,
    "too_many_concurrent": 429,
    "budget_exhausted": 402,
    "credit_exhausted": 402,
    "unavailable": 503,
}

UNITS: Final = ("requests", "tokens", "nanos", "credits")


class Amounts(NamedTuple):
    """The amounts that one request takes, per unit, in the order of `UNITS`."""

    requests: int = 1
    tokens: int = 0
    nanos: int = 0
    credits: int = 0


class Denial(NamedTuple):
    """
    The gate's no.

    Attributes:
        reason: Why, machine-readable; `STATUS_BY_REASON` has the HTTP status.
        message: Why, for people; safe to show.
        limit: Name of the limit, budget or balance at fault, or "".
        unit: What it counts: one of `UNITS`, or "".
        allowed: Its most per window or period; None when there is no such number.
        used: What is used or held of it.
        largest_fit: The largest amount, in its unit, that would have been admitted.
        retry_after_s: Seconds until it lifts by itself, at least 1; None when waiting does not help.
        resets_at_us: When its window or period ends; None if it has none.
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

    @property
    def status(self) -> int:
        return STATUS_BY_REASON[self.reason]
