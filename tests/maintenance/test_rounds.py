"""The maintenance thread: jobs in their order, each in its rounds, and no failure ends the rounds."""

from __future__ import annotations

import threading

import pytest

from tollkeeper.errors import Unavailable
from tollkeeper.maintenance.rounds import Job, MaintenanceThread

WAIT_S = 30.0


def test_each_job_runs_in_its_rounds_and_in_order() -> None:
    ran: list[str] = []
    thread = MaintenanceThread(
        [
            Job(lambda: ran.append("always")),
            Job(lambda: ran.append("third"), every=3),
            Job(lambda: ran.append("first of three"), every=3, at=1),
        ]
    )
    for number in range(1, 5):
        ran.append(str(number))
        thread._round(number)
    assert ran == [
        *("1", "always", "first of three"),
        *("2", "always"),
        *("3", "always", "third"),
        *("4", "always", "first of three"),
    ]


def test_a_job_that_repeats_runs_until_it_returns_nothing() -> None:
    left = [0, 7, 8, 9]
    MaintenanceThread([Job(left.pop, repeats=True)])._round(1)
    assert left == []


def test_a_job_that_does_not_repeat_runs_once_whatever_it_returns() -> None:
    left = [7, 8, 9]
    MaintenanceThread([Job(left.pop)])._round(1)
    assert left == [7, 8]


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a defect")], ids=repr)
def test_a_failure_ends_its_round_and_not_the_thread(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds must go on expiring, whatever happens to other jobs."""
    monkeypatch.setattr("tollkeeper.maintenance.rounds.ROUND_S", 0.001)
    rounds, third, after = [], threading.Event(), []

    def fail() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            third.set()
        raise error

    thread = MaintenanceThread([Job(fail), Job(lambda: after.append(1))])
    thread.start()
    assert third.wait(WAIT_S)
    thread.close()
    thread.close()
    assert not after
