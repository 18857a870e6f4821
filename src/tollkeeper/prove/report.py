"""The report of a proof: for people, and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tollkeeper.console.output import Column, plain, print_json, print_table
from tollkeeper.prove.faults import FAULTS, NOT_COVERED
from tollkeeper.prove.journal import ANSWER_S_MAX
from tollkeeper.prove.oracle import KINDS
from tollkeeper.prove.run import Proof
from tollkeeper.version import __version__

_PARTS: Final = ("chdb", "sqlalchemy", "granian")
FINDINGS_SHOWN: Final = 20


def print_proof(proof: Proof, *, as_json: bool) -> None:
    """Print what a run found: the headline first, then each finding with the calls that show it."""
    if as_json:
        print_json(report_of(proof))
        return
    report = report_of(proof)
    rows: list[list[Any]] = [
        ["machine", report["machine"]],
        ["versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items())],
        ["ledger", proof.ledger],
        ["seed", str(proof.seed)],
        [
            "rounds",
            f"{proof.scale.rounds}, {proof.scale.clients} clients with {proof.scale.connections} connections",
        ],
        ["requests", f"{proof.calls:,}, sent {proof.tries:,} times"],
        ["kill -9", proof.kills],
        ["verify", f"{proof.verifies:,} times"],
        ["took", f"{proof.took_s:.0f} s"],
    ]
    print_table([Column("run"), Column("")], rows)
    print()
    counts = [[_WORDS[kind], count] for kind, count in proof.counts.items()]
    print_table([Column("found"), Column("count", True)], counts)
    print()
    columns = [Column("fault"), *(Column(name, True) for name in ("times", *KINDS))]
    print_table(columns, [[fault, *found.values()] for fault, found in proof.by_fault.items()])
    print()
    for line in not_covered(proof):
        print(f"not covered: {plain(line)}")
    for finding, lines in proof.findings[:FINDINGS_SHOWN]:
        print(f"\n{finding.kind}: {plain(finding.what)}")
        for line in lines:
            print(f"  {plain(line)}")
    if proof.findings:
        hidden = len(proof.findings) - FINDINGS_SHOWN
        more = f"{hidden} more findings are in --format json. " if hidden > 0 else ""
        print(f"\n{more}Again: tollkeeper prove {options_of(proof)}")


def report_of(proof: Proof) -> dict[str, Any]:
    """Return the report as JSON has it."""
    return {
        "ok": not proof.findings,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "tollkeeper": __version__,
            **{name: version(name) for name in _PARTS},
        },
        "ledger": proof.ledger,
        "seed": proof.seed,
        **proof.scale._asdict(),
        "requests": proof.calls,
        "tries": proof.tries,
        "kills": proof.kills,
        "verifies": proof.verifies,
        "took_s": round(proof.took_s, 1),
        **{kind.replace("-", "_"): count for kind, count in proof.counts.items()},
        "faults": proof.by_fault,
        "not_covered": list(not_covered(proof)),
        "findings": [
            {"kind": finding.kind, "fault": finding.fault, "what": finding.what, "history": lines}
            for finding, lines in proof.findings
        ],
    }


def options_of(proof: Proof) -> str:
    """Return the options that repeat the plan of a run."""
    rounds, clients, connections = proof.scale
    options = f"--seed {proof.seed} --rounds {rounds} --clients {clients} --connections {connections}"
    return f"{options} --only {','.join(proof.only)}" if proof.only else options


def not_covered(proof: Proof) -> Iterator[str]:
    """Yield what this run says nothing of: faults that were not made, with the reason, and what no run has."""
    yield from proof.skipped
    skipped = {line.partition(":")[0] for line in proof.skipped}
    times = dict(proof.drawn)
    missing = [fault for fault in FAULTS if not times.get(fault) and fault not in skipped]
    if missing:
        yield f"{', '.join(missing)}: not drawn in {proof.scale.rounds} rounds"
    yield from NOT_COVERED


def machine() -> str:
    """Return what a reader needs to know of this machine."""
    cpu, memory = platform.machine(), ""
    info, sizes = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if info.exists() and sizes.exists():
        names = [line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
        memory = f", {int(sizes.read_text().split()[1]) // 2**20} GiB"
    return f"{os.cpu_count()} cores of {cpu}{memory}, {platform.system()} {platform.release()}"


_WORDS: Final = {
    "overshoot": "overshoot: admitted beyond a limit or budget",
    "lost": "lost: acknowledged, and not there",
    "double-counted": "double-counted: there more than once, or never sent",
    "verify": "verify differences",
    "unanswered": f"unanswered: no answer within {ANSWER_S_MAX} s from a server that runs",
    "other": "other: wrong answers, refusals without reason, holds that never end",
}
