"""Lists of single events: what a usage store answers, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tollkeeper.domain.event_pages import EventQuery
from tollkeeper.domain.store_answers import EventRows

if TYPE_CHECKING:
    import pyarrow as pa


class EventLists(Protocol):
    """Part of `ports.UsageStore`; raises `Unavailable` as that does. Any thread may call."""

    def latest(self, query: EventQuery) -> EventRows:
        """
        Return the newest records of *query* that are in force: each event once, as it stands, voided ones left out.

        Takes a bounded time, however many records there are: it may return fewer than the limit, or none, with a
        place from which the next page goes on.

        Raises:
            BadParameter: The cursor is no cursor of this query, or a filter has no dimension's name.
        """

    def revisions(self, keys: pa.Table) -> pa.Table:
        """
        Return every version that some events have had: a table of `record_columns.SCHEMA`, in no order.

        Args:
            keys: Two string columns, `account_id` and `id`; some hundred rows at most.
        """
