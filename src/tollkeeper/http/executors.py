"""
The threads of the server, by what runs in them, so that no kind of call waits behind another kind.

Everything that may wait for a store runs in one of these. A call that needs no store, such as to admit a request of
a known key, stays on the event loop (`attempt`).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, Literal, ParamSpec, TypeVar

from tollkeeper.blocking import NOT_WAITING, WouldWait
from tollkeeper.callers import CALLER, Caller
from tollkeeper.http.asgi_types import Receive

Pool = Literal["hot", "management", "events", "usage", "profiles", "maintenance", "stopping"]

THREADS: Final[dict[Pool, int]] = {
    # Authorize with an id, void, endings of holds that ended before, and every look-up of a credential.
    "hot": 16,
    "management": 8,
    # Single events, which the usage store finds by their ids.
    "events": 8,
    # More than the store answers at once: those that wait there for their turn, for some seconds, keep a thread.
    "usage": 32,
    "profiles": 32,
    "maintenance": 2,
    # Ends the queries of callers that went away.
    "stopping": 2,
}
PROBE_S_MAX: Final = 2.0
"""How long a probe waits for one store."""

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A fixed number of threads with a name."""

    def __init__(self, name: str, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=f"tollkeeper-{name}")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *call* returns in one of the threads, which has the caller's context variables."""
        context = contextvars.copy_context()
        bound = partial(context.run, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, bound)

    async def attempt(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Return what *call* returns: called here if it needs no store, else in one of the threads.

        It must change nothing before it reads a store for the first time, since it is then called twice.
        """
        try:
            with NOT_WAITING:
                return call(*args, **kwargs)
        except WouldWait:
            pass  # Not here: its error would be reported as one of this call.
        return await self.run(call, *args, **kwargs)

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Begin *call* in one of the threads."""
        return self._executor.submit(call)

    def close(self) -> None:
        """Let the threads finish their calls; begin none of the waiting ones."""
        self._executor.shutdown(cancel_futures=True)


class Probe:
    """One probe of a store, in a thread of its own. It never runs twice at once."""

    def __init__(self, name: str, ask: Callable[[], str | None], too_late: str) -> None:
        """
        Make the probe.

        Args:
            ask: Returns what is wrong, or None. Blocking.
            too_late: What is wrong when *ask* does not return in `PROBE_S_MAX`.
        """
        self._threads = Threads(name, 1)
        self._ask = ask
        self._too_late = too_late
        self._pending: Future[str | None] | None = None

    async def answer(self) -> str | None:
        """Return what is wrong, or None. Only the event loop of the server may call."""
        pending = self._pending
        if pending is None or pending.done():
            pending = self._pending = self._threads.submit(self._ask)
        waiting = asyncio.wrap_future(pending)
        done, _ = await asyncio.wait({waiting}, timeout=PROBE_S_MAX)
        return waiting.result() if done else self._too_late

    def close(self) -> None:
        """Wait until nothing is asked any more."""
        self._threads.close()


class Executors:
    """All threads of one server."""

    def __init__(self) -> None:
        self._threads = {pool: Threads(pool, count) for pool, count in THREADS.items()}
        self.hot = self._threads["hot"]
        self._callers: set[Caller] = set()
        self._stopped = False

    def of(self, pool: Pool) -> Threads:
        """Return the threads of a kind of call."""
        return self._threads[pool]

    async def run_for(
        self,
        pool: Pool,
        caller: Caller,
        receive: Receive,
        call: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """
        Return what *call* returns in a thread of *pool*; stop its queries if the caller hangs up meanwhile.

        Args:
            receive: Of the request, whose body was read or is of no interest.
        """
        self._callers.add(caller)
        if self._stopped:
            caller.leave()
        token = CALLER.set(caller)
        work = asyncio.ensure_future(self.of(pool).run(call, *args, **kwargs))
        CALLER.reset(token)
        hanging_up = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({work, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and hanging_up.exception() is None:
                await self.of("stopping").run(caller.leave)
            return await work
        except asyncio.CancelledError:
            # The server took the task away, which is another way to hear that the caller hung up.
            self.of("stopping").submit(caller.leave)
            raise
        finally:
            hanging_up.cancel()
            self._callers.discard(caller)

    def stop_queries(self) -> None:
        """Stop what is asked of the usage store: the server stops, and who asks may ask again. Blocking."""
        self._stopped = True
        for caller in tuple(self._callers):
            caller.leave()

    def close(self) -> None:
        """Let all threads finish their calls, except usage queries, which are stopped."""
        self.stop_queries()
        for threads in self._threads.values():
            threads.close()


async def _hung_up(receive: Receive) -> None:
    """Return when the caller has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
