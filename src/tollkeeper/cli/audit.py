"""`tollkeeper audit`: who changed what is set up, when, and how."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from tollkeeper.api.audit_answer import audit_page
from tollkeeper.catalog.change_text import change_texts, value_texts
from tollkeeper.console import options
from tollkeeper.console.output import Column, print_csv, print_json, print_table
from tollkeeper.console.target import open_data, server_of

_COLUMNS = ("seq", "at", "actor", "account", "kind", "id", "action", "unit", "fields")


def audit(
    account: Annotated[
        str | None,
        typer.Option(
            "--account", metavar="ID", help="Changes of this account and of its entries.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="KIND", help="Of entries of this kind, e.g. keys.", show_default=False
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Of entries with this id.", show_default=False),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(
            "--after",
            metavar="SEQ",
            help="Go on after this one: the last seq of the page before.",
            min=1,
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="The most changes to show.", min=1, max=1000)] = 50,
    data: options.Data = None,
    format: options.Format = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """Show who changed what is set up, the newest first: every entry's creation, changes and end."""
    form = options.output_format(format, as_json)
    asked = {"account": account, "kind": kind, "id": id, "after": after, "limit": limit}
    server = server_of(data, url, key)
    if server is not None:
        page = server.call(
            "GET", "/audit", query=[(name, str(value)) for name, value in asked.items() if value is not None]
        )
    else:
        with open_data(data) as toll:
            lines = toll.manage.audit_log(
                account=account, kind=kind, entry_id=id, before_seq=after, limit=limit
            )
        page = msgspec.to_builtins(audit_page(lines, limit))
    items = page["items"]
    if form == "json":
        print_json(page)
    elif form == "csv":
        print_csv(
            _COLUMNS,
            [{**item, "fields": msgspec.json.encode(item["fields"]).decode()} for item in items],
        )
    elif items:
        columns = [Column("seq", numeric=True), *(Column(name) for name in ("at", "by", "what", "changes"))]
        print_table(columns, [_row(item) for item in items])
    else:
        print("No change is in the log.")


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    owner = f"{item['account']}/" if item["account"] not in (None, item["id"]) else ""
    money = ("amount", "burst") if item["unit"] == "nanos" else ()
    texts: list[str] = []
    for name, (old, new) in item["fields"].items():
        if item["action"] == "changed":
            texts += change_texts(name, old, new, money)
        elif item["action"] == "created" and name != "id":
            texts += value_texts(name, new, money)
    return (
        item["seq"],
        item["at"].partition(".")[0] + "Z",
        item["actor"],
        f"{item['action']} {item['kind']} {owner}{item['id']}",
        "; ".join(texts),
    )
