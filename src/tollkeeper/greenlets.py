"""
Refuses processes whose threads were made greenlets in part: some locks would stop every greenlet, or none.

gevent replaces threads, locks and sockets of the standard library. That is safe when it comes first and is complete
(`gevent.monkey.patch_all()` before Tollkeeper is imported; `gunicorn -k gevent` does so). Imported first, Tollkeeper
keeps locks and queues of the system, and a greenlet that waits for one stops the process. eventlet removes calls that
Tollkeeper needs, such as `select.poll`, and is refused.
"""

from __future__ import annotations

import sys
from typing import Final

from tollkeeper.errors import GreenletsRefused

_WAY_OUT: Final = (
    "Or serve with threads (gunicorn: `-k gthread --threads 8`), or run `tollkeeper serve` and use "
    "`tollkeeper.remote` from processes with threads."
)
_NEEDED: Final = ("_thread", "threading", "queue", "select", "socket", "ssl")
"""Modules that gevent must have replaced together: waiting in one of them would stop all greenlets."""


def check() -> None:
    """Raise `GreenletsRefused` if this process cannot be gated. Cheap: doors call it for each request."""
    modules = sys.modules
    if "gevent.monkey" in modules or "eventlet.patcher" in modules:
        _check_patched()


def _check_patched() -> None:
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, ("thread", "socket", "select"))):
        raise GreenletsRefused(
            "Threads and sockets of this process were replaced by eventlet, with which Tollkeeper does not work. "
            f"Use gevent, patched before Tollkeeper is imported. {_WAY_OUT}"
        )
    patched = _patched_by_gevent()
    if patched != _patched_at_import:
        raise GreenletsRefused(
            "gevent has replaced threads and sockets after Tollkeeper was imported. Call "
            f"`gevent.monkey.patch_all()` in the first lines of the program, before all other imports. {_WAY_OUT}"
        )
    if patched and (left := [name for name in _NEEDED if name not in patched]):
        raise GreenletsRefused(
            f"gevent has replaced {', '.join(sorted(patched))} but not {', '.join(left)}. Call "
            f"`gevent.monkey.patch_all()` without arguments, before all other imports. {_WAY_OUT}"
        )


def _patched_by_gevent() -> frozenset[str]:
    """Return which of the modules that matter gevent has replaced."""
    monkey = sys.modules.get("gevent.monkey")
    return frozenset(name for name in _NEEDED if monkey is not None and monkey.is_module_patched(name))


_patched_at_import: Final = _patched_by_gevent()
