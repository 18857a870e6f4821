"""
Clients of the engine by kind of query, so that long ones keep none that is short waiting, and the bounds of reports.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, LifoQueue
from typing import Any, Final, NamedTuple

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from tollkeeper.blocking import check_may_wait
from tollkeeper.callers import CALLER
from tollkeeper.errors import QueryTooLarge, QueryTooSlow, Unavailable

_STOP_EVERY_S: Final = 0.05
_STOPS_MAX: Final = 40
"""How often a query is cancelled: one that has not begun yet ignores the first attempts."""
_TOO_MANY_ROWS: Final = 158
_TIMEOUT_EXCEEDED: Final = 159
_MEMORY_LIMIT_EXCEEDED: Final = 241
_OF_ONE_QUERY: Final = "Query memory limit"
_NARROW: Final = "Take a shorter range, a coarser granularity, fewer group_by dimensions, or filters."


class QueryLimits(NamedTuple):
    """The most that one report may take."""

    time_s: int = 30
    memory_bytes: int = 512 << 20
    groups: int = 200_000
    """Buckets times groups, counted before paging; of peaks, hours times groups."""

    def settings(self, tag: str) -> dict[str, Any]:
        """Return the settings of a query that is found under *tag* while it runs."""
        return {
            "log_comment": tag,
            "max_execution_time": self.time_s,
            "timeout_overflow_mode": "throw",
            "max_memory_usage": self.memory_bytes,
            "max_rows_to_group_by": self.groups,
            "group_by_overflow_mode": "throw",
        }


class Readers:
    """A bounded number of clients for one kind of query. Any thread may call."""

    def __init__(
        self, connect: Callable[[], Client], count: int, wait_s: float, *, check_open: Callable[[], None]
    ) -> None:
        self._check_open = check_open
        self._connect = connect
        self._count = count
        self._wait_s = wait_s
        self._idle: LifoQueue[Client] = LifoQueue()
        self._connected = 0
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[Client]:
        """
        Lend a client for one query.

        Raises:
            Unavailable: All were lent for as long as a query may wait, or the store is closed.
        """
        check_may_wait()
        self._check_open()
        client = self._take()
        try:
            yield client
        finally:
            self._idle.put(client)

    def _take(self) -> Client:
        try:
            return self._idle.get_nowait()
        except Empty:
            with self._lock:
                may_connect = self._connected < self._count
                self._connected += may_connect
        if may_connect:
            try:
                return self._connect()
            except BaseException:
                with self._lock:
                    self._connected -= 1
                raise
        try:
            return self._idle.get(timeout=self._wait_s)
        except Empty:
            raise Unavailable("The usage store is busy with other queries: try again shortly.") from None


@contextmanager
def report_of(limits: QueryLimits, stop: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """
    Give the settings of one report, which is stopped when its caller goes away.

    Args:
        stop: Ends the query that runs under a tag, if one does. Blocking; another thread calls it.

    Raises:
        QueryTooLarge: It has more groups, or takes more memory, than *limits* say.
        QueryTooSlow: It takes longer.
        Unavailable: The caller has gone.
    """
    tag = f"tollkeeper-{uuid.uuid4().hex}"
    ended = threading.Event()

    def stop_it() -> None:
        for _ in range(_STOPS_MAX):
            if ended.is_set():
                return
            stop(tag)
            ended.wait(_STOP_EVERY_S)

    caller = CALLER.get()
    try:
        if caller is None:
            yield limits.settings(tag)
        else:
            with caller.stopping(stop_it):
                yield limits.settings(tag)
    except ClickHouseError as exc:
        raise _said_better(exc, limits) or exc from exc
    finally:
        ended.set()


def _said_better(exc: ClickHouseError, limits: QueryLimits) -> Exception | None:
    code = getattr(exc, "code", None)
    if code == _TOO_MANY_ROWS:
        return QueryTooLarge(
            f"The query has more than {limits.groups:,} groups (buckets times groups). {_NARROW}"
        )
    if code == _TIMEOUT_EXCEEDED:
        return QueryTooSlow(f"The query took longer than {limits.time_s} s. {_NARROW}")
    if code == _MEMORY_LIMIT_EXCEEDED and _OF_ONE_QUERY in str(exc):
        return QueryTooLarge(f"The query takes more than {limits.memory_bytes:,} bytes of memory. {_NARROW}")
    return None
