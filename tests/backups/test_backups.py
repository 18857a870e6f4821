"""Backups of an installation, and what is restored from them, on both engines of the ledger."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import sqlalchemy as sa

from tests.backups.places import (
    counted,
    declare,
    flip,
    ingest,
    opened,
    seal,
    settings_of,
    spend,
    stored_ids,
)
from tests.effort import effort
from tests.engines import fresh_url
from tollkeeper.adapters.backup_directory import MANIFEST, checksum, read_manifest, target_below
from tollkeeper.adapters.batch_marks import FileMarks
from tollkeeper.adapters.clickhouse import restoring as usage_restoring
from tollkeeper.adapters.clickhouse import snapshots, tables
from tollkeeper.adapters.data_directory import RESTORING_FILE
from tollkeeper.adapters.sql import ledger_copies
from tollkeeper.adapters.sql.database import open_engine
from tollkeeper.adapters.sql.logins import logins
from tollkeeper.domain.catalog import Account
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import BadParameter, Conflict, NotFound, StoresMismatch, Unavailable
from tollkeeper.restoring import Restored, check_backup, restore

EVENTS: Final = 400
ENGINES: Final = ("sqlite", "postgresql")


class Place(NamedTuple):
    """An installation that is closed, with a backup of it. *totals*: its counter, and the sum of its events."""

    data: Path
    backup: Path
    secret: str
    ids: set[str]
    totals: tuple[int, int]


def url_of(engine: str, directory: Path) -> str:
    return "" if engine == "sqlite" else fresh_url(engine, directory)


def logins_of(toll: Tollkeeper) -> int:
    with toll.installation.engine.connect() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(logins)).scalar_one())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Events in several parts, some corrected or voided; requests of the gate, an open hold, and a full outbox."""
    root = tmp_path_factory.mktemp("place")
    with opened(root / "data") as toll:
        site = toll.installation
        secret = declare(toll)
        ingest(toll, *(f"e{n}" for n in range(EVENTS)))
        site.delivery.fresh("acme")
        site.amend.void("acme", "e1", "void-1")
        ingest(toll, *(f"f{n}" for n in range(EVENTS)))
        site.delivery.fresh("acme")
        with site.relay.exclusive():
            # What is committed now stays in the outbox of the backup, if it does not wait for the relay.
            ids = {spend(toll, secret, 7) for _ in range(5)}
        site.logins.begin("a hash of a key", "acme", None)
        toll.backup(root / "backup")
        assert logins_of(toll) == 1
        ids |= set(stored_ids(toll))
        assert toll.verify().ok
        totals = counted(toll)
    return Place(root / "data", root / "backup", secret, ids, totals)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_restored_is_what_was_backed_up(place: Place, tmp_path: Path, engine: str) -> None:
    """Counter, ledger and events agree, every id is there once, keys are good, and it goes on."""
    url = url_of(engine, tmp_path)
    restored = restore(place.backup, settings_of(tmp_path / "data", ledger_url=url))
    assert restored.verdict.ok, restored.verdict
    assert restored.totals == restored.manifest.totals
    assert restored.events_after == restored.totals.events + restored.totals.pending_events
    with opened(tmp_path / "data", ledger_url=url) as toll:
        ids = stored_ids(toll)
        assert set(ids) == place.ids
        # A void is a record of the same id.
        assert len(ids) == len(place.ids) + 1
        assert counted(toll) == place.totals
        # One that has ended since the backup must not be good again.
        assert logins_of(toll) == 0
        toll.installation.logins.begin("a hash of a key", "acme", None)
        assert (
            toll.record(
                [{"id": "e2", "time": "2026-03-18T12:00:00+00:00", "account": "acme", "cost_nanos": 3}]
            ).duplicates
            == 1
        )
        spend(toll, place.secret, 11)
        log = toll.manage.audit_log()
        toll.manage.put(Account(id="late", name="Late"))
        assert toll.manage.audit_log()[1:] == log
        ingest(toll, "after")
        assert toll.verify().ok
        assert counted(toll)[0] == place.totals[0] + 14
        last = toll.installation.committer.outbox_seq
        if url:
            toll.backup(tmp_path / "backup")
    if not url:
        return
    # A copy is an SQLite file whatever the engine is, and numbers of the outbox go on after the last one.
    again = restore(tmp_path / "backup", settings_of(tmp_path / "again"))
    assert again.verdict.ok
    with opened(tmp_path / "again") as toll:
        assert place.ids | {"after"} < set(stored_ids(toll))
        assert logins_of(toll) == 0
        ingest(toll, "later")
        assert toll.installation.committer.outbox_seq > last


