"""`tollkeeper prove` against the real server; and against one whose stores were tampered with, which it must name."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.cli.commands import COMMAND, answer_of, environment, tollkeeper
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.console.server_client import Server
from tollkeeper.errors import Conflict, Unavailable
from tollkeeper.prove.faults import FAULTS
from tollkeeper.prove.journal import JournaledCall, Line
from tollkeeper.prove.oracle import KINDS, Finding
from tollkeeper.prove.plan import Scale
from tollkeeper.prove.run import Run, prove
from tollkeeper.prove.server import OPERATOR_KEY, ServerProcess
from tollkeeper.record_columns import table_of

SCALE = Scale(rounds=1, clients=1, connections=2)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run after its one round, its server stopped."""
    run = Run(SCALE, 1, tmp_path_factory.mktemp("attacked"))
    try:
        run.round(1)
        assert not run.proof().findings
        run.server.stop()
        yield run
    finally:
        run.close()


@pytest.fixture
def tampered(attacked: Run, tmp_path: Path) -> Iterator[Callable[[Callable[[Path], None]], list[Finding]]]:
    """Spoil a copy of the attacked installation, and return what the checker finds there."""
    data, whole = attacked.server.directory, tmp_path / "whole"
    shutil.copytree(data, whole, symlinks=True)

    def check(spoil: Callable[[Path], None]) -> list[Finding]:
        spoil(data)
        attacked.server.start()
        found = attacked.verify() + attacked.check(1)
        attacked.server.stop()
        return found

    yield check
    attacked.server.kill()
    shutil.rmtree(data)
    shutil.copytree(whole, data, symlinks=True)


