"""
Endings that the server did not get: kept in memory and sent again until it has them, or the process ends.

A hold that expires meanwhile is settled late: the server books it whole. Only these are lost, each with an error in the
log that has its body: those beyond `KEPT_MAX`, those that the server refuses, and those left when the process ends.
Those of a killed process are lost without a line; the server voids their holds when these expire.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from tollkeeper.errors import DetailExpired, HoldEnded, HoldUnknown, TollkeeperError
from tollkeeper.remote import messages
from tollkeeper.remote.connections import Answer
from tollkeeper.remote.messages import error_of, is_transient
from tollkeeper.remote.tries import NoAnswer

KEPT_MAX: Final = 10_000
"""Some 5 MB of bodies."""
CLOSE_S: Final = 5.0
_LATE_S: Final = 1.0
"""For an ending that comes after `close`, perhaps on an event loop that ends."""
_CALL_S: Final = 5.0
_ROUND_S: Final = 60.0
_PAUSE_S: Final = (0.1, 5.0)
"""Before the next round when the server is away: the first, and the longest; doubled in between."""
_REFUSALS_MAX: Final = 5
"""
A hold may be "being ended" by an earlier try of the same call, whose answer was lost; and a void may overtake its
authorize, which a slow server is still at. Both are sent again, over some six seconds.
"""
_REFUSED_PAUSE_S: Final = 0.2
"""After the first refusal; doubled after each further one."""
_CLOSING_PAUSE_S: Final = 0.05

log = logging.getLogger("tollkeeper.remote")

Call = Callable[[str, str, bytes | None, float], Answer]
Inbox = SimpleQueue[tuple[str, str | None] | None]


class _Kept(NamedTuple):
    """An ending: its body, how often the server refused it, and when to send it, on the monotonic clock."""

    body: bytes
    refusals: int = 0
    due: float = 0.0


class Undelivered:
    """
    The endings that are kept, and the thread that sends them.

    Args:
        call: Makes one try of a request: see `Connections.call`. Raises NoAnswer.

    Attributes:
        dropped: Takes the id and account of admissions that were dropped without an ending: they are voided.
        lost_count: Endings that were given up.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        """By path and hold id."""
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self.dropped: Inbox = SimpleQueue()
        self.lost_count = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, path: str, hold_id: str, body: bytes) -> bool:
        """
        Keep the body of a settle or void and send it soon; return False, with a line in the log, when it is lost.

        After `close` it is sent before this returns, or lost.
        """
        with self._lock:
            full = (path, hold_id) not in self._kept and len(self._kept) >= KEPT_MAX
            if not full:
                # In place of one that was to be booked later.
                self._kept[path, hold_id] = _Kept(body)
        if full:
            self._lose(path, hold_id, body, f"{KEPT_MAX} are kept already")
            return False
        if self._closing.is_set():
            lost_count = self.lost_count
            self.close(_LATE_S)
            return self.lost_count == lost_count
        self.start()
        self.dropped.put(None)  # Wakes the thread.
        return True

    def start(self) -> None:
        """Start the thread, which also voids dropped admissions, if it does not run."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="tollkeeper-undelivered", daemon=True)
                self._thread.start()

    def close(self, within_s: float = CLOSE_S) -> None:
        """Send what is kept; what cannot be sent in *within_s* seconds is lost, with a line each in the log."""
        until = time.monotonic() + within_s
        with self._lock:
            self._closing.set()
            thread, self._thread = self._thread, None
        if thread is not None:
            self.dropped.put(None)
            thread.join(within_s)
        self._take_dropped()
        while self._kept and self._deliver(until):
            time.sleep(min(_CLOSING_PAUSE_S, max(until - time.monotonic(), 0)))
        with self._lock:
            left, self._kept = self._kept, OrderedDict()
        for (path, hold_id), kept in left.items():
            if path == messages.VOID and kept.refusals:
                continue  # The server knew no such hold.
            self._lose(path, hold_id, kept.body, "the process ends while the server is away")

    def _run(self) -> None:
        pause_s = _PAUSE_S[0]
        while not self._closing.is_set():
            with suppress(Empty):
                self._note(self.dropped.get(timeout=pause_s if self._kept else None))
            if self._closing.is_set():
                return
            self._take_dropped()
            if self._deliver(time.monotonic() + _ROUND_S):
                pause_s = _PAUSE_S[0]
            else:
                pause_s = min(pause_s * 2, _PAUSE_S[1])
                self._wait(pause_s)

    def _wait(self, pause_s: float) -> None:
        """Let *pause_s* seconds pass; what is kept meanwhile does not end the pause, `close` does."""
        until = time.monotonic() + pause_s
        while not self._closing.is_set() and (left := until - time.monotonic()) > 0:
            try:
                self._note(self.dropped.get(timeout=left))
            except Empty:
                return

    def _note(self, dropped: tuple[str, str | None] | None) -> None:
        if dropped is not None:
            hold_id, account_id = dropped
            with self._lock:
                self._kept.setdefault(
                    (messages.VOID, hold_id), _Kept(messages.void_body(hold_id, account_id))
                )

    def _take_dropped(self) -> None:
        while True:
            try:
                self._note(self.dropped.get_nowait())
            except Empty:
                return

    def _deliver(self, until: float) -> bool:
        """
        Send what is kept and due, the oldest first; return whether the server answered all of it.

        Args:
            until: When to stop, on the monotonic clock.
        """
        for at, kept in list(self._kept.items()):
            path, hold_id = at
            now = time.monotonic()
            if now >= until:
                return False
            if kept.due > now and not self._closing.is_set():
                continue
            try:
                answer = self._call("POST", path, kept.body, min(until - now, _CALL_S))
            except NoAnswer:
                return False
            if answer.status == 200:
                log.info("tollkeeper.remote.delivered", extra={"hold_id": hold_id, "path": path})
            elif is_transient(answer) or answer.status in (401, 429):
                return False
            else:
                error = error_of(answer)
                if _may_be_taken_yet(path, error) and kept.refusals < _REFUSALS_MAX:
                    due = time.monotonic() + _REFUSED_PAUSE_S * 2**kept.refusals
                    with self._lock:
                        if self._kept.get(at) is kept:
                            self._kept[at] = _Kept(kept.body, kept.refusals + 1, due)
                    continue
                # The server had an earlier try, so long ago that its event has expired.
                had_before = isinstance(error, DetailExpired)
                # A void of a hold that is gone, or never was, has nothing to do.
                is_gone = path == messages.VOID and isinstance(error, HoldEnded | HoldUnknown)
                if not had_before and not is_gone:
                    self._lose(path, hold_id, kept.body, error)
            with self._lock:
                if self._kept.get(at) is kept:
                    del self._kept[at]
        return True

    def _lose(self, path: str, hold_id: str, body: bytes, why: TollkeeperError | str) -> None:
        self.lost_count += 1
        # The body has no key in it: what it says can be booked by hand.
        fields = {"hold_id": hold_id, "path": path, "body": body.decode(), "reason": str(why)}
        log.error("tollkeeper.remote.lost", extra=fields)


def _may_be_taken_yet(path: str, error: TollkeeperError) -> bool:
    return isinstance(error, HoldEnded) or (path == messages.VOID and isinstance(error, HoldUnknown))
