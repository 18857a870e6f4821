"""Faults of what runs around the gate: workers, streams, forks, callers without a key, backups."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from tollkeeper.prove import backups
from tollkeeper.prove.backups import check_backups
from tollkeeper.prove.drills import open_site
from tollkeeper.prove.faults import Fault
from tollkeeper.prove.forking import check_forks
from tollkeeper.prove.keyless import check_sessions
from tollkeeper.prove.oracle import Finding
from tollkeeper.prove.scene import Scene
from tollkeeper.prove.stacks import A_WORKER, NOBODY, THE_SERVER, check_streams, check_workers

VARIANTS: Final[dict[Fault, tuple[str, ...]]] = {
    "workers": (NOBODY, A_WORKER, THE_SERVER),
    "streams": (NOBODY, A_WORKER),
    "forks": ("owner lives", "owner killed"),
    "sessions": ("nobody killed", "killed"),
    "backups": ("same ledger", backups.KILLED, backups.ONTO_SQLITE, backups.ONTO_POSTGRESQL),
}
"""What a seed draws of each fault."""
_TWO_ENGINES: Final = (backups.ONTO_SQLITE, backups.ONTO_POSTGRESQL)


class Scenario(NamedTuple):
    """One fault, and how it is made."""

    fault: Fault
    variant: str


def plan_scenario(seed: int, number: int, fault: Fault, *, has_postgresql: bool) -> Scenario:
    """Return what *fault* does in round *number*: each variant in turn, from one that the seed draws."""
    variants = [name for name in VARIANTS[fault] if has_postgresql or name not in _TWO_ENGINES]
    return Scenario(
        fault, variants[(Random(f"{seed}/{fault}").randrange(len(variants)) + number) % len(variants)]
    )


def run_scenario(
    scenario: Scenario, seed: int, number: int, directory: Path, ledger_url: str | None
) -> list[Finding]:
    """
    Make the fault on a new installation in *directory*, which is there and empty; return what is wrong.

    Raises:
        Skipped: The ledger cannot have a database of its own.
        Unavailable: A server or a process of it does not start, answer or end.
        Failure: The server refuses what it must not.
    """
    fault, variant = scenario
    chance = Random(f"{seed}/{number}/{fault}")
    own_url = None if variant == backups.ONTO_POSTGRESQL else ledger_url
    with open_site(directory / "data", directory, own_url, number) as site:
        scene = Scene(site.server)
        if fault == "workers":
            return check_workers(scene, directory, variant, chance)
        if fault == "streams":
            return check_streams(scene, directory, variant, chance)
        if fault == "forks":
            return check_forks(scene, directory, variant, chance)
        if fault == "sessions":
            return check_sessions(scene, directory, variant, chance)
        return check_backups(scene, directory, variant, chance, ledger_url, number)
