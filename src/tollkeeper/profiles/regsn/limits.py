"""The rate limit that one answer shows, and its `RateLimit-*` headers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from tollkeeper.domain.instants import to_us
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.profiles.toolkit import HeaderList, request_limits, seconds_up


def shown_limit(
    limit_statuses: Iterable[LimitStatus], bucket: str | None, name: str | None = None
) -> LimitStatus | None:
    """Return the limit *name*; else the one of the rate bucket that has the least left, else that of all routes."""
    limits = request_limits(limit_statuses, bucket)
    named = [each for each in limits if each.name == name]
    own = [each for each in limits if each.bucket is not None]
    return min(named or own or limits, key=lambda each: each.remaining or 0, default=None)


def rate_headers(limit_status: LimitStatus | None, now: datetime) -> HeaderList:
    """Return the three `RateLimit-*` fields; none where nothing limits the caller."""
    if limit_status is None or limit_status.allowed is None:
        return []
    left_us = 0 if limit_status.resets_at is None else to_us(limit_status.resets_at) - to_us(now)
    return [
        ("RateLimit-Limit", str(limit_status.allowed)),
        ("RateLimit-Remaining", str(limit_status.remaining)),
        ("RateLimit-Reset", str(max(0, seconds_up(left_us)))),
    ]
