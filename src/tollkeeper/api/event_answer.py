"""A page of events as the API and the command line show it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tollkeeper.domain.event_pages import EventPage, EventQuery
from tollkeeper.domain.instants import from_us, to_text

_OF_OPERATOR: Final = "provider_cost_nanos"
"""What the provider pays tells what it earns."""


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """
    Events as they stand now, newest first; voided ones are left out.

    Every event that was acknowledged before `as_of` is in its page; when `complete` is false, some are still on their
    way, the oldest for `behind_s` seconds, or `lacks_detail` is true.
    """

    events: list[dict[str, Any]]
    next_cursor: str | None
    """`cursor` of the next page; null at the end. A page may have fewer events than `limit`, or none, and a next."""
    from_: str = msgspec.field(name="from")
    to: str
    as_of: str
    complete: bool
    behind_s: int
    detail_from: str | None = None
    """From then on all single events are kept; null: all are kept."""
    lacks_detail: bool = False
    """The page reaches back before `detail_from`, and lacks the events that have expired."""


def event_list(query: EventQuery, page: EventPage, *, for_operator: bool) -> EventList:
    """
    Return the answer to *query*.

    Args:
        for_operator: Whether it shows what events cost the provider.
    """
    events = page.events
    if not for_operator:
        events = [{name: value for name, value in event.items() if name != _OF_OPERATOR} for event in events]
    return EventList(
        events=events,
        next_cursor=page.next_cursor,
        from_=to_text(from_us(query.from_us)),
        to=to_text(from_us(query.to_us)),
        as_of=to_text(from_us(page.as_of_us)),
        complete=page.complete,
        behind_s=page.behind_s,
        detail_from=None if page.detail_from_us is None else to_text(from_us(page.detail_from_us)),
        lacks_detail=page.lacks_detail,
    )
