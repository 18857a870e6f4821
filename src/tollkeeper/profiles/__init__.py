"""
The dialects that Tollkeeper speaks, one module each. docs/profiles.md shows how to add one.

A module of this package is a profile under its own name, and so is what another package brings under the
entry point group `tollkeeper.profiles`. Telling their names imports none of them.
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
_BASE: Final = "base"
_RESERVED: Final = frozenset({NATIVE, "tk", "healthz", "readyz", "metrics"})
"""Owned by Tollkeeper, at the root of a server or as the profile of its own keys."""


log = logging.getLogger("tollkeeper.profiles")


@cache
def names() -> tuple[str, ...]:
    """Return the names of all profiles, in alphabetical order."""
    return tuple(sorted({*_modules(), *_brought()}))


@cache
def load(name: str) -> Profile:
    """
    Return the profile of a name; its module has it as `PROFILE`.

    Raises:
        KeyError: There is no such profile.
        BadParameter: What another package brings under this name is no profile.
    """
    if name in _modules():
        profile: Profile = import_module(f"{__name__}.{name}").PROFILE
        return profile
    return _loaded(_brought()[name])


def switches(text: str) -> dict[str, Mapping[str, Any]]:
    """
    Return what the setting `profile_settings` says: profile → all its settings, with the values that it has.

    Only the profiles that *text* names are imported, and in the answer.

    Raises:
        BadParameter: *text* is no JSON object of objects, a profile or setting is unknown, or a value is
            not one that its setting may have.
    """
    try:
        given = json.loads(text)
    except ValueError as exc:
        raise _bad(f"is not JSON: {exc}") from None
    if not isinstance(given, dict) or not all(isinstance(values, dict) for values in given.values()):
        raise _bad('is a JSON object of objects, e.g. {"shoal": {"invalid_key_status": 403}}')
    for name in given:
        if name not in names():
            raise _bad(f"{name!r} is no profile: one of {', '.join(names())}")
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
    return frozenset(module.name for module in iter_modules(__path__)) - {_BASE}


@cache
def _brought() -> dict[str, EntryPoint]:
    """Return what other packages bring; of a name that is taken here, what is here."""
    return {found.name: found for found in entry_points(group=ENTRY_POINTS) if found.name not in _modules()}


def _loaded(point: EntryPoint) -> Profile:
    where = f"profile {point.name!r}, which {point.value} brings,"
    if point.name in _RESERVED or not point.name.isidentifier() or not point.name.islower():
        raise _unusable(f"{where} cannot have that name: a word in lower case that is not reserved")
    try:
        profile = point.load()
    except Exception as exc:
        # Whatever a foreign module does when it is imported, who starts the server must hear of it.
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
