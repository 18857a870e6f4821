"""The parameters of AnyLayer's usage and list endpoints, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, cast

from tollkeeper.domain.usage import GRANULARITIES, Granularity
from tollkeeper.profiles.anylayer.errors import InvalidRequest, invalid_parameter
from tollkeeper.profiles.base import Call

TIMEFRAMES: Final[dict[str, timedelta | None]] = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
    "1y": timedelta(days=365),
    "all": None,
}
"""Value of `timeframe` → the length of a window that ends now; None: since the first recorded request."""
SORTS: Final = ("requests", "errors", "latency", "timestamp")
"""Values of `sort`; `timestamp` is the bucket of a series and the last request of a group."""
ORDERS: Final = ("desc", "asc")
PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1_000
OFFSET_MAX: Final = 10**9


class UsageParameters(NamedTuple):
    """The parameters of a usage request, checked."""

    key_id: str | None
    timeframe: str
    granularity: Granularity
    breakdown: bool
    errors: bool
    latency: bool
    sort: str
    descending: bool
    limit: int
    offset: int


def parse_usage_parameters(call: Call) -> UsageParameters:
    """
    Return the checked parameters of a usage request.

    Raises:
        InvalidRequest: A parameter has a bad value.
    """
    timeframe = call.first("timeframe")
    if timeframe is not None and timeframe not in TIMEFRAMES:
        raise InvalidRequest("INVALID_TIMEFRAME", "Invalid timeframe", list(TIMEFRAMES))
    granularity = _either(call, "granularity", "interval")[1]
    if granularity is not None and granularity not in GRANULARITIES:
        raise InvalidRequest("INVALID_GRANULARITY", "Invalid granularity", GRANULARITIES)
    latency = _flag(call, "includeLatency")
    sorts = [name for name in SORTS if latency or name != "latency"]
    limit, offset = parse_page(call)
    return UsageParameters(
        # An empty one is none: no key has an empty id.
        key_id=call.first("keyId") or None,
        timeframe=timeframe or "24h",
        granularity=cast("Granularity", granularity or "hour"),
        breakdown=_flag(call, "includeBreakdown"),
        errors=_flag(call, "includeErrors"),
        latency=latency,
        sort=_choice(call, "sort", "sortBy", sorts),
        descending=_choice(call, "order", "sortOrder", ORDERS) == "desc",
        limit=limit,
        offset=offset,
    )


def parse_page(call: Call) -> tuple[int, int]:
    """Return `limit` and `offset`."""
    return _number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX), _number(call, "offset", 0, 0, OFFSET_MAX)


def page_members(total: int, limit: int, offset: int, returned: int) -> dict[str, Any]:
    """Return the object `pagination`; *returned* is the number of items on this page."""
    return {"total": total, "limit": limit, "offset": offset, "hasMore": offset + returned < total}


def _either(call: Call, name: str, alias: str) -> tuple[str, str | None]:
    """Return the first of two spellings of a parameter that is given, and its value."""
    value = call.first(name)
    return (name, value) if value is not None else (alias, call.first(alias))


def _choice(call: Call, name: str, alias: str, values: Sequence[str]) -> str:
    spelled, value = _either(call, name, alias)
    if value is None:
        return values[0]
    if value not in values:
        raise invalid_parameter(spelled, values)
    return value


def _flag(call: Call, name: str) -> bool:
    value = (call.first(name) or "true").lower() if call.first(name) != "" else ""
    if value not in ("true", "1", "false", "0"):
        raise invalid_parameter(name, ("true", "false"))
    return value in ("true", "1")


def _number(call: Call, name: str, default: int, least: int, most: int) -> int:
    value = call.first(name)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= most:
        raise invalid_parameter(name)
    return int(value)
