"""
The SQL of the usage report: one statement answers rows, totals and the row count.

A report reads up to four sources, united before one aggregation:

* `usage_rollups` for the whole UTC days and hours of the range, each in the smallest tier that can tell;
* `events` for the ragged ends of the range, or for all of it when the question is finer than an hour;
* `events` again for maxima, minima: these cannot be subtracted, so that for hours with corrections they are
  taken from the records that still stand;
* records on their way to the store, which come with the question, as text that the engine reads.

Most questions end now, and few maxima are corrected. So a statement first assumes that nothing is stored after
the range, whose last day or hour it then reads whole, and that no record of it was taken back. It reads along
what tells whether that holds, and answers `unsure` if not: then its exact form is asked.

Statements are put together from the fragments of this module only. What a caller says arrives as a
server-side parameter (`{name:Type}`), so that no value is ever read as SQL.
"""

# ruff: noqa: S608 - see above: no fragment below comes from a caller.

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from math import gcd
from operator import attrgetter
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from tollkeeper.domain.events import TIME_MIN_US, Record
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.rollups import bin_latency_us
from tollkeeper.domain.usage import DIMENSIONS, GRANULARITIES, MEASURES, UsageQuery, statuses_of
from tollkeeper.domain.zones import zone_of
from tollkeeper.errors import BadParameter
from tollkeeper.ports import UsageAnswer

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
AT_MAX_US: Final = 4_102_444_800_000_000
"""2100-01-01: later ends of a range are read as this, since an hour of `usage_rollups` ends in 2106."""

_YEAR_MIN: Final = from_us(TIME_MIN_US).year

TAG_PREFIX: Final = "tag:"

_NEVER_US: Final = 2**63 - 1
"""What `min` starts from: `first_at_us` of a rollup row without a record of sign 1."""

LATENCY_BIN: Final = "toUInt16(if({0} <= 0, 0, 1 + floor(log({0}) / 0.01980262729617973)))"
"""domain/rollups.py `latency_bin`; the view of `usage_rollups` has the same. The divisor is the double ln 1.02."""


class _Tier(NamedTuple):
    """One of the sums of all records in `usage_rollups`: the dimensions and histograms that it can tell."""

    name: str
    width_us: int
    tells: frozenset[str]


_OF_KEYS: Final = frozenset({"account", "project", "key", "latency_bins"})
_OF_KINDS: Final = frozenset(DIMENSIONS) - _OF_KEYS | {"account", "latency_bins"}
_TIERS: Final = (
    # The smallest first: keys grow with the callers, kinds of requests do not.
    _Tier("kinds_day", DAY_US, _OF_KINDS),
    _Tier("keys_day", DAY_US, _OF_KEYS),
    _Tier("day", DAY_US, frozenset(DIMENSIONS)),
    _Tier("kinds_hour", HOUR_US, _OF_KINDS | {"minutes"}),
    _Tier("keys_hour", HOUR_US, _OF_KEYS | {"minutes"}),
    _Tier("hour", HOUR_US, frozenset({*DIMENSIONS, "latency_bins", "minutes"})),
)
"""As the view of `usage_rollups` fills them."""


_ALSO_FIELDS: Final = {
    "occurred_at": "DateTime64(6, \\'UTC\\')",
    "account_id": "String",
    "project_id": "String",
    "key_id": "String",
    "sign": "Int8",
    "kind": "String",
    "method": "String",
    "route": "String",
    "status": "UInt16",
    "error_type": "String",
    "denied_reason": "String",
    "latency_us": "Nullable(Int64)",
    "bytes_out": "Int64",
    "model": "String",
    "prompt_tokens": "Int64",
    "cached_prompt_tokens": "Int64",
    "completion_tokens": "Int64",
    "reasoning_tokens": "Int64",
    "cache": "String",
    "credits": "Int64",
    "cost_nanos": "Int64",
    "cost_state": "String",
    "tags": "Map(String, String)",
}
"""What a report reads of a record that comes with the question, by its name in `events`."""
_ALSO: Final = "format(JSONCompactEachRow, '{}', {{also_text:String}})".format(
    ", ".join(f"{name} {type_}" for name, type_ in _ALSO_FIELDS.items())
)
_also_values: Final = attrgetter(*list(_ALSO_FIELDS)[1:])
_encode: Final = msgspec.json.Encoder().encode


