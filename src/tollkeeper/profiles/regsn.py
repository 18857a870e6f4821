"""
RegSn: usage of an account by day, endpoint or key, in US cents; keys made by who is signed in.

Two credentials share `Authorization: Bearer`: what begins with `regsn_live_` is an api key, anything else a
session token. The monthly pool that scans and exports draw on, by API and UI alike, is a `budgets` entry of
the account (unit `nanos`, period `month`); a top-up raises its amount and is in force when that call returns.
Keys of type `credit` draw on the account's credit balance as well: then a `top_up` grant lifts the block.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key, Limit, Route, check_zone
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.keys import SECRET_CHARS, StoredKey
from tollkeeper.domain.limit_status import LimitStatus, Session
from tollkeeper.domain.money import cents_half_up
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery
from tollkeeper.errors import BadInput, Forbidden, QuotaExceeded, Unavailable
from tollkeeper.profiles.base import Call, Endpoint, ErrorStatus, Metered, ProfileContext, Reply, failure

Headers = list[tuple[str, str]]
_Who = TypeVar("_Who")

NAME: Final = "regsn"
PROBLEM_BASE: Final = "https://api.regsn.app/problems/"
PROBLEM_MEDIA_TYPE: Final = "application/problem+json; charset=utf-8"
AXES: Final = ("day", "endpoint", "key")
NO_KEY: Final = "(none)"
"""The bucket of what was done under a session, without a key."""
RANGE_DAYS_DEFAULT: Final = 30
NAME_CHARS_MAX: Final = 256

SETTINGS: Final[Mapping[str, Any]] = {
    # Where the `type` of a problem begins.
    "problem_base": PROBLEM_BASE,
    # Of a bad `from`, `to`, `group_by`, or member of a body.
    "invalid_parameter_status": 422,
    # Of a call that a store cannot answer; 500: as any other failure.
    "unavailable_status": 503,
    # Of the days of `group_by=day`.
    "time_zone": "UTC",
    # Longest range in days; 0: any.
    "range_days_max": 0,
    # Whether a call to the usage endpoint is a request of the account.
    "usage_calls_counted": True,
    # Whether refused requests are in `request_count`, and refused scans and exports in theirs.
    "refused_requests_counted": True,
    "refused_scans_counted": False,
    # Whether the total sums the rounded buckets, instead of being rounded once itself.
    "total_is_sum_of_buckets": False,
    # Reads per minute of a user, and of a key whose plan has no limit on reads.
    "reads_per_minute": 60,
    # Calls to the key endpoints per minute of a user.
    "key_mgmt_per_minute": 10,
    # Of an api key at the key endpoints, which take a session only.
    "session_only_status": 403,
    "revoked_keys_listed": True,
}

SETTING_TYPES: Final[Mapping[str, Any]] = {
    "invalid_parameter_status": ErrorStatus,
    "unavailable_status": ErrorStatus,
    "time_zone": check_zone,
    "range_days_max": Annotated[int, msgspec.Meta(ge=0, le=3_000_000)],
    "reads_per_minute": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "key_mgmt_per_minute": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "session_only_status": ErrorStatus,
}

CATALOG: Final = """\
# RegSn: one plan with its rate buckets, and the routes of the API. What a scan or export costs is yours to
# say: price_nanos is the estimate that is held when a call states none, and what it costs when it settles
# without an actual cost. Give each account its monthly pool beside this:
#   [[budgets]]
#   id = "pool"
#   account = "<account>"
#   amount = 100_000_000_000    # 100 dollars; a top-up raises it
#   period = "month"

[[plans]]
slug = "regsn"
name = "RegSn"
limits = [
  { name = "reads", amount = 60, window = "1m", bucket = "reads" },
  { name = "scans", amount = 6, window = "1h", bucket = "scans" },
  { name = "exports", amount = 30, window = "1h", bucket = "exports" },
]

