"""`tollkeeper prove`: attack it and see."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated

import typer

from tollkeeper.console import options
from tollkeeper.console.failures import FAILED, misused
from tollkeeper.console.output import stderr
from tollkeeper.settings import has_password

if TYPE_CHECKING:
    from tollkeeper.prove.faults import Fault


def prove(
    rounds: Annotated[
        int, typer.Option("--rounds", help="Each kills the server once or twice.", min=1, max=10_000)
    ] = 6,
    clients: Annotated[int, typer.Option("--clients", help="Client processes.", min=1, max=64)] = 4,
    connections: Annotated[
        int, typer.Option("--connections", help="Connections of each.", min=1, max=64)
    ] = 4,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Repeats the plan of a run; any unless given.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="An empty directory to keep what is left in; a temporary one, removed, unless given.",
            show_default=False,
        ),
    ] = None,
    ledger_url: Annotated[
        str | None,
        typer.Option(
            "--ledger-url",
            help="postgresql://… of an empty database, emptied again without --data; SQLite unless given.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="FAULTS",
            help="Make these in every round: kills, noisy, minting, restores, fail-over, copies, full-disk, "
            "workers, streams, forks, sessions, backups. "
            "Drawn by the seed unless given.",
            show_default=False,
        ),
    ] = None,
    shrink: Annotated[
        int, typer.Option("--shrink", help="Seconds to look for a smaller run that fails too.", min=0)
    ] = 60,
    output: options.Format = None,
    as_json: options.AsJson = False,
) -> None:
    """
    Attack a throw-away installation, and count overshoot, lost and double-counted. Exit code 1 unless all are 0.

    Client processes send mixed traffic over HTTP and cut their own connections; the server is killed (-9) and
    started again in every round. Rounds also draw noisy customers, customers who mint keys, older ledgers put back
    (restores, fail-over, copies), full disks, worker processes, streams and WebSockets, forks, callers without a key,
    and backups that are restored. docs/prove.md says how to read the report.
    """
    from tollkeeper.prove.plan import Scale
    from tollkeeper.prove.report import print_proof
    from tollkeeper.prove.run import prove as attack
    from tollkeeper.prove.run import shrink as shrunk

    form = options.output_format(output, as_json)
    if form == "csv":
        raise misused("The report is a table or JSON: give --format table or json.")
    faults = _faults(only)
    console = stderr()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    if ledger_url and has_password(ledger_url):
        say("warning: --ledger-url has a password, which every user of this machine can read with ps.")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    say(f"seed {seed}")
    scale = Scale(rounds, clients, connections)
    proof = attack(scale, seed, data=data, say=say, ledger_url=ledger_url, only=faults)
    # A database that keeps what was found has no room for another run.
    if proof.findings and shrink and not (data and ledger_url):
        proof = shrunk(proof, within_s=shrink, say=say, ledger_url=ledger_url)
    print_proof(proof, as_json=form == "json")
    if proof.findings:
        raise typer.Exit(FAILED)


def _faults(only: str | None) -> tuple[Fault, ...]:
    """
    Return the faults that `--only` names, comma-separated; none when it is not given.

    Raises:
        Failure: One of them is none.
    """
    from tollkeeper.prove.faults import FAULTS

    if only is None:
        return ()
    names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise misused(f"--only {unknown[0]}: there is no such fault. Give some of {', '.join(FAULTS)}.")
    return tuple(fault for fault in FAULTS if fault in names)
