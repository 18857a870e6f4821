"""
The caller of a usage query: the account whose turns its queries take, and whether it is still connected.

The server sets one around each call (`CALLER`); a call of the library has none, and no turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from tollkeeper.errors import Unavailable


class Caller:
    """
    One call. Any thread may use it.

    Attributes:
        account_id: Whose call it is; None: the operator's, or not known before it is under way.
        is_operator: Whether it is the operator's.
    """

    def __init__(self, account_id: str | None = None, *, is_operator: bool = False) -> None:
        self.account_id = account_id
        self.is_operator = is_operator
        self._lock = threading.Lock()
        self._gone = False
        self._stops: list[Callable[[], None]] = []

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """
        Have *stop* called if the caller goes away inside of the block. It may be called a moment after the block.

        Raises:
            Unavailable: The caller has gone already.
        """
        with self._lock:
            if self._gone:
                raise gone()
            self._stops.append(stop)
        try:
            yield
        finally:
            with self._lock:
                if stop in self._stops:
                    self._stops.remove(stop)

    def leave(self) -> None:
        """Note that the caller has left: stop the queries that are under way for it. Blocking."""
        with self._lock:
            self._gone = True
            stops, self._stops = self._stops, []
        for stop in stops:
            stop()


CALLER: Final[ContextVar[Caller | None]] = ContextVar("caller", default=None)


def gone() -> Unavailable:
    """Return the error that ends a call whose caller has left."""
    return Unavailable("The caller has gone, or the server stops: the query was stopped.")
