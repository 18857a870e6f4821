"""
Usage reports: every report has every event that was acknowledged before the query.

The first row whose condition holds decides. Before it, commits under way are waited for (`Delivery.booked`).

    | Condition                                               | Strategy                        | Cost               |
    |---------------------------------------------------------|---------------------------------|--------------------|
    | 1 cached; no event of the account committed since       | the cached report               | a look-up in memory|
    | 2 cached; the records since are few and can be added    | the cached report with them     | a read of outbox   |
    |   (`domain/increments.py`) and none was delivered       |                                 | rows               |
    | 3 few records of the account are pending, none is a     | the store's report, which sums  | a query, a read of |
    |   correction, and no batch is on its way                | them up with its own            | outbox rows        |
    | 4 all that is pending is delivered in time (at once if  | the store's report              | an insert if there |
    |   nothing is pending)                                   |                                 | is any, a query    |
    | 5 otherwise, or events were lost                        | the store's report, `complete`  | up to `FLUSH_S`,   |
    |                                                         | False, with `behind_s`          | a query            |

The cache changes the cost, never the meaning: rows 1 and 2 return what row 4 would. They apply only while nothing is
lost (`Freshness.lacks_nothing`). Rows 3 to 5 (`fresh_reads.py`) ask the store, so each takes a turn of its account
(`query_turns.py`).
A report that needs events which have expired is not `complete` in any of them, and says so (`lacks_detail`).
"""

from __future__ import annotations

import msgspec

from tollkeeper.clock import Clock
from tollkeeper.domain.increments import apply_increment
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.ports import ReportRows, UsageStore
from tollkeeper.usage.fresh_reads import FreshReads
from tollkeeper.usage.freshness import Freshness
from tollkeeper.usage.query_turns import QueryTurns
from tollkeeper.usage.report_cache import CachedReport, ReportCache


class Reports:
    """Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(
        self,
        store: UsageStore,
        freshness: Freshness,
        delivery: Delivery,
        clock: Clock,
        turns: QueryTurns | None = None,
    ) -> None:
        """
        Args:
            turns: Those of all queries of the usage store, which share them.
        """
        self._store = store
        self._freshness = freshness
        self._delivery = delivery
        self._clock = clock
        self._cache = ReportCache()
        self._turns = turns or QueryTurns()
        self._reads = FreshReads(freshness, delivery)

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Answer *query*.

        Raises:
            Unavailable: The usage store cannot be read.
            QueryTooLarge: It has more groups, or takes more memory, than a query may.
            TooManyQueries: Others of the same account are under way (`callers.CALLER`).
        """
        as_of_us = self._clock.now_us()
        booked = self._delivery.booked()
        cached = self._cache.find(query) if booked and self._freshness.lacks_nothing() else None
        if cached is not None and cached.holds:
            return msgspec.structs.replace(cached.report, as_of_us=as_of_us)
        token = self._cache.begin(query)
        try:
            last_seq = self._freshness.last_seq
            report = None if cached is None else self._incremented(query, cached, as_of_us)
            if report is None:
                with self._turns.of_caller(query.account_id):
                    report = self._computed(query, as_of_us, booked)
        except BaseException:
            self._cache.abandon(token, query)
            raise
        if report.complete and self._freshness.is_as_of(query.account_id, last_seq):
            self._cache.keep(token, query, report, last_seq)
        else:
            self._cache.abandon(token, query)
        return report

    def _incremented(self, query: UsageQuery, cached: CachedReport, as_of_us: int) -> UsageReport | None:
        """Row 2: the cached report with the records committed since, or None."""
        records = self._freshness.committed_since(cached.seq)
        report = None if records is None else apply_increment(query, cached.report, records)
        return None if report is None else msgspec.structs.replace(report, as_of_us=as_of_us)

    def _computed(self, query: UsageQuery, as_of_us: int, booked: bool) -> UsageReport:
        """Rows 3 to 5: a report of the usage store."""
        found = self._reads.read(
            query.account_id, lambda pending: self._store.report(query, pending), booked=booked
        )
        return _report(found.answer, as_of_us, complete=found.complete, behind_s=found.behind_s)

    def events_added(self, accounts: set[str], after_seq: int) -> None:
        """Note that *accounts* have new events, in outbox rows after *after_seq*: see `CommitListener`."""
        self._cache.invalidate(accounts, after_seq)

    def invalidate_all(self) -> None:
        """Compute every report again: the usage store was rebuilt, or events expired."""
        self._cache.invalidate_all()


def _report(rows: ReportRows, as_of_us: int, *, complete: bool, behind_s: int) -> UsageReport:
    return UsageReport(
        rows=rows.rows,
        totals=rows.totals,
        row_count=rows.row_count,
        as_of_us=as_of_us,
        complete=complete and not rows.lacks_detail,
        behind_s=behind_s,
        detail_from_us=rows.detail_from_us,
        lacks_detail=rows.lacks_detail,
    )
