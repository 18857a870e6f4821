"""
The usage store on ClickHouse, in process (chDB) or on a server.

Invariants: `usage_rollups` and `event_ids` are pure functions of `events` (their materialized views say which;
`rebuild` uses the same SELECT); an append is one block with a deduplication token, so that a repeat writes
nothing in any of the tables, and completes what a crash left half done.

One client serialises its calls, so that appends, id look-ups and questions each have their own; the clients
of one process share the engine.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import itertools
import logging
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlparse

import clickhouse_connect
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from tollkeeper.adapters.batch_marks import FileMarks, Marks
from tollkeeper.adapters.clickhouse import append_recovery, code_pages, descriptions, queries, tables
from tollkeeper.adapters.clickhouse.marks import TableMarks
from tollkeeper.adapters.clickhouse.readers import QueryLimits, Readers, report_of
from tollkeeper.domain.events import RECORD_FIELDS, Record
from tollkeeper.domain.pairing import BatchMark, StorePast
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import BadParameter, Unavailable
from tollkeeper.ports import CostSum, Losses, UsageAnswer
from tollkeeper.record_columns import SCHEMA, records_of

_REPORTS: Final = (4, 5.0)
"""How many run at once, and seconds that another waits. More would only wait: one keeps two cores busy."""
_LOOK_UPS: Final = (4, 5.0)
"""Of few ids: calls of the gate wait for them."""
_SCANS: Final = (2, 60.0)
"""Of all records: verification, export, prices that come late."""
_READY_S_MAX: Final = 2.0
_LITERALS_MAX: Final = 200
"""Up to here ids are parameters; a list of 50,000 takes 1.2 s to parse, as a temporary table 25 ms."""
_MARK_CACHE_BYTES: Final = 64 << 20
_IN_PROCESS: Final = {
    # Few rows per question: to compile its expressions takes longer than to run them.
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
}
_DAMAGED_FILE: Final = re.compile(r"While reading or decompressing \S*?([^/\s]+/[^/\s]+) ")
"""The engine names the file by its whole path, which is not for everybody to see."""
_UNKNOWN_ZONE: Final = "Cannot load time zone"
_KEYS: Final = pa.schema([("account_id", pa.string()), ("id", pa.string())])
_AS_CODES: Final = {"output_format_arrow_low_cardinality_as_dictionary": 1}
_DIFFERENCES_MAX: Final = 1_000
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
_UNGATHERED: Final = {"async_insert": 0}
"""Of other inserts: what was inserted must be there when it returns."""
_STEP_RECORDS: Final = 1_000_000
"""Records per step of a rebuild or comparison, by whole UTC days, of which no rollup has two: bounds the memory."""
_STEP: Final = "toYYYYMMDD({}) BETWEEN {{first:UInt32}} AND {{last:UInt32}}"
_COMPARISON: Final = {"max_threads": 2, "max_bytes_before_external_group_by": 128 << 20}

_RECORD_COLUMNS: Final = ", ".join(
    f"toUnixTimestamp64Micro({name.removesuffix('_us')}) AS {name}" if name.endswith("_at_us") else name
    for name in RECORD_FIELDS
)
_KEY: Final = ("account_id", "occurred_at", "id", "revision", "sign")


log = logging.getLogger("tollkeeper.usage")


class ClickHouseUsageStore:
    """A `ports.UsageStore`. `open` is the way to make one."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        settings: Mapping[str, Any],
        limits: QueryLimits = QueryLimits(),
    ) -> None:
        self._url = url
        self._options = dict(options)
        self._settings = dict(settings)
        self._directory = urlparse(url).path if url.startswith("chdb:") else None
        """Of the engine in this process."""
        self._limits = limits
        self._reports = Readers(self._connect, *_REPORTS, check_open=self._check_open)
        self._look_ups = Readers(self._connect, *_LOOK_UPS, check_open=self._check_open)
        self._scans = Readers(self._connect, *_SCANS, check_open=self._check_open)
        self._probes = Readers(self._connect, 1, _READY_S_MAX, check_open=self._check_open)
        self._stoppers = Readers(self._connect, 1, _READY_S_MAX, check_open=self._check_open)
        self._append_lock = threading.Lock()
        self._lookup_lock = threading.Lock()
        self._charged_lock = threading.Lock()
        self._clients: list[Client] = []
        self._closed = False
        self._appender = self._connect()
        self._lookups = self._connect()
        self._charges = self._connect()
        """Sums for budgets: a new one must not wait until reports have a reader to spare."""
        self._marks: Marks = (
            TableMarks(self._lookups) if self._directory is None else FileMarks(Path(self._directory))
        )
        self._losses = Losses([], [])
        self._newest_id: str | None = None
        """No id of the store is greater; None: not known."""

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
        options: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        if url.startswith("chdb:"):
            options["mark_cache_size"] = _MARK_CACHE_BYTES
            settings |= _IN_PROCESS
            if memory_bytes_max is not None:
                options["max_server_memory_usage"] = memory_bytes_max
        elif memory_bytes_max is not None:
            settings["max_memory_usage"] = memory_bytes_max
        with _engine_errors():
            if url.startswith("chdb:"):
                descriptions.remove_empty(Path(urlparse(url).path))
            store = cls(url, options, settings, limits)
            try:
                tables.migrate(store._appender, store.rebuild, store._check_room)
                tables.drop_unfinished(store._appender)
                store._losses = Losses(*store._put_aside())
                for line in (*store._losses.records, *store._losses.derived):
                    log.error("tollkeeper.usage.part_set_aside", extra={"part": line})
                if url.startswith("chdb:"):
                    # Only this process writes there, so that what it appends is all that can come to it.
                    try:
                        store._newest_id = store._greatest_id()
                    except (ClickHouseError, RuntimeError) as exc:
                        # `rebuild` makes a damaged index anew, so the store must open; who asks the index is told.
                        if not _DAMAGED_FILE.search(str(exc)):
                            raise
                    code_pages.give_back()
            except BaseException:
                store.close()
                raise
            return store

    def past(self, installation_id: str) -> StorePast:
        """See `ports.UsageStore.past`."""
        with _engine_errors():
            with self._lookup_lock:
                self._check_open()
                marks = self._marks.all()
            ((count,),) = self._rows("SELECT count() FROM events", {})
        last = marks.pop(installation_id, None)
        return StorePast(last, sorted(marks), count)

    def begin(self, mark: BatchMark) -> None:
        """See `ports.UsageStore.begin`."""
        with _engine_errors(), self._lookup_lock:
            self._check_open()
            self._marks.note(mark)

    def append(self, records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        """See `ports.UsageStore.append`."""
        if records.num_rows == 0:
            return
        with _engine_errors(), self._append_lock:
            self._check_open()
            if self._newest_id is not None:
                # Before the insert, which may succeed without our hearing of it.
                self._newest_id = max(self._newest_id, _newest_of(records))
            rows = _stored_form(records)
            if begun_after is None:
                self._append(rows, token)
            else:
                self._append_again(rows, token, records_min=begun_after + rows.num_rows)

    def _append(self, rows: pa.Table, token: str) -> None:
        self._insert(self._appender, "events", rows, {**_APPEND, "insert_deduplication_token": token})

    def _append_again(self, rows: pa.Table, token: str, *, records_min: int) -> None:
        """Append what the store lacks of *rows*, whatever it remembers of *token*."""
        client = self._appender
        append_recovery.clear(client)
        self._insert(client, append_recovery.TABLE, append_recovery.listed(rows), _UNGATHERED)
        # The token first: on a server the earlier insert may still be running.
        for name in (token, f"{token}-{uuid.uuid4()}"):
            if not (missing := append_recovery.missing(client)):
                break
            self._append(rows.take(missing), name)
        if client.query("SELECT count() FROM events").result_rows[0][0] < records_min:
            # Others are missing. Rebuilt, a rollup would forget what they said; `verify` names them.
            log.error("tollkeeper.usage.records_missing", extra={"token": token})
        else:
            append_recovery.derive(client)
        append_recovery.clear(client)

    def known_ids(self, keys: pa.Table) -> pa.Table:
        """See `ports.UsageStore.known_ids`."""
        if keys.num_rows == 0:
            return _KEYS.empty_table()
        self._check_whole()
        if self._are_newer(keys):
            return _KEYS.empty_table()
        self._check_whole()
        with _engine_errors(), self._looking_up(keys) as lookup:
            return lookup.table(
                "SELECT account_id, id FROM event_ids WHERE (id, account_id) IN {pairs}"
            ).cast(_KEYS)

    def records(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        """See `ports.UsageStore.records`."""
        accounts, names = zip(*ids, strict=True) if ids else ((), ())
        found = self.record_columns(
            pa.table([pa.array(accounts, pa.string()), pa.array(names, pa.string())], schema=_KEYS)
        )
        return {(record.account_id, record.id): record for record in records_of(found)}

    def record_columns(self, keys: pa.Table) -> pa.Table:
        """See `ports.UsageStore.record_columns`."""
        if keys.num_rows == 0:
            return SCHEMA.empty_table()
        self._check_whole()
        # The minutes of the index lead to the few granules of `events` that hold the records.
        sql = f"""
            SELECT {_RECORD_COLUMNS} FROM events
            WHERE (account_id, toStartOfMinute(occurred_at)) IN (
                    SELECT account_id, occurred_minute FROM event_ids WHERE (id, account_id) IN {{pairs}}
                )
                AND (id, account_id) IN {{pairs}}"""
        with _engine_errors(), self._looking_up(keys) as lookup:
            return _current(_booked_form(lookup.table(sql)))

    def owners(self, id_: str) -> list[str]:
        """See `ports.UsageStore.owners`."""
        sql = """
            SELECT DISTINCT account_id FROM events
            WHERE (account_id, toStartOfMinute(occurred_at)) IN (
                    SELECT account_id, occurred_minute FROM event_ids WHERE id = {id:String}
                )
                AND id = {id:String}
            ORDER BY account_id"""
        self._check_whole()
        return [account_id for (account_id,) in self._rows(sql, {"id": id_}, readers=self._look_ups)]

    def report(self, query: UsageQuery, with_pending: Sequence[Record] = ()) -> UsageAnswer:
        """See `ports.UsageStore.report`. A name that is none of ours raises BadParameter."""
        statement = queries.report(query, with_pending)
        self._check_whole()
        rows = self._report(statement)
        if queries.is_unsure(rows):
            rows = self._report(queries.report(query, with_pending, assuming=False))
        return queries.answer_of(query, rows)

    def _report(self, statement: queries.Statement) -> list[tuple[Any, ...]]:
        with (
            _engine_errors(),
            self._reports.lend() as client,
            report_of(self._limits, self._stop) as settings,
        ):
            result = client.query(statement.sql, parameters=statement.parameters, settings=settings)
            return list(map(tuple, result.result_rows))

    def _stop(self, tag: str) -> None:
        """End the report that runs under *tag*, if it does."""
        try:
            with _engine_errors(), self._stoppers.lend() as client:
                client.command(
                    "KILL QUERY WHERE Settings['log_comment'] = {tag:String} ASYNC", parameters={"tag": tag}
                )
        except Unavailable as exc:
            # It ends by its own limit of time then; nobody waits for it.
            log.warning("tollkeeper.usage.stop_failed", extra={"reason": str(exc), "detail": exc.fields})

    def charged(
        self,
        account_id: str,
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
    ) -> CostSum:
        """See `ports.UsageStore.charged`. What our gate denied is an event but no request."""
        parameters: dict[str, Any] = {}
        scope = queries.event_scope(parameters, account_id=account_id, from_us=from_us, to_us=to_us)
        if project_id is not None:
            parameters["project_id"] = project_id
            scope.append("project_id = {project_id:String}")
        if key_ids is not None:
            parameters["key_ids"] = list(key_ids)
            scope.append("key_id IN {key_ids:Array(String)}")
        sql = f"""
            SELECT sum(sign), sumIf(sign, denied_reason = ''),
                sum(sign * (prompt_tokens + cached_prompt_tokens + completion_tokens + reasoning_tokens)),
                sum(sign * cost_nanos), sum(sign * credits)
            FROM events WHERE {" AND ".join(scope)}"""
        with _engine_errors(), self._charged_lock:
            self._check_open()
            (row,) = self._charges.query(sql, parameters=parameters).result_rows
        return CostSum(*row)

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
            SELECT {_RECORD_COLUMNS} FROM events
            WHERE {scope}{place} AND sign = 1 AND (account_id, id, revision) NOT IN (
                SELECT account_id, id, revision FROM events WHERE {scope} AND sign = -1
            )
            ORDER BY occurred_at, account_id, id LIMIT {{limit:UInt64}}"""
        return [Record(*row) for row in self._rows(sql, parameters)]

    def export(self, account_id: str | None, from_us: int, to_us: int) -> Iterator[pa.Table]:
        """See `ports.UsageStore.export`. Pieces follow the order of the table: account, then time."""
        parameters: dict[str, Any] = {"piece": _EXPORT_ROWS}
        scope = queries.event_scope(parameters, account_id=account_id, from_us=from_us, to_us=to_us)
        order = ", ".join(_KEY)
        after = ""
        while True:
            sql = f"""
                SELECT {_RECORD_COLUMNS} FROM events
                WHERE {" AND ".join(scope)}{after} ORDER BY {order} LIMIT {{piece:UInt64}}"""
            with _engine_errors(), self._scans.lend() as client:
                piece = _booked_form(client.query_arrow(sql, parameters=parameters))
            if piece.num_rows:
                yield piece
            if piece.num_rows < _EXPORT_ROWS:
                return
            last = piece.slice(piece.num_rows - 1).to_pylist()[0]
            parameters |= {f"last_{name}": last[name] for name in ("account_id", "id", "revision", "sign")}
            parameters["last_at_us"] = last["occurred_at_us"]
            # The first condition repeats part of the second, in the form that the primary key understands.
            after = f""" AND account_id >= {{last_account_id:String}} AND ({order}) > (
                {{last_account_id:String}}, fromUnixTimestamp64Micro({{last_at_us:Int64}}, 'UTC'),
                {{last_id:String}}, {{last_revision:UInt16}}, {{last_sign:Int8}})"""

    def differences(self, records_min: int = 0) -> list[str]:
        """See `ports.UsageStore.differences`. At most 1,000 lines per table."""
        return self._damages(records_min) + self._rollup_differences() + self._id_differences()

    def duplicates(self) -> list[str]:
        """See `ports.UsageStore.duplicates`. At most 1,000 lines."""
        # An id of the index has a row per revision. Those with several are found in the order of its key, in memory
        # that does not grow with the ids; a record is there twice when one of its revisions is.
        several = "SELECT id, account_id FROM event_ids GROUP BY id, account_id HAVING count() > 1"
        rows = self._rows(
            f"""
            SELECT account_id, id, revision, sign, any(key_id), count() AS copies FROM events
            WHERE (id, account_id) IN ({several}) OR (amendment_id, account_id) IN ({several})
            GROUP BY account_id, id, revision, sign HAVING copies > 1
            ORDER BY account_id, id, revision, sign DESC LIMIT {_DIFFERENCES_MAX}""",
            {},
            _COMPARISON | {"optimize_aggregation_in_order": 1},
        )
        return [
            f"events: {account_id} {id_}{f' of key {key_id}' if key_id else ''}, "
            f"revision {revision}{' taken back' if sign < 0 else ''}: recorded {copies} times"
            for account_id, id_, revision, sign, key_id, copies in rows
        ]

    def rebuild(self, records_min: int = 0) -> Mapping[str, int]:
        """
        See `ports.UsageStore.rebuild`. They are made beside those in use, which answer until each is exchanged.

        An append that failed half-way must have been repeated before: its rollups are made here from the
        records that it left.
        """
        if damages := self._damages(records_min):
            # What is derived has what these records said, and goes on being right; it could not be made again.
            raise Unavailable(
                "records of the usage store are damaged or missing, nothing was rebuilt", detail=damages
            )
        with _engine_errors(), self._append_lock:
            self._check_open()
            client = self._appender
            spans = _day_spans(
                client.query(
                    "SELECT toYYYYMMDD(occurred_at) AS day, count() FROM events GROUP BY day ORDER BY day"
                ).result_rows
            )
            self._check_room()
            tables.drop_unfinished(client)
            for table in tables.DERIVED:
                client.command(f"CREATE TABLE {tables.unfinished(table)} AS {table}")
            for (view, table), (first, last) in itertools.product(tables.VIEWS.items(), spans):
                client.command(
                    f"INSERT INTO {tables.unfinished(table)} "
                    f"{tables.derivation(view, _STEP.format('occurred_at'))}",
                    parameters={"first": first, "last": last},
                    settings=dict(tables.DERIVING),
                )
            for table in tables.DERIVED:
                client.command(f"EXCHANGE TABLES {table} AND {tables.unfinished(table)}")
            # With them go the parts that were set aside: all that they had is there again.
            tables.drop_unfinished(client)
            self._losses = Losses(self._losses.records, [])
            if self._directory is not None:
                # What it was read from at the start may have lacked ids, which would then be taken to be new.
                self._newest_id = self._greatest_id()
            return {
                table: client.query(f"SELECT count() FROM {table}").result_rows[0][0]
                for table in tables.DERIVED
            }

    def ready(self) -> bool:
        """See `ports.UsageStore.ready`."""
        try:
            return self._rows("SELECT 1", {}, readers=self._probes) == [(1,)]
        except Unavailable:
            return False

    def close(self) -> None:
        """See `ports.UsageStore.close`. On a server too nothing is answered afterwards."""
        self._closed = True
        with _engine_errors():
            for client in self._clients:
                client.close()

    def _check_room(self) -> None:
        if self._directory is not None:
            descriptions.check_room(Path(self._directory))

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the usage store is closed")

    def _connect(self) -> Client:
        self._check_open()
        client = clickhouse_connect.get_client(
            dsn=self._url,
            settings=self._settings or None,
            **({"chdb_options": self._options} if self._options else {}),
        )
        self._clients.append(client)
        return client

    def _insert(
        self, client: Client, table: str, rows: pa.Table, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Write *rows* as one statement."""
        if self._directory is None:
            client.insert_arrow(table, rows, settings=dict(settings or {}))
            return
        # The engine in this process takes rows from a file. The driver's would outlive a crash, in the system's
        # directory for temporary files, with customers' events; one without a name ends with the process.
        with tempfile.TemporaryFile(dir=self._directory) as file:
            with pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)
            file.seek(0)
            # Settings within the statement: beside it, the driver sets each for the session, and back.
            given = ", ".join(f"{name} = {_quoted(value)}" for name, value in (settings or {}).items())
            client.command(
                f"INSERT INTO {table} ({', '.join(rows.column_names)}) FROM INFILE '/dev/fd/{file.fileno()}' "
                f"{f'SETTINGS {given} ' if given else ''}FORMAT Arrow"
            )

    def _rows(
        self,
        sql: str,
        parameters: dict[str, Any],
        settings: Mapping[str, Any] | None = None,
        *,
        readers: Readers | None = None,
    ) -> list[tuple[Any, ...]]:
        with _engine_errors(), (readers or self._scans).lend() as client:
            result = client.query(sql, parameters=parameters, settings=dict(settings or {}))
            return list(map(tuple, result.result_rows))

    @contextmanager
    def _looking_up(self, keys: pa.Table) -> Iterator[_LookUp]:
        """Make *keys* known to the engine for the length of the block."""
        keys = _plain(keys.select(["account_id", "id"]))
        if keys.num_rows <= _LITERALS_MAX:
            parameters = keys.to_pydict()
            with self._look_ups.lend() as client:
                yield _LookUp(client, "arrayZip({id:Array(String)}, {account_id:Array(String)})", parameters)
            return
        with self._lookup_lock:
            self._check_open()
            client = self._lookups
            # A server may have ended the session, and the table with it.
            client.command(
                "CREATE TEMPORARY TABLE IF NOT EXISTS lookup (account_id String, id String) ENGINE = Memory"
            )
            client.command("TRUNCATE TABLE lookup")
            self._insert(client, "lookup", keys, _UNGATHERED)
            yield _LookUp(client, "(SELECT id, account_id FROM lookup)", {})
            client.command("TRUNCATE TABLE lookup")

    def _greatest_id(self) -> str:
        rows = self._appender.query("SELECT id FROM event_ids ORDER BY id DESC LIMIT 1").result_rows
        return rows[0][0] if rows else ""

    def _are_newer(self, keys: pa.Table) -> bool:
        """Return whether all ids of *keys* are greater than any of the store, as time-ordered ones are."""
        newest = self._newest_id
        return newest is not None and pc.min(keys.column("id")).as_py() > newest

    def _damages(self, records_min: int) -> list[str]:
        """
        Return a line per part of `events` that is damaged, or that the engine set aside for it at its start, and one
        if there are fewer records than *records_min*, whatever became of them.
        """
        lines = [
            f"events: part {name} was damaged and is set aside"
            for table, name in self._set_aside()
            if table == "events"
        ]
        with _engine_errors(), self._scans.lend() as client:
            # As columns: what is no SELECT the driver would hand over as text, all parts in one row.
            checked = client.query_arrow("CHECK TABLE events SETTINGS check_query_single_value_result = 0")
        lines += [
            f"events: part {row['part_path']} is damaged"
            for row in checked.to_pylist()
            if not row["is_passed"]
        ]
        ((count,),) = self._rows("SELECT count() FROM events", {})
        if count < records_min:
            lines.append(f"events: {records_min - count} of {records_min} records are missing")
        return lines

    def _set_aside(self) -> list[tuple[str, str]]:
        """Return table and name of the parts that the engine found damaged at a start and put aside."""
        rows = self._rows(
            "SELECT table, name FROM system.detached_parts WHERE database = currentDatabase() "
            "AND startsWith(reason, 'broken') ORDER BY table, name",
            {},
        )
        return [(table, name) for table, name in rows]

    def losses(self) -> Losses:
        """See `ports.UsageStore.losses`."""
        ((records,),) = self._rows("SELECT count() FROM events", {})
        # Each record is an event, whose id is in the index, or takes one back, by the id of a correction.
        ((ids,),) = self._rows("SELECT count() FROM event_ids", {})
        ((summed,),) = self._rows(
            "SELECT sum(requests + 2 * corrections) FROM usage_rollups WHERE tier = 'keys_day'", {}
        )
        found = {"events": records, "event_ids": ids, "usage_rollups": summed}
        most = max(found.values())
        short = {
            table: f"{table}: {most - count} of {most} records are missing"
            for table, count in found.items()
            if count < most
        }
        aside = Losses(*self._put_aside())
        self._losses = Losses(
            aside.records + [short[table] for table in short if table == "events"],
            aside.derived + [short[table] for table in short if table != "events"],
        )
        return self._losses

    def _put_aside(self) -> tuple[list[str], list[str]]:
        """Return a line per part of `events`, and of what is derived from it, that the engine put aside."""
        parts = self._set_aside()
        return (
            [f"{table} {name}" for table, name in parts if table == "events"],
            [f"{table} {name}" for table, name in parts if table in tables.DERIVED],
        )

    def _check_whole(self) -> None:
        """Raise Unavailable while a derived table lacks a part: its answers would be too low, and look right."""
        if self._losses.derived:
            raise Unavailable(
                "a part of the usage store is missing, or was damaged and is set aside: run `tollkeeper rebuild`",
                detail=self._losses.derived,
            )

    def _rollup_differences(self) -> list[str]:
        dimensions = ", ".join(_DIMENSIONS)
        columns = ", ".join([*_DIMENSIONS, *_SUMS, *_MAPS, *_EXTREMES])
        sums = ", ".join(f"sum(side * {name}) AS d_{name}" for name in _SUMS)
        maps = ", ".join(f"sumMap(mapApply((k, v) -> (k, side * v), {name})) AS d_{name}" for name in _MAPS)
        extremes = ", ".join(
            f"{merge}If({name}, side = 1) - {merge}If({name}, side = -1) AS d_{name}"
            for name, merge in _EXTREMES.items()
        )
        shown = [f"d_{name}" for name in (*_SUMS, *_EXTREMES)]
        tests = [f"{name} <> 0" for name in shown]
        tests += [f"arrayExists(v -> v <> 0, mapValues(d_{name}))" for name in _MAPS]
        derived = tables.derivation("usage_rollups_of_events", _STEP.format("occurred_at"))
        compared = f"""
            SELECT {", ".join([*_DIMENSIONS.values(), *shown])} FROM (
                SELECT {dimensions}, {sums}, {maps}, {extremes}
                FROM (
                    SELECT toInt64(1) AS side, {columns} FROM usage_rollups WHERE {_STEP.format("at")}
                    UNION ALL
                    SELECT toInt64(-1) AS side, {columns} FROM ({derived})
                )
                GROUP BY {dimensions}
            )
            WHERE {" OR ".join(tests)}
            ORDER BY {dimensions} LIMIT {_DIFFERENCES_MAX}"""
        days = """
            SELECT day, sum(records) FROM (
                SELECT toYYYYMMDD(occurred_at) AS day, count() AS records FROM events GROUP BY day
                UNION ALL SELECT toYYYYMMDD(at) AS day, 0 AS records FROM usage_rollups GROUP BY day
            ) GROUP BY day ORDER BY day"""
        lines: list[str] = []
        for first, last in _day_spans(self._rows(days, {})):
            rows = self._rows(compared, {"first": first, "last": last}, _COMPARISON)
            lines += [_rollup_line(row) for row in rows]
            if len(lines) >= _DIFFERENCES_MAX:
                break
        return lines[:_DIFFERENCES_MAX]

    def _id_differences(self) -> list[str]:
        # Sums of hashes per account and month find where to look, in memory that does not grow with the ids.
        derived = " UNION ALL ".join(
            tables.derivation(view) for view in ("event_ids_of_events", "event_ids_of_amendments")
        )
        both = f"""
            SELECT toInt64(1) AS side, id, account_id, occurred_minute FROM event_ids
            UNION ALL SELECT toInt64(-1) AS side, id, account_id, occurred_minute FROM ({derived})"""
        places = self._rows(
            f"""
            SELECT account_id, toYYYYMM(occurred_minute) AS month FROM ({both})
            GROUP BY account_id, month
            HAVING sum(side) <> 0 OR sum(side * reinterpretAsInt64(cityHash64(id, occurred_minute))) <> 0
            ORDER BY account_id, month LIMIT {_DIFFERENCES_MAX}""",
            {},
            _COMPARISON,
        )
        lines: list[str] = []
        for account_id, month in places:
            rows = self._rows(
                f"""
                SELECT id, toString(occurred_minute), sum(side) AS surplus FROM ({both})
                WHERE account_id = {{account_id:String}} AND toYYYYMM(occurred_minute) = {{month:UInt32}}
                GROUP BY id, occurred_minute HAVING surplus <> 0
                ORDER BY id LIMIT {_DIFFERENCES_MAX}""",
                {"account_id": account_id, "month": month},
            )
            lines += [
                f"event_ids: {account_id} {id_} at {minute}: {surplus:+d} rows"
                for id_, minute, surplus in rows
            ]
            if len(lines) >= _DIFFERENCES_MAX:
                break
        return lines[:_DIFFERENCES_MAX]


class _LookUp(NamedTuple):
    """A client, and what `{pairs}` stands for in its statements: the (id, account_id) that are looked up."""

    client: Client
    pairs: str
    parameters: dict[str, Any]

    def table(self, sql: str) -> pa.Table:
        return self.client.query_arrow(
            sql.replace("{pairs}", self.pairs), parameters=self.parameters, settings=dict(_AS_CODES)
        )


_DIMENSIONS: Final = {
    name: f"toString({name})" if name in ("tier", "at") else name
    for name in (
        "account_id",
        "tier",
        "at",
        "project_id",
        "key_id",
        "kind",
        "method",
        "route",
        "status",
        "error_type",
        "denied_reason",
        "model",
        "cache",
    )
}
_SUMS: Final = (
    "requests",
    "errors",
    "failed",
    "denied",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cost_nanos",
    "estimated_cost_nanos",
    "credits",
    "unpriced",
    "cache_hits",
    "cache_misses",
    "bytes_out",
    "latency_count",
    "latency_sum_us",
    "corrections",
)
_MAPS: Final = ("latency_bins", "minutes")
_EXTREMES: Final = {"latency_max_us": "max", "first_at_us": "min", "last_at_us": "max"}


def _rollup_line(row: Sequence[Any]) -> str:
    place = ", ".join(
        f"{name}={value}"
        for name, value in zip(_DIMENSIONS, row[: len(_DIMENSIONS)], strict=True)
        if value != ""
    )
    deltas = zip((*_SUMS, *_EXTREMES), row[len(_DIMENSIONS) :], strict=True)
    found = ", ".join(f"{name} {delta:+d}" for name, delta in deltas if delta)
    return f"usage_rollups: {place}: {found or 'histograms differ'}"


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Let no error of the driver out: chDB raises RuntimeErrors too, and a full disk is an OSError."""
    try:
        yield
    except (ClickHouseError, RuntimeError, OSError, pa.ArrowException) as exc:
        if _UNKNOWN_ZONE in str(exc):
            # The database of zones of another engine may be older than ours.
            raise BadParameter("time_zone is not known to the usage store", field="time_zone") from exc
        damaged = _DAMAGED_FILE.search(str(exc))
        said = f"is damaged: {damaged[1]}" if damaged else "cannot answer now"
        raise Unavailable(f"the usage store {said}", detail=str(exc)) from exc


def _day_spans(counts: Sequence[Sequence[Any]]) -> list[tuple[int, int]]:
    """Return spans of days (first, last) that cover *counts*, pairs of day and records in order."""
    spans: list[tuple[int, int]] = []
    held = 0
    for day, count in counts:
        if spans and held + count <= _STEP_RECORDS:
            spans[-1] = (spans[-1][0], day)
            held += count
        else:
            spans.append((day, day))
            held = count
    return spans


def _quoted(value: object) -> str:
    """Return *value* as a string of SQL; the engine reads numbers from it too."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _stored_form(records: pa.Table) -> pa.Table:
    """Return *records* as one batch with the columns of `events`; instants keep their bytes."""
    names, columns = [], []
    for name, column in zip(records.column_names, records.combine_chunks().columns, strict=True):
        if name.endswith("_at_us"):
            name, column = name.removesuffix("_us"), column.cast(pa.timestamp("us", tz="UTC"))
        names.append(name)
        columns.append(column)
    return pa.Table.from_arrays(columns, names=names).combine_chunks()


def _booked_form(rows: pa.Table) -> pa.Table:
    """Return what the engine answered for `_RECORD_COLUMNS` as a table of `columns.SCHEMA`."""
    arrays = []
    for field in SCHEMA:
        column = rows.column(field.name).combine_chunks()
        if pa.types.is_dictionary(column.type):
            # The engine says few values with few bytes of code.
            column = pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), column.dictionary)
        elif pa.types.is_dictionary(field.type):
            column = column.dictionary_encode()
        arrays.append(column.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _newest_of(records: pa.Table) -> str:
    """Return the greatest id that *records* bring; text compares alike here, in Arrow and in the engine."""
    newest: str = max(pc.max(records.column(name)).as_py() for name in ("id", "amendment_id"))
    return newest


def _current(rows: pa.Table) -> pa.Table:
    """Return the last revision of each event of *rows*: its row of sign -1 if it was voided."""
    pairs = pc.binary_join_element_wise(rows.column("account_id").cast(pa.string()), rows.column("id"), "\0")
    if pc.count_distinct(pairs).as_py() == rows.num_rows:
        return rows
    order = pc.sort_indices(
        pa.table({"pair": pairs, "revision": rows.column("revision"), "sign": rows.column("sign")}),
        [("pair", "ascending"), ("revision", "descending"), ("sign", "ascending")],
    )
    ends = pc.run_end_encode(pairs.take(order).combine_chunks()).run_ends
    starts = [0, *ends.to_pylist()[:-1]]
    return rows.take(order.take(pa.array(starts)))


def _plain(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([(name, pa.string()) for name in table.column_names])).combine_chunks()
