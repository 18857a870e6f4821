"""
The exact way from bytes to columns: one event at a time, with msgspec. It decides which events can be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from tollkeeper.domain.events import FUTURE_S_MAX, TIME_MIN_US, Event, parse_time_us
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.meter.arrays import Int64s
from tollkeeper.meter.fields import Part, plain_table_of
from tollkeeper.meter.lines import Lines
from tollkeeper.meter.rejections import ECHO_CHARS_MAX, Refused, Rejected, path_of

EVENT_BYTES_MAX: Final = 256 * 1024
"""
Most bytes of one event. The largest that is in bounds has fewer than 100,000: 16 tags of 64 and 256 characters
and all other texts, each character escaped as a pair of surrogates (12 bytes).
"""

_T = TypeVar("_T")

_EVENT: Final = msgspec.json.Decoder(Event)
ANY: Final = msgspec.json.Decoder()

UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises on bytes; RecursionError on nesting that no event has."""


def decode_exactly(lines: Lines, now_us: int, rejected: Rejected, start: int = 0) -> Part:
    """Decode *lines* one at a time; *start* is the place of the first in the batch."""
    return decode_each(
        lines.pick(range(len(lines))), from_json, now_us, rejected, range(start, start + len(lines))
    )


def decode_each(
    items: Sequence[_T],
    decode: Callable[[_T], Event],
    now_us: int,
    rejected: Rejected,
    places: Sequence[int] | Int64s,
) -> Part:
    """Decode each of *items*, whose *places* in the batch ascend, with *decode*, which raises as `Rejected` knows."""
    events: list[Event] = []
    times: list[int] = []
    indexes: list[int] = []
    for index, item in enumerate(items):
        try:
            event = decode(item)
            times.append(_time_us(event, now_us))
        except (*UNREADABLE, Refused) as exc:
            rejected.add(int(places[index]), exc)
        else:
            events.append(event)
            indexes.append(index)
    return Part(plain_table_of(events, times), np.array(indexes, np.int64), len(items))


def from_json(line: bytes) -> Event:
    if len(line) > EVENT_BYTES_MAX:
        raise Refused("", "malformed", f"an event has at most {EVENT_BYTES_MAX:,} bytes")
    try:
        return _EVENT.decode(line)
    except msgspec.ValidationError as exc:
        if not _concerns_tags(exc):
            raise
        return _without_null_tags(ANY.decode(line), exc)


def from_object(given: Event | Mapping[str, Any]) -> Event:
    """Return *given* after the checks that JSON would have had; an `Event` made in Python had none."""
    try:
        plain = msgspec.to_builtins(given) if isinstance(given, msgspec.Struct) else given
        try:
            event = msgspec.convert(plain, Event)
        except msgspec.ValidationError as exc:
            if not _concerns_tags(exc):
                raise
            event = _without_null_tags(plain, exc)
        msgspec.json.encode(event)  # Fails on text that is not Unicode, which no column can hold.
    except (TypeError, OverflowError) as exc:
        raise Refused("", "wrong_type", "the event must be an Event or a dict of JSON values") from exc
    return event


def _concerns_tags(error: msgspec.ValidationError) -> bool:
    # Most errors concern something else: the first test is the cheap one.
    return "tags" in str(error) and path_of(str(error)).startswith("tags")


def _without_null_tags(plain: Any, error: msgspec.ValidationError) -> Event:
    """Return *plain* as an event, null tags taken for absent like any null; raises *error* if it has none."""
    tags = plain.get("tags")
    if not isinstance(tags, Mapping) or None not in tags.values():
        raise error
    kept = {name: value for name, value in tags.items() if value is not None}
    return msgspec.convert({**plain, "tags": kept}, Event)


def _time_us(event: Event, now_us: int) -> int:
    """Return when *event* occurred; raises `Refused` if it has no acceptable time, or neither account nor key."""
    if not event.account and not event.key_id:
        raise Refused("account", "missing_field", "account or key_id is required, to know who pays")
    try:
        at_us = parse_time_us(event.time)
    except ValueError as exc:
        reason = str(exc)
        if len(event.time) > ECHO_CHARS_MAX:
            reason = "time is not a date-time; give one such as 2026-01-31T09:30:00.125Z"
        raise Refused("time", "bad_time", reason) from None
    if at_us < TIME_MIN_US:
        reason = "time is before the year 2000; check that it was made from the right unit"
        raise Refused("time", "time_too_old", reason)
    if at_us > now_us + FUTURE_S_MAX * US_PER_S:
        reason = f"time is more than {FUTURE_S_MAX} s in the future; check the sender's clock and offset"
        raise Refused("time", "time_in_future", reason)
    return at_us