[[routes]]
id = "regsn-scan"
profile = "regsn"
method = "POST"
path = "/v1/scans"
event_kind = "scan"
bucket = "scans"
price_nanos = 100_000_000

[[routes]]
id = "regsn-scan-read"
profile = "regsn"
method = "GET"
path = "/v1/scans/{id}"
event_kind = "read"
bucket = "reads"
free = true

[[routes]]
id = "regsn-scan-stream"
profile = "regsn"
method = "GET"
path = "/v1/scans/{id}/stream"
event_kind = "read"
free = true

[[routes]]
id = "regsn-snapshots"
profile = "regsn"
method = "GET"
path = "/v1/snapshots"
event_kind = "read"
bucket = "reads"
free = true

[[routes]]
id = "regsn-snapshot"
profile = "regsn"
method = "GET"
path = "/v1/snapshots/{id}"
event_kind = "read"
bucket = "reads"
free = true

[[routes]]
id = "regsn-snapshot-part"
profile = "regsn"
method = "GET"
path = "/v1/snapshots/{id}/*"
event_kind = "read"
bucket = "reads"
free = true

[[routes]]
id = "regsn-export"
profile = "regsn"
method = "POST"
path = "/v1/exports"
event_kind = "export"
bucket = "exports"
price_nanos = 100_000_000

[[routes]]
id = "regsn-export-read"
profile = "regsn"
method = "GET"
path = "/v1/exports/{id}"
event_kind = "read"
bucket = "reads"
free = true

[[routes]]
id = "regsn-usage"
profile = "regsn"
method = "GET"
path = "/v1/usage"
event_kind = "read"
bucket = "reads"
free = true
"""

_KEY_PREFIX: Final = "regsn_live_"
_KEY: Final = re.compile(rf"{_KEY_PREFIX}[A-Za-z0-9]{{{SECRET_CHARS}}}\Z")
_USAGE: Final = Route(
    id="regsn-usage", method="GET", path="/v1/usage", event_kind="read", bucket="reads", free=True
)
_DATE_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,64}))?)?(?:([Zz])|([+ -])(\d\d)(?::?(\d\d))?)?)?\Z",
    re.ASCII,
)
_AT_MAX_US: Final = to_us(datetime(2100, 1, 1, tzinfo=UTC))
"""No event is later (see `domain.events`): later ends of a range mean the same."""


class _Problem(NamedTuple):
    """One row of the vendor's table of errors."""

    status: int
    slug: str
    code: str
    title: str


_MALFORMED: Final = _Problem(400, "invalid_request", "invalid_request", "Invalid request")
_NO_CREDENTIAL: Final = _Problem(401, "auth", "authentication_required", "Authentication required")
_BAD_CREDENTIAL: Final = _Problem(401, "auth", "authentication_invalid", "Authentication invalid")
_EXHAUSTED: Final = _Problem(402, "budget_exhausted", "budget_exhausted", "Budget exhausted")
_FORBIDDEN: Final = _Problem(403, "forbidden", "forbidden", "Forbidden")
_NOT_FOUND: Final = _Problem(404, "not_found", "not_found", "Not found")
_INVALID: Final = _Problem(422, "validation", "validation_error", "Validation error")
_TOO_FAST: Final = _Problem(429, "rate_limited", "rate_limit_exceeded", "Rate limit exceeded")
_INTERNAL: Final = _Problem(500, "internal", "internal_error", "Internal error")
_UNAVAILABLE: Final = _Problem(503, "unavailable", "service_unavailable", "Service unavailable")

_KEY_WRONG: Final = "The API key is malformed, unknown or revoked."
_RETRY_S: Final = 5


class _Stopped(Exception):
    """An answer that ends a request early."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class _Invalid(ValueError):
    """A parameter or member has a bad value; the message is the vendor's."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class _Asked(NamedTuple):
    """The effective parameters of one usage question."""

    start: datetime
    end: datetime
    axis: str


