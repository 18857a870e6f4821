"""
Guards event loops against blocking: a thread of a loop must not wait, since the loop serves all other callers.

What reads a store asks `check_may_wait` first. A loop tries with `NOT_WAITING` what mostly needs no store, such as
to admit a request of a known key; when it does need one, `WouldWait` sends it to a thread.
"""

from __future__ import annotations

import threading
from typing import Final


class WouldWait(Exception):
    """This needs a store, and the thread may not wait for one: call it again in another thread."""


class _NotWaiting(threading.local):
    """A context in which the thread that enters it reads no store."""

    on = False

    def __enter__(self) -> None:
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False


NOT_WAITING: Final = _NotWaiting()


def check_may_wait() -> None:
    """Raise `WouldWait` in a thread that is inside of `NOT_WAITING`; for adapters, before they begin anything."""
    if NOT_WAITING.on:
        raise WouldWait
