"""
Completes an append that was cut short, by the end of its process or of the machine.

The engine deduplicates by tokens, but a part and its token are two steps on the disk, first the token and then the
part. Killed in between, the token turns every repeat away and the part never comes; after a power cut a part may be
there without its token. So an append that may have been begun before is compared with what is there.

Rollups and ids that lack these records get them; those of an account and day, or an id, that differ in any other way
are derived again.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from tollkeeper.adapters.clickhouse import expiry, tables

TABLE: Final = "append_comparison"
"""The records that are repeated. No temporary table, since deletions happen outside of the session."""
WRITER: Final = uuid.uuid4().hex
"""Names the rows of this process: others may be comparing theirs in the same store."""
_LISTED: Final = f"(SELECT * FROM {TABLE} WHERE writer = '{WRITER}')"
_STALE_S: Final = 86_400
"""Rows of a writer that was killed stay until the server is started again, or this long."""
_COLUMNS: Final = ("account_id", "occurred_at", "id", "revision", "sign")
_KEY: Final = ", ".join(_COLUMNS)
_STORED: Final = f"""
    SELECT {_KEY} FROM events
    WHERE (account_id, occurred_at) IN (SELECT account_id, occurred_at FROM {_LISTED})"""
_DAYS: Final = f"SELECT account_id, toDate(occurred_at) FROM {_LISTED}"
_MINUTES: Final = f"SELECT account_id, toStartOfMinute(occurred_at) FROM {_LISTED}"
_IDS: Final = f"""
    SELECT id, account_id FROM {_LISTED}
    UNION ALL SELECT amendment_id, account_id FROM {_LISTED} WHERE amendment_id <> ''"""
# A view's block of a year is written whole or not at all, so that one tier and a count tell.
_UNEVEN_DAYS: Final = f"""
    SELECT account_id, day, sum(surplus) AS surplus, sum(listed) AS listed FROM (
        SELECT account_id, toYYYYMMDD(occurred_at) AS day, -toInt64(count()) AS surplus, 0 AS listed
        FROM events WHERE (account_id, toDate(occurred_at)) IN ({_DAYS}) GROUP BY account_id, day
        UNION ALL
        SELECT account_id, toYYYYMMDD(e.day) AS day, -sum(e.records) AS surplus, 0 AS listed
        FROM expired_days AS e WHERE (account_id, e.day) IN ({_DAYS}) GROUP BY account_id, day
        UNION ALL
        SELECT account_id, toYYYYMMDD(at) AS day, sum(requests + adjustments + 2 * corrections) AS surplus,
            0 AS listed
        FROM usage_rollups WHERE tier = 'keys_day' AND (account_id, toDate(at)) IN ({_DAYS})
        GROUP BY account_id, day
        UNION ALL
        SELECT account_id, toYYYYMMDD(occurred_at) AS day, 0 AS surplus, toInt64(count()) AS listed
        FROM {_LISTED} GROUP BY account_id, day
    ) GROUP BY account_id, day HAVING surplus <> 0 ORDER BY account_id, day"""
_OF_DAYS: Final = (
    "(account_id, toYYYYMMDD({})) IN arrayZip({{accounts:Array(String)}}, {{days:Array(UInt32)}})"
)

log = logging.getLogger("tollkeeper.usage")


def clear(client: Client) -> None:
    """Remove this process's rows from `TABLE`, and what was left by others that are gone."""
    client.command(
        f"ALTER TABLE {TABLE} DELETE WHERE writer = '{WRITER}' OR listed_at < now() - {_STALE_S} "
        "SETTINGS mutations_sync = 1"
    )


def listed(rows: pa.Table) -> pa.Table:
    """Return what `TABLE` tells of *rows*, of columns of `events`: which they are, each with its number in *rows*."""
    texts = ("account_id", "id", "amendment_id")
    columns = {
        name: rows.column(name).cast(pa.string()) if name in texts else rows.column(name)
        for name in (*_COLUMNS, "amendment_id", "received_at")
    }
    numbers = pa.array(range(rows.num_rows), pa.uint32())
    writers = pa.array([WRITER] * rows.num_rows, pa.string())
    return pa.table({"writer": writers, "number": numbers, **columns}).combine_chunks()


