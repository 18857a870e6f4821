"""What the kinds of entry of the catalog have in common: their base, the types of their fields, their checks."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final

import msgspec

from tollkeeper.domain.money import NANOS_MAX

ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}\Z")

Text = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=NANOS_MAX)]
REQUEST_NANOS_MAX: Final = 10**15
"""A million units for one request, as `events.COST_NANOS_MAX`: a record's arithmetic stays inside 64 bits."""
ChargeNanos = Annotated[int, msgspec.Meta(ge=0, le=REQUEST_NANOS_MAX)]


class Invalid(ValueError):
    """One field of an entry breaks a rule: *field* is its path, the message says what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all kinds."""

    kind: ClassVar[str]
    """The kind's name: its table in the file, its path segment over HTTP, its command."""
    id_field: ClassVar[str] = "id"

    @property
    def entry_id(self) -> str:
        return str(getattr(self, self.id_field))

    @classmethod
    def may_be_named(cls, name: str) -> bool:
        """Return whether an entry of this kind may have *name* as its id."""
        return ID_PATTERN.match(name) is not None

    def check(self) -> None:
        """Raise `Invalid` when the entry breaks a rule that it can know by itself."""
        check_id(self.entry_id, self.id_field)


def check_id(value: str, field: str) -> None:
    """Raise `Invalid` unless *value* is an id."""
    if not ID_PATTERN.match(value):
        raise Invalid(
            field,
            f"{value[:64]!r} is not an id: an id must have 1 to 128 letters, digits or . _ : @ + - "
            "and must begin with a letter or digit",
        )


def check_aware(value: datetime | None, field: str) -> None:
    """Raise `Invalid` unless *value* has an offset and is within the years 1 to 9999 in UTC."""
    if value is None:
        return
    if value.tzinfo is None:
        raise Invalid(field, f"{field} must have an offset, e.g. 2026-01-31T00:00:00Z")
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise Invalid(field, f"{field} must be within the years 1 to 9999 in UTC") from None
