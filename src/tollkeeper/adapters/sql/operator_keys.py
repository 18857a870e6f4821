"""The operator's keys: hashes of `ok_` secrets, each the whole power over this installation."""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tollkeeper.adapters.sql.catalog_tables import catalog_log
from tollkeeper.adapters.sql.metadata import metadata
from tollkeeper.audit import OPERATOR_KEYS
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.errors import Unavailable

_OPERATOR: Final = "operator"

operator_keys: Final = sa.Table(
    "operator_keys",
    metadata,
    sa.Column("secret_sha256", sa.String(64), primary_key=True),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
)


class SqlOperatorKeys:
    """The stored hashes; few, so they are read whole."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def all(self) -> frozenset[str]:
        """Return the SHA-256 of every operator key, lower-case hex."""
        try:
            with self._engine.connect() as tx:
                return frozenset(str(row[0]) for row in tx.execute(sa.select(operator_keys.c.secret_sha256)))
        except DBAPIError as exc:
            raise Unavailable(f"The ledger cannot be read: {exc.orig}") from exc

    def replace(self, secret_sha256: str, now_us: int) -> None:
        """Make *secret_sha256* the one operator key; the audit log says since when, and nothing of the key."""
        try:
            with self._engine.begin() as tx:
                before_us = tx.execute(sa.select(sa.func.max(operator_keys.c.created_at_us))).scalar_one()
                tx.execute(sa.delete(operator_keys))
                tx.execute(sa.insert(operator_keys).values(secret_sha256=secret_sha256, created_at_us=now_us))
                since = [None if at_us is None else to_text(from_us(at_us)) for at_us in (before_us, now_us)]
                tx.execute(
                    sa.insert(catalog_log).values(
                        at_us=now_us,
                        actor=_OPERATOR,
                        account_id=None,
                        kind=OPERATOR_KEYS,
                        entry_id=_OPERATOR,
                        action="created" if before_us is None else "changed",
                        fields=msgspec.json.encode({"created_at": since}).decode(),
                        unit=None,
                    )
                )
        except DBAPIError as exc:
            raise Unavailable(f"The ledger cannot be written: {exc.orig}") from exc
