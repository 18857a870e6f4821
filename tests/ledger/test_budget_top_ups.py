"""
Top-ups of budgets: added once, at once, to the running period or until they are used, and to no other amount.

In May a pool of 1.00 a month is spent; 5.00 more is for May alone, or for as long as something is left of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from tests.gate.test_races import in_threads
from tests.http.conftest import OPERATOR_KEY
from tests.http.conftest import Api as Caller
from tests.ledger.test_budget_scopes import Api
from tollkeeper.domain.catalog import Key, PlanBudget, Subscription
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import BadParameter, Conflict, IdempotencyConflict, NotFound, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.ledger.budget_top_ups import PostedTopUp
from tollkeeper.testing import commit_all, faulty_ledger, lost_commits, unique, verify

MAY, JUNE, JULY, AUGUST = (datetime(2026, month, 10, 12, tzinfo=UTC) for month in (5, 6, 7, 8))
DIME = 10**8
"""0.10: ten of them are the pool of a month."""


class Pool(Api):
    """An account with a pool of 1.00 a month and one key."""

    def __init__(self, site: Any, account: str) -> None:
        super().__init__(site, account)
        self.toll = Tollkeeper(site)
        self.key("k1")
        self.budget("pool", amount=10 * DIME, period="month")

    def dimes(self, count: int = 200, name: str = "k1") -> int:
        """Ask for *count* dimes; return how many were admitted and booked."""
        admitted = 0
        for _ in range(count):
            admission = self.admit(name, DIME)
            if isinstance(admission, Admission):
                self.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=DIME)))
                admitted += 1
        return admitted

    def top_up(self, amount: str | int = "5.00", id: str = "", **fields: Any) -> PostedTopUp:
        budget = fields.pop("budget", "pool")
        return self.toll.top_up(self.account, budget, amount, id=id or unique("t"), **fields)

    def status(self, name: str = "k1", budget: str = "pool") -> tuple[int | None, int]:
        """What the gate says is allowed and used, in dimes."""
        compiled_key = self.site.gate.compiled_key(self.secrets[f"{self.account}-{name}"])
        assert not isinstance(compiled_key, Denial)
        found = self.site.gate.limit_statuses(compiled_key, self.site.clock.now_us())
        (status,) = (status for status in found if status.name == budget)
        assert status.allowed is not None
        return status.allowed // DIME, status.used // DIME


@pytest.fixture
def pool(site, account, clock) -> Iterator[Pool]:
    clock.set(MAY)
    pool = Pool(site, account)
    yield pool
    assert verify(site).ok


# -- M16 ----------------------------------------------------------------------------------------------


def test_a_top_up_is_of_its_month_and_leaves_the_next_one_as_it_is(pool, clock):
    assert pool.dimes() == 10
    posted = pool.top_up("5.00", "t1")
    assert (posted.amount, posted.allowed, posted.unit, posted.repeated) == ("5.00", "6.00", "nanos", False)
    assert (posted.period_starts_at, posted.period_ends_at) == (
        "2026-05-01T00:00:00.000000Z",
        "2026-06-01T00:00:00.000000Z",
    )
    assert pool.status() == (60, 10)
    assert pool.dimes() == 50
    clock.set(JUNE)
    assert pool.status() == (10, 0)
    assert pool.dimes() == 10


def test_what_is_left_goes_on_if_the_top_up_says_so(pool, clock):
    assert pool.dimes() == 10
    pool.top_up("5.00", until_used=True)
    assert pool.dimes(20) == 20
    clock.set(JUNE)
    # 1.00 of its own, and 3.00 of the 5.00.
    assert pool.status() == (40, 0)
    assert pool.dimes(15) == 15
    clock.set(JULY)
    assert pool.status() == (35, 0)
    assert pool.dimes() == 35
    clock.set(AUGUST)
    assert pool.dimes() == 10


def test_a_month_that_stays_within_its_own_amount_draws_nothing(pool, clock):
    pool.top_up("5.00", until_used=True)
    assert pool.dimes(9) == 9
    clock.set(JUNE)
    assert pool.status() == (60, 0)


def test_the_same_id_counts_once_and_another_body_is_refused(pool):
    assert pool.top_up("5.00", "t1").allowed == "6.00"
    again = pool.top_up("5.00", "t1")
    assert (again.repeated, again.allowed) == (True, "6.00")
    for change in ({"amount": "6.00"}, {"until_used": True}):
        with pytest.raises(IdempotencyConflict, match="use another id"):
            pool.top_up(**{"amount": "5.00", "id": "t1", **change})
    pool.budget("other", amount=DIME, period="month")
    with pytest.raises(IdempotencyConflict):
        pool.top_up("5.00", "t1", budget="other")
    assert pool.status()[0] == 60
    assert pool.top_up("0.50", "t2").allowed == "6.50"


def test_the_same_id_of_another_account_is_another_top_up(pool, site):
    other = Pool(site, unique("acct"))
    pool.top_up("5.00", "t1")
    assert other.status()[0] == 10
    assert other.top_up("2.00", "t1").allowed == "3.00"
    assert pool.status()[0] == 60


def test_both_kinds_in_one_month_use_the_months_own_first(pool, clock):
    pool.top_up("1.00")
    pool.top_up("2.00", until_used=True)
    assert pool.dimes(30) == 30
    clock.set(JUNE)
    # 1.00 own and 1.00 of May alone were used first; then 1.00 of the 2.00 that last.
    assert pool.status() == (20, 0)


def test_late_events_and_corrections_change_what_is_left(pool, clock):
    pool.top_up("5.00", until_used=True)
    clock.set(JUNE)
    assert pool.status() == (60, 0)
    id_ = unique("e")
    pool.ingest(id_, MAY, 30 * DIME)
    assert pool.status() == (40, 0)
    pool.site.amend.void(pool.account, id_, unique("c"))
    assert pool.status() == (60, 0)


def test_what_is_held_when_the_month_turns_is_not_given_again(pool, clock):
    """A hold of May may draw on the top-up still; June must not spend the same money."""
    pool.top_up("5.00", until_used=True)
    clock.set(datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC))
    held = pool.admit("k1", 60 * DIME)
    assert isinstance(held, Admission)
    clock.set(datetime(2026, 6, 1, tzinfo=UTC))
    assert pool.status() == (10, 0)
    assert pool.dimes() == 10
    pool.site.holds.settle(held, Outcome(usage=Usage(cost_nanos=20 * DIME)))
    # Before it is committed and after it.
    assert pool.status() == (50, 10)
    commit_all(pool.site)
    assert pool.status() == (50, 10)


def test_a_changed_amount_is_of_its_own_month_and_the_next(pool, clock):
    """What May drew is what went beyond May's 1.00, whatever the budget has since."""
    pool.top_up("5.00", until_used=True)
    assert pool.dimes(30) == 30
    clock.set(JUNE)
    pool.budget("pool", amount=20 * DIME, period="month")
    assert pool.status() == (50, 0)
    clock.set(JULY)
    pool.budget("pool", amount=5 * DIME, period="month")
    assert pool.status() == (35, 0)
    assert pool.dimes(10) == 10
    clock.set(AUGUST)
    assert pool.status() == (30, 0)


