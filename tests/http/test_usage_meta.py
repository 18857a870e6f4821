"""`GET /tk/v1/meta` tells exactly what the usage query takes from this caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper.api.usage_params import OF_OPERATOR
from tollkeeper.domain.usage import DIMENSIONS, GRANULARITIES, MEASURES, MEASURES_DEFAULT

UNITS = {"events", "tokens", "nanos", "credits", "ms", "bytes", "requests", "units", "time", "map"}


def names(told: list[dict[str, Any]]) -> list[str]:
    return [found["name"] for found in told]


@pytest.mark.parametrize("role", ["operator", "management", "consumption"])
def test_what_is_told_can_be_asked_and_nothing_else(
    api: Api, account: str, issue: Callable[..., tuple[str, str]], role: str
) -> None:
    key = OPERATOR_KEY if role == "operator" else issue(role=role)[1]
    told = api("GET", "/tk/v1/meta", key=key).json()
    hidden = set() if role == "operator" else OF_OPERATOR
    assert names(told["measures"]) == [*(name for name in MEASURES if name not in hidden), "quantity.<name>"]
    assert names(told["dimensions"]) == [*DIMENSIONS, "tag.<name>"]
    assert names(told["granularities"]) == list(GRANULARITIES)
    assert [found["name"] for found in told["measures"] if found["default"]] == list(MEASURES_DEFAULT)
    for found in (*told["measures"], *told["dimensions"], *told["granularities"]):
        assert found["meaning"]
        assert found.get("unit", "events") in UNITS
    measures = ",".join(names(told["measures"])).replace("<name>", "seconds")
    dimensions = [name.replace("<name>", "team") for name in names(told["dimensions"])]
    for granularity in names(told["granularities"]):
        asked = api(
            "GET",
            f"/tk/v1/usage?measures={measures}&granularity={granularity}&from=2026-01-01&to=2026-01-02",
            key=key,
        )
        assert asked.status_code == 200, asked.text
    for start in range(0, len(dimensions), told["limits"]["group_by"]):
        groups = ",".join(dimensions[start : start + told["limits"]["group_by"]])
        assert api("GET", f"/tk/v1/usage?group_by={groups}", key=key).status_code == 200
    too_many = ",".join(dimensions[: told["limits"]["group_by"] + 1])
    assert api("GET", f"/tk/v1/usage?group_by={too_many}", key=key).status_code == 400
    for name in hidden:
        assert api("GET", f"/tk/v1/usage?measures={name}", key=key).status_code == 400
    for path, limit in (("usage", "usage_rows"), ("events", "events")):
        most = told["limits"][limit]
        assert api("GET", f"/tk/v1/{path}?limit={most}", key=key).status_code == 200
        assert api("GET", f"/tk/v1/{path}?limit={most + 1}", key=key).status_code == 400


def test_it_takes_no_parameters(api: Api) -> None:
    assert api("GET", "/tk/v1/meta?x=1").status_code == 400
    assert api("HEAD", "/tk/v1/meta").content == b""
