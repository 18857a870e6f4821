"""`GET /tk/v1/usage`: the usage question over HTTP, answered as JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.usage import (
    DIMENSIONS,
    GRANULARITIES,
    MEASURES,
    MEASURES_DEFAULT,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    UsageQuery,
    UsageReport,
)
from tollkeeper.errors import BadParameter
from tollkeeper.http.csv_cells import csv_cell
from tollkeeper.http.routes.calls import (
    ANYBODY,
    PREFIX,
    AnyRequest,
    Endpoint,
    Query,
    Sent,
    answer,
    endpoint,
    in_thread,
    installation_of,
    no_such_account,
    principal_of,
    query_pairs,
)
from tollkeeper.http.usage_params import FILTERS, UsageScope, parse_usage_query

MONEY: Final = frozenset({"cost_nanos", "estimated_cost_nanos"})
_CSV_ROWS_PER_PIECE: Final = 500


class UsageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    Usage, in rows per bucket and group, and its totals over all rows, not only this page.

    Money is text, in nanos. Every event that was acknowledged before `as_of` is in the answer; when
    `complete` is false, some are still on their way, the oldest for `behind_s` seconds.
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


_QUERY: Final = (
    Query("account", "Whose usage; several, separated by commas, or all without it: the operator only."),
    Query(
        "from",
        "Date or RFC 3339 date-time from which on events count. A date begins at midnight in `time_zone`. "
        "Everything by default.",
    ),
    Query("to", "Date or date-time before which events count. The coming full hour by default."),
    Query("group_by", f"A row per value of these, separated by commas: {', '.join(DIMENSIONS)}, tag.<name>."),
    Query("granularity", "A row per bucket of this size.", {"type": "string", "enum": list(GRANULARITIES)}),
    Query(
        "time_zone",
        "IANA name; buckets of an hour or more begin at its local times.",
        {"type": "string", "default": "UTC"},
    ),
    Query(
        "week_start", "First day of a week.", {"type": "string", "enum": list(WEEKDAYS), "default": "monday"}
    ),
    Query(
        "measures",
        f"What to tell, separated by commas: {', '.join(MEASURES)}.",
        {"type": "string", "default": ",".join(MEASURES_DEFAULT)},
    ),
    Query("sort", "Columns of the answer, separated by commas, each with - in front for descending."),
    Query(
        "limit",
        "Rows per page; 0 for the totals only.",
        {"type": "integer", "minimum": 0, "maximum": PAGE_SIZE_MAX, "default": PAGE_SIZE_DEFAULT},
    ),
    Query("offset", "Rows to skip.", {"type": "integer", "minimum": 0, "default": 0}),
    Query(
        "format", "The form of the answer.", {"type": "string", "enum": ["json", "csv"], "default": "json"}
    ),
    *(
        Query(name, f"Only events with one of these values of {name}, separated by commas; empty for none.")
        for name in FILTERS
    ),
    Query(
        "tag.{name}",
        "Only events whose tag of that name has one of these values. The name is part of the parameter: "
        "tag.team=a,b.",
    ),
)
_EXAMPLE: Final = {
    "rows": [{"model": "gpt-4o", "requests": 2, "cost_nanos": "5000000"}],
    "totals": {"requests": 2, "cost_nanos": "5000000"},
    "row_count": 1,
    "next_offset": None,
    "from": "2026-01-01T00:00:00.000000Z",
    "to": "2026-02-01T00:00:00.000000Z",
    "as_of": "2026-01-31T09:30:00.125000Z",
    "complete": True,
    "behind_s": 0,
}


def handlers() -> list[HTTPRouteHandler]:
    """Return the handler of the usage question."""
    return [usage]


@get(
    f"{PREFIX}/usage",
    opt=endpoint(
        Endpoint(
            "Usage",
            "usage",
            ANYBODY,
            {
                200: Sent(
                    {"application/json": UsageAnswer, "text/csv": {"type": "string"}},
                    _EXAMPLE,
                    "As CSV, `X-Row-Count`, `X-Next-Offset`, `X-As-Of`, `X-Complete` and `X-Behind` tell the rest.",
                )
            },
            description="The answer contains the request that was answered a millisecond ago. A management "
            "key asks about its account, a consumption key about itself.",
            query=_QUERY,
            problems=(404, 429),
        )
    ),
)
@in_thread("usage")
def usage(request: AnyRequest) -> Response[bytes] | Stream:
    """Answer the usage question."""
    installation, principal = installation_of(request), principal_of(request)
    pairs = query_pairs(request)
    form = _format(pairs)
    key_id = principal.key_id if principal.role == "consumption" else None
    query = parse_usage_query(
        pairs,
        scope=UsageScope(principal.account_id, key_id),
        now=installation.clock.now(),
        with_pending=("format",),
    )
    if query.account_id is not None and installation.directory.account(query.account_id) is None:
        raise no_such_account()
    report = installation.reports.usage(query)
    if form == "csv":
        return _csv_answer(query, report)
    return answer(
        UsageAnswer(
            rows=[with_money_as_text(row) for row in report.rows],
            totals=with_money_as_text(report.totals),
            row_count=report.row_count,
            next_offset=next_offset(query, report),
            from_=to_text(from_us(query.from_us)),
            to=to_text(from_us(query.to_us)),
            as_of=to_text(from_us(report.as_of_us)),
            complete=report.complete,
            behind_s=report.behind_s,
        )
    )


def next_offset(query: UsageQuery, report: UsageReport) -> int | None:
    """Return where the next page begins, or None at the end."""
    end = query.offset + len(report.rows)
    return end if report.rows and end < report.row_count else None


def with_money_as_text(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON shows it: JavaScript loses integers above 2**53."""
    return {name: str(value) if name in MONEY else value for name, value in row.items()}


def csv_pieces(query: UsageQuery, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """
    Yield the rows as CSV (RFC 4180), with a header, in pieces of some hundred rows.

    Text that a spreadsheet would execute gets a `'` in front; numbers stay numbers.
    """
    columns = [*(["time"] if query.granularity else []), *query.group_by, *query.measures]
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


def _csv_answer(query: UsageQuery, report: UsageReport) -> Stream:
    following = next_offset(query, report)
    return Stream(
        csv_pieces(query, report.rows),
        media_type="text/csv",
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": 'attachment; filename="usage.csv"',
            "X-Row-Count": str(report.row_count),
            "X-Next-Offset": "" if following is None else str(following),
            "X-As-Of": to_text(from_us(report.as_of_us)),
            "X-Complete": "true" if report.complete else "false",
            "X-Behind": str(report.behind_s),
        },
    )


def _format(pairs: list[tuple[str, str]]) -> str:
    forms = [value for name, value in pairs if name == "format"]
    if len(forms) > 1 or (forms and forms[0] not in ("json", "csv")):
        raise BadParameter("format is json or csv, once", field="format")
    return forms[0] if forms else "json"
