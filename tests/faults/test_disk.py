"""A full disk, a directory that cannot be written or is in use, a damaged file: refused, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Install
from tollkeeper import Tollkeeper
from tollkeeper.adapters.data_directory import read_or_make_secret
from tollkeeper.domain.catalog import Account
from tollkeeper.errors import DataDirectoryInUse, Unavailable
from tollkeeper.testing import installation, open_installation, set_up

NOBODY = 65_534


def run(code: str, *args: str) -> Any:
    """Run *code* in a process of its own; return what it printed last, from JSON."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


FULL_DISK = """
    import json, resource, sys
    from threading import Event
    from tollkeeper import Denial, Outcome, Tollkeeper, Usage
    from tollkeeper.errors import Unavailable
    from tollkeeper.testing import NOON

    toll = Tollkeeper.open(sys.argv[1], unknown_route="allow")
    made = toll.apply('''
        [[accounts]]
        id = "acme"
        name = "A"
        [[keys]]
        id = "k"
        account = "acme"
        [[budgets]]
        id = "b"
        account = "acme"
        amount = 1_000_000_000
    ''')
    secret, acknowledged, refusals, number = made.issued[0].secret, {}, [], 0

    def book():
        global number
        number += 1
        admission = toll.admit(secret, "GET", "/x")
        if isinstance(admission, Denial):
            raise Unavailable(admission.message)
        outcome = Outcome(usage=Usage(cost_nanos=number))
        record = toll.settle(admission, outcome, wait=True)
        acknowledged[record.id] = number
        number += 1
        event = {"id": f"e{number}", "time": NOON.isoformat(), "account": "acme", "cost_nanos": number,
                 "tags": {f"t{n}": f"{number * 7919 * n:0200d}" for n in range(16)}}
        assert toll.record([event]).accepted == 1
        acknowledged[event["id"]] = number

    book()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this, as on a disk without room.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    while len(refusals) < 5:
        try:
            book()
        except Unavailable as exc:
            refusals.append(str(exc))
    while_full = len(acknowledged)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    recovered = False
    for _ in range(100):
        try:
            book()
            recovered = True
            break
        except Unavailable:
            Event().wait(0.1)
    toll.close()
    print(json.dumps({"acknowledged": acknowledged, "refusals": refusals, "recovered": recovered,
                      "while_full": while_full, "number": number}))
"""

