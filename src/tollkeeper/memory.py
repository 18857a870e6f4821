"""
The memory of a process: private, which it alone takes, and file-backed, which the kernel can take back.

File-backed pages are code and data of mapped files, libraries above all. They are shared with the page cache and read
again when they are needed, so their number says little about the size of a program; the private number does.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Resident memory in bytes. *private_bytes* are the anonymous pages, written copies of file pages among them."""

    private_bytes: int
    file_backed_bytes: int


def memory_of(process: int | str = "self") -> Memory | None:
    """Return the memory of a process, by id, from the kernel's `smaps_rollup`; None where there is no such file."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    kilobytes = {
        name: int(rest.split()[0])
        for name, separator, rest in (line.partition(":") for line in text.splitlines()[1:])
        if separator
    }
    private = kilobytes["Anonymous"]
    return Memory(private * 1024, (kilobytes["Rss"] - private) * 1024)
