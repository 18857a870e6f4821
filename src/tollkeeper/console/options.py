"""The options that several commands share, under the same names everywhere."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

OutputFormat = Literal["table", "json", "csv"]

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Data directory of the installation (else $TOLLKEEPER_DATA_DIR, else ./data).",
        show_default=False,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Ask a running server instead, e.g. http://127.0.0.1:8080 (else $TOLLKEEPER_URL).",
        show_default=False,
    ),
]
ServerKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="Operator or management key for --url (else $TOLLKEEPER_KEY, which `ps` does not show).",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs. Same as --format json.")]
Format = Annotated[
    OutputFormat | None,
    typer.Option("--format", help="How to print the answer; table unless given.", show_default=False),
]


def output_format(given: OutputFormat | None, as_json: bool) -> OutputFormat:
    """Return the format that `--format` and `--json` ask for together."""
    from tollkeeper.console.failures import misused

    if as_json and given not in (None, "json"):
        raise misused(f"--json and --format {given} ask for two formats: drop one.")
    return "json" if as_json else given or "table"
