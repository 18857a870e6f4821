"""An expiry whose process is killed, before any of its statements, is completed or taken back by the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.contract.test_usage_store import TO_US, record
from tests.effort import LONG
from tests.faults.test_expiry_cut_short import STATEMENTS
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.record_columns import table_of, to_ipc
from tollkeeper.testing import unique

KILLED: Final = """
    import os, sys
    from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
    from tollkeeper.record_columns import from_ipc

    store = ClickHouseUsageStore.open("chdb://" + sys.argv[1])
    store.append(from_ipc(open(sys.argv[2], "rb").read()), "one")
    client, left = store._engine.appender, int(sys.argv[3])
    command = client.command

    def killing(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        return command(*args, **kwargs)

    client.command = killing
    store.expire(store.expiring({sys.argv[4]: int(sys.argv[5])}))
    sys.exit("the expiry was not cut short")
"""


@pytest.mark.parametrize("at", range(STATEMENTS) if LONG else [4])
def test_a_killed_expiry_counts_each_record_once(tmp_path: Path, at: int) -> None:
    """kill -9 before its statement number *at*; the next start completes it or takes it back."""
    account = unique("acct")
    one = record(account, cost_nanos=5)
    batch = tmp_path / "batch.arrow"
    batch.write_bytes(to_ipc(table_of([one, record(account, cost_nanos=11)])))
    arguments = [str(tmp_path / "usage"), str(batch), str(at), account, str(TO_US)]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    assert killed.returncode == -9, killed.stderr
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path / 'usage'}")
    try:
        assert store.charged(account, from_us=0, to_us=2**62, project_id=None, key_ids=None)[:4] == (
            2,
            2,
            0,
            16,
        )
        assert store.differences(2) == []
        assert store.past("none").records == 2
        assert store.known_ids(table_of([one]).select(["account_id", "id"])).num_rows == 1
        store.expire(store.expiring({account: TO_US}))
        assert store.differences(2) == []
    finally:
        store.close()
