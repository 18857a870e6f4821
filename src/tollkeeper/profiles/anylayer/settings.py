"""Points that AnyLayer leaves open: each a setting with a default of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from tollkeeper.domain import alerts
from tollkeeper.domain.periods import duration_s
from tollkeeper.profiles.base import ErrorStatus, Places, Weekday

NAME: Final = "anylayer"

SETTINGS: Final[Mapping[str, Any]] = {
    # The answer to a window without a recorded request: 404, or 200 with zeros.
    "no_data_status": 404,
    # Of a bad parameter or member of a body, and whether its answer lists the values that are `supported`.
    "bad_parameter_status": 400,
    "supported_listed": True,
    # Of a call that a store cannot answer; 500: as any other failure.
    "unavailable_status": 500,
    # Whose usage a call without `keyId` shows: that of the "account", or of the calling "key".
    "scope_without_key_id": "account",
    # The order of `timeSeries`: as `sort` and `order` say, or by "time", and these act on the breakdowns alone.
    "series_order": "sort",
    # A failed request: by "status" (≥ 400) alone, or also by a reported error type ("status_or_type").
    "failure": "status",
    # First day of a week's bucket, and of the week in the list of keys.
    "week_start": "monday",
    # Where the consumption of the running minute, hour and day comes from: the counters of the rate limits
    # ("counters"; developer calls count too), or the recorded requests ("recorded").
    "rate_limit_usage": "counters",
    # The kinds of `domain.alerts` that are shown, in this order, and their thresholds.
    "alerts": ["rate_limit", "error_rate", "latency", "key_expiry"],
    "alert_thresholds": {},
    # The number that is shown where no latency was recorded, and by which it is sorted; null is sorted last.
    "latency_unknown": 0,
    # Decimals of latencies; rates and percentages have 2.
    "latency_places": 2,
    # Status and code of a metered request whose budget or credit is used up.
    "quota_status": 402,
    "create_status": 201,
    # Permissions of a key that was made without `permissions`, in the short form.
    "default_permissions": ["read"],
    # Who makes and revokes keys: "admin" keys (those that the operator made, too), or "any".
    "key_management": "admin",
    # The limit that the short form `rateLimit: 1000` sets, and the window of `burstLimit`.
    "rate_limit_number": "requestsPerMinute",
    "burst_window": "1s",
}


def _check_thresholds(given: Mapping[str, Any]) -> None:
    """Raise ValueError unless *given* are thresholds of `domain.alerts`, whole numbers."""
    for name, value in given.items():
        if name not in alerts.Thresholds._fields or type(value) is not int or value < 0:
            raise ValueError(f"it must have whole numbers under {', '.join(alerts.Thresholds._fields)}")


SETTING_TYPES: Final[Mapping[str, Any]] = {
    "no_data_status": Literal[404, 200],
    "bad_parameter_status": ErrorStatus,
    "unavailable_status": ErrorStatus,
    "scope_without_key_id": Literal["account", "key"],
    "failure": Literal["status", "status_or_type"],
    "week_start": Weekday,
    "rate_limit_usage": Literal["counters", "recorded"],
    "alerts": list[alerts.Kind],
    "alert_thresholds": _check_thresholds,
    "latency_unknown": Annotated[int, msgspec.Meta(le=0)] | Annotated[float, msgspec.Meta(le=0)] | None,
    "series_order": Literal["sort", "time"],
    "latency_places": Places,
    "quota_status": ErrorStatus,
    "create_status": Literal[201, 200],
    "default_permissions": list[Literal["read", "write", "admin"]],
    "key_management": Literal["admin", "any"],
    "rate_limit_number": Literal["requestsPerMinute", "requestsPerHour", "requestsPerDay"],
    "burst_window": duration_s,
}
