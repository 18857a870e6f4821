"""The body of a request for a new key, checked. Each function raises `InvalidRequest` for a bad member."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.iso8601 import parse_instant
from tollkeeper.profiles.anylayer.errors import InvalidRequest, invalid_parameter
from tollkeeper.profiles.anylayer.limits import WINDOWS, strictest_amount
from tollkeeper.profiles.base import ProfileContext
from tollkeeper.profiles.toolkit import json_object, limits_over

RESOURCES: Final = frozenset(
    {"identity", "scores", "achievements", "trading", "trust", "attestations", "all"}
)
ACTIONS: Final = frozenset({"read", "write", "delete", "all"})
LEVELS: Final = frozenset({"read", "write", "admin"})
RESTRICTIONS: Final = frozenset({"identities", "chains", "ipWhitelist"})
_LIMIT_OF: Final = {
    "requestsPerMinute": ("per-minute", "1m"),
    "requestsPerHour": ("per-hour", "1h"),
    "requestsPerDay": ("per-day", "1d"),
}
BURST: Final = "burst"
"""Name of the limit that `burstLimit` sets."""


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body."""
    found = json_object(body)
    if found is None:
        raise invalid_parameter("body")
    return found


def typed_member(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """Return a member that must be a *kind*; *default* without it."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise invalid_parameter(name)
    return value


def parse_permissions(given: Any) -> list[Any]:
    """Return permissions in the long or the short form, checked."""
    if not isinstance(given, list) or not given:
        raise InvalidRequest("INVALID_PERMISSIONS", "Invalid permissions")
    for permission in given:
        if not (permission in LEVELS if isinstance(permission, str) else _is_permission(permission)):
            raise InvalidRequest("INVALID_PERMISSIONS", "Invalid permissions")
    return given


def _is_permission(given: Any) -> bool:
    if not isinstance(given, dict) or not given.keys() <= {"resource", "actions", "restrictions"}:
        return False
    actions, restrictions = given.get("actions"), given.get("restrictions", {})
    return (
        isinstance(given.get("resource"), str)
        and given["resource"] in RESOURCES
        and isinstance(actions, list)
        and bool(actions)
        and all(isinstance(action, str) and action in ACTIONS for action in actions)
        and isinstance(restrictions, dict)
        and restrictions.keys() <= RESTRICTIONS
        and all(_are_texts(values) for values in restrictions.values())
    )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def parse_limits(
    given: Any, entitlement: Entitlement | None, context: ProfileContext
) -> tuple[list[Limit] | None, int | None]:
    """Return the limits of a new key (None: those of its plan) and its `burstLimit`."""
    if given is None:
        return None, None
    if isinstance(given, int) and not isinstance(given, bool):
        given = {context.settings["rate_limit_number"]: given}
    if not isinstance(given, dict) or not given.keys() <= {*WINDOWS, "burstLimit"}:
        raise invalid_parameter("rateLimit")
    # The new key inherits the caller's limits: its own, its plan's, or those of the keys that made it.
    own = [] if entitlement is None else [scope.limit for scope in entitlement.limits]
    limits = list({limit.name: limit for limit in reversed(own) if limit.per == "key"}.values())[::-1]
    for name, window_s in WINDOWS.items():
        amount = _rate(given, name)
        if amount is None:
            continue
        most = strictest_amount(limits, window_s)
        if most is not None and amount > most:
            raise InvalidRequest("RATE_LIMIT_TOO_HIGH", "Rate limit too high")
        limit_name, window = _LIMIT_OF[name]
        replaced = limits_over(limits, window_s)
        limits = [limit for limit in limits if limit not in replaced and limit.name != limit_name]
        limits.append(Limit(name=limit_name, amount=amount, window=window))
    burst = _rate(given, "burstLimit")
    if burst is not None:
        limits = [limit for limit in limits if limit.name != BURST]
        limits.append(Limit(name=BURST, amount=burst, window=context.settings["burst_window"]))
    return limits, burst


def _rate(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
        raise invalid_parameter(f"rateLimit.{name}" if name in given else "rateLimit")
    return value


def parse_expiry(given: Any, now: datetime) -> datetime | None:
    """Return the instant of `expiry`, which must be ahead; UTC without an offset."""
    if given is None:
        return None
    if not isinstance(given, str):
        raise invalid_parameter("expiry")
    try:
        at = parse_instant(given)
    except (ValueError, OverflowError):
        raise invalid_parameter("expiry") from None
    if at <= now:
        raise invalid_parameter("expiry")
    return at


def parse_webhooks(body: Mapping[str, Any], context: ProfileContext) -> list[dict[str, Any]]:
    """Return webhooks as they are stored: without their secret."""
    kept = []
    for hook in typed_member(body, "webhooks", list, []):
        if (
            not isinstance(hook, dict)
            or not hook.keys() <= {"url", "events", "secret"}
            or not isinstance(hook.get("url"), str)
            or not hook["url"].startswith(("https://", "http://"))
            or not _are_texts(hook.get("events", []))
            or not isinstance(hook.get("secret", ""), str)
        ):
            raise invalid_parameter("webhooks")
        kept.append({"id": context.new_key_id(), "url": hook["url"], "events": hook.get("events", [])})
    return kept
