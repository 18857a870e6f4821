"""
RegPilot: an AI gateway's usage of one project, with its budget, cache and models, in US dollars.

`[C]` marks what the vendor leaves open and we chose. Money is integer nanos up to the last step, where it
becomes a JSON number of dollars.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from tollkeeper.domain.catalog import Route, check_zone
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.events import TEXT_CHARS_MAX
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.money import NANOS_PER_CENT, NANOS_PER_UNIT, format_nanos
from tollkeeper.domain.periods import Period, period_of
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery
from tollkeeper.errors import BadInput, Unavailable
from tollkeeper.profiles.base import (
    Call,
    Endpoint,
    ErrorStatus,
    Metered,
    Places,
    ProfileContext,
    Reply,
    Used,
    Weekday,
    failure,
)

KEY_HEADERS: Final = (
    "x-api-key",
    "x-regpilot-key",
    "api-key",
    "authorization",
    "x-authorization",
    "proxy-authorization",
)
"""Where a key may be, in the order in which they are read: the first that holds anything decides."""

PERIODS: Final = ("day", "week", "month")
PERIOD_DEFAULT: Final = "month"

USAGE_ROUTE: Final = Route(
    id="regpilot-usage", method="GET", path="/api/usage", event_kind="read", free=True, profile="regpilot"
)
HEALTH_ROUTE: Final = Route(
    id="regpilot-health", method="GET", path="/api/health", event_kind="read", free=True, profile="regpilot"
)

SETTINGS: Final[Mapping[str, Any]] = {
    # Calendar windows of `period`, and the budget's month where usage has to tell it.
    "time_zone": "UTC",
    "week_start": "monday",
    # Whether `budget.used` is that of the asked period rather than that of the current month.
    "budget_follows_period": False,
    # `budget.limit` of a project that no monthly budget bounds; the field is a number whatever happens.
    "limit_without_budget_nanos": 0,
    "hit_rate_places": 2,
    # Below 0 once the budget is overdrawn.
    "negative_remaining": False,
    # Of `models.<name>.cost`: `dollars` or `cents`.
    "cost_unit": "dollars",
    # The name under which `models` has requests without a model; empty: they are left out.
    "unnamed_model": "",
    "bad_parameter_status": 400,
    "foreign_project_status": 403,
    "period_case_sensitive": True,
    "unknown_parameters_ignored": True,
    # Key families that may do nothing here: neither read usage nor make metered requests.
    "refused_key_prefixes": ["pk_"],
    # A metered request of a project whose budget is used up.
    "budget_exhausted_status": 402,
    # Whether `X-RateLimit-Remaining` may pass `X-RateLimit-Limit` while a burst is left.
    "remaining_counts_burst": True,
    # Whether an answer without a known key says that 0 of 0 calls are left, or nothing.
    "rate_headers_without_key": True,
    # Whether metered answers say `x-credits-remaining`.
    "credits_remaining_header": True,
    # Headers of metered requests that attribute its cost: lower-case name → tag of the event.
    "tags_by_header": {"x-regpilot-user-id": "user_id", "x-regpilot-feature": "feature"},
}

SETTING_TYPES: Final[Mapping[str, Any]] = {
    "time_zone": check_zone,
    "week_start": Weekday,
    "hit_rate_places": Places,
    "cost_unit": Literal["dollars", "cents"],
    "bad_parameter_status": ErrorStatus,
    "foreign_project_status": ErrorStatus,
    "refused_key_prefixes": list[str],
    "budget_exhausted_status": ErrorStatus,
    "tags_by_header": dict[str, str],
}

CATALOG: Final = """\
# RegPilot's plans and metered routes. Give each project its monthly budget of its own:
#
#   [[budgets]]
#   id = "web-monthly"
#   account = "acme"
#   project = "web"
#   amount = 1_000_000_000_000  # 1000 dollars

[[plans]]
slug = "regpilot-free"
name = "Free"
limits = [
  { name = "rpm", amount = 10, algorithm = "permits", burst = 20 },
  { name = "rpd", amount = 1_000, window = "1d" },
]

