"""
Tables for people, at any width: nothing of a number is ever cut.

A table that is too wide wraps its texts between words, and folds words beyond `WORD_WIDTH_MAX`. If that is not enough
it is cut into blocks of columns, each with the columns of text that begin it. If one number does not fit beside these,
the rows stand one under the other, a line per value. What is longer than a line then is left to the terminal to wrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

GAP: Final = 3
"""Columns between two columns of a table: padding on either side, and the divider of the box."""
WORD_WIDTH_MAX: Final = 36
"""A UUID, and any date with its time, is not folded; the name of a model or a path may be."""
_INDENT: Final = "  "


class TextColumn(NamedTuple):
    """
    One column as text: its heading, its cells, and what stands below them.

    Attributes:
        numeric: Stands to the right, and is never wrapped.
    """

    heading: str
    numeric: bool
    cells: Sequence[str]
    footer: str | None

    @property
    def natural_width(self) -> int:
        """The width at which nothing wraps."""
        return max(_longest(text.split("\n")) for text in (self.heading, *self.cells, self.footer or ""))

    @property
    def width_min(self) -> int:
        """The width at which no number is cut, and no word but a long one."""
        texts = (*self.cells, self.footer or "")
        words = max(1, *(_longest(text.split()) for text in (self.heading, *texts)))
        if not self.numeric:
            return min(words, WORD_WIDTH_MAX)
        return max(words, *(_longest(text.split("\n")) for text in texts))


def print_columns(columns: Sequence[TextColumn], console: Console, *, title: str | None = None) -> None:
    """Print *columns*, which have as many cells each, in the widest form that fits the console."""
    if title is not None:
        console.print(title, style="bold", soft_wrap=True)
    blocks = _blocks(columns, console.width)
    for place, block in enumerate(blocks):
        if place:
            console.print()
        _print_block(block, console)
    if not blocks:
        _print_records(columns, console)


def _blocks(columns: Sequence[TextColumn], width: int) -> list[Sequence[TextColumn]]:
    """Return the columns in blocks that fit *width*, none if there are no such blocks."""
    if _width_min(columns) <= width:
        return [columns]
    count = next((place for place, column in enumerate(columns) if column.numeric), 0)
    leading, others = columns[:count], columns[count:]
    if not leading or any(_width_min([*leading, column]) > width for column in others):
        return []
    blocks: list[Sequence[TextColumn]] = []
    block = [*leading]
    for column in others:
        if _width_min([*block, column]) > width:
            blocks.append(block)
            block = [*leading]
        block.append(column)
    return [*blocks, block]


def _width_min(columns: Sequence[TextColumn]) -> int:
    return sum(column.width_min for column in columns) + GAP * (len(columns) - 1)


def _widths(columns: Sequence[TextColumn], width: int) -> list[int]:
    """Return a width for each column, at least its smallest; what is left over goes to those that wrap."""
    widths = [column.width_min for column in columns]
    left = width - _width_min(columns)
    needs = sorted((column.natural_width - column.width_min, i) for i, column in enumerate(columns))
    for place, (need, index) in enumerate(needs):
        given = min(need, left // (len(needs) - place))
        widths[index] += given
        left -= given
    return widths


def _print_block(columns: Sequence[TextColumn], console: Console) -> None:
    from rich import box
    from rich.table import Table

    has_footer = any(column.footer is not None for column in columns)
    table = Table(box=box.SIMPLE_HEAD, show_footer=has_footer, show_edge=False, pad_edge=False)
    for column, width in zip(columns, _widths(columns, console.width), strict=True):
        table.add_column(
            column.heading,
            justify="right" if column.numeric else "left",
            footer=column.footer or "",
            width=width,
            overflow="fold",
            footer_style="bold",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    console.print(table)


def _print_records(columns: Sequence[TextColumn], console: Console) -> None:
    count = len(columns[0].cells)
    records = [[(column.heading, column.cells[place]) for column in columns] for place in range(count)]
    if any(column.footer is not None for column in columns):
        records.append([(column.heading, column.footer or "") for column in columns])
    aligned = max(_longest([column.heading]) for column in columns)
    for place, record in enumerate(records):
        if place:
            console.print()
        for line in _record_lines(record, aligned, console.width):
            # Not wrapped by us: a terminal does that between any two characters, and a copy is whole.
            console.print(line, soft_wrap=True)


def _record_lines(record: Sequence[tuple[str, str]], aligned: int, width: int) -> Iterator[str]:
    for heading, text in record:
        lines = text.split("\n")
        if len(lines) == 1 and aligned + len(_INDENT) + _longest(lines) <= width:
            yield f"{heading}{' ' * (aligned - _longest([heading]))}{_INDENT}{text}".rstrip()
            continue
        yield heading
        yield from (_INDENT + line for line in lines)


def _longest(texts: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max((cell_len(text) for text in texts), default=0)
