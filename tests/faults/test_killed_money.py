"""A process that is killed while it gives and takes money has done each call whole, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

TIMEOUT_S: Final = 120
SET_UP: Final = """
    import sys
    from tollkeeper import Tollkeeper
    from tollkeeper.domain.catalog import Grant

    toll = Tollkeeper.open(sys.argv[1])
    toll.apply('[[accounts]]\\nid = "a"\\nname = "A"\\n[[budgets]]\\nid = "b"\\naccount = "a"\\namount = "25.00"\\n')
"""
WRITER: Final = (
    SET_UP
    + """
    for n in range(100_000):
        toll.manage.put(Grant(id=f"g{n}", account="a", amount_nanos=1000))
        toll.adjust("a", "-0.000000300", id=f"a{n}", reason="r")
        print("adjusted", flush=True)
        toll.revoke_grant("a", f"g{n}")
        print("revoked", flush=True)
"""
)
CHECKER: Final = (
    SET_UP
    + """
    adjusted, revoked = int(sys.argv[2]), int(sys.argv[3])
    assert all(toll.adjust("a", "-0.000000300", id=f"a{n}", reason="r").repeated for n in range(adjusted))
    assert all(toll.revoke_grant("a", f"g{n}").action == "unchanged" for n in range(revoked))
    verdict = toll.verify()
    assert verdict.ok, verdict
    # What was under way, again: its repeat makes it whole.
    toll.manage.put(Grant(id=f"g{revoked}", account="a", amount_nanos=1000))
    toll.adjust("a", "-0.000000300", id=f"a{revoked}", reason="r")
    toll.revoke_grant("a", f"g{revoked}")
    book = toll.installation.ledger.book("a")[0]
    assert book.spent_nanos == book.overdraft_nanos == 300 * (revoked + 1), book
    verdict = toll.verify()
    assert verdict.ok, verdict
    toll.close()
    print("whole")
"""
)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("acknowledged", [1, 6, 15])
def test_a_kill_leaves_every_call_whole(tmp_path: Path, acknowledged: int) -> None:
    """Acknowledged is done; what was under way is done or not, and its repeat is safe."""
    data = str(tmp_path / "data")
    command = [sys.executable, "-c", textwrap.dedent(WRITER), data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline().strip() for _ in range(acknowledged)]
        os.kill(writer.pid, signal.SIGKILL)
        # What it had said before the signal came counts too.
        lines += writer.stdout.read().split()
    counts = [str(lines.count("adjusted")), str(lines.count("revoked"))]
    checked = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHECKER), data, *counts],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert checked.stdout == "whole\n", checked.stderr
