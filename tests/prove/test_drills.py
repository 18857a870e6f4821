"""The faults that a run draws: their plan, and those with an installation of their own against the real server."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from tests.engines import SHARED_ENGINES, fresh_url
from tollkeeper.prove import drills, noisy
from tollkeeper.prove.drills import COST_NANOS, Drill, Skipped, plan_drill, run_drill
from tollkeeper.prove.faults import FAULTS, GOES_BACK, faults_of
from tollkeeper.prove.journal import TIMED_OUT, Journal, read_calls
from tollkeeper.prove.ledgers import LedgerPlace, PostgresqlLedger, SqliteLedger
from tollkeeper.prove.minting import minted
from tollkeeper.prove.noisy import Noise
from tollkeeper.prove.plan import MINTED_MAX, Scale
from tollkeeper.prove.run import Run
from tollkeeper.prove.server import ServerProcess


@pytest.mark.parametrize("seed", range(5))
def test_as_many_rounds_as_there_are_other_kinds_draw_them_all(seed: int) -> None:
    drawn = [faults_of(seed, number, ()) for number in range(1, len(FAULTS))]
    assert {fault for faults in drawn for fault in faults} == set(FAULTS)
    assert all(faults[0] == "kills" and len(faults) == 2 for faults in drawn)


def test_named_faults_are_in_every_round() -> None:
    assert faults_of(1, 7, ("noisy", "restores")) == ("noisy", "restores")


@pytest.mark.parametrize("fault", GOES_BACK)
def test_the_same_seed_is_the_same_drill(fault) -> None:
    plans = [plan_drill(seed, 1, fault) for seed in range(20)]
    assert plans == [plan_drill(seed, 1, fault) for seed in range(20)]
    assert len(set(plans)) > 5


@pytest.mark.parametrize(
    ("admitted", "kinds"), [(MINTED_MAX, []), (MINTED_MAX + 1, ["overshoot"]), (0, ["other"])]
)
def test_minted_keys_admit_as_many_as_fit(admitted: int, kinds: list[str]) -> None:
    assert [finding.kind for finding in minted("a", admitted, 9)] == kinds


def test_calls_to_a_dialect_count_in_the_limit_of_their_key() -> None:
    assert minted("a", MINTED_MAX - 2, 9, own_calls=2) == []
    assert [finding.kind for finding in minted("a", MINTED_MAX - 3, 9, own_calls=2)] == ["other"]
    assert [finding.kind for finding in minted("a", MINTED_MAX + 1, 9, own_calls=2)] == ["overshoot"]


def test_noise_is_as_many_turns_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine: as many as its CPU gives would make every round slower than the one before."""
    taken: list[tuple[str, int]] = []
    kinds = Noise(1, 1).kinds()
    recorded = {name: partial(lambda name, turn: taken.append((name, turn)), name) for name in kinds}
    monkeypatch.setattr(Noise, "kinds", lambda noise: recorded)
    reader, writer = os.pipe()
    for bytes_ in (b".", b".."):
        os.write(writer, bytes_)
    os.close(writer)
    noisy.main(1, 1, reader)
    os.close(reader)
    until = time.monotonic() + 60
    while len(taken) < 3 * len(kinds) and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(taken) == sorted(product(kinds, range(3)))


def test_a_try_without_an_answer_in_time_is_no_answer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write("void", "x", {})
    journal.write("void", "x", status=TIMED_OUT)
    [call] = read_calls([tmp_path / "journal"])
    assert (call.timed_out, call.status, call.answered_us) == (1, 0, None)


def test_a_fault_that_cannot_be_made_is_named_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its zero would read as a proof."""
    monkeypatch.setenv("PATH", str(tmp_path))
    run = Run(Scale(1, 1, 1), 1, tmp_path, only=("full-disk",))
    assert "full-disk skipped" in run.round(1)
    proof = run.proof()
    assert proof.skipped == ("full-disk: there is no mount command",)
    assert proof.by_fault["full-disk"]["times"] == 0


@pytest.mark.drawn(1)
@pytest.mark.parametrize("engine", SHARED_ENGINES)
def test_a_ledger_that_is_put_back_says_what_it_said(tmp_path: Path, engine: str) -> None:
    """And one that is cleared and started on is another installation's, so the copy is what was put back."""
    ledger: LedgerPlace
    if engine == "sqlite-file":
        ledger = SqliteLedger(tmp_path / "data")
    else:
        ledger = PostgresqlLedger(fresh_url(engine, tmp_path), "put_back")
    server = ServerProcess(tmp_path / "data", tmp_path / "log", ledger.url)
    try:
        server.start()
        site = drills.Site(server, ledger)
        site.set_up()
        site.post(["a", "b"])
        site.deliver()
        copy = ledger.copy(server)
        site.post(["c"])
        site.deliver()
        server.kill()
        ledger.clear()
        shutil.rmtree(tmp_path / "data" / "usage")
        server.start()
        server.kill()
        ledger.put_back(copy)
        server.start()
        assert site.answers().used == 2 * COST_NANOS
    finally:
        server.kill()
        ledger.remove()


def test_a_disk_that_was_full_loses_nothing(tmp_path: Path) -> None:
    drill = Drill("full-disk", "killed", between=0, after=1, stop="kill", kill_after=None)
    try:
        assert run_drill(drill, 1, 1, tmp_path, None) == []
    except Skipped as exc:
        pytest.skip(str(exc))
    assert not (tmp_path / "disk" / "data").exists(), "it is unmounted"
