"""The result of `verify` as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tollkeeper.console.output import Column, plain, print_table


def with_store_differences(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return *verdict* with one list of differences, so that a reader of that list alone misses nothing."""
    of_store = [
        {"account": "", "what": what, "expected": "", "found": ""} for what in verdict["store_differences"]
    ]
    answer = {name: value for name, value in verdict.items() if name != "store_differences"}
    return {**answer, "differences": [*verdict["differences"], *of_store]}


def print_verdict(answer: Mapping[str, Any]) -> None:
    """Print a verdict for people."""
    compared = f"accounts compared: {answer['accounts']:,}, counters: {answer['counters']:,}"
    if answer.get("expired"):
        compared += f"; with their postings only, as their events have expired: {answer['expired']:,}"
    if answer["ok"]:
        print(f"ok: counters, ledger and events agree ({compared})")
        return
    differences = answer["differences"]
    print_table(
        [Column("account"), Column("what"), Column("expected", numeric=True), Column("found", numeric=True)],
        [[d["account"], plain(d["what"]), d["expected"], d["found"]] for d in differences],
        title=f"differences: {len(differences):,} ({compared})",
    )