class Statement(NamedTuple):
    """SQL with the values of its server-side parameters."""

    sql: str
    parameters: dict[str, Any]


class _Value(NamedTuple):
    """A summand: its expression per row of `usage_rollups` (u) and of `events` (e), how rows merge, and what
    leaves a merge as it is."""

    rollup: str
    event: str
    merge: str = "sum"
    nothing: str = "toInt64(0)"


def _summed(name: str) -> _Value:
    return _Value(f"u.{name}", f"e.sign * e.{name}")


def _counted(name: str, condition: str) -> _Value:
    return _Value(f"u.{name}", f"if({condition}, toInt64(e.sign), 0)")


_NO_BINS: Final = "CAST(map() AS Map(UInt16, Int64))"
_VALUES: Final[dict[str, _Value]] = {
    "requests": _Value("u.requests", "toInt64(e.sign)"),
    "errors": _counted("errors", "e.status >= 400 OR e.error_type <> ''"),
    "failed": _counted("failed", "e.status >= 400"),
    "denied": _counted("denied", "e.denied_reason <> ''"),
    "prompt_tokens": _summed("prompt_tokens"),
    "cached_prompt_tokens": _summed("cached_prompt_tokens"),
    "completion_tokens": _summed("completion_tokens"),
    "reasoning_tokens": _summed("reasoning_tokens"),
    "tokens": _Value(
        "u.prompt_tokens + u.cached_prompt_tokens + u.completion_tokens + u.reasoning_tokens",
        "e.sign * (e.prompt_tokens + e.cached_prompt_tokens + e.completion_tokens + e.reasoning_tokens)",
    ),
    "cost_nanos": _summed("cost_nanos"),
    "estimated_cost_nanos": _Value(
        "u.estimated_cost_nanos", "if(e.cost_state = 'estimated', e.sign * e.cost_nanos, 0)"
    ),
    "credits": _summed("credits"),
    "unpriced": _counted("unpriced", "e.cost_state = 'unpriced'"),
    "cache_hits": _counted("cache_hits", "e.cache = 'hit'"),
    "cache_misses": _counted("cache_misses", "e.cache = 'miss'"),
    "bytes_out": _summed("bytes_out"),
    "latency_count": _counted("latency_count", "e.latency_us IS NOT NULL"),
    "latency_sum_us": _Value("u.latency_sum_us", "e.sign * ifNull(e.latency_us, 0)"),
    "latency_bins": _Value(
        "u.latency_bins",
        f"if(isNull(e.latency_us), {_NO_BINS}, "
        f"map({LATENCY_BIN.format('ifNull(e.latency_us, 0)')}, toInt64(e.sign)))",
        "sumMap",
        _NO_BINS,
    ),
    "kinds": _Value(
        "map(toString(u.kind), u.requests)",
        "map(toString(e.kind), toInt64(e.sign))",
        "sumMap",
        "CAST(map() AS Map(String, Int64))",
    ),
    "minutes": _Value(
        "u.minutes",
        "map(toUInt8(toMinute(e.occurred_at)), toInt64(e.sign))",
        "sumMap",
        "CAST(map() AS Map(UInt8, Int64))",
    ),
    "latency_max_us": _Value("u.latency_max_us", "ifNull(e.latency_us, -1)", "max", "toInt64(-1)"),
    "first_at_us": _Value(
        "u.first_at_us", "toUnixTimestamp64Micro(e.occurred_at)", "min", f"toInt64({_NEVER_US})"
    ),
    "last_at_us": _Value("u.last_at_us", "toUnixTimestamp64Micro(e.occurred_at)", "max", "toInt64(0)"),
    "corrections": _Value("u.corrections", "toInt64(e.sign = -1)"),
}
_EXTREMES: Final = frozenset({"latency_max_us", "first_at_us", "last_at_us"})
"""The values that cannot be subtracted."""


