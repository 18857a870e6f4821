"""A usage report as the API and the command line show it: JSON, and the rows of CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from tollkeeper.api.csv_cells import csv_cell
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.usage import UsageQuery, UsageReport

MONEY: Final = frozenset({"cost_nanos", "estimated_cost_nanos", "provider_cost_nanos", "adjustments_nanos"})
"""The measures that are amounts of money, and therefore text in JSON."""
_CSV_ROWS_PER_PIECE: Final = 500


class UsageResponse(msgspec.Struct, frozen=True, kw_only=True):
    """
    Usage, in rows per bucket and group, and its totals over all rows, not only this page.

    Money is text, in nanos; a quantity (`quantity.NAME`) is decimal text, in its units. Every event that was
    acknowledged before `as_of` is in the answer; when `complete` is false, some are still on their way, the oldest for
    `behind_s` seconds, or `lacks_detail` is true.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, Any]
    row_count: int
    """Rows before paging."""
    next_offset: int | None
    """`offset` of the next page; null at the end."""
    from_: str = msgspec.field(name="from")
    to: str
    as_of: str
    complete: bool
    behind_s: int
    detail_from: str | None = None
    """From then on all single events are kept, before it sums of whole UTC hours, without tags; null: all are kept."""
    lacks_detail: bool = False
    """The answer needs single events from before `detail_from`, and lacks those that have expired."""


def usage_response(query: UsageQuery, report: UsageReport) -> UsageResponse:
    """Return the answer to *query*."""
    return UsageResponse(
        rows=[_with_money_as_text(row) for row in report.rows],
        totals=_with_money_as_text(report.totals),
        row_count=report.row_count,
        next_offset=next_offset(query, report),
        from_=to_text(from_us(query.from_us)),
        to=to_text(from_us(query.to_us)),
        as_of=to_text(from_us(report.as_of_us)),
        complete=report.complete,
        behind_s=report.behind_s,
        detail_from=None if report.detail_from_us is None else to_text(from_us(report.detail_from_us)),
        lacks_detail=report.lacks_detail,
    )


def next_offset(query: UsageQuery, report: UsageReport) -> int | None:
    """Return the offset of the next page, or None at the end."""
    end = query.offset + len(report.rows)
    return end if report.rows and end < report.row_count else None


def columns_of(query: UsageQuery) -> list[str]:
    """Return the columns of the answer to *query*, in their order."""
    return [*(("time",) if query.granularity else ()), *query.group_by, *query.measures]


def csv_pieces(query: UsageQuery, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """
    Yield the rows as CSV (RFC 4180), with a header, in pieces of some hundred rows.

    Text that a spreadsheet would execute gets a `'` in front; numbers stay numbers.
    """
    columns = columns_of(query)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([csv_cell(name) for name in columns])
    for start in range(0, len(rows), _CSV_ROWS_PER_PIECE):
        for row in rows[start : start + _CSV_ROWS_PER_PIECE]:
            writer.writerow([csv_cell(row.get(name)) for name in columns])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _with_money_as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if name in MONEY and value is not None else value for name, value in row.items()}
