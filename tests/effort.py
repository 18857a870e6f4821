"""How many cases a costly test takes: a few in every run, many in `make test-long`."""

from __future__ import annotations

import os
from typing import Final

LONG: Final = os.environ.get("LONG_TESTS", "") not in ("", "0")


def effort(few: int, many: int) -> int:
    """Return *few*, or *many* in `make test-long`."""
    return many if LONG else few
