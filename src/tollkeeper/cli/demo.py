"""`tollkeeper demo`: see it work."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tollkeeper.console.failures import FAILED, misused


def demo(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="An empty directory; a temporary one unless given.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", help="Port to serve on; 8080 or a free one.", min=1, max=65535, show_default=False
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="Show a vendor's dialect with a month of history: see `tollkeeper profiles`.",
            show_default=False,
        ),
    ] = None,
    no_serve: Annotated[
        bool, typer.Option("--no-serve", help="Stop when the traffic is through, even on a terminal.")
    ] = False,
) -> None:
    """
    Set up two customers, send their traffic through the gate, and show what happened.

    On a terminal it goes on serving until Ctrl-C, so that the commands that it prints can be tried.
    """
    from tollkeeper.demo.run import run_demo
    from tollkeeper.profiles import names

    if profile is not None and profile not in names():
        raise misused(f"--profile must be one of {', '.join(names())}, not {profile}.")

    stay = sys.stdin.isatty() and sys.stdout.isatty() and not no_serve
    if not run_demo(data, port, stay=stay, profile=profile):
        raise typer.Exit(FAILED)
