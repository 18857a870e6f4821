"""Where a backup goes: what is kept there, what is refused, and what a failure leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.backups.places import declare, flip, ingest, opened, seal, stored_ids
from tollkeeper import Tollkeeper
from tollkeeper.adapters.backup_directory import MANIFEST, read_manifest
from tollkeeper.adapters.clickhouse import snapshots
from tollkeeper.adapters.sql import ledger_copies
from tollkeeper.errors import Conflict, Unavailable
from tollkeeper.restoring import check_backup


@pytest.fixture(scope="module")
def toll(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollkeeper]:
    """One installation for all tests, which use other ids each."""
    with opened(tmp_path_factory.mktemp("targets") / "data") as toll:
        declare(toll)
        ingest(toll, *(f"e{n}" for n in range(400)))
        yield toll


def test_only_what_is_new_is_written(toll: Tollkeeper, tmp_path: Path) -> None:
    """Into the same directory pieces are kept, into one beside it they are linked."""
    stored_ids(toll)
    first = toll.backup(tmp_path / "backups" / "one")
    again = toll.backup(tmp_path / "backups" / "one")
    beside = toll.backup(tmp_path / "backups" / "two")
    of_usage = [name for name in first.manifest.files if name.startswith("usage/")]
    assert of_usage
    for later in (again, beside):
        written = later.manifest.files[later.manifest.ledger_file].bytes
        assert later.written_bytes < written + 1_000
    name = of_usage[0]
    one, two = (tmp_path / "backups" / which / name for which in ("one", "two"))
    assert one.stat().st_ino == two.stat().st_ino
    ingest(toll, *(f"new{n}" for n in range(100)))
    stored_ids(toll)
    later = toll.backup(tmp_path / "backups" / "one")
    names = {str(path.relative_to(later.path)) for path in later.path.rglob("*") if path.is_file()}
    assert names == {MANIFEST, *later.manifest.files}
    assert check_backup(tmp_path / "backups" / "one").totals.events == first.manifest.totals.events + 100
    check_backup(tmp_path / "backups" / "two")


def test_a_damaged_piece_of_an_earlier_backup_is_written_again(toll: Tollkeeper, tmp_path: Path) -> None:
    stored_ids(toll)
    first = toll.backup(tmp_path / "backup")
    pieces = [path for path in first.path.rglob("usage/*") if path.is_file()]
    for path in pieces:
        flip(path)
    with pytest.raises(Conflict, match="damaged"):
        check_backup(first.path)
    toll.backup(tmp_path / "backup")
    check_backup(tmp_path / "backup")


def test_a_target_with_something_else_is_left_alone(toll: Tollkeeper, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter").write_text("dear")
    file = tmp_path / "file"
    file.write_text("x")
    foreign = tmp_path / "foreign"
    toll.backup(foreign)
    seal(foreign, msgspec.structs.replace(read_manifest(foreign), installation_id="other"))
    before = (foreign / MANIFEST).read_bytes()
    with pytest.raises(Conflict, match="no backup"):
        toll.backup(mine)
    with pytest.raises(Conflict, match="installation other"):
        toll.backup(foreign)
    with pytest.raises(Unavailable):
        toll.backup(file)
    with pytest.raises(Unavailable):
        toll.backup(file / "below")
    # A letter among the files of a backup stays there too.
    toll.backup(tmp_path / "backup")
    (tmp_path / "backup" / "letter").write_text("dear")
    toll.backup(tmp_path / "backup")
    assert [path.name for path in mine.iterdir()] == ["letter"]
    assert (foreign / MANIFEST).read_bytes() == before
    assert (tmp_path / "backup" / "letter").read_text() == "dear"


def test_a_failed_backup_leaves_nothing_and_the_earlier_one_whole(
    toll: Tollkeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: what was written is removed, the clones are dropped, and the next one is complete."""
    store: Any = toll.installation.store
    stored_ids(toll)
    toll.backup(tmp_path / "kept")
    kept = (tmp_path / "kept" / MANIFEST).read_bytes()
    ingest(toll, *(f"n{n}" for n in range(50)))
    stored_ids(toll)
    real, calls = snapshots.StoreSnapshot.read, 0

    def read(self: Any, part: Any) -> Iterator[bytes]:
        nonlocal calls
        calls += 1
        yield from real(self, part)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.StoreSnapshot, "read", read)
    for target in ("kept", "new"):
        with pytest.raises(Unavailable, match="No space left"):
            toll.backup(tmp_path / target)
    monkeypatch.undo()
    assert calls == 2
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "kept" / MANIFEST).read_bytes() == kept
    check_backup(tmp_path / "kept")
    names = {row[0] for row in store._store._engine.rows("SELECT name FROM system.tables")}
    assert not {name for name in names if name.endswith("_backup")}
    toll.backup(tmp_path / "kept")
    assert toll.verify().ok
    check_backup(tmp_path / "kept")


def test_a_backup_that_does_not_fit_is_refused_before_it_fills_the_disk(
    toll: Tollkeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk stops the gate, so some room is left on that of the data."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60 << 20))
    with pytest.raises(Unavailable, match="MiB free"):
        toll.backup(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_two_backups_at_once_are_refused(
    toll: Tollkeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = ledger_copies._OfSqlite.write_to
    refused: list[BaseException] = []

    def write_to(self: Any, path: Path) -> None:
        try:
            toll.backup(tmp_path / "second")
        except Conflict as exc:
            refused.append(exc)
        copy(self, path)

    monkeypatch.setattr(ledger_copies._OfSqlite, "write_to", write_to)
    toll.backup(tmp_path / "first")
    assert len(refused) == 1
    assert not (tmp_path / "second").exists()
