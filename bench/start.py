"""From the start of the process to the first admitted request; memory when idle."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.fixture import directory, set_up
from bench.processes import running
from bench.table import Figure
from tollkeeper import Tollkeeper

CHILD = """
import sys
from tollkeeper import Denial, Tollkeeper
toll = Tollkeeper.open(sys.argv[1])
assert not isinstance(toll.admit(sys.argv[2], "POST", "/v1/chat"), Denial)
print("admitted", flush=True)
sys.stdin.readline()
toll.close()
"""


def run() -> list[Figure]:
    with directory() as path:
        with Tollkeeper.open(str(path)) as toll:
            secret = set_up(toll)[0]
        times = [_start([sys.executable, "-c", CHILD, str(path), secret]) for _ in range(5)]
        bare = [
            _start([sys.executable, "-c", "import litestar, sqlalchemy; print('admitted')"]) for _ in range(5)
        ]
    with directory() as path, running("serve", path) as server:
        time.sleep(3)
        private, file_backed = server.memory_mb()
    value = statistics.median(times)
    return [
        Figure("start", "to the first admitted request", value, "s", statistics.median(bare),
               "importing litestar + sqlalchemy", "≤ 1 s", value <= 1),
        Figure("memory", "idle, private", private, "MB", target="≤ 200 MB", reached=private <= 200),
        Figure("memory", "idle, file-backed", file_backed, "MB"),
    ]  # fmt: skip


def _start(command: list[str]) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    took = time.perf_counter() - started
    process.communicate("\n", timeout=60)
    if "admitted" not in line:
        raise RuntimeError(f"the child did not admit: {line!r}")
    return took
