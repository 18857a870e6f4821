"""
Several usage queries as one statement: over one account, with the same filters, each with its own range and groups.

Planning a statement takes longer than running it, and each would read the partial hours at both ends of its range from
the events once more. So all of them share one scan of `usage_rollups`, in which a row belongs to the queries that its
tier and time answer, and one of `events`. A row is copied once per query that it belongs to (`ARRAY JOIN`), and summed
up by the number of the query and the keys of that one.

What a statement of `queries.py` decides by itself is decided here alike: values, tiers, edges, and the assumptions, of
which each row says whether they hold. Queries that cannot share a statement (`statement_of` returns None), and those
whose assumptions do not hold, are asked one by one.
"""

# ruff: noqa: S608 - as in queries.py: no fragment below comes from a caller.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tollkeeper.adapters.clickhouse import pending_rows
from tollkeeper.adapters.clickhouse.answers import bucket_reader
from tollkeeper.adapters.clickhouse.queries import (
    AT_MAX_US,
    Statement,
    bucket_of,
    check,
    column_of,
    filter_of,
)
from tollkeeper.adapters.clickhouse.tiers import DAY_US, HOUR_US, Tiers, tiers_of
from tollkeeper.adapters.clickhouse.values import EXTREMES, MEASURES, PEAKS, VALUES, as_is
from tollkeeper.domain.events import Record
from tollkeeper.domain.increments import ordered
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.ports import ReportRows

_UTC: Final = ("UTC", "Etc/UTC")
_MAPS: Final = frozenset({"latency_bins", "kinds"})
_Span = tuple[int, int]
_TIME_AT: Final = 3
_DIMENSIONS_AT: Final = 5
"""Columns of a row: number of the set, whether it is unsure, whether it is alive, time, hour of a peak, the
dimensions, the measures, and the peaks of a minute and of an hour."""


class _Set(NamedTuple):
    """
    The sums of one number in the statement.

    Attributes:
        query: What is asked: its range, its groups and its filters.
        keys: Names of the columns by which it is grouped: `t` for time, `h` for the hour of a peak, `d0` and so on.
        rollup_spans: `(tier, from, to)` in microseconds.
        edge_spans: What is read from the events, `[from, to)`.
        doubt: Whether something may lie after the end of its range, which was rounded up.
        has_extremes: Whether a correction would be in its way.
    """

    query: UsageQuery
    keys: tuple[str, ...]
    rollup_spans: tuple[tuple[str, int, int], ...]
    edge_spans: tuple[_Span, ...]
    doubt: bool
    has_extremes: bool


class Combined(NamedTuple):
    """A statement, and how its result is read: of each query the numbers of its rows, its total and its hours."""

    statement: Statement
    queries: tuple[UsageQuery, ...]
    rows: tuple[int | None, ...]
    totals: tuple[int, ...]
    hours: tuple[int | None, ...]
    dimensions: tuple[str, ...]
    measures: tuple[str, ...]

    def is_unsure(self, result: Sequence[Sequence[Any]]) -> bool:
        """Return whether *result* rests on an assumption that does not hold: it is no answer then."""
        return any(row[1] for row in result)

    def answers_of(self, result: Sequence[Sequence[Any]]) -> list[ReportRows]:
        """Return the answer of each query, in their order."""
        by_set: dict[int, list[Sequence[Any]]] = {}
        for row in result:
            if row[2]:
                by_set.setdefault(row[0], []).append(row)
        return [self._answer(place, by_set) for place in range(len(self.queries))]

    def _answer(self, place: int, by_set: dict[int, list[Sequence[Any]]]) -> ReportRows:
        query = self.queries[place]
        total = next(iter(by_set.get(self.totals[place], ())), None)
        hours = by_set.get(self.hours[place] or -1, ())
        totals = self._shown(query, total, hours)
        if self.rows[place] is None:
            rows = [dict(totals)] if total is not None else []
            return ReportRows(rows[query.offset : query.offset + query.limit], totals, len(rows))
        names = [*(["time"] if query.granularity else []), *query.group_by]
        read_time = bucket_reader(query) if query.granularity else as_is
        rows = []
        for row in by_set.get(self.rows[place] or -1, ()):
            keys = [_DIMENSIONS_AT + self.dimensions.index(name) for name in query.group_by]
            values = [*([read_time(row[_TIME_AT])] if query.granularity else []), *(row[at] for at in keys)]
            rows.append(dict(zip(names, values, strict=True)) | self._shown(query, row, ()))
        rows = ordered(query.sort, names, rows)
        return ReportRows(rows[query.offset : query.offset + query.limit], totals, len(rows))

    def _shown(
        self, query: UsageQuery, row: Sequence[Any] | None, hours: Sequence[Sequence[Any]]
    ) -> dict[str, Any]:
        if row is None:
            return {name: MEASURES[name].empty for name in query.measures}
        first = _DIMENSIONS_AT + len(self.dimensions)
        shown = {}
        for name in query.measures:
            if name == "peak_requests_per_hour":
                shown[name] = max((hour[-1] for hour in hours), default=0)
            elif name == "peak_requests_per_minute":
                shown[name] = max((hour[-2] for hour in hours), default=0)
            else:
                shown[name] = MEASURES[name].show(row[first + self.measures.index(name)])
        return shown


