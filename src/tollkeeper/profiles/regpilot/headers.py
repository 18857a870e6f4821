"""Headers of RegPilot's answers: rate limit, remaining budget, usage of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.money import format_nanos
from tollkeeper.profiles.base import Call, Metered, Reply
from tollkeeper.profiles.regpilot.refusals import RATE_LIMIT_S
from tollkeeper.profiles.regpilot.settings import with_defaults
from tollkeeper.profiles.toolkit import HeaderList, rate_limit_headers, request_limits, seconds_up

HEADER_SAFE: Final = " !#$&'()*+,/:;=?@[]%"
"""Characters that a header keeps beside letters and digits; others are percent-encoded."""


def with_headers(
    reply: Reply, headers: Sequence[tuple[str, str]], request_id: str, *, request_id_given: bool = False
) -> Reply:
    """Return *reply* with *headers* and the request's id, which *request_id_given* says is among them."""
    own = () if request_id_given else (("x-request-id", request_id),)
    return reply._replace(headers=[*reply.headers, *headers, *own])


def rate_headers(
    limit_statuses: Sequence[LimitStatus], route: Route, now: datetime, settings: Mapping[str, Any]
) -> HeaderList:
    """
    Return the three rate headers; none for a key without a limit.

    The limit is that of the shortest window. The remaining requests are those of the limit that stops the key
    first; a token bucket counts all its permits, the burst included [C].
    """
    limits = sorted(
        request_limits(limit_statuses, route.bucket),
        key=lambda limit_status: limit_status.window_s or 0,
    )
    if not limits:
        return []
    tightest = min(limits, key=lambda limit_status: limit_status.remaining or 0)
    limit, remaining = limits[0].per_window or 0, tightest.remaining or 0
    if not settings["remaining_counts_burst"]:
        remaining = min(limit, remaining)
    return rate_limit_headers(limit, remaining, _reset_s(tightest.resets_at, now))


def credits_remaining(metered: Metered, settings: Mapping[str, Any]) -> HeaderList:
    """Return the remaining budget or credit, the least of all that the key draws on, in dollars."""
    with_holds = settings["remaining_counts_holds"]
    left_nanos = [
        max(0, limit_status.allowed - (limit_status.used if with_holds else limit_status.settled))
        for limit_status in metered.limit_statuses
        if limit_status.kind in ("budget", "credit") and limit_status.unit == "nanos"
        if limit_status.allowed is not None
    ]
    if not left_nanos or not settings["credits_remaining_header"]:
        return []
    return [("x-credits-remaining", format_nanos(min(left_nanos), places_min=0))]


def keyless_headers(call: Call) -> HeaderList:
    """Return the rate headers of an answer without a known key: 0 of 0, since limits are per key [C]."""
    if not with_defaults(call.settings)["rate_headers_without_key"]:
        return []
    return rate_limit_headers(0, 0, (_unix_s(call.now) // RATE_LIMIT_S + 1) * RATE_LIMIT_S)


def _reset_s(resets_at: datetime | None, now: datetime) -> int:
    """Return the first whole second at or after the reset, always ahead of *now*: a full bucket resets now."""
    soonest_s = _unix_s(now) + 1
    return soonest_s if resets_at is None else max(soonest_s, seconds_up(to_us(resets_at)))


def _unix_s(at: datetime) -> int:
    return to_us(at) // US_PER_S
