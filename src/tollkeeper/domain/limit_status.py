"""The state of a limit, budget or balance of a key; and the session of a dashboard user."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class LimitStatus(NamedTuple):
    """
    Where one limit, budget or balance of a key stands.

    Attributes:
        kind: `limit`, `concurrency`, `budget` or `credit`.
        name: As in the plan or the budget.
        unit: `requests`, `tokens`, `nanos`, `credits` or `quantity.NAME` (amounts are micro-units).
        allowed: Its most, None without a bound; the capacity of a token bucket of permits.
        used: Used or held of it, in this window or period.
        window_s: Length of a rate limit's window in seconds; None for others.
        per_window: What a rate limit allows per window; for a token bucket what it gains.
        bucket: Rate bucket of routes that it counts; None for all.
        starts_at: Start of the fixed window or the budget's period; None without one.
        resets_at: End of the window or period; None without one.
        match: Which requests it counts, for people, e.g. `model gpt-4o*, tag.user = u1`; "" for all.
        per: What it counts apart, when no value was asked for: then *used* is 0 and says nothing.
        held: Of a budget, the part of *used* that open holds have set aside; 0 for others.
    """

    kind: str
    name: str
    unit: str
    allowed: int | None
    used: int
    window_s: int | None = None
    per_window: int | None = None
    bucket: str | None = None
    starts_at: datetime | None = None
    resets_at: datetime | None = None
    match: str = ""
    per: tuple[str, ...] = ()
    held: int = 0

    @property
    def settled(self) -> int:
        """What settled requests used of it."""
        return self.used - self.held

    @property
    def remaining(self) -> int | None:
        return None if self.allowed is None else max(0, self.allowed - self.used)


class Session(NamedTuple):
    """Who signed in to a dashboard: a user of an account."""

    account_id: str
    user_id: str
