"""The dialects that Tollkeeper speaks, one module each. docs/profiles.md shows how to add one."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from tollkeeper.profiles.base import Profile

NAMES: Final = ("anylayer", "cheapestinference", "regpilot", "regsn", "shoal")


def load(name: str) -> Profile:
    """
    Return the profile of a name; its module has it as `PROFILE`.

    Raises:
        KeyError: There is no such profile.
    """
    if name not in NAMES:
        raise KeyError(name)
    profile: Profile = import_module(f"tollkeeper.profiles.{name}").PROFILE
    return profile
