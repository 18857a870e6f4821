"""
The SQL of the usage report: one statement answers rows, totals and the row count.

A report reads up to three sources, united before one aggregation:

* `usage_hourly` for the whole UTC hours of the range;
* `events` for the ragged ends of the range, or for all of it when the question is finer than an hour;
* `events` again for maxima, minima: these cannot be subtracted, so that for hours with corrections they are
  taken from the records that still stand.

Statements are put together from the fragments of this module only. What a caller says arrives as a
server-side parameter (`{name:Type}`), so that no value is ever read as SQL.
"""

# ruff: noqa: S608 - see above: no fragment below comes from a caller.

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from tollkeeper.domain.events import TIME_MIN_US
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.rollups import bin_latency_us
from tollkeeper.domain.usage import DIMENSIONS, GRANULARITIES, MEASURES, UsageQuery
from tollkeeper.errors import BadParameter
from tollkeeper.ports import UsageAnswer

HOUR_US: Final = 3_600_000_000
AT_MAX_US: Final = 4_102_444_800_000_000
"""2100-01-01: later ends of a range are read as this, since an hour of `usage_hourly` ends in 2106."""

_YEAR_MIN: Final = from_us(TIME_MIN_US).year

TAG_PREFIX: Final = "tag:"

_NEVER_US: Final = 2**63 - 1
"""What `min` starts from: `first_at_us` of a rollup row without a record of sign 1."""

LATENCY_BIN: Final = "toUInt16(if({0} <= 0, 0, 1 + floor(log({0}) / 0.01980262729617973)))"
"""domain/rollups.py `latency_bin`; usage_hourly has the same formula. The divisor is the double ln 1.02."""


class Statement(NamedTuple):
    """SQL with the values of its server-side parameters."""

    sql: str
    parameters: dict[str, Any]


class _Value(NamedTuple):
    """A summand: its expression per row of `usage_hourly` (u) and of `events` (e), how rows merge, and what
    leaves a merge as it is."""

    hourly: str
    event: str
    merge: str = "sum"
    nothing: str = "toInt64(0)"


def _summed(name: str) -> _Value:
    return _Value(f"u.{name}", f"e.sign * e.{name}")


def _counted(condition: str) -> _Value:
    return _Value(
        f"if({condition.format('u')}, u.requests, 0)", f"if({condition.format('e')}, toInt64(e.sign), 0)"
    )