def _milliseconds(value: Any) -> float | None:
    return None if value is None else value / 1000


def _bin_milliseconds(value: Any) -> float | None:
    return None if value is None else bin_latency_us(value) / 1000


def _instant(value: Any) -> str | None:
    return None if value is None else to_text(from_us(value))


def _counts(value: Any) -> dict[str, int]:
    return {kind: count for kind, count in value.items() if count}


def _as_is(value: Any) -> Any:
    return value


class _Measure(NamedTuple):
    """A column of the answer: the values it needs, its expression over them, and how a result is shown."""

    needs: tuple[str, ...]
    expression: str
    show: Callable[[Any], Any] = _as_is
    empty: Any = 0


def _percentile(quantile: str) -> _Measure:
    # Nearest rank, as domain/rollups.py percentile_us; the answer is the bin, which Python turns into µs.
    # The keys that sumMap returns are sorted.
    index = f"arrayFirstIndex(c -> c >= ceil({quantile} * latency_count), latency_ranks)"
    return _Measure(
        ("latency_count", "latency_bins"),
        f"if(latency_count > 0, toInt32(mapKeys(latency_bins)[{index}]), NULL)",
        _bin_milliseconds,
        None,
    )


_MEASURES: Final[dict[str, _Measure]] = {
    **{name: _Measure((name,), name) for name in MEASURES if name in _VALUES},
    "latency_ms_avg": _Measure(
        ("latency_count", "latency_sum_us"),
        "if(latency_count > 0, latency_sum_us / latency_count, NULL)",
        _milliseconds,
        None,
    ),
    "latency_ms_max": _Measure(
        ("latency_count", "latency_max_us"),
        "if(latency_count > 0 AND latency_max_us >= 0, latency_max_us, NULL)",
        _milliseconds,
        None,
    ),
    "latency_ms_p50": _percentile("0.5"),
    "latency_ms_p90": _percentile("0.9"),
    "latency_ms_p95": _percentile("0.95"),
    "latency_ms_p99": _percentile("0.99"),
    "kinds": _Measure(("kinds",), "kinds", _counts, {}),
    "peak_requests_per_minute": _Measure(("requests", "minutes"), "peak_minute"),
    "peak_requests_per_hour": _Measure(("requests",), "peak_hour"),
    "first_at": _Measure(
        ("first_at_us",), f"if(first_at_us IN (0, {_NEVER_US}), NULL, first_at_us)", _instant, None
    ),
    "last_at": _Measure(("last_at_us",), "if(last_at_us = 0, NULL, last_at_us)", _instant, None),
}
_PEAKS: Final = frozenset({"peak_requests_per_minute", "peak_requests_per_hour"})

_COLUMNS: Final = {
    "account": "account_id",
    "project": "project_id",
    "key": "key_id",
    "endpoint": "if(method = '' OR route = '', concat(method, route), concat(method, ' ', route))",
    "method": "method",
    "route": "route",
    "model": "model",
    "status": "status",
    "kind": "kind",
    "error_type": "error_type",
    "denied_reason": "denied_reason",
    "cache": "cache",
}
"""Dimension → expression over a row of either table."""

_BUCKETS: Final = {
    # Days count from 1970-01-01, a Thursday: with Monday as 0 that day is 3.
    "day": "{day}",
    "week": "{day} - ({day} + 10 - {{week_start:UInt8}}) % 7",
    "month": "toInt32(toStartOfMonth(toDate({at}, {{time_zone:String}})))",
}


