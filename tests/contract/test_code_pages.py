"""What is given back of the engine's code comes again when it runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.adapters.clickhouse import code_pages
from tollkeeper.adapters.clickhouse.store import ClickHouseUsageStore


def test_libraries_run_on_after_their_code_was_given_back(usage_store: ClickHouseUsageStore) -> None:
    """Only code is unmapped, never data; and both libraries are found under their names."""
    mapped = {
        Path(line.split()[-1]).name
        for line in Path("/proc/self/maps").read_text().splitlines()
        if " r-xp " in line and "/" in line
    }
    for library in code_pages.LIBRARIES:
        assert any(name.startswith(library) for name in mapped)
    for _ in range(3):
        code_pages.give_back()
        assert usage_store.ready()
        assert pc.sum(pa.array([1, 2, 3])).as_py() == 6
