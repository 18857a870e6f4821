"""Logins in SQL: `catalog.logins.LoginStore`, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from tollkeeper.adapters.sql.catalog_tables import keys
from tollkeeper.adapters.sql.metadata import id_type, metadata
from tollkeeper.adapters.sql.operator_keys import operator_keys
from tollkeeper.domain.logins import Login
from tollkeeper.errors import Unavailable

logins: Final = sa.Table(
    "logins",
    metadata,
    sa.Column("secret_sha256", id_type(64), primary_key=True),
    sa.Column("key_sha256", id_type(64), nullable=False),
    # Empty for an operator key.
    sa.Column("account_id", id_type(), nullable=False),
    sa.Column("created_at_us", sa.BigInteger(), nullable=False),
    sa.Column("expires_at_us", sa.BigInteger(), nullable=False),
    sa.Index("ix_logins_key_sha256_created_at_us", "key_sha256", "created_at_us"),
    sa.Index("ix_logins_created_at_us", "created_at_us"),
    sa.Index("ix_logins_expires_at_us", "expires_at_us"),
)
"""Hashes only; no backup has the rows."""
_ENDED: Final = ("revoked", "deleted")


class SqlLogins:
    """See `LoginStore`; *engine* has the tables."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, login: Login, *, per_key_max: int, total_max: int) -> None:
        of_key = logins.c.key_sha256 == login.key_sha256
        newest = (
            sa.select(logins.c.secret_sha256)
            .where(of_key)
            .order_by(logins.c.created_at_us.desc(), logins.c.secret_sha256)
            .limit(per_key_max)
        )
        with self._transaction("written") as tx:
            tx.execute(sa.insert(logins).values(login._asdict()))
            tx.execute(sa.delete(logins).where(of_key, logins.c.secret_sha256.not_in(newest)))
            excess = tx.execute(sa.select(sa.func.count()).select_from(logins)).scalar_one() - total_max
            if excess > 0:
                oldest = (
                    sa.select(logins.c.secret_sha256)
                    .where(logins.c.account_id != "")
                    .order_by(logins.c.created_at_us, logins.c.secret_sha256)
                    .limit(excess)
                )
                tx.execute(sa.delete(logins).where(logins.c.secret_sha256.in_(oldest)))

    def find(self, secret_sha256: str) -> Login | None:
        with self._transaction("read") as tx:
            row = tx.execute(sa.select(logins).where(logins.c.secret_sha256 == secret_sha256)).one_or_none()
        return None if row is None else Login(*row)

    def remove(self, secret_sha256: str) -> bool:
        with self._transaction("written") as tx:
            return bool(tx.execute(sa.delete(logins).where(logins.c.secret_sha256 == secret_sha256)).rowcount)

    def purge(self, now_us: int) -> None:
        is_good = sa.or_(keys.c.expires_at_us.is_(None), keys.c.expires_at_us > now_us)
        of_key = sa.exists().where(
            keys.c.secret_sha256 == logins.c.key_sha256, keys.c.state.not_in(_ENDED), is_good
        )
        of_operator = sa.exists().where(operator_keys.c.secret_sha256 == logins.c.key_sha256)
        with self._transaction("written") as tx:
            tx.execute(sa.delete(logins).where(logins.c.expires_at_us <= now_us))
            tx.execute(sa.delete(logins).where(~of_key, ~of_operator))

    @contextmanager
    def _transaction(self, what: str) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as tx:
                yield tx
        except SQLAlchemyError as exc:
            raise Unavailable(f"The logins cannot be {what} now.", cause=str(exc)) from exc
