"""
Look-ups by id: which ids are known, and the records that have them.

The index `event_ids` leads from an id to the minute of its event, and so to the few granules of `events` that hold it.
Few ids are parameters of the statement; many are put into a temporary table first. Ids that are greater than every
stored one, as time-ordered ids are, are new without a query.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from tollkeeper.adapters.clickhouse.engine import UNGATHERED, Engine, engine_errors, most_s
from tollkeeper.adapters.clickhouse.record_form import RECORD_COLUMNS, booked_form, last_revisions

KEYS: Final = pa.schema([("account_id", pa.string()), ("id", pa.string())])
_LITERALS_MAX: Final = 200
"""Up to here ids are parameters; a list of 50,000 takes 1.2 s to parse, as a temporary table 25 ms."""
_MANY_S_MAX: Final = 20
"""Of a look-up of many: batches wait for one another, and each has a caller who gives up after some 30 s."""
_RECORDS: Final = f"""
    SELECT {RECORD_COLUMNS} FROM events
    WHERE (account_id, toStartOfMinute(occurred_at)) IN (
            SELECT account_id, occurred_minute FROM event_ids WHERE (id, account_id) IN {{pairs}}
        )
        AND (id, account_id) IN {{pairs}}"""
_AS_CODES: Final = "SETTINGS output_format_arrow_low_cardinality_as_dictionary = 1"


class IdLookUps:
    """Any thread may call, with at least one key, while no part of the index is missing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._many = engine.connect(most_s(_MANY_S_MAX))
        """The client whose session has the temporary table; `_lock` guards it."""
        self._newest_id: str | None = None
        """No id of the store is greater; None: not known."""

    def learn_newest(self) -> None:
        """Read the greatest id of the index, for an engine to which only this process appends."""
        rows = self._engine.appender.query("SELECT id FROM event_ids ORDER BY id DESC LIMIT 1").result_rows
        self._newest_id = rows[0][0] if rows else ""

    def will_append(self, records: pa.Table) -> None:
        """Take note of the ids of *records* before their insert, which may succeed without its answer arriving."""
        if self._newest_id is not None:
            # Text compares alike here, in Arrow and in the engine.
            newest = max(pc.max(records.column(name)).as_py() for name in ("id", "amendment_id"))
            self._newest_id = max(self._newest_id, newest)

    def known_ids(self, keys: pa.Table) -> pa.Table:
        """See `ports.UsageStore.known_ids`."""
        if self._are_newer(keys):
            return KEYS.empty_table()
        with engine_errors(), self._looking_up(keys) as lookup:
            return lookup.table(
                "SELECT account_id, id FROM event_ids WHERE (id, account_id) IN {pairs}"
            ).cast(KEYS)

    def record_columns(self, keys: pa.Table) -> pa.Table:
        """See `ports.UsageStore.record_columns`."""
        with engine_errors(), self._looking_up(keys) as lookup:
            return last_revisions(booked_form(lookup.table(_RECORDS)))

    def revisions(self, keys: pa.Table) -> pa.Table:
        """See `event_lists.EventLists.revisions`."""
        with engine_errors(), self._looking_up(keys) as lookup:
            return booked_form(lookup.table(f"{_RECORDS} AND sign = 1"))

    def expired_ids(self, keys: pa.Table) -> pa.Table:
        """See `event_expiry.EventExpiry.expired_ids`."""
        of_keys = "SELECT {} FROM event_ids WHERE (id, account_id) IN {{pairs}}"
        minutes = of_keys.format("account_id, occurred_minute")
        days = of_keys.format("account_id, toDate(occurred_minute)")
        there = """
            SELECT {0}, account_id FROM events
            WHERE (account_id, toStartOfMinute(occurred_at)) IN ({1}) AND ({0}, account_id) IN {{pairs}}"""
        sql = f"""
            {of_keys.format("DISTINCT account_id, id")}
                AND (account_id, toDate(occurred_minute)) IN (
                    SELECT account_id, day FROM expired_days WHERE (account_id, day) IN ({days})
                )
                AND (id, account_id) NOT IN (
                    {there.format("id", minutes)} UNION ALL {there.format("amendment_id", minutes)}
                )"""
        with engine_errors(), self._looking_up(keys) as lookup:
            return lookup.table(sql).cast(KEYS)

    def owners(self, id_: str) -> list[str]:
        """See `ports.UsageStore.owners`."""
        sql = """
            SELECT DISTINCT account_id FROM events
            WHERE (account_id, toStartOfMinute(occurred_at)) IN (
                    SELECT account_id, occurred_minute FROM event_ids WHERE id = {id:String}
                )
                AND id = {id:String}
            ORDER BY account_id"""
        rows = self._engine.rows(sql, {"id": id_}, readers=self._engine.look_ups)
        return [account_id for (account_id,) in rows]

    def _are_newer(self, keys: pa.Table) -> bool:
        newest = self._newest_id
        return newest is not None and pc.min(keys.column("id")).as_py() > newest

    @contextmanager
    def _looking_up(self, keys: pa.Table) -> Iterator[_LookUp]:
        """Make *keys* known to the engine for the length of the block."""
        keys = keys.select(["account_id", "id"]).cast(KEYS).combine_chunks()
        if keys.num_rows <= _LITERALS_MAX:
            parameters = keys.to_pydict()
            with self._engine.look_ups.lend() as client:
                yield _LookUp(client, "arrayZip({id:Array(String)}, {account_id:Array(String)})", parameters)
            return
        with self._lock:
            self._engine.check_open()
            client = self._many
            # A server may have ended the session, and the table with it.
            client.command(
                "CREATE TEMPORARY TABLE IF NOT EXISTS lookup (account_id String, id String) ENGINE = Memory"
            )
            client.command("TRUNCATE TABLE lookup")
            self._engine.insert(client, "lookup", keys, UNGATHERED)
            yield _LookUp(client, "(SELECT id, account_id FROM lookup)", {})
            client.command("TRUNCATE TABLE lookup")


class _LookUp(NamedTuple):
    """A client, and what `{pairs}` stands for in its statements: the (id, account_id) that are looked up."""

    client: Client
    pairs: str
    parameters: dict[str, Any]

    def table(self, sql: str) -> pa.Table:
        # The setting within the statement: beside it, the driver asks for it, sets it for the session, and back,
        # which takes longer than the look-up.
        statement = f"{sql.replace('{pairs}', self.pairs)} {_AS_CODES}"
        return self.client.query_arrow(statement, parameters=self.parameters)
