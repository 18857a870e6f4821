"""Tickets: how a caller, on a thread or an event loop, waits for the commit that holds its work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

from tollkeeper.errors import Unavailable


class Ticket:
    """One caller's place in a group commit: ends with a result or an error."""

    __slots__ = ("_done", "_future", "_loop", "error", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Make a ticket for a task of *loop* (`await ticket.committed()`), or for a thread (`wait`)."""
        self._loop = loop
        self._future: asyncio.Future[None] | None = None if loop is None else loop.create_future()
        self._done: threading.Event | None = threading.Event() if loop is None else None
        self.result: Any = None
        self.error: BaseException | None = None

    @classmethod
    def finished(cls) -> Ticket:
        """Return a ticket whose work was committed before."""
        ticket = cls()
        finish([ticket])
        return ticket

    async def committed(self) -> Any:
        """Return the result once it is committed; raise what made it fail."""
        if self._future is None:
            return await asyncio.to_thread(self.wait)
        # Shielded: a caller that is cancelled (its client went away) must not stop others from waiting.
        await asyncio.shield(self._future)
        if self.error is not None:
            raise self.error
        return self.result

    def wait(self, timeout_s: float = 60.0) -> Any:
        """Return the result once it is committed; raise what made it fail."""
        assert self._done is not None
        if not self._done.wait(timeout_s):
            raise Unavailable("The ledger did not commit in time. The outcome is unknown: retry with the same id.")
        if self.error is not None:
            raise self.error
        return self.result

    def _resolve(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


def finish(tickets: Iterable[Ticket]) -> None:
    """Wake the owners of *tickets*, with one call per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        if ticket._done is not None:
            ticket._done.set()
        elif ticket._loop is not None:
            by_loop.setdefault(ticket._loop, []).append(ticket)
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve_all, mine)


def _resolve_all(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket._resolve()
