"""Points that RegPilot leaves open: each a setting with a default of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from tollkeeper.domain.money import NANOS_PER_UNIT
from tollkeeper.profiles.base import ErrorStatus, Places, Weekday
from tollkeeper.profiles.toolkit import ACCOUNT_ZONE, check_profile_zone

NAME: Final = "regpilot"

SETTINGS: Final[Mapping[str, Any]] = {
    # Calendar windows of `period`, and the budget's month where usage has to tell it.
    "time_zone": ACCOUNT_ZONE,
    "week_start": "monday",
    # Whether `budget.used` is that of the asked period rather than that of the current month.
    "budget_follows_period": False,
    # `budget.limit` of a project that no budget in money and no credit bounds: a number in any case, and never 0, at
    # which clients stop. 9 million dollars.
    "limit_without_budget_nanos": 9_000_000 * NANOS_PER_UNIT,
    # Whether what open holds have set aside lowers `budget.remaining` and `x-credits-remaining`.
    "remaining_counts_holds": True,
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
    "time_zone": check_profile_zone,
    "week_start": Weekday,
    "limit_without_budget_nanos": Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)],
    "hit_rate_places": Places,
    "cost_unit": Literal["dollars", "cents"],
    "bad_parameter_status": ErrorStatus,
    "foreign_project_status": ErrorStatus,
    "refused_key_prefixes": list[str],
    "budget_exhausted_status": ErrorStatus,
    "tags_by_header": dict[str, str],
}


def with_defaults(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return *settings* with the defaults for those that it lacks."""
    # A caller without a `ProfileContext` may leave them out.
    return {**SETTINGS, **settings}
