"""
Holds over SQL: those that are open, and those that were voided or expired.

A settled hold has no row: its event is the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from tollkeeper.adapters.sql.ledger_database import LedgerDatabase
from tollkeeper.adapters.sql.ledger_tables import holds
from tollkeeper.adapters.sql.prepared import Prepared, Row
from tollkeeper.domain.bookings import EndedHold, HoldBody, StoredHold

_ENDED_HOLDS_KEPT_US: Final = 30 * 86_400_000_000
"""How long a voided or expired hold is kept, so that a late settle is recognised."""

_HOLD: Final = sa.select(holds.c.account_id, holds.c.hold_id, holds.c.state, holds.c.body).where(
    holds.c.account_id == sa.bindparam("account"), holds.c.hold_id == sa.bindparam("hold")
)
"""Made once: every authorize with an id of the caller reads by it, and to make it takes as long as to run it."""

_encode_body = msgspec.json.Encoder().encode
_decode_body = msgspec.json.Decoder(HoldBody).decode


class SqlHolds:
    """The holds of one ledger. The read methods are those of `ports.Ledger`."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        engine = database.engine
        self._open_hold = Prepared(
            engine,
            lambda rows: sa.insert(holds).values(rows),
            ("account_id", "hold_id", "state", "body", "created_at_us"),
        )
        self._forget_hold = Prepared(
            engine,
            lambda rows: sa.delete(holds).where(sa.or_(*map(_of_hold, rows))),
            ("account_id", "hold_id"),
        )
        self._amend_hold = Prepared(
            engine,
            lambda rows: sa.update(holds).where(_of_hold(rows[0])).values(body=rows[0]["body"]),
            ("account_id", "hold_id", "body"),
            sizes=(1,),
        )
        self._end_hold = Prepared(
            engine,
            lambda rows: (
                sa.update(holds)
                .where(_of_hold(rows[0]))
                .values(state=rows[0]["state"], ended_at_us=rows[0]["ended_at_us"])
            ),
            ("account_id", "hold_id", "state", "ended_at_us"),
            sizes=(1,),
        )

    def write(
        self,
        tx: sa.Connection,
        opened: Sequence[StoredHold],
        amended: Sequence[StoredHold],
        ended: Sequence[EndedHold],
        now_us: int,
    ) -> None:
        """Open, amend and end holds in a transaction of the ledger; one hold may do all three, in this order."""
        self._open_hold.run(
            tx,
            [
                (hold.account_id, hold.hold_id, hold.state, _encode_body(hold.body).decode(), now_us)
                for hold in opened
            ],
        )
        self._amend_hold.run(
            tx, [(hold.account_id, hold.hold_id, _encode_body(hold.body).decode()) for hold in amended]
        )
        self._forget_hold.run(tx, [(e.account_id, e.hold_id) for e in ended if e.ending == "settled"])
        self._end_hold.run(
            tx, [(e.account_id, e.hold_id, e.ending, e.at_us) for e in ended if e.ending != "settled"]
        )

    def open_holds(self) -> list[StoredHold]:
        with self._database.reading_all() as tx:
            rows = tx.execute(
                sa.select(holds.c.account_id, holds.c.hold_id, holds.c.state, holds.c.body)
                .where(holds.c.state == "open")
                .order_by(holds.c.created_at_us)
            ).all()
        return [StoredHold(a, h, s, _decode_body(body)) for a, h, s, body in rows]

    def hold(self, account_id: str, hold_id: str) -> StoredHold | None:
        with self._database.reading() as tx:
            row = tx.execute(_HOLD, {"account": account_id, "hold": hold_id}).one_or_none()
        return None if row is None else StoredHold(row[0], row[1], row[2], _decode_body(row[3]))

    def hold_owners(self, hold_id: str) -> list[str]:
        with self._database.reading() as tx:
            rows = tx.execute(sa.select(holds.c.account_id).where(holds.c.hold_id == hold_id))
            return [str(row[0]) for row in rows]

    def purge(self, tx: sa.Connection, now_us: int) -> int:
        """Delete holds that ended long ago; return how many."""
        return tx.execute(
            sa.delete(holds).where(
                holds.c.state != "open", holds.c.ended_at_us < now_us - _ENDED_HOLDS_KEPT_US
            )
        ).rowcount


def _of_hold(row: Row) -> sa.ColumnElement[bool]:
    return sa.and_(holds.c.account_id == row["account_id"], holds.c.hold_id == row["hold_id"])
