"""
A commit that hangs, or whose outcome the database does not tell: every caller is answered in bounded time, nothing more
is taken, and what was under way is booked once when the database answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from tests.faults.test_ledger_away import Blocking, Customer, eventually
from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper.adapters.sql import ledger_database
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.errors import HoldEnded, Unavailable
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation
from tollkeeper.ledger import commit_future, committer
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import verify

FIVE = Outcome(usage=Usage(cost_nanos=5))
SIX = Outcome(usage=Usage(cost_nanos=6))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers who give up at once; a group counts as stuck only where a test says so."""
    monkeypatch.setattr(commit_future, "WAIT_S", 0.05)
    monkeypatch.setattr(CommitFuture.wait, "__defaults__", (0.05,))


@pytest.fixture
def customer(site: Installation, account: str) -> Customer:
    found = Customer(site, account)
    eventually(lambda: site.committer.idle)
    return found


def test_who_waits_on_a_thread_is_told_and_the_event_counts_once(customer: Customer) -> None:
    """The outcome is unknown to the caller; the same batch again is a duplicate once it is known."""
    with Blocking(customer.site), pytest.raises(Unavailable, match="unknown: retry with the same id"):
        customer.record("a")
    eventually(lambda: customer.site.committer.idle)
    assert customer.record("a") == 0
    assert customer.totals() == (1, 1)


def test_who_waits_on_a_loop_is_told(customer: Customer) -> None:
    """No client of the server waits for ever, and another that waits on the same commit is told too."""

    async def authorize() -> list[Any]:
        future = CommitFuture(asyncio.get_running_loop())
        found = customer.site.holds.authorize(
            customer.secret, "POST", "/v1/chat", NO_USAGE, future, hold_id="h"
        )
        assert not isinstance(found, Denial)
        waits: list[Awaitable[Any]] = [found[1].committed(), found[1].committed()]
        return await asyncio.gather(*waits, return_exceptions=True)

    with Blocking(customer.site):
        first, second = asyncio.run(authorize())
    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)
    eventually(lambda: customer.site.committer.idle)
    # The hold was made after all: a repeat gets it, and it is held once.
    customer.authorize("h")
    assert customer.used() == 7
    assert customer.site.holds.open_count == 1


def test_a_repeat_of_a_settle_under_way_is_told_to_come_again(customer: Customer) -> None:
    """A client that was told to retry must not hear that its hold has ended; nor may another outcome pass."""
    site = customer.site
    customer.authorize("h")
    with Blocking(site) as blocked:
        _, future = site.holds.settle_hold("h", FIVE, CommitFuture(), account_id=customer.account)
        assert future is not None
        with pytest.raises(Unavailable, match="unknown"):
            future.wait()
        assert blocked.entered.wait(60)
        calls: list[Callable[[], object]] = [
            lambda: site.holds.settle_hold("h", FIVE, CommitFuture(), account_id=customer.account),
            lambda: site.holds.settle_hold("h", SIX, CommitFuture(), account_id=customer.account),
            lambda: site.holds.void_hold("h", CommitFuture(), account_id=customer.account),
        ]
        for call in calls:
            with pytest.raises(Unavailable, match="being ended by another call"):
                call()
    eventually(lambda: site.committer.idle)
    settled, _ = site.holds.settle_hold("h", FIVE, CommitFuture(), account_id=customer.account)
    assert settled.replayed
    with pytest.raises(HoldEnded):
        site.holds.settle_hold("h", SIX, CommitFuture(), account_id=customer.account)
    assert customer.totals() == (1, 5)


def test_while_a_group_is_stuck_nothing_more_is_taken(
    customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New calls are refused at once, whichever door they come by; what was served already is kept and booked."""
    site = customer.site
    customer.authorize("h")
    eventually(lambda: site.committer.idle)
    monkeypatch.setattr(committer, "STUCK_S", 0.0)
    with Blocking(site) as blocked:
        before, served = customer.admit(), customer.admit()
        site.holds.settle(before, Outcome())
        assert blocked.entered.wait(60)
        with pytest.raises(Unavailable, match="cannot be written now"):
            customer.record("a")
        with pytest.raises(Unavailable, match="cannot be written now"):
            site.holds.settle_hold("h", FIVE, CommitFuture(), account_id=customer.account)
        found = site.holds.admit(customer.secret, "POST", "/v1/chat")
        assert isinstance(found, Denial)
        assert found.reason == "unavailable"
        site.holds.settle(served, Outcome())
    monkeypatch.setattr(committer, "STUCK_S", 60.0)
    eventually(lambda: site.committer.idle and site.gate.refusing is None)
    _, future = site.holds.settle_hold("h", FIVE, CommitFuture(), account_id=customer.account)
    assert future is not None
    eventually(lambda: future.ended)
    assert customer.totals() == (3, 19)
    assert verify(site).ok


def test_a_hold_without_an_id_of_its_caller_is_given_back_when_its_caller_is_told_that_it_failed(
    customer: Customer,
) -> None:
    """Nobody can settle or void it: its money must not stay away until it expires."""
    site = customer.site
    ensure_operator_key(site, OPERATOR_KEY)
    app = build_app(site)
    with Blocking(site) as blocked:
        asked = {"key": customer.secret, "method": "POST", "path": "/v1/chat"}
        answer = Api(app)("POST", "/tk/v1/authorize", asked)
        assert answer.status_code == 503, answer.text
        assert blocked.entered.is_set()
        assert (customer.used(), site.holds.open_count) == (0, 0)
        named = Api(app)("POST", "/tk/v1/authorize", {**asked, "id": "h"})
        assert named.status_code == 503, named.text
    eventually(lambda: site.committer.idle)
    # The other one has an id, by which it is settled, voided or asked for again.
    assert [hold.hold_id for hold in site.ledger.open_holds() if hold.account_id == customer.account] == ["h"]
    assert (customer.used(), site.holds.open_count) == (7, 1)
    assert verify(site).ok
    app.close()


def test_a_write_beside_a_commit_in_doubt_is_refused_in_time(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit keeps its turn until the database answers, which may be hours."""
    monkeypatch.setattr(ledger_database, "_TURN_S_MAX", 0.05)
    ledger: Any = site.ledger
    database = ledger._database
    with (
        database._write_lock,
        pytest.raises(Unavailable, match="still at work on another write"),
        database.writing() as tx,
    ):
        tx.execute(sa.text("SELECT 1"))
    with database.writing() as tx:
        assert tx.execute(sa.text("SELECT 1")).scalar_one() == 1
