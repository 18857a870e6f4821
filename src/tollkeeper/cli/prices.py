"""`tollkeeper prices show|list|preview`: what prices have beside the commands of every kind of entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import typer

from tollkeeper.api.price_answers import preview_answer
from tollkeeper.cli.apply import read_text
from tollkeeper.clock import SystemClock
from tollkeeper.console import options
from tollkeeper.console.failures import Failure
from tollkeeper.console.output import (
    Column,
    Lines,
    money,
    plain,
    print_csv,
    print_json,
    print_table,
    progress,
    stderr,
    stdout,
)
from tollkeeper.console.program import program
from tollkeeper.console.target import open_data, server_of
from tollkeeper.domain.instants import from_us
from tollkeeper.errors import NotFound

_PLAIN_CLASSES = {
    "prompt_tokens": "prompt",
    "cached_prompt_tokens": "cached",
    "completion_tokens": "completion",
    "reasoning_tokens": "reasoning",
}
# Reasoning costs what a completion does in nearly all of the list; without it a name fits into 60 columns.
_LISTED_CLASSES = {name: _PLAIN_CLASSES[name] for name in list(_PLAIN_CLASSES)[:3]}
_CSV = ("seller", "model", "version", *_PLAIN_CLASSES, "request_nanos")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model, as events name it; or a price's id.")]
Account = Annotated[
    str | None,
    typer.Option(
        "--account", metavar="ID", help="Whose price; the general one unless given.", show_default=False
    ),
]


def add_price_commands(
    group: typer.Typer,
    list_entries: Callable[..., None],
    show_entry: Callable[..., None],
) -> None:
    """Give the group of prices its own `show` and `list`, which fall back on those of entries, and `preview`."""
    group.registered_commands = [
        command for command in group.registered_commands if command.name not in ("show", "list")
    ]

    @group.command("list")
    def list_prices(
        account: Account = None,
        built_in: Annotated[
            bool, typer.Option("--built-in", help="List the built-in prices, not those of the catalog.")
        ] = False,
        seller: Annotated[
            str | None,
            typer.Option(
                "--seller", metavar="ID", help="With --built-in: only this seller's.", show_default=False
            ),
        ] = None,
        data: options.Data = None,
        format: options.Format = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """List your prices; with --built-in those that a model has without one of yours."""
        if built_in or seller is not None:
            _list_built_in(seller or "", options.output_format(format, as_json), url=url, key=key)
        else:
            list_entries(account=account, data=data, format=format, as_json=as_json, url=url, key=key)
            if options.output_format(format, as_json) == "table":
                print(
                    f"A model without a price of yours has the built-in one, of {_built_in_count():,} models: "
                    f"{program()} prices list --built-in, {program()} prices show MODEL."
                )

    @group.command("show")
    def show_price(
        name: Name,
        account: Account = None,
        variant: Annotated[
            str | None,
            typer.Option(
                "--variant", metavar="NAME", help="Of the model: batch, flex, ….", show_default=False
            ),
        ] = None,
        plan: Annotated[
            str | None,
            typer.Option(
                "--plan", metavar="SLUG", help="The plan whose mark-up applies.", show_default=False
            ),
        ] = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """
        Show which price a model's name has: from which seller, and why.

        Exit code 1, with the nearest names, when it has none.
        """
        given = {"name": name, "account": account, "variant": variant, "plan": plan}
        answer = _answer_to({key: value for key, value in given.items() if value}, data, url, key)
        if answer["model"] is None:
            # Not a model, but the id of one of the catalog's prices.
            with suppress(NotFound, Failure):
                show_entry(name, account=None, data=data, as_json=as_json, url=url, key=key)
                return
        if as_json:
            print_json(answer)
        else:
            _print_answer(answer)
        if answer["model"] is None:
            raise typer.Exit(1)

    @group.command("preview")
    def preview(
        file: Annotated[
            str,
            typer.Argument(
                metavar="FILE", help="A file of prices, markups and models; - for standard input."
            ),
        ],
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
        account: Annotated[
            str | None,
            typer.Option("--account", metavar="ID", help="Only this account's events.", show_default=False),
        ] = None,
        data: options.Data = None,
        format: options.Format = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """
        Show what past usage would have cost under the prices of FILE. Changes nothing.

        The file's entries are put over those of the catalog by their ids. Costs that events state, and estimates, stay.
        """
        form = options.output_format(format, as_json)
        given = {"from": from_, "to": to, "account": account}
        params = {name: value for name, value in given.items() if value is not None}
        answer = _preview(read_text(file), params, data, url, key)
        if form == "json":
            print_json(answer)
        elif form == "csv":
            print_csv([field.name for field in msgspec.structs.fields(_row_type())], answer["rows"])
        else:
            _print_preview(answer)


def _row_type() -> type[msgspec.Struct]:
    from tollkeeper.api.price_answers import PreviewRowAnswer

    return PreviewRowAnswer


# -- asking -------------------------------------------------------------------------------------------


def _answer_to(params: dict[str, str], data: str | None, url: str | None, key: str | None) -> dict[str, Any]:
    server = server_of(data, url, key)
    if server is not None:
        answer: dict[str, Any] = server.call("GET", "/prices/show", query=list(params.items()))
        return answer
    with open_data(data) as toll:
        return toll.price(
            params["name"],
            account_id=params.get("account", ""),
            variant=params.get("variant", ""),
            plan=params.get("plan", ""),
        )


def _built_in_count() -> int:
    from tollkeeper.catalog.price_book import PriceBook
    from tollkeeper.catalog.shown_prices import built_in_prices
    from tollkeeper.domain.instants import to_us

    return sum(1 for _ in built_in_prices(PriceBook([]), at_us=to_us(SystemClock().now()), seller=""))


def _list_built_in(seller: str, form: str, *, url: str | None, key: str | None) -> None:
    listed: Iterable[dict[str, Any]]
    server = server_of(None, url, key) if url else None
    if server is not None:
        query = [("seller", seller)] if seller else []
        listed = server.call("GET", "/prices/built-in", query=query)["items"]
    else:
        # The list is part of the program: it needs no installation.
        from tollkeeper.catalog.price_book import PriceBook
        from tollkeeper.catalog.shown_prices import built_in_prices, price_json
        from tollkeeper.domain.instants import to_us

        now_us = to_us(SystemClock().now())
        listed = [price_json(shown) for shown in built_in_prices(PriceBook([]), at_us=now_us, seller=seller)]
    items = list(listed)
    if form == "json":
        print_json(items)
    elif form == "csv":
        print_csv(_CSV, [{**item, **item["rates"]} for item in items])
    elif not items:
        print(f"The built-in list has no prices of {plain(seller)}.")
    else:
        columns = [
            Column("model"),
            *(Column(n, numeric=True) for n in _LISTED_CLASSES.values()),
        ]
        rows = [
            [
                f"{item['seller']}/{item['model']}",
                *(_money_text(item["rates"].get(name)) for name in _LISTED_CLASSES),
            ]
            for item in items
        ]
        print_table(columns, rows)
        print(f"{len(items):,} models; per million tokens.")
        print("All rates: tollkeeper prices show SELLER/MODEL")


def _preview(
    text: str, params: dict[str, str], data: str | None, url: str | None, key: str | None
) -> dict[str, Any]:
    server = server_of(data, url, key)
    if server is not None:
        answer: dict[str, Any] = server.call(
            "POST",
            "/prices/preview",
            query=list(params.items()),
            body=text.encode(),
            media_type="application/toml",
        )
        return answer
    from tollkeeper.api.usage_params import parse_span

    span = parse_span({n: v for n, v in params.items() if n != "account"}, SystemClock().now())
    with open_data(data) as toll, progress("Pricing", None) as done:
        rows = toll.preview_prices(
            text,
            start=from_us(span[0]),
            end=from_us(span[1]),
            account_id=params.get("account"),
            progress=done,
        )
    shown: dict[str, Any] = msgspec.to_builtins(preview_answer(rows))
    return shown


# -- printing -----------------------------------------------------------------------------------------


def _print_answer(answer: dict[str, Any]) -> None:
    name = plain(answer["name"])
    if answer["model"] is None:
        stderr().print(f"{name} has no price: {plain(answer['why'])}.", soft_wrap=True)
        if answer["nearest"]:
            stderr().print("The nearest names: " + plain(", ".join(answer["nearest"])), soft_wrap=True)
        stderr().print("Set a price, or an alias: `tollkeeper models put NAME is=OTHER`.", soft_wrap=True)
        return
    facts = [
        ["name", answer["name"]],
        ["model", answer["model"]],
        ["seller", answer["seller"]],
        ["why", answer["why"]],
        ["version", answer["version"]],
    ]
    print_table([Column("field"), Column("value")], facts)
    stdout().print()
    tiers = answer["tiers"]
    names = [
        name
        for name in dict.fromkeys(name for tier in tiers for name in tier["rates"])
        if any(tier["rates"].get(name) != tier["rates"].get(_plain_class(name)) for tier in tiers)
        or name in _PLAIN_CLASSES
    ]
    headings = ["per million", *(f"over {tier['prompt_tokens_over']:,}" for tier in tiers[1:])]
    columns = [Column("rate"), *(Column(heading, numeric=True) for heading in headings)]
    rows = [[name, *(_money_text(tier["rates"].get(name)) for tier in tiers)] for name in names]
    if answer["request_nanos"] != "0":
        rows.append(["one request", _money_text(answer["request_nanos"]), *("" for _ in tiers[1:])])
    print_table(columns, rows)
    stdout().print("Other classes of tokens cost as prompt, cached prompt or completion tokens do.")


def _plain_class(name: str) -> str:
    """Return the class of the four that the tokens of *name* are part of; `""` for a unit."""
    if name == "citation_tokens" or name.endswith("completion_tokens"):
        return "completion_tokens"
    if name.endswith("cached_prompt_tokens"):
        return "cached_prompt_tokens"
    return "prompt_tokens" if name.endswith("prompt_tokens") or name.startswith("cache_write_") else ""


def _money_text(nanos: str | None) -> str:
    """Return decimal nanos as money; what is finer than a nano is kept."""
    if nanos is None:
        return ""
    whole, _, part = nanos.partition(".")
    return (
        money(int(whole))
        if not part
        else f"{money(int(whole)).partition('.')[0]}.{int(whole) % 10**9:09d}{part}"
    )


def _print_preview(answer: dict[str, Any]) -> None:
    if not answer["rows"]:
        print("There is no usage in this span.")
        return
    columns = [
        Column("account, model"),
        Column("events", numeric=True),
        Column("booked, new", numeric=True),
        Column("difference", numeric=True),
    ]
    totals = answer["totals"]
    print_table(
        columns,
        [[Lines((row["account"], row["model"])), *_cells(row)] for row in answer["rows"]],
        totals=["total", *_cells(totals)],
    )
    if totals["unpriced"] or totals["new_unpriced"]:
        stdout().print(
            f"Events without a price: {totals['unpriced']:,} as booked, {totals['new_unpriced']:,} under the file."
        )
    stdout().print("Nothing was changed.")


def _cells(row: dict[str, Any]) -> list[Any]:
    difference = int(row["difference_nanos"])
    sign = "+" if difference > 0 else ""
    return [
        row["events"],
        Lines((money(row["cost_nanos"]), money(row["new_cost_nanos"]))),
        sign + money(difference),
    ]
