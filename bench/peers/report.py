"""Runs the peers one after the other and writes the page with their figures."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.peers.comparison import FULL, LITTLE, Absent, Comparison, Found
from bench.table import machine

MODULES = ("in_process", "asgi_limiter", "request_log", "raw_chdb", "gateway")
STOP_S = 60.0
"""After its time is over a module may clean up for so long."""
REASON_CHARS_MAX = 400


class Section(NamedTuple):
    """One module's part of the page."""

    title: str
    settings: str
    found: Found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench peers")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}; all by default")
    parser.add_argument(
        "--little", action="store_true", help="see that it works, in a minute or two: no figures to keep"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/peers.md"), help="the page; - only prints it")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        found = importlib.import_module(f"bench.peers.{given.one}").run(LITTLE if given.little else FULL)
        sys.stdout.buffer.write(msgspec.json.encode(found))
        return
    if unknown := set(given.names) - set(MODULES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; one of {', '.join(MODULES)}")
    sections, started = [], time.monotonic()
    for name in given.names or MODULES:
        print(f"… {name}", file=sys.stderr, flush=True)
        sections.append(_section(name, little=given.little))
    page = _page(sections, time.monotonic() - started, little=given.little)
    if str(given.out) != "-":
        given.out.write_text(page)
    print(page)


def _section(name: str, *, little: bool) -> Section:
    try:
        module = importlib.import_module(f"bench.peers.{name}")
    except ImportError as exc:
        return Section(name, "", Found([], absent=[Absent(name, f"not installed: {exc}")]))
    command = [sys.executable, "-m", "bench", "peers", "--one", name] + ["--little"] * little
    # In a session of its own: what it started can be ended with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=module.SECONDS_MAX)
        if process.returncode == 0:
            found = msgspec.json.decode(output, type=Found)
        else:
            found = Found([], absent=[Absent(module.TITLE, _last_line(errors))])
    except subprocess.TimeoutExpired:
        _stop(process)
        found = Found([], absent=[Absent(module.TITLE, f"not done within {module.SECONDS_MAX} s")])
    versions = {package: _version(package) for package in module.PACKAGES} | found.versions
    return Section(module.TITLE, module.SETTINGS.strip(), msgspec.structs.replace(found, versions=versions))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the module stop its servers, then end whatever is left of its session."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1][:REASON_CHARS_MAX] if lines else "it ended without a word"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _page(sections: list[Section], took_s: float, *, little: bool) -> str:
    parts = [
        f"""# Beside the peers

`make bench-peers` measures Tollkeeper beside what else one would use, in the same run on the same machine, and writes
this page. This run: {machine()}; {took_s / 60:.0f} minutes{"; **little: no figures to keep**" if little else ""}.

The load generator and all servers share the machine. "×" says how many times better Tollkeeper is: above 1 it wins,
**below 1 the peer wins**. No two of these do the same; each section says what is left out on either side.
"""
    ]
    for section in sections:
        versions = ", ".join(f"{name} {version}" for name, version in section.found.versions.items())
        parts.append(f"## {section.title}\n")
        if section.found.comparisons:
            parts.append("| | Tollkeeper | peer | × | better |\n|---|---:|---:|---:|---|")
            parts += [_row(comparison) for comparison in section.found.comparisons]
            parts.append("")
        parts += [f"Not measured: {absent.peer}: {absent.reason}\n" for absent in section.found.absent]
        if section.settings:
            parts.append(section.settings)
        if versions:
            parts.append(f"* Versions: {versions}.")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _row(comparison: Comparison) -> str:
    unit = "" if comparison.unit == "/s" else f" {comparison.unit}"
    winner = "Tollkeeper" if comparison.ratio >= 1 else "**the peer**"
    if comparison.baseline:
        winner = "baseline"
    return (
        f"| {comparison.what} | {_text(comparison.ours)}{unit} | {_text(comparison.theirs)}{unit}: {comparison.peer} "
        f"| {comparison.ratio:.2g} | {winner} |"
    )


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
