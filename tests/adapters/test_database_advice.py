"""An error of the ledger's database says what helps: waiting mends no damaged file, and no disk that is full."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from tollkeeper.adapters.sql.database import migrate, open_engine
from tollkeeper.adapters.sql.ledger_database import database_errors
from tollkeeper.errors import Unavailable


def failure(path: Path) -> str:
    engine = open_engine(f"sqlite:///{path}")
    try:
        with pytest.raises(Unavailable) as caught:
            migrate(engine)
    finally:
        engine.dispose()
    return str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"not a database at all" * 1_000)
    said = failure(path)
    assert "is damaged" in said
    assert "put a backup" in said
    assert "shortly" not in said


def test_pages_that_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    said = failure(path)
    assert "is damaged" in said
    assert "trying again does not help" in said


def test_a_directory_of_a_later_version(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    said = failure(path)
    assert "later version of Tollkeeper" in said
    assert "Install that version" in said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_CORRUPT, "is damaged"),
        (sqlite3.SQLITE_CORRUPT_VTAB, "is damaged"),
        (sqlite3.SQLITE_FULL, "make room"),
        (sqlite3.SQLITE_READONLY_DBMOVED, "writable"),
        (sqlite3.SQLITE_IOERR_READ, "system's log"),
        (sqlite3.SQLITE_BUSY, "Try again shortly"),
        (None, "Try again shortly"),
    ],
)
def test_each_error_has_its_advice(code: int | None, said: str) -> None:
    cause = sqlite3.OperationalError("the driver's words")
    if code is not None:
        cause.sqlite_errorcode = code
    with pytest.raises(Unavailable) as caught, database_errors("read"):
        raise sa.exc.OperationalError("SELECT", {}, cause)
    assert "The ledger cannot be read: the driver's words. " in str(caught.value)
    assert said in str(caught.value)
