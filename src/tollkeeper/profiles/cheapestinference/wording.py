"""Errors and envelopes of the two surfaces: OpenAI's form on `/v1`, `success` and `error` on `/api`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.periods import duration_s
from tollkeeper.domain.quantities import amount_text
from tollkeeper.profiles.base import Call, Reply
from tollkeeper.profiles.cheapestinference.settings import SETTINGS
from tollkeeper.profiles.toolkit import HeaderList, iso_millis, retry_after, seconds_up


def is_api(path: str) -> bool:
    """Return whether a path belongs to the surface `/api`."""
    return path == "/api" or path.startswith("/api/")


def wrapped(data: Any, envelope: Any) -> Any:
    """Return *data* in `success` and `data` if the setting *envelope* says so."""
    return {"success": True, "data": data} if envelope else data


def v1_error(
    status: int, message: str, type_: str, code: str, headers: Sequence[tuple[str, str]] = ()
) -> Reply:
    """Return an error in the form of `/v1`."""
    return Reply(status, {"error": {"message": message, "type": type_, "code": code}}, headers)


def api_error(status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    """Return an error in the form of `/api`."""
    return Reply(status, {"success": False, "error": message}, headers)


def api_limited(denial: Denial) -> Reply:
    """Return the 429 of a rate limit in the form of `/api`."""
    return api_error(429, "Rate limit exceeded", [retry_after(denial.retry_after_s)])


def key_refusal(reason: str) -> Reply:
    """Return the error of a key that is missing or not good, in the form of `/v1`; *reason* as in `Denial`."""
    if reason == "key_deleted":
        return v1_error(404, "API key not found", "not_found_error", "key_not_found")
    if reason in ("key_missing", "key_unknown"):
        message = "Missing API key" if reason == "key_missing" else "Invalid API key"
        headers = [("WWW-Authenticate", "Bearer")]
        return v1_error(401, message, "authentication_error", "invalid_api_key", headers)
    return v1_error(403, "API key is deactivated", "permission_error", "key_deactivated")


def refusal(call: Call, denial: Denial, entitlement: Entitlement | None) -> Reply:
    """Word a refusal of the gate in the form of `/v1`."""
    reason = denial.reason
    limits = [] if entitlement is None else [scope.limit for scope in entitlement.limits]
    if reason.startswith("key_") or reason == "account_inactive":
        if reason == "key_deleted" and call.settings.get("deleted_key_status", 404) != 404:
            return key_refusal("key_unknown")
        return key_refusal(reason)
    if reason in ("rate_limited", "too_many_concurrent"):
        message = f"Rate limit exceeded: {_rate(denial, limits)}"
        headers = [retry_after(denial.retry_after_s)]
        return v1_error(429, message, "rate_limit_error", "rate_limit_exceeded", headers)
    if reason == "budget_exhausted":
        return _budget_exceeded(call, denial)
    if reason == "credit_exhausted":
        status = int(call.settings.get("credit_exhausted_status", SETTINGS["credit_exhausted_status"]))
        message = "Insufficient credits: top up to continue"
        return v1_error(status, message, "billing_error", "insufficient_credits")
    if reason == "route_unknown":
        return v1_error(404, "Not found", "not_found_error", "route_not_found")
    if reason == "unavailable":
        headers = [retry_after(denial.retry_after_s)]
        return v1_error(503, "Service temporarily unavailable", "api_error", "service_unavailable", headers)
    return v1_error(denial.status, denial.message, "permission_error", reason)


def _budget_exceeded(call: Call, denial: Denial) -> Reply:
    message = "Budget exceeded"
    headers: HeaderList = []
    resets_at_us = denial.resets_at_us
    # A budget without periods has its end in the year 9999.
    if resets_at_us is not None and from_us(resets_at_us).year < 9999:
        message = f"Budget exceeded. Resets at {iso_millis(from_us(resets_at_us))}"
        left_s = seconds_up(resets_at_us - to_us(call.now))
        headers = [retry_after(max(1, left_s))]
    return v1_error(429, message, "rate_limit_error", "budget_exceeded", headers)


def _rate(denial: Denial, limits: Sequence[Limit]) -> str:
    """Return what a limit allows, e.g. `60 requests per minute`."""
    limit = next((limit for limit in limits if limit.name == denial.limit), None)
    if denial.reason == "too_many_concurrent":
        return f"{denial.allowed} concurrent requests"
    if limit is None:
        return amount_text(denial.allowed or 0, denial.unit)
    return f"{amount_text(limit.amount, limit.unit)} per {_span(duration_s(limit.window))}"


def _span(seconds: int) -> str:
    for name, width in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds % width == 0:
            return name if seconds == width else f"{seconds // width} {name}s"
    return "second" if seconds == 1 else f"{seconds} seconds"
