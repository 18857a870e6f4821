"""`tollkeeper usage`: the usage question, answered as table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tollkeeper.cli import options
from tollkeeper.cli.failures import misused
from tollkeeper.cli.output import Column, money, print_csv, print_json, print_table
from tollkeeper.cli.target import open_data, server_of
from tollkeeper.clock import SystemClock
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.usage import DIMENSIONS, GRANULARITIES, MEASURES, UsageQuery
from tollkeeper.errors import BadParameter

if TYPE_CHECKING:
    from tollkeeper.domain.usage import UsageReport

FROM_DEFAULT: Final = "2000-01-01"
"""Before every event that is taken: a person who names no range means everything."""
_TEXT_MEASURES: Final = frozenset({"kinds", "first_at", "last_at"})

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
            "--measures", metavar="A,B", help=f"What to tell: {', '.join(MEASURES)}.", show_default=False
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

    The answer contains every event that was acknowledged before the question.
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
            answer = report_json(query, toll.usage(query))
    columns = columns_of(query)
    if form == "json":
        print_json(answer)
    elif form == "csv":
        print_csv(columns, answer["rows"])
    else:
        print_report(columns, answer, offset=query.offset)


def report_json(query: UsageQuery, report: UsageReport) -> dict[str, Any]:
    """Return a report as the API tells it: money as text, since JavaScript loses integers above 2**53."""
    shown = query.offset + len(report.rows)
    return {
        "rows": [_with_money_as_text(row) for row in report.rows],
        "totals": _with_money_as_text(report.totals),
        "row_count": report.row_count,
        "next_offset": shown if report.rows and shown < report.row_count else None,
        "from": to_text(from_us(query.from_us)),
        "to": to_text(from_us(query.to_us)),
        "as_of": to_text(from_us(report.as_of_us)),
        "complete": report.complete,
        "behind_s": report.behind_s,
    }


def columns_of(query: UsageQuery) -> list[str]:
    """Return the columns of the answer to *query*, in their order."""
    return [*(("time",) if query.granularity else ()), *query.group_by, *query.measures]


def print_report(
    columns: Sequence[str], answer: Mapping[str, Any], *, offset: int, title: str | None = None
) -> None:
    """Print an answer for people: money in units, totals below, and what it leaves out."""
    rows, totals = answer["rows"], answer["totals"]
    grouped = [name for name in columns if name not in totals]
    headings = [_column(name, grouped) for name in columns]
    footer = None
    if grouped:
        footer = [_cell(name, totals.get(name)) for name in columns]
        footer[0] = "total"
    shown_rows = (
        [[_cell(name, row.get(name)) for name in columns] for row in rows]
        if grouped
        else [[_cell(name, totals.get(name)) for name in columns]]
    )
    print_table(headings, shown_rows, totals=footer, title=title)
    if answer["row_count"] > len(rows) and grouped:
        print(
            f"rows {offset + 1:,} to {offset + len(rows):,} of {answer['row_count']:,}; "
            "the total is over all: --offset and --limit show others"
        )
    if not answer["complete"]:
        print(
            f"not complete: events acknowledged before {answer['as_of']} are still on their way, "
            f"the oldest for {answer['behind_s']:,} s"
        )


def _params(given: Mapping[str, str | int | None], filters: Sequence[str]) -> Pairs:
    params = [(name, str(value)) for name, value in given.items() if value is not None]
    if given["from"] is None:
        params.append(("from", FROM_DEFAULT))
    if given["to"] is None:
        # Two days on, so that all of tomorrow is in it, in any time zone's today.
        params.append(("to", (SystemClock().now() + timedelta(days=2)).date().isoformat()))
    for text in filters:
        name, equals, value = text.partition("=")
        if not equals or (name not in DIMENSIONS and not name.startswith(("tag.", "tag:"))):
            raise misused(
                f"--filter {text}: write DIM=VALUE with one of {', '.join(DIMENSIONS)} or tag.NAME."
            )
        params.append((name, value))
    return params


def _query(params: Pairs) -> UsageQuery:
    from tollkeeper.http.usage_params import parse_usage_query

    try:
        return parse_usage_query(params, now=SystemClock().now())
    except BadParameter as exc:
        # What the command line says is at fault, so this is its misuse.
        raise misused(f"{exc}.") from None


def _with_money_as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if name.endswith("_nanos") and value is not None else value
        for name, value in row.items()
    }


def _column(name: str, grouped: Sequence[str]) -> Column:
    heading = name.removesuffix("_nanos").replace("_", " ")
    return Column(heading, numeric=name not in grouped and name not in _TEXT_MEASURES)


def _cell(name: str, value: Any) -> Any:
    if name.endswith("_nanos"):
        return money(value)
    if name == "status":
        return str(value)
    return value
