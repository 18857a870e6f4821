"""
The usage store on ClickHouse, in process (chDB) or on a server: appends records and answers reports.

Invariants: `usage_rollups` and `event_ids` are pure functions of `events` (their materialized views are the
definition; `rebuild.py` uses the same SELECT) and of what is kept of events that expired (`expiry.py`). An append is
one block with a deduplication token, so that a repeat writes nothing in any of the tables; after a crash
`append_recovery.py` completes it.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError

from tollkeeper.adapters.batch_marks import FileMarks, Marks
from tollkeeper.adapters.clickhouse import answers, append_recovery, expiry, queries, snapshots, tables
from tollkeeper.adapters.clickhouse.audit import Audit
from tollkeeper.adapters.clickhouse.bounded_queries import BoundedQueries
from tollkeeper.adapters.clickhouse.engine import UNGATHERED, Engine, engine_errors, is_damage
from tollkeeper.adapters.clickhouse.event_list import EventList
from tollkeeper.adapters.clickhouse.look_ups import KEYS, IdLookUps
from tollkeeper.adapters.clickhouse.marks import TableMarks
from tollkeeper.adapters.clickhouse.readers import QueryLimits
from tollkeeper.adapters.clickhouse.rebuild import rebuild
from tollkeeper.adapters.clickhouse.record_form import RECORD_COLUMNS, booked_form, stored_form
from tollkeeper.adapters.clickhouse.values import VALUES
from tollkeeper.domain.event_pages import EventQuery
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import Conditions
from tollkeeper.domain.pairing import BatchMark, StorePast
from tollkeeper.domain.store_answers import EventRows
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import Unavailable
from tollkeeper.event_expiry import ExpiringDay
from tollkeeper.ports import CostSum, Losses, ReportRows
from tollkeeper.record_columns import SCHEMA, records_of

_EXPORT_ROWS: Final = 100_000
_APPEND: Final = {
    # One block per append, whatever its size, so that its token stands for all of it; and the token guards
    # the materialized views too, so that a repeat after a crash fills in exactly what is missing.
    "insert_deduplicate": 1,
    # A server's own default gathers inserts of several callers, and gives the token to what it gathered.
    "async_insert": 0,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "max_insert_block_size": 1 << 30,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 0,
    "max_partitions_per_insert_block": 0,
    # One block per view as well: a two-level aggregation gives 256, each a part of its own (5 s an append).
    "group_by_two_level_threshold": 0,
    "group_by_two_level_threshold_bytes": 0,
    "min_insert_block_size_rows_for_materialized_views": 1 << 30,
    "min_insert_block_size_bytes_for_materialized_views": 1 << 40,
    # The view has summed up what there is to sum up.
    "optimize_on_insert": 0,
}
_EXPORT_ORDER: Final = "account_id, occurred_at, id, revision, sign"

log = logging.getLogger("tollkeeper.usage")


class ClickHouseUsageStore:
    """A `ports.UsageStore`. `open` is the way to make one."""

    def __init__(self, engine: Engine, limits: QueryLimits = QueryLimits()) -> None:
        self._engine = engine
        self._queries = BoundedQueries(engine, limits)
        self._audit = Audit(engine)
        self._look_ups = IdLookUps(engine)
        self._expiry = expiry.Expiry(engine, self._look_ups)
        self._event_list = EventList(self._queries, self._expiry)
        self._charges = engine.connect()
        """Sums for budgets: a new one must not wait until reports have a reader to spare."""
        self._charges_lock = threading.Lock()
        self._append_lock = threading.Lock()
        self._marks: Marks = (
            TableMarks(engine.connect()) if engine.directory is None else FileMarks(engine.directory)
        )
        self._marks_lock = threading.Lock()

    @classmethod
    def open(
        cls, url: str, *, memory_bytes_max: int | None = None, limits: QueryLimits = QueryLimits()
    ) -> ClickHouseUsageStore:
        """
        Connect to the engine at *url* and bring its schema up to date.

        Args:
            url: `chdb:///absolute/path` for the engine in this process (one path per process), or
                `clickhouse://user:password@host[:port]/database`.
            memory_bytes_max: The most that the engine in this process, or one query on a server, may use.
            limits: The most that one report may take.

        Raises:
            Unavailable: The engine cannot be reached or opened, or its schema is of a later version.
        """
        with engine_errors():
            engine = Engine(url, memory_bytes_max)
            try:
                store = cls(engine, limits)
                tables.migrate(engine.appender, store.rebuild, engine.check_room)
                tables.drop_unfinished(engine.appender)
                snapshots.drop_clones(engine.appender)
                store._expiry.recover()
                store._audit.find_parts_set_aside()
                if engine.directory is not None:
                    # Only this process writes there, so that no append but its own can add ids.
                    try:
                        store._look_ups.learn_newest()
                    except (ClickHouseError, RuntimeError) as exc:
                        # `rebuild` makes a damaged index again, so the store must open; look-ups report the damage.
                        if not is_damage(exc):
                            raise
            except BaseException:
                engine.close()
                raise
            return store

    def past(self, installation_id: str) -> StorePast:
        """See `ports.UsageStore.past`."""
        with engine_errors():
            with self._marks_lock:
                self._engine.check_open()
                marks = self._marks.all()
            self._finish_expiry()
            ((count,),) = self._engine.rows(f"SELECT count() + {expiry.RECORDS} FROM events")
        last = marks.pop(installation_id, None)
        return StorePast(last, sorted(marks), count)

    def begin(self, mark: BatchMark) -> None:
        """See `ports.UsageStore.begin`."""
        with engine_errors(), self._marks_lock:
            self._engine.check_open()
            self._marks.note(mark)

    def append(self, records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        """See `ports.UsageStore.append`."""
        if records.num_rows == 0:
            return
        with engine_errors(), self._append_lock:
            self._engine.check_open()
            self._recover_expiry()
            self._look_ups.will_append(records)
            rows = stored_form(records)
            if begun_after is None:
                self._append(rows, token)
            else:
                self._append_again(rows, token, records_min=begun_after + rows.num_rows)

    def _append(self, rows: pa.Table, token: str) -> None:
        self._engine.insert(
            self._engine.appender, "events", rows, {**_APPEND, "insert_deduplication_token": token}
        )

    def _append_again(self, rows: pa.Table, token: str, *, records_min: int) -> None:
        """Append what the store lacks of *rows*, whatever it remembers of *token*."""
        client = self._engine.appender
        append_recovery.clear(client)
        self._engine.insert(client, append_recovery.TABLE, append_recovery.listed(rows), UNGATHERED)
        append_recovery.forget_expired(client)
        # The token first: on a server the earlier insert may still be running.
        for name in (token, f"{token}-{uuid.uuid4()}"):
            if not (missing := append_recovery.missing(client)):
                break
            self._append(rows.take(missing), name)
        if client.query(f"SELECT count() + {expiry.RECORDS} FROM events").result_rows[0][0] < records_min:
            # Others are missing. Derived again, a rollup would lose them too; `verify` names them.
            log.error("tollkeeper.usage.records_missing", extra={"token": token})
        else:
            append_recovery.derive(client)
        append_recovery.clear(client)

    def known_ids(self, keys: pa.Table) -> pa.Table:
        """See `ports.UsageStore.known_ids`."""
        if keys.num_rows == 0:
            return KEYS.empty_table()
        self._audit.check_whole()
        return self._look_ups.known_ids(keys)

    def records(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        """See `ports.UsageStore.records`."""
        accounts, names = zip(*ids, strict=True) if ids else ((), ())
        found = self.record_columns(
            pa.table([pa.array(accounts, pa.string()), pa.array(names, pa.string())], schema=KEYS)
        )
        return {(record.account_id, record.id): record for record in records_of(found)}

    def record_columns(self, keys: pa.Table) -> pa.Table:
        """See `ports.UsageStore.record_columns`."""
        if keys.num_rows == 0:
            return SCHEMA.empty_table()
        self._audit.check_whole()
        return self._look_ups.record_columns(keys)

    def owners(self, id_: str) -> list[str]:
        """See `ports.UsageStore.owners`."""
        self._audit.check_whole()
        return sorted({*self._look_ups.owners(id_), *self._expiry.owners(id_)})

    def report(self, query: UsageQuery, with_pending: Sequence[Record] = ()) -> ReportRows:
        """See `ports.UsageStore.report`. A name that is none of ours raises BadParameter."""
        statement = queries.report(query, with_pending)
        self._audit.check_whole()
        rows = self._queries.rows(statement)
        if answers.is_unsure(rows):
            statement = queries.report(query, with_pending, assuming=False)
            rows = self._queries.rows(statement)
        # Afterwards: what expired before has told so, and what expires from now on was read.
        return answers.answer_of(query, rows)._replace(
            detail_from_us=self._expiry.detail_from_us(query.account_id),
            lacks_detail=self._expiry.lacks(query.account_id, statement.record_spans),
        )

    def latest(self, query: EventQuery) -> EventRows:
        """See `event_lists.EventLists.latest`."""
        return self._event_list.latest(query)

    def revisions(self, keys: pa.Table) -> pa.Table:
        """See `event_lists.EventLists.revisions`."""
        self._audit.check_whole()
        return self._look_ups.revisions(keys)

    def charged(
        self,
        account_id: str,
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
    ) -> CostSum:
        """See `ports.UsageStore.charged`."""
        sums = self.charged_by(
            account_id,
            (),
            from_us=from_us,
            to_us=to_us,
            project_id=project_id,
            key_ids=key_ids,
            match=match,
        )
        return sums[()]

    def charged_by(
        self,
        account_id: str,
        by: Sequence[str],
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
        cuts_us: Sequence[int] = (),
    ) -> dict[tuple[str, ...], CostSum]:
        """See `ports.UsageStore.charged_by`. What our gate denied is an event but no request."""
        sums = f"""sum(sign), sumIf(sign, denied_reason = '' AND adjustment_nanos = 0),
            sum({VALUES["tokens"].event}), sum(sign * (cost_nanos - adjustment_nanos)), sum(sign * credits),
            sumMap(mapApply((k, v) -> (k, sign * toInt128(v)), quantities)), sum(sign * adjustment_nanos)"""
        sql, parameters = queries.charge_query(
            sums, account_id, by, (from_us, to_us), project_id, key_ids, match, cuts_us
        )
        width = len(by) + bool(cuts_us)
        self._finish_expiry()
        found: dict[tuple[str, ...], CostSum] = {}
        with engine_errors(), self._charges_lock:
            self._engine.check_open()
            for rows in (
                self._charges.query(sql, parameters=parameters).result_rows,
                self._expiry.charges(
                    self._charges, account_id, by, (from_us, to_us), project_id, key_ids, match, cuts_us
                ),
            ):
                for row in rows:
                    values, spent = tuple(row[:width]), _cost_sum(row[width:])
                    found[values] = found[values].plus(spent) if values in found else spent
        return found

    def first_by(
        self,
        account_id: str,
        by: Sequence[str],
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
    ) -> dict[tuple[str, ...], int]:
        """See `ports.UsageStore.first_by`."""
        first = "toUnixTimestamp64Micro(min(occurred_at))"
        sql, parameters = queries.charge_query(
            first, account_id, by, (from_us, to_us), project_id, key_ids, match
        )
        with engine_errors(), self._charges_lock:
            self._engine.check_open()
            rows = self._charges.query(f"{sql} HAVING count() > 0", parameters=parameters).result_rows
        return {tuple(row[: len(by)]): int(row[len(by)]) for row in rows}

    def unpriced(self, model: str | None, limit: int, after: Record | None = None) -> list[Record]:
        """See `ports.UsageStore.unpriced`."""
        parameters: dict[str, Any] = {"limit": limit}
        scope = "cost_state = 'unpriced'"
        if model is not None:
            parameters["model"] = model
            scope += " AND model = {model:String}"
        place = ""
        if after is not None:
            parameters |= {
                "after_us": after.occurred_at_us,
                "after_account": after.account_id,
                "after_id": after.id,
            }
            place = """ AND (occurred_at, account_id, id) > (
                fromUnixTimestamp64Micro({after_us:Int64}, 'UTC'), {after_account:String}, {after_id:String}
            )"""
        sql = f"""
            SELECT {RECORD_COLUMNS} FROM events
            WHERE {scope}{place} AND sign = 1 AND (account_id, id, revision) NOT IN (
                SELECT account_id, id, revision FROM events WHERE {scope} AND sign = -1
            )
            ORDER BY occurred_at, account_id, id LIMIT {{limit:UInt64}}"""
        return [Record(*row) for row in self._engine.rows(sql, parameters)]

    def export(self, account_id: str | None, from_us: int, to_us: int) -> Iterator[pa.Table]:
        """See `ports.UsageStore.export`. Pieces follow the order of the table: account, then time."""
        parameters: dict[str, Any] = {"piece": _EXPORT_ROWS}
        scope = queries.event_scope(parameters, account_id=account_id, from_us=from_us, to_us=to_us)
        after = ""
        while True:
            sql = f"""
                SELECT {RECORD_COLUMNS} FROM events
                WHERE {" AND ".join(scope)}{after} ORDER BY {_EXPORT_ORDER} LIMIT {{piece:UInt64}}"""
            with engine_errors(), self._engine.scans.lend() as client:
                piece = booked_form(client.query_arrow(sql, parameters=parameters))
            if piece.num_rows:
                yield piece
            if piece.num_rows < _EXPORT_ROWS:
                return
            last = piece.slice(piece.num_rows - 1).to_pylist()[0]
            parameters |= {f"last_{name}": last[name] for name in ("account_id", "id", "revision", "sign")}
            parameters["last_at_us"] = last["occurred_at_us"]
            # The first condition repeats part of the second, in the form that the primary key understands.
            after = f""" AND account_id >= {{last_account_id:String}} AND ({_EXPORT_ORDER}) > (
                {{last_account_id:String}}, fromUnixTimestamp64Micro({{last_at_us:Int64}}, 'UTC'),
                {{last_id:String}}, {{last_revision:UInt16}}, {{last_sign:Int8}})"""

    def differences(self, records_min: int = 0) -> list[str]:
        """See `ports.UsageStore.differences`."""
        self._finish_expiry()
        return self._audit.differences(records_min)

    def duplicates(self) -> list[str]:
        """See `ports.UsageStore.duplicates`."""
        return self._audit.duplicates()

    def losses(self) -> Losses:
        """See `ports.UsageStore.losses`."""
        self._finish_expiry()
        return self._audit.losses()

    def rebuild(self, records_min: int = 0) -> Mapping[str, int]:
        """See `ports.UsageStore.rebuild`. An append that failed half-way must have been repeated before."""
        self._finish_expiry()
        if damages := self._audit.damages(records_min):
            # Derived from these records when they were whole, rollups and ids are right; rebuilt they would not be.
            raise Unavailable(
                "records of the usage store are damaged or missing, nothing was rebuilt", detail=damages
            )
        with engine_errors(), self._append_lock:
            self._engine.check_open()
            counts = rebuild(self._engine.appender, self._engine.check_room)
            self._audit.derived_were_rebuilt()
            if self._engine.directory is not None:
                # The index that was read at the start may have lacked ids, which would then be taken to be new.
                self._look_ups.learn_newest()
            return counts

    def expiring(self, before_us: Mapping[str, int]) -> list[ExpiringDay]:
        """See `event_expiry.EventExpiry.expiring`."""
        return self._expiry.expiring(before_us)

    def expire(self, days: Sequence[ExpiringDay]) -> int:
        """See `event_expiry.EventExpiry.expire`."""
        if not days:
            return 0
        # Sums of charges wait, which would find the records twice or not at all.
        with engine_errors(), self._append_lock, self._charges_lock:
            self._engine.check_open()
            self._recover_expiry()
            return self._expiry.step(days)

    def reclaim(self) -> None:
        """See `event_expiry.EventExpiry.reclaim`."""
        self._expiry.reclaim()

    def detail_from_us(self, account_id: str | None) -> int | None:
        """See `event_expiry.EventExpiry.detail_from_us`."""
        return self._expiry.detail_from_us(account_id)

    def expired_ids(self, keys: pa.Table) -> pa.Table:
        """See `event_expiry.EventExpiry.expired_ids`."""
        return self._expiry.expired_ids(keys)

    def _finish_expiry(self) -> None:
        """Complete or take back an expiry that failed in the middle, before records and sums are compared."""
        if self._expiry.is_unfinished:
            with engine_errors(), self._append_lock:
                self._recover_expiry()

    def _recover_expiry(self) -> None:
        if self._expiry.is_unfinished:
            self._expiry.recover()

    @contextmanager
    def snapshot(self) -> Iterator[snapshots.StoreSnapshot]:
        """
        Yield the tables as they are now, for a backup: one at a time.

        Nobody appends until the block is entered; what is appended then is not in the snapshot.
        """
        with engine_errors(), self._append_lock, self._marks_lock:
            self._engine.check_open()
            self._recover_expiry()
            taken = snapshots.clone(self._engine, self._marks.all())
        try:
            with engine_errors():
                yield taken
        finally:
            with engine_errors(), self._append_lock:
                snapshots.drop_clones(self._engine.appender)

    def ready(self) -> bool:
        """See `ports.UsageStore.ready`."""
        try:
            return self._engine.rows("SELECT 1", readers=self._engine.probes) == [(1,)]
        except Unavailable:
            return False

    def close(self) -> None:
        """See `ports.UsageStore.close`. On a server too nothing is answered afterwards."""
        self._engine.close()


def _cost_sum(row: Sequence[Any]) -> CostSum:
    events, requests, tokens, cost_nanos, credits, quantities, adjustments_nanos = row
    stated = {name: micros for name, micros in quantities.items() if micros}
    return CostSum(events, requests, tokens, cost_nanos, credits, stated, adjustments_nanos)
