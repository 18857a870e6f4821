"""
RegPilot: an AI gateway's usage of one project, with its budget, cache and models, in US dollars.

It calls no model and holds no money: the gate decides on metered requests, and this dialect words its headers and
refusals. Money is integer nanos up to the last step, where it becomes a JSON number of dollars. Docstrings mark
with `[C]` where the vendor leaves a choice open.

    settings   the choices that the vendor leaves open
    callers    the key behind every endpoint: where a request may carry it, and its rate limits
    usage      GET /api/usage
    refusals   errors
    headers    rate limit, remaining budget
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import TEXT_CHARS_MAX
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.quantities import completion_tokens_of
from tollkeeper.errors import BadInput, Unavailable
from tollkeeper.profiles.base import Call, Credential, Endpoint, Metered, ProfileContext, Reply, Used
from tollkeeper.profiles.regpilot.callers import (
    HEALTH_ROUTE,
    USAGE_ROUTE,
    behind_key,
    good_key,
    is_refused_family,
    read_key,
)
from tollkeeper.profiles.regpilot.headers import (
    HEADER_SAFE,
    credits_remaining,
    keyless_headers,
    rate_headers,
    with_headers,
)
from tollkeeper.profiles.regpilot.refusals import KEY_HEADERS, internal_error, refusal, unavailable
from tollkeeper.profiles.regpilot.settings import NAME, SETTING_TYPES, SETTINGS, with_defaults
from tollkeeper.profiles.regpilot.usage import answer_usage
from tollkeeper.profiles.toolkit import CatalogFile

CREDENTIAL: Final = Credential("key", "X-API-Key: {secret}")
"""The header that the vendor recommends; `callers` has the others."""


class RegPilot:
    """The dialect; see `profiles.base.Profile`."""

    name = NAME
    key_prefix = "sk_"
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CatalogFile(NAME)
    sample = CatalogFile(f"{NAME}.sample")
    refusals_count = False
    credential = staticmethod(read_key)
    credential_headers = KEY_HEADERS
    refuses_metered = staticmethod(is_refused_family)

    def __init__(self) -> None:
        self.endpoints: Sequence[Endpoint] = (
            Endpoint(
                "GET",
                "/api/usage",
                behind_key(self, USAGE_ROUTE, answer_usage),
                CREDENTIAL,
                query="projectId={project}",
            ),
            Endpoint("GET", "/api/health", behind_key(self, HEALTH_ROUTE, answer_health), CREDENTIAL),
        )

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """
        Answer what the vendor does not document: 404, or 405 with `Allow` [C].

        No limit counts it; with a good key the answer has its rate headers.
        """
        if allowed:
            reply = Reply(405, {"error": "Method not allowed"}, [("Allow", ", ".join(allowed))])
        else:
            reply = Reply(404, {"error": "Not found"})
        key = good_key(call, context)
        if isinstance(key, Reply):
            return with_headers(reply, keyless_headers(call), call.request_id)
        headers = rate_headers(context.limit_statuses(key), USAGE_ROUTE, call.now, context.settings)
        return with_headers(reply, headers, call.request_id)

    def failed(self, call: Call, error: Exception) -> Reply:
        """Answer 400 when the caller can mend the request, 503 while a store is away, else 500 without details."""
        if isinstance(error, BadInput):
            reply = Reply(400, {"error": str(error)})
        else:
            reply = unavailable() if isinstance(error, Unavailable) else internal_error(call.request_id)
        return with_headers(reply, keyless_headers(call), call.request_id)

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """Word a refusal of the gate."""
        if metered is None:
            return with_headers(refusal(denial, (), 402), keyless_headers(call), call.request_id)
        settings = with_defaults(metered.settings)
        reply = refusal(denial, metered.limit_statuses, settings["budget_exhausted_status"])
        return with_headers(reply, self.metered_headers(metered), metered.request_id, request_id_given=True)

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the rate headers, the remaining budget, and the request's id."""
        settings = with_defaults(metered.settings)
        headers = rate_headers(metered.limit_statuses, metered.route, metered.now, settings)
        return [*headers, *credits_remaining(metered, settings), ("x-request-id", metered.request_id)]

    def tags(self, headers: Mapping[str, str], settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the tags that the request's headers give to its event: the user and feature of its cost."""
        return {
            tag: text[:TEXT_CHARS_MAX]
            for name, tag in settings["tags_by_header"].items()
            if (text := headers.get(name, "").strip())
        }

    def settled_headers(self, metered: Metered, used: Used) -> Sequence[tuple[str, str]]:
        """
        Return model, charge, remaining budget, tokens and cache status of one request.

        Credits are dollars. The charge is left out while no price is known.
        """
        record = used.record
        headers = []
        if record.model:
            headers.append(("x-regpilot-model", quote(record.model, safe=HEADER_SAFE)))
        if used.complete:
            if record.cost_state != "unpriced":
                headers.append(("x-credits-charged", format_nanos(record.cost_nanos, places_min=0)))
            headers += credits_remaining(metered, with_defaults(metered.settings))
            completion = record.completion_tokens + record.reasoning_tokens
            completion += completion_tokens_of(record.quantities)
            prompt = record.tokens - completion
            headers.append(("x-regpilot-prompt-tokens", str(prompt)))
            headers.append(("x-regpilot-completion-tokens", str(completion)))
        if record.cache in ("hit", "miss"):
            headers.append(("x-cache-status", record.cache.upper()))
        return headers

    def webhook_headers(self, body: bytes, secret: str) -> Mapping[str, str]:
        """Return the vendor's own signature: the hex HMAC-SHA256 of the body under the secret's text."""
        return {"x-regpilot-signature": hmac.digest(secret.encode(), body, hashlib.sha256).hex()}


def answer_health(call: Call, context: ProfileContext, key: StoredKey) -> Reply:
    """Answer `GET /api/health`: the key is good."""
    return Reply(200, {"status": "ok", "authenticated": True, "project_id": key.entry.project})


PROFILE: Final = RegPilot()
