"""Ids of holds and meter events."""

from __future__ import annotations

import itertools
import os
import random
from typing import Final


class Ids:
    """Makes UUIDv7s: time-ordered, so that look-ups stay in one place of the index."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.ending: Final = "-" + os.urandom(6).hex()
        """How every id of this maker ends, and no other: 13 characters."""
        self._beginning = (-1, "")

    def new_id(self, now_us: int) -> str:
        """
        Return a fresh UUIDv7.

        A count tells apart up to 16,384 ids of one millisecond, 60 random bits those of two gates.
        """
        ms = now_us // 1000
        beginning_ms, beginning = self._beginning
        if ms != beginning_ms:
            digits = f"{ms:012x}{random.getrandbits(12):03x}"
            beginning = f"{digits[:8]}-{digits[8:12]}-7{digits[12:]}-"
            self._beginning = (ms, beginning)
        return f"{beginning}{0x8000 | next(self._count) & 0x3FFF:x}{self.ending}"
