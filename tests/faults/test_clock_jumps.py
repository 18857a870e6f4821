"""The clock jumps, forward and back: no limit is overshot, nothing counts twice, each hold ends once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import Install
from tests.effort import effort
from tests.faults.test_ledger_away import Customer
from tests.faults.test_write_lock import settle
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import HoldEnded
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import ManualClock, commit_all, installation, set_up, unique, verify

HOUR_S, DAY_S = 3_600, 86_400
ALGORITHMS = ("fixed", "sliding")
AMOUNT = 3
WINDOW_S = HOUR_S
BUDGET = 6
HOLD_S = 600


class Limited:
    """A key that may make `AMOUNT` requests per hour, and its account's budget of 100 requests in all."""

    def __init__(self, site: Installation, account: str, algorithm: Any, *, budget: int = 100) -> None:
        self.site = site
        self.account = account
        self.denied_count = 0
        self.secret = set_up(
            site,
            Account(id=account, name="A"),
            Key(
                id=f"{account}.k",
                account=account,
                limits=[Limit(name="hourly", amount=AMOUNT, window="1h", algorithm=algorithm)],
            ),
            Budget(id="b", account=account, amount=budget, unit="requests", period="total"),
            Route(id="chat", method="POST", path="/v1/chat", price_nanos=7),
        )[f"{account}.k"]

    def authorize(self, hold_id: str) -> bool:
        found = self.site.holds.authorize(
            self.secret, "POST", "/v1/chat", NO_USAGE, CommitFuture(), hold_id=hold_id, ttl_s=HOLD_S
        )
        if isinstance(found, Denial):
            assert found.reason in ("rate_limited", "budget_exhausted"), found
            self.denied_count += 1
            return False
        found[1].wait()
        return True

    def recorded(self) -> int:
        """Requests that were settled, after ledger and usage answer were seen to agree, denials included."""
        verdict = verify(self.site)
        assert verdict.ok, verdict
        query = UsageQuery(
            account_id=self.account, from_us=0, to_us=2**52, measures=("requests", "cost_nanos")
        )
        answer = self.site.reports.usage(query)
        assert answer.complete
        count = self.site.ledger.counter(self.account, "budget:b", 0)[0]
        assert answer.totals == {"requests": count + self.denied_count, "cost_nanos": 7 * count}
        return count


@pytest.mark.drawn
@pytest.mark.parametrize("back_s", [HOUR_S, DAY_S])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_set_back_opens_no_window_again(
    install: Install, account: str, clock: ManualClock, algorithm: str, back_s: int, restart: bool
) -> None:
    """Otherwise a moved clock or a bad time server gives a limit twice; a restart changes nothing."""
    site = install()
    limited = Limited(site, account, algorithm)
    assert [limited.authorize(f"h{n}") for n in range(4)] == [True, True, True, False]
    clock.advance(seconds=-back_s)
    if restart:
        site.close()
        site = limited.site = install()
    assert not limited.authorize("again")
    clock.advance(seconds=back_s)
    assert not limited.authorize("still")
    for n in range(3):
        settle(site, account, f"h{n}", 7).wait()
    assert limited.recorded() == 3
    clock.advance(seconds=2 * HOUR_S)
    assert limited.authorize("later")
    # A window that was left by a jump is not taken up again by the way back.
    clock.advance(seconds=-DAY_S)
    assert [limited.authorize(f"l{n}") for n in range(3)] == [True, True, False]


