"""
Guards event loops against blocking: a thread of a loop must not wait, since the loop serves all other callers.

Every read of a store calls `check_may_wait` first. A loop makes a call within `NOT_WAITING` that rarely needs a store,
such as the admission of a known key; when the call does need one, `WouldWait` moves it to a thread.
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
