"""`tollkeeper adjust`: an account's money up or down, without a request."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import typer

from tollkeeper.api.adjustments import AdjustmentAnswer, adjustment_line
from tollkeeper.cli.catalog import catalog_of
from tollkeeper.console import options
from tollkeeper.console.failures import misused
from tollkeeper.console.output import plain, print_json, warn
from tollkeeper.domain.money import format_nanos, parse_nanos

ALLOWS_NEGATIVE_AMOUNT: Final = {"ignore_unknown_options": True}
"""Context settings of a command that takes an amount, so that `-25.00` is one and no option."""


def adjust(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Whose money.")],
    amount: Annotated[
        str,
        typer.Argument(metavar="AMOUNT", help="Decimal, e.g. 25.00 to give, -25.00 to take."),
    ],
    id: Annotated[
        str,
        typer.Option("--id", metavar="ID", help="Names the adjustment: the same again changes nothing."),
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why the money is moved.")],
    event: Annotated[
        str | None,
        typer.Option("--event", metavar="ID", help="The event that this corrects.", show_default=False),
    ] = None,
    key_id: Annotated[
        str | None,
        typer.Option(
            "--key-id",
            metavar="ID",
            help="Move what this key's requests are charged to, in place of the account's budgets and credit.",
            show_default=False,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="ID", help="Move this project's budgets too.", show_default=False),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="TIME", help="When it counts, RFC 3339; now unless given.", show_default=False
        ),
    ] = None,
    data: options.Data = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """Give an account money, or take some: goodwill, refunds, corrections. Never a request, never a cost."""
    try:
        nanos = parse_nanos(amount)
    except ValueError as exc:
        raise misused(f"AMOUNT: {exc}") from None
    # As text with a decimal point: what was read here is what is sent.
    fields = {"id": id, "account": account, "amount": format_nanos(nanos), "reason": reason}
    stated = {"event": event, "key_id": key_id, "project": project, "time": time}
    fields |= {name: value for name, value in stated.items() if value is not None}
    with catalog_of(data, url, key) as catalog:
        answer = catalog.adjust(fields)
    for warning in answer.get("warnings", ()):
        warn(warning)
    if as_json:
        print_json(answer)
    else:
        print(plain(adjustment_line(msgspec.convert(answer, AdjustmentAnswer))))
