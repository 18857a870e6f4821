"""Inserts that change the row which is there already; SQLite and PostgreSQL spell them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert_into(engine: sa.Engine, table: sa.Table) -> Any:
    """Return the insert of the engine's dialect, which knows conflicts."""
    return (sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert)(table)


def adding(statement: Any, table: sa.Table, column: str) -> Any:
    """Make *statement*, an insert into *table*, add to *column* of a row that exists."""
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={column: table.c[column] + statement.excluded[column]},
    )


def replacing(statement: Any, table: sa.Table, columns: Sequence[str]) -> Any:
    """Make *statement*, an insert into *table*, replace *columns* of a row that exists."""
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={column: statement.excluded[column] for column in columns},
    )
