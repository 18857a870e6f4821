"""
The events of a batch that are not taken: each with its place, its field, a code, and the reason as text.

Rejections beyond `REJECTIONS_SHOWN` are counted, never made.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from tollkeeper.domain.requirements import requirement
from tollkeeper.domain.usage_forms import form_hint, type_hint
from tollkeeper.errors import BodyTooLarge, Malformed
from tollkeeper.meter.fields import CACHE_VALUES

REJECTIONS_SHOWN: Final = 1_000
"""Most rejections that a batch lists; all are counted."""
EVENTS_MAX: Final = 1_000_000
"""Most events of one body. The smallest event has 65 bytes, so a body of 64 MiB with more holds few events."""
GIVEN_UP_AFTER: Final = 10_000
"""A body is refused if its first events, this many, are all bad."""
ECHO_CHARS_MAX: Final = 64
"""Most of the caller's input that a rejection repeats."""

_INVALID: Final = re.compile(r"(?P<what>.*) - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TYPE: Final = re.compile(r"Expected `[^`]*`, got `[^`]*`")
_BOUND: Final = re.compile(r"Expected `[^`]*` .*")


class Rejection(NamedTuple):
    """
    One event that was not taken.

    `index` is its position in the caller's batch, from 0: the line, blank lines not counted, or the place in
    the array. `field` is the path of the field at fault (`tokens.prompt`), `""` for the event as a whole.
    `code` is one of `malformed`, `missing_field`, `unknown_field`, `wrong_type`, `out_of_range`, `bad_value`,
    `bad_time`, `time_too_old`, `time_in_future`, `bad_usage`. `reason` says what is wrong and what to do.
    """

    index: int  # type: ignore[assignment]  # Hides `tuple.index`, which nobody needs here.
    field: str
    code: str
    reason: str


class Refused(Exception):
    """An event is of the right types but cannot be taken."""

    def __init__(self, field: str, code: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.code = field, code


class Rejected:
    """
    The rejections of one batch: the first ones with their reasons, all of them as a number.

    Args:
        gives_up: Whether a batch that begins with `GIVEN_UP_AFTER` bad events is given up.
    """

    def __init__(self, *, gives_up: bool) -> None:
        self.shown: list[Rejection] = []
        self._gives_up = gives_up
        self._leading_count = 0

    def add(self, index: int, error: Exception) -> None:
        """
        Take note that the event at *index* of the batch raised *error*. Indexes come in ascending order.

        Raises:
            Malformed: All events so far were bad, and they are `GIVEN_UP_AFTER`.
        """
        if len(self.shown) < REJECTIONS_SHOWN:
            self.shown.append(rejection_of(index, error))
        if index != self._leading_count:
            return
        self._leading_count += 1
        if self._gives_up and self._leading_count >= GIVEN_UP_AFTER:
            first = self.shown[0]
            raise Malformed(
                f"None of the first {GIVEN_UP_AFTER:,} events can be taken, so nothing of this call was. The first: "
                f"{first.reason}."
            )


def too_many() -> BodyTooLarge:
    """Return the refusal of a body with more than `EVENTS_MAX` events."""
    return BodyTooLarge(f"the body has more than {EVENTS_MAX:,} events: send fewer at once")


def path_of(message: str) -> str:
    """Return the field that msgspec's *message* about an event's types is about, `tags[...]` for one of the tags."""
    match = _INVALID.fullmatch(message)
    return "" if match is None else match["path"]


def rejection_of(index: int, error: Exception) -> Rejection:
    """Return *error*, raised for the event at *index*, as a rejection."""
    if isinstance(error, Refused):
        return Rejection(index, error.field, error.code, str(error))
    if isinstance(error, msgspec.ValidationError):
        return _invalid(index, str(error))
    if isinstance(error, UnicodeError):
        return Rejection(index, "", "malformed", "text is not valid Unicode; send UTF-8")
    if isinstance(error, RecursionError):
        return Rejection(index, "", "malformed", "JSON is nested too deeply; an event has two levels")
    return Rejection(index, "", "malformed", f"{error}; send one complete JSON object per event")


def _invalid(index: int, message: str) -> Rejection:
    """Return what msgspec's *message* about an event's types says, with path, code and words of ours."""
    match = _INVALID.fullmatch(message)
    what, path = (match["what"], match["path"].partition("[")[0]) if match else (message, "")
    name = path or "the event"
    if found := _MISSING.fullmatch(what):
        field = _join(path, found[1])
        return Rejection(index, field, "missing_field", f"{field} is required")
    if found := _UNKNOWN.fullmatch(what):
        field = _join(path, found[1][:ECHO_CHARS_MAX])
        reason = form_hint(field) or f"{field} is not a field of an event; remove it, or send it as a tag"
        return Rejection(index, field, "unknown_field", reason)
    if _BOUND.fullmatch(what):
        return Rejection(index, path, "out_of_range", f"{name} {requirement(what)}")
    if what == "Number out of range":
        return Rejection(index, path, "out_of_range", f"{name} is a number too large to represent")
    if what.startswith("Invalid enum value"):
        reason = f"{name} must be one of {', '.join(CACHE_VALUES)}"
        return Rejection(index, path, "bad_value", reason)
    if path == "quantities":
        reason = 'quantities must be an object of numbers, or of decimal texts such as {"seconds": "61.5"}'
        return Rejection(index, path, "wrong_type", reason)
    if path == "tags":
        return Rejection(index, path, "wrong_type", "tags must be an object whose values are text")
    if _TYPE.fullmatch(what):
        return Rejection(index, path, "wrong_type", type_hint(path) or f"{name} {requirement(what)}")
    return Rejection(index, path, "wrong_type", f"{name} is not of the type that an event has there")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
