"""
Rebuild of the derived tables, rollups and the id index, from the records and from the sums of those that expired.
The ids of expired records are nowhere else: they are taken over from the index as it is.

They are filled beside those in use, which answer until each is exchanged; so answers and look-ups stay right while it
runs, and after a kill in the middle of it.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import itertools
from collections.abc import Callable

from clickhouse_connect.driver.client import Client

from tollkeeper.adapters.clickhouse import expiry, tables


def rebuild(client: Client, check_room: Callable[[], None]) -> dict[str, int]:
    """
    Derive every table of `tables.DERIVED` again; return the rows of each.

    Args:
        client: Nobody appends meanwhile, and no append is half done: its rollups are made here from the records
            that it left.
        check_room: Called before the first change.
    """
    spans = tables.day_spans(
        client.query(
            "SELECT day, sum(records) FROM ("
            "SELECT toYYYYMMDD(occurred_at) AS day, count() AS records FROM events GROUP BY day "
            "UNION ALL SELECT DISTINCT toYYYYMMDD(at) AS day, 0 AS records FROM expired_rollups"
            ") GROUP BY day ORDER BY day"
        ).result_rows
    )
    check_room()
    tables.drop_unfinished(client)
    for table in tables.DERIVED:
        client.command(f"CREATE TABLE {tables.unfinished(table)} AS {table}")
    for (view, table), (first, last) in itertools.product(tables.VIEWS.items(), spans):
        client.command(
            f"INSERT INTO {tables.unfinished(table)} "
            f"{tables.derivation(view, tables.STEP.format('occurred_at'))}",
            parameters={"first": first, "last": last},
            settings=dict(tables.DERIVING),
        )
    for first, last in spans:
        client.command(
            f"INSERT INTO {tables.unfinished('usage_rollups')} ({expiry.DERIVED_COLUMNS}) "
            f"{expiry.derivation(tables.STEP.format('at'))}",
            parameters={"first": first, "last": last},
            settings=dict(tables.DERIVING),
        )
        expiry.take_over_ids(client, tables.unfinished("event_ids"), first, last)
    for table in tables.DERIVED:
        client.command(f"EXCHANGE TABLES {table} AND {tables.unfinished(table)}")
    expiry.forget_lost_ids(client)
    # With them go the parts that were set aside: all that they had is there again.
    tables.drop_unfinished(client)
    return {table: client.query(f"SELECT count() FROM {table}").result_rows[0][0] for table in tables.DERIVED}
