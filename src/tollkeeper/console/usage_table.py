"""A usage report as people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tollkeeper.console.output import Column, money, print_table
from tollkeeper.domain.quantities import QUANTITY_PREFIX

_TEXT_MEASURES: Final = frozenset({"kinds", "first_at", "last_at"})


def print_report(
    columns: Sequence[str], answer: Mapping[str, Any], *, offset: int, title: str | None = None
) -> None:
    """Print an answer for people: money in units, totals below, and what it leaves out."""
    rows, totals = answer["rows"], answer["totals"]
    grouped = [name for name in columns if name not in totals]
    headings = [_column(name, grouped) for name in columns]
    footer = None
    if grouped:
        footer = [_cell(name, totals.get(name)) for name in columns]
        footer[0] = "total"
    shown_rows = (
        [[_cell(name, row.get(name)) for name in columns] for row in rows]
        if grouped
        else [[_cell(name, totals.get(name)) for name in columns]]
    )
    print_table(headings, shown_rows, totals=footer, title=title)
    if answer["row_count"] > len(rows) and grouped:
        print(
            f"rows {offset + 1:,} to {offset + len(rows):,} of {answer['row_count']:,}; "
            "the total is over all: --offset and --limit show others"
        )
    detail_from = answer.get("detail_from")
    if answer.get("lacks_detail"):
        print(
            f"not complete: this needs single events from before {detail_from}, which have expired: "
            "ask from then on, or by whole hours (UTC) and without tags"
        )
    elif detail_from is not None and answer["from"] < detail_from:
        print(f"single events are kept from {detail_from} on; before that, sums of hours")
    if not answer["complete"] and (answer["behind_s"] or not answer.get("lacks_detail")):
        print(
            f"not complete: events acknowledged before {answer['as_of']} are still on their way, "
            f"the oldest for {answer['behind_s']:,} s"
        )


def _column(name: str, grouped: Sequence[str]) -> Column:
    heading = name.removeprefix(QUANTITY_PREFIX).removesuffix("_nanos").replace("_", " ")
    return Column(heading, numeric=name not in grouped and name not in _TEXT_MEASURES)


def _cell(name: str, value: Any) -> Any:
    if name.endswith("_nanos") and not name.startswith(QUANTITY_PREFIX):
        return money(value)
    if name == "status":
        # A name, not a count: no separator of thousands, and none of all rows together.
        return None if value is None else str(value)
    return value
