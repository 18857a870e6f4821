"""Points that CheapestInference leaves open: each a setting with a default of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from tollkeeper.domain.periods import check_period
from tollkeeper.profiles.base import ErrorStatus

NAME: Final = "cheapestinference"
SETTINGS: Final[Mapping[str, Any]] = {
    # 404 tells a deleted key from one that never was (401); 401 would hide the difference.
    "deleted_key_status": 404,
    # Seconds after its subscription's end in which a key still reads its usage, before it counts as revoked.
    "expired_grace_s": 86_400,
    # "first_call": the 12 hours begin with the first call after the last 12; "sliding": any 12 hours.
    "list_limit_window": "first_call",
    # Who shares the 12 calls: all who sign in to the account, or each "credential" has its own.
    "list_limit_per": "account",
    # "newest" or "oldest" key first.
    "list_order": "newest",
    # Of GET /api/plans: by "price", or by "slug".
    "plans_order": "price",
    # What `budget` of /v1/usage shows: the "pool" of the subscription, or what the "key" alone spent of it.
    "budget_shows": "pool",
    # Whether calls of /v1/usage are requests in the windows of their key.
    "usage_calls_count": False,
    # Calls of GET /api/usage/{keyId} per minute and account.
    "single_key_per_minute": 60,
    # Whether GET /api/usage/{keyId} wraps its item in success and data, as the list does.
    "single_key_envelope": False,
    # max-age of GET /api/usage in seconds; 0: no cache may store it.
    "list_cache_s": 3600,
    # Whether requests that the gate refused count in the windows.
    "count_refused": False,
    # The reset interval that is shown for a subscription whose plan has no budget in money. Hours and minutes count
    # from 00:00 UTC: there is no budget that remembers its first use.
    "uncapped_duration": "30d",
    # Whether /api/keys and the two /api/billing answers come in success and data, as in later years.
    "keys_envelope": False,
    "billing_envelope": False,
    # Plan of credit keys made here, if it exists; else they get so many requests per minute.
    "credit_plan": "cheapestinference-credits",
    "credit_rpm": 60,
    # Of metered calls when the account's credit is used up.
    "credit_exhausted_status": 402,
}
SETTING_TYPES: Final[Mapping[str, Any]] = {
    "deleted_key_status": Literal[404, 401],
    "list_limit_window": Literal["first_call", "sliding"],
    "list_limit_per": Literal["account", "credential"],
    "list_order": Literal["newest", "oldest"],
    "plans_order": Literal["price", "slug"],
    "budget_shows": Literal["pool", "key"],
    "single_key_per_minute": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "uncapped_duration": check_period,
    "credit_rpm": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "credit_exhausted_status": ErrorStatus,
}
