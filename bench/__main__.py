"""Runs the workloads named on the command line, or all, each in a process of its own, and prints one table."""

from __future__ import annotations

import importlib
import subprocess
import sys

import msgspec

from bench.table import Figure, show

REPORTS = ("peers", "scale", "noisy")
"""These take arguments of their own: `python -m bench scale --events 1000000`. Two write a page under docs/."""

WORKLOADS = ("admit", "middleware", "remote", "authorize", "ingest", "usage", "answers", "profiles", "start")
ONE = "--one"


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in REPORTS:
        importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])
        return
    if sys.argv[1:2] == [ONE]:
        figures = importlib.import_module(f"bench.{sys.argv[2]}").run()
        sys.stdout.buffer.write(msgspec.json.encode(figures))
        return
    found: list[Figure] = []
    for name in sys.argv[1:] or WORKLOADS:
        if name not in WORKLOADS:
            sys.exit(f"unknown workload {name!r}: one of {', '.join(WORKLOADS + REPORTS)}")
        print(f"… {name}", file=sys.stderr, flush=True)
        # A process has one chDB engine, and each workload its own data.
        child = subprocess.run([sys.executable, "-m", "bench", ONE, name], stdout=subprocess.PIPE, check=True)
        found += msgspec.json.decode(child.stdout, type=list[Figure])
    show(found)


if __name__ == "__main__":
    main()
