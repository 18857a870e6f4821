"""Credit books over SQL: the grants on each account's balance, what remains of them, and the overdraft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from tollkeeper.adapters.sql.catalog_tables import grants
from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import pools, progress
from tollkeeper.adapters.sql.upsert import insert_into, replacing
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance, book_of


class SqlCreditBooks:
    """The credit books of one ledger. The read methods are those of `ports.Ledger`."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self._store_pool = replacing(insert_into(database.engine, pools), pools, ("overdraft_nanos",))

    def write(
        self,
        tx: sa.Connection,
        posted: Sequence[Grant],
        charges: Mapping[CounterAt, int],
        now_us: int,
    ) -> dict[str, CreditBook]:
        """
        Post grants and charge credit in a transaction of the ledger; return the books that this touched.

        A grant that is on its balance already is left alone.
        """
        spent = {at[0]: amount for at, amount in charges.items() if at[1] == CREDIT_COUNTER}
        touched = sorted({*spent, *(grant.account for grant in posted)})
        books: dict[str, CreditBook] = {}
        for account_id in touched:
            before = self._read_book(tx, account_id, lock=True)
            book = before
            known = {grant.grant_id for grant in before.grants}
            for grant in posted:
                if grant.account == account_id and grant.id not in known:
                    book = book.posted(
                        GrantBalance(
                            grant.priority,
                            grant.expires_at or FAR_FUTURE,
                            grant.id,
                            grant.amount_nanos,
                            grant.amount_nanos,
                        )
                    )
            book = book.charged(spent.get(account_id, 0), from_us(now_us))
            was = {grant.grant_id: grant.remaining_nanos for grant in before.grants}
            for balance in book.grants:
                if was.get(balance.grant_id) != balance.remaining_nanos:
                    tx.execute(
                        sa.update(grants)
                        .where(grants.c.account_id == account_id, grants.c.id == balance.grant_id)
                        .values(remaining_nanos=balance.remaining_nanos)
                    )
            if book.overdraft_nanos != before.overdraft_nanos:
                tx.execute(
                    self._store_pool, {"account_id": account_id, "overdraft_nanos": book.overdraft_nanos}
                )
            books[account_id] = book
        return books

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        with self._database.reading() as tx:
            if tx.dialect.name == "postgresql":
                # All statements as of one instant: a grant and the overdraft that it covers belong together.
                tx.execution_options(isolation_level="REPEATABLE READ")
            commit_seq = int(tx.execute(sa.select(progress.c.commit_seq)).scalar_one())
            return self._read_book(tx, account_id, lock=False), commit_seq

    def _read_book(self, tx: sa.Connection, account_id: str, *, lock: bool) -> CreditBook:
        query = sa.select(
            grants.c.priority,
            grants.c.expires_at_us,
            grants.c.id,
            grants.c.amount_nanos,
            grants.c.remaining_nanos,
        ).where(grants.c.account_id == account_id, grants.c.remaining_nanos.is_not(None))
        if lock:
            query = query.with_for_update()
        rows = tx.execute(query).all()
        overdraft = tx.execute(
            sa.select(pools.c.overdraft_nanos).where(pools.c.account_id == account_id)
        ).scalar()
        return book_of(
            (
                GrantBalance(
                    int(row.priority),
                    FAR_FUTURE if row.expires_at_us is None else from_us(int(row.expires_at_us)),
                    str(row.id),
                    int(row.amount_nanos),
                    int(row.remaining_nanos),
                )
                for row in rows
            ),
            int(overdraft or 0),
        )

    def unposted_grants(self) -> list[Grant]:
        with self._database.reading() as tx:
            rows = tx.execute(
                sa.select(grants).where(grants.c.remaining_nanos.is_(None)).order_by(grants.c.id)
            )
            return [
                Grant(
                    id=row.id,
                    account=row.account_id,
                    amount_nanos=int(row.amount_nanos),
                    source=row.source,
                    priority=int(row.priority),
                    expires_at=None if row.expires_at_us is None else from_us(int(row.expires_at_us)),
                    note=row.note,
                )
                for row in rows
            ]
