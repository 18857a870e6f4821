"""`tollkeeper keys state` and `tollkeeper budgets left`: what is left of limits, budgets and credit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from tollkeeper.cli.catalog import Json, catalog_of
from tollkeeper.console import options
from tollkeeper.console.failures import Failure, misused
from tollkeeper.console.output import Column, money, plain, print_json, print_table, shown

_HEADINGS: Final = (
    Column("name"),
    Column("counts"),
    Column("unit"),
    Column("allowed", True),
    Column("used, held", True),
    Column("left", True),
    Column("resets at"),
)

Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="Of limits and budgets per model: of this one.", show_default=False
    ),
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="NAME=VALUE", help="Of those per tag: of this value; repeat for more."),
]


def add_state_command(group: typer.Typer) -> None:
    """Give the group of keys `state`."""

    @group.command("state")
    def state(
        key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
        account: Annotated[
            str | None,
            typer.Option(
                "--account", metavar="ID", help="The account that it belongs to.", show_default=False
            ),
        ] = None,
        model: Model = None,
        tags: Tags = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Show what a key has left of each limit, each budget, and its account's credit."""
        with catalog_of(data, url, key) as catalog:
            status = catalog.key_status(key_id, account, _params(model, tags))
        if as_json:
            print_json(status)
            return
        plan = f", plan {status['plan']}" if status["plan"] else ""
        print(plain(f"Key {status['key_id']} of account {status['account']} is {status['state']}{plan}."))
        bounds = [*status["limits"], *_budgets_of(status)]
        if bounds:
            print_table(_HEADINGS, [_row(bound) for bound in bounds])
        elif status["state"] != "active":
            print("It makes no requests: nothing is counted for it.")
        else:
            print("No limit or budget bounds it.")


def add_left_command(group: typer.Typer) -> None:
    """Give the group of budgets `left`."""

    @group.command("left")
    def left(
        account: Annotated[str, typer.Option("--account", metavar="ID", help="The account.")],
        model: Model = None,
        tags: Tags = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Show what is left of the budgets of an account, its own and its plans', and of its credit."""
        params = _params(model, tags)
        with catalog_of(data, url, key) as catalog:
            catalog.get("accounts", account, None)
            keys = [entry for entry in catalog.list("keys", account) if _counts(entry)]
            statuses = [catalog.key_status(entry["id"], account, params) for entry in keys]
        found = [(status["key_id"], bound) for status in statuses for bound in _budgets_of(status)]
        if as_json:
            print_json([{"key": key_id, **bound} for key_id, bound in found])
        elif found:
            print_table(
                (Column("key"), *_HEADINGS),
                [[key_id, *_row(bound)] for key_id, bound in found],
                title=f"What each key of account {account} can still spend; keys may share a budget",
            )
        elif keys:
            print(plain(f"No budget bounds the keys of account {account}."))
        else:
            raise Failure(f"Account {account} has no active key: nothing counts for its budgets.")


def _counts(entry: Mapping[str, Any]) -> bool:
    return bool(entry["role"] == "consumption" and entry["state"] == "active")


def _budgets_of(status: Json) -> list[Json]:
    return [*status["budgets"], *([status["credit"]] if status["credit"] else [])]


def _row(bound: Mapping[str, Any]) -> list[Any]:
    is_money = bound["unit"] == "nanos"
    per = f"each {' and '.join(bound['per'])}" if bound.get("per") else ""
    counted = ", ".join(part for part in (bound.get("match") or "", per) if part) or "all"
    resets_at = bound["resets_at"]
    return [
        bound["name"],
        counted,
        "money" if is_money else bound["unit"],
        *(_amount(bound[name], is_money=is_money) for name in ("allowed", "used", "remaining")),
        "" if resets_at is None else resets_at[:19].replace("T", " ") + "Z",
    ]


def _amount(value: int | str | None, *, is_money: bool) -> str:
    return money(value) if is_money else shown(value)


def _params(model: str | None, tags: Sequence[str] | None) -> dict[str, str]:
    params = {} if model is None else {"model": model}
    for text in tags or ():
        name, equals, value = text.partition("=")
        if not equals or not name or f"tag.{name}" in params:
            raise misused(f"--tag {text}: write NAME=VALUE, each name once, e.g. --tag user=u1.")
        params[f"tag.{name}"] = value
    return params
