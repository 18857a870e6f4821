"""Whose usage one call asks for, and the reports that answer it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, NamedTuple, cast

from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.usage import NULLS_FIRST, PAGE_SIZE_MAX, UsageQuery, UsageReport
from tollkeeper.profiles.anylayer.parameters import TIMEFRAMES, UsageParameters
from tollkeeper.profiles.base import Call, ProfileContext

FAILURES: Final = {"status": "failed", "status_or_type": "errors"}
"""Value of the setting `failure` → the measure."""


class Grouped(NamedTuple):
    """One group of a breakdown."""

    name: Any
    requests: int
    errors: int
    latency_ms: float | None
    bytes_out: int
    last_at: str


class QueriedUsage:
    """The usage that one call reads: the account's or one key's (*target*), over one window, for *caller*."""

    def __init__(
        self,
        call: Call,
        context: ProfileContext,
        caller: StoredKey,
        target: StoredKey | None,
        parameters: UsageParameters,
    ) -> None:
        self.call = call
        self.context = context
        self.caller = caller
        self.target = target
        self.parameters = parameters
        self.account = caller.entry.account
        self.failed = FAILURES[context.settings["failure"]]
        """The measure that counts what failed."""
        # An event of this very microsecond belongs to the window that ends now.
        self.to_us = to_us(call.now) + 1
        self.span = TIMEFRAMES[parameters.timeframe]
        self.from_us = 0 if self.span is None else to_us(call.now - self.span)

    @cached_property
    def keys(self) -> list[StoredKey]:
        """The keys of the account, newest first."""
        return self.context.keys(self.account)

    def report(self, **asked: Any) -> UsageReport:
        """Return a report over this usage; *asked* are members of `UsageQuery`."""
        given: dict[str, Any] = {
            "from_us": self.from_us,
            "to_us": self.to_us,
            "week_start": self.context.settings["week_start"],
            **asked,
        }
        filters = {} if self.target is None else {"key": (self.target.entry.id,)}
        return self.context.usage(UsageQuery(account_id=self.account, filters=filters, **given))

    def groups(self, group_by: tuple[str, ...]) -> list[Grouped]:
        """Return the groups in the order that `sort` asks for; several dimensions make a tuple."""
        rows = self.report(
            group_by=group_by,
            measures=("requests", self.failed, "latency_ms_avg", "bytes_out", "last_at"),
            sort=self.sort("last_at"),
            limit=PAGE_SIZE_MAX,
        ).rows
        return [
            Grouped(
                row[group_by[0]] if len(group_by) == 1 else tuple(row[name] for name in group_by),
                row["requests"],
                row[self.failed],
                row["latency_ms_avg"],
                row["bytes_out"],
                row["last_at"] or "",
            )
            for row in rows
        ]

    def sort(self, timestamp_column: str) -> tuple[str, ...]:
        """Return the order that `sort` asks for; *timestamp_column* is the column of its value `timestamp`."""
        columns = {"requests": "requests", "errors": self.failed, "latency": "latency_ms_avg"}
        column = columns.get(self.parameters.sort, timestamp_column)
        if self.parameters.descending:
            return (f"-{column}",)
        # A latency that is not known sorts as it is shown: as 0 or less, or last where it is null.
        is_shown = self.parameters.sort == "latency" and self.context.settings["latency_unknown"] is not None
        return (column + NULLS_FIRST,) if is_shown else (column,)

    def milliseconds(self, value: float | None) -> float:
        """Return a latency as it is shown."""
        if value is None:
            return cast("float", self.context.settings["latency_unknown"])
        return round(value, int(self.context.settings["latency_places"]))

    def with_latency(self, members: dict[str, Any]) -> dict[str, Any]:
        """Return *members* without the latencies if `includeLatency` is false."""
        if self.parameters.latency:
            return members
        return {name: value for name, value in members.items() if not name.endswith("Latency")}
