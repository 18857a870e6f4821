"""
What a dialect is, for people: its endpoints, credentials, settings, and the curl of each call.

All of it comes from what the profile declares (`Profile.endpoints`, `settings`, `setting_types`); nothing is written
down twice.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tollkeeper.profiles.base import Endpoint, Profile, allowed_values

PLACEHOLDERS: Final[Mapping[str, str]] = {"secret": "KEY", "project": "PROJECT"}
"""What stands in an example call for what only the reader knows; another name stands as itself, in capitals."""
_PLACE: Final = re.compile(r"\{([A-Za-z_]+)\}")


class EndpointGuide(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint, and an example call."""

    method: str
    path: str
    credential: str
    """Whose credential it takes: `key`, `management key or session`, …, `none`."""
    header: str
    """Where the credential goes; `""` for none."""
    curl: str


class SettingGuide(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of `profile_settings`."""

    name: str
    default: Any
    allowed: str


class ProfileGuide(msgspec.Struct, frozen=True, kw_only=True):
    """One dialect. Paths are the vendor's: at the root with `root_profile`, below `/<name>` with `profiles`."""

    name: str
    key_prefix: str
    endpoints: list[EndpointGuide]
    settings: list[SettingGuide]


def guide_of(profile: Profile, base_url: str) -> ProfileGuide:
    """Return the guide to *profile*, whose example calls go to *base_url*."""
    return ProfileGuide(
        name=profile.name,
        key_prefix=profile.key_prefix,
        endpoints=[
            EndpointGuide(
                method=endpoint.method,
                path=endpoint.path,
                credential=endpoint.credential.kind,
                header=filled(endpoint.credential.header, {}),
                curl=curl_of(endpoint, base_url, {}),
            )
            for endpoint in profile.endpoints
        ],
        settings=[
            SettingGuide(name=name, default=default, allowed=allowed_values(profile, name))
            for name, default in profile.settings.items()
        ],
    )


def curl_of(endpoint: Endpoint, base_url: str, values: Mapping[str, str]) -> str:
    """
    Return the curl command of a call to *endpoint*, quoted for a shell.

    Args:
        values: What stands in the places of path, query, header and body: `secret`, `project`, `keyId`, …
    """
    words = ["curl", "-s"]
    if endpoint.method != "GET":
        words += ["-X", endpoint.method]
    if endpoint.credential.header:
        words += ["-H", filled(endpoint.credential.header, values)]
    words.append(url_of(endpoint, base_url, values))
    if endpoint.body:
        words += ["-H", "Content-Type: application/json", "-d", filled(endpoint.body, values)]
    return " ".join(word if word.startswith("-") else _quoted(word) for word in words)


def url_of(endpoint: Endpoint, base_url: str, values: Mapping[str, str]) -> str:
    """Return the address of an example call."""
    query = f"?{endpoint.query}" if endpoint.query else ""
    return base_url.rstrip("/") + filled(endpoint.path + query, values)


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return *template* with its `{name}` replaced by *values*, or by a word in capitals for the reader to replace."""
    return _PLACE.sub(
        lambda found: values.get(found[1]) or PLACEHOLDERS.get(found[1]) or found[1].upper(), template
    )


def _quoted(word: str) -> str:
    # Of one kind, whether a shell needs it or not: what is copied is then changed without surprise.
    return word if word in ("curl", "GET", "POST", "PUT", "PATCH", "DELETE") else _in_quotes(word)


def _in_quotes(word: str) -> str:
    return f"'{word}'" if "'" not in word else shlex.quote(word)
