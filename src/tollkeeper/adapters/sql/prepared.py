"""
Statements compiled once: SQLAlchemy writes the SQL, the driver runs it.

A group commit runs the same few statements hundreds of times a second. With `Connection.execute` most of
its interpreter time went to preparing statements; here they are compiled once and handed to the driver's own
cursor. Errors are those of SQLAlchemy all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa


class Prepared:
    """One statement for one dialect. Its parameters are *names*, in this order in every row."""

    def __init__(self, engine: sa.Engine, statement: Any, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect, column_keys=list(names))
        self._sql = str(compiled)
        self._dialect = engine.dialect
        self._driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._names = tuple(names)
        order = compiled.positiontup
        # None: parameters by name; []: by position, in the order of *names* already.
        self._order = None if order is None else [self._names.index(name) for name in order]
        if self._order == list(range(len(self._names))):
            self._order = []

    def run(self, tx: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute the statement once per row of *rows*; nothing for none."""
        if rows:
            tx.exec_driver_sql(
                self._sql, [self._parameters(row) for row in rows] if self._order != [] else list(rows)
            )

    def scalar(self, tx: sa.Connection, row: tuple[Any, ...]) -> int:
        """Execute the statement for one row and return the one integer that it answers with."""
        cursor = self._cursor(tx)
        try:
            cursor.execute(self._sql, self._parameters(row))
            return int(cursor.fetchone()[0])
        except self._driver_error as exc:
            raise self._as_ours(exc) from exc
        finally:
            cursor.close()

    @staticmethod
    def _cursor(tx: sa.Connection) -> Any:
        return tx.connection.cursor()

    def _as_ours(self, exc: Exception) -> BaseException:
        return sa.exc.DBAPIError.instance(
            self._sql, None, exc, self._driver_error, hide_parameters=True, dialect=self._dialect
        )

    def _parameters(self, row: tuple[Any, ...]) -> Any:
        if self._order is None:
            return dict(zip(self._names, row, strict=True))
        return tuple(row[index] for index in self._order) if self._order else row
