"""Migrating yields exactly the schema that the code expects, once, whatever interrupts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.engines import SHARED_ENGINES, fresh_engine
from tollkeeper.adapters.sql import database
from tollkeeper.adapters.sql.database import SCHEMA_REVISION, metadata, migrate, open_engine
from tollkeeper.errors import Unavailable


@pytest.fixture(params=SHARED_ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path, tables=False) as engine:
        yield engine


def test_the_migrated_schema_is_that_of_the_code(engine: sa.Engine) -> None:
    """A table or column that only one of the two has would fail at run time, at a customer's."""
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA_REVISION


def test_indexes_and_keys_are_those_of_the_code(engine: sa.Engine, tmp_path: Path) -> None:
    """What autogenerate does not compare: primary keys and the columns of indexes."""
    migrate(engine)
    with fresh_engine(engine.dialect.name.replace("sqlite", "sqlite-file"), tmp_path) as expected:
        assert _keys(engine) == _keys(expected)


def test_migrating_again_changes_nothing(engine: sa.Engine) -> None:
    """Every start migrates."""
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO operator_keys VALUES ('kept', 1)")
    migrate(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT secret_sha256 FROM operator_keys").scalar() == "kept"


def test_the_revision_of_the_code_is_the_newest_one() -> None:
    """The short cut past Alembic compares with it."""
    script = ScriptDirectory(str(Path(database.__file__).parent / "migrations"))
    assert script.get_heads() == [SCHEMA_REVISION]


def test_a_schema_of_a_later_version_is_refused(engine: sa.Engine) -> None:
    """Writing into it could destroy what the later version keeps there."""
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Unavailable, match="a later version"):
        migrate(engine)


def test_a_migration_that_fails_leaves_nothing(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a schema could neither be used nor be migrated."""

    @sa.event.listens_for(engine, "before_cursor_execute")
    def fail_late(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "CREATE TABLE windows" in statement:
            raise sa.exc.OperationalError(statement, None, Exception("disk full"))

    with pytest.raises(Unavailable, match="disk full"):
        migrate(engine)
    sa.event.remove(engine, "before_cursor_execute", fail_late)
    assert sa.inspect(engine).get_table_names() == []
    migrate(engine)
    assert "windows" in sa.inspect(engine).get_table_names()


def test_a_first_start_that_is_killed_can_be_repeated(tmp_path: Path) -> None:
    """`kill -9` while the schema is being made must not leave a directory that never opens again."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    child = textwrap.dedent(f"""
        import os, signal, sqlalchemy as sa
        from tollkeeper.adapters.sql.database import migrate, open_engine
        engine = open_engine({url!r})
        @sa.event.listens_for(engine, "before_cursor_execute")
        def kill(connection, cursor, statement, *rest):
            if "CREATE TABLE progress" in statement:
                os.kill(os.getpid(), signal.SIGKILL)
        migrate(engine)
    """)
    ended = subprocess.run([sys.executable, "-c", child], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    engine = open_engine(url)
    migrate(engine)
    assert "windows" in sa.inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize(
    "damage", [b"this is not a database " * 500, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    """The reader of the message must know which file to restore."""
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(damage)
    with pytest.raises(Unavailable, match=str(path)):
        migrate(open_engine(f"sqlite:///{path}"))
    assert path.read_bytes() == damage


def _keys(engine: sa.Engine) -> dict[str, object]:
    inspector = sa.inspect(engine)
    return {
        table: (
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted(str(index["column_names"]) for index in inspector.get_indexes(table)),
            sorted(str(unique["column_names"]) for unique in inspector.get_unique_constraints(table)),
        )
        for table in sorted(metadata.tables)
    }
