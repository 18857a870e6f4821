"""
The usage query and its answer: one query language for the API, the command line, the dashboard and
every profile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from tollkeeper.domain.quantities import quantity_of_unit, quantity_text

Granularity = Literal["minute", "hour", "day", "week", "month"]
GRANULARITY_MEANINGS: Final[dict[str, str]] = {
    "minute": "UTC minutes",
    "hour": "hours of the time zone",
    "day": "days of the time zone",
    "week": "weeks of the time zone, from its week_start on",
    "month": "calendar months of the time zone",
}
GRANULARITIES: Final = tuple(GRANULARITY_MEANINGS)

DIMENSION_MEANINGS: Final[dict[str, str]] = {
    "account": "who pays",
    "project": "part of the account; empty for none",
    "key": "id of the api key; empty for none",
    "endpoint": "method and route: POST /v1/chat",
    "method": "HTTP method",
    "route": "path template of the route; the path as it was called where no route knows it",
    "model": "model, as the event names it",
    "status": "HTTP status",
    "kind": "kind of event: request, or as its route says",
    "error_type": "what failed; empty if nothing did",
    "denied_reason": "why our gate refused it; empty if it did not",
    "cache": "hit, miss or none",
}
DIMENSIONS: Final = tuple(DIMENSION_MEANINGS)
"""What can be grouped and filtered by, beside `tag:<name>`. `endpoint` is `<method> <route>`."""


class Measure(NamedTuple):
    """
    What a measure counts.

    Attributes:
        unit: `events`, `tokens`, `nanos` (money), `credits`, `ms`, `bytes`, `requests`, `time`, or `map`.
    """

    unit: str
    meaning: str


MEASURE_MEANINGS: Final[dict[str, Measure]] = {
    "requests": Measure("events", "requests, refused ones included; adjustments are none"),
    "errors": Measure("events", "status 400 or above, or an error type"),
    "failed": Measure("events", "status 400 or above"),
    "denied": Measure("events", "refused by our gate"),
    "prompt_tokens": Measure("tokens", "prompt tokens that were not cached"),
    "cached_prompt_tokens": Measure("tokens", "prompt tokens read from the provider's cache"),
    "completion_tokens": Measure("tokens", "completion tokens without reasoning"),
    "reasoning_tokens": Measure("tokens", "reasoning tokens"),
    "tokens": Measure("tokens", "all classes of tokens, those among the quantities included"),
    "cost_nanos": Measure("nanos", "what was charged, estimates included"),
    "estimated_cost_nanos": Measure("nanos", "the part of cost_nanos that is still an estimate"),
    "credits": Measure("credits", "credits that were charged"),
    "unpriced": Measure("events", "events whose cost is not known yet"),
    "cache_hits": Measure("events", "answered from the cache"),
    "cache_misses": Measure("events", "not found in the cache"),
    "latency_ms_avg": Measure("ms", "mean latency; null without any"),
    "latency_ms_max": Measure("ms", "longest latency; null without any"),
    "latency_ms_p50": Measure("ms", "median latency, off by at most 1 %"),
    "latency_ms_p90": Measure("ms", "90th percentile of latency, off by at most 1 %"),
    "latency_ms_p95": Measure("ms", "95th percentile of latency, off by at most 1 %"),
    "latency_ms_p99": Measure("ms", "99th percentile of latency, off by at most 1 %"),
    "bytes_out": Measure("bytes", "bytes of the answers"),
    "kinds": Measure("map", "kind → requests"),
    "peak_requests_per_minute": Measure("requests", "requests of the busiest UTC minute"),
    "peak_requests_per_hour": Measure("requests", "requests of the busiest UTC hour"),
    "first_at": Measure("time", "when the first request occurred; null without any"),
    "last_at": Measure("time", "when the last request occurred; null without any"),
    "provider_cost_nanos": Measure("nanos", "what the events cost the provider"),
    "adjustments_nanos": Measure(
        "nanos", "money that adjustments gave (above 0) and took; in no other measure"
    ),
}
MEASURES: Final = tuple(MEASURE_MEANINGS)
"""What can be asked for, beside `quantity.<name>` (in micro-units). Percentiles: see `rollups`."""

MEASURES_DEFAULT: Final = ("requests", "errors", "denied", "tokens", "cost_nanos", "credits")
NULLS_FIRST: Final = ":nulls_first"
PAGE_SIZE_DEFAULT: Final = 1_000
PAGE_SIZE_MAX: Final = 50_000


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """
    One query about usage in `[from_us, to_us)`.

    Args:
        account_id: Whose usage; None asks for all accounts (the operator only).
        granularity: Adds the column `time`, the start of each bucket in *time_zone*; None for one row per group.
        cuts_us: Instants within the range, ascending, that cut it into parts: adds the column `part`, 0 for the part
            before the first of them. Not with a granularity, and only with measures that can be added up.
        group_by: Of `DIMENSIONS`, or `tag:<name>`.
        filters: Dimension → values of which one must match. An empty string stands for "none".
        measures: Of `MEASURES`, or `quantity.<name>`.
        sort: Columns, each optionally behind `-` for descending. Rows whose value is null come last, or first with
            `NULLS_FIRST` behind the column. Ties and the rest are ordered by time and groups, ascending, so that
            pages never overlap.
    """

    account_id: str | None
    from_us: int
    to_us: int
    granularity: Granularity | None = None
    time_zone: str = "UTC"
    week_start: str = "monday"
    cuts_us: tuple[int, ...] = ()
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = {}
    measures: tuple[str, ...] = MEASURES_DEFAULT
    sort: tuple[str, ...] = ()
    limit: int = PAGE_SIZE_DEFAULT
    offset: int = 0


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """
    The answer.

    Attributes:
        rows: One per bucket and group with at least one event, each with `time` (RFC 3339 with the zone's
            offset, if a granularity was asked), the groups (strings; `status` an int) and the measures.
        totals: The measures over the whole answer, not only this page. Sums equal the sum over all rows.
        row_count: Rows before paging.
        as_of_us: The answer contains every event that was acknowledged before this instant …
        complete: … unless this is False: then some are still on their way to the usage store, or cannot be
            read any more, or *lacks_detail*.
        behind_s: How long ago the oldest of those on their way was acknowledged, in seconds, rounded up; of
            any account. 0 when there is none.
        detail_from_us: From this instant on all single events are kept; before it, sums of whole UTC hours without
            tags. None: all are kept.
        lacks_detail: The answer needs single events from before that, and lacks those that have expired.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, Any]
    row_count: int
    as_of_us: int
    complete: bool
    behind_s: int = 0
    detail_from_us: int | None = None
    lacks_detail: bool = False


