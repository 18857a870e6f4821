"""
The SQL of the usage report: one statement returns rows, totals and the row count (`answers.py` reads them).

A report reads up to four sources, united before one aggregation:

* `usage_rollups` for the whole UTC days and hours of the range, each in the smallest tier that has them (`tiers.py`);
* `events` for the partial hours at both ends of the range, or for all of it when buckets are finer than an hour;
* `events` again for maxima and minima: these cannot be subtracted, so for hours with corrections they are taken from
  the records that are still in force, and from `expired_extremes`, which has them of those that expired;
* records that are not in the store yet, which the caller gives (`pending_rows.py`).

Most queries end now, and few maxima are corrected. So a statement first assumes that nothing is stored after the
range, whose last day or hour it then reads whole, and that no record of it was taken back. It also selects whether
that holds (`unsure`); where it does not, the exact form of the statement must be run.

Statements are put together from the fragments of this module only. A caller's values are server-side
parameters (`{name:Type}`), so that no value is ever read as SQL.
"""

# ruff: noqa: S608 - see above: no fragment below comes from a caller.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from tollkeeper.adapters.clickhouse import matching, pending_rows
from tollkeeper.adapters.clickhouse.tiers import DAY_US, HOUR_US, tiers_of
from tollkeeper.adapters.clickhouse.values import EXTREMES, MEASURES, PEAKS, VALUES, Value, value_of_quantity
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import Conditions
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.quantities import quantity_of_unit
from tollkeeper.domain.usage import DIMENSIONS, GRANULARITIES, UsageQuery, sort_term, statuses_of
from tollkeeper.domain.usage import MEASURES as MEASURE_NAMES
from tollkeeper.domain.zones import zone_of
from tollkeeper.errors import BadParameter

AT_MAX_US: Final = 4_102_444_800_000_000
"""2100-01-01: later ends of a range are read as this, since an hour of `usage_rollups` ends in 2106."""
TAG_PREFIX: Final = "tag:"

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


class Statement(NamedTuple):
    """SQL with the values of its server-side parameters; and the spans of which it reads records, in µs."""

    sql: str
    parameters: dict[str, Any]
    record_spans: Sequence[tuple[int, int]] = ()


def report(query: UsageQuery, with_pending: Sequence[Record] = (), *, assuming: bool = True) -> Statement:
    """
    Return the statement for *query*; `answers.answer_of` reads its result.

    Args:
        query: The query.
        with_pending: Records of sign 1 that count too; the store has neither them nor their corrections.
        assuming: Whether to assume that nothing comes after the range and no maximum was taken back, which is
            faster. If `answers.is_unsure` says of the result that this does not hold, run it with False.

    Raises:
        BadParameter: A dimension, measure, granularity, sort column, time zone or weekday is unknown.
    """
    return _Report(query, with_pending, assuming).statement()


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