LOOK = """
    import json, sys
    from tollkeeper import Tollkeeper
    with Tollkeeper.open(sys.argv[1], unknown_route="allow") as toll:
        verdict = toll.verify()
        stored = {}
        for piece in toll.installation.store.export("acme", 0, 2**52):
            for row in piece.to_pylist():
                stored.setdefault(row["id"], []).append(row["cost_nanos"])
        print(json.dumps({"ok": verdict.ok, "stored": stored, "differences": repr(verdict)}))
"""


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """What was acknowledged is all there, once; with room again it goes on by itself."""
    told = run(FULL_DISK, str(tmp_path / "data"))
    assert told["recovered"]
    assert told["while_full"] > 2
    assert all("cannot be written" in refusal for refusal in told["refusals"]), told["refusals"]
    found = run(LOOK, str(tmp_path / "data"))
    assert found["ok"], found["differences"]
    stored = found["stored"]
    assert {id_: stored.get(id_) for id_ in told["acknowledged"]} == {
        id_: [cost] for id_, cost in told["acknowledged"].items()
    }
    # What was refused to a caller that waited is booked once, or never.
    assert all(len(costs) == 1 for costs in stored.values())


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The message names it and says what to do; when it can be written all is still there."""
    directory = tmp_path / "data"
    with installation(directory) as site:
        set_up(site, Account(id="acme", name="A"))
    code = """
        import json, os, sys
        from tollkeeper import Tollkeeper
        from tollkeeper.errors import TollkeeperError
        # Root may write anywhere: it becomes somebody who may not.
        os.seteuid(int(sys.argv[2]))
        try:
            Tollkeeper.open(sys.argv[1])
        except TollkeeperError as exc:
            print(json.dumps([exc.code, str(exc)]))
    """
    user = os.geteuid() or NOBODY
    _compiled_key(tmp_path, directory, writable=False)
    try:
        code_, message = run(code, str(directory), str(user))
    finally:
        _compiled_key(tmp_path, directory, writable=True)
    assert code_ == "unavailable"
    assert str(directory) in message
    assert "cannot be written" in message
    with installation(directory) as site:
        assert site.catalog.get("accounts", "acme") is not None


def _compiled_key(above: Path, directory: Path, *, writable: bool) -> None:
    for path in [directory, *directory.rglob("*")]:
        path.chmod((0o755 if writable else 0o555) if path.is_dir() else (0o644 if writable else 0o444))
    # Pytest's directories are for their owner alone.
    for parent in above.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o700 if writable else 0o755)
    above.chmod(0o700 if writable else 0o755)


@pytest.mark.parametrize("place", ["a file", "under a file"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    """A slip in a path is told as such."""
    file = tmp_path / "file"
    file.write_text("not a directory")
    with pytest.raises(Unavailable, match="cannot be written"):
        Tollkeeper.open(str(file if place == "a file" else file / "data"))
    assert file.read_text() == "not a directory"


def test_a_directory_belongs_to_one_process(install: Install, tmp_path: Path) -> None:
    """Two would spend the same budget twice; the second is told whose it is, and the first goes on."""
    site = install()
    with pytest.raises(DataDirectoryInUse, match=str(os.getpid())):
        install()
    code = """
        import json, sys
        from tollkeeper import Tollkeeper
        from tollkeeper.errors import DataDirectoryInUse
        try:
            Tollkeeper.open(sys.argv[1])
        except DataDirectoryInUse as exc:
            print(json.dumps(str(exc)))
    """
    assert f"in use by process {os.getpid()}" in run(code, str(tmp_path / "data"))
    set_up(site, Account(id="acme", name="A"))
    site.close()
    assert install().catalog.get("accounts", "acme") is not None


def test_a_directory_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    """The lock ends with the process, not with its tidying up."""
    code = """
        import os, sys
        from tollkeeper.testing import open_installation
        site = open_installation(sys.argv[1])
        os.kill(os.getpid(), 9)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "d")], check=False, timeout=60
    )
    assert ended.returncode == -9
    assert (
        run(
            "import sys, json\nfrom tollkeeper.testing import open_installation\n"
            "open_installation(sys.argv[1]).close()\nprint(json.dumps(1))",
            str(tmp_path / "d"),
        )
        == 1
    )


