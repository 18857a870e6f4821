"""
Statements compiled once: SQLAlchemy writes the SQL, the driver runs it.

A group commit runs the same few statements hundreds of times a second. With `Connection.execute` most of
its interpreter time went to preparing statements; here they are compiled once and handed to the driver's own
cursor. Errors are those of SQLAlchemy all the same.

Rows go many to a statement. A driver releases the interpreter lock for each statement that it runs, and
under load it has to wait for its turn each time: row by row, a commit of a hundred rows waits a hundred times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

SIZES: Final = (64, 16, 4, 1)
"""Rows of one statement; as few statements as these allow are run. All stay in the driver's cache of statements."""

Row: TypeAlias = Mapping[str, sa.BindParameter[Any]]


class Prepared:
    """
    One statement for one dialect, compiled for each size at its first use: to compile all takes 0.1 s of a start.

    Args:
        make: Makes the statement for some rows, each a map of *names* to bind parameters.
        names: The columns of a row, in this order.
        sizes: How many rows a statement may take, largest first; 1 is among them.
    """

    def __init__(
        self,
        engine: sa.Engine,
        make: Callable[[Sequence[Row]], Any],
        names: Sequence[str],
        *,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        self._sizes = sizes
        self._of_size = cache(lambda size: _Compiled(engine, make, names, size))

    def run(self, tx: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute the statement for all *rows*; nothing for none. No two rows may have the same key."""
        start = 0
        for size in self._sizes:
            while len(rows) - start >= size:
                self._of_size(size).execute(
                    tx, [value for row in rows[start : start + size] for value in row]
                )
                start += size

    def scalar(self, tx: sa.Connection, row: tuple[Any, ...]) -> int:
        """Execute the statement for one row and return the one integer that it answers with."""
        return int(self._of_size(1).execute(tx, row, answers=True))


class _Compiled:
    """The statement for a fixed number of rows."""

    def __init__(
        self,
        engine: sa.Engine,
        make: Callable[[Sequence[Row]], Any],
        names: Sequence[str],
        size: int,
    ) -> None:
        rows: list[Row] = [{name: sa.bindparam(f"{name}_{row}") for name in names} for row in range(size)]
        compiled = make(rows).compile(dialect=engine.dialect)
        self._sql = str(compiled)
        self._dialect = engine.dialect
        self._driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._names = [parameter.key for row in rows for parameter in row.values()]
        order = compiled.positiontup
        # None: parameters by name; []: by position, in the order of the rows already.
        self._order = None if order is None else [self._names.index(name) for name in order]
        if self._order == list(range(len(self._names))):
            self._order = []

    def execute(self, tx: sa.Connection, values: Sequence[Any], *, answers: bool = False) -> Any:
        cursor: Any = tx.connection.cursor()
        try:
            cursor.execute(self._sql, self._parameters(values))
            return cursor.fetchone()[0] if answers else None
        except self._driver_error as exc:
            raise self._as_ours(exc) from exc
        finally:
            cursor.close()

    def _as_ours(self, exc: Exception) -> BaseException:
        return sa.exc.DBAPIError.instance(
            self._sql, None, exc, self._driver_error, hide_parameters=True, dialect=self._dialect
        )

    def _parameters(self, values: Sequence[Any]) -> Any:
        if self._order is None:
            return dict(zip(self._names, values, strict=True))
        return [values[index] for index in self._order] if self._order else values
