"""
What commands print: tables for people, JSON and CSV for programs.

Nothing that comes from stored data can act: control and format characters are replaced, so that no terminal obeys
them and no text reads as another, and text cells of CSV that a spreadsheet would take for a formula are quoted. What
goes into a file or a pipe is the data itself.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tollkeeper.api.csv_cells import csv_cell
from tollkeeper.domain.money import format_nanos

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_WITHOUT_TERMINAL: Final = 1_000
"""Columns to fill without a terminal: a table in a file is not cut."""
_ACTING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of what has an effect and no shape: controls, marks of direction, invisible characters, line
and paragraph ends; and halves of characters, which no output can encode."""


class _Replaced(dict[int, str]):
    """Code point → what is shown; made as characters come up."""

    def __missing__(self, code: int) -> str:
        shown = "�" if unicodedata.category(chr(code)) in _ACTING else chr(code)
        self[code] = shown
        return shown


class _Escaped(dict[int, str]):
    """Code point → what JSON has for it on a terminal; below 127 the encoder has escaped already."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if code >= 127 and unicodedata.category(char) in _ACTING:
            units = char.encode("utf-16-be").hex()
            char = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
        self[code] = char
        return char


_REPLACED: Final = _Replaced()
_ESCAPED: Final = _Escaped()


class Column(NamedTuple):
    """A column of a table for people. Numbers stand to the right."""

    heading: str
    numeric: bool = False


class Lines(tuple[str, ...]):
    """A cell of several lines."""


def stdout() -> Console:
    """Return the console of answers."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return the console of progress, notes and errors."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    width = None if file.isatty() else WIDTH_WITHOUT_TERMINAL
    # No markup: what is stored may hold [brackets].
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def warn(message: str) -> None:
    """Print what looks like a slip on stderr; the command has done its work all the same."""
    print(f"warning: {plain(message)}", file=sys.stderr)


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    *,
    title: str | None = None,
    totals: Sequence[Any] | None = None,
    console: Console | None = None,
) -> None:
    """Print *rows* for people, with *totals* below a line; `tables` says what becomes of wide ones."""
    from tollkeeper.console.tables import TextColumn, print_columns

    cells = [[shown(value) for value in row] for row in rows]
    footers = None if totals is None else [shown(value) for value in totals]
    texts = [
        TextColumn(
            plain(column.heading),
            column.numeric,
            [row[place] for row in cells],
            None if footers is None else footers[place],
        )
        for place, column in enumerate(columns)
    ]
    print_columns(texts, console or stdout(), title=None if title is None else plain(title))


def shown(value: Any) -> str:
    """Return *value* as people read it."""
    if value is None:
        return ""
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(name)}={shown(part)}" for name, part in value.items())
    if isinstance(value, Lines):
        return "\n".join(plain(line) for line in value)
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(part) for part in value)
    return plain(str(value))


def plain(text: str) -> str:
    """Return *text* without characters that a terminal would obey, or that make it read as another text."""
    return text.translate(_REPLACED)


def money(nanos: int | str | None) -> str:
    """Return an amount of nanos, as integer or as JSON's string, in whole units."""
    if nanos is None:
        return ""
    whole, _, part = format_nanos(abs(int(nanos))).partition(".")
    return f"{'-' if int(nanos) < 0 else ''}{int(whole):,}.{part}"


def money_heading(name: str) -> str:
    """Return the name of a field of money for people: `price_nanos` holds a price."""
    return name.replace("_nanos_per_million", " per million").removesuffix("_nanos").replace("_", " ")


def print_json(value: Any) -> None:
    """Print *value* as JSON: indented on a terminal, else on one line."""
    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty():
        encoded = msgspec.json.format(encoded, indent=2)
        # The same value, in letters that a terminal shows.
        sys.stdout.write(encoded.decode().translate(_ESCAPED) + "\n")
        return
    sys.stdout.write(encoded.decode() + "\n")


def print_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print *rows* as CSV (RFC 4180) under their *columns*; on a terminal without what it would obey."""
    import csv

    cell = _plain_cell if sys.stdout.isatty() else csv_cell

    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow([cell(column) for column in columns])
    writer.writerows([cell(row.get(column)) for column in columns] for row in rows)


def _plain_cell(value: Any) -> Any:
    cell = csv_cell(value)
    return plain(cell) if isinstance(cell, str) else cell


@contextmanager
def progress(label: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """
    Show on stderr how far a work is, if that is a terminal; yields a function that takes how much is done.

    Args:
        total: How much there is to do; None when nobody knows.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    amounts = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amounts,
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
