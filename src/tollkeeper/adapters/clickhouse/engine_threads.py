"""
The engine's own threads give way to the gate's.

The engine in this process runs queries and merges on threads of its own, at the priority of the process. On few cores
one customer's heavy query then keeps the thread of everybody's decisions waiting for a core, and with it whatever
waits for Python's lock. With a lower priority the engine takes what the gate leaves.

Linux has a priority per thread. Elsewhere nothing is changed, nor of an engine on a server.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

NICE: Final = 10
EVERY_S: Final = 5.0
"""The engine starts more threads as it needs them; they begin with the priority of the one that starts them."""
NAMES: Final = ("ThreadPool", "Query", "Merge", "Bg", "Move", "Fetch", "Common")
"""How the engine names its threads. One of its pool is `ThreadPool` whenever it has nothing to do. No thread of Python,
which has the name of its process, is among them."""
_TASKS: Final = Path("/proc/self/task")

log = logging.getLogger("tollkeeper.usage")


class EngineThreads:
    """Lowers the priority of the engine's threads, old and new ones. Any thread may call."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._next_at = 0.0

    def give_way(self) -> None:
        """Lower the priority of the threads that were started since the last call; at most every `EVERY_S`."""
        now = time.monotonic()
        if sys.platform != "linux" or now < self._next_at:
            return
        self._next_at = now + EVERY_S
        tasks = {entry.name for entry in _TASKS.iterdir()}
        for task in tasks - self._seen:
            if _name(task).startswith(NAMES):
                self._seen.add(task)
                _lower(task)
        # A number is given again to another thread.
        self._seen &= tasks


def _name(task: str) -> str:
    """Return the name of a thread, "" of one that has ended."""
    try:
        return (_TASKS / task / "comm").read_text().rstrip("\n")
    except OSError:
        return ""


def _lower(task: str) -> None:
    try:
        if os.getpriority(os.PRIO_PROCESS, int(task)) < NICE:
            os.setpriority(os.PRIO_PROCESS, int(task), NICE)
    except ProcessLookupError:
        pass  # It has ended.
    except OSError as exc:
        log.warning("tollkeeper.usage.thread_priority", extra={"reason": str(exc)})
