"""Which time zones callers may name."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, available_timezones

import pytest

from tollkeeper.domain.catalog import Account, Budget, Invalid, PlanBudget
from tollkeeper.domain.zones import zone_of
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import setting_fault

NO_ZONES = [
    "right/UTC",
    "right/Europe/Berlin",
    "posix/UTC",
    "localtime",
    "posixrules",
    "Mars/Base",
    "",
    "a" * 80,
]


@pytest.mark.parametrize("name", NO_ZONES)
def test_what_is_no_zone_of_the_database_is_refused_at_every_door(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        zone_of(name)
    for make in (
        lambda: Account(id="a", name="A", time_zone=name).check(),
        lambda: Budget(id="b", account="a", amount=1, period="day", time_zone=name).check(),
        lambda: PlanBudget(name="b", amount=1, period="day", time_zone=name).check("budgets[0]"),
    ):
        with pytest.raises(Invalid) as refused:
            make()
        assert refused.value.field.endswith("time_zone")


def test_no_profile_takes_what_is_no_zone() -> None:
    found = [load(name) for name in names() if "time_zone" in load(name).settings]
    assert found
    for profile in found:
        assert setting_fault(profile, "time_zone", "right/UTC") is not None
        assert setting_fault(profile, "time_zone", "Europe/Berlin") is None


def test_every_zone_of_the_database_is_taken() -> None:
    for name in available_timezones() - {"localtime"}:
        assert zone_of(name) == ZoneInfo(name)


def test_no_file_beside_the_database_is_taken() -> None:
    """A machine may have more files than the database has zones."""
    known = available_timezones()
    for root in map(Path, TZPATH):
        for path in root.rglob("*") if root.is_dir() else ():
            name = str(path.relative_to(root))
            if path.is_file() and name not in known:
                with pytest.raises(ValueError, match="IANA"):
                    zone_of(name)
