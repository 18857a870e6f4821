"""`tollkeeper events`: single events, newest first, as table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
import typer

from tollkeeper.api.event_answer import event_list
from tollkeeper.cli.usage import check_accounts, filter_params
from tollkeeper.clock import SystemClock
from tollkeeper.console import options
from tollkeeper.console.failures import misused
from tollkeeper.console.output import Column, money, print_csv, print_json, print_table
from tollkeeper.console.target import open_data, server_of
from tollkeeper.domain.event_pages import EVENTS_PER_PAGE, EVENTS_PER_PAGE_MAX, EventQuery
from tollkeeper.domain.quantities import TOKEN_CLASSES
from tollkeeper.errors import BadParameter

COLUMNS: Final = (
    "time",
    "id",
    "account",
    "project",
    "key_id",
    "kind",
    "method",
    "route",
    "status",
    "error_type",
    "denied_reason",
    "model",
    "variant",
    "tokens",
    "quantities",
    "cache",
    "latency_ms",
    "bytes_out",
    "credits",
    "cost_nanos",
    "estimated_cost_nanos",
    "provider_cost_nanos",
    "adjustment_nanos",
    "cost_state",
    "price_version",
    "revision",
    "received_at",
    "tags",
)
"""Of CSV. `tokens`, `quantities` and `tags` are JSON."""


def events(
    data: options.Data = None,
    account: Annotated[
        str | None,
        typer.Option(
            "--account", metavar="ID", help="Whose events; all accounts' unless given.", show_default=False
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
            "--to", metavar="TIME", help="The same; what is at TIME is not listed.", show_default=False
        ),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option("--time-zone", metavar="ZONE", help="Of dates; UTC unless given.", show_default=False),
    ] = None,
    denied: Annotated[
        bool | None,
        typer.Option(
            "--denied/--not-denied",
            help="Only what a limit refused, or only the rest; both unless given.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="DIM=VALUE",
            help="Only events with this value, e.g. status=429 or tag.team=a; repeat for more.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="The most events to show.", min=1, max=EVENTS_PER_PAGE_MAX)
    ] = EVENTS_PER_PAGE,
    cursor: Annotated[
        str | None,
        typer.Option(
            "--cursor", metavar="TEXT", help="Go on here: as the page before says.", show_default=False
        ),
    ] = None,
    format: options.Format = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Show single events as they stand, the newest first; JSON has for each how its cost came about.

    The answer contains every event that was acknowledged before.
    """
    form = options.output_format(format, as_json)
    given = {
        "account": account,
        "from": from_,
        "to": to,
        "time_zone": time_zone,
        "denied": None if denied is None else str(denied).lower(),
        "limit": limit,
        "cursor": cursor,
    }
    params = [(name, str(value)) for name, value in given.items() if value is not None]
    params += filter_params(filters or ())
    query = _query(params)
    server = server_of(data, url, key)
    if server is not None:
        page = server.call("GET", "/events", query=params)
    else:
        with open_data(data) as toll:
            check_accounts(toll, account)
            page = msgspec.to_builtins(event_list(query, toll.events(query), for_operator=True))
    _print(form, page)


def _query(params: Sequence[tuple[str, str]]) -> EventQuery:
    from tollkeeper.api.event_params import parse_event_query

    try:
        return parse_event_query(params, now=SystemClock().now())
    except BadParameter as exc:
        raise misused(f"{exc}.") from None


def _print(form: str, page: Mapping[str, Any]) -> None:
    if form == "json":
        print_json(page)
        return
    if form == "csv":
        print_csv(COLUMNS, page["events"])
        return
    if page["events"]:
        columns = [Column(name) for name in ("time", "account", "key", "request", "status", "model")]
        columns += [Column(name, numeric=True) for name in ("tokens", "cost")]
        print_table(columns, [_row(event) for event in page["events"]])
    elif page["next_cursor"] is None:
        print("There is no such event.")
    if page["next_cursor"] is not None:
        print(f"More: --cursor {page['next_cursor']}")
    if page["lacks_detail"]:
        print(f"Events before {page['detail_from']} have expired, as far as their account keeps no longer.")
    elif not page["complete"]:
        print(f"Not complete: the oldest missing event has waited for {page['behind_s']} s.")


def _tokens(event: Mapping[str, Any]) -> int:
    counts: Mapping[str, int] = event.get("tokens", {})
    others: Mapping[str, str] = event.get("quantities", {})
    return sum(counts.values()) + sum(int(others.get(name, 0)) for name in TOKEN_CLASSES)


def _row(event: Mapping[str, Any]) -> tuple[object, ...]:
    what = event.get("denied_reason") or event.get("error_type") or ""
    nanos = int(event.get("adjustment_nanos") or event["cost_nanos"])
    return (
        event["time"].partition(".")[0] + "Z",
        event["account"],
        event.get("key_id", ""),
        f"{event.get('method', '')} {event.get('route', '')}".strip() or event.get("kind", ""),
        f"{event.get('status', '')} {what}".strip(),
        event.get("model", ""),
        _tokens(event),
        money(nanos),
    )
