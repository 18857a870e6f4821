"""Writes docs/cli.md from the commands' own help: `python -m tests.docs.cli_help`. A test compares."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Final

import pytest

from tollkeeper.cli.app import run

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
COMMANDS: Final = (
    "serve",
    "demo",
    "apply",
    "ingest",
    "usage",
    "events",
    "adjust",
    "verify",
    "rebuild",
    "backup",
    "restore",
    "prove",
    "accounts",
    "keys",
    "keys issue",
    "keys rotate",
    "keys state",
    "budgets left",
    "budgets top-up",
    "grants",
    "grants revoke",
    "plans",
    "prices show",
    "prices list",
    "prices preview",
    "profiles",
    "profiles show",
)

HEAD: Final = """# The command line

Made from `--help` by `python -m tests.docs.cli_help`; a test compares the two. `projects`, `subscriptions`,
`budgets`, `routes`, `models`, `prices`, `markups` and `webhooks` have the same commands as `accounts`.

Exit codes: 0 done; 1 failed, or `verify` or `prove` found something; 2 a wrong command line; 130 interrupted.
Answers go to standard output, errors (`error: …`) and progress to standard error. `--json` and
`--format json|csv` are for programs. Tables fit the terminal: a wide one is cut into blocks of columns, or printed
value by value; a number is never cut. [Files of logs and CSV](logs.md) has the formats that `ingest` reads.
"""


def help_of(command: str) -> str:
    """Return the help text of a command, 100 columns wide, without colours."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for name, value in {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}.items():
            patch.setenv(name, value)
        with suppress(SystemExit):
            run([*command.split(), "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def page() -> str:
    """Return what docs/cli.md should be."""
    sections = [f"\n## {name}\n\n```\n{help_of(name)}\n```\n" for name in COMMANDS]
    return HEAD + "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page())