class _Bucket:
    """What one day, endpoint or key did."""

    __slots__ = ("cost_nanos", "export_count", "request_count", "scan_count")

    def __init__(self) -> None:
        self.request_count = self.scan_count = self.export_count = self.cost_nanos = 0


class RegSn:
    """The dialect."""

    name = NAME
    key_prefix = _KEY_PREFIX
    settings = SETTINGS
    setting_types = SETTING_TYPES
    catalog = CATALOG
    refusals_count = True

    def __init__(self) -> None:
        self.endpoints: Sequence[Endpoint] = (
            Endpoint("GET", "/v1/usage", _answered(_reader, _usage)),
            Endpoint("POST", "/v1/keys", _answered(_key_manager, _create_key)),
            Endpoint("GET", "/v1/keys", _answered(_key_manager, _list_keys)),
            Endpoint("DELETE", "/v1/keys/{key_id}", _answered(_key_manager, _revoke_key)),
        )

    def credential(self, headers: Mapping[str, str]) -> str:
        return _bearer(headers)

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer 404, which no bucket counts; a good credential is told where its reads stand."""
        try:
            headers = _reads_left(call, context, _caller(call, context))
        except _Stopped:
            headers = []
        return _problem(call, _NOT_FOUND, f"There is no {call.method} {call.path[:256]}.", headers=headers)

    def failed(self, call: Call, error: Exception) -> Reply:
        if isinstance(error, Unavailable) and call.settings["unavailable_status"] != _INTERNAL.status:
            problem = _UNAVAILABLE._replace(status=call.settings["unavailable_status"])
            detail = f"The service is unavailable. Retry after {_RETRY_S}s."
            return _problem(call, problem, detail, headers=[("Retry-After", str(_RETRY_S))])
        if isinstance(error, BadInput):
            return _problem(call, _MALFORMED, str(error))
        if isinstance(error, QuotaExceeded):
            return _problem(call, _FORBIDDEN, str(error))
        return _problem(call, _INTERNAL, "The request failed on our side.")

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        limit_status = None
        if metered is not None:
            limit_status = _limit_status_of(metered.limit_statuses, metered.route.bucket, denial.limit)
        headers = _rate_headers(limit_status, call.now)
        if denial.status == 429:
            return _too_fast(call, denial, limit_status)
        if denial.retry_after_s is not None and denial.status == 503:
            headers = [*headers, ("Retry-After", str(denial.retry_after_s))]
        return _problem(call, *_wording_of(call, denial), headers=headers)

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        limit_status = _limit_status_of(metered.limit_statuses, metered.route.bucket)
        return [*_rate_headers(limit_status, metered.now), ("X-Request-Id", metered.request_id)]


# -- usage ----------------------------------------------------------------------------------------------------


def _usage(call: Call, context: ProfileContext, caller: StoredKey | Session, headers: Headers) -> Reply:
    try:
        asked = _asked(call, context.settings)
    except _Invalid as exc:
        reply = _invalid(call, exc, headers)
    else:
        reply = _answer(call, 200, _report(context, _account_of(caller), asked), headers)
    if context.settings["usage_calls_counted"]:
        # After the answer is made: a call does not see itself.
        if isinstance(caller, Session):
            context.record_unkeyed(caller.account_id, _USAGE, reply.status)
        else:
            context.record(caller, _USAGE, reply.status)
    return reply


def _report(context: ProfileContext, account_id: str, asked: _Asked) -> dict[str, Any]:
    settings = context.settings
    buckets: dict[str, _Bucket] = {}
    total = _Bucket()
    for row in _rows(context, account_id, asked):
        key = row["time"][:10] if asked.axis == "day" else row[asked.axis] or NO_KEY
        for bucket in (buckets.setdefault(key, _Bucket()), total):
            _add(bucket, row, settings)
    if not settings["refused_requests_counted"]:
        buckets = {
            key: bucket for key, bucket in buckets.items() if bucket.request_count or bucket.cost_nanos
        }
    shown = [_bucket(key, bucket) for key, bucket in buckets.items()]
    if asked.axis == "day":
        shown.sort(key=lambda bucket: bucket["key"])
    else:
        shown.sort(key=lambda bucket: (-bucket["cost_cents"], -bucket["request_count"], bucket["key"]))
    total_cents = cents_half_up(total.cost_nanos)
    if settings["total_is_sum_of_buckets"]:
        total_cents = sum(bucket["cost_cents"] for bucket in shown)
    return {
        "totals": {
            "request_count": total.request_count,
            "scan_count": total.scan_count,
            "export_count": total.export_count,
            "total_cost_cents": total_cents,
        },
        "buckets": shown,
        "filters": {"from": _millis(asked.start), "to": _millis(asked.end), "group_by": asked.axis},
    }


def _rows(context: ProfileContext, account_id: str, asked: _Asked) -> Iterable[dict[str, Any]]:
    """Yield what was done per bucket and kind of event."""
    # Before the epoch and after `_AT_MAX_US` there is nothing, and the stores cannot tell such instants.
    start_us, end_us = max(0, to_us(asked.start)), min(to_us(asked.end), _AT_MAX_US)
    offset, row_count = 0, 1
    while start_us < end_us and offset < row_count:
        report = context.usage(
            UsageQuery(
                account_id=account_id,
                from_us=start_us,
                to_us=end_us,
                granularity="day" if asked.axis == "day" else None,
                time_zone=context.settings["time_zone"],
                group_by=("kind",) if asked.axis == "day" else (asked.axis, "kind"),
                measures=("requests", "denied", "cost_nanos"),
                limit=PAGE_SIZE_MAX,
                offset=offset,
            )
        )
        yield from report.rows
        offset, row_count = offset + PAGE_SIZE_MAX, report.row_count


def _add(bucket: _Bucket, row: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    requests, denied = row["requests"], row["denied"]
    bucket.request_count += requests if settings["refused_requests_counted"] else requests - denied
    started = requests if settings["refused_scans_counted"] else requests - denied
    if row["kind"] == "scan":
        bucket.scan_count += started
    elif row["kind"] == "export":
        bucket.export_count += started
    bucket.cost_nanos += row["cost_nanos"]


def _bucket(key: str, bucket: _Bucket) -> dict[str, Any]:
    return {
        "key": key,
        "request_count": bucket.request_count,
        "scan_count": bucket.scan_count,
        "export_count": bucket.export_count,
        "cost_cents": cents_half_up(bucket.cost_nanos),
    }


def _asked(call: Call, settings: Mapping[str, Any]) -> _Asked:
    start = _instant(call, "from", call.now - timedelta(days=RANGE_DAYS_DEFAULT))
    end = _instant(call, "to", call.now)
    axis = call.first("group_by")
    if axis is not None and axis not in AXES:
        raise _Invalid("group_by", f"group_by must be one of {', '.join(AXES)}")
    if start > end:
        raise _Invalid("from", "from must not be after to")
    days_max = settings["range_days_max"]
    if days_max and end - start > timedelta(days=days_max):
        raise _Invalid("from", f"from must be at most {days_max} days before to")
    return _Asked(start, end, axis or "day")


def _instant(call: Call, name: str, default: datetime) -> datetime:
    text = call.first(name)
    if text is None:
        return default
    try:
        return parse_instant(text)
    except (ValueError, OverflowError):
        raise _Invalid(name, f"{name} must be an ISO 8601 date-time") from None


def parse_instant(text: str) -> datetime:
    """
    Return the instant of an ISO 8601 date-time, or of the midnight of a date; UTC without an offset.

    A blank in the place of the offset's sign is a `+` that a URL turned into it. What is finer than a
    microsecond is dropped.

    Raises:
        ValueError: It is none.
        OverflowError: In UTC it is before the year 1 or after the year 9999.
    """
    match = _DATE_TIME.match(text)
    if match is None:
        raise ValueError(text[:64])
    year, month, day, hour, minute, second, part, _, sign, off_hours, off_minutes = match.groups()
    offset = timedelta(hours=int(off_hours or 0), minutes=int(off_minutes or 0))
    if int(off_minutes or 0) > 59:
        raise ValueError(text[:64])
    zone = timezone(-offset if sign == "-" else offset)
    micros = int((part or "")[:6].ljust(6, "0"))
    at = datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), micros, zone
    )
    return at.astimezone(UTC)


# -- keys -----------------------------------------------------------------------------------------------------


def _create_key(call: Call, context: ProfileContext, session: Session, headers: Headers) -> Reply:
    try:
        given = msgspec.json.decode(call.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _problem(call, _MALFORMED, "The body must be a JSON object.", headers=headers)
    if not isinstance(given, dict):
        return _problem(call, _MALFORMED, "The body must be a JSON object.", headers=headers)
    name = given.get("name")
    if not isinstance(name, str) or not name.strip():
        return _invalid(call, _Invalid("name", "name must be a non-empty string"), headers)
    if len(name) > NAME_CHARS_MAX:
        fault = _Invalid("name", f"name must be at most {NAME_CHARS_MAX} characters")
        return _invalid(call, fault, headers)
    key = Key(id=context.new_key_id(), account=session.account_id, name=name, profile=NAME)
    by = Customer(session.account_id)
    try:
        stored, secret = context.issue_key(key, by)
    except Forbidden:
        # No plan bounds it: it draws on the account's balance, which does.
        try:
            stored, secret = context.issue_key(msgspec.structs.replace(key, type="credit"), by)
        except Forbidden as exc:
            return _problem(call, _FORBIDDEN, str(exc), headers=headers)
    return _answer(call, 201, _key(stored, secret), headers)


def _list_keys(call: Call, context: ProfileContext, session: Session, headers: Headers) -> Reply:
    shown = {"active", "inactive", "expired"}
    if context.settings["revoked_keys_listed"]:
        shown.add("revoked")
    now_us = to_us(call.now)
    keys = [_key(stored) for stored in context.keys(session.account_id) if stored.state_at(now_us) in shown]
    return _answer(call, 200, keys, headers)


def _revoke_key(call: Call, context: ProfileContext, session: Session, headers: Headers) -> Reply:
    stored = context.key(call.params["key_id"])
    if stored is None or stored.entry.account != session.account_id or stored.entry.state == "deleted":
        return _problem(call, _NOT_FOUND, "There is no such key.", headers=headers)
    if stored.entry.state != "revoked":
        context.set_key_state(stored, "revoked", Customer(session.account_id))
    return _answer(call, 204, None, headers)


def _key(stored: StoredKey, secret: str | None = None) -> dict[str, Any]:
    entry = stored.entry
    shown: dict[str, Any] = {"id": entry.id, "name": entry.name}
    if secret is not None:
        shown["key"] = secret
    return shown | {
        "key_prefix": stored.shown_prefix,
        "created_at": _seconds(stored.created_at_us),
        "last_used_at": _seconds(stored.last_used_at_us),
        "revoked_at": _seconds(stored.revoked_at_us),
        "project_id": entry.project,
    }


# -- who calls, and how often ---------------------------------------------------------------------------------


def _caller(call: Call, context: ProfileContext) -> StoredKey | Session:
    """Return the key or session that *call* carries."""
    token = _bearer(call.headers)
    if not token:
        raise _Stopped(_problem(call, _NO_CREDENTIAL, "Send Authorization: Bearer with a key or a session."))
    if not token.startswith(_KEY_PREFIX):
        session = context.session(token)
        if session is None:
            raise _Stopped(_problem(call, _BAD_CREDENTIAL, "The session token is not valid."))
        return session
    stored = context.find_key(token) if _KEY.match(token) else None
    entitlement = None if stored is None else context.entitlement(stored)
    if stored is None or entitlement is None or stored.state_at(to_us(call.now)) != "active":
        raise _Stopped(_problem(call, _BAD_CREDENTIAL, _KEY_WRONG))
    if not entitlement.account.active:
        raise _Stopped(_problem(call, _FORBIDDEN, "The account of this API key is not active."))
    return stored


def _account_of(caller: StoredKey | Session) -> str:
    return caller.account_id if isinstance(caller, Session) else caller.entry.account


def _reader(call: Call, context: ProfileContext) -> tuple[StoredKey | Session, Headers]:
    """Return who calls a usage endpoint, a read counted, and its headers."""
    caller = _caller(call, context)
    if isinstance(caller, StoredKey):
        denial = context.pass_limits(caller, _USAGE)
        limit_statuses = context.limit_statuses(caller)
        if denial is not None:
            raise _Stopped(
                _too_fast(call, denial, _limit_status_of(limit_statuses, _USAGE.bucket, denial.limit))
            )
        limit_status = _limit_status_of(limit_statuses, _USAGE.bucket)
        if limit_status is not None:
            return caller, _rate_headers(limit_status, call.now)
    amount = context.settings["reads_per_minute"]
    return caller, _pass_per_minute(call, context, _account_of(caller), "reads", _owner(caller), amount)


def _reads_left(call: Call, context: ProfileContext, caller: StoredKey | Session) -> Headers:
    """Return the headers of *caller*'s reads without counting one."""
    limit_status = None
    if isinstance(caller, StoredKey):
        limit_status = _limit_status_of(context.limit_statuses(caller), _USAGE.bucket)
    if limit_status is None:
        limit = _per_minute("reads", context.settings["reads_per_minute"])
        limit_status = context.limit_status_of(
            _account_of(caller), _counter_of("reads", _owner(caller)), limit
        )
    return _rate_headers(limit_status, call.now)


