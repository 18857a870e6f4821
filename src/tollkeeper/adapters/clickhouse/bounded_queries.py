"""Queries of callers: each is bounded (`readers.QueryLimits`), and stopped when its caller goes away."""

from __future__ import annotations

import logging
from typing import Any

from tollkeeper.adapters.clickhouse.engine import Engine, engine_errors
from tollkeeper.adapters.clickhouse.queries import Statement
from tollkeeper.adapters.clickhouse.readers import QueryLimits, report_of
from tollkeeper.errors import Unavailable

log = logging.getLogger("tollkeeper.usage")


class BoundedQueries:
    """Any thread may call."""

    def __init__(self, engine: Engine, limits: QueryLimits) -> None:
        self._engine = engine
        self._limits = limits

    def rows(self, statement: Statement) -> list[tuple[Any, ...]]:
        """
        Return the rows of a statement.

        Raises:
            QueryTooLarge, QueryTooSlow: It takes more than a query may.
            Unavailable: The engine does not answer, or the caller has gone.
        """
        with (
            engine_errors(),
            self._engine.reports.lend() as client,
            report_of(self._limits, self._stop) as settings,
        ):
            result = client.query(statement.sql, parameters=statement.parameters, settings=settings)
            return list(map(tuple, result.result_rows))

    def _stop(self, tag: str) -> None:
        """End the query that runs under *tag*, if it does."""
        try:
            with engine_errors(), self._engine.stoppers.lend() as client:
                client.command(
                    "KILL QUERY WHERE Settings['log_comment'] = {tag:String} ASYNC", parameters={"tag": tag}
                )
        except Unavailable as exc:
            # It then ends by its own time limit; no caller waits for it.
            log.warning("tollkeeper.usage.stop_failed", extra={"reason": str(exc), "detail": exc.fields})