[[plans]]
slug = "regpilot-startup"
name = "Startup"
price_nanos = 399_000_000_000
limits = [
  { name = "rpm", amount = 100, algorithm = "permits", burst = 200 },
  { name = "rpd", amount = 100_000, window = "1d" },
]

[[plans]]
slug = "regpilot-growth"
name = "Growth"
price_nanos = 799_000_000_000
limits = [
  { name = "rpm", amount = 500, algorithm = "permits", burst = 1_000 },
  { name = "rpd", amount = 1_000_000, window = "1d" },
]

[[plans]]
slug = "regpilot-enterprise"
name = "Enterprise"
price_nanos = 1_999_000_000_000

[[routes]]
id = "regpilot-chat"
method = "POST"
path = "/api/ai/chat"
event_kind = "chat"
profile = "regpilot"

[[routes]]
id = "regpilot-chat-v2"
method = "POST"
path = "/api/ai/chat-v2"
event_kind = "chat"
profile = "regpilot"

[[routes]]
id = "regpilot-complete"
method = "POST"
path = "/api/ai/complete"
event_kind = "completion"
profile = "regpilot"

[[routes]]
id = "regpilot-embeddings"
method = "POST"
path = "/api/ai/embeddings"
event_kind = "embedding"
profile = "regpilot"

[[routes]]
id = "regpilot-usage"
method = "GET"
path = "/api/usage"
event_kind = "read"
free = true
profile = "regpilot"

[[routes]]
id = "regpilot-health"
method = "GET"
path = "/api/health"
event_kind = "read"
free = true
profile = "regpilot"
"""

_RATE_LIMIT_S: Final = 60
"""What to wait for where the limit itself does not say: the vendor's limits are per minute."""
_COST_UNITS: Final = {"dollars": NANOS_PER_UNIT, "cents": NANOS_PER_CENT}
_HEADER_SAFE: Final = " !#$&'()*+,/:;=?@[]%"
"""What stays as it is in a header, beside letters and digits; other characters are percent-encoded."""
_WINDOW_NAMES: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


