"""
A fair queue: which caller gets a thread next, and how many bytes each may have under way.

A payer (an account, or the operator) never has a second piece of work started while another payer's first one
waits; so a batch waits for at most one batch of each thread, however many one account sends. It is not a rate
limit, and not durable: it bounds memory and waiting, nothing else. All calls come from one event loop, so there
is no lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tollkeeper.errors import TooMuchUnderWay, Unavailable

T = TypeVar("T")

OPERATOR = ""
"""The payer that stands for the operator's own calls."""


class FairQueue:
    """
    Runs work on *threads* threads, the payers in turn.

    Args:
        payer_bytes_max: Most bytes that one payer may have under way.
        bytes_max: Most bytes of all payers but the operator together, and most of the operator.
    """

    def __init__(self, threads: int, *, payer_bytes_max: int, bytes_max: int) -> None:
        self._threads = threads
        self._payer_bytes_max = payer_bytes_max
        self._bytes_max = bytes_max
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tollkeeper-ingest")
        self._waiting: dict[str, deque[_Waiting]] = {}
        """Payers with waiting work, the next one to be served first."""
        self._running: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._bytes_of_customers = 0

    def reserve(self, payer: str, size: int) -> None:
        """
        Count *size* bytes as under way for *payer*; `release` ends it.

        Raises:
            TooMuchUnderWay: The payer's share is used up.
            Unavailable: That of all customers together is.
        """
        total = self._bytes.get(payer, 0) + size
        most = self._bytes_max if payer == OPERATOR else self._payer_bytes_max
        # A share that is empty has room for one body of any permitted size.
        if total > most and total > size:
            raise TooMuchUnderWay(
                f"You have {total - size} bytes of batches under way, and {most} are the most: wait for their answers."
            )
        if payer != OPERATOR:
            if self._bytes_of_customers + size > self._bytes_max:
                raise Unavailable("Too many batches are under way. Try again.")
            self._bytes_of_customers += size
        self._bytes[payer] = total

    def release(self, payer: str, size: int) -> None:
        """End what `reserve` counted."""
        left = self._bytes.get(payer, 0) - size
        if left:
            self._bytes[payer] = left
        else:
            self._bytes.pop(payer, None)
        if payer != OPERATOR:
            self._bytes_of_customers -= size

    async def run(self, payer: str, work: Callable[[], T]) -> T:
        """Return what *work* does on one of the threads, when it is *payer*'s turn."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(work, loop.create_future())
        self._waiting.setdefault(payer, deque()).append(waiting)
        self._start(loop)
        result: T = await waiting.done
        return result

    def close(self) -> None:
        """Wait for the work that runs; what waits is not begun."""
        self._pool.shutdown()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting and sum(self._running.values()) < self._threads:
            # Of equals the first: a payer that was served goes to the end.
            payer = min(self._waiting, key=lambda name: self._running.get(name, 0))
            queue = self._waiting.pop(payer)
            waiting = queue.popleft()
            if queue:
                self._waiting[payer] = queue
            if waiting.done.cancelled():
                continue
            self._running[payer] = self._running.get(payer, 0) + 1
            running = loop.run_in_executor(self._pool, waiting.work)
            running.add_done_callback(lambda ended, p=payer, w=waiting: self._ended(loop, p, w, ended))  # type: ignore[misc]

    def _ended(
        self, loop: asyncio.AbstractEventLoop, payer: str, waiting: _Waiting, ended: asyncio.Future[Any]
    ) -> None:
        left = self._running[payer] - 1
        if left:
            self._running[payer] = left
        else:
            del self._running[payer]
        error = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        if not waiting.done.done():
            if error is None:
                waiting.done.set_result(ended.result())
            elif ended.cancelled():
                waiting.done.cancel()
            else:
                waiting.done.set_exception(error)
        self._start(loop)


class _Waiting:
    """One piece of work, and the future of its result."""

    __slots__ = ("done", "work")

    def __init__(self, work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        self.work, self.done = work, done
