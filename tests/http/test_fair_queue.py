"""One account's batches never keep another's waiting behind more than one of each thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from tollkeeper.errors import TooMuchUnderWay, Unavailable
from tollkeeper.http.fair_queue import OPERATOR, FairQueue


class Works:
    """Pieces of work that end when they are let, and the order in which they began."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.begun: list[str] = []
        self._may_end = threading.Semaphore(0)
        self._tasks: list[asyncio.Task[str]] = []

    def add(self, payer: str) -> asyncio.Task[str]:
        def work() -> str:
            self.begun.append(payer)
            assert self._may_end.acquire(timeout=60)
            return payer

        task = asyncio.ensure_future(self.queue.run(payer, work))
        self._tasks.append(task)
        return task

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not met():
                await asyncio.sleep(0)

    async def end_one(self) -> None:
        done = sum(task.done() for task in self._tasks)
        self._may_end.release()
        await self.until(lambda: sum(task.done() for task in self._tasks) > done)

    async def end_all(self) -> None:
        self._may_end.release(len(self._tasks) + 1)
        await asyncio.gather(*self._tasks, return_exceptions=True)


def with_queue(test: Callable[[FairQueue, Works], Awaitable[None]], threads: int = 2) -> None:
    async def run() -> None:
        queue = FairQueue(threads, payer_bytes_max=100, bytes_max=250)
        tasks = Works(queue)
        try:
            await test(queue, tasks)
        finally:
            await tasks.end_all()
            queue.close()

    asyncio.run(run())


def test_another_accounts_batch_comes_after_one() -> None:
    async def test(queue: FairQueue, tasks: Works) -> None:
        for _ in range(20):
            tasks.add("a")
        await tasks.until(lambda: len(tasks.begun) == 2)
        theirs = tasks.add("b")
        await tasks.end_one()
        await tasks.until(lambda: len(tasks.begun) == 3)
        assert tasks.begun == ["a", "a", "b"]
        assert not theirs.done()

    with_queue(test)


def test_payers_take_turns() -> None:
    async def test(queue: FairQueue, tasks: Works) -> None:
        tasks.add("first")
        await tasks.until(lambda: tasks.begun == ["first"])
        for payer in ("a", "a", "a", "b", "b", OPERATOR):
            tasks.add(payer)
        for _ in range(6):
            await tasks.end_one()
        await tasks.until(lambda: len(tasks.begun) == 7)
        assert tasks.begun == ["first", "a", "b", OPERATOR, "a", "b", "a"]

    with_queue(test, threads=1)


def test_who_is_alone_has_all_threads() -> None:
    async def test(queue: FairQueue, tasks: Works) -> None:
        tasks.add("a")
        tasks.add("a")
        await tasks.until(lambda: tasks.begun == ["a", "a"])

    with_queue(test)


def test_work_that_failed_or_whose_caller_went_gives_its_thread_back() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def test(queue: FairQueue, tasks: Works) -> None:
        running = tasks.add("a")
        await tasks.until(lambda: tasks.begun == ["a"])
        gone = tasks.add("b")
        await asyncio.sleep(0)
        gone.cancel()
        running.cancel()
        await tasks.end_all()
        with pytest.raises(ValueError, match="no"):
            await queue.run("c", fail)
        assert await queue.run("d", lambda: 5) == 5
        assert tasks.begun == ["a"]

    with_queue(test, threads=1)


def test_an_account_has_a_share_of_bytes() -> None:
    """What one has under way is refused to it, and to nobody else."""

    async def test(queue: FairQueue, tasks: Works) -> None:
        queue.reserve("a", 60)
        queue.reserve("a", 40)
        with pytest.raises(TooMuchUnderWay, match="100 bytes of batches"):
            queue.reserve("a", 1)
        queue.reserve("b", 100)
        queue.release("a", 60)
        queue.reserve("a", 60)
        with pytest.raises(Unavailable, match="Too many batches"):
            queue.reserve("c", 51)
        queue.reserve(OPERATOR, 250)
        with pytest.raises(TooMuchUnderWay):
            queue.reserve(OPERATOR, 1)
        for payer, size in (("a", 100), ("b", 100), (OPERATOR, 250)):
            queue.release(payer, size)
        queue.reserve("c", 100)

    with_queue(test)
