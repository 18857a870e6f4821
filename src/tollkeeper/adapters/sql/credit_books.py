"""Credit books over SQL: the grants on each account's balance, what remains of them, and the overdraft."""

from __future__ import annotations

import sqlalchemy as sa

from tollkeeper.adapters.sql.catalog_tables import grants
from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import pools, progress
from tollkeeper.adapters.sql.upsert import insert_into, replacing
from tollkeeper.domain.bookings import Group
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance, book_of


class SqlCreditBooks:
    """The credit books of one ledger. The read methods are those of `ports.Ledger`."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self._store_pool = replacing(
            insert_into(database.engine, pools), pools, ("overdraft_nanos", "surplus_nanos")
        )

    def write(self, tx: sa.Connection, group: Group) -> dict[str, CreditBook]:
        """
        Post grants, charge credit and revoke grants in a transaction of the ledger; return the books that this touched.

        A grant that is on its balance already is left alone, and so is one that was revoked already.
        """
        spent = {at[0]: amount for at, amount in group.charges.items() if at[1] == CREDIT_COUNTER}
        posted = {grant.account for grant in group.grants}
        touched = sorted({*spent, *posted, *group.draws, *(grant.account_id for grant in group.revoked)})
        now = from_us(group.now_us)
        books: dict[str, CreditBook] = {}
        for account_id in touched:
            before = self._read_book(tx, account_id, lock=True)
            book = before
            for grant in group.grants:
                if grant.account == account_id and book.grant(grant.id) is None:
                    book = book.posted(
                        GrantBalance(
                            grant.priority,
                            grant.expires_at or FAR_FUTURE,
                            grant.id,
                            grant.amount_nanos,
                            grant.amount_nanos,
                        )
                    )
            untimed = spent.get(account_id, 0)
            draws = group.draws.get(account_id)
            if draws is not None:
                untimed -= draws.total_nanos
                for at_us, amount in draws.between([to_us(at) for at in book.expiries]):
                    book = book.charged(amount, from_us(at_us))
            book = book.charged(untimed, now)
            for revoked in group.revoked:
                if revoked.account_id == account_id and book.grant(revoked.grant_id) is not None:
                    book = book.revoked(revoked.grant_id, now)
            self._store(tx, account_id, before, book)
            books[account_id] = book
        return books

    def _store(self, tx: sa.Connection, account_id: str, before: CreditBook, book: CreditBook) -> None:
        """Write what is different in *book*."""
        was = {grant.grant_id: grant for grant in before.grants}
        for balance in book.grants:
            if was.get(balance.grant_id) != balance:
                tx.execute(
                    sa.update(grants)
                    .where(grants.c.account_id == account_id, grants.c.id == balance.grant_id)
                    .values(
                        remaining_nanos=balance.remaining_nanos,
                        revoked_at_us=None if balance.revoked_at is None else to_us(balance.revoked_at),
                    )
                )
        if book[1:] != before[1:]:
            tx.execute(
                self._store_pool,
                {
                    "account_id": account_id,
                    "overdraft_nanos": book.overdraft_nanos,
                    "surplus_nanos": book.surplus_nanos,
                },
            )

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
            grants.c.revoked_at_us,
        ).where(grants.c.account_id == account_id, grants.c.remaining_nanos.is_not(None))
        if lock:
            query = query.with_for_update()
        rows = tx.execute(query).all()
        pool = tx.execute(
            sa.select(pools.c.overdraft_nanos, pools.c.surplus_nanos).where(pools.c.account_id == account_id)
        ).one_or_none()
        return book_of(
            (
                GrantBalance(
                    int(row.priority),
                    FAR_FUTURE if row.expires_at_us is None else from_us(int(row.expires_at_us)),
                    str(row.id),
                    # As given, the amount is the catalog's: a revoked grant adds nothing to the balance.
                    int(row.amount_nanos) if row.revoked_at_us is None else 0,
                    int(row.remaining_nanos),
                    None if row.revoked_at_us is None else from_us(int(row.revoked_at_us)),
                )
                for row in rows
            ),
            *((0, 0) if pool is None else (int(pool.overdraft_nanos), int(pool.surplus_nanos))),
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
