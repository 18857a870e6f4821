"""`tollkeeper verify` and `tollkeeper rebuild`: is everything right, and repair of what is derived."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import typer

from tollkeeper.api.verify_answer import verify_answer
from tollkeeper.console import options
from tollkeeper.console.failures import FAILED
from tollkeeper.console.output import Column, print_json, print_table, progress
from tollkeeper.console.target import open_data, server_of
from tollkeeper.console.verify_table import print_verdict, with_store_differences

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
            answer = msgspec.to_builtins(verify_answer(_verify(toll)))
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
    """Rebuild rollups and the id index from the events that are kept. Totals do not change."""
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


def _verify(toll: Tollkeeper) -> Verdict:
    reconcile = toll.installation.reconcile
    done = 0
    with progress("verifying", None) as advance:

        def count(account_id: str) -> None:
            nonlocal done
            advance(done)
            done += 1

        return reconcile.verify(count)