def report(query: UsageQuery, with_pending: Sequence[Record] = (), *, assuming: bool = True) -> Statement:
    """
    Return the statement that answers *query*; `answer_of` reads its result.

    Args:
        query: What is asked.
        also: Records of sign 1 that count too; the store has neither them nor their corrections.
        assuming: Whether to assume that nothing comes after the range and no maximum was taken back, which is
            faster. If `is_unsure` says of the result that this does not hold, ask again with False.

    Raises:
        BadParameter: A dimension, measure, granularity, sort column, time zone or weekday is unknown.
    """
    return _Report(query, with_pending, assuming).statement()


def is_unsure(result: Sequence[Sequence[Any]]) -> bool:
    """Return whether *result* rests on an assumption that does not hold: it is no answer then."""
    return bool(result) and bool(result[0][3])  # The total comes first.


def answer_of(query: UsageQuery, result: Sequence[Sequence[Any]]) -> UsageAnswer:
    """Return the answer that the rows of `report(query)`'s result stand for."""
    measures = [(name, _MEASURES[name]) for name in query.measures]
    keys = ([_bucket_reader(query)] if query.granularity else []) + [_as_is] * len(query.group_by)
    names = (["time"] if query.granularity else []) + list(query.group_by)
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
    return UsageAnswer(rows, totals, row_count)


def event_scope(
    parameters: dict[str, Any],
    *,
    account_id: str | None,
    from_us: int,
    to_us: int,
    prefix: str = "",
) -> list[str]:
    """Return the conditions on `events` of one account (None: all) and span; values go to *parameters*."""
    parameters[f"{prefix}from_us"] = from_us
    parameters[f"{prefix}to_us"] = to_us
    conditions = [
        f"occurred_at >= fromUnixTimestamp64Micro({{{prefix}from_us:Int64}}, 'UTC')",
        f"occurred_at < fromUnixTimestamp64Micro({{{prefix}to_us:Int64}}, 'UTC')",
    ]
    if account_id is not None:
        parameters["account_id"] = account_id
        conditions.insert(0, "account_id = {account_id:String}")
    return conditions


_Branch = tuple[dict[str, str], str]
"""Column → expression, of the keys and then the values; and the table with its conditions."""


class _Source(NamedTuple):
    """What to select from, the keys, and the values merged over its rows; both as (name, expression)."""

    sql: str
    keys: list[tuple[str, str]]
    merged: list[tuple[str, str]]


