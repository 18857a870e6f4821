"""Python's cyclic garbage collector, set for a server that lives long and answers many requests."""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (100_000, 50, 1_000)


def freeze_gc() -> None:
    """
    Have Python's cyclic garbage collector look at young objects only, most of the time. Call it once, when
    everything is imported and opened.

    With its defaults the collector walks all objects of a process several times a second under load, and holds
    every request meanwhile; it took up to half of the time. What a request makes is in no cycle, and what
    start-up made stays for good: it is set aside (`gc.freeze`), so cycles among it are never freed. That suits
    a server; `tollkeeper serve` does it by itself. In a process of yours it is yours to decide.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