def test_a_hold_that_a_jump_expires_ends_once(install: Install, account: str, clock: ManualClock) -> None:
    """Its room is given back once; that the clock returns opens it no second time."""
    site = install()
    customer = Customer(site, account)
    for hold_id in ("a", "b"):
        customer.authorize(hold_id)
    clock.advance(seconds=-DAY_S)
    assert (site.holds.expire(), customer.used()) == (0, 14)
    clock.advance(seconds=2 * DAY_S)
    site.holds.expire()
    commit_all(site)
    assert (site.holds.open_count, customer.used(), site.ledger.open_holds()) == (0, 0, [])
    clock.advance(seconds=-DAY_S)
    with pytest.raises(HoldEnded):
        customer.authorize("a")
    # Work that was done all the same is booked, late, once.
    settle(site, account, "b", 5).wait()
    settled, future = site.holds.settle_hold("b", _outcome(5), CommitFuture(), account_id=account)
    assert (settled.replayed, future) == (True, None)
    site.holds.expire()
    assert customer.totals() == (1, 5)
    assert customer.used() == 5
    assert verify(site).ok


def _outcome(cost_nanos: int) -> Outcome:
    return Outcome(usage=Usage(cost_nanos=cost_nanos))


@pytest.mark.drawn(1)
@pytest.mark.parametrize("jump_s", [DAY_S, -HOUR_S, -DAY_S])
def test_a_daily_budget_is_not_spent_twice_by_a_jump(
    install: Install, account: str, clock: ManualClock, jump_s: int
) -> None:
    """Each day has its own room, and a day that is come back to has what it had left."""
    site = install()
    customer = Customer(site, account)
    set_up(site, Budget(id="daily", account=account, amount=14, period="day"))
    # So that the budget was in force on every day that the clock comes to.
    clock.advance(seconds=3 * DAY_S)
    held = customer.admit()
    customer.authorize("h")
    clock.advance(seconds=jump_s)
    same_day = jump_s == -HOUR_S
    for n in range(0 if same_day else 2):
        customer.authorize(f"other{n}")
    found = site.holds.admit(customer.secret, "POST", "/v1/chat")
    assert isinstance(found, Denial)
    assert found.limit == "daily"
    site.holds.settle(held, _outcome(7))
    clock.advance(seconds=-jump_s)
    assert isinstance(site.holds.admit(customer.secret, "POST", "/v1/chat"), Denial)
    assert customer.record("e", "e") == 1
    clock.advance(seconds=jump_s)
    assert customer.record("f") == 1
    clock.advance(seconds=-jump_s)
    settle(site, account, "h", 7).wait()
    commit_all(site)
    verdict = verify(site)
    assert verdict.ok, verdict
    daily = [used for (at, _), used in site.ledger.counter_rows(account).items() if at == "budget:daily"]
    assert sorted(daily) == ([16] if same_day else [1, 15])


def test_a_day_that_was_left_long_ago_is_read_back(
    install: Install, account: str, clock: ManualClock
) -> None:
    """Of the days between nothing is open, so the first was evicted from memory; the ledger has what it spent."""
    site = install()
    customer = Customer(site, account)
    set_up(site, Budget(id="daily", account=account, amount=14, period="day"))
    clock.advance(seconds=DAY_S)
    for day in range(4):
        for n in range(2):
            customer.authorize(f"d{day}.{n}")
            settle(site, account, f"d{day}.{n}", 7).wait()
        clock.advance(seconds=DAY_S)
    clock.advance(seconds=-4 * DAY_S)
    for _ in range(4):
        found = site.holds.admit(customer.secret, "POST", "/v1/chat")
        assert isinstance(found, Denial)
        assert found.limit == "daily"
        clock.advance(seconds=DAY_S)
    verdict = verify(site)
    assert verdict.ok, verdict


