"""Windows over SQL: what each rate counter had counted, by slot, so that a restart goes on counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import windows
from tollkeeper.adapters.sql.prepared import Prepared
from tollkeeper.adapters.sql.upsert import insert_into, replacing
from tollkeeper.domain.bookings import WindowState

_KEPT_US: Final = 3_600_000_000
"""How long a window is kept after it has expired."""
_PURGE_BATCH: Final = 5_000


class SqlWindows:
    """The windows of one ledger."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        engine = database.engine
        self._store_window = Prepared(
            engine,
            lambda rows: replacing(
                insert_into(engine, windows).values(rows), windows, ("used", "expires_at_us")
            ),
            tuple(windows.columns.keys()),
        )

    def write(self, tx: sa.Connection, states: Sequence[WindowState]) -> None:
        """Replace the slots of *states* in a transaction of the ledger."""
        rows = [
            (window.account_id, window.counter_id, slot_us, used, window.expires_at_us)
            for window in states
            for slot_us, used in window.slots.items()
        ]
        rows.sort()
        self._store_window.run(tx, rows)

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        with self._database.reading() as tx:
            rows = tx.execute(
                sa.select(windows.c.slot_us, windows.c.used).where(
                    windows.c.account_id == account_id, windows.c.counter_id == counter_id
                )
            )
            return {int(slot_us): int(used) for slot_us, used in rows}

    def purge(self, tx: sa.Connection, now_us: int) -> int:
        """Delete some windows that have expired; return how many."""
        stale = (
            sa.select(windows.c.account_id, windows.c.counter_id, windows.c.slot_us)
            .where(windows.c.expires_at_us < now_us - _KEPT_US)
            .limit(_PURGE_BATCH)
        )
        return tx.execute(
            sa.delete(windows).where(
                sa.tuple_(windows.c.account_id, windows.c.counter_id, windows.c.slot_us).in_(stale)
            )
        ).rowcount
