"""The list of events as parameters of `GET /tk/v1/events`, and its answer as a page."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

import msgspec

from tollkeeper.api.event_answer import EventList
from tollkeeper.domain.event_pages import EventPage, EventQuery
from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.remote.connections import Answer
from tollkeeper.remote.messages import EVENTS, decoded, error_of
from tollkeeper.remote.usage_query import filter_params

_ANSWER: Final = msgspec.json.Decoder(EventList)


def events_path(query: EventQuery) -> str:
    """Return the path and parameters that ask *query*: the reverse of `api.event_params`."""
    params = [("from", to_text(from_us(query.from_us))), ("to", to_text(from_us(query.to_us)))]
    if query.account_id is not None:
        params.append(("account", query.account_id))
    if query.denied is not None:
        params.append(("denied", "true" if query.denied else "false"))
    if query.cursor is not None:
        params.append(("cursor", query.cursor))
    params += [*filter_params(query.filters), ("limit", str(query.limit))]
    return f"{EVENTS}?{urlencode(params)}"


def page_of(answer: Answer) -> EventPage:
    """Return the page that the server answered. Raises its error."""
    if answer.status != 200:
        raise error_of(answer)
    said: EventList = decoded(_ANSWER, answer)
    return EventPage(
        events=said.events,
        next_cursor=said.next_cursor,
        as_of_us=parse_time_us(said.as_of),
        complete=said.complete,
        behind_s=said.behind_s,
        detail_from_us=None if said.detail_from is None else parse_time_us(said.detail_from),
        lacks_detail=said.lacks_detail,
    )