JUMPS = st.sampled_from([1, 60, HOLD_S, HOUR_S, DAY_S, -1, -60, -HOUR_S, -DAY_S])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("jump"), JUMPS),
        st.tuples(st.sampled_from(["authorize", "authorize", "settle", "void", "expire"]), st.integers(0, 7)),
    ),
    min_size=10,
    max_size=30,
)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_order_of_jumps_overshoots(
    tmp_path: Path, usage_store: ClickHouseUsageStore, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock does between the calls, plain lists of what was admitted and settled agree."""
    # Holds expire when a step says so.
    monkeypatch.setattr("tollkeeper.maintenance.rounds.ROUND_S", 3_600)
    clock = ManualClock()
    with installation(tmp_path / "data", clock=clock, store=usage_store) as site:

        @seed(20260318)
        @settings(
            max_examples=effort(2, 12), deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(STEPS)
        def run(steps: list[tuple[str, int]]) -> None:
            Jumping(site, clock, algorithm).run(steps)

        run()


class Jumping:
    """
    One account and the oracle: lists of its holds.

    The time that a limit goes by is the latest that it was shown: in no stretch of it as long as the window are
    there more requests, voided and expired ones aside, than the limit allows.
    """

    def __init__(self, site: Installation, clock: ManualClock, algorithm: str) -> None:
        self.site = site
        self.clock = clock
        self.algorithm = algorithm
        self.account = unique("acct")
        self.limited = Limited(site, self.account, algorithm, budget=BUDGET)
        self.shown_us = 0
        self.counted_us: dict[str, int] = {}
        self.expires_us: dict[str, int] = {}
        self.expired: list[str] = []
        self.settled_count = 0

    def run(self, steps: list[tuple[str, int]]) -> None:
        for step, n in steps:
            if step == "jump":
                self.clock.advance(seconds=n)
            elif step == "authorize":
                self.authorize()
            elif step == "expire":
                self.expire()
            elif step == "settle":
                self.settle(n)
            else:
                self.void(n)
            assert self.site.holds.open_count == len(self.expires_us)
            self.check_limit()
        assert self.limited.recorded() == self.settled_count
        for hold_id in list(self.expires_us):
            self.void(0)
            assert hold_id not in self.expires_us
        assert self.limited.recorded() == self.settled_count

    def authorize(self) -> None:
        hold_id = unique("h")
        self.shown_us = max(self.shown_us, self.clock.now_us())
        room = BUDGET - self.settled_count - len(self.expires_us)
        if self.limited.authorize(hold_id):
            assert room > 0
            self.counted_us[hold_id] = self.shown_us
            self.expires_us[hold_id] = self.clock.now_us() + HOLD_S * US_PER_S

    def expire(self) -> None:
        due = [id_ for id_, at_us in self.expires_us.items() if at_us <= self.clock.now_us()]
        assert self.site.holds.expire() == len(due)
        for hold_id in due:
            del self.expires_us[hold_id], self.counted_us[hold_id]
        self.expired += due

    def settle(self, n: int) -> None:
        """Settle an open hold, or one that expired; and again, which changes nothing."""
        holds = [*self.expires_us, *self.expired]
        if not holds:
            return
        hold_id = holds[n % len(holds)]
        commit_all(self.site)
        settle(self.site, self.account, hold_id, 7).wait()
        again = self.site.holds.settle_hold(hold_id, _outcome(7), CommitFuture(), account_id=self.account)
        assert (again[0].replayed, again[1]) == (True, None)
        if self.expires_us.pop(hold_id, None) is None:
            self.expired.remove(hold_id)
        self.settled_count += 1
        assert self.site.ledger.counter(self.account, "budget:b", 0)[0] == self.settled_count

    def void(self, n: int) -> None:
        """Void an open hold; what was done with it cannot be settled any more."""
        if not self.expires_us:
            return
        hold_id = list(self.expires_us)[n % len(self.expires_us)]
        _, future = self.site.holds.void_hold(hold_id, CommitFuture(), account_id=self.account)
        assert future is not None
        future.wait()
        with pytest.raises(HoldEnded):
            self.site.holds.settle_hold(hold_id, _outcome(7), CommitFuture(), account_id=self.account)
        del self.expires_us[hold_id], self.counted_us[hold_id]

    def check_limit(self) -> None:
        width_us = WINDOW_S * US_PER_S
        for start_us in self.counted_us.values():
            if self.algorithm == "fixed":
                start_us -= start_us % width_us
            inside = [at for at in self.counted_us.values() if start_us <= at < start_us + width_us]
            assert len(inside) <= AMOUNT
