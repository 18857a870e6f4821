"""
A usage answer brought up to date: the records that came since are added to it, and the usage store is not asked.

Sums, maxima and minima can be added to. Averages, percentiles and peaks cannot, nor can an answer of which only
some rows are there; neither can a correction be taken off a maximum. Then the store has to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, Final

import msgspec

from tollkeeper.domain.event_pages import EventQuery
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.quantities import quantity_of_unit
from tollkeeper.domain.usage import UsageQuery, UsageReport, sort_term, statuses_of

_UTC: Final = frozenset({"UTC", "Etc/UTC"})
"""Elsewhere a bucket may begin at another minute or not exist; the store knows."""
_TAG: Final = "tag:"


def _at(record: Record) -> str:
    return to_text(from_us(record.occurred_at_us))


def _latency_ms(record: Record) -> float | None:
    return None if record.latency_us is None else record.latency_us / 1000


_SUMS: Final[dict[str, Callable[[Record], int]]] = {
    "requests": lambda record: 1,
    "errors": lambda record: record.status >= 400 or record.error_type != "",
    "failed": lambda record: record.status >= 400,
    "denied": lambda record: record.denied_reason != "",
    "prompt_tokens": attrgetter("prompt_tokens"),
    "cached_prompt_tokens": attrgetter("cached_prompt_tokens"),
    "completion_tokens": attrgetter("completion_tokens"),
    "reasoning_tokens": attrgetter("reasoning_tokens"),
    "tokens": attrgetter("tokens"),
    "cost_nanos": attrgetter("cost_nanos"),
    "estimated_cost_nanos": lambda record: record.cost_nanos if record.cost_state == "estimated" else 0,
    "credits": attrgetter("credits"),
    "unpriced": lambda record: record.cost_state == "unpriced",
    "cache_hits": lambda record: record.cache == "hit",
    "cache_misses": lambda record: record.cache == "miss",
    "bytes_out": attrgetter("bytes_out"),
    "provider_cost_nanos": attrgetter("provider_cost_nanos"),
    "adjustments_nanos": attrgetter("adjustment_nanos"),
}
_EXTREMES: Final[dict[str, tuple[Callable[[list[Any]], Any], Callable[[Record], Any]]]] = {
    "latency_ms_max": (max, _latency_ms),
    # Texts of one length each: their order is that of the instants.
    "first_at": (min, _at),
    "last_at": (max, _at),
}
_COLUMNS: Final[dict[str, Callable[[Record], str | int]]] = {
    "account": attrgetter("account_id"),
    "project": attrgetter("project_id"),
    "key": attrgetter("key_id"),
    "endpoint": lambda record: (
        f"{record.method} {record.route}" if record.method and record.route else record.method + record.route
    ),
    "method": attrgetter("method"),
    "route": attrgetter("route"),
    "model": attrgetter("model"),
    "status": attrgetter("status"),
    "kind": attrgetter("kind"),
    "error_type": attrgetter("error_type"),
    "denied_reason": attrgetter("denied_reason"),
    "cache": attrgetter("cache"),
}


def apply_increment(query: UsageQuery, report: UsageReport, records: Iterable[Record]) -> UsageReport | None:
    """
    Return *report*, the answer to *query*, with *records* in it, or None if that takes the usage store.

    Args:
        query: What was asked; all of its names are known.
        report: Its answer, which has none of *records*. Its rows and totals are changed.
        records: Of any account and time, each once.
    """
    if not _can_be(query, report):
        return None
    columns = (("time",) if query.granularity else ()) + query.group_by
    rows = {tuple(row[name] for name in columns): row for row in report.rows}
    for record in records:
        if not is_selected(query, record):
            continue
        if record.adjustment_nanos and "adjustments_nanos" not in query.measures:
            continue
        if record.sign < 0 or record.revision > 0:
            return None
        key = _key(query, record)
        row = rows.get(key)
        if row is None:
            row = rows[key] = dict(zip(columns, key, strict=True)) | _nothing(query.measures)
        _add(row, query.measures, record)
        _add(report.totals, query.measures, record)
    ordered = _ordered(query.sort, columns, list(rows.values()))
    return msgspec.structs.replace(report, rows=ordered[: query.limit], row_count=len(ordered))


def _can_be(query: UsageQuery, report: UsageReport) -> bool:
    return (
        report.row_count == len(report.rows)
        and not query.cuts_us
        and all(_is_sum(name) or name in _EXTREMES for name in query.measures)
        and (query.granularity is None or query.time_zone in _UTC)
    )


def is_selected(query: UsageQuery | EventQuery, record: Record) -> bool:
    """Return whether *record* is of the account, the span and the filters of *query*."""
    return (
        query.from_us <= record.occurred_at_us < query.to_us
        and query.account_id in (None, record.account_id)
        and all(_passes(_column(record, name), allowed) for name, allowed in query.filters.items())
    )


def _passes(value: str | int, allowed: Sequence[str]) -> bool:
    return value in (allowed if isinstance(value, str) else statuses_of(allowed))


def _column(record: Record, name: str) -> str | int:
    if name.startswith(_TAG):
        return record.tags.get(name.removeprefix(_TAG), "")
    return _COLUMNS[name](record)


def _key(query: UsageQuery, record: Record) -> tuple[Any, ...]:
    group = tuple(_column(record, name) for name in query.group_by)
    return (_bucket(query, record.occurred_at_us), *group) if query.granularity else group


def _bucket(query: UsageQuery, at_us: int) -> str:
    at = from_us(at_us).replace(second=0, microsecond=0)
    if query.granularity != "minute":
        at = at.replace(minute=0)
    if query.granularity in ("day", "week", "month"):
        at = at.replace(hour=0)
    if query.granularity == "week":
        at -= timedelta(days=(at.weekday() - WEEKDAYS.index(query.week_start)) % 7)
    if query.granularity == "month":
        at = at.replace(day=1)
    return _text(at)


def _text(at: datetime) -> str:
    return at.isoformat().removesuffix("+00:00") + "Z"


def _nothing(measures: Iterable[str]) -> dict[str, Any]:
    return {name: 0 if _is_sum(name) else None for name in measures}


def _is_sum(name: str) -> bool:
    return name in _SUMS or quantity_of_unit(name) is not None


def _add(row: dict[str, Any], measures: Iterable[str], record: Record) -> None:
    if record.adjustment_nanos:
        row["adjustments_nanos"] += record.adjustment_nanos
        return
    for name in dict.fromkeys(measures):
        if name in _SUMS:
            row[name] += _SUMS[name](record)
            continue
        if (quantity := quantity_of_unit(name)) is not None:
            row[name] += record.quantities.get(quantity, 0)
            continue
        of_two, value_of = _EXTREMES[name]
        known = [value for value in (row[name], value_of(record)) if value is not None]
        row[name] = of_two(known) if known else None


def _ordered(sort: Sequence[str], columns: Sequence[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the store does: by *sort*, then by time and groups."""
    if not rows:
        return rows
    if columns:
        rows.sort(key=itemgetter(*columns))
    for text in reversed(sort):
        term = sort_term(text, rows[0])
        assert term is not None  # The names of a query that was answered are known.
        known = [row for row in rows if row[term.column] is not None]
        known.sort(key=itemgetter(term.column), reverse=term.descending)
        unknown = [row for row in rows if row[term.column] is None]
        rows = unknown + known if term.nulls_first else known + unknown
    return rows
