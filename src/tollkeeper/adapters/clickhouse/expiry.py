"""
Expiry of events: records go, what is derived from them stays, and what the derivation can say no more is kept beside.

A step takes some days of some accounts. It writes what they add up to (`expired_days`, `expired_rollups`,
`expired_extremes`), notes that this is whole, removes the records, and notes that they are gone. Cut short before the
first note it is taken back, and after it completed. So at any time outside of a step

    usage_rollups, event_ids  =  derived from `events`  +  what the tables of expired records say.
"""

# ruff: noqa: S608 - statements are put together from names in this package; values are parameters.

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from tollkeeper.adapters.clickhouse import matching, tables
from tollkeeper.adapters.clickhouse.engine import Engine, engine_errors
from tollkeeper.adapters.clickhouse.look_ups import KEYS, IdLookUps
from tollkeeper.adapters.clickhouse.tiers import DAY_US, HOUR_US
from tollkeeper.adapters.clickhouse.values import VALUES
from tollkeeper.domain.instants import US_PER_S, from_us, to_text
from tollkeeper.domain.matching import TAG, Conditions
from tollkeeper.errors import DetailExpired, Unavailable
from tollkeeper.event_expiry import ExpiringDay

TABLES: Final = ("expired_days", "expired_rollups", "expired_extremes")
"""What a step writes. Each row has the number of its step."""
_ACCOUNTS_MAX: Final = 1_000
"""Accounts per query: their ids are parameters."""
_HOUR_MAX_US: Final = 4_102_444_800_000_000
"""2100-01-01: see `queries.AT_MAX_US`."""
_DIMENSIONS: Final = (
    "account_id",
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
_EXTREMES: Final = {"latency_max_us": "max", "first_at_us": "min", "last_at_us": "max"}
_MAPS: Final = ("latency_bins", "minutes", "quantities")
_HASH: Final = "reinterpretAsInt64(cityHash64({}, toStartOfMinute(occurred_at)))"
"""Of an id and the minute of its event; `audit.py` sums up the same over `event_ids`."""
_SYNC: Final = {"mutations_sync": 1, "lightweight_deletes_sync": 1}

log = logging.getLogger("tollkeeper.usage")


def derivation(condition: str = "1") -> str:
    """
    Return the SELECT of `usage_rollups` over the expired records for whose hours `at` *condition* holds.

    The twin of the view's, from the sums of hours; a test holds the two together.
    """
    is_day, is_key, is_kind = (
        "tier IN ('day', 'keys_day', 'kinds_day')",
        "tier IN ('keys_hour', 'keys_day')",
        "tier IN ('kinds_hour', 'kinds_day')",
    )
    columns = ["e.account_id AS account_id", "tier", f"if({is_day}, toStartOfDay(e.at), e.at) AS at"]
    for name in _DIMENSIONS[2:]:
        left_out = is_kind if name in ("project_id", "key_id") else is_key
        nothing = "0" if name == "status" else "''"
        columns.append(f"if({left_out}, {nothing}, e.{name}) AS {name}")
    columns += [f"sum(e.{name}) AS {name}" for name in _SUMS]
    columns += [f"{merge}(e.{name}) AS {name}" for name, merge in _EXTREMES.items()]
    columns += [
        "sumMapIf(e.latency_bins, tier <> 'day') AS latency_bins",
        f"sumMapIf(e.minutes, NOT {is_day}) AS minutes",
        "sumMap(e.quantities) AS quantities",
    ]
    return f"""
        SELECT {", ".join(columns)} FROM (SELECT * FROM expired_rollups WHERE {condition}) AS e
        ARRAY JOIN ['hour', 'day', 'keys_hour', 'keys_day', 'kinds_hour', 'kinds_day'] AS tier
        GROUP BY account_id, tier, at, {", ".join(_DIMENSIONS[2:])}"""


DERIVED_COLUMNS: Final = ", ".join(["account_id", "tier", *_DIMENSIONS[1:], *_SUMS, *_EXTREMES, *_MAPS])
"""The columns of `derivation`, by name for an INSERT."""
RECORDS: Final = "(SELECT sum(records) FROM expired_days)"
"""How many records expired."""


class Expiry:
    """
    `step` and `recover` are called by one thread at a time, which keeps appends away; any thread may call the rest.
    """

    def __init__(self, engine: Engine, look_ups: IdLookUps) -> None:
        self._engine = engine
        self._look_ups = look_ups
        self._detail_from_us: dict[str, int] = {}
        self._newest_us: int | None = None
        self.is_unfinished = False
        """Whether a step failed in the middle: until `recover`, records and sums count twice, or sums are not whole."""

    def recover(self) -> None:
        """Complete or take back a step that was cut short, and learn what expired."""
        client = self._engine.appender
        rows = client.query(
            "SELECT step, max(state) AS state FROM ("
            "SELECT step, toInt8(0) AS state FROM expired_days UNION ALL "
            "SELECT step, toInt8(0) AS state FROM expired_rollups UNION ALL "
            "SELECT step, toInt8(0) AS state FROM expired_extremes UNION ALL "
            "SELECT step, toInt8(state) AS state FROM expiry_steps) "
            "WHERE step > 0 GROUP BY step HAVING state < 2 ORDER BY step"
        ).result_rows
        for step, state in rows:
            log.warning("tollkeeper.expiry.recovered", extra={"step": step, "completed": bool(state)})
            if state:
                self._remove(client, step)
            else:
                for table in reversed(TABLES):
                    client.command(
                        f"ALTER TABLE {table} DELETE WHERE step = {{step:UInt64}}",
                        parameters={"step": step},
                        settings=_SYNC,
                    )
        self._learn(
            client.query(
                "SELECT account_id, max(toInt32(day)) FROM expired_days GROUP BY account_id"
            ).result_rows
        )
        self.is_unfinished = False

    def expiring(self, before_us: Mapping[str, int]) -> list[ExpiringDay]:
        """See `event_expiry.EventExpiry.expiring`."""
        # A query per instant, of which there are few: so the primary key leads past everything that is kept. One query
        # up to the latest instant would read all events of the accounts that keep theirs for longer, in each round.
        accounts_by_day: dict[int, list[str]] = {}
        for account in sorted(before_us):
            accounts_by_day.setdefault(max(0, before_us[account] // DAY_US), []).append(account)
        found: list[ExpiringDay] = []
        for before_day, accounts in sorted(accounts_by_day.items()):
            for first in range(0, len(accounts), _ACCOUNTS_MAX):
                rows = self._engine.rows(
                    """
                    SELECT account_id, toInt32(toDate(occurred_at)) AS day, count() FROM events
                    WHERE account_id IN {accounts:Array(String)}
                        AND occurred_at < fromUnixTimestamp64Micro({before_us:Int64}, 'UTC')
                    GROUP BY account_id, day""",
                    {"accounts": accounts[first : first + _ACCOUNTS_MAX], "before_us": before_day * DAY_US},
                )
                found += [ExpiringDay(account, day * DAY_US, count) for account, day, count in rows]
        return sorted(found, key=lambda expiring: (expiring.day_us, expiring.account_id))

    def step(self, days: Sequence[ExpiringDay]) -> int:
        """Remove the records of *days*; return how many. `recover` must follow a failure."""
        client = self._engine.appender
        self._engine.check_room()
        self.is_unfinished = True
        ((last,),) = client.query("SELECT max(step) FROM expiry_steps").result_rows
        step = last + 1
        self._sum_up(client, step, days)
        ((records,),) = client.query(
            "SELECT sum(records) FROM expired_days WHERE step = {step:UInt64}", parameters={"step": step}
        ).result_rows
        ((summed,),) = client.query(
            "SELECT sum(requests + adjustments + 2 * corrections) FROM expired_rollups WHERE step = {step:UInt64}",
            parameters={"step": step},
        ).result_rows
        if records != summed:
            raise Unavailable(
                "Events that expire do not add up, nothing was removed.", records=records, summed=summed
            )
        self._note(client, step, "summed")
        # Before they go: a report that reads this afterwards has read all records that it needed, or knows.
        self._learn([(day.account_id, day.day_us // DAY_US) for day in days])
        self._remove(client, step)
        self.is_unfinished = False
        return int(records)

    def _sum_up(self, client: Client, step: int, days: Sequence[ExpiringDay]) -> None:
        parameters: dict[str, Any] = {
            "step": step,
            "accounts": [day.account_id for day in days],
            "days": [day.day_us // DAY_US for day in days],
            "from_us": min(day.day_us for day in days),
            "to_us": max(day.day_us for day in days) + DAY_US,
        }
        span = """occurred_at >= fromUnixTimestamp64Micro({from_us:Int64}, 'UTC')
            AND occurred_at < fromUnixTimestamp64Micro({to_us:Int64}, 'UTC')"""
        chosen = f"""account_id IN {{accounts:Array(String)}} AND {span} AND (
            toString(account_id), toInt32(toDate(occurred_at))
        ) IN arrayZip({{accounts:Array(String)}}, {{days:Array(Int32)}})"""
        hashes = f"sumIf({_HASH.format('id')}, sign = 1) + sumIf({_HASH.format('amendment_id')}, amendment_id <> '')"
        client.command(
            f"""
            INSERT INTO expired_days SELECT {{step:UInt64}}, account_id, toDate(occurred_at) AS day, count(),
                countIf(sign = 1) + countIf(amendment_id <> ''), {hashes},
                max(toUnixTimestamp64Micro(received_at))
            FROM events WHERE {chosen} GROUP BY account_id, day""",
            parameters=parameters,
            settings=dict(tables.DERIVING),
        )
        # By that table from here on, as the removal is: it is the same then whatever comes between.
        removed = f"{span} AND {_is_of_step()}"
        columns = ", ".join([*_DIMENSIONS, *_SUMS, *_EXTREMES, *_MAPS])
        client.command(
            f"INSERT INTO expired_rollups (step, {columns}) SELECT {{step:UInt64}}, {columns} "
            f"FROM ({tables.derivation('usage_rollups_of_events', removed)}) WHERE tier = 'hour'",
            parameters=parameters,
            settings=dict(tables.DERIVING),
        )
        taken_back = f"SELECT account_id, id, revision FROM events WHERE {removed} AND sign = -1"
        values = ", ".join(
            f"{VALUES[name].merge}({VALUES[name].event}) AS {name}_found" for name in _EXTREMES
        )
        dimensions = ", ".join(_DIMENSIONS[2:])
        client.command(
            f"""
            INSERT INTO expired_extremes (step, account_id, at, {dimensions}, {", ".join(_EXTREMES)})
            SELECT {{step:UInt64}}, account_id, toStartOfHour(occurred_at) AS hour, {dimensions}, {values}
            FROM events AS e WHERE {removed} AND sign = 1
                AND (account_id, toStartOfHour(occurred_at)) IN (
                    SELECT account_id, toStartOfHour(occurred_at) FROM events WHERE {removed} AND sign = -1
                )
                AND (account_id, id, revision) NOT IN ({taken_back})
            GROUP BY account_id, hour, {dimensions}""",
            parameters=parameters,
            settings=dict(tables.DERIVING),
        )

    def _remove(self, client: Client, step: int) -> None:
        parameters = {"step": step}
        # A lingering removal of a killed process ends at the records that were there when it began.
        for (month,) in client.query(
            "SELECT DISTINCT toYYYYMM(day) FROM expired_days WHERE step = {step:UInt64} ORDER BY 1",
            parameters=parameters,
        ).result_rows:
            client.command(
                f"DELETE FROM events IN PARTITION ID '{month}' WHERE {_is_of_step()}",
                parameters=parameters,
                settings=_SYNC,
            )
        self._note(client, step, "removed")

    def _note(self, client: Client, step: int, state: str) -> None:
        client.command(
            "INSERT INTO expiry_steps SELECT {step:UInt64}, {state:String}",
            parameters={"step": step, "state": state},
        )

    def _learn(self, days: Sequence[Sequence[Any]]) -> None:
        known = dict(self._detail_from_us)
        for account_id, day in days:
            known[account_id] = max((day + 1) * DAY_US, known.get(account_id, 0))
        self._detail_from_us = known
        self._newest_us = max(known.values(), default=None)

    def reclaim(self) -> None:
        """See `event_expiry.EventExpiry.reclaim`."""
        partitions = self._engine.rows(
            "SELECT DISTINCT partition_id FROM system.parts WHERE database = currentDatabase() "
            "AND table = 'events' AND active AND has_lightweight_delete ORDER BY partition_id"
        )
        for (partition,) in partitions:
            with engine_errors(), self._engine.scans.lend() as client:
                client.command(
                    f"ALTER TABLE events APPLY DELETED MASK IN PARTITION ID '{partition}'", settings=_SYNC
                )

    def detail_from_us(self, account_id: str | None) -> int | None:
        """See `event_expiry.EventExpiry.detail_from_us`."""
        return self._newest_us if account_id is None else self._detail_from_us.get(account_id)

    def lacks(self, account_id: str | None, spans_us: Sequence[tuple[int, int]]) -> bool:
        """Return whether records of an account (None: of any) expired in the hours that *spans_us* touch."""
        detail_from_us = self.detail_from_us(account_id)
        if detail_from_us is None:
            return False
        parameters: dict[str, Any] = {}
        hours = []
        for i, (start, end) in enumerate(spans_us):
            since, until = start // HOUR_US * HOUR_US, min(end, detail_from_us)
            if since < until:
                parameters |= {f"since{i}": since // US_PER_S, f"until{i}": -(-until // US_PER_S)}
                hours.append(
                    f"(at >= toDateTime({{since{i}:UInt32}}, 'UTC') AND at < toDateTime({{until{i}:UInt32}}, 'UTC'))"
                )
        if not hours:
            return False
        scope = f"({' OR '.join(hours)})"
        if account_id is not None:
            parameters["account_id"] = account_id
            scope = f"account_id = {{account_id:String}} AND {scope}"
        return bool(
            self._engine.rows(
                f"SELECT 1 FROM expired_rollups WHERE {scope} LIMIT 1",
                parameters,
                readers=self._engine.reports,
            )
        )

    def charges(
        self,
        client: Client,
        account_id: str,
        by: Sequence[str],
        span_us: tuple[int, int],
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None,
        cuts_us: Sequence[int],
    ) -> Sequence[Sequence[Any]]:
        """
        Return the rows of `queries.charge_query` for the expired records of an account, by their sums of hours.

        Raises:
            DetailExpired: These do not tell: tags count, or a bound cuts an hour.
        """
        detail_from_us = self.detail_from_us(account_id)
        start_us, end_us = max(0, span_us[0]), min(span_us[1], _HOUR_MAX_US)
        if detail_from_us is None or start_us >= min(detail_from_us, end_us):
            return []
        untold: list[tuple[int, int]] = [
            (at, at + 1) for at in (start_us, end_us, *cuts_us) if at % HOUR_US and at < detail_from_us
        ]
        if any(part.startswith(TAG) for part in by) or (match is not None and match.tags):
            untold.append((start_us, end_us))
        if self.lacks(account_id, untold):
            raise DetailExpired(
                f"Events of account {account_id} before {to_text(from_us(detail_from_us))} have expired: "
                "what is left of them is sums of hours, without tags.",
                detail_from_us=detail_from_us,
            )
        parameters: dict[str, Any] = {
            "account_id": account_id,
            "since": start_us // US_PER_S,
            "until": end_us // US_PER_S,
        }
        scope = [
            "account_id = {account_id:String}",
            "at >= toDateTime({since:UInt32}, 'UTC')",
            "at < toDateTime({until:UInt32}, 'UTC')",
        ]
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
            expressions.append(
                "toString(roundDown(toInt64(toUnixTimestamp(at)) * 1000000, {cuts_us:Array(Int64)}))"
            )
        values = "".join(f"{value} AS v{i}, " for i, value in enumerate(expressions))
        grouped = f" GROUP BY {', '.join(f'v{i}' for i in range(len(expressions)))}" if expressions else ""
        rows: Sequence[Sequence[Any]] = client.query(
            f"SELECT {values}{_CHARGED} FROM expired_rollups AS u WHERE {' AND '.join(scope)}{grouped}",
            parameters=parameters,
        ).result_rows
        return rows

    def expired_ids(self, keys: pa.Table) -> pa.Table:
        """See `event_expiry.EventExpiry.expired_ids`."""
        if keys.num_rows == 0 or self._newest_us is None:
            return KEYS.empty_table()
        return self._look_ups.expired_ids(keys)

    def owners(self, id_: str) -> list[str]:
        """Return the accounts that had an event of this id, which expired."""
        if self._newest_us is None:
            return []
        rows = self._engine.rows(
            """
            SELECT DISTINCT account_id FROM event_ids WHERE id = {id:String}
                AND (account_id, toDate(occurred_minute)) IN (SELECT account_id, day FROM expired_days)
            ORDER BY account_id""",
            {"id": id_},
            readers=self._engine.look_ups,
        )
        return [account_id for (account_id,) in rows]


def ids_beside() -> str:
    """
    Return a SELECT of each account and month whose rows of `event_ids` are not those of its records and expired ones.

    Sums of hashes per account and month tell, in memory that does not grow with the ids.
    """
    derived = " UNION ALL ".join(
        tables.derivation(view) for view in ("event_ids_of_events", "event_ids_of_amendments")
    )
    return f"""
        SELECT account_id, month, sum(ids) AS surplus, sum(hash) AS surplus_hash, max(last) AS last_day,
            toBool(last_day > toDate(0)) AS has_expired
        FROM (
            SELECT account_id, toYYYYMM(occurred_minute) AS month, sum(side) AS ids,
                sum(side * reinterpretAsInt64(cityHash64(id, occurred_minute))) AS hash, toDate(0) AS last
            FROM (
                SELECT toInt64(1) AS side, id, account_id, occurred_minute FROM event_ids
                UNION ALL SELECT toInt64(-1) AS side, id, account_id, occurred_minute FROM ({derived})
            )
            GROUP BY account_id, month
            UNION ALL
            SELECT e.account_id, toYYYYMM(e.day) AS month, -sum(e.ids), -sum(e.ids_hash), max(e.day)
            FROM expired_days AS e GROUP BY account_id, month
        )
        GROUP BY account_id, month HAVING surplus <> 0 OR surplus_hash <> 0"""


def forget_lost_ids(client: Client) -> None:
    """Expect no more ids of expired records than a rebuild found: nothing brings back those that were lost."""
    lost = client.query(f"SELECT sum(-surplus) FROM ({ids_beside()}) WHERE has_expired").result_rows[0][0]
    if not lost:
        return
    log.error("tollkeeper.expiry.ids_lost", extra={"ids": lost})
    client.command(
        "INSERT INTO expired_days SELECT 0, account_id, last_day, 0, surplus, surplus_hash, 0 "
        f"FROM ({ids_beside()}) WHERE has_expired",
        settings=dict(tables.DERIVING),
    )


def take_over_ids(client: Client, table: str, first: int, last: int) -> None:
    """
    Copy the rows of `event_ids` that only expired records account for to *table*, which has those of all others.

    Args:
        first, last: Days as YYYYMMDD, of minutes.
    """
    step = tables.STEP.format("occurred_minute")
    # An id of several revisions has a row for each.
    client.command(
        f"""
        INSERT INTO {table} (id, account_id, occurred_minute)
        SELECT id, account_id, occurred_minute FROM (
            SELECT id, account_id, occurred_minute, sum(side) AS surplus FROM (
                SELECT toInt64(1) AS side, id, account_id, occurred_minute FROM event_ids WHERE {step}
                UNION ALL
                SELECT toInt64(-1) AS side, id, account_id, occurred_minute FROM {table} WHERE {step}
            )
            WHERE (account_id, toDate(occurred_minute)) IN (SELECT account_id, day FROM expired_days)
            GROUP BY id, account_id, occurred_minute HAVING surplus > 0
        )
        ARRAY JOIN range(toUInt64(surplus))""",
        parameters={"first": first, "last": last},
        settings=dict(tables.DERIVING),
    )


_CHARGED: Final = f"""sum(u.requests + u.adjustments), sumIf(u.requests, u.denied_reason = ''),
    sum({VALUES["tokens"].rollup}), sum(u.cost_nanos - u.adjustment_nanos), sum(u.credits),
    sumMap(u.quantities), sum(u.adjustment_nanos)"""
"""The twin of what `store.charged_by` sums up of records."""


def _is_of_step() -> str:
    return "(account_id, toDate(occurred_at)) IN (SELECT account_id, day FROM expired_days WHERE step = {step:UInt64})"
