"""Top-ups of budgets over SQL, and the own amounts that decide what is drawn from them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import counters, own_amounts, progress, top_ups
from tollkeeper.adapters.sql.upsert import insert_into, replacing
from tollkeeper.domain.bookings import ToppedUp
from tollkeeper.domain.top_ups import OwnAmount, TopUp


class SqlTopUps:
    """The top-ups of one ledger."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database

    def write(self, tx: sa.Connection, posted: Sequence[TopUp], own: Sequence[OwnAmount]) -> None:
        """Add top-ups, and note own amounts, in a transaction of the ledger."""
        if posted:
            tx.execute(sa.insert(top_ups), [top_up._asdict() for top_up in posted])
        if own:
            statement = replacing(insert_into(self._database.engine, own_amounts), own_amounts, ("amount",))
            for amount in own:
                tx.execute(statement, amount._asdict())

    def find(self, account_id: str, top_up_id: str) -> TopUp | None:
        """See `ports.Ledger.top_up`."""
        query = sa.select(top_ups).where(top_ups.c.account_id == account_id, top_ups.c.id == top_up_id)
        with self._database.reading() as tx:
            row = tx.execute(query).one_or_none()
        return None if row is None else _top_up(row)

    def of_counter(self, account_id: str, counter_id: str) -> ToppedUp:
        """See `ports.Ledger.topped_up`."""
        mine = (top_ups.c.account_id == account_id, top_ups.c.counter_id == counter_id)
        with self._database.reading() as tx:
            posted = [
                _top_up(row)
                for row in tx.execute(sa.select(top_ups).where(*mine).order_by(top_ups.c.posted_at_us))
            ]
            if not any(top_up.until_used for top_up in posted):
                return ToppedUp(posted, [], {}, 0)
            own = [
                OwnAmount(*row)
                for row in tx.execute(
                    sa.select(own_amounts)
                    .where(own_amounts.c.account_id == account_id, own_amounts.c.counter_id == counter_id)
                    .order_by(own_amounts.c.from_us)
                )
            ]
            # One statement, so that all are of the same commit whatever the isolation level.
            joined = progress.outerjoin(
                counters,
                sa.and_(counters.c.account_id == account_id, counters.c.counter_id == counter_id),
            )
            rows = tx.execute(
                sa.select(progress.c.commit_seq, counters.c.period_start_us, counters.c.used).select_from(
                    joined
                )
            ).all()
        used = {int(start): int(amount) for _, start, amount in rows if start is not None}
        return ToppedUp(posted, own, used, int(rows[0][0]))

    def last_own(self, account_id: str) -> dict[str, int]:
        """See `ports.Ledger.own_amounts`."""
        query = (
            sa.select(own_amounts.c.counter_id, own_amounts.c.amount)
            .where(own_amounts.c.account_id == account_id)
            .order_by(own_amounts.c.from_us)
        )
        with self._database.reading() as tx:
            return {str(counter_id): int(amount) for counter_id, amount in tx.execute(query)}


def _top_up(row: sa.Row[tuple[object, ...]]) -> TopUp:
    return TopUp(**{name: getattr(row, name) for name in TopUp._fields})
