"""`tollkeeper apply`: set up what a declarative file says."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tollkeeper.api.entry_json import applied_json
from tollkeeper.console import options
from tollkeeper.console.failures import Failure
from tollkeeper.console.output import money_heading, plain, print_json, warn
from tollkeeper.console.target import open_data, server_of

DeclarationFile = Annotated[
    str, typer.Argument(metavar="FILE", help="The declarative file (TOML); - for standard input.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]


def apply(
    file: DeclarationFile,
    data: options.Data = None,
    dry_run: DryRun = False,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Set up what a declarative file says, all or nothing. A repeat changes nothing.

    Keys that the file names without sha256 are issued; their secrets are shown this once.
    """
    apply_text(read_text(file), data=data, dry_run=dry_run, as_json=as_json, url=url, key=key)


def apply_text(
    text: str, *, data: str | None, dry_run: bool, as_json: bool, url: str | None, key: str | None
) -> None:
    """Apply the declaration *text* where *data* or *url* say, and print what it changed."""
    server = server_of(data, url, key)
    if server is not None:
        query = [("dry_run", "true")] if dry_run else []
        answer = server.call("POST", "/apply", query=query, body=text.encode(), media_type="application/toml")
    else:
        answer = _apply_here(text, data, dry_run=dry_run)
    if as_json:
        print_json(answer)
    else:
        _print(answer)


def read_text(file: str) -> str:
    """Return the text of *file*, `-` for standard input. Raises `Failure` when it cannot be read."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as exc:
        raise Failure(f"{file} cannot be read: {exc.strerror}.") from None
    except UnicodeDecodeError as exc:
        raise Failure(f"{file} is not UTF-8 text (byte {exc.start}): is it a TOML file?") from None


def print_secrets(issued: Sequence[Mapping[str, Any]]) -> None:
    """Show people the secrets of new keys and webhooks, each `{"entry": …, "secret": …}`."""
    made = [key for key in issued if key["secret"] is not None]
    for key in made:
        kind = "webhook" if "url" in key["entry"] else "key"
        entry = key["entry"]
        print(f"  {kind} {plain(entry['id'])} of account {plain(entry['account'])}:  {key['secret']}")
    if made:
        secrets = "This secret is" if len(made) == 1 else "These secrets are"
        print(f"{secrets} shown now and never again: keep what you need.")


def _apply_here(text: str, data: str | None, *, dry_run: bool) -> dict[str, Any]:
    """Apply to a data directory; the answer is as the API's."""
    from tollkeeper.catalog.declaration import apply_declaration, parse_declaration

    # Before anything is made: a wrong file leaves no new data directory behind.
    entries = parse_declaration(text)
    with open_data(data, create=True) as toll:
        return applied_json(
            apply_declaration(entries, toll.manage, dry_run=dry_run),
            entries,
            dry_run=dry_run,
            manage=toll.manage,
            webhooks=toll.installation.webhooks,
            now_us=toll.installation.clock.now_us(),
        )


def _money_of(change: Mapping[str, Any]) -> str:
    """Return the money of a new entry as it was understood, e.g. ` (amount 25.00)`."""
    if change["action"] != "created" or not change.get("money"):
        return ""
    return f" ({', '.join(f'{money_heading(path)} {amount}' for path, amount in change['money'].items())})"


def _print(answer: dict[str, Any]) -> None:
    from tollkeeper.catalog.declaration import change_line

    counts = dict.fromkeys(("created", "changed", "unchanged"), 0)
    for change in answer["changes"]:
        counts[change["action"]] += 1
        note = change.get("note", "")
        if change["action"] != "unchanged" or note:
            line = change_line(
                change["action"],
                change["kind"],
                change["id"],
                change["fields"],
                note,
                change.get("money", ()),
            )
            print(plain(line + _money_of(change)))
            for warning in change.get("warnings", ()):
                warn(f"{change['kind']} {change['id']}: {warning}")
    summary = ", ".join(f"{count} {action}" for action, count in counts.items())
    print(f"{summary}{' (dry run: nothing was changed)' if answer['dry_run'] else ''}")
    if answer["issued"]:
        print()
        print_secrets(answer["issued"])
