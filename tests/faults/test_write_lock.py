"""Another process holds the ledger's write lock: callers wait or are told, and all is recorded exactly once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Install
from tests.faults.test_ledger_away import Customer, eventually
from tollkeeper.adapters.sql import database
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.errors import Unavailable
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import commit_all, verify

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@contextmanager
def write_lock(directory: Path) -> Iterator[None]:
    """Have another process hold the write lock of the ledger in *directory* until the block ends."""
    command = [sys.executable, "-c", HOLDER, str(directory / "ledger.sqlite3")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            yield
        finally:
            # The end of its input lets it go on, whatever became of the test.
            holder.stdin.close()
            assert holder.wait(30) == 0


class Seen:
    """A ledger that says when a commit began and how many were done."""

    def __init__(self, site: Installation) -> None:
        self.began = threading.Event()
        self.done_count = 0
        self._commit = site.ledger.commit
        committer: Any = site.committer
        committer._ledger = self

    def commit(self, group: Any) -> Any:
        self.began.set()
        committed = self._commit(group)
        self.done_count += 1
        return committed


def settle(site: Installation, account: str, hold_id: str, cost_nanos: int) -> CommitFuture:
    outcome = Outcome(usage=Usage(cost_nanos=cost_nanos))
    _, future = site.holds.settle_hold(hold_id, outcome, CommitFuture(), account_id=account)
    assert future is not None
    return future


def test_nobody_is_told_before_the_lock_is_let_go(install: Install, account: str, tmp_path: Path) -> None:
    """A backup tool holds the lock for a moment: requests wait for it, and none is lost or counted twice."""
    site = install()
    customer = Customer(site, account)
    for n in range(3):
        customer.authorize(f"open{n}")
    seen = Seen(site)
    with write_lock(tmp_path / "data"):
        futures = [settle(site, account, f"open{n}", 5) for n in range(3)]
        assert seen.began.wait(30)
        for n in range(3):
            found = site.holds.authorize(
                customer.secret, "POST", "/v1/chat", NO_USAGE, CommitFuture(), hold_id=f"new{n}"
            )
            assert not isinstance(found, Denial)
            futures.append(found[1])
        in_process = CommitFuture()
        site.holds.settle(customer.admit(), Outcome(), in_process)
        futures.append(in_process)
        for future in futures:
            with pytest.raises(Unavailable, match="outcome is unknown"):
                future.wait(0.02)
        assert not any(future.ended for future in futures)
        assert seen.done_count == 0
        # Another connection sees what was committed before, and nothing else.
        assert {hold.hold_id for hold in site.ledger.open_holds()} == {"open0", "open1", "open2"}
        assert site.ledger.counter(account, "budget:b", 0)[0] == 0
    for future in futures:
        future.wait()
    assert {hold.hold_id for hold in site.ledger.open_holds()} == {"new0", "new1", "new2"}
    for n in range(3):
        settle(site, account, f"new{n}", 11).wait()
    assert customer.totals() == (7, 3 * 5 + 7 + 3 * 11)
    assert customer.used() == 3 * 5 + 7 + 3 * 11
    verdict = verify(site)
    assert verdict.ok, verdict


def test_a_lock_held_too_long_is_told_and_loses_nothing(
    install: Install, account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each caller hears what is wrong and may ask again; what cannot be asked again is kept and booked once."""
    monkeypatch.setattr(database, "_BUSY_TIMEOUT_MS", 50)
    site = install()
    customer = Customer(site, account)
    customer.authorize("open")
    kept = customer.admit()
    with write_lock(tmp_path / "data"):
        with pytest.raises(Unavailable, match=r"cannot be written.*locked.*[Tt]ry again"):
            settle(site, account, "open", 5).wait()
        with pytest.raises(Unavailable, match="locked"):
            customer.authorize("new")
        with pytest.raises(Unavailable, match="locked"):
            customer.record("a", "b")
        # Of all that failed only the two holds are left that were open before.
        assert (customer.used(), site.holds.open_count) == (14, 1)
        site.holds.settle(kept, Outcome())
        eventually(lambda: site.gate.refusing is not None)
        refused = site.holds.admit(customer.secret, "POST", "/v1/chat")
        assert isinstance(refused, Denial)
        assert (refused.status, refused.retry_after_s) == (503, 1)
        assert site.ledger.counter(account, "budget:b", 0)[0] == 0
    eventually(lambda: site.gate.refusing is None)
    commit_all(site)
    settle(site, account, "open", 5).wait()
    customer.authorize("new")
    settle(site, account, "new", 11).wait()
    assert customer.record("a", "b") == 2
    assert customer.record("a", "b") == 0
    assert customer.totals() == (5, 5 + 7 + 11 + 2)
    assert (customer.used(), site.holds.open_count, site.committer.lost_tasks) == (25, 0, 0)
    verdict = verify(site)
    assert verdict.ok, verdict
