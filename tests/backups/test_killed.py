"""A process that is killed while it writes a backup, or while it restores one; and then again."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.backups.places import counted, declare, ingest, opened, stored_ids
from tests.effort import effort
from tests.engines import fresh_url
from tollkeeper.adapters.backup_directory import MANIFEST
from tollkeeper.adapters.data_directory import RESTORING_FILE
from tollkeeper.errors import Conflict, Unavailable
from tollkeeper.restoring import check_backup, restore
from tollkeeper.settings import load

KILLED_AT: Final = """
    import importlib, os, signal, sys
    from pathlib import Path

    what, step, call, source, data, url = sys.argv[1:]
    module, _, path = step.rpartition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, left = getattr(owner, name), int(call)

    def killed(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, killed)
    if what == "backup":
        from tollkeeper import Tollkeeper
        with Tollkeeper.open(data, unknown_route="allow") as toll:
            toll.backup(source)
    else:
        from tollkeeper.restoring import restore
        from tollkeeper.settings import load
        restore(Path(source), load({"data_dir": data, "ledger_url": url}, environ={}))
"""
FILES: Final = "tollkeeper.adapters.backup_directory:BackupWriter"
BACKUP_STEPS: Final = (
    ("tollkeeper.adapters.clickhouse.snapshots:StoreSnapshot.read", 2),
    (f"{FILES}._remove_others", 1),
    ("tollkeeper.adapters.sql.ledger_copies:_close_copy", 1),
    (f"{FILES}.finish", 1),
)
RESTORE_STEPS: Final = (
    ("tollkeeper.adapters.sql.ledger_copies:figures_of", 1),
    ("tollkeeper.adapters.clickhouse.snapshots:load", 3),
    ("tollkeeper.adapters.sql.ledger_copies:_copy_rows", 1),
)


def kill(what: str, step: tuple[str, int], backup: Path, data: Path, url: str = "") -> None:
    name, call = step
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(KILLED_AT),
            what,
            name,
            str(call),
            str(backup),
            str(data),
            url,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def events(toll: object, prefix: str) -> None:
    ingest(toll, *(f"{prefix}{n}" for n in range(50)))  # type: ignore[arg-type]


@pytest.mark.parametrize("step", BACKUP_STEPS[: effort(1, 4)], ids=lambda step: step[0].rpartition(".")[2])
def test_a_backup_that_is_killed_spoils_nothing(tmp_path: Path, step: tuple[str, int]) -> None:
    """The data go on, the earlier backup is whole, and the next one is complete."""
    data, target = tmp_path / "data", tmp_path / "target"
    with opened(data) as toll:
        declare(toll)
        events(toll, "a")
        stored_ids(toll)
        toll.backup(target)
        events(toll, "b")
        stored_ids(toll)
    before = (target / MANIFEST).read_bytes()
    is_complete = step[0].endswith("_remove_others")
    kill("backup", step, target, data)
    kill("backup", ("tollkeeper.adapters.sql.ledger_copies:describe", 1), tmp_path / "new", data)
    # Into a new directory: it is no backup, and says so.
    with pytest.raises(Conflict, match="incomplete"):
        check_backup(tmp_path / "new")
    assert ((target / MANIFEST).read_bytes() != before) == is_complete
    assert check_backup(target).totals.events == (100 if is_complete else 50)
    with opened(data) as toll:
        assert toll.verify().ok
        events(toll, "c")
        stored_ids(toll)
        for path in (target, tmp_path / "new"):
            toll.backup(path)
    for path in (target, tmp_path / "new"):
        manifest = check_backup(path)
        assert manifest.totals.events == 150
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
        assert found == {MANIFEST, *manifest.files}


@pytest.mark.parametrize("step", RESTORE_STEPS[: effort(1, 3)], ids=lambda step: step[0].rpartition(":")[2])
def test_a_restore_that_is_killed_is_done_again(tmp_path: Path, step: tuple[str, int]) -> None:
    """Nothing starts on half of an installation, and a database on a server is filled whole or not at all."""
    with opened(tmp_path / "original") as toll:
        declare(toll)
        events(toll, "a")
        stored_ids(toll)
        toll.backup(tmp_path / "backup")
        ids, totals = set(stored_ids(toll)), counted(toll)
    url, data = fresh_url("postgresql", tmp_path), tmp_path / "data"
    kill("restore", step, tmp_path / "backup", data, url)
    assert (data / RESTORING_FILE).exists()
    with pytest.raises(Unavailable, match="broken off"), opened(data, ledger_url=url):
        pass
    restored = restore(tmp_path / "backup", load({"data_dir": str(data), "ledger_url": url}, environ={}))
    assert restored.verdict.ok, restored.verdict
    with opened(data, ledger_url=url) as toll:
        assert set(stored_ids(toll)) == ids
        assert counted(toll) == totals
