"""
The list of events as parameters: the query string of `GET /tk/v1/events`, and the command line's options.

    account=acme&from=2026-01-01&status=429&denied=true&limit=50

Its filters are those of the usage query (`usage_params`), so that a number and the events behind it are asked alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from tollkeeper.api.usage_params import EVERYTHING, FILTERS, UsageScope, gathered, select, whole_number
from tollkeeper.domain.event_pages import EVENTS_PER_PAGE, EVENTS_PER_PAGE_MAX, EventQuery
from tollkeeper.errors import BadParameter

PARAMETERS: Final = ("account", "from", "to", "time_zone", "limit", "cursor", "denied", *FILTERS)
"""Every parameter, beside `tag.<name>`."""


def parse_event_query(
    params: Iterable[tuple[str, str]],
    *,
    scope: UsageScope = EVERYTHING,
    now: datetime,
    with_pending: Sequence[str] = (),
) -> EventQuery:
    """
    Return the query that *params* state, within *scope*; arguments and errors as `usage_params.parse_usage_query`.

    Whether the cursor is one of this query is found out when it is asked.
    """
    given = gathered(params, PARAMETERS, with_pending)
    stated = {name: values[0] for name, values in given.items()}
    selection = select(given, scope, now)
    denied = stated.get("denied")
    if denied not in (None, "true", "false"):
        raise BadParameter(f"denied must be true or false, not {denied[:64]!r}", field="denied")
    return EventQuery(
        account_id=selection.account_id,
        from_us=selection.from_us,
        to_us=selection.to_us,
        filters=selection.filters,
        denied=None if denied is None else denied == "true",
        limit=whole_number(stated, "limit", EVENTS_PER_PAGE, 1, EVENTS_PER_PAGE_MAX),
        cursor=stated.get("cursor"),
    )
