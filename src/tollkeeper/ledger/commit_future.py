"""How a caller, on a thread or an event loop, waits for the commit that holds its task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any, Final

from tollkeeper.errors import OUTCOME_UNKNOWN, Unavailable

WAIT_S: Final = 15.0
"""How long a caller waits. More than a statement, or a silent database, may take: those end first."""
SCOPES_WAIT_S: Final = 60.0
"""How long a change of scopes, or a comparison, waits: the commit thread reads for it."""


class CommitFuture:
    """
    The outcome of one caller's task in a group commit: a result or an error.

    Made for one event loop or for a thread, where waiting is fastest. A repeat of the same call may wait on it too,
    on any thread or loop.
    """

    __slots__ = ("_done", "_loop", "_waiting", "ended", "error", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Make a future for a coroutine of *loop* (`await future.committed()`), or for a thread (`wait`)."""
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []
        self._done: threading.Event | None = threading.Event() if loop is None else None
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None

    @classmethod
    def finished(cls) -> CommitFuture:
        """Return the future of a task that was committed before."""
        future = cls()
        finish([future])
        return future

    async def committed(self) -> Any:
        """As `wait`, for a coroutine."""
        if not self.ended:
            loop = self._loop
            if loop is not None and loop is asyncio.get_running_loop():
                # One future for each waiting caller: one that is cancelled must not stop the others. It is
                # resolved on this loop, so not before it is in the list.
                future = loop.create_future()
                self._waiting.append(future)
                timer = loop.call_later(WAIT_S, _let_go, future)
                try:
                    await future
                finally:
                    timer.cancel()
            else:
                await asyncio.to_thread(self.wait)
        return self._outcome()

    def wait(self, timeout_s: float = WAIT_S) -> Any:
        """
        Return the result once it is committed; raise the error if it failed.

        Raises:
            Unavailable: The commit failed, or its outcome is not known in time; it may take place yet.
        """
        if not self.ended:
            if self._done is None:
                self._done = threading.Event()
            # `finish` sets `ended` before it looks for the event, so one of the two sees the other.
            if not self.ended and not self._done.wait(timeout_s):
                raise _unknown()
        return self._outcome()

    def _outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result

    def _resolve(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


def finish(futures: Iterable[CommitFuture]) -> None:
    """Wake the callers that wait on *futures*, with one call per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[CommitFuture]] = {}
    for future in futures:
        future.ended = True
        done = future._done
        if done is not None:
            done.set()
        if future._loop is not None:
            by_loop.setdefault(future._loop, []).append(future)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve_all, mine)
        except RuntimeError:
            # The loop was closed, and with it every caller that waited there.
            continue


def _resolve_all(futures: list[CommitFuture]) -> None:
    for future in futures:
        future._resolve()


def _let_go(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_exception(_unknown())


def _unknown() -> Unavailable:
    return Unavailable(f"The ledger did not commit in time. The {OUTCOME_UNKNOWN}: retry with the same id.")
