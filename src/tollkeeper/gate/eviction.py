"""Eviction: idle keys and counters leave memory, a bounded number per step, and are read again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tollkeeper.gate.compiled_keys import CompiledKeys
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.request_plans import RequestPlans

_STEP: Final = 1_000
"""Keys or counters that one step looks at: it keeps the gate's lock for about 1 ms."""


def eviction(
    keys: CompiledKeys, counters: CounterRegistry, plans: RequestPlans, now_us: Callable[[], int]
) -> Iterator[None]:
    """Go round all keys and then all counters, for ever; each step ends when it gave back the lock."""
    while True:
        # Those in use are made again; of the others, nothing keeps the counters any more.
        plans.clear()
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
