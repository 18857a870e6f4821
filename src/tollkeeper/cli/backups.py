"""`tollkeeper backup` and `tollkeeper restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from tollkeeper.console import options
from tollkeeper.console.failures import FAILED
from tollkeeper.console.output import Column, plain, print_json, print_table, progress
from tollkeeper.console.target import open_data, server_of
from tollkeeper.console.verify_table import print_verdict, with_store_differences
from tollkeeper.domain.money import format_nanos
from tollkeeper.settings import load

if TYPE_CHECKING:
    from tollkeeper.restoring import Restored


def backup(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A directory that is new, empty, or an earlier backup of this installation, which is then brought up "
            "to date. With --url: a name, or a path directly below the server's backup_dir.",
            show_default=False,
        ),
    ],
    data: options.Data = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Write a backup of ledger and usage store as of one instant. Requests go on meanwhile.

    While a server has the data directory, the server writes it: name it with --url and --key.
    """
    server = server_of(data, url, key)
    if server is not None:
        body = {"target": str(Path(target).absolute()) if "/" in target else target}
        answer = server.call("POST", "/backup", body=msgspec.json.encode(body))
    else:
        from tollkeeper.api.backup_answer import backup_answer

        with open_data(data) as toll, progress("backing up", None):
            answer = msgspec.to_builtins(backup_answer(toll.backup(target)))
    if as_json:
        print_json(answer)
        return
    print(
        f"Backup {plain(answer['path'])} is complete: {answer['bytes']:,} bytes, {answer['written_bytes']:,} of "
        f"them new. It has everything that was acknowledged before {answer['started_at']}."
    )
    print_table(
        [Column("figure"), Column("in the backup", numeric=True)],
        [[_LABELS[name], _shown(name, value)] for name, value in answer["totals"].items()],
        title="Totals",
    )


def restore(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="The directory of the backup.", show_default=False),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Data directory to restore into: empty, or not there.",
            show_default=False,
        ),
    ],
    ledger_url: Annotated[
        str | None,
        typer.Option(
            "--ledger-url",
            metavar="URL",
            help="Empty database for the ledger, e.g. postgresql://…; SQLite in DIR unless given. "
            "[$TOLLKEEPER_LEDGER_URL]",
            show_default=False,
        ),
    ] = None,
    usage_url: Annotated[
        str | None,
        typer.Option(
            "--usage-url",
            metavar="URL",
            help="Empty database for the usage store, e.g. clickhouse://…; chDB in DIR unless given. "
            "[$TOLLKEEPER_USAGE_URL]",
            show_default=False,
        ),
    ] = None,
    keep_usage: Annotated[
        bool,
        typer.Option(
            "--keep-usage",
            help="Restore the ledger only, and go on with the usage store at --usage-url, which survived.",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """
    Restore a backup into an empty directory and empty databases, and verify it. Nothing is overwritten.

    Exit code 1 if verify finds a difference. Broken off, the same command again does it from the beginning.
    """
    from tollkeeper.restoring import restore as restore_backup

    settings = load({"data_dir": data, "ledger_url": ledger_url, "usage_url": usage_url})
    steps: list[str] = []
    restored = restore_backup(
        source,
        settings,
        keep_usage=keep_usage,
        progress=lambda step: _say(step, steps, quiet=as_json),
    )
    from tollkeeper.api.verify_answer import verify_answer

    verdict = with_store_differences(msgspec.to_builtins(verify_answer(restored.verdict)))
    if as_json:
        print_json(_as_json(restored, settings.data_dir, verdict))
    else:
        _print(restored, settings.data_dir, verdict, keep_usage=keep_usage)
    if not verdict["ok"]:
        raise typer.Exit(FAILED)


_LABELS = {
    "accounts": "accounts",
    "keys": "api keys",
    "holds": "holds",
    "counters": "counters",
    "charged": "sum of all counters",
    "pending_events": "events in the outbox",
    "events": "events in the usage store",
    "cost_nanos": "cost of these events",
    "cost": "cost of these events",
}


def _say(step: str, steps: list[str], *, quiet: bool) -> None:
    steps.append(step)
    if not quiet:
        print(f"{step} …", flush=True)


def _shown(name: str, value: int | str) -> str:
    if name == "cost_nanos":
        return format_nanos(int(value))
    return f"{value:,}" if isinstance(value, int) else value


def _as_json(restored: Restored, data_dir: str, verdict: dict[str, Any]) -> dict[str, Any]:
    return {
        "data_dir": data_dir,
        "installation_id": restored.installation_id,
        "backup_of": restored.manifest.installation_id,
        "totals": {
            "backup": msgspec.to_builtins(restored.manifest.totals),
            "restored": msgspec.to_builtins(restored.totals),
        },
        "events_after": restored.events_after,
        "verify": verdict,
    }


def _print(restored: Restored, data_dir: str, verdict: dict[str, Any], *, keep_usage: bool) -> None:
    before, after = (msgspec.to_builtins(totals) for totals in (restored.manifest.totals, restored.totals))
    print_table(
        [Column("figure"), Column("in the backup", numeric=True), Column("restored", numeric=True)],
        [
            [_LABELS[name], _shown(name, value), _shown(name, after[name])]
            for name, value in before.items()
            if not keep_usage or name not in ("events", "cost_nanos")
        ],
        title="Totals",
    )
    print(
        f"The outbox was delivered: the usage store has {restored.events_after:,} events now.\n"
        f"Restored into {plain(data_dir)} as installation {restored.installation_id}, "
        f"from a backup of {restored.manifest.installation_id}."
    )
    print_verdict(verdict)
