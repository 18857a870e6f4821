"""Points that RegSn leaves open: each a setting with a default of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from tollkeeper.profiles.base import ErrorStatus
from tollkeeper.profiles.toolkit import ACCOUNT_ZONE, check_profile_zone

NAME: Final = "regsn"
KEY_PREFIX: Final = "regsn_live_"
PROBLEM_BASE: Final = "https://api.regsn.app/problems/"
SETTINGS: Final[Mapping[str, Any]] = {
    # Where the `type` of a problem begins.
    "problem_base": PROBLEM_BASE,
    # Of a bad `from`, `to`, `group_by`, or member of a body.
    "invalid_parameter_status": 422,
    # Of a call that a store cannot answer; 500: as any other failure.
    "unavailable_status": 503,
    # Of the days of `group_by=day`.
    "time_zone": ACCOUNT_ZONE,
    # Longest range in days; 0: any.
    "range_days_max": 0,
    # Whether a call to the usage endpoint is a request of the account.
    "usage_calls_counted": True,
    # Whether refused requests are in `request_count`, and refused scans and exports in theirs.
    "refused_requests_counted": True,
    "refused_scans_counted": False,
    # Whether those that were answered with a status of 400 or above, which started nothing, are in them.
    "failed_scans_counted": False,
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
    "time_zone": check_profile_zone,
    "range_days_max": Annotated[int, msgspec.Meta(ge=0, le=3_000_000)],
    "reads_per_minute": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "key_mgmt_per_minute": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "session_only_status": ErrorStatus,
}
