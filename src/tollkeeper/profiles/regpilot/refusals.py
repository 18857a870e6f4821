"""RegPilot's errors, from a denial of the gate or from the endpoints themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.money import NANOS_PER_UNIT
from tollkeeper.domain.quantities import MICROS, quantity_of_unit
from tollkeeper.profiles.base import Reply
from tollkeeper.profiles.toolkit import quotient, retry_after

KEY_HEADERS: Final = (
    "x-api-key",
    "x-regpilot-key",
    "api-key",
    "authorization",
    "x-authorization",
    "proxy-authorization",
)
"""The headers that may carry a key, in the order in which they are read: the first that holds anything decides."""
RATE_LIMIT_S: Final = 60
"""Seconds to wait where the limit itself does not say: the vendor's limits are per minute."""
_WINDOW_NAMES: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def refusal(denial: Denial, limit_statuses: Sequence[LimitStatus], budget_status: int) -> Reply:
    """Word a refusal of the gate; *budget_status* is that of a budget or credit that is used up."""
    match denial.reason:
        case "key_missing":
            return missing_key()
        case "key_revoked":
            return revoked_key()
        case (
            "key_unknown"
            | "key_inactive"
            | "key_expired"
            | "key_deleted"
            | "session_invalid"
            | "session_expired"
        ):
            return bad_key()
        case "rate_limited" | "too_many_concurrent":
            return _rate_limited(denial, limit_statuses)
        case "budget_exhausted" | "credit_exhausted":
            return _budget_exceeded(denial, limit_statuses, budget_status)
        case "unavailable":
            return unavailable()
        case "account_inactive" | "route_unknown" | "layer_not_allowed" | "price_unknown":
            return forbidden()
        case "model_not_allowed" | "model_required":
            return forbidden()


def missing_key() -> Reply:
    """Return the 401 of a request without a key."""
    error = (
        "Missing API key. Use one of: X-API-Key: YOUR_KEY, X-RegPilot-Key: YOUR_KEY, "
        "or Authorization: Bearer YOUR_KEY"
    )
    return Reply(401, {"error": error, "headers_checked": list(KEY_HEADERS)})


def bad_key() -> Reply:
    """Return the 401 of a key that is unknown or not active."""
    return Reply(401, {"error": "Invalid or inactive API key", "code": "INVALID_API_KEY"})


def revoked_key() -> Reply:
    """Return the 401 of a revoked key."""
    return Reply(401, {"error": "API key has been revoked"})


def forbidden(status: int = 403) -> Reply:
    """Return the answer to a key that may not do this."""
    return Reply(status, {"error": "Insufficient permissions for this operation"})


def _rate_limited(denial: Denial, limit_statuses: Sequence[LimitStatus]) -> Reply:
    limits = [s for s in limit_statuses if s.kind in ("limit", "concurrency") and s.name == denial.limit]
    limit, window_s = denial.allowed, None
    if limits:
        window_s = limits[0].window_s
        limit = limits[0].allowed if limits[0].per_window is None else limits[0].per_window
    retry_after_s = denial.retry_after_s or window_s or RATE_LIMIT_S
    concurrent = denial.reason == "too_many_concurrent"
    body = {
        "error": "Rate limit exceeded",
        "retry_after": retry_after_s,
        "limit": limit if quantity_of_unit(denial.unit) is None else quotient(limit or 0, MICROS),
        "window": "concurrent" if concurrent else _window_name(window_s or RATE_LIMIT_S),
    }
    return Reply(429, body, [retry_after(retry_after_s)])


def _window_name(seconds: int) -> str:
    unit_s, unit = next(named for named in _WINDOW_NAMES if seconds % named[0] == 0)
    count = seconds // unit_s
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _budget_exceeded(denial: Denial, limit_statuses: Sequence[LimitStatus], status: int) -> Reply:
    per_unit = NANOS_PER_UNIT if denial.unit == "nanos" else 1
    if quantity_of_unit(denial.unit) is not None:
        per_unit = MICROS
    refusing = (denial.limit, denial.unit, denial.match)
    held = next(
        (
            status.held
            for status in limit_statuses
            if status.kind == "budget" and (status.name, status.unit, status.match) == refusing
        ),
        0,
    )
    details = {
        "limit": quotient(denial.allowed or 0, per_unit),
        # As in `GET /api/usage`: without what open holds have set aside.
        "used": quotient((denial.used or 0) - held, per_unit),
    }
    return Reply(status, {"error": "Budget exceeded", "code": "BUDGET_EXCEEDED", "details": details})


def unavailable() -> Reply:
    """Return the 503 while a store is away."""
    return Reply(503, {"error": "Service unavailable", "message": "Please try again in a moment."})


def internal_error(request_id: str) -> Reply:
    """Return the 500 of a failure on our side."""
    body = {
        "error": "Internal server error",
        "message": "Failed to process request",
        "request_id": request_id,
    }
    return Reply(500, body)
