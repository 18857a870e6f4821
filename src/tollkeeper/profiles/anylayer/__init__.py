"""
AnyLayer: usage statistics of an account or of one of its keys, with alerts, and the keys themselves.

It is not a meter and not a store of keys: it reads reports and makes keys through its `ProfileContext`. Rates are
hundredths of a percent in integers up to the last step, where they become JSON numbers from 0 to 100. No answer
of this dialect has money. Docstrings mark with `[C]` where the vendor leaves a choice open.

    settings       the choices that the vendor leaves open
    caller         the good key behind every endpoint, and its rate headers
    parameters     query parameters of the usage and list endpoints
    scope          whose usage a call reads, over which window
    usage          GET /v1/developer/usage, made of
    breakdown      its breakdown and errors
    limits         its rate limits, and the rate headers
    alerts         its alerts
    keys           POST, GET and DELETE /v1/developer/keys
    new_key        the body of POST
    key_notes      what the dialect keeps with a key: permissions, webhooks, metadata
    numbers        percentages and ratios
    errors         codes and the error envelope
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.errors import BadInput, QuotaExceeded, Unavailable
from tollkeeper.profiles.anylayer.caller import behind_key
from tollkeeper.profiles.anylayer.errors import error_reply, forbidden, over_limit, unauthorized
from tollkeeper.profiles.anylayer.keys import create_key, list_keys, revoke_key
from tollkeeper.profiles.anylayer.limits import rate_headers
from tollkeeper.profiles.anylayer.settings import NAME, SETTING_TYPES, SETTINGS
from tollkeeper.profiles.anylayer.usage import answer_usage
from tollkeeper.profiles.base import Call, Endpoint, Metered, ProfileContext, Reply
from tollkeeper.profiles.toolkit import CatalogFile, bearer_token


class AnyLayer:
    """The dialect; see `profiles.base.Profile`."""

    name = NAME
    key_prefix = "zk_prod_"
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CatalogFile(NAME)
    sample = CatalogFile(f"{NAME}.sample")
    refusals_count = True

    def __init__(self) -> None:
        self.endpoints: Sequence[Endpoint] = tuple(
            Endpoint(method, prefix + path, behind_key(self, handle), query=query, body=body)
            for prefix in ("", "/api")
            for method, path, handle, query, body in (
                ("GET", "/v1/developer/usage", answer_usage, "timeframe=30d&granularity=week", ""),
                ("POST", "/v1/developer/keys", create_key, "", '{"name": "ci"}'),
                ("GET", "/v1/developer/keys", list_keys, "", ""),
                ("DELETE", "/v1/developer/keys/{keyId}", revoke_key, "", ""),
            )
        )

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the key of `Authorization: Bearer <key>`; no other form is one."""
        return bearer_token(headers) or ""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer 404 or 405. A good key's limits count the call, and the answer has its rate headers."""
        reply = error_reply(call, 404, "NOT_FOUND", "Resource not found")
        if allowed:
            reply = error_reply(
                call, 405, "METHOD_NOT_ALLOWED", "Method not allowed", headers=[("Allow", ", ".join(allowed))]
            )
        known = behind_key(self, lambda call, context, key: reply)(call, context)
        # Without a good key the answer must not depend on whether a path exists for others.
        return reply if known.status in (401, 403) else known

    def failed(self, call: Call, error: Exception) -> Reply:
        """Answer 500, the one failure that the vendor documents; 400 or 403 when the caller can mend it."""
        if isinstance(error, BadInput):
            return error_reply(call, 400, "INVALID_REQUEST", str(error))
        if isinstance(error, QuotaExceeded):
            return error_reply(call, 403, "FORBIDDEN", str(error))
        status = 500
        if isinstance(error, Unavailable):
            status = int(call.settings.get("unavailable_status", SETTINGS["unavailable_status"]))
        return error_reply(call, status, "INTERNAL_ERROR", "Internal server error")

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """Word a refusal of the gate, with the rate headers of a known key."""
        headers = [] if metered is None else rate_headers(metered.limit_statuses, denial.limit)
        if denial.status == 401:
            reply = unauthorized(call)
        elif denial.status == 429:
            return over_limit(call, denial, headers)
        elif denial.status == 402:
            status = int(call.settings.get("quota_status", SETTINGS["quota_status"]))
            reply = error_reply(call, status, "QUOTA_EXCEEDED", "Quota exceeded")
        elif denial.reason == "route_unknown":
            reply = error_reply(call, 404, "NOT_FOUND", "Resource not found")
        elif denial.status == 403:
            reply = forbidden(call)
        else:
            reply = error_reply(call, 500, "INTERNAL_ERROR", "Internal server error")
        return reply._replace(headers=[*headers, *reply.headers])

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the rate headers of the key."""
        return rate_headers(metered.limit_statuses)


PROFILE: Final = AnyLayer()
