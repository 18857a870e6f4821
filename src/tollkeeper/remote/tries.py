"""
How often a call is tried, and how long.

Every call that is tried again has an id or only reads, so the server does it once however often it arrives.
"""

from __future__ import annotations

import random
import time
from typing import Final

from tollkeeper import greenlets
from tollkeeper.errors import Unavailable

TRIES_MAX: Final = 3
_PAUSE_S: Final = 0.05
"""Before the second try; doubled before each further one, times 0.5 to 1.5."""


class NoAnswer(Exception):
    """
    A call without an answer: the connection failed, was closed, or took too long.

    Args:
        sent: Whether the server may have got the call.
    """

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Tries:
    """
    The tries of one call, within *timeout_s* seconds together.

    Attributes:
        count: Tries that were begun.
        maybe_done: Whether the server may have done the call in a try before.
    """

    def __init__(self, timeout_s: float) -> None:
        self._until = time.monotonic() + timeout_s
        self.count = 0
        self.maybe_done = False

    def begin(self) -> float:
        """Begin a try; return how many seconds it may take: half of what is left, the last one all of it."""
        greenlets.check()
        self.count += 1
        left = max(self._until - time.monotonic(), 0.001)
        return left if self.count == TRIES_MAX else left / 2

    def pause_s(self) -> float | None:
        """Return the seconds to wait before the next try; None when there is none."""
        pause_s = _PAUSE_S * 2.0 ** (self.count - 1) * random.uniform(0.5, 1.5)
        if self.count >= TRIES_MAX or time.monotonic() + pause_s >= self._until:
            return None
        return pause_s


def away(shown: str, why: object) -> Unavailable:
    """Return the error of a server that gave no answer."""
    return Unavailable(f"The Tollkeeper server at {shown} cannot be reached: {why}.", detail=str(why))