@pytest.mark.parametrize("damage", ["overwritten", "first page", "cut off", "later pages"])
def test_a_damaged_ledger_is_named(install: Install, tmp_path: Path, damage: str) -> None:
    """No traceback of the driver; the lock is given back, so that a restored copy opens at once."""
    site = install()
    set_up(site, Account(id="acme", name="A"))
    site.close()
    path = tmp_path / "data" / "ledger.sqlite3"
    shutil.copy(path, tmp_path / "backup")
    good = path.read_bytes()
    path.write_bytes(
        {
            "overwritten": b"no database" * 1_000,
            "first page": good[:100] + b"\xff" * 1_000 + good[1_100:],
            "cut off": good[: len(good) // 2],
            "later pages": good[:4_096] + b"\xa5" * (len(good) - 4_096),
        }[damage]
    )
    with pytest.raises(Unavailable) as caught:
        install()
    assert str(path) in str(caught.value)
    shutil.copy(tmp_path / "backup", path)
    assert install().catalog.get("accounts", "acme") is not None


def test_a_usage_store_that_cannot_be_opened_stops_no_request(tmp_path: Path) -> None:
    """The gate needs only the ledger; answers about usage say that they cannot be had."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "usage").write_text("a file in its place")
    code = """
        import json, sys
        from tollkeeper import Tollkeeper, UsageQuery
        from tollkeeper.errors import Unavailable
        from tollkeeper.ledger import delivery
        delivery.FLUSH_S = 0.1
        toll = Tollkeeper.open(sys.argv[1], unknown_route="allow")
        made = toll.apply('[[accounts]]\\nid="acme"\\nname="A"\\n[[keys]]\\nid="k"\\naccount="acme"')
        admission = toll.admit(made.issued[0].secret, "GET", "/x")
        toll.settle(admission, wait=True)
        try:
            toll.usage(UsageQuery(account_id="acme", from_us=0, to_us=1))
        except Unavailable as exc:
            pending = len(toll.installation.ledger.outbox.pending())
            toll.close()
            print(json.dumps([str(exc), pending]))
    """
    message, pending = run(code, str(directory))
    assert message
    assert pending == 1
    (directory / "usage").unlink()
    assert run(LOOK, str(directory))["ok"]


def test_what_failed_to_open_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later try in the same process must not find the directory in use by itself."""
    with monkeypatch.context() as patch:
        patch.setattr("tollkeeper.installation.SqlLedger", _refuse)
        for _ in range(2):
            with pytest.raises(Unavailable, match="not today"):
                open_installation(tmp_path / "data")
    open_installation(tmp_path / "data").close()


def _refuse(*args: Any) -> Any:
    raise Unavailable("not today")


FULL_AT_START: Final = """
    import json, os, resource, sys
    from tests.contract.test_usage_store import record
    from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
    from tollkeeper.record_columns import table_of
    from tollkeeper.errors import Unavailable

    directory, limit = sys.argv[1], int(sys.argv[2])
    if limit >= 0:
        # No file may grow beyond this, as on a disk without room; that one can be made is worse.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store = ClickHouseUsageStore.open("chdb://" + directory)
        rows = table_of([record("acct")._replace(id=sys.argv[3])])
        store.append(rows, sys.argv[3], begun_after=0)
        found = [store.differences(), store.charged("acct", from_us=0, to_us=2**52, project_id=None, key_ids=None)[0]]
    except Unavailable as exc:
        found = str(exc)
    print(json.dumps(found), flush=True)
    os._exit(0)
"""


MAKE_OLDER: Final = """
    import json, sys
    from tollkeeper.adapters.clickhouse import ClickHouseUsageStore

    store = ClickHouseUsageStore.open("chdb://" + sys.argv[1])
    for table in ("append_comparison", "batches"):
        store._engine.appender.command(f"DROP TABLE {table} SYNC")
    store._engine.appender.command(
        "ALTER TABLE schema_version DELETE WHERE version > 5", settings={"mutations_sync": 2}
    )
    store.close()
    print(json.dumps("made"))
"""
"""Leaves a usage store as the schema's version 5 made it."""


@pytest.mark.drawn(1)
@pytest.mark.parametrize("is_older", [False, True], ids=["of this version", "to be migrated"])
def test_a_start_on_a_full_disk_leaves_a_store_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_older: bool
) -> None:
    """The engine leaves an empty description of a table that it had no room to make, and never starts again."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    directory = tmp_path / "usage"
    assert run(FULL_AT_START, str(directory), "-1", "a") == [[], 1]
    if is_older:
        run(MAKE_OLDER, str(directory))
    for limit in ("0", "100"):
        assert isinstance(run(FULL_AT_START, str(directory), limit, "b"), str)
    assert run(FULL_AT_START, str(directory), "-1", "b") == [[], 2]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("name", ["repeated_append", "usage_rollups_rebuilt", "_tmp_replace_1", "new_view"])
def test_an_empty_description_of_an_earlier_full_disk_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    directory = tmp_path / "usage"
    assert run(FULL_AT_START, str(directory), "-1", "a") == [[], 1]
    (events,) = directory.glob("store/*/*/events.sql")
    empty = events.with_name(f"{name}.sql")
    empty.touch()
    assert run(FULL_AT_START, str(directory), "-1", "b") == [[], 2]
    assert not empty.exists()
    # A table with records cannot be made again from nothing.
    kept = events.read_bytes()
    events.write_bytes(b"")
    assert "events.sql is empty and the table has records" in run(FULL_AT_START, str(directory), "-1", "c")
    events.write_bytes(kept)
    assert run(FULL_AT_START, str(directory), "-1", "c") == [[], 3]


def test_a_secret_that_there_is_no_room_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no file that the next start would take for damaged."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tollkeeper.adapters.data_directory.os.fsync", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            read_or_make_secret(tmp_path, "webhook.secret")
    assert not (tmp_path / "webhook.secret").exists()
    assert len(read_or_make_secret(tmp_path, "webhook.secret")) == 64
