"""Faults of what runs around the gate: real servers and processes have no findings, and spoilt ones are found out."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.effort import effort
from tests.engines import fresh_url
from tollkeeper.prove import backups
from tollkeeper.prove.drills import open_site
from tollkeeper.prove.faults import FAULTS, GOES_BACK, IN_TRAFFIC
from tollkeeper.prove.forking import check_forks
from tollkeeper.prove.scenarios import VARIANTS, Scenario, plan_scenario, run_scenario
from tollkeeper.prove.scene import Scene
from tollkeeper.prove.stacks import check_workers

TWO_ENGINES = (backups.ONTO_SQLITE, backups.ONTO_POSTGRESQL)
SCENARIOS = [Scenario(fault, variant) for fault, variants in VARIANTS.items() for variant in variants]


def test_every_fault_is_of_one_kind() -> None:
    assert {*IN_TRAFFIC, *GOES_BACK, *VARIANTS} == set(FAULTS)
    assert len(IN_TRAFFIC) + len(GOES_BACK) + len(VARIANTS) == len(FAULTS)


@pytest.mark.parametrize("fault", VARIANTS)
def test_each_variant_comes_in_turn(fault) -> None:
    count = len(VARIANTS[fault])
    drawn = [plan_scenario(3, number, fault, has_postgresql=True) for number in range(1, count + 1)]
    assert {scenario.variant for scenario in drawn} == set(VARIANTS[fault])
    assert drawn == [plan_scenario(3, number, fault, has_postgresql=True) for number in range(1, count + 1)]


def test_two_engines_need_postgresql() -> None:
    drawn = {plan_scenario(1, number, "backups", has_postgresql=False).variant for number in range(20)}
    assert drawn == set(VARIANTS["backups"]) - set(TWO_ENGINES)


@pytest.mark.parametrize("scenario", SCENARIOS[: effort(1, len(SCENARIOS))], ids=": ".join)
def test_nothing_is_found(tmp_path: Path, scenario: Scenario) -> None:
    url = fresh_url("postgresql", tmp_path) if scenario.variant in TWO_ENGINES else None
    assert run_scenario(scenario, 1, 1, tmp_path, url) == []


def test_a_worker_that_books_twice_is_found_out(tmp_path: Path) -> None:
    with open_site(tmp_path / "data", tmp_path, None, 1) as site:
        found = check_workers(
            Scene(site.server), tmp_path, "nobody", Random(1), app="tests.prove.doubling_app:app"
        )
    assert any(f.kind == "double-counted" and "count more than once" in f.what for f in found)


def test_a_child_that_books_is_found_out(tmp_path: Path) -> None:
    with open_site(tmp_path / "data", tmp_path, None, 1) as site:
        found = check_forks(
            Scene(site.server), tmp_path, "owner lives", Random(1), module="tests.prove.booking_owner"
        )
    assert [f.kind for f in found if "were never sent" in f.what] == ["double-counted"]
