"""
Time zones that callers may name: those of the IANA database that every part of the product knows.

Python reads a zone from whatever file of that name the machine has. Some of these files are no zones of the IANA
database (`localtime`), and some count leap seconds (`right/…`), so that the usage store does not have them.
"""

from __future__ import annotations

from typing import Final
from zoneinfo import ZoneInfo

_NAME_CHARS_MAX: Final = 64
_NO_ZONES: Final = frozenset({"localtime", "posixrules", "leapseconds", "tzdata.zi"})
_COPIES: Final = ("right/", "posix/")
"""The whole database again, with leap seconds and without."""


def zone_of(name: str) -> ZoneInfo:
    """
    Return the time zone *name*.

    Raises:
        ValueError: There is none of this name.
    """
    if len(name) > _NAME_CHARS_MAX or name in _NO_ZONES or name.startswith(_COPIES):
        raise ValueError(f"{name[:_NAME_CHARS_MAX]!r} is not an IANA time zone such as Europe/Berlin")
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"{name[:_NAME_CHARS_MAX]!r} is not an IANA time zone such as Europe/Berlin"
        ) from None
