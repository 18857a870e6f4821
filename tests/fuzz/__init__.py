"""
Input that nobody would send: generated requests, mutated bodies, odd headers.

The examples of a run are the same every time. `FUZZ_FACTOR=20` makes twenty times as many.
"""

from __future__ import annotations

import os
from typing import Any, Final

from hypothesis import HealthCheck, settings

FACTOR: Final = int(os.environ.get("FUZZ_FACTOR", "1"))


def examples(count: int, **options: Any) -> settings:
    """Return the settings of a test of *count* examples, times `FACTOR`."""
    return settings(
        max_examples=count * FACTOR,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
