"""docs/profile-settings.md tells the truth: each setting of each profile with its default, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tollkeeper.domain.alerts import DEFAULTS
from tollkeeper.errors import BadParameter
from tollkeeper.profiles import load, names, switches
from tollkeeper.profiles.base import setting_fault
from tollkeeper.testing import open_installation

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "profile-settings.md").read_text()


def documented(profile: str) -> dict[str, Any]:
    """Return the settings that the page has under a profile's heading, with their defaults."""
    section = PAGE.partition(f"\n## {profile}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.+) \|$", section, re.MULTILINE)
    assert all(said.endswith(".") for *_, said in rows)
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: json.loads(default) for name, default, _ in rows}


def test_every_profile_has_its_heading_and_no_other() -> None:
    assert sorted(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == list(names())


@pytest.mark.parametrize("profile", names())
def test_every_setting_is_documented_with_its_default(profile: str) -> None:
    assert documented(profile) == load(profile).settings


@pytest.mark.parametrize("profile", names())
def test_every_default_is_a_value_that_its_setting_may_have(profile: str) -> None:
    found = load(profile)
    assert [
        fault for name, value in found.settings.items() if (fault := setting_fault(found, name, value))
    ] == []
    assert set(found.setting_types) <= set(found.settings)


def test_the_thresholds_of_the_page_are_those_of_the_rules() -> None:
    (row,) = re.findall(r"^\| `alert_thresholds` .*$", PAGE, re.MULTILINE)
    assert dict(re.findall(r"`(\w+)` (\d+)", row)) == {k: str(v) for k, v in DEFAULTS._asdict().items()}


def test_the_error_of_the_page_is_the_one_at_start() -> None:
    (text, said) = re.findall(r"--profile-settings '(.*)'\n(.*)\n", PAGE)[0]
    with pytest.raises(BadParameter) as caught:
        switches(text)
    assert str(caught.value) == said


WRONG: Final[list[tuple[str, str]]] = [
    ("{", "is not JSON"),
    ("[]", "must be a JSON object of objects"),
    ('{"shoal": 1}', "must be a JSON object of objects"),
    ('{"nobody": {}}', "'nobody' is no profile: it must be one of anylayer,"),
    ('{"shoal": {"nothing": 1}}', "profile shoal has no setting 'nothing': it has invalid_key_status"),
    ('{"regpilot": {"cost_unit": "euros"}}', "'euros': it must be one of 'dollars', 'cents'"),
    ('{"regpilot": {"hit_rate_places": -1}}', "-1: it must be a whole number >= 0"),
    (
        '{"regpilot": {"hit_rate_places": 2.5}}',
        "2.5: it must be a whole number, without a fraction or exponent",
    ),
    ('{"regpilot": {"negative_remaining": 1}}', "1: it must be a boolean, not a whole number"),
    ('{"regpilot": {"refused_key_prefixes": "pk_"}}', "'pk_': it must be an array, not text"),
    ('{"shoal": {"time_zone": "Mars/Base"}}', "'Mars/Base' is not an IANA time zone"),
    ('{"shoal": {"time_zone": null}}', "None: it must be text, not null"),
    ('{"shoal": {"week_start": "Monday"}}', "'Monday': it must be one of 'monday', 'tuesday'"),
    ('{"shoal": {"limit_without_budget": true}}', "True: it must be a whole number, not a boolean"),
    ('{"regsn": {"reads_per_minute": 0}}', "0: it must be a whole number >= 1"),
    ('{"regsn": {"unavailable_status": 200}}', "200: it must be a whole number >= 400"),
    ('{"anylayer": {"alerts": ["latency", "noise"]}}', "it must be one of 'rate_limit', 'error_rate'"),
    ('{"anylayer": {"alert_thresholds": {"noise": 1}}}', "whole numbers under utilisation_percent,"),
    ('{"anylayer": {"alert_thresholds": {"idle_days": "1"}}}', "whole numbers under utilisation_percent,"),
    ('{"anylayer": {"burst_window": "soon"}}', "'soon' is not a duration"),
    ('{"cheapestinference": {"uncapped_duration": "5s"}}', "'5s' is not a period"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text for text, _ in WRONG])
def test_a_setting_that_cannot_be_is_an_error_at_open(tmp_path: Path, text: str, said: str) -> None:
    """At once, and before anything was opened: not at the first request that needs it."""
    with pytest.raises(BadParameter) as caught:
        open_installation(tmp_path / "data", profile_settings=text)
    assert said in str(caught.value)
    assert caught.value.field == "profile_settings"
    assert not (tmp_path / "data").exists()


def test_what_is_set_wins_and_the_rest_keeps_its_default() -> None:
    found = switches('{"shoal": {"invalid_key_status": 403}}')
    assert found == {"shoal": {**load("shoal").settings, "invalid_key_status": 403}}
    assert switches("{}") == {}
    assert msgspec.json.encode(found)