@pytest.mark.parametrize("engine", ENGINES[: effort(1, 2)])
def test_a_backup_under_load_has_everything_that_was_acknowledged_before(tmp_path: Path, engine: str) -> None:
    """Threads pass the gate and report events all the time; each backup is exact as of one instant."""
    url = url_of(engine, tmp_path)
    acknowledged: list[tuple[str, float]] = []
    stop = threading.Event()
    failures: list[BaseException] = []
    taken: list[tuple[float, float, Path]] = []
    with opened(tmp_path / "data", ledger_url=url) as toll:
        secret = declare(toll)

        def gate() -> None:
            while not stop.is_set():
                acknowledged.append((spend(toll, secret, 7), time.monotonic()))

        def report() -> None:
            for batch in range(10**6):
                if stop.is_set():
                    return
                ids = [f"e{batch}-{n}" for n in range(50)]
                ingest(toll, *ids)
                at_s = time.monotonic()
                acknowledged.extend((id_, at_s) for id_ in ids)

        def guarded(call: Any) -> None:
            try:
                call()
            except BaseException as exc:
                failures.append(exc)
                stop.set()

        threads = [threading.Thread(target=guarded, args=(call,)) for call in (gate, gate, report)]
        for thread in threads:
            thread.start()
        try:
            for number in range(effort(2, 12)):
                stop.wait(0.3)
                before_s = time.monotonic()
                target = tmp_path / "backups" / str(number % 2)
                toll.backup(target)
                taken.append((before_s, time.monotonic(), target))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert toll.verify().ok
    for before_s, after_s, target in taken[-effort(1, 2) :]:
        data = tmp_path / f"restored-{target.name}"
        restored = restore(target, settings_of(data))
        assert restored.verdict.ok, restored.verdict
        with opened(data) as toll:
            ids = stored_ids(toll)
            assert len(ids) == len(set(ids))
            assert {id_ for id_, at_s in acknowledged if at_s < before_s} <= set(ids)
            # A caller notes its answer some time after the commit.
            assert set(ids) <= {id_ for id_, at_s in acknowledged if at_s < after_s + 5}
            used, spent = counted(toll)
            assert used == spent


def test_a_flipped_bit_in_any_file_is_refused_before_anything_is_written(
    place: Place, tmp_path: Path
) -> None:
    names = [MANIFEST, *read_manifest(place.backup).files]
    assert len(names) > 6
    for number, name in enumerate(names):
        copy = tmp_path / f"backup-{number}"
        shutil.copytree(place.backup, copy)
        flip(copy / name)
        with pytest.raises(Conflict, match="is damaged"):
            restore(copy, settings_of(tmp_path / "data"))
        (copy / name).unlink()
        with pytest.raises((Conflict, NotFound)):
            restore(copy, settings_of(tmp_path / "data"))
        assert not (tmp_path / "data").exists()


