"""
Backups while traffic runs, and what is restored from them: the state of one instant between begin and end.

The callers' clocks decide. A restored installation has everything that was answered before the backup began, and
nothing that was sent after it had ended; whatever was answered before something in it was sent is in it too.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import msgspec

from tollkeeper.errors import Unavailable
from tollkeeper.prove.attempts import IDS_SHOWN, UNIT_NANOS, Attempt
from tollkeeper.prove.ledgers import PostgresqlLedger
from tollkeeper.prove.look import Counted, wait_for_holds
from tollkeeper.prove.oracle import Finding, FindingKind
from tollkeeper.prove.plan import secret_of
from tollkeeper.prove.scene import CALL_S_MAX, Scene, ask, key_declaration, spend
from tollkeeper.prove.server import OPERATOR_KEY, ServerProcess, environment

THREADS: Final = 4
CALLS_MAX: Final = 400
"""Of each thread: the traffic ends when the backup is there, or then."""
FIRST: Final = 60
"""Calls before the first backup."""
EVENTS: Final = 20
AMPLE: Final = 10**9
RESTORE_S_MAX: Final = 600
HOLD_S: Final = 10
"""What a backup has open ends so soon in what is restored; a budget shows it as used until then."""
KILLED: Final = "killed in the midst"
ONTO_SQLITE: Final = "PostgreSQL onto SQLite"
ONTO_POSTGRESQL: Final = "SQLite onto PostgreSQL"
NEVER: Final = math.inf
_ACCOUNT: Final = "backed"
_KEY: Final = "backed-1"


class Sent(NamedTuple):
    """
    One call, and the ids that it booked: none when it was refused. Times are of `time.monotonic`.

    Attributes:
        answered_s: When it was acknowledged; `NEVER` when it may have booked or not.
    """

    ids: tuple[str, ...]
    sent_s: float
    answered_s: float


def check_backups(
    scene: Scene, directory: Path, variant: str, chance: Random, ledger_url: str | None, number: int
) -> list[Finding]:
    """Back up under load, perhaps after a try that was killed; restore, and start what was restored."""
    scene.declare(key_declaration(_ACCOUNT, _KEY, AMPLE))
    body = {"target": "taken"}
    with _traffic(scene) as calls:
        _wait_for_calls(calls)
        if variant == KILLED:
            _kill_during(scene, body, chance)
        began_s = time.monotonic()
        answer = ask(scene.server.port, "POST", "/backup", body)
        ended_s = time.monotonic()
    if answer.status != 200:
        return [Finding("other", f"the backup was answered {answer.status}: {answer.body}")]
    target = Path(answer.body["path"])
    scene.server.stop()
    with _ledger_of(variant, ledger_url, number) as url:
        restored = ServerProcess(directory / "restored", directory / "restored.log", url)
        found = _restore(target, restored, url)
        if found:
            return found
        try:
            restored.start()
            there = Scene(restored)
            wait_for_holds(restored.url, OPERATOR_KEY)
            spent = there.spent(_ACCOUNT, there.used(_KEY), is_full=False)
            found += check_instant(calls, spent.events, began_s, ended_s)
            total = sum(cost for _, cost in spent.events.values())
            if spent.used != total:
                kind: FindingKind = "lost" if spent.used < total else "double-counted"
                found.append(
                    Finding(kind, f"restored: the counter has {spent.used} nanos, the events {total}")
                )
            found += [Finding("verify", difference) for difference in spent.differences]
            return found
        finally:
            restored.kill()


def check_instant(
    calls: Iterable[Sent], events: Mapping[str, Counted], began_s: float, ended_s: float
) -> list[Finding]:
    """Return what a backup of one instant between *began_s* and *ended_s* cannot have."""
    calls = list(calls)
    wrong: dict[tuple[FindingKind, str], list[str]] = {}
    known = {id_ for call in calls for id_ in call.ids}
    whole = [call for call in calls if call.ids and all(id_ in events for id_ in call.ids)]
    # The instant was after all of these were sent.
    not_before_s = max((call.sent_s for call in whole), default=began_s)
    for call in calls:
        for id_ in call.ids:
            count, cost = events.get(id_, (0, 0))
            if count == 0 and call.answered_s < began_s:
                wrong.setdefault(("lost", "were answered before the backup and are not in it"), []).append(
                    id_
                )
            elif count == 0 and call.answered_s < not_before_s:
                wrong.setdefault(("lost", "are missing, and later ones are there"), []).append(id_)
            elif count and call.sent_s > ended_s:
                wrong.setdefault(("other", "were sent after the backup and are in it"), []).append(id_)
            elif count > 1 or cost > UNIT_NANOS:
                wrong.setdefault(("double-counted", "count more than once"), []).append(id_)
            elif count and cost != UNIT_NANOS:
                wrong.setdefault(("lost", "cost too little"), []).append(id_)
        if 0 < sum(id_ in events for id_ in call.ids) < len(call.ids):
            wrong.setdefault(("lost", "are in it, and others of their call are not"), []).extend(call.ids)
    if strange := sorted(events.keys() - known):
        wrong["double-counted", "were never sent"] = strange
    return [
        Finding(kind, f"restored: {len(ids)} events {what}: {', '.join(ids[:IDS_SHOWN])}", tuple(ids))
        for (kind, what), ids in wrong.items()
    ]


@contextmanager
def _traffic(scene: Scene) -> Iterator[list[Sent]]:
    """Send requests and events from some threads meanwhile; yield the calls that are acknowledged so far."""
    calls: list[Sent] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def work(thread: int) -> None:
        try:
            for number in range(CALLS_MAX):
                if stop.is_set():
                    return
                began_s, id_ = time.monotonic(), f"b-{thread}-{number}"
                ids, is_sure = _post(scene, id_) if thread % 2 else _spend(scene, id_)
                calls.append(Sent(ids, began_s, time.monotonic() if is_sure else NEVER))
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield calls
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def _wait_for_calls(calls: list[Sent]) -> None:
    """Return after the first calls. Raises `Unavailable` when they do not come."""
    until = time.monotonic() + CALL_S_MAX
    while len(calls) < FIRST:
        if time.monotonic() > until:
            raise Unavailable(f"Of {FIRST} calls {len(calls)} are answered within {CALL_S_MAX} s.")
        time.sleep(0.02)


def _spend(scene: Scene, id_: str) -> tuple[tuple[str, ...], bool]:
    """Return the id that is booked, if any, and whether that is sure."""
    sent: Attempt = spend(scene.server.port, id_, {"key": secret_of(_KEY)}, HOLD_S)
    return () if sent.outcome == "refused" else (id_,), sent.outcome != "perhaps"


def _post(scene: Scene, id_: str) -> tuple[tuple[str, ...], bool]:
    ids = tuple(f"{id_}-{number}" for number in range(EVENTS))
    events = [
        {
            "id": one,
            "time": "2025-01-01T00:00:00Z",
            "key_id": _KEY,
            "cost_nanos": UNIT_NANOS,
            "tags": {"op": one},
        }
        for one in ids
    ]
    answer = ask(scene.server.port, "POST", "/events", events)
    if answer.status != 200 or answer.body["rejected"]:
        raise Unavailable(f"Events were answered {answer.status}: {answer.body}")
    return ids, True


def _kill_during(scene: Scene, body: dict[str, str], chance: Random) -> None:
    """Kill the server while it writes the backup; the next one goes to the same place."""
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, scene.server.port, "POST", "/backup", body)
        time.sleep(chance.uniform(0.01, 0.5))
        scene.crash()
        # Without an answer it is sent again, to the server that started.
        first.result()


def _restore(target: Path, restored: ServerProcess, url: str | None) -> list[Finding]:
    """Restore as an operator does; return why that failed, or what its verify found."""
    command = [sys.executable, "-m", "tollkeeper", "restore", str(target), "--data", str(restored.directory)]
    command += [] if url is None else ["--ledger-url", url]
    try:
        done = subprocess.run(
            [*command, "--json"],
            env=environment({}),
            capture_output=True,
            text=True,
            timeout=RESTORE_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"The restore does not end within {RESTORE_S_MAX} s.") from None
    if done.returncode == 0 and msgspec.json.decode(done.stdout):
        return []
    said = (done.stderr or done.stdout)[-500:].strip()
    return [Finding("other", f"the backup cannot be restored: {said}")]


@contextmanager
def _ledger_of(variant: str, ledger_url: str | None, number: int) -> Iterator[str | None]:
    """Yield the URL of the ledger to restore into: a new database, or None for SQLite."""
    if ledger_url is None or variant == ONTO_SQLITE:
        yield None
        return
    ledger = PostgresqlLedger(ledger_url, f"tollkeeper_prove_restored_{os.getpid()}_{number}")
    try:
        yield ledger.url
    finally:
        ledger.remove()
