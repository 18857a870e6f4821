"""Eviction: idle keys and counters leave memory, a bounded number per step, and are read again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tollkeeper.gate.compiled_keys import CompiledKeys
from tollkeeper.gate.registry import CounterRegistry

_STEP: Final = 1_000
"""Keys or counters that one step looks at: it keeps the gate's lock for about 1 ms."""


def eviction(keys: CompiledKeys, counters: CounterRegistry, now_us: Callable[[], int]) -> Iterator[None]:
    """Visit all keys and then all counters, again and again; each step ends after it released the lock."""
    while True:
        hashes = keys.hashes()
        for first in range(0, len(hashes), _STEP):
            keys.evict_idle(hashes[first : first + _STEP])
            yield
        # Keys first, as a counter stays while a key refers to it.
        places = counters.places()
        for first in range(0, len(places), _STEP):
            counters.evict_idle(places[first : first + _STEP], now_us())
            yield
        keys.evict_ended()
        if not hashes and not places:
            yield
