"""
CheapestInference: budgets in dollars per subscription pool, four rolling windows per key.

Two surfaces: `/v1` speaks snake_case to consumption keys (`sk_…`) with errors in OpenAI's form, `/api` speaks
camelCase to dashboard sessions and management keys (`mk_…`). Money is in dollars: JSON numbers in the usage
answers, text in the billing ones. The dialect decides nothing about money; it shows the counters of the gate and
the reports of the usage store.

    settings   the choices that the vendor leaves open
    callers    the credentials of a call
    budget     GET /v1/usage
    windows    GET /api/usage, GET /api/usage/{keyId}
    keys       /api/keys
    billing    GET /api/plans, GET /api/billing/*
    plans      plans and subscriptions as the vendor shows them
    wording    errors and envelopes of both surfaces
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.errors import BadInput, Conflict, NotFound, Unavailable
from tollkeeper.profiles.base import (
    BEARER_KEY,
    NO_CREDENTIAL,
    Call,
    Credential,
    Endpoint,
    Metered,
    ProfileContext,
    Reply,
)
from tollkeeper.profiles.cheapestinference.billing import (
    answer_billing_credits,
    answer_billing_status,
    answer_plans,
)
from tollkeeper.profiles.cheapestinference.budget import answer_usage
from tollkeeper.profiles.cheapestinference.keys import (
    delete_key,
    list_keys,
    make_credit_key,
    make_subscription_key,
    switch_key,
)
from tollkeeper.profiles.cheapestinference.settings import NAME, SETTING_TYPES, SETTINGS
from tollkeeper.profiles.cheapestinference.windows import answer_usage_of_key, answer_usage_of_keys
from tollkeeper.profiles.cheapestinference.wording import api_error, api_limited, is_api, refusal, v1_error
from tollkeeper.profiles.toolkit import CatalogFile, bearer_token, ends_early, retry_after

DASHBOARD: Final = Credential("management key or session", "Authorization: Bearer {secret}")


class CheapestInference:
    """The dialect; see `profiles.base.Profile`."""

    name = NAME
    key_prefix = "sk_live_"
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CatalogFile(NAME)
    sample = CatalogFile(f"{NAME}.sample")
    refusals_count = False

    def __init__(self) -> None:
        handlers = (
            ("GET", "/v1/usage", answer_usage, BEARER_KEY, ""),
            ("GET", "/api/usage", answer_usage_of_keys, DASHBOARD, ""),
            ("GET", "/api/usage/{keyId}", answer_usage_of_key, DASHBOARD, ""),
            ("GET", "/api/plans", answer_plans, NO_CREDENTIAL, ""),
            ("GET", "/api/keys", list_keys, DASHBOARD, ""),
            ("POST", "/api/keys/credit", make_credit_key, DASHBOARD, '{"name": "ci"}'),
            (
                "POST",
                "/api/keys/subscription",
                make_subscription_key,
                DASHBOARD,
                '{"name": "ci", "subscriptionId": "{subscription}"}',
            ),
            ("PATCH", "/api/keys/{keyId}", switch_key, DASHBOARD, '{"isActive": false}'),
            ("DELETE", "/api/keys/{keyId}", delete_key, DASHBOARD, ""),
            ("GET", "/api/billing/status", answer_billing_status, DASHBOARD, ""),
            ("GET", "/api/billing/credits", answer_billing_credits, DASHBOARD, ""),
        )
        self.endpoints: Sequence[Endpoint] = [
            Endpoint(method, path, ends_early(handle), credential, body=body)
            for method, path, handle, credential, body in handlers
        ]

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the key of `Authorization: Bearer <key>`, or `""`."""
        return bearer_token(headers) or ""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer 404 or 405 in the form of the surface, whatever the credential."""
        status, message, code = 404, "Not found", "route_not_found"
        headers = []
        if allowed:
            status, message, code = 405, "Method not allowed", "method_not_allowed"
            headers = [("Allow", ", ".join(allowed))]
        if is_api(call.path):
            return api_error(status, message, headers)
        type_ = "not_found_error" if status == 404 else "invalid_request_error"
        return v1_error(status, message, type_, code, headers)

    def failed(self, call: Call, error: Exception) -> Reply:
        """Answer 502 while a store is away, else 500; a 4xx when the caller can mend the request."""
        if is_api(call.path):
            if isinstance(error, Unavailable):
                return api_error(502, "Usage data temporarily unavailable")
            # The key changed after the handler had read it.
            for kind, status in ((BadInput, 400), (NotFound, 404), (Conflict, 409)):
                if isinstance(error, kind):
                    return api_error(status, str(error))
            return api_error(500, "Internal server error")
        if isinstance(error, Unavailable):
            return v1_error(502, "Usage data temporarily unavailable", "api_error", "usage_unavailable")
        if isinstance(error, BadInput):
            return v1_error(400, str(error), "invalid_request_error", "invalid_request")
        return v1_error(500, "Internal server error", "api_error", "internal_error")

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """Word a refusal of the gate."""
        if metered is None and denial.reason == "rate_limited":
            # The limit of an address, on any path. Clients read the text of a key's limit, which is worded below.
            if is_api(call.path):
                return api_limited(denial)
            headers = [retry_after(denial.retry_after_s)]
            return v1_error(429, denial.message, "rate_limit_error", "rate_limit_exceeded", headers)
        return refusal(call, denial, None if metered is None else metered.entitlement)

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return none: the vendor documents none."""
        return ()


PROFILE: Final = CheapestInference()
