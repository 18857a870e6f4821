"""
The room of profiles: the vendors' dialects of the usage API, one module or package each.

A profile reads a vendor's request, asks its `ProfileContext`, and words the vendor's answer. It is not a client of
any vendor, no store, and no gate: it decides nothing about money or limits. docs/profiles.md shows how to add one.

A module or package of this room is a profile under its own name; another package adds profiles under the entry
point group `tollkeeper.profiles`. Invariants:

    names() imports no profile; a profile is imported when it is first loaded
    a profile imports `base`, `toolkit`, `domain` and `errors`, never another profile, another room or a driver
    its only clock is `Call.now`; its instances hold no state
    its catalog is the text of `<name>.toml` beside this module, read when it is asked for

    base       what a profile is: Call, Reply, Endpoint, Profile, ProfileContext; the check of settings
    toolkit    what several profiles share
    anylayer, cheapestinference, regpilot, regsn, shoal    the dialects

The room imports `domain` and `errors` only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any, Final

from tollkeeper.errors import BadParameter
from tollkeeper.profiles.base import NATIVE, Profile, WebhookProfile, missing_members, settings_of

ENTRY_POINTS: Final = "tollkeeper.profiles"
"""The group under which a package names its profiles: profile name → `module:object`."""
_NO_PROFILES: Final = frozenset({"base", "toolkit"})
"""Modules of this room that are not profiles."""
_RESERVED: Final = frozenset({NATIVE, "tk", "healthz", "readyz", "metrics"})
"""Names that Tollkeeper uses itself: paths at the root of a server, and the profile of its own keys."""


log = logging.getLogger("tollkeeper.profiles")


@cache
def names() -> tuple[str, ...]:
    """Return the names of all profiles, in alphabetical order."""
    return tuple(sorted({*_modules(), *_brought()}))


@cache
def load(name: str) -> Profile:
    """
    Return the profile of a name: `PROFILE` of its module.

    Raises:
        KeyError: There is no such profile.
        BadParameter: The object that another package names under this name is no profile.
    """
    if name in _modules():
        profile: Profile = import_module(f"{__name__}.{name}").PROFILE
        return profile
    return _loaded(_brought()[name])


def switches(text: str) -> dict[str, Mapping[str, Any]]:
    """
    Return the settings of each profile that *text*, the value of `profile_settings`, names: profile → all its settings.

    Other profiles are neither imported nor in the answer.

    Raises:
        BadParameter: *text* is no JSON object of objects, a profile or setting is unknown, or a setting cannot
            have its value.
    """
    try:
        given = json.loads(text)
    except ValueError as exc:
        raise _bad(f"is not JSON: {exc}") from None
    if not isinstance(given, dict) or not all(isinstance(values, dict) for values in given.values()):
        raise _bad('must be a JSON object of objects, e.g. {"shoal": {"invalid_key_status": 403}}')
    for name in given:
        if name not in names():
            raise _bad(f"{name!r} is no profile: it must be one of {', '.join(names())}")
    return {name: settings_of(load(name), values) for name, values in given.items()}


def webhook_headers(body: bytes, secret: str) -> dict[str, str]:
    """
    Return the headers that profiles add to a webhook message with this *body*, signed under the webhook's *secret*.

    They are those of every profile, as a webhook belongs to none. The first call imports all profiles.
    """
    return {
        name: value
        for profile in _webhook_profiles()
        for name, value in profile.webhook_headers(body, secret).items()
    }


@cache
def _webhook_profiles() -> tuple[WebhookProfile, ...]:
    found: list[Profile] = []
    for name in names():
        try:
            found.append(load(name))
        except BadParameter as exc:
            # A package that cannot be used stops the server that serves it, but not the messages of all accounts.
            log.warning("tollkeeper.profiles.unusable", extra={"reason": str(exc)})
    return tuple(profile for profile in found if isinstance(profile, WebhookProfile))


@cache
def _modules() -> frozenset[str]:
    return frozenset(module.name for module in iter_modules(__path__)) - _NO_PROFILES


@cache
def _brought() -> dict[str, EntryPoint]:
    """Return the entry points of other packages; one with the name of a module here is left out."""
    return {found.name: found for found in entry_points(group=ENTRY_POINTS) if found.name not in _modules()}


def _loaded(point: EntryPoint) -> Profile:
    where = f"profile {point.name!r}, which {point.value} brings,"
    if point.name in _RESERVED or not point.name.isidentifier() or not point.name.islower():
        raise _unusable(f"{where} cannot have that name: a word in lower case that is not reserved")
    try:
        profile = point.load()
    except Exception as exc:
        # A foreign module may raise anything when it is imported; the operator must see the error at start.
        raise _unusable(f"{where} cannot be imported: {type(exc).__name__}: {exc}") from exc
    missing = missing_members(profile)
    if missing:
        raise _unusable(f"{where} is none: it has no {', '.join(missing)}")
    if profile.name != point.name:
        raise _unusable(f"{where} calls itself {profile.name!r}: name both alike")
    return profile  # type: ignore[no-any-return]


def _unusable(message: str) -> BadParameter:
    return BadParameter(message, field="profiles")


def _bad(message: str) -> BadParameter:
    return BadParameter(f"profile_settings: {message}", field="profile_settings")
