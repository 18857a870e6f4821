"""
Connections to PostgreSQL with time limits: for a statement, and for a server that sends nothing.

The server ends a statement that takes too long. A server that hangs (a frozen host, storage that
hangs) cannot, and keeps its connections up: so a connection on which nothing moves for `SILENCE_S_MAX` is given up
here, like one that was cut off. What it was at counts as not known: `SqlLedger.commit` finds out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any, Final

import psycopg

STATEMENT_S_MAX: Final = 5
IDLE_IN_TRANSACTION_S_MAX: Final = 60
"""No transaction of ours waits for anything but the server: one that does belongs to a process that hangs."""
SILENCE_S_MAX: Final = 8.0
"""More than a statement may take: while its server lives, that one ends first."""
_INTERVAL_S: Final = 0.1

OPTIONS: Final = (
    f"-c statement_timeout={STATEMENT_S_MAX * 1000} "
    f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S_MAX * 1000}"
)
"""The server's part, as the connection parameter `options`."""


class _Patience(threading.local):
    """A context in which the thread that enters it waits for a silent server: for what reads or moves all rows."""

    on = False

    def __enter__(self) -> None:
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False


PATIENCE: Final = _Patience()


class Connection(psycopg.Connection[Any]):
    """A connection that is closed when its server is silent for too long."""

    def wait(self, gen: Any, interval: float = _INTERVAL_S, timeout: float | None = None) -> Any:
        """Run a generator of the driver, which waits for the server."""
        return super().wait(gen if PATIENCE.on else self._watched(gen), interval, timeout)

    def _watched(self, gen: Any) -> Generator[Any, Any, Any]:
        heard_at_s = time.monotonic()
        try:
            wanted = next(gen)
        except StopIteration as end:
            return end.value
        while True:
            ready = yield wanted
            if ready:
                heard_at_s = time.monotonic()
            elif time.monotonic() - heard_at_s > SILENCE_S_MAX:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the server said nothing for {SILENCE_S_MAX:.0f} s")
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                return end.value
