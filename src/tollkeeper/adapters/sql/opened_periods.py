"""When the periods of budgets opened that open with the first use, over SQL."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import opened_periods, scopes
from tollkeeper.adapters.sql.upsert import insert_into
from tollkeeper.domain.bookings import OpenedPeriod
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.first_use import Span
from tollkeeper.domain.matching import VALUE_MARK, scope_counter_of


class SqlOpenedPeriods:
    """The opened periods of one ledger."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database

    def write(
        self,
        tx: sa.Connection,
        opened: Sequence[OpenedPeriod],
        started: Sequence[tuple[BudgetScope, int]],
        ended: Sequence[tuple[str, str]],
    ) -> None:
        """Add *opened*, then delete those that no scope counts in any more, in a transaction of the ledger."""
        if opened:
            statement = insert_into(self._database.engine, opened_periods).on_conflict_do_nothing()
            tx.execute(statement, [period._asdict() for period in opened])
        table = opened_periods.c
        for scope, active_from_us in started:
            counted = sa.and_(table.period == scope.period, table.start_us >= active_from_us)
            tx.execute(_of(scope.account_id, scope.counter_id).where(sa.not_(counted)))
        for account_id, counter_id in ended:
            tx.execute(_of(account_id, counter_id))

    def spans(
        self, account_id: str, counter_id: str, period: str, ends_after_us: int
    ) -> tuple[int | None, list[Span]]:
        """See `ports.Ledger.opened_periods`."""
        table = opened_periods.c
        # That of a value counts while its budget does.
        whole = scope_counter_of(counter_id)
        # One statement, so that scope and periods are of the same instant whatever the isolation level.
        joined = scopes.outerjoin(
            opened_periods,
            sa.and_(
                table.account_id == scopes.c.account_id,
                table.counter_id == counter_id,
                table.period == period,
                table.start_us >= scopes.c.active_from_us,
                table.end_us > ends_after_us,
            ),
        )
        query = (
            sa.select(scopes.c.active_from_us, table.start_us, table.end_us)
            .select_from(joined)
            .where(scopes.c.account_id == account_id, scopes.c.counter_id == whole)
            .order_by(table.start_us)
        )
        with self._database.reading() as tx:
            rows = tx.execute(query).all()
        if not rows:
            return None, []
        return int(rows[0][0]), [(int(start), int(end)) for _, start, end in rows if start is not None]


def _of(account_id: str, counter_id: str) -> sa.Delete:
    """Return what deletes the periods of a budget and of its values."""
    table = opened_periods.c
    # Not by LIKE, which does not tell case in SQLite. No id of the catalog contains the mark.
    of_value = sa.func.substr(table.counter_id, 1, len(counter_id) + 1) == counter_id + VALUE_MARK
    return sa.delete(opened_periods).where(
        table.account_id == account_id, sa.or_(table.counter_id == counter_id, of_value)
    )
