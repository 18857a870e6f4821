"""
`tollkeeper accounts|projects|plans|…`: a group of commands per kind of entry, all made by one function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, get_args

import msgspec
import typer

from tollkeeper.cli.adjust import ALLOWS_NEGATIVE_AMOUNT
from tollkeeper.cli.apply import DryRun, apply_text, print_secrets, read_text
from tollkeeper.cli.catalog import Json, catalog_of
from tollkeeper.cli.left import add_left_command, add_state_command
from tollkeeper.cli.prices import add_price_commands
from tollkeeper.console import options
from tollkeeper.console.failures import misused
from tollkeeper.console.output import (
    Column,
    Lines,
    money,
    money_heading,
    plain,
    print_csv,
    print_json,
    print_table,
    shown,
    stdout,
    warn,
)
from tollkeeper.domain import periods
from tollkeeper.domain.catalog import KINDS
from tollkeeper.domain.matching import OWNERS, Match, conditions_of, described
from tollkeeper.domain.money import parse_nanos
from tollkeeper.errors import BadParameter

_SUMMARIES: Final = {
    "accounts": "Who pays: owns a balance, projects and keys.",
    "projects": "Parts of an account, with their own keys and statistics.",
    "plans": "What is offered: rate limits, budgets, layers, price.",
    "subscriptions": "Ties of accounts to plans.",
    "keys": "Credentials: issue, rotate, revoke.",
    "budgets": "The most that an account, project or key spends per period.",
    "grants": "Credit given to accounts, or bought by them.",
    "routes": "How requests to a method and path are metered.",
    "models": "Other names of models: which price a deployment has.",
    "prices": "What models cost, from when on.",
    "markups": "What accounts pay beyond the price of models.",
    "webhooks": "Where to tell that a budget crossed a threshold.",
}
_ORDER: Final = tuple(_SUMMARIES)
_ALWAYS_COLUMNS: Final = frozenset({"id", "slug", "account", "state"})

AccountOption = Annotated[
    str | None,
    typer.Option("--account", metavar="ID", help="The account that it belongs to.", show_default=False),
]
EntryId = Annotated[str, typer.Argument(metavar="ID", help="The entry's id.")]
Fields = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FIELD=VALUE]...",
        help="As in the declarative file; lists and tables as JSON.",
        show_default=False,
    ),
]


def _group(kind: str) -> typer.Typer:
    """Return the commands of one kind: list, show, put, delete."""
    group = typer.Typer(name=kind, help=_SUMMARIES[kind], no_args_is_help=True)
    fields = {field.name for field in msgspec.structs.fields(KINDS[kind])}
    # Accounts, plans and routes have no owner; the option is there, so that the error can say so.
    account_option: Any = typer.Option(
        None,
        "--account",
        metavar="ID",
        help="The account that it belongs to.",
        hidden="account" not in fields,
        show_default=False,
    )

    @group.command("list", help=f"List the {kind}.")
    def list_entries(
        account: str | None = account_option,
        data: options.Data = None,
        format: options.Format = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        form = options.output_format(format, as_json)
        _check_account(kind, account, fields)
        with catalog_of(data, url, key) as catalog:
            entries = list(catalog.list(kind, account))
        if form == "json":
            print_json(entries)
        elif form == "csv":
            columns = list(dict.fromkeys(name for entry in entries for name in entry)) or sorted(fields)
            print_csv(columns, entries)
        elif entries:
            print_entries(kind, entries)
        else:
            print(
                f"There are no {kind} of your own yet." if kind == "prices" else f"There are no {kind} yet."
            )

    @group.command("show", help=f"Show one of the {kind}.")
    def show_entry(
        entry_id: EntryId,
        account: str | None = account_option,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        _check_account(kind, account, fields)
        with catalog_of(data, url, key) as catalog:
            entry = catalog.get(kind, entry_id, account)
        if as_json:
            print_json(entry)
        else:
            _print_entry(entry)

    @group.command(
        "put",
        help=f"Create or replace one of the {kind}. A field that is left out gets its default; "
        "a repeat changes nothing.",
    )
    def put_entry(
        entry_id: EntryId,
        values: Fields = None,
        account: str | None = account_option,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        _check_account(kind, account, fields)
        raw = _fields(kind, values, account)
        with catalog_of(data, url, key, create=True) as catalog:
            _print_change(catalog.put(kind, entry_id, raw), as_json=as_json)

    @group.command("delete", help=f"Delete one of the {kind}, unless another entry names it.")
    def delete_entry(
        entry_id: EntryId,
        account: str | None = account_option,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        _check_account(kind, account, fields)
        with catalog_of(data, url, key) as catalog:
            _print_change({"change": catalog.delete(kind, entry_id, account)}, as_json=as_json)

    return group


def _check_account(kind: str, account: str | None, fields: set[str]) -> None:
    if account is not None and "account" not in fields:
        raise misused(f"The {kind} belong to no account: leave --account out.")


# -- what only keys, grants and plans have ------------------------------------------------------------


def _add_key_commands(group: typer.Typer) -> None:
    @group.command("issue")
    def issue(
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[ID] [FIELD=VALUE]...",
                help="The key's id, a UUID if left out; then fields as in the declarative file, lists and tables as "
                "JSON.",
                show_default=False,
            ),
        ] = None,
        account: AccountOption = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Make a new key; its secret is shown this once."""
        words = words or []
        # An id has no `=`.
        named = {"id": words[0]} if words and "=" not in words[0] else {}
        raw = {**named, **_fields("keys", words[len(named) :], account)}
        with catalog_of(data, url, key) as catalog:
            _print_issued(catalog.issue(raw), as_json=as_json)

    @group.command("rotate")
    def rotate(
        entry_id: EntryId,
        overlap: Annotated[
            str,
            typer.Option("--overlap", metavar="DURATION", help="How long the old one still works, e.g. 1h."),
        ] = "0s",
        new_id: Annotated[
            str | None,
            typer.Option(
                "--id",
                metavar="ID",
                help="The new key's id; ID-2, then ID-3, … unless given.",
                show_default=False,
            ),
        ] = None,
        account: AccountOption = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Make a key like ID with a new secret and the next id, and end ID after the overlap."""
        overlap_s = _overlap_s(overlap)
        with catalog_of(data, url, key) as catalog:
            issued = catalog.rotate(entry_id, account, overlap_s, new_id)
        _print_issued(issued, as_json=as_json)
        if not as_json:
            ends = f"goes on working for {overlap}" if overlap_s else "has stopped working"
            print(f"The old key {plain(entry_id)} {ends}.")

    for command, state, effect in (
        ("revoke", "revoked", "End a key for good, at once."),
        ("deactivate", "inactive", "Refuse a key until it is activated again."),
        ("activate", "active", "Take a key that was deactivated into use again."),
    ):
        _add_state_command(group, command, state, effect)


def _add_state_command(group: typer.Typer, command: str, state: str, effect: str) -> None:
    @group.command(command, help=effect)
    def set_state(
        entry_id: EntryId,
        account: AccountOption = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        with catalog_of(data, url, key) as catalog:
            _print_change({"change": catalog.set_state(entry_id, account, state)}, as_json=as_json)


def _overlap_s(text: str) -> int:
    if text in ("0", "0s"):
        return 0
    try:
        return periods.duration_s(text)
    except ValueError as exc:
        raise misused(f"--overlap: {exc}") from None


def _add_grant_commands(group: typer.Typer) -> None:
    @group.command("post")
    def post(
        entry_id: EntryId,
        values: Fields = None,
        amount: Annotated[
            str | None,
            typer.Option(
                "--amount",
                metavar="UNITS",
                help="Decimal, e.g. 12.50; instead of amount_nanos.",
                show_default=False,
            ),
        ] = None,
        account: AccountOption = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Give an account credit, once: the same grant again changes nothing."""
        raw = _fields("grants", values, account)
        if amount is not None:
            if "amount_nanos" in raw:
                raise misused("--amount and amount_nanos both state the amount: drop one.")
            if "amount" in raw:
                raise misused("--amount and amount both state the amount: drop one.")
            try:
                raw["amount_nanos"] = parse_nanos(amount)
            except ValueError as exc:
                raise misused(f"--amount: {exc}") from None
        with catalog_of(data, url, key) as catalog:
            _print_change(catalog.put("grants", entry_id, raw), as_json=as_json)

    @group.command("revoke")
    def revoke(
        entry_id: EntryId,
        account: AccountOption = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Take a grant back: what is left of it goes, and what was spent of it is owed."""
        with catalog_of(data, url, key) as catalog:
            _print_change({"change": catalog.revoke_grant(entry_id, account)}, as_json=as_json)


def _add_budget_commands(group: typer.Typer) -> None:
    @group.command("top-up", context_settings=ALLOWS_NEGATIVE_AMOUNT)
    def top_up(
        budget: Annotated[
            str, typer.Argument(metavar="BUDGET", help="The budget's id, or its name in a plan.")
        ],
        amount: Annotated[
            str,
            typer.Argument(metavar="AMOUNT", help="In the budget's unit: money as 5.00, others as 100."),
        ],
        account: Annotated[
            str, typer.Option("--account", metavar="ID", help="The account whose budget it is.")
        ],
        top_up_id: Annotated[
            str, typer.Option("--id", metavar="ID", help="Names this top-up: the same id again adds nothing.")
        ],
        until_used: Annotated[
            bool, typer.Option("--until-used", help="What is not used goes on in the next period.")
        ] = False,
        plan: Annotated[
            str | None, typer.Option("--plan", metavar="SLUG", help="The plan whose budget it is.")
        ] = None,
        subscription: Annotated[
            str | None, typer.Option("--subscription", metavar="ID", help="Whose budget of the plan.")
        ] = None,
        api_key: Annotated[
            str | None, typer.Option("--api-key", metavar="ID", help="Whose budget of the plan.")
        ] = None,
        project: Annotated[
            str | None, typer.Option("--project", metavar="ID", help="Whose budget of the plan.")
        ] = None,
        value: Annotated[
            list[str] | None,
            typer.Option(
                "--value",
                metavar="TEXT",
                help="Which value, where it counts some apart: tag.user=u1.",
            ),
        ] = None,
        data: options.Data = None,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Add to a budget once: to its running period, or until it is used."""
        values = {}
        for stated in value or []:
            name, equals, text = stated.partition("=")
            if not equals:
                raise typer.BadParameter(
                    f"{stated!r} must be NAME=VALUE, e.g. tag.user=u1", param_hint="--value"
                )
            if name in values:
                raise typer.BadParameter(f"{name} is there twice: state one value", param_hint="--value")
            values[name] = text
        named = {"plan": plan, "subscription": subscription, "key": api_key, "project": project}
        fields = {
            "id": top_up_id,
            "amount": amount,
            "until_used": until_used,
            **{name: text for name, text in named.items() if text is not None},
            **({"values": values} if values else {}),
        }
        with catalog_of(data, url, key) as catalog:
            posted = catalog.top_up(budget, account, fields)
        if as_json:
            print_json(posted)
            return
        unit = "" if posted["unit"] == "nanos" else f" {posted['unit']}"
        done = "was added before" if posted["repeated"] else "added"
        until = ", until it is used" if posted["until_used"] else ""
        print(plain(f"{posted['amount']}{unit} {done} to budget {posted['budget']}{until}."))
        if posted["allowed"] is not None:
            print(plain(f"Its period allows {posted['allowed']}{unit} now."))


def _add_plan_commands(group: typer.Typer) -> None:
    @group.command("apply")
    def apply_plans(
        file: Annotated[
            str, typer.Argument(metavar="FILE", help="The declarative file; - for standard input.")
        ],
        data: options.Data = None,
        dry_run: DryRun = False,
        as_json: options.AsJson = False,
        url: options.Url = None,
        key: options.ServerKey = None,
    ) -> None:
        """Set up the plans of a declarative file, which may hold nothing else. See `tollkeeper apply`."""
        from tollkeeper.catalog.declaration import parse_declaration

        text = read_text(file)
        others = sorted({entry.kind for entry in parse_declaration(text)} - {"plans"})
        if others:
            raise BadParameter(
                f"{file} has {', '.join(others)} beside plans: use `tollkeeper apply {file}`.",
                field=others[0],
            )
        apply_text(text, data=data, dry_run=dry_run, as_json=as_json, url=url, key=key)


def _add_price_commands(group: typer.Typer) -> None:
    of_entries = {command.name: command.callback for command in group.registered_commands}
    list_entries, show_entry = of_entries["list"], of_entries["show"]
    assert list_entries is not None
    assert show_entry is not None
    add_price_commands(group, list_entries, show_entry)


# -- values -------------------------------------------------------------------------------------------


def _fields(kind: str, values: Sequence[str] | None, account: str | None) -> dict[str, Any]:
    """Return the fields that `field=value` arguments state."""
    types = {field.name: field.type for field in msgspec.structs.fields(KINDS[kind])}
    raw: dict[str, Any] = {}
    for text in values or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise misused(f"{text} is no field: write FIELD=VALUE, e.g. name=Acme.")
        if name in raw:
            raise misused(f"{name} is given twice: give it once.")
        raw[name] = _value(value, types.get(name))
    if account is not None and raw.setdefault("account", account) != account:
        raise misused("--account and account= name two accounts: drop one.")
    return raw


def _value(text: str, field_type: Any) -> Any:
    """
    Return what *text* means: JSON where it is some, else itself.

    A number with a decimal point stays the text that it is, as money is exact; a text field takes 42 as text too.
    """
    try:
        value = json.loads(text, parse_float=str)
    except ValueError:
        return text
    is_number = isinstance(value, int) or (isinstance(value, str) and not text.lstrip().startswith('"'))
    return text if is_number and _is_text(field_type) else value


def _is_text(field_type: Any) -> bool:
    found = [part for part in (get_args(field_type) or (field_type,)) if part is not type(None)]
    return any(part is str or str in get_args(part) for part in found)


# -- what is printed ----------------------------------------------------------------------------------


def print_entries(kind: str, entries: Sequence[Json]) -> None:
    """Print entries for people: the columns that have a value in at least one of them."""
    defaults = {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(KINDS[kind])
        if field.default is not msgspec.NODEFAULT
    }
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    shown = [
        name
        for name in names
        if name in _ALWAYS_COLUMNS
        or (
            name != "updated_at"
            and any(not _is_default(entry.get(name), defaults.get(name)) for entry in entries)
        )
    ]
    columns = [Column(money_heading(name), numeric=_is_money(name) or name == "amount") for name in shown]
    print_table(columns, [[_cell(entry, name) for name in shown] for entry in entries])


def _is_default(value: Any, default: Any) -> bool:
    return value in (None, [], {}, "", default) or (isinstance(value, str) and value == str(default))


def _print_entry(entry: Json) -> None:
    print_table(
        [Column("field"), Column("value")], [[money_heading(name), _cell(entry, name)] for name in entry]
    )


def _print_issued(issued: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(issued)
        return
    print_secrets([issued])
    if issued["secret"] is None:
        print(f"Imported key {plain(issued['entry']['id'])}; its secret is as it was.")


def _print_change(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    change = answer["change"]
    print(plain(f"{change['kind']} {change['id']}: {change['action']}"))
    for warning in change.get("warnings", ()):
        warn(warning)
    if change["action"] == "created":
        for path, amount in change.get("money", {}).items():
            print(plain(f"  {money_heading(path)}: {amount}"))
    if "secret" in answer:
        print_secrets([answer])
    for name, (old, new) in change["fields"].items():
        unit = answer.get("entry", {}).get("unit")
        stdout().print(f"  {money_heading(name)}: {_changed(name, old, unit)} → {_changed(name, new, unit)}")


def _changed(name: str, value: Any, unit: str | None) -> str:
    return shown(_cell({name: value, "unit": unit}, name)) or "none"


def _is_money(name: str) -> bool:
    return name.endswith(("_nanos", "_nanos_per_million"))


def _amount(name: str, value: Any) -> Any:
    return money(value) if _is_money(name) and value is not None else value


def _cell(entry: Mapping[str, Any], name: str) -> Any:
    value = entry[name]
    if name in ("amount", "burst") and entry.get("unit") == "nanos" and value is not None:
        return money(value)
    if name in ("limits", "budgets") and value:
        return Lines(_bound(part) for part in value)
    if isinstance(value, str) and name.endswith("_at"):
        return value[:19].replace("T", " ") + "Z"
    return _amount(name, value)


def _bound(part: Mapping[str, Any]) -> str:
    """Return one rate limit or budget of a plan in a line, e.g. `rpm: 600 requests per 1m, sliding`."""
    unit = part["unit"]
    amount = "no bound" if part["amount"] is None else shown(_cell(part, "amount"))
    if unit != "nanos":
        amount = f"{amount} {unit}"
    counted = _counted(part)
    if "period" in part:
        return f"{part['name']}: {amount} per {part['period']}{counted}"
    if part["algorithm"] == "concurrency":
        return f"{part['name']}: {amount} at once{counted}"
    kind = "" if part["algorithm"] == "fixed" else f", {part['algorithm']}"
    return f"{part['name']}: {amount} per {part['window']}{kind}{counted}"


def _counted(part: Mapping[str, Any]) -> str:
    """Return which requests a limit or budget counts, and for what each: `, each key and tag.user: model gpt-4o*`."""
    per = part["per"] if isinstance(part["per"], list) else [part["per"]]
    each = f", each {' and '.join(per)}" if len(per) > 1 or per[0] not in OWNERS else ""
    match = part.get("match")
    words = described(conditions_of(msgspec.convert(match, Match))) if match else ""
    return f"{each}: {words}" if words else each


def _groups() -> list[typer.Typer]:
    groups = {kind: _group(kind) for kind in _ORDER}
    _add_key_commands(groups["keys"])
    _add_grant_commands(groups["grants"])
    _add_plan_commands(groups["plans"])
    _add_price_commands(groups["prices"])
    _add_budget_commands(groups["budgets"])
    add_state_command(groups["keys"])
    add_left_command(groups["budgets"])
    return list(groups.values())


ENTRY_GROUPS: Final = _groups()
"""The groups, in the order of the help."""
