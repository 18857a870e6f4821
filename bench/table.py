"""What a workload reports, and the table that shows it."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Figure(NamedTuple):
    """
    One measured number.

    Attributes:
        baseline: The same unit, measured in the same run; None without one.
        target: The number to design for, as text, with its comparison.
        reached: Whether *value* (or its ratio to the baseline) fulfils the target; None without a target.
    """

    workload: str
    what: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    target: str = ""
    reached: bool | None = None


def median_of(run: Callable[[], float], times: int) -> float:
    """Return the median of *times* runs."""
    return statistics.median(run() for _ in range(times))


def machine() -> str:
    """Name the machine in a few words."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    return f"{os.cpu_count()} cores of {cpu}, {platform.system()}, Python {platform.python_version()}"


def show(figures: Sequence[Figure]) -> None:
    """Print all figures as one table, with the machine named."""
    table = Table(title=machine())
    for name in ("workload", "what", "ours", "baseline", "ratio", "target", ""):
        table.add_column(name, justify="right" if name in ("ours", "baseline", "ratio") else "left")
    for f in figures:
        ratio = "" if not f.baseline else f"{f.value / f.baseline:.2f}"
        baseline = "" if f.baseline is None else f"{f.baseline:,.6g} {f.baseline_name}"
        mark = {None: "", True: "reached", False: "missed"}[f.reached]
        table.add_row(f.workload, f.what, f"{f.value:,.6g} {f.unit}", baseline, ratio, f.target, mark)
    Console(width=170).print(table)
