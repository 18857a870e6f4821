"""The audit log in SQL: `audit.AuditLog` over the table `catalog_log`, on SQLite and PostgreSQL."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from tollkeeper.adapters.sql.catalog_tables import catalog_log
from tollkeeper.audit import AuditLine, AuditLog

_FIELDS: Final = msgspec.json.Decoder(dict[str, tuple[Any, Any]])


class SqlAuditLog(AuditLog):
    """The calls of `AuditLog`, over connections that a subclass gives out."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[sa.Connection]:
        """Give out a connection to read with."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[sa.Connection]:
        """Give out a connection to write with; what was written is kept when the block ends."""

    def log(self, lines: Sequence[AuditLine]) -> None:
        if not lines:
            return
        rows = [
            {
                "at_us": line.at_us,
                "actor": line.actor,
                "account_id": line.account_id,
                "kind": line.kind,
                "entry_id": line.id,
                "action": line.action,
                "fields": msgspec.json.encode(line.fields).decode(),
                "unit": line.unit,
            }
            for line in lines
        ]
        with self._writing() as connection:
            connection.execute(sa.insert(catalog_log), rows)

    def logged(
        self,
        *,
        account: str | None = None,
        kind: str | None = None,
        entry_id: str | None = None,
        before_seq: int | None = None,
        limit: int = 100,
    ) -> Sequence[AuditLine]:
        columns = catalog_log.c
        query = sa.select(catalog_log).order_by(columns.seq.desc()).limit(limit)
        for column, value in (
            (columns.account_id, account),
            (columns.kind, kind),
            (columns.entry_id, entry_id),
        ):
            if value is not None:
                # PostgreSQL refuses a text with NUL, which no id has.
                query = query.where(sa.false() if "\x00" in value else column == value)
        if before_seq is not None:
            query = query.where(columns.seq < before_seq)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            AuditLine(
                row.seq,
                row.at_us,
                row.actor,
                row.account_id,
                row.kind,
                row.entry_id,
                row.action,
                _FIELDS.decode(row.fields),
                row.unit,
            )
            for row in rows
        ]