def statement_of(queries: Sequence[UsageQuery], with_pending: Sequence[Record] = ()) -> Combined | None:
    """
    Return the statement for all of *queries*; None if they must be asked one by one.

    Raises:
        BadParameter: As `queries.report`.
    """
    for query in queries:
        check(query)
    return _Combining(queries, with_pending).combined() if _fit(queries) else None


def _fit(queries: Sequence[UsageQuery]) -> bool:
    one = queries[0]
    series = {query.granularity for query in queries if query.granularity}
    return (
        len(queries) > 1
        and len(series) <= 1
        and all(
            (query.account_id, query.filters, query.week_start, query.cuts_us)
            == (one.account_id, one.filters, one.week_start, ())
            and query.time_zone in _UTC
            and all(name in MEASURES and _MAPS.isdisjoint(MEASURES[name].needs) for name in query.measures)
            and not any(name.startswith("tag:") for name in query.group_by)
            # The hours of a peak come out as rows: of the whole range, but not of each group.
            and (PEAKS.isdisjoint(query.measures) or not (query.group_by or query.granularity))
            for query in queries
        )
    )


class _Combining:
    """Queries on their way to one statement: the parameters and the sets gather."""

    def __init__(self, queries: Sequence[UsageQuery], with_pending: Sequence[Record]) -> None:
        self.queries = tuple(queries)
        self.with_pending = with_pending
        self.parameters: dict[str, Any] = {}
        self.dimensions = tuple(dict.fromkeys(name for query in queries for name in query.group_by))
        self.measures = tuple(
            dict.fromkeys(name for query in queries for name in query.measures if name not in PEAKS)
        )
        needs = dict.fromkeys(["requests", "cost_nanos", "last_at_us", "corrections"])
        for name in (*self.measures, *(name for query in queries for name in query.measures)):
            needs |= dict.fromkeys(MEASURES[name].needs)
        self.has_minutes = needs.pop("minutes", "") is None
        self.values = tuple(needs)
        self.last_us = min(max(query.to_us for query in queries), AT_MAX_US)
        self.sets: list[_Set] = []

    def combined(self) -> Combined | None:
        totals: dict[_Span, int] = {}
        rows: list[int | None] = []
        total_of: list[int] = []
        hours: list[int | None] = []
        for query in self.queries:
            keys: tuple[str, ...] = ("t",) if query.granularity else ()
            keys += tuple(f"d{self.dimensions.index(name)}" for name in query.group_by)
            rows.append(self._add(query, keys) if keys else None)
            span = (query.from_us, query.to_us)
            if span not in totals:
                alike = [q for q in self.queries if (q.from_us, q.to_us) == span]
                measures = tuple(dict.fromkeys(name for q in alike for name in q.measures))
                plain = UsageQuery(
                    account_id=query.account_id,
                    from_us=query.from_us,
                    to_us=query.to_us,
                    filters=query.filters,
                    measures=tuple(name for name in measures if name not in PEAKS),
                )
                totals[span] = self._add(plain, ())
            total_of.append(totals[span])
            hours.append(None if PEAKS.isdisjoint(query.measures) else self._add(query, ("h",)))
        if any(not one.rollup_spans and not one.edge_spans for one in self.sets):
            # Buckets finer than an hour, or groups that no rollup has: all of it would be read from the events.
            return None
        return Combined(
            self._statement(),
            self.queries,
            tuple(rows),
            tuple(total_of),
            tuple(hours),
            self.dimensions,
            self.measures,
        )

    def _add(self, query: UsageQuery, keys: tuple[str, ...]) -> int:
        """Return the number of a new set: from 1 on."""
        of_peaks = keys == ("h",)
        needs = {need for name in query.measures for need in MEASURES[name].needs}
        values = [*self.values, *(["minutes"] if of_peaks else [])]
        start, end = max(0, query.from_us), min(query.to_us, AT_MAX_US)
        tiers = tiers_of(query, values, (start, end), in_hours=of_peaks)
        doubt = False
        if tiers.hours is not None and end == self.last_us and end % HOUR_US and "adjustments" not in needs:
            width = HOUR_US if tiers.days is None else DAY_US
            end, doubt = -(-end // width) * width, True
        rollups, edges = _spans(tiers, start, end)
        self.sets.append(_Set(query, keys, rollups, edges, doubt, not EXTREMES.isdisjoint(needs)))
        return len(self.sets)

    # -- the statement ----------------------------------------------------------------------------------

    def _statement(self) -> Statement:
        merged = [f"{VALUES[name].merge}(r.{name}) AS {name}" for name in self.values]
        keys = [f"if({self._in('t')}, r.t, 0) AS k_t", f"if({self._in('h')}, r.h, 0) AS k_h"]
        names = ["k_t", "k_h"]
        for i, name in enumerate(self.dimensions):
            nothing = "0" if name == "status" else "''"
            keys.append(f"if({self._in(f'd{i}')}, r.d{i}, {nothing}) AS k_d{i}")
            names.append(f"k_d{i}")
        merged.append(
            f"arrayMax(mapValues(sumMapIf(r.minutes, {self._in('h')}))) AS peak_minute"
            if self.has_minutes
            else "toInt64(0) AS peak_minute"
        )
        extremes = [str(number) for number, one in enumerate(self.sets, 1) if one.has_extremes]
        doubts = [f"corrections <> 0 AND s IN ({', '.join(extremes) or '0'})"]
        doubts += [
            f"s = {number} AND last_at_us >= {{end{number}:Int64}}"
            for number, one in enumerate(self.sets, 1)
            if one.doubt
        ]
        self.parameters |= {
            f"end{number}": one.query.to_us for number, one in enumerate(self.sets, 1) if one.doubt
        }
        alive = "requests <> 0 OR cost_nanos <> 0"
        if "adjustments" in self.values:
            alive += " OR adjustments <> 0"
        measures = [f"{MEASURES[name].expression} AS m{i}" for i, name in enumerate(self.measures)]
        sql = f"""
            WITH {", ".join(merged)}
            SELECT s, {" OR ".join(f"({doubt})" for doubt in doubts)} AS unsure, {alive} AS alive,
                {", ".join([*keys, *measures])}, peak_minute, requests AS peak_hour
            FROM ({" UNION ALL ".join(self._branches())}) AS r ARRAY JOIN r.sets AS s
            GROUP BY s, {", ".join(names)} HAVING alive OR unsure"""
        edges = dict.fromkeys(span for one in self.sets for span in one.edge_spans)
        return Statement(sql, self.parameters, tuple(edges))

    def _in(self, key: str) -> str:
        """The condition that the rows of a set have a key."""
        numbers = [str(number) for number, one in enumerate(self.sets, 1) if key in one.keys]
        return f"s IN ({', '.join(numbers)})" if numbers else "0"

    def _branches(self) -> list[str]:
        query = self.queries[0]
        filters = [
            filter_of(i, name, allowed, self.parameters)
            for i, (name, allowed) in enumerate(query.filters.items())
        ]
        if query.account_id is not None:
            self.parameters["account_id"] = query.account_id
            filters.insert(0, "account_id = {account_id:String}")
        branches = []
        of_rollups = [[self._is_rollup(*span) for span in one.rollup_spans] for one in self.sets]
        if any(of_rollups):
            columns = {name: VALUES[name].rollup for name in self.values}
            if self.has_minutes:
                columns["minutes"] = "u.minutes"
            branches.append(self._branch("usage_rollups AS u", "at", columns, of_rollups, filters))
        events = {name: VALUES[name].event for name in self.values}
        if self.has_minutes:
            events["minutes"] = VALUES["minutes"].event
        of_edges = [[self._is_within(*span) for span in one.edge_spans] for one in self.sets]
        if any(of_edges):
            branches.append(
                self._branch("events AS e", "occurred_at", events, of_edges, filters, summed=True)
            )
        if self.with_pending:
            self.parameters["pending_text"] = pending_rows.as_text(self.with_pending)
            of_all = [[self._is_within(one.query.from_us, one.query.to_us)] for one in self.sets]
            branches.append(
                self._branch(
                    f"{pending_rows.TABLE} AS e", "occurred_at", events, of_all, filters, summed=True
                )
            )
        return branches

    def _branch(
        self,
        table: str,
        at: str,
        values: dict[str, str],
        belongs: Sequence[Sequence[str]],
        filters: Sequence[str],
        *,
        summed: bool = False,
    ) -> str:
        """One table's rows with the numbers of the sets that each belongs to; *summed* up first, if they are many."""
        series = next((query for query in self.queries if query.granularity), None)
        of_set = [" OR ".join(dict.fromkeys(conditions)) or "0" for conditions in belongs]
        numbers = ", ".join(f"if({condition}, {number}, 0)" for number, condition in enumerate(of_set, 1))
        columns = {
            "sets": f"arrayFilter(n -> n > 0, [{numbers}])",
            "t": "0" if series is None else bucket_of(series, at, self.parameters),
            "h": f"toUnixTimestamp(toStartOfHour({at}))" if self.has_minutes else "0",
        }
        columns |= {f"d{i}": column_of(name) for i, name in enumerate(self.dimensions)}
        # Some span's rows each: what belongs to no set is not read.
        spans = dict.fromkeys(condition for conditions in belongs for condition in conditions)
        where = " AND ".join([*filters, f"({' OR '.join(spans)})"])
        group_by = f" GROUP BY {', '.join(columns)}" if summed else ""
        made = [f"{expression} AS {name}" for name, expression in columns.items()]
        for name, expression in values.items():
            made.append(
                f"{VALUES[name].merge}({expression}) AS {name}" if summed else f"{expression} AS {name}"
            )
        return f"SELECT {', '.join(made)} FROM {table} WHERE {where}{group_by}"

    def _is_rollup(self, tier: str, start: int, end: int) -> str:
        since, until = self._named("since", start // 1_000_000), self._named("until", end // 1_000_000)
        return (
            f"(tier = '{tier}' AND at >= toDateTime({{{since}:UInt32}}, 'UTC')"
            f" AND at < toDateTime({{{until}:UInt32}}, 'UTC'))"
        )

    def _is_within(self, start: int, end: int) -> str:
        since, until = self._named("from_us", start), self._named("to_us", end)
        return (
            f"(occurred_at >= fromUnixTimestamp64Micro({{{since}:Int64}}, 'UTC')"
            f" AND occurred_at < fromUnixTimestamp64Micro({{{until}:Int64}}, 'UTC'))"
        )

    def _named(self, kind: str, value: int) -> str:
        """Return the name of a parameter of *value*: one for equal values, so that equal spans have equal text."""
        name = f"{kind}_{value}"
        self.parameters[name] = value
        return name


def _spans(tiers: Tiers, start: int, end: int) -> tuple[tuple[tuple[str, int, int], ...], tuple[_Span, ...]]:
    """Return what is read of `usage_rollups`, and of `events` at the edges; neither if only records can tell."""
    first_hour, last_hour = -(-start // HOUR_US) * HOUR_US, end // HOUR_US * HOUR_US
    if tiers.hours is None:
        return (), ()
    if first_hour >= last_hour:
        return (), ((start, end),)
    first_day, last_day = -(-first_hour // DAY_US) * DAY_US, last_hour // DAY_US * DAY_US
    if tiers.days is None or first_day >= last_day:
        first_day = last_day = last_hour
    rollups = (
        (tiers.hours, first_hour, first_day),
        (tiers.days or "", first_day, last_day),
        (tiers.hours, last_day, last_hour),
    )
    edges = ((start, first_hour), (last_hour, end))
    return (
        tuple(span for span in rollups if span[1] < span[2]),
        tuple(span for span in edges if span[0] < span[1]),
    )
