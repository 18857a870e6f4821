"""All commands together. An error of ours is one line on stderr, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from tollkeeper.cli.adjust import ALLOWS_NEGATIVE_AMOUNT, adjust
from tollkeeper.cli.apply import apply
from tollkeeper.cli.audit import audit
from tollkeeper.cli.backups import backup, restore
from tollkeeper.cli.check import rebuild, verify
from tollkeeper.cli.demo import demo
from tollkeeper.cli.entries import ENTRY_GROUPS
from tollkeeper.cli.events import events
from tollkeeper.cli.ingest import ingest
from tollkeeper.cli.profiles import group as profiles
from tollkeeper.cli.prove import prove
from tollkeeper.cli.serve import serve
from tollkeeper.cli.usage import usage
from tollkeeper.console.failures import FAILED, MISUSED, Failure
from tollkeeper.console.output import plain
from tollkeeper.errors import TollkeeperError
from tollkeeper.version import __version__

INTERRUPTED: Final = 130
"""As shells count it: 128 and the number of SIGINT."""
_MANAGE: Final = "What is set up"
_COMMAND_LINE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[2]
"""Base of the mistakes that the library finds. By its place, since the library does not export its name."""

app = typer.Typer(
    name="tollkeeper",
    help="API keys, budgets, rate limits and the usage endpoint your customers expect.",
    epilog="Start with `tollkeeper demo`, or with `tollkeeper serve`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # It prints local variables, among them secrets.
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (serve, demo, apply, ingest, usage, events):
    app.command()(_command)
app.command(context_settings=ALLOWS_NEGATIVE_AMOUNT)(adjust)
for _check in (audit, verify, rebuild, backup, restore, prove):
    app.command()(_check)
app.add_typer(profiles)
for _group in ENTRY_GROUPS:
    app.add_typer(_group, rich_help_panel=_MANAGE)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tollkeeper {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """API keys, budgets, rate limits and the usage endpoint your customers expect."""


def run(arguments: Sequence[str]) -> int:
    """
    Run one command and return its exit code: 0 done, 1 failed, 2 a wrong command line, 130 interrupted.

    Raises:
        Exception: A fault of ours, with its traceback; whatever is wrong outside becomes a line on stderr.
    """
    command = typer.main.get_command(app)
    try:
        result: Any = command.main(list(arguments), prog_name="tollkeeper", standalone_mode=False)
        sys.stdout.flush()
    except Failure as exc:
        return _fail(str(exc), exc.exit_code)
    except TollkeeperError as exc:
        return _fail(str(exc), FAILED)
    except _COMMAND_LINE_ERROR as exc:
        return _misused(exc)
    except BrokenPipeError:
        # Who read the answer has seen enough: `tollkeeper usage | head`. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _misused(exc: Any) -> int:
    message = exc.format_message().replace("Value error, ", "")
    context = getattr(exc, "ctx", None)
    if not message:  # No subcommand: the help was printed.
        return MISUSED
    hint = f" See `{context.command_path} --help`." if context is not None else ""
    return _fail(f"{message.rstrip('.')}.{hint}", MISUSED)


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {plain(message)}", file=sys.stderr)
    return exit_code