# -- which budget -------------------------------------------------------------------------------------


def test_a_plans_budget_is_topped_up_by_its_name(pool, clock):
    pool.planned(PlanBudget(name="monthly", amount=10 * DIME, per="account"))
    posted = pool.top_up("2.00", budget="monthly")
    assert posted.counter == f"plan:{pool.plan}/monthly:account:{pool.account}"
    assert pool.status(budget="monthly")[0] == 30
    assert pool.status()[0] == 10


def test_one_of_several_keys_of_a_plan_is_topped_up_alone(pool):
    pool.planned(PlanBudget(name="mine", amount=10 * DIME, per="key"))
    pool.key("k2")
    with pytest.raises(BadParameter, match="key="):
        pool.top_up("2.00", budget="mine")
    assert pool.top_up("2.00", budget="mine", key=f"{pool.account}-k2", plan=pool.plan).allowed == "3.00"
    assert (pool.status("k1", "mine")[0], pool.status("k2", "mine")[0]) == (10, 30)


def test_the_keys_of_a_subscription_share_its_top_up(pool):
    pool.planned(PlanBudget(name="pool2", amount=10 * DIME, per="subscription"))
    for name in ("s1", "s2"):
        pool.put(Subscription(id=name, account=pool.account, plan=pool.plan, started_at=MAY))
    for name, subscription in (("a", "s1"), ("b", "s1"), ("c", "s2")):
        pool.put(Key(id=f"{pool.account}-{name}", account=pool.account, subscription=subscription))
    pool.top_up("1.00", budget="pool2", subscription="s1")
    assert [pool.status(name, "pool2")[0] for name in ("a", "b", "c")] == [20, 20, 10]