def _owner(caller: StoredKey | Session) -> str:
    """Return whose calls a bucket counts that no plan has: rotating a key frees it of nothing."""
    return "user:" + caller.user_id if isinstance(caller, Session) else "key:" + caller.rotation_chain_id


def _per_minute(bucket: str, amount: int) -> Limit:
    return Limit(name=bucket, amount=amount, window="1m", bucket=bucket)


def _counter_of(bucket: str, owner: str) -> str:
    # Hashed, since the name of a user may be of any length and script.
    return f"{NAME}:{bucket}:{hashlib.sha256(owner.encode()).hexdigest()[:32]}"


def _key_manager(call: Call, context: ProfileContext) -> tuple[Session, Headers]:
    """Return the session of a call to the key endpoints, and its headers."""
    caller = _caller(call, context)
    if not isinstance(caller, Session):
        problem = _FORBIDDEN._replace(status=context.settings["session_only_status"])
        detail = "Keys are managed with a dashboard session, not a key."
        raise _Stopped(_problem(call, problem, detail, headers=_reads_left(call, context, caller)))
    amount = context.settings["key_mgmt_per_minute"]
    return caller, _pass_per_minute(call, context, caller.account_id, "key_mgmt", _owner(caller), amount)


def _pass_per_minute(
    call: Call, context: ProfileContext, account_id: str, bucket: str, owner: str, amount: int
) -> Headers:
    """Count a call of *owner* in a bucket that no plan has; return its headers."""
    limit, name = _per_minute(bucket, amount), _counter_of(bucket, owner)
    counted = context.spend(account_id, name, limit)
    limit_status = context.limit_status_of(account_id, name, limit)
    if isinstance(counted, Denial):
        raise _Stopped(_too_fast(call, counted, limit_status))
    return _rate_headers(limit_status, call.now)


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _limit_status_of(
    limit_statuses: Iterable[LimitStatus], bucket: str | None, name: str | None = None
) -> LimitStatus | None:
    """Return where the limit *name* stands, else the tightest one of the rate bucket, else of all routes."""
    limits = [
        each
        for each in limit_statuses
        if each.kind == "limit" and each.unit == "requests" and each.bucket in (None, bucket)
    ]
    named = [each for each in limits if each.name == name]
    own = [each for each in limits if each.bucket is not None]
    return min(named or own or limits, key=lambda each: each.remaining or 0, default=None)


