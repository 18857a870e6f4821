"""
The memory that the code of large libraries takes.

Loading chDB runs initialisers all over its 370 MB of code, once, and 117 MB of it stay mapped into the process
for ever, most of them never to run again. Arrow is like it, in small.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LIBRARIES: Final = ("_chdb.", "libarrow")
"""How the names of their files begin."""
_MAPPING: Final = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<mode>\S+) \S+ \S+ \S+ +(?P<path>/.*)$"
)


def give_back() -> None:
    """
    Unmap what is mapped of the code of `LIBRARIES`; what runs again is mapped again, from the page cache.

    There it stays, for any process, until the kernel needs the memory. Does nothing where there is no Linux.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _code():
        madvise(start, end - start, mmap.MADV_DONTNEED)


def _code() -> Iterator[tuple[int, int]]:
    """Yield start and end of the mappings that hold code of `LIBRARIES` just as their files have it."""
    span: tuple[int, int] | None = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if match := _MAPPING.match(line):
            is_code = match["mode"] == "r-xp" and Path(match["path"]).name.startswith(LIBRARIES)
            span = (int(match["start"], 16), int(match["end"], 16)) if is_code else None
        elif span and line.startswith("Anonymous:") and int(line.split()[1]) == 0:
            # Pages that were written to would be lost.
            yield span