def forget_expired(client: Client) -> None:
    """
    List no more those of the listed records that have expired: they count, and nothing is to be derived from them.

    A ledger that was put back gives records again. Those that have expired since are known by their ids, and were
    received before some that expired.
    """
    sql = f"""
        SELECT number FROM {_LISTED} AS l WHERE (account_id, toDate(occurred_at)) IN (
            SELECT account_id, day FROM expired_days WHERE (account_id, day) IN ({_DAYS})
        ) AND (id, account_id, toStartOfMinute(occurred_at)) IN (
            SELECT id, account_id, occurred_minute FROM event_ids WHERE (id, account_id) IN ({_IDS})
        ) AND received_at <= (
            SELECT fromUnixTimestamp64Micro(max(received_max_us), 'UTC') FROM expired_days
            WHERE (account_id, day) IN ({_DAYS})
        ) AND ({_KEY}) NOT IN ({_STORED})"""
    if numbers := [number for (number,) in client.query(sql).result_rows]:
        client.command(
            f"ALTER TABLE {TABLE} DELETE WHERE writer = '{WRITER}' AND number IN {{numbers:Array(UInt32)}}",
            parameters={"numbers": numbers},
            settings={"mutations_sync": 1},
        )


def missing(client: Client) -> list[int]:
    """Return the numbers of the listed records that `events` does not have."""
    sql = f"SELECT number FROM {_LISTED} WHERE ({_KEY}) NOT IN ({_STORED}) ORDER BY number"
    return [number for (number,) in client.query(sql).result_rows]


def derive(client: Client) -> None:
    """Make the rollups and ids of the listed records what the records in `events` say."""
    _derive_rollups(client)
    _derive_ids(client)


def _derive_rollups(client: Client) -> None:
    lacking: list[tuple[str, int]] = []
    other: list[tuple[str, int]] = []
    for account, day, surplus, listed_count in client.query(_UNEVEN_DAYS).result_rows:
        (lacking if surplus == -listed_count else other).append((account, day))
    if not lacking and not other:
        return
    log.warning("tollkeeper.usage.rollups_completed", extra={"lacking": len(lacking), "other": len(other)})
    of_days = _OF_DAYS.format("occurred_at")
    if lacking:
        # All that is not there is what these records say.
        listed_ones = f"""{of_days} AND (account_id, occurred_at) IN (SELECT account_id, occurred_at FROM {_LISTED})
            AND ({_KEY}) IN (SELECT {_KEY} FROM {_LISTED})"""
        _insert_rollups(client, listed_ones, _parameters(lacking))
    if other:
        client.command(
            f"DELETE FROM usage_rollups WHERE {_OF_DAYS.format('at')}", parameters=_parameters(other)
        )
        _insert_rollups(client, of_days, _parameters(other))
        client.command(
            f"INSERT INTO usage_rollups ({expiry.DERIVED_COLUMNS}) {expiry.derivation(_OF_DAYS.format('at'))}",
            parameters=_parameters(other),
            settings=dict(tables.DERIVING),
        )


def _parameters(days: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {"accounts": [account for account, _ in days], "days": [day for _, day in days]}


def _insert_rollups(client: Client, condition: str, parameters: dict[str, Any]) -> None:
    """Add the rollups of the records in `events` for which *condition* holds."""
    client.command(
        f"INSERT INTO usage_rollups {tables.derivation('usage_rollups_of_events', condition)}",
        parameters=parameters,
        settings=dict(tables.DERIVING),
    )


def _derive_ids(client: Client) -> None:
    derived = " UNION ALL ".join(
        tables.derivation(view, f"(account_id, toStartOfMinute(occurred_at)) IN ({_MINUTES})")
        for view in ("event_ids_of_events", "event_ids_of_amendments")
    )
    ours = f"(id, account_id) IN ({_IDS}) AND (account_id, occurred_minute) IN ({_MINUTES})"
    uneven = f"""
        SELECT id, account_id, occurred_minute, sum(side) AS surplus FROM (
            SELECT toInt64(1) AS side, id, account_id, occurred_minute FROM event_ids WHERE {ours}
            UNION ALL SELECT toInt64(-1) AS side, id, account_id, occurred_minute FROM ({derived}) WHERE {ours}
        )
        GROUP BY id, account_id, occurred_minute HAVING surplus <> 0"""
    surpluses = [surplus for *_, surplus in client.query(uneven).result_rows]
    if not surpluses:
        return
    log.warning("tollkeeper.usage.ids_completed", extra={"ids": len(surpluses)})
    if max(surpluses) > 0:
        client.command(
            "DELETE FROM event_ids WHERE (id, account_id, occurred_minute) IN "
            f"(SELECT id, account_id, occurred_minute FROM ({uneven}) WHERE surplus > 0)"
        )
    client.command(
        f"INSERT INTO event_ids SELECT id, account_id, occurred_minute FROM ({uneven}) "
        "ARRAY JOIN range(toUInt64(greatest(-surplus, 0)))",
        settings=dict(tables.DERIVING),
    )
