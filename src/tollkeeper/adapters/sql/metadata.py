"""The one `MetaData` that every SQL table of the truth belongs to, and the types that they share."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Constraints have stated names, so that a migration can drop them on either engine."""


def id_type(length: int = 128) -> TypeEngine[Any]:
    """
    Return the column type of ids and slugs.

    PostgreSQL would compare by the rules of the database's language. Ids compare by code point, as in
    SQLite, so that pages have one order on both engines and comparing stays cheap.
    """
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
