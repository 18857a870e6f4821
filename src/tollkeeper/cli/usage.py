"""`tollkeeper usage`: the usage query, answered as table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from tollkeeper.api.usage_answer import columns_of, usage_response
from tollkeeper.clock import SystemClock
from tollkeeper.console import options
from tollkeeper.console.failures import Failure, misused
from tollkeeper.console.output import print_csv, print_json
from tollkeeper.console.target import open_data, server_of
from tollkeeper.console.usage_table import print_report
from tollkeeper.domain.usage import DIMENSIONS, GRANULARITIES, MEASURES, UsageQuery
from tollkeeper.errors import BadParameter

if TYPE_CHECKING:
    from tollkeeper.embedded import Tollkeeper

FROM_DEFAULT: Final = "2000-01-01"
"""Before every event that is taken: a person who names no range means everything."""

Pairs = list[tuple[str, str]]


def usage(
    data: options.Data = None,
    account: Annotated[
        str | None,
        typer.Option(
            "--account", metavar="ID", help="Whose usage; all accounts' unless given.", show_default=False
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Date or RFC 3339 time; everything unless given.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TIME", help="The same; what is at TIME is not counted.", show_default=False
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="A,B",
            help=f"A row per value of these: {', '.join(DIMENSIONS)}, tag.NAME.",
            show_default=False,
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity", metavar="G", help=f"A row per {', '.join(GRANULARITIES)}.", show_default=False
        ),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            "--measures",
            metavar="A,B",
            help=f"What to tell: {', '.join(MEASURES)}, quantity.NAME.",
            show_default=False,
        ),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(
            "--time-zone", metavar="ZONE", help="Of dates and buckets; UTC unless given.", show_default=False
        ),
    ] = None,
    week_start: Annotated[
        str | None,
        typer.Option("--week-start", metavar="DAY", help="Monday unless given.", show_default=False),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="A,-B",
            help="Columns of the answer; - in front for descending.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Rows per page; 1,000 unless given.", show_default=False)
    ] = None,
    offset: Annotated[int | None, typer.Option("--offset", help="Rows to skip.", show_default=False)] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="DIM=VALUE",
            help="Only events with this value, e.g. key=k1 or tag.team=a; repeat for more.",
            show_default=False,
        ),
    ] = None,
    format: options.Format = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Show what was used: requests, tokens, cost, latency, … by any grouping.

    The answer contains every event that was acknowledged before the query.
    """
    form = options.output_format(format, as_json)
    given = {
        "account": account,
        "from": from_,
        "to": to,
        "group_by": group_by,
        "granularity": granularity,
        "measures": measures,
        "time_zone": time_zone,
        "week_start": week_start,
        "sort": sort,
        "limit": limit,
        "offset": offset,
    }
    params = _params(given, filters or ())
    query = _query(params)
    server = server_of(data, url, key)
    if server is not None:
        answer = server.call("GET", "/usage", query=params)
    else:
        with open_data(data) as toll:
            check_accounts(toll, account)
            answer = msgspec.to_builtins(usage_response(query, toll.usage(query)))
    columns = columns_of(query)
    if form == "json":
        print_json(answer)
    elif form == "csv":
        print_csv(columns, answer["rows"])
    else:
        print_report(columns, answer, offset=query.offset)


def check_accounts(toll: Tollkeeper, accounts: str | None) -> None:
    """Raise `Failure` unless there is every account that the option `--account` names."""
    for asked in accounts.split(",") if accounts else ():
        if toll.installation.directory.account(asked) is None:
            raise Failure(f"There is no account {asked[:64]!r}: `tollkeeper accounts list` shows them.")


def _params(given: Mapping[str, str | int | None], filters: Sequence[str]) -> Pairs:
    params = [(name, str(value)) for name, value in given.items() if value is not None]
    if given["from"] is None:
        params.append(("from", FROM_DEFAULT))
    if given["to"] is None:
        # Two days on, so that all of tomorrow is in it, in any time zone's today.
        params.append(("to", (SystemClock().now() + timedelta(days=2)).date().isoformat()))
    return params + filter_params(filters)


def filter_params(filters: Sequence[str]) -> Pairs:
    """Return the parameters that options `--filter DIM=VALUE` state. Raises `Failure`."""
    params = []
    for text in filters:
        name, equals, value = text.partition("=")
        if not equals or (name not in DIMENSIONS and not name.startswith(("tag.", "tag:"))):
            raise misused(
                f"--filter {text}: write DIM=VALUE with one of {', '.join(DIMENSIONS)} or tag.NAME."
            )
        params.append((name, value))
    return params


def _query(params: Pairs) -> UsageQuery:
    from tollkeeper.api.usage_params import parse_usage_query

    try:
        return parse_usage_query(params, now=SystemClock().now())
    except BadParameter as exc:
        # What the command line says is at fault, so this is its misuse.
        raise misused(f"{exc}.") from None
