"""
Turns at the usage store: how many usage queries one account may have under way.

A query keeps a core busy, so a few of one account would keep those of all others waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, NamedTuple

from tollkeeper.callers import CALLER
from tollkeeper.errors import TooManyQueries


class Turns(NamedTuple):
    """How many queries may run at once, how many may wait, and for how long."""

    running: int
    waiting: int
    wait_s: float


OF_ACCOUNT: Final = Turns(2, 6, 2.0)
OF_OPERATOR: Final = Turns(3, 24, 5.0)
"""One less than the store answers at once, so that there is one for customers."""


class _Queue:
    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0


class QueryTurns:
    """Any thread may call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queues: dict[str | None, _Queue] = {}

    @contextmanager
    def taken(self, account_id: str | None) -> Iterator[None]:
        """
        Run one query of an account, or of the operator (None), when it is its turn.

        Raises:
            TooManyQueries: As many wait already, or it waited too long.
        """
        turns = OF_OPERATOR if account_id is None else OF_ACCOUNT
        with self._changed:
            queue = self._queues.setdefault(account_id, _Queue())
            if queue.running >= turns.running:
                self._wait(queue, turns)
            queue.running += 1
        try:
            yield
        finally:
            with self._changed:
                queue.running -= 1
                if not queue.running and not queue.waiting:
                    self._queues.pop(account_id, None)
                self._changed.notify_all()

    def of_caller(self, account_id: str | None) -> AbstractContextManager[None]:
        """
        Return the turn of the calling account (`callers.CALLER`); a call of the library takes none.

        Args:
            account_id: Whom the query is about; its turn is taken where the caller's account is not known.
        """
        caller = CALLER.get()
        if caller is None:
            return nullcontext()
        if caller.is_operator:
            return self.taken(None)
        return self.taken(caller.account_id or account_id)

    def _wait(self, queue: _Queue, turns: Turns) -> None:
        if queue.waiting >= turns.waiting:
            raise _too_many(turns)
        queue.waiting += 1
        try:
            if not self._changed.wait_for(lambda: queue.running < turns.running, turns.wait_s):
                raise _too_many(turns)
        finally:
            queue.waiting -= 1


def _too_many(turns: Turns) -> TooManyQueries:
    return TooManyQueries(
        f"{turns.running} usage queries of yours run already, and others wait: send the next when one has ended.",
        retry_after_s=1,
    )
