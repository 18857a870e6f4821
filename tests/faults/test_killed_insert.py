"""Killed in the middle of an insert: no customer's events are left lying about, and the repeat counts once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

from tests.contract.test_usage_store import record
from tollkeeper.record_columns import table_of, to_ipc

ROWS: Final = 200_000
ACCOUNT: Final = "acct-whose-events-these-are"

PRELUDE: Final = """
    import os, sys, threading
    from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
    from tollkeeper.record_columns import from_ipc

    store = ClickHouseUsageStore.open("chdb://" + sys.argv[1])
    rows = from_ipc(open(sys.argv[2], "rb").read())
"""
KILLED: Final = """
    print(*sorted(os.listdir(sys.argv[1])), flush=True)
    inserting = threading.Thread(target=lambda: store.append(rows, "one"), daemon=True)
    inserting.start()
    asked = "SELECT count() FROM system.processes WHERE startsWith(query, 'INSERT INTO events ')"
    while inserting.is_alive():
        if store._engine.rows(asked, {}) == [(1,)]:
            os.kill(os.getpid(), 9)
    sys.exit("no insert was seen")
"""
REPEATED: Final = """
    store.append(rows, "one")
    print(store.charged(sys.argv[3], from_us=0, to_us=2**52, project_id=None, key_ids=None)[0])
    print(*store.differences())
    store.close()
"""


def run(code: str, directory: Path, *args: object) -> Any:
    """Run *code* in a process of its own, whose temporary files go to *directory*."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(directory)},
    )


def test_a_killed_insert_leaves_no_events_behind(tmp_path: Path) -> None:
    """The engine reads rows from a file; in the system's directory for temporary ones it would stay for ever."""
    usage, temporary, batch = tmp_path / "usage", tmp_path / "temporary", tmp_path / "batch.arrow"
    temporary.mkdir()
    one = record(ACCOUNT)
    batch.write_bytes(to_ipc(table_of([one._replace(id=f"e{number:07}") for number in range(ROWS)])))
    killed = run(KILLED, temporary, usage, batch)
    assert killed.returncode == -9, killed.stderr
    assert list(temporary.iterdir()) == []
    # Nor anywhere else but in the engine's own parts.
    assert " ".join(sorted(os.listdir(usage))) == killed.stdout.strip()
    repeated = run(REPEATED, temporary, usage, batch, ACCOUNT)
    assert repeated.stdout.split() == [str(ROWS)], repeated.stderr
    assert list(temporary.iterdir()) == []
