"""The engine's answer to a report, as `ReportRows`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tollkeeper.adapters.clickhouse.values import MEASURES, QUANTITY, as_is
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.ports import ReportRows


def is_unsure(result: Sequence[Sequence[Any]]) -> bool:
    """Return whether *result* rests on an assumption of `queries.report` that does not hold: it is no answer then."""
    return bool(result) and bool(result[0][3])  # The total comes first.


def answer_of(query: UsageQuery, result: Sequence[Sequence[Any]]) -> ReportRows:
    """Return the rows, the totals and the row count that *result* of `queries.report(query)` has."""
    measures = [(name, MEASURES.get(name, QUANTITY)) for name in query.measures]
    keys = [_bucket_reader(query)] if query.granularity else [as_is] if query.cuts_us else []
    names = ["time"] if query.granularity else ["part"] if query.cuts_us else []
    keys += [as_is] * len(query.group_by)
    names += query.group_by
    totals: dict[str, Any] = {name: measure.empty for name, measure in measures}
    rows: list[dict[str, Any]] = []
    row_count = 0
    for is_total, counted, alive, _, *values in result:
        shown = {
            name: measure.show(value)
            for (name, measure), value in zip(measures, values[len(keys) :], strict=True)
        }
        if is_total:
            totals, row_count = shown, counted
            if not keys and alive:
                rows.append(dict(shown))
        else:
            group = {name: read(value) for name, read, value in zip(names, keys, values, strict=False)}
            rows.append(group | shown)
    if not keys:
        row_count = len(rows)
        rows = rows[query.offset : query.offset + query.limit]
    return ReportRows(rows, totals, row_count)


def _bucket_reader(query: UsageQuery) -> Callable[[int], str]:
    zone = ZoneInfo(query.time_zone)
    is_utc = query.time_zone in ("UTC", "Etc/UTC")
    seen: dict[int, str] = {}

    def read(bucket: int) -> str:
        text = seen.get(bucket)
        if text is None:
            if query.granularity in ("minute", "hour"):
                at = datetime.fromtimestamp(bucket, zone)
            else:
                day = date(1970, 1, 1) + timedelta(days=bucket)
                # By way of UTC, since a clock change may skip local midnight.
                at = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC).astimezone(zone)
            text = at.isoformat()
            seen[bucket] = text = text.removesuffix("+00:00") + "Z" if is_utc else text
        return text

    return read