def test_what_cannot_be_topped_up_is_told(pool):
    pool.planned(PlanBudget(name="open", amount=None, per="account"))
    pool.budget("calls", amount=5, unit="requests", period="5h")
    for budget, fields, error in (
        ("nothing", {}, NotFound),
        ("pool", {"plan": "nothing"}, NotFound),
        ("open", {}, Conflict),
        ("pool", {"amount": "5"}, BadParameter),
        ("pool", {"amount": "0.00"}, BadParameter),
        ("pool", {"amount": "-1.00"}, BadParameter),
        ("pool", {"amount": "9223372036.00"}, BadParameter),
        ("pool", {"amount": "five"}, BadParameter),
        ("pool", {"amount": 5}, BadParameter),
        ("pool", {"id": "not an id"}, BadParameter),
        ("calls", {"amount": "1.5"}, BadParameter),
        ("calls", {"amount": "5"}, Conflict),
    ):
        with pytest.raises(error):
            pool.top_up(budget=budget, **fields)
    with pytest.raises(NotFound):
        pool.toll.top_up(unique("acct"), "pool", "5.00", id="t1")
    assert pool.status()[0] == 10


def test_a_period_from_first_use_is_topped_up_while_it_runs_or_until_used(pool, clock):
    pool.budget("five", amount=10 * DIME, period="5h")
    with pytest.raises(Conflict, match="until_used"):
        pool.top_up("1.00", budget="five")
    assert pool.top_up("1.00", budget="five", until_used=True).period_starts_at is None
    pool.budget("pool", amount=10**12, period="month")
    assert pool.status(budget="five") == (20, 0)
    assert pool.dimes() == 20
    pool.top_up("0.50", budget="five")
    assert pool.dimes() == 5
    clock.advance(seconds=5 * 3600)
    assert pool.dimes() == 10


def test_requests_are_topped_up_in_requests(pool):
    pool.budget("calls", amount=3, unit="requests", period="day")
    assert pool.dimes(5) == 3
    assert pool.top_up("3", budget="calls").allowed == "6"
    assert pool.top_up(1, budget="calls").allowed == "7"
    assert pool.dimes(20) == 4


# -- races, restarts, failures ------------------------------------------------------------------------


def test_top_ups_and_requests_that_race_never_pass_the_sum(pool):
    calls: list[Any] = []
    for number in range(40):
        calls += [partial(pool.admit, "k1", DIME) for _ in range(5)]
        if number % 4 == 0:
            calls.append(partial(pool.top_up, "0.50", f"t{number % 8}"))
    found = in_threads(calls)
    admitted = [answer for answer in found if isinstance(answer, Admission)]
    # Two ids, each once.
    assert len(admitted) <= 20
    assert pool.status() == (20, len(admitted))
    more = [pool.admit("k1", DIME) for _ in range(40)]
    admitted += [answer for answer in more if isinstance(answer, Admission)]
    assert len(admitted) == 20
    for admission in admitted:
        pool.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=DIME)))


def test_a_restart_forgets_no_top_up(install, account, clock):
    clock.set(MAY)
    site = install()
    pool = Pool(site, account)
    pool.top_up("5.00", "lasting", until_used=True)
    pool.top_up("1.00", "may")
    assert pool.dimes(30) == 30
    commit_all(site)
    site.close()
    site = pool.site = install()
    pool.toll = Tollkeeper(site)
    assert pool.status() == (70, 30)
    assert pool.top_up("1.00", "may").repeated
    site.close()
    clock.set(JUNE)
    site = pool.site = install()
    pool.toll = Tollkeeper(site)
    assert pool.status() == (50, 0)
    assert pool.dimes() == 50
    assert verify(site).ok


def test_a_top_up_whose_outcome_is_unknown_counts_once_when_it_is_repeated(pool):
    with faulty_ledger(pool.site) as ledger:
        ledger.refuse()
        with pytest.raises(Unavailable):
            pool.top_up("5.00", "t1")
    assert pool.status()[0] == 10
    with lost_commits(pool.site):
        pool.top_up("5.00", "t1")
    assert pool.status()[0] == 60
    with faulty_ledger(pool.site) as ledger:
        ledger.lose_replies()
        with pytest.raises(Unavailable):
            pool.top_up("2.00", "t2")
    assert pool.status()[0] == 80
    assert pool.top_up("2.00", "t2").repeated