_NO_BINS: Final = "CAST(map() AS Map(UInt16, Int64))"
_VALUES: Final[dict[str, _Value]] = {
    "requests": _Value("u.requests", "toInt64(e.sign)"),
    "errors": _counted("{0}.status >= 400 OR {0}.error_type <> ''"),
    "denied": _counted("{0}.denied_reason <> ''"),
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
    "unpriced": _Value("u.unpriced", "if(e.cost_state = 'unpriced', toInt64(e.sign), 0)"),
    "cache_hits": _counted("{0}.cache = 'hit'"),
    "cache_misses": _counted("{0}.cache = 'miss'"),
    "bytes_out": _summed("bytes_out"),
    "latency_count": _Value("u.latency_count", "if(isNull(e.latency_us), 0, toInt64(e.sign))"),
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
    sorted_bins = "mapSort(latency_bins)"
    rank = f"c -> c >= ceil({quantile} * latency_count)"
    index = f"arrayFirstIndex({rank}, arrayCumSum(mapValues({sorted_bins})))"
    return _Measure(
        ("latency_count", "latency_bins"),
        f"if(latency_count > 0, toInt32(mapKeys({sorted_bins})[{index}]), NULL)",
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


def report(query: UsageQuery) -> Statement:
    """
    Return the statement that answers *query*; `answer_of` reads its result.

    Raises:
        BadParameter: A dimension, measure, granularity, sort column, time zone or weekday is unknown.
    """
    return _Report(query).statement()


def answer_of(query: UsageQuery, result: Sequence[Sequence[Any]]) -> UsageAnswer:
    """Return the answer that the rows of `report(query)`'s result stand for."""
    measures = [(name, _MEASURES[name]) for name in query.measures]
    keys = ([_bucket_reader(query)] if query.granularity else []) + [_as_is] * len(query.group_by)
    names = (["time"] if query.granularity else []) + list(query.group_by)
    totals: dict[str, Any] = {name: measure.empty for name, measure in measures}
    rows: list[dict[str, Any]] = []
    row_count = 0
    for is_total, counted, alive, *values in result:
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
    """Return the conditions on `events` of one account (None: all) and span; their values go to *parameters*."""
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


class _Report:
    """One query on its way to SQL: the parameters gather as the fragments are made."""

    def __init__(self, query: UsageQuery) -> None:
        _check(query)
        self.query = query
        self.parameters: dict[str, Any] = {}
        needs = dict.fromkeys(["requests", "cost_nanos"])
        for name in query.measures:
            needs.update(dict.fromkeys(_MEASURES[name].needs))
        self.values: list[str] = list(needs)
        self.peaks = not _PEAKS.isdisjoint(query.measures)
        self.extremes = not _EXTREMES.isdisjoint(self.values)
        self.groups = [self._group(index, name) for index, name in enumerate(query.group_by)]
        self.keys = (["bucket"] if query.granularity else []) + [f"g{i}" for i in range(len(self.groups))]
        self.filters = [
            self._filter(i, name, allowed) for i, (name, allowed) in enumerate(query.filters.items())
        ]

    def statement(self) -> Statement:
        query = self.query
        self.parameters["offset"] = query.offset
        self.parameters["limit"] = query.limit
        measures = [f"{_MEASURES[name].expression} AS m{i}" for i, name in enumerate(query.measures)]
        columns = self.keys + [f"m{i}" for i in range(len(measures))]
        alive = "requests <> 0 OR cost_nanos <> 0"
        shown = f"SELECT {', '.join(['is_total', f'{alive} AS alive', *self.keys, *measures])} FROM ({self._grouped()})"
        if not self.keys:
            return Statement(
                f"SELECT is_total, 0, alive, {', '.join(columns)} FROM ({shown})", self.parameters
            )
        sql = f"""
            SELECT is_total, row_count, alive, {", ".join(columns)}
            FROM (
                SELECT *, countIf(is_total = 0) OVER () AS row_count,
                    row_number() OVER (PARTITION BY is_total ORDER BY {self._order()}) AS row_at
                FROM ({shown}) WHERE is_total = 1 OR alive
            )
            WHERE is_total = 1 OR (row_at > {{offset:UInt64}} AND row_at <= {{offset:UInt64}} + {{limit:UInt64}})
            ORDER BY is_total, row_at"""
        return Statement(sql, self.parameters)

    def _grouped(self) -> str:
        """One row per group, and the total: `is_total`, the keys and the merged values."""
        merged = [f"{_VALUES[name].merge}(s.{name}) AS {name}" for name in self.values]
        if not self.peaks:
            return self._aggregate(merged)
        # A peak is the most of one hour or minute over everything else, so hours are summed up first.
        merged.append("sum(s.requests) AS peak_hour")
        again = [f"{_VALUES[name].merge}(h.{name}) AS {name}" for name in self.values if name != "minutes"]
        again.append("max(h.peak_hour) AS peak_hour")
        if "minutes" in self.values:
            merged.append("arrayMax(mapValues(sumMap(s.minutes))) AS peak_minute")
            again.append("max(h.peak_minute) AS peak_minute")
        keys = ", ".join(["is_total", *self.keys])
        return f"SELECT {keys}, {', '.join(again)} FROM ({self._aggregate(merged, 'hour_at')}) AS h GROUP BY {keys}"

    def _aggregate(self, merged: list[str], *also: str) -> str:
        source = f"{self._source()} AS s"
        if not self.keys:
            group_by = f" GROUP BY {', '.join(also)}" if also else ""
            return f"SELECT 1 AS is_total, {', '.join(merged)} FROM {source}{group_by}"
        sets = f"({', '.join([*self.keys, *also])}), ({', '.join(also)})"
        columns = ", ".join([f"grouping({self.keys[0]}) AS is_total", *self.keys, *merged])
        return f"SELECT {columns} FROM {source} GROUP BY GROUPING SETS ({sets})"

    def _source(self) -> str:
        """The rows to sum up, from rollups where these can tell and from records elsewhere."""
        query = self.query
        start, end = max(0, query.from_us), min(query.to_us, AT_MAX_US)
        first_hour, last_hour = -(-start // HOUR_US) * HOUR_US, end // HOUR_US * HOUR_US
        if first_hour >= last_hour or not _rollups_tell(query, start, end):
            return f"({self._events('', start, end)})"
        branches = [self._hourly(first_hour, last_hour)]
        if start < first_hour:
            branches.append(self._events("head_", start, first_hour))
        if last_hour < end:
            branches.append(self._events("tail_", last_hour, end))
        if self.extremes:
            branches.append(self._standing(first_hour, last_hour))
        return f"({' UNION ALL '.join(branches)})"

    def _hourly(self, start: int, end: int) -> str:
        conditions = " AND ".join(self._hourly_scope(start, end))
        columns = self._key_columns("hour")
        for name in self.values:
            expression, nothing = _VALUES[name].hourly, _VALUES[name].nothing
            if name in _EXTREMES:
                expression = (
                    f"if((account_id, hour) IN ({self._corrected(start, end)}), {nothing}, {expression})"
                )
            columns.append(f"{expression} AS {name}")
        return f"SELECT {', '.join(columns)} FROM usage_hourly AS u WHERE {conditions}"

    def _hourly_scope(self, start: int, end: int) -> list[str]:
        self.parameters["first_hour"] = start // 1_000_000
        self.parameters["last_hour"] = end // 1_000_000
        conditions = [
            "hour >= toDateTime({first_hour:UInt32}, 'UTC')",
            "hour < toDateTime({last_hour:UInt32}, 'UTC')",
            *self.filters,
        ]
        if self.query.account_id is not None:
            self.parameters["account_id"] = self.query.account_id
            conditions.insert(0, "account_id = {account_id:String}")
        return conditions

    def _corrected(self, start: int, end: int) -> str:
        conditions = " AND ".join(self._hourly_scope(start, end))
        return f"SELECT account_id, hour FROM usage_hourly WHERE {conditions} AND corrections > 0"

    def _events(self, prefix: str, start: int, end: int) -> str:
        scope = self._event_scope(prefix, start, end)
        columns = self._key_columns("occurred_at")
        for name in self.values:
            expression = _VALUES[name].event
            if name in _EXTREMES:
                stands = f"e.sign = 1 AND (e.account_id, e.id, e.revision) NOT IN ({_withdrawn(scope)})"
                expression = f"if({stands}, {expression}, {_VALUES[name].nothing})"
            columns.append(f"{expression} AS {name}")
        return f"SELECT {', '.join(columns)} FROM events AS e WHERE {' AND '.join(scope)}"

    def _standing(self, start: int, end: int) -> str:
        """The records that stand in hours with corrections, for what cannot be subtracted; other values are 0."""
        scope = self._event_scope("whole_", start, end)
        scope.append(f"(account_id, toStartOfHour(occurred_at)) IN ({self._corrected(start, end)})")
        stands = f"e.sign = 1 AND (e.account_id, e.id, e.revision) NOT IN ({_withdrawn(scope)})"
        columns = self._key_columns("occurred_at")
        for name in self.values:
            value = _VALUES[name]
            columns.append(f"{value.event if name in _EXTREMES else value.nothing} AS {name}")
        return f"SELECT {', '.join(columns)} FROM events AS e WHERE {' AND '.join(scope)} AND {stands}"

    def _event_scope(self, prefix: str, start: int, end: int) -> list[str]:
        scope = event_scope(
            self.parameters, account_id=self.query.account_id, from_us=start, to_us=end, prefix=prefix
        )
        return scope + self.filters

    def _key_columns(self, at: str) -> list[str]:
        columns = [f"{expression} AS g{i}" for i, expression in enumerate(self.groups)]
        if self.query.granularity:
            columns.insert(0, f"{self._bucket(at)} AS bucket")
        if self.peaks:
            columns.append(f"toUnixTimestamp(toStartOfHour({at}, 'UTC')) AS hour_at")
        return columns

    def _bucket(self, at: str) -> str:
        """The bucket of the instant *at*: seconds since the epoch up to an hour, local days since it from a day."""
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
            self.parameters[f"filter{index}"] = _statuses(allowed)
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


def _withdrawn(scope: Sequence[str]) -> str:
    """The records that a correction took back. Its row is a copy, so it lies in the same *scope*."""
    return f"SELECT account_id, id, revision FROM events WHERE {' AND '.join(scope)} AND sign = -1"


def _rollups_tell(query: UsageQuery, start: int, end: int) -> bool:
    """Whether whole UTC hours answer *query*: nothing finer is asked and no hour lies in two buckets."""
    if query.granularity == "minute":
        return False
    if any(name.startswith(TAG_PREFIX) for name in (*query.group_by, *query.filters)):
        return False
    if query.granularity is None:
        return True
    years = range(max(from_us(start).year, _YEAR_MIN), from_us(end).year + 1)
    return all(_whole_hours(query.time_zone, year) for year in years)


@lru_cache(maxsize=4096)
def _whole_hours(time_zone: str, year: int) -> bool:
    """Whether the zone is whole hours from UTC all through a year; no offset lasts less than a week."""
    zone = ZoneInfo(time_zone)
    start = datetime(year, 1, 1, tzinfo=UTC)
    offsets = {(start + timedelta(days=day)).astimezone(zone).utcoffset() for day in range(-1, 368, 7)}
    return all(offset is not None and offset % timedelta(hours=1) == timedelta(0) for offset in offsets)


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


def _statuses(allowed: Sequence[str]) -> list[int]:
    # "none" is 0; what is no number of 16 bits matches no record.
    numbers = ["0" if value == "" else value for value in allowed]
    return [int(text) for text in numbers if text.isascii() and text.isdigit() and len(text) <= 4]


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
        ZoneInfo(query.time_zone)
    except (KeyError, ValueError, OSError) as exc:
        raise BadParameter(
            f"time_zone is an IANA name such as Europe/Berlin, not {query.time_zone!r}", field="time_zone"
        ) from exc
