"""
What several profiles share: credentials, bodies, instants, numbers, pages of a report, limits and their headers.

A function belongs here when two profiles need it and neither vendor's words are in it. A profile imports `base`
and this module, never another profile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, Final, TypeVar

import msgspec

from tollkeeper.domain.catalog import Limit, check_zone
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.money import NANOS_PER_UNIT
from tollkeeper.domain.periods import duration_s
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery, UsageReport
from tollkeeper.errors import BadInput
from tollkeeper.profiles.base import Call, ProfileContext, Reply

HeaderList = list[tuple[str, str]]
_T = TypeVar("_T")

_HOUR: Final = timedelta(hours=1)
ACCOUNT_ZONE: Final = "account"
"""The value of a setting `time_zone` by which each account has its own."""


def check_profile_zone(name: str) -> None:
    """Raise `Invalid` unless *name* is a time zone, or `ACCOUNT_ZONE`."""
    if name != ACCOUNT_ZONE:
        check_zone(name)


# -- a request ------------------------------------------------------------------------------------


class EarlyReply(Exception):
    """Raised by any step of a handler that `ends_early` wraps: *reply* is the answer, nothing else is to be done."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class CallerError(Exception):
    """Base of a profile's own errors that the caller can mend, such as a bad parameter."""


def ends_early(
    handle: Callable[[Call, ProfileContext], Reply],
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* with an `EarlyReply` turned into its reply."""

    def answer(call: Call, context: ProfileContext) -> Reply:
        try:
            return handle(call, context)
        except EarlyReply as early:
            return early.reply

    return answer


def answered(context: ProfileContext, counted: Any, answer: Callable[[], _T]) -> _T:
    """
    Return what *answer* returns to a call that a rate limit counted: *counted* is the receipt of that.

    A call that fails on our side is not counted. One that the caller can mend is: else bad calls had no limit.
    """
    try:
        return answer()
    except (EarlyReply, CallerError, BadInput):
        raise
    except Exception:
        context.give_back(counted)
        raise


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """
    Return the token of `Authorization: Bearer <token>` (lower-case header names).

    `""` when the header has the scheme alone; None without the header or with another scheme.
    """
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a body; None when it is not one."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def short_digest(text: str) -> str:
    """Return 32 hex digits of the SHA-256 of *text*: for the name of a counter, which has a bounded length."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# -- instants and numbers -------------------------------------------------------------------------


def iso_seconds(at: datetime) -> str:
    """Return *at* as `YYYY-MM-DDTHH:MM:SSZ`; what is finer than a second is dropped."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def iso_millis(at: datetime) -> str:
    """Return *at* as `YYYY-MM-DDTHH:MM:SS.mmmZ`; what is finer than a millisecond is dropped."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def next_hour(now: datetime) -> datetime:
    """Return the next whole hour: a query up to it is answered from rollups, which hold whole hours."""
    return now.replace(minute=0, second=0, microsecond=0) + _HOUR


def seconds_up(us: int) -> int:
    """Return microseconds as whole seconds, rounded up."""
    return -(-us // US_PER_S)


def dollars(nanos: int) -> float:
    """Return *nanos* in dollars as a JSON number."""
    # The quotient of two integers is the nearest double, also beyond 2**53.
    return nanos / NANOS_PER_UNIT


def quotient(numerator: int, denominator: int) -> int | float:
    """Return the JSON number nearest to a fraction, without a point when it is whole."""
    whole, rest = divmod(numerator, denominator)
    return numerator / denominator if rest else whole


# -- usage ----------------------------------------------------------------------------------------


def pages(context: ProfileContext, query: UsageQuery) -> Iterator[UsageReport]:
    """Yield the report of *query* in pages of `PAGE_SIZE_MAX` rows until every row has come; at least one page."""
    offset = 0
    while True:
        report = context.usage(msgspec.structs.replace(query, limit=PAGE_SIZE_MAX, offset=offset))
        yield report
        offset += PAGE_SIZE_MAX
        if offset >= report.row_count:
            return


# -- limits ---------------------------------------------------------------------------------------


def limits_over(limits: Iterable[Limit], window_s: int, unit: str = "requests") -> list[Limit]:
    """Return the limits on *unit* over all routes whose window has *window_s* seconds, in their order."""
    return [
        limit
        for limit in limits
        if limit.unit == unit
        and limit.algorithm != "concurrency"
        and limit.bucket is None
        and limit.is_whole
        and duration_s(limit.window) == window_s
    ]


def request_limits(limit_statuses: Iterable[LimitStatus], bucket: str | None) -> list[LimitStatus]:
    """Return the limits on requests that count a route of *bucket*: those over all routes, and the bucket's own."""
    return [
        limit_status
        for limit_status in limit_statuses
        if limit_status.kind == "limit"
        and limit_status.unit == "requests"
        and limit_status.bucket in (None, bucket)
    ]


def rate_limit_headers(limit: int | None, remaining: int | None, reset_s: int | None = None) -> HeaderList:
    """Return `X-RateLimit-Limit`, `-Remaining` and, if *reset_s* (seconds since the epoch) is given, `-Reset`."""
    headers = [("X-RateLimit-Limit", str(limit)), ("X-RateLimit-Remaining", str(remaining))]
    if reset_s is not None:
        headers.append(("X-RateLimit-Reset", str(reset_s)))
    return headers


def retry_after(seconds: int | None) -> tuple[str, str]:
    """Return the header `Retry-After`; one second when the limit does not say."""
    return ("Retry-After", str(seconds or 1))


# -- what ships with a profile --------------------------------------------------------------------


class CatalogFile:
    """An attribute of a profile: the text of a declarative file, `<name>.toml` beside this module, read when used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> str:
        return files(__package__).joinpath(f"{self._name}.toml").read_text(encoding="utf-8")
