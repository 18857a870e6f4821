"""The engine's threads give way to the gate's: theirs alone, of this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.clickhouse.engine_threads import NAMES, NICE, EngineThreads

TASKS = Path("/proc/self/task")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")


def nice_by_thread() -> dict[int, tuple[str, int]]:
    found = {}
    for task in TASKS.iterdir():
        try:
            name = (task / "comm").read_text().rstrip("\n")
            found[int(task.name)] = (name, os.getpriority(os.PRIO_PROCESS, int(task.name)))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_the_engines_threads_are_lowered_and_no_others(usage_store: ClickHouseUsageStore) -> None:
    assert usage_store.ready()
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    EngineThreads().give_way()
    engine = {task: of for task, of in nice_by_thread().items() if of[0].startswith(NAMES)}
    assert len(engine) > 5
    assert min(priority for _, priority in engine.values()) >= NICE
    python = [thread.native_id for thread in threading.enumerate() if thread.native_id is not None]
    assert {os.getpriority(os.PRIO_PROCESS, task) for task in python} == {usual}


def test_threads_are_looked_for_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = EngineThreads()
    looks: list[Path] = []

    def look(path: Path) -> Iterator[Path]:
        looks.append(path)
        return iter(())

    monkeypatch.setattr(Path, "iterdir", look)
    for _ in range(3):
        threads.give_way()
    assert len(looks) == 1
