"""The key behind every endpoint: good, within its limits, its rate headers on each answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.profiles.anylayer.errors import (
    InvalidRequest,
    error_reply,
    forbidden,
    over_limit,
    unauthorized,
)
from tollkeeper.profiles.anylayer.limits import rate_headers
from tollkeeper.profiles.base import Call, Profile, ProfileContext, Reply, failure
from tollkeeper.profiles.toolkit import answered

ROUTE: Final = Route(id="anylayer-developer", method="*", path="/v1/developer/*", free=True)
"""The developer endpoints: the key's limits count them, and they are no usage themselves."""


def behind_key(
    profile: Profile,
    handle: Callable[[Call, ProfileContext, StoredKey], Reply],
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* behind the key and its limits: every answer to a known key has the rate headers."""

    def handled(call: Call, context: ProfileContext) -> Reply:
        key = context.find_key(profile.credential(call.headers))
        if key is None or key.state_at(to_us(call.now)) != "active":
            return unauthorized(call)
        entitlement = context.entitlement(key)
        if entitlement is None or not entitlement.account.active:
            return forbidden(call)
        counted = context.count_call(key, ROUTE)
        if isinstance(counted, Denial):
            return over_limit(call, counted, rate_headers(context.limit_statuses(key), counted.limit))
        headers = rate_headers(context.limit_statuses(key))
        try:
            reply = answered(context, counted, lambda: handle(call, context, key))
        except InvalidRequest as exc:
            supported = exc.supported if context.settings["supported_listed"] else None
            status = context.settings["bad_parameter_status"]
            reply = error_reply(call, status, exc.code, exc.message, supported=supported)
        except Exception as exc:
            # Here, and not in `failed` alone, since only here the key's headers are known.
            reply = failure(profile, call, exc)
            headers = rate_headers(context.limit_statuses(key))
        return reply._replace(headers=[*headers, *reply.headers])

    return handled
