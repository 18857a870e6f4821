"""
Usage queries answered by statements: one query by its own, several of one account by one where they fit into it.

Each way first runs what assumes most (`queries.py`, `combined.py`), and something slower where that does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tollkeeper.adapters.clickhouse import answers, combined, queries
from tollkeeper.adapters.clickhouse.expiry import Expiry
from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import QueryTooLarge
from tollkeeper.ports import ReportRows

Run = Callable[[queries.Statement], list[tuple[Any, ...]]]
"""Runs a statement and returns its rows."""


def answer(run: Run, expiry: Expiry, query: UsageQuery, with_pending: Sequence[Record]) -> ReportRows:
    """Answer one query; a name that is none of ours raises BadParameter."""
    statement = queries.report(query, with_pending)
    rows = run(statement)
    if answers.is_unsure(rows):
        statement = queries.report(query, with_pending, assuming=False)
        rows = run(statement)
    # Afterwards: what expired before has told so, and what expires from now on was read.
    return answers.answer_of(query, rows)._replace(
        detail_from_us=expiry.detail_from_us(query.account_id),
        lacks_detail=expiry.lacks(query.account_id, statement.record_spans),
    )


def answer_all(
    run: Run, expiry: Expiry, asked: Sequence[UsageQuery], with_pending: Sequence[Record]
) -> list[ReportRows]:
    """Answer queries of one account, each as `answer` does."""
    found = _together(run, expiry, asked, with_pending)
    return [answer(run, expiry, query, with_pending) for query in asked] if found is None else found


def _together(
    run: Run, expiry: Expiry, asked: Sequence[UsageQuery], with_pending: Sequence[Record]
) -> list[ReportRows] | None:
    """Return the answers of one statement; None if only single queries can tell them."""
    together = combined.statement_of(asked, with_pending)
    if together is None:
        return None
    try:
        rows = run(together.statement)
    except QueryTooLarge:
        # Each alone may have few enough groups.
        return None
    account_id = asked[0].account_id
    # Which of the queries lack expired events is told by their own statements.
    if together.is_unsure(rows) or expiry.lacks(account_id, together.statement.record_spans):
        return None
    detail_from_us = expiry.detail_from_us(account_id)
    return [found._replace(detail_from_us=detail_from_us) for found in together.answers_of(rows)]
