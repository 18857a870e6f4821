"""Memory is reported in the two parts that differ in meaning: private and file-backed."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tollkeeper.memory import memory_of

BYTES = 64 << 20
SLACK_BYTES = 16 << 20
"""Other threads and the allocator move some."""


def test_written_memory_is_private_and_a_mapped_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(BYTES))
    before = memory_of()
    assert before is not None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        with_file = memory_of()
        taken = bytearray(os.urandom(mmap.PAGESIZE) * (BYTES // mmap.PAGESIZE))
        with_both = memory_of()
    assert with_file is not None
    assert with_both is not None
    assert abs(with_file.file_backed_bytes - before.file_backed_bytes - BYTES) < SLACK_BYTES
    assert abs(with_file.private_bytes - before.private_bytes) < SLACK_BYTES
    assert abs(with_both.private_bytes - with_file.private_bytes - len(taken)) < SLACK_BYTES


def test_no_such_process_has_no_memory() -> None:
    assert memory_of("none") is None