@pytest.mark.drawn(1, of="the command")
def test_a_run_finds_nothing_reports_itself_and_leaves_nothing(tmp_path: Path) -> None:
    options = ("--rounds", 1, "--clients", 2, "--connections", 2, "--seed", 11, "--shrink", 0, "--json")
    options += ("--only", "kills")
    done = tollkeeper(
        "prove", *options, variables={"TMPDIR": str(tmp_path), "TOLLKEEPER_LEDGER_URL": "nonsense://"}
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = answer_of(done)
    assert report["findings"] == []
    assert report["ok"] is True
    kinds = ("overshoot", "lost", "double_counted", "verify", "unanswered", "other")
    assert [report[name] for name in kinds] == [0, 0, 0, 0, 0, 0]
    assert report["faults"]["kills"] == {"times": 1, **dict.fromkeys(KINDS, 0)}
    assert f"{', '.join(FAULTS[1:])}: not drawn" in report["not_covered"][0]
    assert (report["seed"], report["rounds"]) == (11, 1)
    assert report["kills"] >= 1
    assert report["requests"] > 100
    assert report["machine"]
    assert report["versions"]["chdb"]
    assert "round 1 of 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.drawn(3, of="tampered")
def test_a_tampered_counter_is_named(tampered) -> None:
    def spoil(data: Path) -> None:
        with sqlite3.connect(data / "ledger.sqlite3") as ledger:
            changed = ledger.execute("UPDATE counters SET used = used - 7 WHERE counter_id = 'budget:even-1'")
            assert changed.rowcount == 1

    found = tampered(spoil)
    assert {finding.kind for finding in found} == {"lost", "verify"}
    assert any("budget even-1" in finding.what for finding in found)


@pytest.mark.drawn(3, of="tampered")
def test_an_event_that_counts_twice_is_named(tampered) -> None:
    """Put into the usage store behind its back, as a relay would that repeats itself."""
    named: list[str] = []

    def spoil(data: Path) -> None:
        store = ClickHouseUsageStore.open(f"chdb://{data / 'usage'}")
        try:
            pieces = store.export("single-1", 0, 2**52)
            ids = [row["id"] for piece in pieces for row in piece.to_pylist() if row["key_id"] == "even-1"]
            records = store.records([("single-1", id_) for id_ in ids]).values()
            row = next(record for record in records if not record.denied_reason)
            store.append(table_of([row]), "once more")
            named.append(row.id)
        finally:
            store.close()

    found = tampered(spoil)
    assert {finding.kind for finding in found} >= {"double-counted", "verify"}
    assert [f for f in found if f.kind == "double-counted" and f.ids == (named[0],)]


@pytest.mark.drawn(3, of="tampered")
@pytest.mark.parametrize("kind", ["request", "adjustment"])
def test_what_was_taken_out_of_the_usage_store_is_named(tampered, kind: str) -> None:
    """Behind the ledger's back: an event with its price, and an adjustment."""
    named: list[str] = []

    def spoil(data: Path) -> None:
        store = ClickHouseUsageStore.open(f"chdb://{data / 'usage'}")
        try:
            ids = [
                (account, row["id"])
                for account in ("meter-1", "pools-1")
                for piece in store.export(account, 0, 2**52)
                for row in piece.to_pylist()
                if row["kind"] == kind
            ]
            records = store.records(ids).values()
            row = next(record for record in records if record.sign > 0 and not record.denied_reason)
            store.append(table_of([row._replace(sign=-1, amendment_id="taken out")]), "taken out")
            named.append(row.id)
        finally:
            store.close()

    found = tampered(spoil)
    assert {finding.kind for finding in found} >= {"lost", "verify"}
    assert [f for f in found if f.kind == "lost" and f.ids == (named[0],)]


@pytest.mark.drawn(3, of="tampered")
def test_a_top_up_that_was_applied_twice_is_named(tampered) -> None:
    """Under another id, so the ledger agrees with itself."""

    def spoil(data: Path) -> None:
        with sqlite3.connect(data / "ledger.sqlite3") as ledger:
            added = ledger.execute(
                "INSERT INTO top_ups SELECT account_id, id || '-again', counter_id, budget, unit, amount, until_used,"
                " posted_at_us FROM top_ups LIMIT 1"
            )
            assert added.rowcount == 1

    found = tampered(spoil)
    assert [(finding.kind, finding.what.split(" allows ")[0]) for finding in found] == [
        ("double-counted", "budget topped-1")
    ]


@pytest.mark.drawn(3, of="tampered")
def test_money_that_left_a_balance_is_named(tampered) -> None:
    """As if an adjustment had been taken back there alone."""

    def spoil(data: Path) -> None:
        with sqlite3.connect(data / "ledger.sqlite3") as ledger:
            changed = ledger.execute(
                "UPDATE pools SET overdraft_nanos = overdraft_nanos + 5 WHERE account_id = 'pools-1'"
            )
            assert changed.rowcount == 1

    found = tampered(spoil)
    assert {finding.kind for finding in found} == {"lost", "double-counted", "verify"}
    assert any(finding.what.startswith("balance of pools-1") for finding in found)


@pytest.mark.drawn(3, of="tampered")
def test_an_acknowledged_event_whose_outbox_row_is_gone_is_named(attacked: Run, tampered) -> None:
    """The counters have it, the usage store never gets it."""

    def rows(data: Path) -> int:
        with sqlite3.connect(data / "ledger.sqlite3") as ledger:
            return ledger.execute("SELECT count(*) FROM outbox").fetchone()[0]

    def spoil(data: Path) -> None:
        with sqlite3.connect(data / "ledger.sqlite3") as ledger:
            ledger.execute("DELETE FROM outbox")

    _, calls, _, _ = attacked.rounds[0]
    sent: list[JournaledCall] = []
    # Events are acknowledged some time before they are relayed: nearly every kill comes in between.
    while len(sent) < 10 and not rows(attacked.server.directory):
        id_ = f"late-{len(sent)}"
        body = [{"id": id_, "time": "2025-01-01T00:00:00Z", "key_id": "meter-1", "cost_nanos": 5}]
        attacked.server.start()
        server = Server(attacked.server.url, OPERATOR_KEY)
        call = JournaledCall(Line(1, "events", id_, body))
        call.answer = server.call("POST", "/events", body=msgspec.json.encode(body))
        call.answered_us, call.status = 2, 200
        attacked.server.kill()
        sent.append(call)
    calls += sent
    try:
        found = tampered(spoil)
    finally:
        del calls[-len(sent) :]
    assert {finding.kind for finding in found} >= {"lost", "verify"}
    assert ("lost", (sent[-1].id,)) in [(finding.kind, finding.ids) for finding in found]


def test_a_server_that_cannot_start_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    server = ServerProcess(tmp_path / "file", tmp_path / "log")
    with pytest.raises(Unavailable, match="cannot start"):
        server.start()


def test_a_used_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Conflict):
        prove(SCALE, 1, data=str(tmp_path), say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_fault_that_does_not_exist_is_refused() -> None:
    done = tollkeeper("prove", "--only", "kills,meteors")
    assert done.returncode == 2
    assert "meteors" in done.stderr
    assert "full-disk" in done.stderr, "the faults that there are"


@pytest.mark.drawn(1, of="the command")
def test_ctrl_c_ends_every_process_and_leaves_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "prove", "--rounds", "1000", "--clients", "1", "--connections", "1"]
    command += ["--only", "kills"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(tmp_path)),
        text=True,
    ) as run:
        assert run.stderr is not None
        assert run.stderr.readline().startswith("seed ")
        assert run.stderr.readline().startswith("round 1 of 1000")
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate()
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    assert not [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # It has ended meanwhile.
        return b""
