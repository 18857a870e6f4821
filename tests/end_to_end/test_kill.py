"""
`kill -9` at random points of everything at once: what was acknowledged is there once, the rest at most once.

Four rounds by default; `TORTURE_ROUNDS=500 pytest tests/end_to_end/test_kill.py -s` for a long run, and
`TORTURE_SEED` repeats the moments of a run (not the order in which its threads run).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

ROUNDS = int(os.environ.get("TORTURE_ROUNDS", "4"))
HANGS_AFTER_S = 120


def test_nothing_acknowledged_is_lost_and_nothing_counts_twice(tmp_path: Path) -> None:
    """Each round checks what the kills before it left, goes on, and is killed after some random line."""
    seed = int(os.environ.get("TORTURE_SEED", random.SystemRandom().randrange(2**32)))
    print(f"TORTURE_SEED={seed}")
    chance = random.Random(seed)
    journal = tmp_path / "journal"
    journal.touch()
    for number in range(ROUNDS):
        # Mostly at work; at times while it opens, or while it checks and retries.
        lines_max = chance.choice([chance.randrange(1, 5), *(chance.randrange(5, 500) for _ in range(4))])
        returncode, last = _run(tmp_path, "work", seed + number, lines_max)
        assert returncode == -signal.SIGKILL, f"TORTURE_SEED={seed}, round {number}: {last}"
    returncode, last = _run(tmp_path, "check", seed, None)
    assert returncode == 0, f"TORTURE_SEED={seed}, after {ROUNDS} rounds: {last}"
    told = [json.loads(line) for line in journal.read_text().splitlines()]
    assert any(line["kind"] == "ack" for line in told)


def _run(directory: Path, mode: str, seed: int, lines_max: int | None) -> tuple[int, str]:
    """
    Run the program, killed after *lines_max* lines; add what it printed to the journal.

    Returns:
        Its exit code (-9 when it was killed) and its last line.
    """
    command = [
        sys.executable,
        "-m",
        "tests.end_to_end.torture",
        str(directory / "data"),
        str(directory / "journal"),
    ]
    with (directory / "errors").open("ab") as errors:
        process = subprocess.Popen(
            [*command, str(seed), mode],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    alarm = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(HANGS_AFTER_S)
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == lines_max:
                process.kill()
        returncode = process.wait()
        hung = signal.alarm(0) == 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
    assert not hung, f"it hung after {lines[-3:]}: {(directory / 'errors').read_text()[-2000:]}"
    # The last line may be cut off by the kill.
    whole = [line for line in lines if line.endswith("\n")]
    with (directory / "journal").open("a") as journal:
        journal.writelines(whole)
    problem = lines[-1] if lines else (directory / "errors").read_text()[-2000:]
    return returncode, problem if returncode != 1 else problem + (directory / "errors").read_text()[-2000:]