def test_every_bit_of_the_manifest_counts(place: Place, tmp_path: Path) -> None:
    """It has no checksum beside it, so it has one in it."""
    content = (place.backup / MANIFEST).read_bytes()
    copy = tmp_path / "backup"
    copy.mkdir()
    for position in range(0, len(content), max(1, len(content) // effort(200, 5_000))):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (copy / MANIFEST).write_bytes(changed)
        with pytest.raises(Conflict):
            read_manifest(copy)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 99},
        {"ledger_revision": "9999"},
        {"usage_schema": 999},
        {"ledger_file": "../../etc/passwd"},
        {"secrets": {"../x": "session.secret"}},
        {"secrets": {"session.secret": "/etc/passwd"}},
    ],
)
def test_a_manifest_of_a_later_version_or_with_other_paths_is_refused(
    place: Place, tmp_path: Path, changed: dict[str, Any]
) -> None:
    copy = tmp_path / "backup"
    shutil.copytree(place.backup, copy)
    seal(copy, msgspec.structs.replace(read_manifest(copy), **changed))
    with pytest.raises(Conflict, match="cannot be restored by this version"):
        restore(copy, settings_of(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_backup_of_an_older_schema_is_derived_again(place: Place, tmp_path: Path) -> None:
    """As when an older database is opened: rollups whose meaning changed are made from the records."""
    assert 5 in tables.REDERIVED
    copy = tmp_path / "backup"
    shutil.copytree(place.backup, copy)
    manifest = read_manifest(copy)
    without = [table for table in manifest.usage if table.name == "events"]
    totals = msgspec.structs.replace(manifest, usage_schema=4, usage=without)
    seal(copy, totals)
    restored = restore(copy, settings_of(tmp_path / "data"))
    assert restored.verdict.ok, restored.verdict


def test_what_was_broken_off_is_no_backup(place: Place, tmp_path: Path) -> None:
    """It is refused with words, and the next backup into its directory replaces it."""
    copy = tmp_path / "backup"
    shutil.copytree(place.backup, copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(NotFound, match="no backup"):
        restore(copy, settings_of(tmp_path / "restored"))
    (copy / "backup.incomplete").touch()
    with pytest.raises(Conflict, match="incomplete"):
        restore(copy, settings_of(tmp_path / "restored"))
    assert not (tmp_path / "restored").exists()
    shutil.copytree(place.data, tmp_path / "data", symlinks=True)
    with opened(tmp_path / "data") as toll:
        toll.backup(copy)
    check_backup(copy)
    assert not (copy / "backup.incomplete").exists()


def test_a_backup_is_readable_for_its_owner_only(place: Place) -> None:
    """It has hashes of keys and the secrets of the installation."""
    for path in (place.backup, *place.backup.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_restore_overwrites_nothing(place: Place, tmp_path: Path) -> None:
    """Neither a directory, nor a database, nor a usage store that has something."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "mine").write_text("dear")
    with pytest.raises(Conflict, match="has mine"):
        restore(place.backup, settings_of(data))
    assert [path.name for path in data.iterdir()] == ["mine"]
    url = fresh_url("postgresql", tmp_path)
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE letters (id INTEGER)")
    with pytest.raises(Conflict, match="not empty"):
        restore(place.backup, settings_of(tmp_path / "new", ledger_url=url))
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["letters"]
    engine.dispose()
    file = tmp_path / "ledger.db"
    file.write_bytes(b"something")
    with pytest.raises(Conflict, match="a ledger at"):
        restore(place.backup, settings_of(tmp_path / "new", ledger_url=f"sqlite:///{file}"))
    assert file.read_bytes() == b"something"
    with pytest.raises(Conflict, match="usage store is not empty"):
        restore(place.backup, settings_of(tmp_path / "new", usage_url=f"chdb://{place.data / 'usage'}"))
    # Of all these tries there is nothing left that a restore would not begin with.
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"lock"}


def test_nothing_is_restored_into_a_directory_that_is_in_use(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.data, tmp_path / "data", symlinks=True)
    with opened(tmp_path / "data"), pytest.raises(Conflict):
        restore(place.backup, settings_of(tmp_path / "data"))


@pytest.mark.parametrize(
    ("engine", "step"),
    [("postgresql", "finish"), ("sqlite", "usage"), ("postgresql", "ledger"), ("sqlite", "ledger")][
        : effort(1, 4)
    ],
)
def test_a_restore_that_was_broken_off_is_done_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, step: str
) -> None:
    """Until it is complete nothing starts on it; the same restore again is complete, another one is refused."""
    url = url_of(engine, tmp_path)
    settings = settings_of(tmp_path / "data", ledger_url=url)
    broken: dict[str, tuple[Any, str]] = {
        "usage": (snapshots, "totals"),
        "ledger": (ledger_copies, "_copy_rows" if url else "sync"),
        "finish": (ledger_copies, "figures_of"),
    }
    owner, name = broken[step]
    real = getattr(owner, name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if step == "finish":
            # After the ledger was filled, whatever it was.
            real(*args, **kwargs)
        raise Unavailable("broken off by the test")

    def fail_at_the_ledger(path: Path) -> None:
        # The marker is synced too.
        if "ledger" in str(path):
            fail()
        real(path)

    is_sync = name == "sync"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_at_the_ledger if is_sync else fail)
        with pytest.raises(Unavailable, match="broken off by the test"):
            restore(place.backup, settings)
    assert (tmp_path / "data" / RESTORING_FILE).exists()
    with (
        pytest.raises(Unavailable, match="broken off, and what is there is not complete"),
        opened(tmp_path / "data", ledger_url=url),
    ):
        pass
    other = tmp_path / "other"
    shutil.copytree(place.backup, other)
    manifest = read_manifest(other)
    seal(other, msgspec.structs.replace(manifest, made_at_us=manifest.made_at_us + 1))
    if url and step == "finish":
        with pytest.raises(Conflict, match="another backup"):
            restore(other, settings)
    restored = restore(place.backup, settings)
    assert restored.verdict.ok
    with opened(tmp_path / "data", ledger_url=url) as toll:
        assert set(stored_ids(toll)) == place.ids
        assert counted(toll) == place.totals


def test_the_copy_and_the_original_refuse_each_others_usage_store(place: Place, tmp_path: Path) -> None:
    """Two installations from one backup have two ids, so that neither relays into the store of the other."""
    shutil.copytree(place.data, tmp_path / "original", symlinks=True)
    restored = restore(place.backup, settings_of(tmp_path / "copy"))
    assert restored.installation_id != restored.manifest.installation_id
    for ledger, usage in (("copy", "original"), ("original", "copy")):
        with (
            pytest.raises(StoresMismatch, match="belongs to installation"),
            opened(tmp_path / ledger, usage_url=f"chdb://{tmp_path / usage / 'usage'}"),
        ):
            pass
    with opened(tmp_path / "original") as toll:
        ingest(toll, "again")
        assert toll.verify().ok


def test_a_ledger_goes_on_with_the_usage_store_that_survived(place: Place, tmp_path: Path) -> None:
    """It keeps its id. It is older than the store, which is found out: nothing counts twice."""
    shutil.copytree(place.data, tmp_path / "original", symlinks=True)
    with opened(tmp_path / "original") as toll:
        ingest(toll, "later-1", "later-2")
        stored_ids(toll)
    usage = f"chdb://{tmp_path / 'original' / 'usage'}"
    settings = settings_of(tmp_path / "restored", usage_url=usage)
    restored: Restored = restore(place.backup, settings, keep_usage=True)
    assert restored.installation_id == restored.manifest.installation_id
    assert any(
        "2 records that the ledger does not know" in line for line in restored.verdict.store_differences
    )
    with opened(tmp_path / "restored", usage_url=usage) as toll:
        ids = stored_ids(toll)
        assert set(ids) == place.ids | {"later-1", "later-2"}
        assert len(ids) == len(place.ids) + 3
        ingest(toll, "new")
        assert (
            toll.record(
                [{"id": "later-1", "time": "2026-03-18T12:00:00+00:00", "account": "acme", "cost_nanos": 3}]
            ).accepted
            == 0
        )


def test_only_a_store_of_the_same_installation_can_be_kept(place: Place, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="of no installation"):
        restore(place.backup, settings_of(tmp_path / "data"), keep_usage=True)
    usage = tmp_path / "usage"
    usage.mkdir()
    FileMarks(usage).note(BatchMark("other", "a", 1))
    with pytest.raises(Conflict, match="The usage store to keep is of installation other"):
        restore(place.backup, settings_of(tmp_path / "data", usage_url=f"chdb://{usage}"), keep_usage=True)
    assert not (tmp_path / "data").exists()


def test_callers_over_http_write_directly_below_one_directory(tmp_path: Path) -> None:
    root = tmp_path / "backups"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    assert target_below(root, "monday") == root / "monday"
    assert target_below(root, str(root / "monday")) == root / "monday"
    for text in (
        "", ".", "..", "../x", "a/b", "/etc", "/etc/x", f"{root}/a/b", f"{root}/../x", f"{root}/../backups/x", "link",
        ".hidden", "a\0b", "~", "-x", "x" * 101, str(root),
    ):  # fmt: skip
        with pytest.raises(BadParameter, match="target must be a name"):
            target_below(root, text)


def test_a_loaded_piece_has_exactly_its_rows_and_no_view_adds_any(place: Place, tmp_path: Path) -> None:
    """Parts with the same rows are loaded as often as there are such parts, and derived rows only as they were."""
    manifest = check_backup(place.backup)
    twice = [msgspec.structs.replace(table, pieces=table.pieces * 2) for table in manifest.usage]
    usage_restoring.restore(
        f"chdb://{tmp_path / 'usage'}", twice, place.backup, schema=manifest.usage_schema, mark=None
    )
    engine = snapshots.Engine(f"chdb://{tmp_path / 'usage'}")
    try:
        for table in manifest.usage:
            ((count,),) = engine.rows(f"SELECT count() FROM {table.name}")
            # Rollups of one key become one row when their parts are merged.
            assert count == 2 * table.rows or table.name == "usage_rollups"
        ((requests,),) = engine.rows("SELECT sum(requests) FROM usage_rollups WHERE tier = 'keys_day'")
        assert requests == 2 * (manifest.totals.events - 2)
    finally:
        engine.close()


def test_checksums_are_of_whole_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom((1 << 20) + 3))
    known = checksum(file)
    assert known.bytes == (1 << 20) + 3
    flip(file)
    assert checksum(file).sha256 != known.sha256
