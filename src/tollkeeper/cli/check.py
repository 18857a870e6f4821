"""`tollkeeper verify` and `tollkeeper rebuild`: is everything right, and repair of what is derived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from tollkeeper.cli import options
from tollkeeper.cli.failures import FAILED
from tollkeeper.cli.output import Column, plain, print_json, print_table, progress
from tollkeeper.cli.target import open_data, server_of

if TYPE_CHECKING:
    from tollkeeper.embedded import Tollkeeper
    from tollkeeper.maintenance.reconcile import Verdict


def verify(
    data: options.Data = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Recompute counter = ledger = sum of events, and list every difference. Exit code 1 if there is one.
    """
    server = server_of(data, url, key)
    if server is not None:
        answer = server.call("POST", "/verify")
    else:
        with open_data(data) as toll:
            answer = verdict_json(_verify(toll))
    answer = with_store_differences(answer)
    if as_json:
        print_json(answer)
    else:
        print_verdict(answer)
    if not answer["ok"]:
        raise typer.Exit(FAILED)


def rebuild(
    data: options.Data = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """Make rollups and the id index anew from the events that are kept. Totals do not change."""
    server = server_of(data, url, key)
    if server is not None:
        rows = server.call("POST", "/rebuild")["rows"]
    else:
        with open_data(data) as toll, progress("rebuilding", None):
            rows = dict(toll.rebuild())
    if as_json:
        print_json({"rows": rows})
        return
    print_table(
        [Column("table"), Column("rows written", numeric=True)], sorted(rows.items()), title="Rebuilt"
    )


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as the API tells it. Figures are text, since money may be among them."""
    return {
        "ok": verdict.ok,
        "differences": [
            {
                "account": found.account_id,
                "what": found.what,
                "expected": str(found.expected),
                "found": str(found.found),
            }
            for found in verdict.differences
        ],
        "store_differences": list(verdict.store_differences),
        "accounts": verdict.accounts,
        "counters": verdict.counters,
    }


def with_store_differences(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return *verdict* with one list of differences, so that whoever looks at that alone misses nothing."""
    of_store = [
        {"account": "", "what": what, "expected": "", "found": ""} for what in verdict["store_differences"]
    ]
    answer = {name: value for name, value in verdict.items() if name != "store_differences"}
    return {**answer, "differences": [*verdict["differences"], *of_store]}


def print_verdict(answer: dict[str, Any]) -> None:
    """Print a verdict for people."""
    compared = f"accounts compared: {answer['accounts']:,}, counters: {answer['counters']:,}"
    if answer["ok"]:
        print(f"ok: counters, ledger and events agree ({compared})")
        return
    differences = answer["differences"]
    print_table(
        [Column("account"), Column("what"), Column("expected", numeric=True), Column("found", numeric=True)],
        [[d["account"], plain(d["what"]), d["expected"], d["found"]] for d in differences],
        title=f"differences: {len(differences):,} ({compared})",
    )


def _verify(toll: Tollkeeper) -> Verdict:
    reconcile = toll.installation.reconcile
    done = 0
    with progress("verifying", None) as advance:

        def count(account_id: str) -> None:
            nonlocal done
            advance(done)
            done += 1

        return reconcile.verify(count)
