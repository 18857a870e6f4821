"""The kinds of faults that a run draws, by its seed, and their names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, Literal, TypeAlias, get_args

Fault: TypeAlias = Literal[
    "kills",
    "noisy",
    "minting",
    "restores",
    "fail-over",
    "copies",
    "full-disk",
    "workers",
    "streams",
    "forks",
    "sessions",
    "backups",
]

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
IN_TRAFFIC: Final[tuple[Fault, ...]] = ("kills", "noisy", "minting")
"""They happen beside the traffic of a round; each of the others has an installation of its own."""
GOES_BACK: Final[tuple[Fault, ...]] = ("restores", "fail-over", "copies", "full-disk")
"""A part of an installation goes back in time, or has no room: `drills`. The others of their own: `scenarios`."""

NOT_COVERED: Final = (
    "torn copies: a file of the usage store copied while it is written (copies here are of one instant each)",
    "a usage store on a ClickHouse server: only chDB is attacked",
    "budgets whose period ends, limits by tag, kind or route, variants, list prices: docs/prove.md has all",
    "servers other than Granian, and WSGI: tests have uvicorn, gunicorn, hypercorn, Flask and Django",
    "retention: events that expire while others come in; tests kill it in each step",
    "backups onto a full disk, and backups of a usage store on a server",
    "several nodes, a clock that is set back, a power cut that loses what was not synced",
)
"""What no run draws; a report says so, as an omission would read as a proof."""


def faults_of(seed: int, number: int, only: Sequence[Fault]) -> tuple[Fault, ...]:
    """
    Return the faults of round *number*, from 1 on.

    The kills are in every round, and with them one other kind, in an order that the seed shuffles: as many rounds as
    there are other kinds have them all. With *only*, every round has exactly those.
    """
    if only:
        return tuple(fault for fault in FAULTS if fault in only)
    others = [fault for fault in FAULTS if fault != "kills"]
    Random(f"{seed}/faults").shuffle(others)
    return ("kills", others[(number - 1) % len(others)])
