"""
Audit of the usage store: damages, losses, duplicates, and differences between records and what is derived from them.

It reads only. `rebuild.py` mends what can be mended: the derived tables.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from tollkeeper.adapters.clickhouse import expiry, tables
from tollkeeper.adapters.clickhouse.engine import Engine, engine_errors
from tollkeeper.errors import Unavailable
from tollkeeper.ports import Losses

LINES_MAX: Final = 1_000
"""Differences, or duplicates, that are returned of one table."""
_COMPARISON: Final = {"max_threads": 2, "max_bytes_before_external_group_by": 128 << 20}
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
    "quantity_tokens",
    "margin_nanos",
    "adjustments",
    "adjustment_nanos",
)
_MAPS: Final = ("latency_bins", "minutes", "quantities")
_EXTREMES: Final = {"latency_max_us": "max", "first_at_us": "min", "last_at_us": "max"}

log = logging.getLogger("tollkeeper.usage")


class Audit:
    """Any thread may call. Remembers the losses that it found last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._losses = Losses([], [])

    def find_parts_set_aside(self) -> None:
        """Learn which parts the engine set aside at its start, and log each."""
        self._losses = self._parts_lost()
        for line in (*self._losses.records, *self._losses.derived):
            log.error("tollkeeper.usage.part_set_aside", extra={"part": line})

    def check_whole(self) -> None:
        """Raise Unavailable while a derived table lacks a part: its answers would be too low, and look right."""
        if self._losses.derived:
            raise Unavailable(
                "a part of the usage store is missing, or was damaged and is set aside: run `tollkeeper rebuild`",
                detail=self._losses.derived,
            )

    def derived_were_rebuilt(self) -> None:
        """Learn that rollups and ids lack nothing any more."""
        self._losses = Losses(self._losses.records, [])

    def losses(self) -> Losses:
        """See `ports.UsageStore.losses`."""
        rows = self._engine.rows
        ((records,),) = rows(f"SELECT count() + {expiry.RECORDS} FROM events")
        # Each record is an event, whose id is in the index, or takes one back, by the id of a correction.
        ((ids,),) = rows("SELECT count() FROM event_ids")
        ((summed,),) = rows(
            "SELECT sum(requests + adjustments + 2 * corrections) FROM usage_rollups WHERE tier = 'keys_day'"
        )
        found = {"events": records, "event_ids": ids, "usage_rollups": summed}
        most = max(found.values())
        short = {
            table: f"{table}: {most - count} of {most} records are missing"
            for table, count in found.items()
            if count < most
        }
        aside = self._parts_lost()
        self._losses = Losses(
            aside.records + self._expired_lost() + [short[table] for table in short if table == "events"],
            aside.derived + [short[table] for table in short if table != "events"],
        )
        return self._losses

    def damages(self, records_min: int) -> list[str]:
        """
        Return a line per part of `events` that is damaged, or that the engine set aside for it at its start, and one
        if there are fewer records than *records_min*, for whatever reason.
        """
        lines = [
            f"events: part {name} was damaged and is set aside"
            for table, name in self._set_aside()
            if table == "events"
        ]
        with engine_errors(), self._engine.scans.lend() as client:
            # As columns: the driver would return the answer to anything but a SELECT as text, all parts in one row.
            checked = client.query_arrow("CHECK TABLE events SETTINGS check_query_single_value_result = 0")
        lines += [
            f"events: part {row['part_path']} is damaged"
            for row in checked.to_pylist()
            if not row["is_passed"]
        ]
        lines += self._expired_lost()
        ((count,),) = self._engine.rows(f"SELECT count() + {expiry.RECORDS} FROM events")
        if count < records_min:
            lines.append(f"events: {records_min - count} of {records_min} records are missing")
        return lines

    def differences(self, records_min: int) -> list[str]:
        """See `ports.UsageStore.differences`. At most 1,000 lines per table."""
        return self.damages(records_min) + self._rollup_differences() + self._id_differences()

    def duplicates(self) -> list[str]:
        """See `ports.UsageStore.duplicates`. At most 1,000 lines."""
        # An id of the index has a row per revision. Those with several are found in the order of its key, in memory
        # that does not grow with the ids; a record is there twice when one of its revisions is.
        several = "SELECT id, account_id FROM event_ids GROUP BY id, account_id HAVING count() > 1"
        rows = self._engine.rows(
            f"""
            SELECT account_id, id, revision, sign, any(key_id), count() AS copies FROM events
            WHERE (id, account_id) IN ({several}) OR (amendment_id, account_id) IN ({several})
            GROUP BY account_id, id, revision, sign HAVING copies > 1
            ORDER BY account_id, id, revision, sign DESC LIMIT {LINES_MAX}""",
            settings=_COMPARISON | {"optimize_aggregation_in_order": 1},
        )
        return [
            f"events: {account_id} {id_}{f' of key {key_id}' if key_id else ''}, "
            f"revision {revision}{' taken back' if sign < 0 else ''}: recorded {copies} times"
            for account_id, id_, revision, sign, key_id, copies in rows
        ]

    def _set_aside(self) -> list[tuple[str, str]]:
        """Return table and name of the parts that the engine found damaged at a start and set aside."""
        rows = self._engine.rows(
            "SELECT table, name FROM system.detached_parts WHERE database = currentDatabase() "
            "AND startsWith(reason, 'broken') ORDER BY table, name"
        )
        return [(table, name) for table, name in rows]

    def _parts_lost(self) -> Losses:
        """Return a line per part of `events`, and of the tables derived from it, that the engine set aside."""
        parts = self._set_aside()
        return Losses(
            [f"{table} {name}" for table, name in parts if table in ("events", *expiry.TABLES)],
            [f"{table} {name}" for table, name in parts if table in tables.DERIVED],
        )

    def _expired_lost(self) -> list[str]:
        """Return a line if what is kept of expired records is not whole: rollups cannot be rebuilt without it."""
        ((records, summed),) = self._engine.rows(
            f"SELECT {expiry.RECORDS}, sum(requests + adjustments + 2 * corrections) FROM expired_rollups"
        )
        if records == summed:
            return []
        return [f"expired_rollups: has the sums of {summed} records, and {records} have expired"]

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
        derived = tables.derivation("usage_rollups_of_events", tables.STEP.format("occurred_at"))
        compared = f"""
            SELECT {", ".join([*_DIMENSIONS.values(), *shown])} FROM (
                SELECT {dimensions}, {sums}, {maps}, {extremes}
                FROM (
                    SELECT toInt64(1) AS side, {columns} FROM usage_rollups WHERE {tables.STEP.format("at")}
                    UNION ALL
                    SELECT toInt64(-1) AS side, {columns} FROM ({derived})
                    UNION ALL
                    SELECT toInt64(-1) AS side, {columns} FROM ({expiry.derivation(tables.STEP.format("at"))})
                )
                GROUP BY {dimensions}
            )
            WHERE {" OR ".join(tests)}
            ORDER BY {dimensions} LIMIT {LINES_MAX}"""
        days = """
            SELECT day, sum(records) FROM (
                SELECT toYYYYMMDD(occurred_at) AS day, count() AS records FROM events GROUP BY day
                UNION ALL SELECT toYYYYMMDD(at) AS day, 0 AS records FROM usage_rollups GROUP BY day
                UNION ALL SELECT toYYYYMMDD(at) AS day, 0 AS records FROM expired_rollups GROUP BY day
            ) GROUP BY day ORDER BY day"""
        lines: list[str] = []
        for first, last in tables.day_spans(self._engine.rows(days)):
            rows = self._engine.rows(compared, {"first": first, "last": last}, _COMPARISON)
            lines += [_rollup_line(row) for row in rows]
            if len(lines) >= LINES_MAX:
                break
        return lines[:LINES_MAX]

    def _id_differences(self) -> list[str]:
        derived = " UNION ALL ".join(
            tables.derivation(view) for view in ("event_ids_of_events", "event_ids_of_amendments")
        )
        both = f"""
            SELECT toInt64(1) AS side, id, account_id, occurred_minute FROM event_ids
            UNION ALL SELECT toInt64(-1) AS side, id, account_id, occurred_minute FROM ({derived})"""
        places = self._engine.rows(
            f"SELECT account_id, month, surplus, has_expired FROM ({expiry.ids_beside()}) "
            f"ORDER BY account_id, month LIMIT {LINES_MAX}",
            settings=_COMPARISON,
        )
        lines: list[str] = []
        for account_id, month, surplus, has_expired in places:
            if has_expired:
                # Of expired ids a sum is known, which does not say which of them differ.
                lines.append(
                    f"event_ids: {account_id} in {month}: {surplus:+d} rows, or others than there were"
                )
                continue
            rows = self._engine.rows(
                f"""
                SELECT id, toString(occurred_minute), sum(side) AS surplus FROM ({both})
                WHERE account_id = {{account_id:String}} AND toYYYYMM(occurred_minute) = {{month:UInt32}}
                GROUP BY id, occurred_minute HAVING surplus <> 0
                ORDER BY id LIMIT {LINES_MAX}""",
                {"account_id": account_id, "month": month},
            )
            lines += [
                f"event_ids: {account_id} {id_} at {minute}: {surplus:+d} rows"
                for id_, minute, surplus in rows
            ]
            if len(lines) >= LINES_MAX:
                break
        return lines[:LINES_MAX]


def _rollup_line(row: Sequence[Any]) -> str:
    place = ", ".join(
        f"{name}={value}"
        for name, value in zip(_DIMENSIONS, row[: len(_DIMENSIONS)], strict=True)
        if value != ""
    )
    deltas = zip((*_SUMS, *_EXTREMES), row[len(_DIMENSIONS) :], strict=True)
    found = ", ".join(f"{name} {delta:+d}" for name, delta in deltas if delta)
    return f"usage_rollups: {place}: {found or 'histograms differ'}"
