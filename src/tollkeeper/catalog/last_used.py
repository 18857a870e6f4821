"""Gathers when each key was last used, and writes it to the catalog from time to time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from tollkeeper.errors import Unavailable
from tollkeeper.ports import CatalogStore

log = logging.getLogger("tollkeeper")


class LastUsed:
    """
    Any thread may call.

    Args:
        take_uncommitted: Returns the uses since the last call that no commit has noted: key id → instant.
    """

    def __init__(self, catalog: CatalogStore, take_uncommitted: Callable[[], Mapping[str, int]]) -> None:
        self._catalog = catalog
        self._take_uncommitted = take_uncommitted
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}

    def note(self, used: Mapping[str, int]) -> None:
        """Note uses (key id → instant) that the next `save` writes."""
        with self._lock:
            self._used.update(used)

    def save(self) -> None:
        """Write the noted times; times that the store does not take are kept for the next call."""
        # Also of requests that were never settled, so that no commit took them.
        self.note(self._take_uncommitted())
        with self._lock:
            used, self._used = self._used, {}
        if not used:
            return
        try:
            self._catalog.touch_keys(used)
        except Unavailable as exc:
            # Not worth failing for: the next round has later instants for the keys that are in use.
            log.warning("tollkeeper.last_used.unavailable", extra={"reason": str(exc), "keys": len(used)})
            with self._lock:
                self._used = {**used, **self._used}