class SortTerm(NamedTuple):
    """One term of a query's `sort`."""

    column: str
    descending: bool
    nulls_first: bool


def sort_term(text: str, columns: Collection[str]) -> SortTerm | None:
    """Return the term that *text* states over the *columns* of an answer; None when it names none of them."""
    column = text.removeprefix("-")
    # A tag may be named like this: as it is written comes first.
    nulls_first = column not in columns and column.endswith(NULLS_FIRST)
    if nulls_first:
        column = column.removesuffix(NULLS_FIRST)
    return SortTerm(column, text.startswith("-"), nulls_first) if column in columns else None


def quantities_as_text(query: UsageQuery, report: UsageReport) -> UsageReport:
    """Return *report*, the answer to *query*, with its quantities as decimal text of units, as callers get them."""
    names = [name for name in query.measures if quantity_of_unit(name) is not None]
    if not names:
        return report

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        return row | {name: quantity_text(row[name]) for name in names}

    return msgspec.structs.replace(
        report, rows=[shown(row) for row in report.rows], totals=shown(report.totals)
    )


def is_measure(name: str) -> bool:
    """Return whether *name* can be asked for: one of `MEASURES`, or `quantity.<name>`."""
    return name in MEASURES or quantity_of_unit(name) is not None


def statuses_of(allowed: Sequence[str]) -> list[int]:
    """Return the statuses that a filter lets pass: none is 0, and what is no number of 16 bits matches no event."""
    numbers = ["0" if value == "" else value for value in allowed]
    return [int(text) for text in numbers if text.isascii() and text.isdigit() and len(text) <= 4]
