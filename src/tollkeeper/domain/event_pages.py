"""
Lists of single events, newest first: what is asked, the places between pages, and the answer.

The order is by the time of the event, then account, then id, descending. A page begins below a place of that order, so
what is booked meanwhile moves no page: an event that existed when the first page was read is in exactly one page.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.domain.events import Record
from tollkeeper.errors import BadParameter

EVENTS_PER_PAGE: Final = 50
EVENTS_PER_PAGE_MAX: Final = 1_000
_DIGEST_BYTES: Final = 8
_CURSOR_CHARS_MAX: Final = 4_096
"""More than any place takes: an account and an id have some hundred bytes each."""


class EventPlace(NamedTuple):
    """A place in the order of events: of an event, or, with empty texts, below all events of *at_us* and later."""

    at_us: int
    account_id: str
    id: str


place_of = attrgetter("occurred_at_us", "account_id", "id")
"""Return the place of a record, as a plain tuple."""


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """
    Which events in `[from_us, to_us)`, newest first.

    Args:
        account_id: Whose events; None asks for all accounts (the operator only).
        filters: As of `usage.UsageQuery`: dimension → values of which one must match; `""` stands for "none".
        denied: Only requests that our gate refused (True), or only others (False); None: both.
        limit: The most events of one page, from 1 to `EVENTS_PER_PAGE_MAX`.
        cursor: `EventPage.next_cursor` of the page before; None for the newest events.
    """

    account_id: str | None
    from_us: int
    to_us: int
    filters: Mapping[str, tuple[str, ...]] = {}
    denied: bool | None = None
    limit: int = EVENTS_PER_PAGE
    cursor: str | None = None


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    One page of events.

    Attributes:
        events: As they stand now, newest first; voided ones are left out. JSON values, money as text of nanos.
        next_cursor: Of the next page; None at the end. A page may have fewer events than its limit, or none, and yet
            a next one: the search stops after some seconds and goes on there.
        as_of_us, complete, behind_s, detail_from_us, lacks_detail: As of `usage.UsageReport`, about this page.
    """

    events: list[dict[str, Any]]
    next_cursor: str | None
    as_of_us: int
    complete: bool
    behind_s: int = 0
    detail_from_us: int | None = None
    lacks_detail: bool = False


def cursor_of(place: EventPlace, query: EventQuery) -> str:
    """Return *place* as the opaque text that the next page of *query* is asked with."""
    payload = msgspec.msgpack.encode(tuple(place))
    return base64.urlsafe_b64encode(_digest(payload, query) + payload).decode().rstrip("=")


def place_at(query: EventQuery) -> EventPlace | None:
    """
    Return the place that the cursor of *query* names; None without one.

    Raises:
        BadParameter: It is no cursor, or that of a list of other accounts or with other filters.
    """
    text = query.cursor
    if text is None:
        return None
    try:
        if len(text) > _CURSOR_CHARS_MAX or not text.isascii():
            raise ValueError
        given = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.msgpack.decode(given[_DIGEST_BYTES:], type=EventPlace)
        # Its digest, and its form: another text may decode to the same bytes.
        if cursor_of(place, query) != text:
            raise ValueError
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise BadParameter(
            "cursor must be the next_cursor of the page before, asked with the same account and filters: "
            "leave it out to begin with the newest events",
            field="cursor",
        ) from None
    return place


def _digest(payload: bytes, query: EventQuery) -> bytes:
    """A checksum that ties a place to its list. It is no secret: whose events are read is decided without it."""
    listed = (query.account_id, sorted(query.filters.items()), query.denied)
    return blake2b(msgspec.msgpack.encode(listed) + payload, digest_size=_DIGEST_BYTES).digest()


def merged(
    stored: Iterable[Record], pending: Iterable[Record], reached: EventPlace | None, limit: int
) -> tuple[list[Record], EventPlace | None]:
    """
    Return the first *limit* records of both, newest first, and the place below which the next page begins.

    Args:
        stored: A page of the usage store.
        pending: Records that the store lacks.
        reached: How far the store has looked; None: to the end. What is pending below it is for a later page.
    """
    newer = [record for record in pending if reached is None or place_of(record) > reached]
    records = sorted([*stored, *newer], key=place_of, reverse=True)
    if len(records) > limit:
        records = records[:limit]
        return records, EventPlace(*place_of(records[-1]))
    return records, reached
