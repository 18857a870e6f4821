"""The key behind every endpoint: where a request may carry it, and when it is good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.profiles.base import Call, Profile, ProfileContext, Reply, failure
from tollkeeper.profiles.regpilot.headers import keyless_headers, rate_headers, with_headers
from tollkeeper.profiles.regpilot.refusals import (
    KEY_HEADERS,
    bad_key,
    forbidden,
    missing_key,
    refusal,
    revoked_key,
)
from tollkeeper.profiles.toolkit import answered

USAGE_ROUTE: Final = Route(
    id="regpilot-usage", method="GET", path="/api/usage", event_kind="read", free=True, profile="regpilot"
)
HEALTH_ROUTE: Final = Route(
    id="regpilot-health", method="GET", path="/api/health", event_kind="read", free=True, profile="regpilot"
)


def behind_key(
    profile: Profile, route: Route, handle: Callable[[Call, ProfileContext, StoredKey], Reply]
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* behind a good key, whose rate limits count every call that does not fail on our side."""

    def answer(call: Call, context: ProfileContext) -> Reply:
        key = good_key(call, context)
        if isinstance(key, Reply):
            return with_headers(key, keyless_headers(call), call.request_id)
        counted = context.count_call(key, route)
        if isinstance(counted, Denial):
            limit_statuses = context.limit_statuses(key)
            reply = refusal(counted, limit_statuses, 402)
        else:
            try:
                reply = answered(context, counted, lambda: handle(call, context, key))
            except Exception as exc:
                # Here, and not in `failed` alone, since only here the key's rate headers are known.
                reply = failure(profile, call, exc)._replace(headers=())
            limit_statuses = context.limit_statuses(key)
        return with_headers(
            reply, rate_headers(limit_statuses, route, call.now, context.settings), call.request_id
        )

    return answer


def good_key(call: Call, context: ProfileContext) -> StoredKey | Reply:
    """Return the key of *call*, or the reply when it is not good."""
    secret = read_key(call.headers)
    if not secret:
        return missing_key()
    if is_refused_family(secret, context.settings):
        return forbidden()
    key = context.find_key(secret)
    state = "unknown" if key is None else key.state_at(to_us(call.now))
    if key is None or state != "active":
        return revoked_key() if state == "revoked" else bad_key()
    entitlement = context.entitlement(key)
    if entitlement is None or not entitlement.account.active:
        return forbidden()
    return key


def read_key(headers: Mapping[str, str]) -> str:
    """Return the key of the first header that holds anything, with or without `Bearer`; `""` without one."""
    for name in KEY_HEADERS:
        text = headers.get(name, "").strip()
        if text:
            return _without_scheme(text) if name.endswith("authorization") else text
    return ""


def is_refused_family(secret: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a key has a prefix that may do nothing here."""
    return secret.startswith(tuple(settings["refused_key_prefixes"]))


def _without_scheme(text: str) -> str:
    """Return the key of an `Authorization` header; the vendor's own clients may leave `Bearer` out."""
    scheme, _, rest = text.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else text
