"""
Periods that open with the first use: `5h` is five hours from the first use on.

A period opens when something is used and none is open, and lasts as long as its name says. When it opened is a fact
that no clock can tell again, so the one who opens it stores it (`gate/openings.py`, and with it the ledger). These
are the rules; they are pure.

Rules, for the periods of one budget:
* None overlap another, and what is open stays as it is. Each use is in exactly one.
* A use now that is in none opens one from then on.
* A late use (an event that comes after its time) that is in none opens one from its own time on, which ends where the
  next one had begun by then, if that is sooner. So a late use can make a period shorter, but only one of the past.
* A use ahead of the clock opens one period after the other, the first from now on: else a period that a request opens
  before it would be cut short.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

from tollkeeper.domain.events import Record

Span: TypeAlias = tuple[int, int]
"""One period, `[start, end)`, in microseconds since the Unix epoch."""


def span_at(spans: Sequence[Span], at_us: int) -> Span | None:
    """Return the one of *spans* (ascending, none overlaps another) that holds *at_us*, or None."""
    place = bisect_right(spans, at_us, key=_start)
    if place and at_us < spans[place - 1][1]:
        return spans[place - 1]
    return None


def opens_period(record: Record, amount: int) -> bool:
    """
    Return whether a record that counts *amount* opens a period.

    What counts nothing opens none if it is a refused request, or no request at all (an adjustment). An adjustment that
    counts something opens one, since money that is given must be in a period to be there.
    """
    return bool(amount) or not (record.denied_reason or record.adjustment_nanos)


def spans_to_open(spans: Sequence[Span], at_us: int, now_us: int, width_us: int) -> list[Span]:
    """
    Return the periods that a use at *at_us* opens, ascending; none when it is in one of *spans*.

    Args:
        spans: All periods that end after `min(at_us, now_us)`, ascending; older ones may be among them.
        width_us: How long a period lasts.
    """
    opened: list[Span] = []
    cursor_us = min(at_us, now_us)
    while True:
        span = span_at(spans, cursor_us)
        if span is None:
            place = bisect_right(spans, cursor_us, key=_start)
            end_us = cursor_us + width_us
            if place < len(spans):
                end_us = min(end_us, spans[place][0])
            span = (cursor_us, end_us)
            opened.append(span)
        if at_us < span[1]:
            return opened
        cursor_us = span[1]


def following(spans: Sequence[Span], at_us: int, width_us: int) -> list[Span]:
    """
    Return the periods that begin after *at_us* and less than *width_us* after the one that holds it.

    There are none unless the clock went back: then what is used in the time between counts in these as well, so that
    no span of *width_us* gets more than one amount.
    """
    span = span_at(spans, at_us)
    start_us = at_us if span is None else span[0]
    place = bisect_right(spans, at_us, key=_start)
    return [later for later in spans[place:] if later[0] < start_us + width_us]


def _start(span: Span) -> int:
    return span[0]