def filter_condition(parameters: dict[str, Any], index: int, name: str, allowed: Sequence[str]) -> str:
    """Return the condition of one filter, on rows of either table; its values go to *parameters*, under *index*."""
    if name == "status":
        parameters[f"filter{index}"] = statuses_of(allowed)
        return f"has({{filter{index}:Array(UInt16)}}, status)"
    parameters[f"filter{index}"] = list(allowed)
    column = _COLUMNS.get(name, "")
    if name.startswith(TAG_PREFIX):
        parameters[f"filter_tag{index}"] = name.removeprefix(TAG_PREFIX)
        column = f"tags[{{filter_tag{index}:String}}]"
    return f"{column} IN {{filter{index}:Array(String)}}"


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
        self.record_spans: list[tuple[int, int]] = []
        needs = dict.fromkeys(["requests", "cost_nanos"])
        self.of: dict[str, Value] = dict(VALUES)
        """Value → its expressions; those of the quantities that are asked among them."""
        self.measures: list[str] = []
        for index, name in enumerate(query.measures):
            if (quantity := quantity_of_unit(name)) is not None:
                value, parameter = f"quantity{index}", f"quantity_name{index}"
                self.parameters[parameter] = quantity
                self.of[value] = value_of_quantity(parameter)
                needs[value] = None
                self.measures.append(value)
            else:
                needs.update(dict.fromkeys(MEASURES[name].needs))
                self.measures.append(MEASURES[name].expression)
        self.values: list[str] = list(needs)
        self.peaks = not PEAKS.isdisjoint(query.measures)
        self.groups = [self._group(index, name) for index, name in enumerate(query.group_by)]
        self.keys = ["bucket"] if query.granularity else ["part"] if query.cuts_us else []
        self.keys += [f"g{i}" for i in range(len(self.groups))]
        self.filters = [
            filter_condition(self.parameters, i, name, allowed)
            for i, (name, allowed) in enumerate(query.filters.items())
        ]
        self.extremes = not EXTREMES.isdisjoint(needs)
        self.start, self.end = max(0, query.from_us), min(query.to_us, AT_MAX_US)
        # The hours with corrections are found by rollups of hours.
        in_hours = self.peaks or (self.extremes and not assuming)
        self.hours, self.days = tiers_of(query, self.values, (self.start, self.end), in_hours=in_hours)
        self.unsure = self._assume() if assuming else "0"

    def statement(self) -> Statement:
        """
        Return one SELECT for the groups and, rolled up, the total.

        Flat wherever possible: at a million events planning the statement takes longer than running it.
        """
        query = self.query
        source = self._per_hour() if self.peaks else self._source()
        measures = [f"{expression} AS m{i}" for i, expression in enumerate(self.measures)]
        keys = [name if name == expression else f"{expression} AS {name}" for name, expression in source.keys]
        merged = ", ".join(f"{merge} AS {name}" for name, merge in source.merged)
        if "latency_bins" in self.values:
            merged += ", arrayCumSum(mapValues(latency_bins)) AS latency_ranks"
        alive = "requests <> 0 OR cost_nanos <> 0"
        if "adjustments" in self.values:
            alive += " OR adjustments <> 0"
        if not self.keys:
            sql = (
                f"WITH {merged} SELECT 1, 0, {alive}, {self.unsure}, {', '.join(measures)} FROM {source.sql}"
            )
            return Statement(sql, self.parameters, self.record_spans)
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
        return Statement(sql, self.parameters, self.record_spans)

    def _per_hour(self) -> _Source:
        """The source summed up per group and UTC hour: a peak is the most of an hour or minute of it."""
        source = self._source()
        keys = [f"{expression} AS {name}" for name, expression in source.keys]
        merged = [f"{merge} AS {name}" for name, merge in source.merged if name != "minutes"]
        again = [(name, f"{self.of[name].merge}(h.{name})") for name, _ in source.merged if name != "minutes"]
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

    def _assume(self) -> str:
        """Round the end of the range up, past all that is stored, most likely; return the doubts as SQL."""
        doubts = []
        width = HOUR_US if self.days is None else DAY_US
        # An adjustment is no request, so the time of the last request does not tell of one after the range.
        if self.hours is not None and self.end % HOUR_US and "adjustments" not in self.values:
            self.end = -(-self.end // width) * width
            self.parameters["query_to_us"] = self.query.to_us
            doubts.append(("last_at_us", "last_at_us >= {query_to_us:Int64}"))
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
            cut_hours = self._cut_hours(first_hour, last_hour)
            spans = [(start, first_hour), *((at, at + HOUR_US) for at in cut_hours), (last_hour, end)]
            edge_spans = [span for span in spans if span[0] < span[1]]
            if edge_spans:
                branches.append(self._events(*edge_spans))
            if self.extremes and not self.assuming:
                branches.append(self._in_force(first_hour, last_hour))
                branches.append(self._expired_in_force(first_hour, last_hour))
        if self.with_pending:
            branches.append(self._pending((start, end)))
        (columns, origin), *others = branches
        names = list(columns)[: -len(self.values)]
        if not others:
            merged = [(name, f"{self.of[name].merge}({columns[name]})") for name in self.values]
            return _Source(origin, [(name, columns[name]) for name in names], merged)
        united = " UNION ALL ".join(
            f"SELECT {', '.join(f'{expression} AS {name}' for name, expression in columns.items())} "
            f"FROM {origin}"
            for columns, origin in branches
        )
        merged = [(name, f"{self.of[name].merge}(s.{name})") for name in self.values]
        return _Source(f"({united}) AS s", [(name, name) for name in names], merged)

    def _rollups(self, start: int, end: int) -> _Branch:
        scope = self._rollup_scope(start, end)
        columns = self._key_columns("at")
        for name in self.values:
            columns[name] = self.of[name].rollup
            if name in EXTREMES and not self.assuming:
                corrected = f"(account_id, at) IN ({self._corrected(start, end)})"
                columns[name] = f"if({corrected}, {self.of[name].nothing}, {columns[name]})"
        return columns, f"usage_rollups AS u WHERE {' AND '.join(scope)}"

    def _rollup_scope(self, start: int, end: int) -> list[str]:
        """The conditions on `usage_rollups`: whole days as days, if days can tell, and the rest as hours."""
        spans = []
        for i, (tier, since, until) in enumerate(self._tier_spans(start, end)):
            if since < until:
                self.parameters |= {f"since{i}": since // 1_000_000, f"until{i}": until // 1_000_000}
                spans.append(
                    f"(tier = '{tier}' AND at >= toDateTime({{since{i}:UInt32}}, 'UTC')"
                    f" AND at < toDateTime({{until{i}:UInt32}}, 'UTC'))"
                )
        conditions = [f"({' OR '.join(spans) or '0'})", *self.filters]
        if self.query.account_id is not None:
            self.parameters["account_id"] = self.query.account_id
            conditions.insert(0, "account_id = {account_id:String}")
        return conditions

    def _tier_spans(self, start: int, end: int) -> list[tuple[str | None, int, int]]:
        """Return tier and span of what is read of `usage_rollups`: all but the hours with a cut; some are empty."""
        spans: list[tuple[str | None, int, int]] = []
        gaps = {cut: cut for cut in self.query.cuts_us if cut % HOUR_US == 0 and start < cut < end}
        gaps |= {at: at + HOUR_US for at in self._cut_hours(start, end)}
        for until, following in [*sorted(gaps.items()), (end, end)]:
            first_day, last_day = -(-start // DAY_US) * DAY_US, until // DAY_US * DAY_US
            if self.days is None or first_day >= last_day:
                first_day = last_day = until
            spans += [
                (self.hours, start, first_day),
                (self.days, first_day, last_day),
                (self.hours, last_day, until),
            ]
            start = following
        return spans

    def _cut_hours(self, start: int, end: int) -> list[int]:
        """Return the starts of the whole hours in a span that a cut divides: only records tell their parts."""
        hours = {cut // HOUR_US * HOUR_US for cut in self.query.cuts_us if cut % HOUR_US}
        return sorted(hour for hour in hours if start <= hour < end)

    def _corrected(self, start: int, end: int) -> str:
        conditions = " AND ".join(self._rollup_scope(start, end))
        return f"SELECT account_id, at FROM usage_rollups WHERE {conditions} AND corrections > 0"

    def _events(self, *spans: tuple[int, int]) -> _Branch:
        self.record_spans += spans
        # One branch for all of them: each costs as much to plan as it takes to run.
        scope = self._event_scope("", spans[0][0], spans[-1][1])
        for i, (before, after) in enumerate(pairwise(spans)):
            self.parameters |= {f"gap{i}_from_us": before[1], f"gap{i}_to_us": after[0]}
            scope.append(
                f"NOT (occurred_at >= fromUnixTimestamp64Micro({{gap{i}_from_us:Int64}}, 'UTC')"
                f" AND occurred_at < fromUnixTimestamp64Micro({{gap{i}_to_us:Int64}}, 'UTC'))"
            )
        columns = self._key_columns("occurred_at")
        for name in self.values:
            columns[name] = self.of[name].event
            if name in EXTREMES and not self.assuming:
                columns[name] = f"if({is_in_force(scope)}, {columns[name]}, {self.of[name].nothing})"
        return columns, f"events AS e WHERE {' AND '.join(scope)}"

    def _in_force(self, start: int, end: int) -> _Branch:
        """The records in force of hours with corrections: for values that cannot be subtracted; the others are 0."""
        scope = self._event_scope("whole_", start, end)
        scope.append(f"(account_id, toStartOfHour(occurred_at)) IN ({self._corrected(start, end)})")
        columns = self._key_columns("occurred_at")
        for name in self.values:
            value = self.of[name]
            columns[name] = value.event if name in EXTREMES else value.nothing
        return columns, f"events AS e WHERE {' AND '.join(scope)} AND {is_in_force(scope)}"

    def _expired_in_force(self, start: int, end: int) -> _Branch:
        """The same of the records that have expired."""
        scope = [
            f"at >= toDateTime({start // 1_000_000}, 'UTC') AND at < toDateTime({end // 1_000_000}, 'UTC')",
            f"(account_id, at) IN ({self._corrected(start, end)})",
            *self.filters,
        ]
        if self.query.account_id is not None:
            scope.insert(0, "account_id = {account_id:String}")
        columns = self._key_columns("at")
        for name in self.values:
            value = self.of[name]
            columns[name] = value.rollup if name in EXTREMES else value.nothing
        return columns, f"expired_extremes AS u WHERE {' AND '.join(scope)}"

    def _pending(self, span: tuple[int, int]) -> _Branch:
        """The records that the store does not have: each is in force."""
        self.parameters["pending_text"] = pending_rows.as_text(self.with_pending)
        columns = self._key_columns("occurred_at") | {name: self.of[name].event for name in self.values}
        return (
            columns,
            f"{pending_rows.TABLE} AS e WHERE {' AND '.join(self._event_scope('pending_', *span))}",
        )

    def _event_scope(self, prefix: str, start: int, end: int) -> list[str]:
        scope = event_scope(
            self.parameters, account_id=self.query.account_id, from_us=start, to_us=end, prefix=prefix
        )
        return scope + self.filters

    def _key_columns(self, at: str) -> dict[str, str]:
        columns = {"bucket": self._bucket(at)} if self.query.granularity else {}
        if self.query.cuts_us:
            columns["part"] = self._part(at)
        columns |= {f"g{i}": expression for i, expression in enumerate(self.groups)}
        if self.peaks:
            columns["hour_at"] = f"toUnixTimestamp(toStartOfHour({at}))"
        return columns

    def _part(self, at: str) -> str:
        """The part of the range of the instant *at*: how many cuts are not after it."""
        self.parameters |= {f"cut{i}_us": cut for i, cut in enumerate(self.query.cuts_us)}
        return " + ".join(
            f"toInt32({at} >= fromUnixTimestamp64Micro({{cut{i}_us:Int64}}, 'UTC'))"
            for i in range(len(self.query.cuts_us))
        )

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

    def _order(self) -> str:
        columns = {name: f"m{i}" for i, name in enumerate(self.query.measures)}
        columns |= {name: f"g{i}" for i, name in enumerate(self.query.group_by)}
        if self.query.granularity:
            columns["time"] = "bucket"
        if self.query.cuts_us:
            columns["part"] = "part"
        terms = []
        for text in self.query.sort:
            term = sort_term(text, columns)
            assert term is not None  # `_check` refuses others.
            column = columns[term.column]
            if term.column == "kinds":
                column = f"toString(mapSort({column}))"
            nulls = "FIRST" if term.nulls_first else "LAST"
            terms.append(f"{column} {'DESC' if term.descending else 'ASC'} NULLS {nulls}")
        return ", ".join(terms + self.keys)


def is_in_force(scope: Sequence[str]) -> str:
    """Whether no correction took the record back. Its row would be a copy, so it lies in the same *scope*."""
    withdrawn = f"SELECT account_id, id, revision FROM events WHERE {' AND '.join(scope)} AND sign = -1"
    return f"e.sign = 1 AND (e.account_id, e.id, e.revision) NOT IN ({withdrawn})"


def check_filters(filters: Iterable[str]) -> None:
    """Raise BadParameter unless every name of *filters* is a dimension or tag."""
    _check_dimensions("filters", filters)


def _check_dimensions(field: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in DIMENSIONS and not (name.startswith(TAG_PREFIX) and len(name) > len(TAG_PREFIX)):
            raise BadParameter(
                f"{field} takes {', '.join(DIMENSIONS)} or tag:<name>, not {name!r}", field=field
            )


def _check(query: UsageQuery) -> None:
    """Raise BadParameter unless every name in *query* is one of ours."""
    if query.granularity is not None and query.granularity not in GRANULARITIES:
        raise BadParameter(f"granularity must be one of {', '.join(GRANULARITIES)}", field="granularity")
    _check_dimensions("group_by", query.group_by)
    check_filters(query.filters)
    for name in query.measures:
        if name not in MEASURES and quantity_of_unit(name) is None:
            raise BadParameter(
                f"measures takes {', '.join(MEASURE_NAMES)} or quantity.<name>, not {name!r}",
                field="measures",
            )
    columns = {*query.measures, *query.group_by} | ({"time"} if query.granularity else set())
    if query.cuts_us:
        columns.add("part")
        added_up = PEAKS.isdisjoint(query.measures) and not any(
            EXTREMES.intersection(MEASURES[name].needs) for name in query.measures if name in MEASURES
        )
        if query.granularity is not None or not added_up:
            raise BadParameter(
                "cuts_us takes no granularity, and measures that can be added up", field="cuts_us"
            )
        bounds = (query.from_us, *query.cuts_us, query.to_us)
        if any(before >= after for before, after in pairwise(bounds)):
            raise BadParameter("cuts_us must be within the range, each after the one before", field="cuts_us")
    for term in query.sort:
        if sort_term(term, columns) is None:
            raise BadParameter(f"sort takes a column of the answer, not {term!r}", field="sort")
    if query.week_start not in WEEKDAYS:
        raise BadParameter(f"week_start must be one of {', '.join(WEEKDAYS)}", field="week_start")
    if query.limit < 0 or query.offset < 0:
        raise BadParameter("limit and offset must not be negative", field="limit")
    try:
        zone_of(query.time_zone)
    except ValueError as exc:
        raise BadParameter(
            f"time_zone must be an IANA name such as Europe/Berlin, not {query.time_zone!r}",
            field="time_zone",
        ) from exc


def charge_query(
    columns: str,
    account_id: str,
    by: Sequence[str],
    span_us: tuple[int, int],
    project_id: str | None,
    key_ids: Sequence[str] | None,
    match: Conditions | None,
    cuts_us: Sequence[int] = (),
) -> tuple[str, dict[str, Any]]:
    """
    Return the statement over the events that a budget counts, and its parameters.

    Args:
        columns: Aggregates of `events AS e`; the values of *by* come before them, one row a combination.
        project_id, key_ids, match: Any, when None.
        cuts_us: Where the span is cut, its start included: the part's start, as text, comes after the values.
    """
    parameters: dict[str, Any] = {}
    from_us, to_us = span_us
    scope = event_scope(parameters, account_id=account_id, from_us=from_us, to_us=to_us)
    if project_id is not None:
        parameters["project_id"] = project_id
        scope.append("project_id = {project_id:String}")
    if key_ids is not None:
        parameters["key_ids"] = list(key_ids)
        scope.append("key_id IN {key_ids:Array(String)}")
    scope += matching.conditions(match, parameters)
    expressions = matching.values(by, parameters)
    if cuts_us:
        parameters["cuts_us"] = list(cuts_us)
        # A binary search per event.
        expressions.append("toString(roundDown(toUnixTimestamp64Micro(occurred_at), {cuts_us:Array(Int64)}))")
    values = "".join(f"{value} AS v{i}, " for i, value in enumerate(expressions))
    grouped = f" GROUP BY {', '.join(f'v{i}' for i in range(len(expressions)))}" if expressions else ""
    return f"SELECT {values}{columns} FROM events AS e WHERE {' AND '.join(scope)}{grouped}", parameters