class RegPilot:
    """The dialect; see `profiles.base.Profile`."""

    name = "regpilot"
    key_prefix = "sk_"
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CATALOG
    refusals_count = False

    def __init__(self) -> None:
        self.endpoints: Sequence[Endpoint] = (
            Endpoint("GET", "/api/usage", lambda call, context: _served(call, context, USAGE_ROUTE, _usage)),
            Endpoint(
                "GET", "/api/health", lambda call, context: _served(call, context, HEALTH_ROUTE, _health)
            ),
        )

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the key of the first header that holds anything, with or without `Bearer`."""
        for name in KEY_HEADERS:
            text = headers.get(name, "").strip()
            if text:
                return _without_scheme(text) if name.endswith("authorization") else text
        return ""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Return 404, or 405 with `Allow` [C]. No limit counts the call; a good key gets its rate headers."""
        if allowed:
            reply = Reply(405, {"error": "Method not allowed"}, [("Allow", ", ".join(allowed))])
        else:
            reply = Reply(404, {"error": "Not found"})
        key = _good_key(call, context)
        if isinstance(key, Reply):
            return _with_headers(reply, _keyless_headers(call), call.request_id)
        rate_headers = _rate_headers(context.limit_statuses(key), USAGE_ROUTE, call.now, context.settings)
        return _with_headers(reply, rate_headers, call.request_id)

    def failed(self, call: Call, error: Exception) -> Reply:
        """Answer 400 to what is the caller's fault; 503 when a store is away, else 500, without a word of why."""
        if isinstance(error, BadInput):
            reply = Reply(400, {"error": str(error)})
        else:
            reply = _unavailable() if isinstance(error, Unavailable) else _internal_error(call.request_id)
        return _with_headers(reply, _keyless_headers(call), call.request_id)

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """Word the gate's no."""
        if metered is None:
            return _with_headers(_refusal(denial, (), 402), _keyless_headers(call), call.request_id)
        settings = _with_defaults(metered.settings)
        reply = _refusal(denial, metered.limit_statuses, settings["budget_exhausted_status"])
        return _with_headers(reply, self.metered_headers(metered), metered.request_id, request_id_given=True)

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the rate headers, what is left of the budget, and the request's id."""
        settings = _with_defaults(metered.settings)
        headers = _rate_headers(metered.limit_statuses, metered.route, metered.now, settings)
        return [*headers, *_credits_remaining(metered, settings), ("x-request-id", metered.request_id)]

    def refuses_metered(self, secret: str, settings: Mapping[str, Any]) -> bool:
        """Whether the key is of a family that makes no metered request."""
        return secret.startswith(tuple(settings["refused_key_prefixes"]))

    def tags(self, headers: Mapping[str, str], settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return whom and what a request's cost is attributed to, as far as its headers say."""
        return {
            tag: text[:TEXT_CHARS_MAX]
            for name, tag in settings["tags_by_header"].items()
            if (text := headers.get(name, "").strip())
        }

    def settled_headers(self, metered: Metered, used: Used) -> Sequence[tuple[str, str]]:
        """Return model, charge in dollars (none while no price is known), balance, tokens and cache status."""
        record = used.record
        headers = []
        if record.model:
            headers.append(("x-regpilot-model", quote(record.model, safe=_HEADER_SAFE)))
        if used.complete:
            if record.cost_state != "unpriced":
                headers.append(("x-credits-charged", format_nanos(record.cost_nanos, places_min=0)))
            headers += _credits_remaining(metered, _with_defaults(metered.settings))
            prompt = record.prompt_tokens + record.cached_prompt_tokens
            completion = record.completion_tokens + record.reasoning_tokens
            headers.append(("x-regpilot-prompt-tokens", str(prompt)))
            headers.append(("x-regpilot-completion-tokens", str(completion)))
        if record.cache in ("hit", "miss"):
            headers.append(("x-cache-status", record.cache.upper()))
        return headers

    def webhook_headers(self, body: bytes, secret: str) -> Mapping[str, str]:
        """Return the vendor's own signature: the hex HMAC-SHA256 of the body under the secret's text."""
        return {"x-regpilot-signature": hmac.digest(secret.encode(), body, hashlib.sha256).hex()}


PROFILE: Final = RegPilot()


# -- one call --------------------------------------------------------------------------------------------------


def _served(
    call: Call,
    context: ProfileContext,
    route: Route,
    answer: Callable[[Call, ProfileContext, StoredKey], Reply],
) -> Reply:
    """Let a good key through to *answer*, counted against its rate limits whatever the answer is."""
    key = _good_key(call, context)
    if isinstance(key, Reply):
        return _with_headers(key, _keyless_headers(call), call.request_id)
    denial = context.pass_limits(key, route)
    if denial is not None:
        limit_statuses = context.limit_statuses(key)
        reply = _refusal(denial, limit_statuses, 402)
    else:
        try:
            reply = answer(call, context, key)
        except Exception as exc:
            # Here, and not in `failed` alone, since only here the key's rate headers are known.
            reply = failure(PROFILE, call, exc)._replace(headers=())
        limit_statuses = context.limit_statuses(key)
    return _with_headers(
        reply, _rate_headers(limit_statuses, route, call.now, context.settings), call.request_id
    )


def _good_key(call: Call, context: ProfileContext) -> StoredKey | Reply:
    """Return the key that *call* carries, or why it may do nothing here."""
    secret = PROFILE.credential(call.headers)
    if not secret:
        return _missing_key()
    if PROFILE.refuses_metered(secret, context.settings):
        return _forbidden()
    key = context.find_key(secret)
    state = "unknown" if key is None else key.state_at(to_us(call.now))
    if key is None or state != "active":
        return _revoked_key() if state == "revoked" else _bad_key()
    entitlement = context.entitlement(key)
    if entitlement is None or not entitlement.account.active:
        return _forbidden()
    return key


def _usage(call: Call, context: ProfileContext, key: StoredKey) -> Reply:
    settings = context.settings
    bad_status = settings["bad_parameter_status"]
    project, period = call.first("projectId"), call.first("period")
    if not project:
        return Reply(bad_status, {"error": "projectId is required", "code": "MISSING_PROJECT_ID"})
    if period is None:
        period = PERIOD_DEFAULT
    elif not settings["period_case_sensitive"]:
        period = period.lower()
    if period not in PERIODS:
        error = "Invalid period. Must be: day, week, or month"
        return Reply(bad_status, {"error": error, "code": "INVALID_PERIOD"})
    if not settings["unknown_parameters_ignored"] and not {"projectId", "period"}.issuperset(call.query):
        error = "Unknown parameter. Must be: projectId or period"
        return Reply(bad_status, {"error": error, "code": "UNKNOWN_PARAMETER"})
    if project != key.entry.project:
        return _forbidden(settings["foreign_project_status"])
    window = _window(call.now, period, context)
    budget = _budget(context, key, project, call.now, window)
    rows, totals = _by_model(context, key, project, window)
    hits, misses = totals["cache_hits"], totals["cache_misses"]
    remaining_nanos = budget.limit_nanos - budget.used_nanos
    if not settings["negative_remaining"]:
        remaining_nanos = max(0, remaining_nanos)
    cost_unit_nanos = _COST_UNITS[settings["cost_unit"]]
    body = {
        "budget": {
            "limit": _dollars(budget.limit_nanos),
            "used": _dollars(budget.used_nanos),
            "remaining": _dollars(remaining_nanos),
        },
        "cache": {
            "hits": hits,
            "misses": misses,
            "hitRate": _percentage(hits, hits + misses, settings["hit_rate_places"]),
        },
        "models": {
            model: {
                "requests": row["requests"],
                "tokens": row["tokens"],
                "cost": _quotient(row["cost_nanos"], cost_unit_nanos),
            }
            for model, row in _named(rows, settings["unnamed_model"])
        },
        "period": {"start": _iso(window.start_at), "end": _iso(window.end_at)},
    }
    return Reply(200, body)


def _health(call: Call, context: ProfileContext, key: StoredKey) -> Reply:
    return Reply(200, {"status": "ok", "authenticated": True, "project_id": key.entry.project})


# -- figures ---------------------------------------------------------------------------------------------------


class _Budget(NamedTuple):
    limit_nanos: int
    used_nanos: int


def _budget(context: ProfileContext, key: StoredKey, project: str, now: datetime, window: Period) -> _Budget:
    """Return the monthly budget that bounds the project: what it has used is what the gate counts."""
    limit_status = _monthly_standing(context, key)
    limit_nanos = context.settings["limit_without_budget_nanos"]
    if limit_status is not None:
        assert limit_status.allowed is not None
        limit_nanos = limit_status.allowed
    if context.settings["budget_follows_period"]:
        return _Budget(limit_nanos, _cost_nanos(context, key, project, window))
    if limit_status is None:
        return _Budget(limit_nanos, _cost_nanos(context, key, project, _window(now, "month", context)))
    return _Budget(limit_nanos, limit_status.used)


def _monthly_standing(context: ProfileContext, key: StoredKey) -> LimitStatus | None:
    """Return where the project's monthly budget stands; without one, that of whatever else bounds the key [C]."""
    entitlement = context.entitlement(key)
    if entitlement is None:
        return None
    # Both list the budgets in the same order; names alone may repeat.
    limit_statuses = [
        limit_status for limit_status in context.limit_statuses(key) if limit_status.kind == "budget"
    ]
    bounds = [
        (scope.project_id is None, limit_status.remaining, limit_status)
        for scope, limit_status in zip(entitlement.budgets, limit_statuses, strict=False)
        if _bounds_the_month(scope) and scope.name == limit_status.name
        if limit_status.remaining is not None
    ]
    return min(bounds, key=lambda bound: bound[:2])[2] if bounds else None


def _bounds_the_month(scope: BudgetScope) -> bool:
    return scope.unit == "nanos" and scope.period == "month" and scope.amount is not None


def _cost_nanos(context: ProfileContext, key: StoredKey, project: str, window: Period) -> int:
    query = UsageQuery(
        account_id=key.entry.account,
        from_us=to_us(window.start_at),
        to_us=to_us(window.end_at),
        filters={"project": (project,)},
        measures=("cost_nanos",),
    )
    return int(context.usage(query).totals["cost_nanos"])


def _by_model(
    context: ProfileContext, key: StoredKey, project: str, window: Period
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row per model, most requested first, and the totals. What the gate refused reached no model."""
    rows: list[dict[str, Any]] = []
    while True:
        query = UsageQuery(
            account_id=key.entry.account,
            from_us=to_us(window.start_at),
            to_us=to_us(window.end_at),
            group_by=("model",),
            filters={"project": (project,), "denied_reason": ("",)},
            measures=("requests", "tokens", "cost_nanos", "cache_hits", "cache_misses"),
            sort=("-requests",),
            limit=PAGE_SIZE_MAX,
            offset=len(rows),
        )
        report = context.usage(query)
        rows += report.rows
        if not report.rows or len(rows) >= report.row_count:
            return rows, report.totals


def _named(rows: Sequence[dict[str, Any]], unnamed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in rows:
        model = row["model"] or unnamed
        if model and row["requests"]:
            yield model, row


def _window(now: datetime, period: str, context: ProfileContext) -> Period:
    settings = context.settings
    return period_of(now, period, time_zone=settings["time_zone"], week_start=settings["week_start"])


def _dollars(nanos: int) -> int | float:
    return _quotient(nanos, NANOS_PER_UNIT)


def _percentage(part: int, whole: int, places: int) -> int | float:
    """Return *part* of *whole* as 0–100, rounded half up; 0 when there is nothing."""
    if not whole:
        return 0
    scale = 10**places
    return _quotient((2 * part * 100 * scale + whole) // (2 * whole), scale)


def _quotient(numerator: int, denominator: int) -> int | float:
    """Return the JSON number nearest to a fraction, without a point when it is whole."""
    whole, rest = divmod(numerator, denominator)
    return numerator / denominator if rest else whole


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


# -- refusals --------------------------------------------------------------------------------------------------


def _refusal(denial: Denial, limit_statuses: Sequence[LimitStatus], budget_status: int) -> Reply:
    match denial.reason:
        case "key_missing":
            return _missing_key()
        case "key_revoked":
            return _revoked_key()
        case "key_unknown" | "key_inactive" | "key_expired" | "key_deleted":
            return _bad_key()
        case "rate_limited" | "too_many_concurrent":
            return _rate_limited(denial, limit_statuses)
        case "budget_exhausted" | "credit_exhausted":
            return _budget_exceeded(denial, budget_status)
        case "unavailable":
            return _unavailable()
        case "account_inactive" | "route_unknown" | "layer_not_allowed" | "price_unknown":
            return _forbidden()


def _missing_key() -> Reply:
    error = (
        "Missing API key. Use one of: X-API-Key: YOUR_KEY, X-RegPilot-Key: YOUR_KEY, "
        "or Authorization: Bearer YOUR_KEY"
    )
    return Reply(401, {"error": error, "headers_checked": list(KEY_HEADERS)})


def _bad_key() -> Reply:
    return Reply(401, {"error": "Invalid or inactive API key", "code": "INVALID_API_KEY"})


def _revoked_key() -> Reply:
    return Reply(401, {"error": "API key has been revoked"})


def _forbidden(status: int = 403) -> Reply:
    return Reply(status, {"error": "Insufficient permissions for this operation"})


def _rate_limited(denial: Denial, limit_statuses: Sequence[LimitStatus]) -> Reply:
    limits = [s for s in limit_statuses if s.kind in ("limit", "concurrency") and s.name == denial.limit]
    limit, window_s = denial.allowed, None
    if limits:
        window_s = limits[0].window_s
        limit = limits[0].allowed if limits[0].per_window is None else limits[0].per_window
    retry_after_s = denial.retry_after_s or window_s or _RATE_LIMIT_S
    concurrent = denial.reason == "too_many_concurrent"
    body = {
        "error": "Rate limit exceeded",
        "retry_after": retry_after_s,
        "limit": limit,
        "window": "concurrent" if concurrent else _window_name(window_s or _RATE_LIMIT_S),
    }
    return Reply(429, body, [("Retry-After", str(retry_after_s))])


def _window_name(seconds: int) -> str:
    unit_s, unit = next(named for named in _WINDOW_NAMES if seconds % named[0] == 0)
    count = seconds // unit_s
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _budget_exceeded(denial: Denial, status: int) -> Reply:
    per_unit = NANOS_PER_UNIT if denial.unit == "nanos" else 1
    details = {
        "limit": _quotient(denial.allowed or 0, per_unit),
        "used": _quotient(denial.used or 0, per_unit),
    }
    return Reply(status, {"error": "Budget exceeded", "code": "BUDGET_EXCEEDED", "details": details})


def _unavailable() -> Reply:
    return Reply(503, {"error": "Service unavailable", "message": "Please try again in a moment."})


def _internal_error(request_id: str) -> Reply:
    body = {
        "error": "Internal server error",
        "message": "Failed to process request",
        "request_id": request_id,
    }
    return Reply(500, body)


# -- headers ---------------------------------------------------------------------------------------------------


def _with_headers(
    reply: Reply, headers: Sequence[tuple[str, str]], request_id: str, *, request_id_given: bool = False
) -> Reply:
    own = () if request_id_given else (("x-request-id", request_id),)
    return reply._replace(headers=[*reply.headers, *headers, *own])


def _rate_headers(
    limit_statuses: Sequence[LimitStatus], route: Route, now: datetime, settings: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """
    Return the three rate headers; none for a key without a limit.

    The limit is that of the shortest window. What remains is that of whichever limit stops the key first, and
    of a token bucket all that it holds, its burst included [C].
    """
    limits = sorted(
        (
            limit_status
            for limit_status in limit_statuses
            if limit_status.kind == "limit" and limit_status.unit == "requests"
            if limit_status.bucket in (None, route.bucket)
        ),
        key=lambda limit_status: limit_status.window_s or 0,
    )
    if not limits:
        return []
    tightest = min(limits, key=lambda limit_status: limit_status.remaining or 0)
    limit, remaining = limits[0].per_window or 0, tightest.remaining or 0
    if not settings["remaining_counts_burst"]:
        remaining = min(limit, remaining)
    return _header_values(limit, remaining, _reset_s(tightest.resets_at, now))


def _credits_remaining(metered: Metered, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    left_nanos = [
        limit_status.remaining
        for limit_status in metered.limit_statuses
        if limit_status.kind in ("budget", "credit") and limit_status.unit == "nanos"
        if limit_status.remaining is not None
    ]
    if not left_nanos or not settings["credits_remaining_header"]:
        return []
    return [("x-credits-remaining", format_nanos(min(left_nanos), places_min=0))]


def _keyless_headers(call: Call) -> list[tuple[str, str]]:
    """Return the rate headers of an answer to nobody that we know: limits are per key, so it has none [C]."""
    if not _with_defaults(call.settings)["rate_headers_without_key"]:
        return []
    return _header_values(0, 0, (_unix_s(call.now) // _RATE_LIMIT_S + 1) * _RATE_LIMIT_S)


def _with_defaults(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    # Whoever calls a profile without its desk may leave them out.
    return {**SETTINGS, **settings}


def _header_values(limit: int, remaining: int, reset_s: int) -> list[tuple[str, str]]:
    return [
        ("X-RateLimit-Limit", str(limit)),
        ("X-RateLimit-Remaining", str(remaining)),
        ("X-RateLimit-Reset", str(reset_s)),
    ]


def _reset_s(resets_at: datetime | None, now: datetime) -> int:
    """Return the first whole second at or after the reset, always ahead of *now*: a full bucket resets now."""
    soonest_s = _unix_s(now) + 1
    return soonest_s if resets_at is None else max(soonest_s, -(-to_us(resets_at) // US_PER_S))


def _unix_s(at: datetime) -> int:
    return to_us(at) // US_PER_S


def _without_scheme(text: str) -> str:
    """Return the key of an `Authorization` header; the vendor's own clients may leave `Bearer` out."""
    scheme, _, rest = text.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else text
