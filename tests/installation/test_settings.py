"""Settings are read from values and the environment; one that cannot be meant is refused, and named."""

from __future__ import annotations

import pytest

from tollkeeper.errors import BadParameter
from tollkeeper.settings import load


@pytest.mark.parametrize(
    "name",
    [
        "hold_s",
        "body_bytes_max",
        "usage_query_s_max",
        "usage_query_memory_bytes_max",
        "usage_query_groups_max",
        "keys_per_account_max",
    ],
)
@pytest.mark.parametrize("value", ["-1", "0", "", "0.5", "many"])
def test_a_bound_that_bounds_nothing_or_everything_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadParameter, match=f"setting {name}") as refused:
        load({}, {f"TOLLKEEPER_{name.upper()}": value})
    assert refused.value.field == name


def test_values_win_over_the_environment() -> None:
    environ = {"TOLLKEEPER_HOLD_S": "60", "TOLLKEEPER_USAGE_QUERY_S_MAX": "7"}
    found = load({"hold_s": 30, "body_bytes_max": None}, environ)
    assert (found.hold_s, found.usage_query_s_max, found.body_bytes_max) == (30, 7, 64 * 1024 * 1024)