def test_verify_finds_a_top_up_that_the_gate_does_not_know(pool, monkeypatch):
    pool.top_up("5.00")
    assert pool.status()[0] == 60
    monkeypatch.setattr(pool.site.gate.counters, "topped_up", lambda *at: None)
    pool.top_up("1.00")
    verdict = verify(pool.site)
    assert [(d.expected, d.found) for d in verdict.differences] == [(60 * DIME, 50 * DIME)]
    monkeypatch.undo()
    pool.site.gate.counters.topped_up(pool.account, "budget:pool")


# -- over HTTP and on the command line ----------------------------------------------------------------


def test_over_http_only_the_operator_tops_up(pool):
    ensure_operator_key(pool.site, OPERATOR_KEY)
    app = build_app(pool.site)
    call = Caller(app)
    path = f"/tk/v1/budgets/pool/top-up?account={pool.account}"
    made = call("POST", path, {"id": "t1", "amount": "5.00"})
    assert made.status_code == 201, made.text
    assert (made.json()["allowed"], made.json()["repeated"]) == ("6.00", False)
    assert pool.status()[0] == 60
    again = call(
        "POST", "/tk/v1/budgets/pool/top-up", {"account": pool.account, "id": "t1", "amount": "5.00"}
    )
    assert (again.status_code, again.json()["repeated"]) == (200, True)
    other = call("POST", path, {"id": "t1", "amount": "6.00"})
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    for body in ({"id": "t2"}, {"id": "t2", "amount": 5}, {"id": "t2", "amount": "5.00", "left": True}):
        assert call("POST", path, body).status_code == 400
    assert call("POST", "/tk/v1/budgets/none/top-up", {"id": "t", "amount": "1"}).status_code == 400
    missing = call("POST", f"/tk/v1/budgets/none/top-up?account={pool.account}", {"id": "t", "amount": "1"})
    assert missing.status_code == 404
    pool.key("mk", role="management", plan=None)
    mine = pool.secrets[f"{pool.account}-mk"]
    assert call("POST", path, {"id": "t3", "amount": "5.00"}, key=mine).status_code == 403
    assert pool.status()[0] == 60
    app.close()


def test_thresholds_of_webhooks_are_those_of_the_amount_in_force(pool):
    """With 5.00 more, 1.00 is not all of the month's budget any more."""
    top_ups, used, _ = pool.site.directory.top_ups(
        pool.site.directory.wanted_scopes(pool.account)["budget:pool"][0]
    )
    assert (top_ups.total, used) == (0, {})
    pool.top_up("1.00")
    scope = pool.site.directory.wanted_scopes(pool.account)["budget:pool"][0]
    top_ups, used, _ = pool.site.directory.top_ups(scope)
    start_us, _ = scope.span_us(pool.site.clock.now_us())
    assert top_ups.added(start_us, scope.amount, used) == 10 * DIME
    clock_after = timedelta(days=31)
    assert top_ups.added(scope.span_us(start_us + int(clock_after.total_seconds() * 10**6))[0], 0, used) == 0


@pytest.mark.parametrize("until_used", [False, True])
def test_money_is_no_top_up_of_a_budget_that_counts_requests_now(pool, until_used):
    pool.top_up("5.00", until_used=until_used)
    pool.site.manage.delete("budgets", "pool", pool.account)
    pool.budget("pool", amount=2, unit="requests", period="month")
    assert pool.dimes() == 2
    assert pool.top_up("3", until_used=until_used).allowed == "5"
    assert pool.dimes() == 3
    # What was bought in money is there when the budget counts money again, and only that.
    pool.site.manage.delete("budgets", "pool", pool.account)
    pool.budget("pool", amount=10 * DIME, period="month")
    assert pool.status() == (60, 5)


def test_a_conflict_says_which_top_up_has_the_id(pool):
    pool.budget("user", amount=DIME, period="day", per="tag.user")
    pool.top_up("0.50", "t1", budget="user", values={"tag.user": "u1"}, until_used=True)
    with pytest.raises(IdempotencyConflict, match=r"of 0\.50 to budget user \(value u1\), until it is used"):
        pool.top_up("0.50", "t1", budget="user", values={"tag.user": "u2"}, until_used=True)
    pool.top_up("0.50", "t2")
    with pytest.raises(IdempotencyConflict, match=r"to budget pool, for its period alone"):
        pool.top_up("0.50", "t2", until_used=True)
