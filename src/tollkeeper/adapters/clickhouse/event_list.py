"""
Pages of single events, newest first, each at a bounded cost.

A page is searched in slices of time, from its place back. Before a slice is read, the engine estimates by primary key
and partitions how many rows that takes: an empty span costs nothing, and a slice is made so narrow that it reads no
more than `SLICE_ROWS`. So no query sorts or scans the whole range. A search that finds too little in time (`PAGE_S`),
as with a filter that few events pass, ends with what it has, and the next page goes on from there.

All accounts together are the dear case: the table is ordered by account first. Its granules of small accounts have
events of many days, so a slice then reads the times of a whole month, at least.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from tollkeeper.adapters.clickhouse import queries
from tollkeeper.adapters.clickhouse.bounded_queries import BoundedQueries
from tollkeeper.adapters.clickhouse.expiry import Expiry
from tollkeeper.adapters.clickhouse.queries import Statement
from tollkeeper.adapters.clickhouse.record_form import RECORD_COLUMNS
from tollkeeper.domain.event_pages import EventPlace, EventQuery, place_at, place_of
from tollkeeper.domain.events import TIME_MIN_US, Record
from tollkeeper.domain.store_answers import EventRows

SLICE_ROWS: Final = 2_000_000
"""The most rows that one slice should read: some 100 ms on two cores."""
FIRST_ROWS: Final = 100_000
"""The same of the first slice: most pages are full by then. Each slice may read `_ROWS_GROWTH` times the one before."""
PAGE_S: Final = 2.0
"""A search that takes longer ends before the next slice, with what it has found."""
EMPTY_PAGE_S: Final = 8.0
"""The same of one that has found nothing: an empty page is of little use."""
FIRST_US: Final = 3_600_000_000
NARROWEST_US: Final = 1_000_000
_NARROWING: Final = 8
_ROWS_GROWTH: Final = 8
_WIDTH_GROWTH: Final = 32


class _Slice(NamedTuple):
    """A span of time, and how many rows the engine would read for it."""

    since_us: int
    until_us: int
    rows: int


class EventList:
    """Any thread may call."""

    def __init__(self, engine_queries: BoundedQueries, expiry: Expiry) -> None:
        self._queries = engine_queries
        self._expiry = expiry

    def latest(self, query: EventQuery) -> EventRows:
        """See `event_lists.EventLists.latest`."""
        search = _Search(query)
        found, reached = self._find(search)
        # Afterwards: what expired before has told so, and what expires from now on was read.
        return EventRows(
            found,
            reached,
            self._expiry.detail_from_us(query.account_id),
            self._expiry.lacks(query.account_id, [search.span_down_to(reached)]),
        )

    def _find(self, search: _Search) -> tuple[list[Record], EventPlace | None]:
        limit = search.query.limit
        began = time.monotonic()
        found: list[Record] = []
        until, width, rows_max = min(search.until_us, self._newest_us() + 1), FIRST_US, FIRST_ROWS
        while until > search.from_us:
            slice_ = self._slice(search, until, width, rows_max)
            width = (slice_.until_us - slice_.since_us) * _WIDTH_GROWTH
            if slice_.rows:
                # At least as many: where accounts share granules, no narrower slice reads less.
                rows_max = max(min(rows_max * _ROWS_GROWTH, SLICE_ROWS), slice_.rows)
                # One more than the page has tells whether there is a next one.
                rows = self._queries.rows(search.statement(slice_, limit + 1 - len(found)))
                found += [Record(*row) for row in rows]
            if len(found) > limit:
                return found[:limit], EventPlace(*place_of(found[limit - 1]))
            until = slice_.since_us
            most_s = PAGE_S if found else EMPTY_PAGE_S
            if time.monotonic() - began > most_s and until > search.from_us:
                return found, EventPlace(until, "", "")
        return found, None

    def _newest_us(self) -> int:
        """Return the time of the newest record of any account, by its parts; far off if they do not tell."""
        sql = """
            SELECT toInt64(toUnixTimestamp(max(max_time)) + 1) * 1000000 FROM system.parts
            WHERE database = currentDatabase() AND table = 'events' AND active"""
        newest = int(self._queries.rows(Statement(sql, {}))[0][0])
        return newest if newest >= TIME_MIN_US else queries.AT_MAX_US

    def _slice(self, search: _Search, until_us: int, width_us: int, rows_max: int) -> _Slice:
        """Return the widest slice before *until_us*, up to *width_us*, that reads no more rows than it may."""
        tried: list[_Slice] = []
        while True:
            since_us = max(search.from_us, until_us - width_us)
            tried.append(_Slice(since_us, until_us, self._estimate(search, since_us, until_us)))
            if tried[-1].rows <= rows_max or width_us <= NARROWEST_US:
                break
            width_us = max(NARROWEST_US, (until_us - since_us) // _NARROWING)
        rows_max = max(rows_max, 2 * tried[-1].rows)
        return next(slice_ for slice_ in tried if slice_.rows <= rows_max)

    def _estimate(self, search: _Search, since_us: int, until_us: int) -> int:
        parameters: dict[str, Any] = {}
        scope = queries.event_scope(
            parameters, account_id=search.query.account_id, from_us=since_us, to_us=until_us
        )
        sql = f"EXPLAIN ESTIMATE SELECT sign FROM events WHERE {' AND '.join(scope)}"
        # Database, table, parts, rows, marks.
        return sum(int(row[3]) for row in self._queries.rows(Statement(sql, parameters)))


class _Search:
    """One query on its way to SQL."""

    def __init__(self, query: EventQuery) -> None:
        queries.check_filters(query.filters)
        self.query = query
        self.place = place_at(query)
        self.from_us = max(0, query.from_us)
        self.until_us = min(query.to_us, queries.AT_MAX_US)
        if self.place is not None:
            # Events of this microsecond may be left: `statement` says which.
            self.until_us = min(self.until_us, self.place.at_us + 1)

    def span_down_to(self, reached: EventPlace | None) -> tuple[int, int]:
        """Return the span that a search down to *reached* has looked at."""
        return self.from_us if reached is None else reached.at_us, self.until_us

    def statement(self, slice_: _Slice, limit: int) -> Statement:
        """Return the statement for the newest events of a slice, below the place."""
        parameters: dict[str, Any] = {"limit": limit}
        scope = queries.event_scope(
            parameters, account_id=self.query.account_id, from_us=slice_.since_us, to_us=slice_.until_us
        )
        conditions = [*scope, queries.is_in_force(scope)]
        conditions += [
            queries.filter_condition(parameters, i, name, allowed)
            for i, (name, allowed) in enumerate(self.query.filters.items())
        ]
        if self.query.denied is not None:
            conditions.append(f"denied_reason {'<>' if self.query.denied else '='} ''")
        if self.place is not None and self.place.at_us < slice_.until_us:
            parameters |= {
                "place_us": self.place.at_us,
                "place_account": self.place.account_id,
                "place_id": self.place.id,
            }
            conditions.append(
                "(occurred_at, account_id, id) < (fromUnixTimestamp64Micro({place_us:Int64}, 'UTC'), "
                "{place_account:String}, {place_id:String})"
            )
        sql = f"""
            SELECT {RECORD_COLUMNS} FROM events AS e WHERE {" AND ".join(conditions)}
            ORDER BY occurred_at DESC, account_id DESC, id DESC LIMIT {{limit:UInt64}}"""
        return Statement(sql, parameters)
