"""
Which events of an account may go when their time is over: whole UTC days of them.

What budgets were charged must be told by the sums that stay, which are of whole UTC hours and have no tags. Where these
do not tell it, the events of the running period stay until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.matching import TAG

DAY_US: Final = 86_400_000_000
HOUR_US: Final = 3_600_000_000


def needs_events(scope: BudgetScope) -> bool:
    """Return whether only events tell what a budget counts, and no sums of hours: it goes by tags."""
    return bool(scope.match is not None and scope.match.tags) or any(
        part.startswith(TAG) for part in scope.by
    )


def is_told_by_hours(scope: BudgetScope, start_us: int, end_us: int) -> bool:
    """Return whether the sums of whole UTC hours tell what a period of a budget was charged."""
    return not needs_events(scope) and not start_us % HOUR_US and not end_us % HOUR_US


def expires_before_us(kept_us: int, scopes: Iterable[BudgetScope], now_us: int) -> int:
    """
    Return the start of the first UTC day whose events must stay.

    Args:
        kept_us: How long events are kept: at least a day, which is as long as a period of first use lasts.
        scopes: The budgets of the account.
    """
    before_us = now_us - kept_us
    for scope in scopes:
        if not scope.first_use_us:
            start_us, end_us = scope.span_us(now_us)
            if not is_told_by_hours(scope, start_us, end_us):
                before_us = min(before_us, start_us)
    return max(0, before_us) // DAY_US * DAY_US
