"""The only door to the time of day: the shell reads a `Clock`, the domain is given `now`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the shell needs of time. `now_us` is the hot path's form of `now`."""

    def now(self) -> datetime:
        """Return the current instant, aware UTC."""

    def now_us(self) -> int:
        """Return the current instant in microseconds since the Unix epoch."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def now_us(self) -> int:
        return time.time_ns() // 1000