class _Report:
    """One query on its way to SQL: the parameters gather as the fragments are made."""

    def __init__(self, query: UsageQuery, with_pending: Sequence[Record], assuming: bool) -> None:
        _check(query)
        self.query = query
        self.with_pending = with_pending
        self.assuming = assuming
        self.parameters: dict[str, Any] = {}
        needs = dict.fromkeys(["requests", "cost_nanos"])
        for name in query.measures:
            needs.update(dict.fromkeys(_MEASURES[name].needs))
        self.values: list[str] = list(needs)
        self.peaks = not _PEAKS.isdisjoint(query.measures)
        self.groups = [self._group(index, name) for index, name in enumerate(query.group_by)]
        self.keys = (["bucket"] if query.granularity else []) + [f"g{i}" for i in range(len(self.groups))]
        self.filters = [
            self._filter(i, name, allowed) for i, (name, allowed) in enumerate(query.filters.items())
        ]
        self.extremes = not _EXTREMES.isdisjoint(needs)
        self.start, self.end = max(0, query.from_us), min(query.to_us, AT_MAX_US)
        self.hours, self.days = self._tiers()
        self.unsure = self._assume() if assuming else "0"

    def statement(self) -> Statement:
        """
        Return one SELECT for the groups and, rolled up, the total.

        Flat wherever possible: at a million events planning the statement takes longer than running it.
        """
        query = self.query
        source = self._per_hour() if self.peaks else self._source()
        measures = [f"{_MEASURES[name].expression} AS m{i}" for i, name in enumerate(query.measures)]
        keys = [name if name == expression else f"{expression} AS {name}" for name, expression in source.keys]
        merged = ", ".join(f"{merge} AS {name}" for name, merge in source.merged)
        if "latency_bins" in self.values:
            merged += ", arrayCumSum(mapValues(latency_bins)) AS latency_ranks"
        alive = "requests <> 0 OR cost_nanos <> 0"
        if not self.keys:
            sql = (
                f"WITH {merged} SELECT 1, 0, {alive}, {self.unsure}, {', '.join(measures)} FROM {source.sql}"
            )
            return Statement(sql, self.parameters)
        order = f"is_total DESC, {self._order()}"
        kept = "alive"
        if self.peaks:
            is_total, group_by = "is_total", f"is_total, {', '.join(self.keys)}"
        else:
            # ROLLUP adds up groups, where GROUPING SETS would read every row once more; its subtotals go.
            is_total = f"grouping({self.keys[0]}) AS is_total"
            group_by = f"ROLLUP({', '.join(self.keys)})"
            if len(self.keys) > 1:
                kept = f"grouping({self.keys[-1]}) = 0 AND alive"
        # The total comes first and stays, whatever the page.
        sql = f"""
            WITH {merged}
            SELECT {is_total}, count() OVER () - 1 AS row_count, {alive} AS alive,
                {self.unsure} AS unsure, {", ".join(keys + measures)}
            FROM {source.sql} GROUP BY {group_by}
            HAVING is_total = 1 OR {kept} ORDER BY {order} LIMIT {{rows:UInt64}}"""
        self.parameters["rows"] = query.offset + query.limit + 1
        if query.offset:
            self.parameters["offset"] = query.offset
            sql = f"""
                SELECT * EXCEPT row_at
                FROM (SELECT *, row_number() OVER (ORDER BY {order}) - 1 AS row_at FROM ({sql}))
                WHERE is_total = 1 OR row_at > {{offset:UInt64}} ORDER BY row_at"""
        return Statement(sql, self.parameters)

    def _per_hour(self) -> _Source:
        """The source summed up per group and UTC hour: a peak is the most of an hour or minute of it."""
        source = self._source()
        keys = [f"{expression} AS {name}" for name, expression in source.keys]
        merged = [f"{merge} AS {name}" for name, merge in source.merged if name != "minutes"]
        again = [(name, f"{_VALUES[name].merge}(h.{name})") for name, _ in source.merged if name != "minutes"]
        merged.append(f"{dict(source.merged)['requests']} AS peak_hour")
        again.append(("peak_hour", "max(h.peak_hour)"))
        if "minutes" in self.values:
            merged.append(f"arrayMax(mapValues({dict(source.merged)['minutes']})) AS peak_minute")
            again.append(("peak_minute", "max(h.peak_minute)"))
        group_by = "hour_at"
        if self.keys:
            keys.insert(0, f"grouping({self.keys[0]}) AS is_total")
            group_by = f"GROUPING SETS (({', '.join([*self.keys, 'hour_at'])}), (hour_at))"
        columns = ", ".join([*keys, *merged])
        sql = f"(SELECT {columns} FROM {source.sql} GROUP BY {group_by}) AS h"
        return _Source(sql, [(name, name) for name in self.keys], again)

    def _tiers(self) -> tuple[str | None, str | None]:
        """The smallest tiers of hours and of days that can tell; None where these are too wide."""
        query = self.query
        needs = {*query.group_by, *query.filters, *({"latency_bins", "minutes"} & set(self.values))}
        if "kinds" in self.values:
            needs.add("kind")
        hours, days = (
            next((tier.name for tier in _TIERS if tier.width_us == width and needs <= tier.tells), None)
            for width in (HOUR_US, DAY_US)
        )
        width = _width_us(query, self.start, self.end)
        if width % HOUR_US:
            return None, None
        # The hours with corrections are told by rollups of hours.
        in_hours = width % DAY_US or self.peaks or (self.extremes and not self.assuming)
        return hours, None if in_hours else days

    def _assume(self) -> str:
        """Round the end of the range up, past all that is stored, most likely; return the doubts as SQL."""
        doubts = []
        width = HOUR_US if self.days is None else DAY_US
        if self.hours is not None and self.end % HOUR_US:
            self.end = -(-self.end // width) * width
            self.parameters["asked_to_us"] = self.query.to_us
            doubts.append(("last_at_us", "last_at_us >= {asked_to_us:Int64}"))
        if self.extremes:
            doubts.append(("corrections", "corrections <> 0"))
        self.values = list(dict.fromkeys([*self.values, *(name for name, _ in doubts)]))
        return " OR ".join(doubt for _, doubt in doubts) or "0"

    def _source(self) -> _Source:
        """The rows to sum up, from rollups where these can tell and from records elsewhere."""
        start, end = self.start, self.end
        first_hour, last_hour = -(-start // HOUR_US) * HOUR_US, end // HOUR_US * HOUR_US
        if first_hour >= last_hour or self.hours is None:
            branches = [self._events((start, end))]
        else:
            branches = [self._rollups(first_hour, last_hour)]
            ragged = [span for span in ((start, first_hour), (last_hour, end)) if span[0] < span[1]]
            if ragged:
                branches.append(self._events(*ragged))
            if self.extremes and not self.assuming:
                branches.append(self._limit_status(first_hour, last_hour))
        if self.with_pending:
            branches.append(self._coming((start, end)))
        (columns, origin), *others = branches
        names = list(columns)[: -len(self.values)]
        if not others:
            merged = [(name, f"{_VALUES[name].merge}({columns[name]})") for name in self.values]
            return _Source(origin, [(name, columns[name]) for name in names], merged)
        united = " UNION ALL ".join(
            f"SELECT {', '.join(f'{expression} AS {name}' for name, expression in columns.items())} "
            f"FROM {origin}"
            for columns, origin in branches
        )
        merged = [(name, f"{_VALUES[name].merge}(s.{name})") for name in self.values]
        return _Source(f"({united}) AS s", [(name, name) for name in names], merged)

    def _rollups(self, start: int, end: int) -> _Branch:
        scope = self._rollup_scope(start, end)
        columns = self._key_columns("at")
        for name in self.values:
            columns[name] = _VALUES[name].rollup
            if name in _EXTREMES and not self.assuming:
                corrected = f"(account_id, at) IN ({self._corrected(start, end)})"
                columns[name] = f"if({corrected}, {_VALUES[name].nothing}, {columns[name]})"
        return columns, f"usage_rollups AS u WHERE {' AND '.join(scope)}"

    def _rollup_scope(self, start: int, end: int) -> list[str]:
        """The conditions on `usage_rollups`: whole days as days, if days can tell, and the rest as hours."""
        first_day, last_day = -(-start // DAY_US) * DAY_US, end // DAY_US * DAY_US
        if self.days is None or first_day >= last_day:
            first_day = last_day = end
        spans = []
        for i, (tier, since, until) in enumerate(
            [(self.hours, start, first_day), (self.days, first_day, last_day), (self.hours, last_day, end)]
        ):
            if since < until:
                self.parameters |= {f"since{i}": since // 1_000_000, f"until{i}": until // 1_000_000}
                spans.append(
                    f"(tier = '{tier}' AND at >= toDateTime({{since{i}:UInt32}}, 'UTC')"
                    f" AND at < toDateTime({{until{i}:UInt32}}, 'UTC'))"
                )
        conditions = [f"({' OR '.join(spans)})", *self.filters]
        if self.query.account_id is not None:
            self.parameters["account_id"] = self.query.account_id
            conditions.insert(0, "account_id = {account_id:String}")
        return conditions

    def _corrected(self, start: int, end: int) -> str:
        conditions = " AND ".join(self._rollup_scope(start, end))
        return f"SELECT account_id, at FROM usage_rollups WHERE {conditions} AND corrections > 0"

    def _events(self, *spans: tuple[int, int]) -> _Branch:
        # One branch for both ends of a range: each costs as much to plan as it takes to run.
        scope = self._event_scope("", spans[0][0], spans[-1][1])
        if len(spans) > 1:
            self.parameters |= {"gap_from_us": spans[0][1], "gap_to_us": spans[-1][0]}
            scope.append(
                "NOT (occurred_at >= fromUnixTimestamp64Micro({gap_from_us:Int64}, 'UTC')"
                " AND occurred_at < fromUnixTimestamp64Micro({gap_to_us:Int64}, 'UTC'))"
            )
        columns = self._key_columns("occurred_at")
        for name in self.values:
            columns[name] = _VALUES[name].event
            if name in _EXTREMES and not self.assuming:
                columns[name] = f"if({_stands(scope)}, {columns[name]}, {_VALUES[name].nothing})"
        return columns, f"events AS e WHERE {' AND '.join(scope)}"

    def _limit_status(self, start: int, end: int) -> _Branch:
        """The records that stand in hours with corrections, for what cannot be subtracted; the rest is 0."""
        scope = self._event_scope("whole_", start, end)
        scope.append(f"(account_id, toStartOfHour(occurred_at)) IN ({self._corrected(start, end)})")
        columns = self._key_columns("occurred_at")
        for name in self.values:
            value = _VALUES[name]
            columns[name] = value.event if name in _EXTREMES else value.nothing
        return columns, f"events AS e WHERE {' AND '.join(scope)} AND {_stands(scope)}"

    def _coming(self, span: tuple[int, int]) -> _Branch:
        """The records that the store does not have: each stands."""
        self.parameters["also_text"] = "\n".join(map(_as_text, self.with_pending))
        columns = self._key_columns("occurred_at") | {name: _VALUES[name].event for name in self.values}
        return columns, f"{_ALSO} AS e WHERE {' AND '.join(self._event_scope('also_', *span))}"

    def _event_scope(self, prefix: str, start: int, end: int) -> list[str]:
        scope = event_scope(
            self.parameters, account_id=self.query.account_id, from_us=start, to_us=end, prefix=prefix
        )
        return scope + self.filters

    def _key_columns(self, at: str) -> dict[str, str]:
        columns = {"bucket": self._bucket(at)} if self.query.granularity else {}
        columns |= {f"g{i}": expression for i, expression in enumerate(self.groups)}
        if self.peaks:
            columns["hour_at"] = f"toUnixTimestamp(toStartOfHour({at}))"
        return columns

    def _bucket(self, at: str) -> str:
        """The bucket of the instant *at*: seconds since the epoch, or local days since it from a day on."""
        granularity = self.query.granularity
        if granularity == "minute":
            return f"toUnixTimestamp(toStartOfMinute({at}))"
        self.parameters["time_zone"] = self.query.time_zone
        if granularity == "hour":
            return f"toUnixTimestamp(toStartOfHour({at}, {{time_zone:String}}))"
        if granularity == "week":
            self.parameters["week_start"] = WEEKDAYS.index(self.query.week_start)
        day = f"toInt32(toDate({at}, {{time_zone:String}}))"
        return _BUCKETS[str(granularity)].format(at=at, day=day)

    def _group(self, index: int, name: str) -> str:
        if not name.startswith(TAG_PREFIX):
            return _COLUMNS[name]
        self.parameters[f"group_tag{index}"] = name.removeprefix(TAG_PREFIX)
        return f"tags[{{group_tag{index}:String}}]"

    def _filter(self, index: int, name: str, allowed: Sequence[str]) -> str:
        if name == "status":
            self.parameters[f"filter{index}"] = statuses_of(allowed)
            return f"has({{filter{index}:Array(UInt16)}}, status)"
        self.parameters[f"filter{index}"] = list(allowed)
        column = _COLUMNS.get(name, "")
        if name.startswith(TAG_PREFIX):
            self.parameters[f"filter_tag{index}"] = name.removeprefix(TAG_PREFIX)
            column = f"tags[{{filter_tag{index}:String}}]"
        return f"{column} IN {{filter{index}:Array(String)}}"

    def _order(self) -> str:
        columns = {name: f"m{i}" for i, name in enumerate(self.query.measures)}
        columns |= {name: f"g{i}" for i, name in enumerate(self.query.group_by)}
        if self.query.granularity:
            columns["time"] = "bucket"
        terms = []
        for term in self.query.sort:
            name = term.removeprefix("-")
            column = f"toString(mapSort({columns[name]}))" if name == "kinds" else columns[name]
            terms.append(f"{column} {'DESC' if term.startswith('-') else 'ASC'} NULLS LAST")
        return ", ".join(terms + self.keys)


def _as_text(record: Record) -> str:
    """Return a record as a line of `_ALSO`."""
    whole, micros = divmod(record.occurred_at_us, 1_000_000)
    return _encode((f"{whole}.{micros:06}", *_also_values(record))).decode()


def _stands(scope: Sequence[str]) -> str:
    """Whether no correction took the record back. Its row would be a copy, so it lies in the same *scope*."""
    withdrawn = f"SELECT account_id, id, revision FROM events WHERE {' AND '.join(scope)} AND sign = -1"
    return f"e.sign = 1 AND (e.account_id, e.id, e.revision) NOT IN ({withdrawn})"


def _width_us(query: UsageQuery, start: int, end: int) -> int:
    """Return the width of the widest UTC buckets, up to a day, of which none lies in two buckets of *query*."""
    if query.granularity is None:
        return DAY_US
    if query.granularity == "minute":
        return 60_000_000
    years = range(max(from_us(start).year, _YEAR_MIN), from_us(end).year + 1)
    width = gcd(*(_offsets_us(query.time_zone, year) for year in years))
    return gcd(width, HOUR_US) if query.granularity == "hour" else width


@lru_cache(maxsize=4096)
def _offsets_us(time_zone: str, year: int) -> int:
    """Return the greatest common divisor of a day and the zone's offsets of a year; none lasts under a week."""
    zone = ZoneInfo(time_zone)
    start = datetime(year, 1, 1, tzinfo=UTC)
    offsets = {(start + timedelta(days=day)).astimezone(zone).utcoffset() for day in range(-1, 368, 7)}
    return gcd(DAY_US, *(offset // timedelta(microseconds=1) for offset in offsets if offset is not None))


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


def _check(query: UsageQuery) -> None:
    """Raise BadParameter unless every name in *query* is one of ours."""
    if query.granularity is not None and query.granularity not in GRANULARITIES:
        raise BadParameter(f"granularity is one of {', '.join(GRANULARITIES)}", field="granularity")
    for field, names in (("group_by", query.group_by), ("filters", tuple(query.filters))):
        for name in names:
            if name not in DIMENSIONS and not (name.startswith(TAG_PREFIX) and len(name) > len(TAG_PREFIX)):
                raise BadParameter(
                    f"{field} takes {', '.join(DIMENSIONS)} or tag:<name>, not {name!r}", field=field
                )
    for name in query.measures:
        if name not in _MEASURES:
            raise BadParameter(f"measures takes {', '.join(MEASURES)}, not {name!r}", field="measures")
    columns = {*query.measures, *query.group_by} | ({"time"} if query.granularity else set())
    for term in query.sort:
        if term.removeprefix("-") not in columns:
            raise BadParameter(f"sort takes a column of the answer, not {term!r}", field="sort")
    if query.week_start not in WEEKDAYS:
        raise BadParameter(f"week_start is one of {', '.join(WEEKDAYS)}", field="week_start")
    if query.limit < 0 or query.offset < 0:
        raise BadParameter("limit and offset are not negative", field="limit")
    try:
        zone_of(query.time_zone)
    except ValueError as exc:
        raise BadParameter(
            f"time_zone is an IANA name such as Europe/Berlin, not {query.time_zone!r}", field="time_zone"
        ) from exc