def _rate_headers(limit_status: LimitStatus | None, now: datetime) -> Headers:
    """Return the three `RateLimit-*` fields; none where nothing limits the caller."""
    if limit_status is None or limit_status.allowed is None:
        return []
    left_us = 0 if limit_status.resets_at is None else to_us(limit_status.resets_at) - to_us(now)
    return [
        ("RateLimit-Limit", str(limit_status.allowed)),
        ("RateLimit-Remaining", str(limit_status.remaining)),
        ("RateLimit-Reset", str(max(0, -(-left_us // US_PER_S)))),
    ]


# -- answers --------------------------------------------------------------------------------------------------


def _answered(
    admit: Callable[[Call, ProfileContext], tuple[_Who, Headers]],
    handle: Callable[[Call, ProfileContext, _Who, Headers], Reply],
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* behind *admit*: every answer to a known caller has its headers."""

    def answer(call: Call, context: ProfileContext) -> Reply:
        try:
            caller, headers = admit(call, context)
        except _Stopped as stopped:
            return stopped.reply
        try:
            return handle(call, context, caller, headers)
        except Exception as exc:
            # Here, and not in `failed` alone, since only here the caller's headers are known.
            reply = failure(PROFILE, call, exc)
            return reply._replace(headers=[*headers, *reply.headers])

    return answer


def _answer(call: Call, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> Reply:
    return Reply(status, body, [*headers, ("X-Request-Id", call.request_id)])


def _problem(
    call: Call,
    problem: _Problem,
    detail: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    errors: Sequence[Mapping[str, str]] = (),
) -> Reply:
    body: dict[str, Any] = {
        "type": call.settings["problem_base"] + problem.slug,
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "instance": call.path,
        "code": problem.code,
        "request_id": call.request_id,
    }
    if errors:
        body["errors"] = list(errors)
    return Reply(problem.status, body, [*headers, ("X-Request-Id", call.request_id)], PROBLEM_MEDIA_TYPE)


def _invalid(call: Call, fault: _Invalid, headers: Sequence[tuple[str, str]]) -> Reply:
    problem = _INVALID._replace(status=call.settings["invalid_parameter_status"])
    errors = [{"path": fault.path, "code": "invalid", "message": str(fault)}]
    return _problem(call, problem, str(fault), headers=headers, errors=errors)


def _too_fast(call: Call, denial: Denial, limit_status: LimitStatus | None) -> Reply:
    retry_s = denial.retry_after_s
    bucket = (None if limit_status is None else limit_status.bucket) or denial.limit
    detail = f"Rate limit exceeded for {bucket} bucket." + (f" Retry after {retry_s}s." if retry_s else "")
    headers = _rate_headers(limit_status, call.now)
    if retry_s is not None:
        headers.append(("Retry-After", str(retry_s)))
    return _problem(call, _TOO_FAST, detail, headers=headers)


def _wording_of(call: Call, denial: Denial) -> tuple[_Problem, str]:
    """Return the problem and detail of a refusal other than a rate limit's."""
    if denial.status == 402:
        return _EXHAUSTED, "Monthly budget exhausted. Top up to continue."
    if denial.reason == "key_missing":
        return _NO_CREDENTIAL, "Send Authorization: Bearer with a key."
    if denial.status == 401:
        return _BAD_CREDENTIAL, _KEY_WRONG
    if denial.reason == "route_unknown":
        return _NOT_FOUND, f"There is no {call.method} {call.path[:256]}."
    if denial.status == 403:
        return _FORBIDDEN, "This API key may not call this endpoint."
    return _UNAVAILABLE, "The request cannot be decided now. Retry it."


def _millis(at: datetime) -> str:
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _seconds(at_us: int | None) -> str | None:
    if at_us is None:
        return None
    return from_us(at_us).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


PROFILE: Final = RegSn()
