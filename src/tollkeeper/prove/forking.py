"""Forks of a process that has an installation open: a child must refuse everything, and nothing is booked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Final

from tollkeeper.errors import Unavailable
from tollkeeper.prove.attempts import Attempt, check_attempts
from tollkeeper.prove.embedded_owner import ACCOUNT, KEY
from tollkeeper.prove.oracle import Finding
from tollkeeper.prove.plan import secret_of
from tollkeeper.prove.scene import Scene, key_declaration
from tollkeeper.prove.server import environment

UNITS: Final = 80
CALLS: Final = 120
FORKS: Final = 3
OWNER_S_MAX: Final = 600
MODULE: Final = "tollkeeper.prove.embedded_owner"


def check_forks(
    scene: Scene, directory: Path, variant: str, chance: Random, module: str = MODULE
) -> list[Finding]:
    """Fork in the midst of requests; with *variant* `owner killed` the process is killed on the way."""
    scene.declare(key_declaration(ACCOUNT, KEY, UNITS))
    scene.server.stop()
    killed_at = chance.randrange(10, CALLS) if variant == "owner killed" else None
    sent, children = _own(scene, directory, killed_at, module)
    scene.server.start()
    found = [Finding("other", f"a forked child: {said}") for said in children if said != "ok"]
    if killed_at is None and len(children) != FORKS:
        found.append(Finding("other", f"of {FORKS} forked children {len(children)} ended"))
    sent += scene.fill(UNITS, "fill", {"key": secret_of(KEY)})
    return found + check_attempts(sent, UNITS, scene.spent(ACCOUNT, scene.used(KEY)))


def _own(
    scene: Scene, directory: Path, killed_at: int | None, module: str
) -> tuple[list[Attempt], list[str]]:
    """Run the process that owns the data directory; return what it booked, and what its children said."""
    url = scene.server.ledger_url or "-"
    with (directory / "owner.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(scene.server.directory), url, str(CALLS), str(FORKS)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment({}),
            text=True,
            start_new_session=True,
        )
    too_late = threading.Timer(OWNER_S_MAX, _end, [process])
    too_late.start()
    attempts: dict[str, Attempt] = {}
    children: list[str] = []
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "child":
                children.append(rest)
                continue
            id_ = rest.partition(" ")[0]
            outcome = "booked" if word == "booked" else "refused" if word == "refused" else "perhaps"
            attempts[id_] = Attempt(id_, outcome)  # type: ignore[arg-type]
            if killed_at is not None and sum(a.outcome != "perhaps" for a in attempts.values()) >= killed_at:
                _end(process)
    too_late.cancel()
    code = process.wait()
    if code and killed_at is None:
        raise Unavailable(f"The process that forks ended with {code}: owner.log says why.")
    return list(attempts.values()), children


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process with its children, as a power cut would."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
