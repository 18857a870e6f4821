"""What a client reads of a server: usage, and single events."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tollkeeper.domain.event_pages import EventPage, EventQuery
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.remote.connections import Answer
from tollkeeper.remote.event_query import events_path, page_of
from tollkeeper.remote.tries import Tries
from tollkeeper.remote.usage_query import report_of, usage_path


class Reads(ABC):
    """The reads of a client. Those without `_async` are for threads; all raise the server's errors."""

    _timeout_s: float

    @abstractmethod
    def _try(self, tries: Tries, method: str, path: str, body: bytes | None) -> Answer:
        """Return the answer to a call that may be repeated. Raises `Unavailable`."""

    @abstractmethod
    async def _try_async(self, tries: Tries, method: str, path: str, body: bytes | None) -> Answer:
        """`_try` for an event loop."""

    def usage(self, query: UsageQuery) -> UsageReport:
        """Answer a usage query: see `embedded.Tollkeeper.usage`."""
        return report_of(self._try(Tries(self._timeout_s), "GET", usage_path(query), None))

    async def usage_async(self, query: UsageQuery) -> UsageReport:
        """`usage` for an event loop."""
        return report_of(await self._try_async(Tries(self._timeout_s), "GET", usage_path(query), None))

    def events(self, query: EventQuery) -> EventPage:
        """Return a page of single events: see `embedded.Tollkeeper.events`."""
        return page_of(self._try(Tries(self._timeout_s), "GET", events_path(query), None))

    async def events_async(self, query: EventQuery) -> EventPage:
        """`events` for an event loop."""
        return page_of(await self._try_async(Tries(self._timeout_s), "GET", events_path(query), None))
