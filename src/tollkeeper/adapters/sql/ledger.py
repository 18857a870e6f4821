"""
The ledger over SQL: counters, postings, budget scopes, and with them holds, windows, credit books and the outbox.

`commit` writes one group in one transaction, so a counter, its postings and the outbox row of the events
that it was charged for exist together or not at all. The parts (`holds.py`, `windows.py`, `credit_books.py`,
`outbox.py`) write into that transaction; `ledger_database.py` decides who may write.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from tollkeeper.adapters.sql.credit_books import SqlCreditBooks
from tollkeeper.adapters.sql.holds import SqlHolds
from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import counters, postings, progress, scopes
from tollkeeper.adapters.sql.opened_periods import SqlOpenedPeriods
from tollkeeper.adapters.sql.outbox import SqlOutbox
from tollkeeper.adapters.sql.prepared import Prepared
from tollkeeper.adapters.sql.top_ups import SqlTopUps
from tollkeeper.adapters.sql.upsert import adding, insert_into, replacing
from tollkeeper.adapters.sql.windows import SqlWindows
from tollkeeper.domain.bookings import Committed, CounterAt, Group, StoredHold, ToppedUp
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.entitlements import fingerprint_of
from tollkeeper.domain.first_use import Span
from tollkeeper.domain.matching import VALUE_MARK
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.top_ups import TopUp

_HOUR_US: Final = 3_600_000_000
"""Postings are summed by the hour of their commit."""


class SqlLedger:
    """The ledger of one installation. See `ports.Ledger`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._database = LedgerDatabase(engine)
        self.installation_id = self._database.installation_id
        self.outbox = SqlOutbox(self._database)
        self._holds = SqlHolds(self._database)
        self._windows = SqlWindows(self._database)
        self._books = SqlCreditBooks(self._database)
        self._opened = SqlOpenedPeriods(self._database)
        self._top_ups = SqlTopUps(self._database)
        self._charge_counter = Prepared(
            engine,
            lambda rows: adding(insert_into(engine, counters).values(rows), counters, "used"),
            tuple(counters.columns.keys()),
        )
        self._charge_posting = Prepared(
            engine,
            lambda rows: adding(insert_into(engine, postings).values(rows), postings, "amount"),
            tuple(postings.columns.keys()),
        )
        self._store_scope = replacing(insert_into(engine, scopes), scopes, ("fingerprint", "active_from_us"))

    # -- writing --------------------------------------------------------------------------------------

    def claim(self) -> None:
        """
        Become the one process that writes: an earlier one that writes again gets `LedgerInUse`.

        To be called before anything is read. Batches that begin from now on are of a new epoch.
        """
        self.outbox.begin_epoch()
        self._database.claim()

    def commit(self, group: Group) -> Committed:
        return self._database.commit(lambda tx, commit_seq: self._write(tx, commit_seq, group))

    def _write(self, tx: sa.Connection, commit_seq: int, group: Group) -> Committed:
        now_us = group.now_us
        self._holds.write(tx, group.opened, group.amended, group.ended, now_us)
        charges = {at: amount for at, amount in group.charges.items() if amount}
        if charges:
            self._charge(tx, charges, now_us)
        books = self._books.write(tx, group)
        if group.windows:
            self._windows.write(tx, group.windows)
        for account_id, counter_id in group.ended_scopes:
            tx.execute(
                sa.delete(scopes).where(scopes.c.account_id == account_id, scopes.c.counter_id == counter_id)
            )
        for scope, active_from_us in group.scopes:
            tx.execute(
                self._store_scope,
                {
                    "account_id": scope.account_id,
                    "counter_id": scope.counter_id,
                    "fingerprint": fingerprint_of(scope),
                    "active_from_us": active_from_us,
                },
            )
        if group.opened_periods or group.scopes or group.ended_scopes:
            self._opened.write(tx, group.opened_periods, group.scopes, group.ended_scopes)
        if group.top_ups or group.own_amounts:
            self._top_ups.write(tx, group.top_ups, group.own_amounts)
        return Committed(commit_seq, self.outbox.put(tx, group.outbox, now_us), books)

    def _charge(self, tx: sa.Connection, charges: dict[CounterAt, int], now_us: int) -> None:
        hour_us = now_us - now_us % _HOUR_US
        # In one order, so that two nodes that charge the same counters never wait for each other in a circle.
        rows = sorted(charges.items())
        self._charge_counter.run(tx, [(*at, amount) for at, amount in rows])
        self._charge_posting.run(tx, [(*at, hour_us, amount) for at, amount in rows])

    # -- reading --------------------------------------------------------------------------------------

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        # One statement, so that both values are of the same instant whatever the isolation level.
        used = (
            sa.select(counters.c.used)
            .where(
                counters.c.account_id == account_id,
                counters.c.counter_id == counter_id,
                counters.c.period_start_us == period_start_us,
            )
            .scalar_subquery()
        )
        with self._database.reading() as tx:
            row = tx.execute(sa.select(used, progress.c.commit_seq)).one()
        return int(row[0] or 0), int(row[1])

    def value_counters(self, account_id: str, counter_id: str, period_start_us: int) -> dict[str, int]:
        prefix = counter_id + VALUE_MARK
        with self._database.reading_all() as tx:
            rows = tx.execute(
                sa.select(counters.c.counter_id, counters.c.used).where(
                    counters.c.account_id == account_id,
                    counters.c.counter_id.startswith(prefix, autoescape=True),
                    counters.c.period_start_us == period_start_us,
                )
            )
            # SQLite's LIKE does not tell case.
            return {str(c): int(u) for c, u in rows if str(c).startswith(prefix)}

    def scopes(self, account_id: str) -> dict[str, tuple[str, int]]:
        with self._database.reading() as tx:
            rows = tx.execute(
                sa.select(scopes.c.counter_id, scopes.c.fingerprint, scopes.c.active_from_us).where(
                    scopes.c.account_id == account_id
                )
            )
            return {str(c): (str(f), int(a)) for c, f, a in rows}

    def counter_rows(self, account_id: str) -> dict[tuple[str, int], int]:
        with self._database.reading_all() as tx:
            rows = tx.execute(
                sa.select(counters.c.counter_id, counters.c.period_start_us, counters.c.used).where(
                    counters.c.account_id == account_id
                )
            )
            return {(str(c), int(p)): int(u) for c, p, u in rows}

    def posting_sums(self, account_id: str) -> dict[tuple[str, int], int]:
        with self._database.reading_all() as tx:
            rows = tx.execute(
                sa.select(postings.c.counter_id, postings.c.period_start_us, sa.func.sum(postings.c.amount))
                .where(postings.c.account_id == account_id)
                .group_by(postings.c.counter_id, postings.c.period_start_us)
            )
            return {(str(c), int(p)): int(a) for c, p, a in rows}

    def charged_accounts(self) -> list[str]:
        with self._database.reading_all() as tx:
            rows = tx.execute(sa.select(counters.c.account_id).distinct().order_by(counters.c.account_id))
            return [str(row[0]) for row in rows]

    # -- what one part answers alone ------------------------------------------------------------------

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return self._windows.slots(account_id, counter_id)

    def opened_periods(
        self, account_id: str, counter_id: str, period: str, ends_after_us: int
    ) -> tuple[int | None, list[Span]]:
        return self._opened.spans(account_id, counter_id, period, ends_after_us)

    def top_up(self, account_id: str, top_up_id: str) -> TopUp | None:
        return self._top_ups.find(account_id, top_up_id)

    def topped_up(self, account_id: str, counter_id: str) -> ToppedUp:
        return self._top_ups.of_counter(account_id, counter_id)

    def own_amounts(self, account_id: str) -> dict[str, int]:
        return self._top_ups.last_own(account_id)

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        return self._books.book(account_id)

    def unposted_grants(self) -> list[Grant]:
        return self._books.unposted_grants()

    def open_holds(self) -> list[StoredHold]:
        return self._holds.open_holds()

    def hold(self, account_id: str, hold_id: str) -> StoredHold | None:
        return self._holds.hold(account_id, hold_id)

    def hold_owners(self, hold_id: str) -> list[str]:
        return self._holds.hold_owners(hold_id)

    # -- maintenance ----------------------------------------------------------------------------------

    def purge(self, now_us: int) -> int:
        with self._database.writing() as tx:
            return self._windows.purge(tx, now_us) + self._holds.purge(tx, now_us)

    def ping(self) -> None:
        self._database.ping()

    def close(self) -> None:
        self._database.close()
