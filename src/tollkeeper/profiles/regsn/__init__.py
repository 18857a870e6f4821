"""
RegSn: usage of an account by day, endpoint or key, in US cents; keys that are made under a session.

Two credentials share `Authorization: Bearer`: a token that begins with `regsn_live_` is an api key, any other a
session token. Scans and exports, by API and UI alike, draw on a monthly pool: a `budgets` entry of the account
(unit `nanos`, period `month`). A top-up raises its amount and is in force when that call returns. Keys of type
`credit` also draw on the account's credit balance: a `top_up` grant then ends a 402.

    settings   the choices that the vendor leaves open
    callers    the credentials of a call, and the limits on calls to the vendor's own endpoints
    usage      GET /v1/usage
    keys       /v1/keys
    limits     the limit that an answer shows, and its headers
    problems   the vendor's table of errors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.errors import BadInput, QuotaExceeded, Unavailable
from tollkeeper.profiles.base import Call, Credential, Endpoint, Metered, ProfileContext, Reply
from tollkeeper.profiles.regsn.callers import (
    behind_credential,
    find_caller,
    key_manager,
    reads_left,
    usage_reader,
)
from tollkeeper.profiles.regsn.keys import create_key, list_keys, revoke_key
from tollkeeper.profiles.regsn.limits import rate_headers, shown_limit
from tollkeeper.profiles.regsn.problems import (
    FORBIDDEN,
    INTERNAL,
    MALFORMED,
    NOT_FOUND,
    RETRY_S,
    UNAVAILABLE,
    problem_reply,
    too_fast,
    wording_of,
)
from tollkeeper.profiles.regsn.settings import KEY_PREFIX, NAME, SETTING_TYPES, SETTINGS
from tollkeeper.profiles.regsn.usage import answer_usage
from tollkeeper.profiles.toolkit import CatalogFile, EarlyReply, bearer_token, retry_after

KEY_OR_SESSION: Final = Credential("key or session", "Authorization: Bearer {secret}")
SESSION: Final = Credential("session", "Authorization: Bearer {secret}")


class RegSn:
    """The dialect; see `profiles.base.Profile`."""

    name = NAME
    key_prefix = KEY_PREFIX
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CatalogFile(NAME)
    sample = CatalogFile(f"{NAME}.sample")
    refusals_count = True
    admits_sessions = True

    def __init__(self) -> None:
        self.endpoints: Sequence[Endpoint] = (
            Endpoint(
                "GET",
                "/v1/usage",
                behind_credential(self, usage_reader, answer_usage),
                KEY_OR_SESSION,
                query="group_by=day",
            ),
            Endpoint(
                "POST",
                "/v1/keys",
                behind_credential(self, key_manager, create_key),
                SESSION,
                body='{"name": "ci"}',
            ),
            Endpoint("GET", "/v1/keys", behind_credential(self, key_manager, list_keys), SESSION),
            Endpoint(
                "DELETE", "/v1/keys/{key_id}", behind_credential(self, key_manager, revoke_key), SESSION
            ),
        )

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the key of `Authorization: Bearer <key>`, or `""`."""
        return bearer_token(headers) or ""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer 404, which no bucket counts; with a good credential the answer has the headers of its reads."""
        try:
            headers = reads_left(call, context, find_caller(call, context))
        except EarlyReply:
            headers = []
        return problem_reply(
            call, NOT_FOUND, f"There is no {call.method} {call.path[:256]}.", headers=headers
        )

    def failed(self, call: Call, error: Exception) -> Reply:
        """Answer 503 while a store is away, else 500; a 4xx when the caller can mend the request."""
        if isinstance(error, Unavailable) and call.settings["unavailable_status"] != INTERNAL.status:
            kind = UNAVAILABLE._replace(status=call.settings["unavailable_status"])
            detail = f"The service is unavailable. Retry after {RETRY_S}s."
            return problem_reply(call, kind, detail, headers=[retry_after(RETRY_S)])
        if isinstance(error, BadInput):
            return problem_reply(call, MALFORMED, str(error))
        if isinstance(error, QuotaExceeded):
            return problem_reply(call, FORBIDDEN, str(error))
        return problem_reply(call, INTERNAL, "The request failed on our side.")

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """Word a refusal of the gate, with the headers of the limit that it met."""
        limit_status = None
        if metered is not None:
            limit_status = shown_limit(metered.limit_statuses, metered.route.bucket, denial.limit)
        headers = rate_headers(limit_status, call.now)
        if denial.status == 429:
            return too_fast(call, denial, limit_status)
        if denial.retry_after_s is not None and denial.status == 503:
            headers = [*headers, ("Retry-After", str(denial.retry_after_s))]
        return problem_reply(call, *wording_of(call, denial), headers=headers)

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the rate headers of the route's bucket, and the request's id."""
        limit_status = shown_limit(metered.limit_statuses, metered.route.bucket)
        return [*rate_headers(limit_status, metered.now), ("X-Request-Id", metered.request_id)]


PROFILE: Final = RegSn()
