"""
A budget counts its events, all of them and no others, whenever it is set, changed or removed.

Requests go on meanwhile: in the end the counter of the ledger, what the gate decides by and the sum of the
events are one number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.faults.test_ledger_away import eventually
from tollkeeper.domain.catalog import (
    Account,
    Budget,
    Grant,
    Key,
    Limit,
    Plan,
    PlanBudget,
    Project,
    Route,
    Subscription,
)
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_text
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.budget_scopes import SUM_S_MAX
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.meter.decode import decode_events
from tollkeeper.meter.dedupe import dedupe
from tollkeeper.testing import Faulty, commit_all, set_up, verify

PRICE = 10


class Api:
    """An account with two projects; keys are added by the tests."""

    def __init__(self, site: Installation, account: str) -> None:
        self.site = site
        self.account = account
        self.plan = f"{account}-plan"
        self.secrets: dict[str, str] = {}
        self.put(
            Account(id=account, name="Acme"),
            Project(id="web", account=account),
            Project(id="app", account=account),
            Plan(slug=self.plan),
            Route(id="chat", method="POST", path="/chat", price_nanos=PRICE),
        )

    def put(self, *entries: Any) -> None:
        self.secrets.update(set_up(self.site, *entries))

    def key(self, name: str, **fields: Any) -> Key:
        """Put a key; its id is made unique by the account's."""
        key = Key(**{"id": f"{self.account}-{name}", "account": self.account, "plan": self.plan, **fields})
        self.put(key)
        return key

    def budget(self, id_: str = "b", amount: int = 10**9, period: str = "day", **fields: Any) -> None:
        self.put(Budget(**{"id": id_, "account": self.account, "amount": amount, "period": period, **fields}))

    def planned(self, *budgets: PlanBudget, slug: str = "", limits: list[Limit] | None = None) -> None:
        self.put(Plan(slug=slug or self.plan, budgets=list(budgets), limits=limits or []))

    def admit(self, name: str, nanos: int = PRICE) -> Admission | Denial:
        secret = self.secrets[f"{self.account}-{name}"]
        return self.site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=nanos))

    def spend(self, name: str, nanos: int = PRICE) -> None:
        admission = self.admit(name, nanos)
        assert isinstance(admission, Admission), admission
        self.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=nanos)))

    def ingest(self, id_: str, at: datetime, nanos: int, **fields: Any) -> None:
        event = {"id": id_, "time": to_text(at), "account": self.account, "cost_nanos": nanos, **fields}
        result = self.site.ingest.take(decode_events([event], now_us=self.site.clock.now_us()))
        assert result.accepted == 1, result

    def counter(self, counter_id: str = "budget:b") -> int:
        """What the ledger has in the current period of a budget in force."""
        commit_all(self.site)
        scope = self.site.directory.wanted_scopes(self.account)[counter_id][0]
        span = self.site.directory.period_us(scope, self.site.clock.now_us())
        if span is None:
            return 0
        start_us, _ = span
        return self.site.ledger.counter(self.account, counter_id, start_us)[0]

    def used(self, name: str, limit: str = "b") -> int | None:
        """What the gate has used of a limit of a key; None when it has no such limit."""
        compiled_key = self.site.gate.compiled_key(self.secrets[f"{self.account}-{name}"])
        assert not isinstance(compiled_key, Denial)
        statuses = self.site.gate.limit_statuses(compiled_key, self.site.clock.now_us())
        return next((status.used for status in statuses if status.name == limit), None)


@pytest.fixture
def api(site, account) -> Iterator[Api]:
    api = Api(site, account)
    yield api
    assert verify(site).ok


@contextmanager
def going_on(site: Installation, call: Callable[[int], None], threads: int = 3) -> Iterator[None]:
    """Let *threads* threads call again and again while the block runs, and some times before and after it."""
    stop = threading.Event()
    done = [threading.Semaphore(0) for _ in range(threads)]
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            while not stop.is_set():
                call(index)
                # Each waits for its commit now and then, so that no more than a few wait in the queue.
                commit_all(site)
                done[index].release()
        except BaseException as exc:
            failures.append(exc)
            for semaphore in done:
                semaphore.release(1000)

    def some_calls() -> None:
        for semaphore in done:
            for _ in range(10):
                semaphore.acquire()

    running = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for thread in running:
        thread.start()
    try:
        some_calls()
        yield
        for semaphore in done:
            while semaphore.acquire(blocking=False):
                pass
        some_calls()
    finally:
        stop.set()
        for thread in running:
            thread.join()
    assert not failures, failures


# -- set in the middle of a period -------------------------------------------------------------------


def test_a_new_budget_starts_from_what_was_spent_already(api):
    api.key("k1")
    for _ in range(7):
        api.spend("k1")
    api.budget(amount=100)
    assert (api.counter(), api.used("k1")) == (70, 70)
    for _ in range(3):
        api.spend("k1")
    denial = api.admit("k1")
    assert (denial.limit, denial.used, denial.allowed) == ("b", 100, 100)


def test_a_new_budget_counts_its_own_period_only(api, clock):
    clock.advance(seconds=-86_400)
    api.key("k1")
    api.spend("k1", 500)
    api.ingest(f"{api.account}-old", clock.now() - timedelta(days=40), 70)
    commit_all(api.site)
    clock.advance(seconds=86_400)
    api.spend("k1", 30)
    api.budget("day")
    api.budget("month", period="month")
    assert (api.counter("budget:day"), api.counter("budget:month")) == (30, 530)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "scope",
    [{}, {"project": "web"}, {"key": "k1"}, {"unit": "requests"}, {"project": "web", "unit": "requests"}],
)
def test_a_budget_set_while_requests_go_on_misses_none_and_counts_none_twice(api, scope):
    api.key("k1", project="web")
    api.key("k2", project="app")
    api.key("k3")
    if "key" in scope:
        scope = {**scope, "key": f"{api.account}-{scope['key']}"}
    with going_on(api.site, lambda index: api.spend(f"k{index + 1}", PRICE + index)):
        api.budget(**scope)
    assert verify(api.site).ok
    found = {api.used(name) for name in ("k1", "k2", "k3")} - {None}
    assert found == {api.counter()}
    assert api.counter() > 0


def test_budgets_that_come_and_go_while_requests_go_on_end_up_exact(api):
    """Whichever budgets a request was admitted under, it is charged to those in force when it is committed."""
    api.key("k1", project="web")
    api.key("k2", type="credit")
    api.put(Grant(id="g", account=api.account, amount_nanos=10**12))
    kept: list[Admission] = []

    def call(index: int) -> None:
        name = "k2" if index == 1 else "k1"
        admission = api.admit(name)
        assert isinstance(admission, Admission)
        if index == 2:
            # Some settle only after several changes.
            kept.append(admission)
            if len(kept) < 30:
                return
            admission = kept.pop(0)
        api.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=PRICE + index)))

    with going_on(api.site, call):
        for number in range(6):
            api.budget("b", period=("day", "month", "5h")[number % 3])
            api.budget("w", project="web")
            if number % 2:
                api.site.manage.delete("budgets", "b", api.account)
            api.site.manage.delete("budgets", "w", api.account)
        api.budget("b", period="week")
        api.budget("w", project="web")
    for admission in kept:
        api.site.holds.settle(admission, Outcome())
    kept.clear()
    assert verify(api.site).ok
    assert (api.used("k1"), api.used("k1", "w")) == (api.counter(), api.counter("budget:w"))
    balance = next(s for s in statuses(api, "k2") if s.kind == "credit")
    book, _ = api.site.ledger.book(api.account)
    assert (balance.used, balance.allowed) == (0, 10**12 - book.spent_nanos)


def statuses(api: Api, name: str) -> list[LimitStatus]:
    compiled_key = api.site.gate.compiled_key(api.secrets[f"{api.account}-{name}"])
    assert not isinstance(compiled_key, Denial)
    return api.site.gate.limit_statuses(compiled_key, api.site.clock.now_us())


def test_what_is_admitted_before_a_budget_is_set_is_charged_to_it(api):
    api.key("k1")
    admission = api.admit("k1")
    api.budget()
    assert api.used("k1") == PRICE
    api.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=25)))
    assert (api.counter(), api.used("k1")) == (25, 25)


def test_what_is_held_when_its_budget_is_removed_leaves_no_trace_in_the_next(api):
    api.key("k1")
    api.budget(amount=100)
    held = [api.admit("k1", 30) for _ in range(3)]
    api.site.manage.delete("budgets", "b", api.account)
    api.site.holds.settle(held[0], Outcome(usage=Usage(cost_nanos=5)))
    api.budget(amount=100)
    # The other two are under way still, and were held of this very counter.
    assert (api.counter(), api.used("k1")) == (5, 65)
    api.site.holds.void(held[1])
    api.site.holds.settle(held[2], Outcome(usage=Usage(cost_nanos=6)))
    assert (api.counter(), api.used("k1")) == (11, 11)
    assert isinstance(api.admit("k1", 89), Admission)


def test_a_budget_that_was_away_counts_what_was_spent_meanwhile(api):
    api.key("k1")
    api.budget()
    api.spend("k1", 100)
    api.site.manage.delete("budgets", "b", api.account)
    assert api.used("k1") is None
    api.spend("k1", 30)
    api.budget()
    assert (api.counter(), api.used("k1")) == (130, 130)


def test_a_budget_of_the_same_id_may_have_another_unit(api):
    """Unlike a changed one: the counter has nanos in it, and must not be read as tokens."""
    api.key("k1")
    api.budget()
    api.spend("k1", 100)
    api.site.manage.delete("budgets", "b", api.account)
    api.budget(unit="requests")
    api.spend("k1", 100)
    assert (api.counter(), api.used("k1")) == (2, 2)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("periods", [("month", "day"), ("day", "month"), ("day", "5h"), ("week", "total")])
def test_a_changed_period_counts_what_lies_in_it(api, clock, periods):
    api.key("k1")
    clock.advance(seconds=-3 * 86_400)
    api.budget(period=periods[0])
    api.spend("k1", 100)
    commit_all(api.site)
    clock.advance(seconds=3 * 86_400)
    api.spend("k1", 7)
    api.budget(period=periods[1])
    expected = 107 if periods[1] in ("month", "total") else 7
    assert (api.counter(), api.used("k1")) == (expected, expected)


def test_on_the_first_of_a_month_a_day_counts_what_the_month_did(api, clock):
    """Both begin at one instant, so both are one row of the ledger."""
    clock.set(datetime(2026, 3, 1, 8, tzinfo=UTC))
    api.key("k1")
    api.budget(period="month")
    held = api.admit("k1", 40)
    api.spend("k1", 100)
    api.budget(period="day")
    assert (api.counter(), api.used("k1")) == (100, 140)
    api.site.holds.settle(held, Outcome(usage=Usage(cost_nanos=30)))
    assert (api.counter(), api.used("k1")) == (130, 130)


def test_a_raised_or_lowered_amount_applies_at_once_and_forgets_nothing(api):
    api.key("k1")
    api.budget(amount=20)
    api.spend("k1", 20)
    assert api.admit("k1").used == 20
    api.budget(amount=30)
    api.spend("k1", 10)
    api.budget(amount=5)
    assert (api.admit("k1").used, api.admit("k1").allowed) == (30, 5)


def test_events_ahead_of_the_clock_are_counted_when_their_period_comes(api, clock):
    """A budget of minutes, and an event two minutes ahead: its period begins after the budget was set."""
    api.key("k1")
    api.ingest(f"{api.account}-ahead", clock.now() + timedelta(minutes=2), 44)
    api.budget(period="1m")
    assert api.counter() == 0
    clock.advance(seconds=120)
    assert (api.counter(), api.used("k1")) == (44, 44)


def test_a_late_event_changes_the_period_that_it_lies_in(api, clock):
    api.key("k1")
    api.budget()
    api.spend("k1", 10)
    commit_all(api.site)
    yesterday = clock.now()
    clock.advance(seconds=86_400)
    api.spend("k1", 3)
    api.ingest(f"{api.account}-late", yesterday, 5, key_id=f"{api.account}-k1")
    commit_all(api.site)
    assert sorted(api.site.ledger.counter_rows(api.account).values()) == [3, 15]


# -- whose events ------------------------------------------------------------------------------------


def test_budgets_of_account_project_and_key_count_theirs(api):
    first, second = api.key("k1", project="web"), api.key("k2", project="web")
    api.key("k3", project="app")
    for number, name in enumerate(("k1", "k2", "k3"), 1):
        api.spend(name, number)
    api.ingest(f"{api.account}-keyless", api.site.clock.now(), 10, project="web")
    api.budget("account")
    api.budget("web", project="web")
    api.budget("first", key=first.id)
    for number, name in enumerate(("k1", "k2", "k3"), 1):
        api.spend(name, 100 * number)
    api.ingest(f"{api.account}-keyless-2", api.site.clock.now(), 1000, project="web")
    assert api.counter("budget:account") == 606 + 1010
    assert api.counter("budget:web") == 303 + 1010
    assert api.counter("budget:first") == 101
    assert [api.used(name, "first") for name in ("k1", "k2", "k3")] == [101, None, None]
    assert second.id != first.id


def test_the_tightest_budget_decides(api):
    key = api.key("k1", project="web")
    api.budget("account", amount=1000)
    api.budget("web", amount=100, project="web")
    api.budget("mine", amount=50, key=key.id)
    denial = api.admit("k1", 51)
    assert (denial.limit, denial.largest_fit) == ("mine", 50)
    api.spend("k1", 50)
    assert api.admit("k1", 1).limit == "mine"
    api.key("k2", project="web")
    assert (api.admit("k2", 51).limit, api.admit("k2", 51).largest_fit) == ("web", 50)


def test_credit_and_budget_bind_together(api):
    api.key("k1", type="credit")
    api.put(Grant(id="g", account=api.account, amount_nanos=100))
    api.budget(amount=60)
    assert (api.admit("k1", 61).limit, api.admit("k1", 61).largest_fit) == ("b", 60)
    api.spend("k1", 40)
    api.budget(amount=500)
    denial = api.admit("k1", 61)
    assert (denial.limit, denial.reason, denial.largest_fit) == ("credit", "credit_exhausted", 60)
    api.spend("k1", 60)
    assert (api.counter(), api.site.ledger.counter(api.account, "credit", 0)[0]) == (100, 100)


# -- plans -------------------------------------------------------------------------------------------


def test_a_budget_added_to_a_plan_binds_the_keys_on_it_from_what_they_spent(api):
    api.key("k1")
    api.key("k2")
    api.key("other", plan=None)
    for name in ("k1", "k1", "k2", "other"):
        api.spend(name)
    api.planned(PlanBudget(name="each", amount=25, per="key", period="day"))
    assert [api.used(name, "each") for name in ("k1", "k2", "other")] == [20, 10, None]
    assert api.admit("k1").limit == "each"
    api.planned(
        PlanBudget(name="each", amount=30, per="key", period="day"),
        PlanBudget(name="all", amount=100, per="account", period="day"),
    )
    assert (api.used("k1", "each"), api.used("k2", "all")) == (20, 30)


def test_the_keys_of_a_subscription_share_its_pool(api):
    started_at = datetime(2026, 1, 5, tzinfo=UTC)
    api.planned(PlanBudget(name="pool", amount=50, period="anniversary"))
    api.put(Subscription(id="s1", account=api.account, plan=api.plan, started_at=started_at))
    for name in ("k1", "k2"):
        api.key(name, plan=None, subscription="s1")
    api.key("k3", plan=None)
    api.spend("k1", 30)
    api.spend("k2", 15)
    api.spend("k3", 99)
    assert (api.used("k1", "pool"), api.used("k2", "pool"), api.used("k3", "pool")) == (45, 45, None)
    denial = api.admit("k2", 6)
    assert (denial.limit, denial.largest_fit) == ("pool", 5)
    assert api.counter(f"plan:{api.plan}/pool:subscription:s1") == 45


def test_a_key_that_changes_its_plan_takes_its_usage_along(api):
    """The pool of a plan is what the keys on it have spent: who leaves counts no more, who comes counts whole."""
    other = f"{api.account}-other"
    budget = PlanBudget(name="pool", amount=10**9, per="account", period="day")
    api.planned(budget)
    api.planned(budget, slug=other)
    moving = api.key("k1")
    api.key("k2")
    api.key("k3", plan=other)
    for number, name in enumerate(("k1", "k2", "k3")):
        api.spend(name, 10**number)
    assert [api.used(name, "pool") for name in ("k1", "k2", "k3")] == [11, 11, 100]
    held = api.admit("k1", 1000)
    api.put(msgspec.structs.replace(moving, plan=other))
    # What is under way stays held where it was admitted, and is held where it is charged when it is settled.
    assert [api.used(name, "pool") for name in ("k2", "k3")] == [1010, 1101]
    api.site.holds.settle(held, Outcome(usage=Usage(cost_nanos=1000)))
    commit_all(api.site)
    assert [api.used(name, "pool") for name in ("k1", "k2", "k3")] == [1101, 10, 1101]


def test_keys_that_change_their_plan_while_requests_go_on_end_up_exact(api):
    other = f"{api.account}-other"
    pool = PlanBudget(name="pool", amount=10**9, per="account", period="day")
    each = PlanBudget(name="each", amount=10**9, per="key", period="day")
    web = PlanBudget(name="web", amount=10**9, per="project", period="day")
    api.planned(pool, web)
    api.planned(pool, each, slug=other)
    moving = api.key("k1", project="web")
    api.key("k2", project="web")
    api.key("k3", plan=other)
    with going_on(api.site, lambda index: api.spend(f"k{index + 1}", PRICE + index)):
        for number in range(5):
            api.put(msgspec.structs.replace(moving, plan=api.plan if number % 2 else other))
        api.planned(pool, each, web, slug=other)
    assert verify(api.site).ok
    assert api.used("k1", "pool") == api.counter(f"plan:{other}/pool:account:{api.account}")
    assert api.used("k2", "web") == api.counter(f"plan:{api.plan}/web:project:web")


def test_a_project_budget_counts_keys_that_are_not_of_the_project_too(api, clock):
    """A key without a project may state one with each event: it is the event that counts."""
    api.planned(PlanBudget(name="web", amount=10**9, per="project", period="day"))
    api.key("k1", project="web")
    free = api.key("k2")
    api.spend("k1", 5)
    api.ingest(f"{api.account}-1", clock.now(), 7, key_id=free.id, project="web")
    api.ingest(f"{api.account}-2", clock.now(), 9, key_id=free.id, project="app")
    assert (api.used("k1", "web"), api.counter(f"plan:{api.plan}/web:project:web")) == (12, 12)


# -- rotation ----------------------------------------------------------------------------------------


def test_a_rotated_key_shares_the_counters_of_the_old_one(api):
    api.planned(
        PlanBudget(name="each", amount=100, per="key", period="day"), limits=[Limit(name="rpm", amount=5)]
    )
    key = api.key("k1")
    api.budget(key=key.id)
    api.spend("k1", 60)
    issued = api.site.manage.rotate_key(None, key.id, 3600)
    api.secrets[f"{api.account}-k2"] = issued.secret or ""
    for limit, used in (("rpm", 1), ("each", 60), ("b", 60)):
        assert (api.used("k1", limit), api.used("k2", limit)) == (used, used)
    assert api.admit("k2", 41).limit == "each"
    for name in ("k1", "k2"):
        api.spend(name, 20)
    assert (api.counter(), api.used("k1", "each"), api.used("k2", "rpm")) == (100, 100, 3)


# -- failures ----------------------------------------------------------------------------------------


def test_a_budget_that_cannot_be_counted_is_not_half_in_force(api):
    """The usage store is away: nothing has changed, and a repeat does it all."""
    api.key("k1")
    api.spend("k1", 30)
    commit_all(api.site)
    keeper: Any = api.site.scopes
    faulty = keeper._store = Faulty(keeper._store, "charged")
    faulty.refuse(1)
    scopes = api.site.ledger.scopes(api.account)
    try:
        with pytest.raises(Unavailable):
            api.budget(amount=100)
        assert api.site.ledger.scopes(api.account) == scopes
    finally:
        keeper._store = faulty.target
    api.site.scopes.refresh(api.account)
    assert (api.counter(), api.used("k1")) == (30, 30)


def test_refreshing_again_changes_nothing(api):
    api.key("k1")
    api.budget()
    api.spend("k1", 30)
    commit_all(api.site)
    version = api.site.committer.scopes_version
    for _ in range(3):
        api.site.scopes.refresh(api.account)
    assert api.site.committer.scopes_version == version
    assert api.used("k1") == 30


def test_a_restart_finds_the_budgets_in_force(install, account, clock):
    api = Api(install(), account)
    api.key("k1")
    api.budget(amount=50)
    api.spend("k1", 30)
    api.site.close()
    secrets = api.secrets
    api = Api(install(), account)
    api.secrets = secrets
    assert api.used("k1") == 30
    assert (api.admit("k1", 21).limit, api.admit("k1", 21).largest_fit) == ("b", 20)
    clock.advance(seconds=86_400)
    assert isinstance(api.admit("k1", 50), Admission)
    assert verify(api.site).ok


# -- what is held when a budget is set ---------------------------------------------------------------


@pytest.mark.drawn(3)
@pytest.mark.parametrize("door", ["in process", "over HTTP", "after a restart"])
@pytest.mark.parametrize("scope", ["account", "project", "key", "plan"])
def test_what_is_held_when_a_budget_is_set_counts_in_it(install, account, door, scope):
    """Nine of ten held, then a budget of ten: one more passes, not ten."""
    site = install()
    api = Api(site, account)
    key = api.key("k1", project="web")
    api.key("other", project="app", plan=None)
    secret = api.secrets[key.id]
    other = [api.admit("other")]
    if door == "in process":
        held = [api.admit("k1") for _ in range(9)]
    else:
        held = []
        for number in range(9):
            future = CommitFuture()
            site.holds.authorize(
                secret, "POST", "/chat", Usage(cost_nanos=PRICE), future, hold_id=f"{account}-{number}"
            )
            future.wait()
    if door == "after a restart":
        site.close()
        site = api.site = install()
        other = [api.admit("other")]
    if scope == "plan":
        api.planned(PlanBudget(name="b", amount=10 * PRICE, period="day", per="key"))
    else:
        fields = {"account": {}, "project": {"project": "web"}, "key": {"key": key.id}}[scope]
        api.budget(amount=10 * PRICE + (PRICE if scope == "account" else 0), **fields)
    assert api.used("k1") == 9 * PRICE + (PRICE if scope == "account" else 0)
    last = api.admit("k1")
    assert isinstance(last, Admission)
    assert isinstance(api.admit("k1"), Denial)
    for admission in held:
        site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=1)))
    for number in range(0 if door == "in process" else 9):
        _, ended = site.holds.settle_hold(
            f"{account}-{number}", Outcome(usage=Usage(cost_nanos=1)), CommitFuture(), account_id=account
        )
        assert ended is not None
        ended.wait()
    site.holds.void(last)
    for admission in other:
        site.holds.void(admission)
    counter_id = f"plan:{api.plan}/b:key:{key.id}" if scope == "plan" else "budget:b"
    assert (api.counter(counter_id), api.used("k1")) == (9, 9)
    assert verify(site).ok


# -- the usage store is slow, or does not answer -----------------------------------------------------


class Blocked:
    """A usage store none of whose readers gets an answer while it is shut."""

    READS = frozenset(
        {
            "charged",
            "charged_by",
            "first_by",
            "report",
            "records",
            "known_ids",
            "record_columns",
            "owners",
            "ready",
        }
    )

    def __init__(self, target: Any) -> None:
        self.target = target
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.target, name)
        if name not in self.READS:
            return found

        def read(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.asked.set()
            self.open.wait()
            return found(*args, **kwargs)

        return read


@pytest.fixture
def blocked(usage_store) -> Iterator[Blocked]:
    store = Blocked(usage_store)
    yield store
    store.open.set()


def test_requests_go_on_while_the_usage_store_sums_up_a_budget(install, account, blocked):
    """Its readers may take a minute: the commit thread must not wait for them."""
    site = install(store=blocked)
    api, other = Api(site, account), Api(site, f"{account}-2")
    api.key("k1")
    other.key("k1")
    api.spend("k1", 70)
    commit_all(site)
    blocked.open.clear()
    blocked.asked.clear()
    setting = threading.Thread(target=api.budget)
    setting.start()
    blocked.asked.wait()
    # Each is committed before the next: the thread that commits is free.
    for name in ("k1", "k1"):
        other.spend(name)
        api.spend(name, 5)
        commit_all(site)
    blocked.open.set()
    setting.join()
    assert (api.counter(), api.used("k1")) == (80, 80)
    assert verify(site).ok


def test_a_new_key_asks_the_usage_store_nothing(install, account, blocked):
    """However much its account has: neither a key, nor its first event, is known there."""
    site = install(store=blocked)
    api = Api(site, account)
    budgets = [
        PlanBudget(name=per, amount=100, period="day", per=per) for per in ("key", "project", "account")
    ]
    api.planned(*budgets)
    api.key("k1", project="web")
    api.spend("k1", 70)
    commit_all(site)
    verify(site)
    blocked.open.clear()
    blocked.calls.clear()
    api.key("k2", project="web")
    site.manage.rotate_key(account, f"{account}-k1", 3600)
    assert not blocked.calls
    assert api.admit("k2", 31).limit in ("project", "account")
    api.spend("k2", 30)
    assert api.used("k2", "key") == 30
    assert api.used("k2", "account") == 100
    blocked.open.set()
    assert verify(site).ok


def test_an_event_of_a_key_between_its_making_and_its_budgets_is_charged(install, account, monkeypatch):
    """A key whose secret is brought can be named by events as soon as it is there."""
    site = install()
    api = Api(site, account)
    api.planned(*(PlanBudget(name=per, amount=100, period="day", per=per) for per in ("key", "account")))
    api.key("k1")
    refresh = site.scopes.refresh

    def meanwhile(*args: Any) -> None:
        monkeypatch.undo()
        api.ingest(f"{account}-early", site.clock.now(), 7, key_id=f"{account}-k2")
        refresh(*args)

    monkeypatch.setattr(site.scopes, "refresh", meanwhile)
    api.key("k2", sha256=hash_secret(account))
    assert api.counter(f"plan:{api.plan}/key:key:{account}-k2") == 7
    assert api.counter(f"plan:{api.plan}/account:account:{account}") == 7
    assert verify(site).ok


@pytest.mark.parametrize("whose", ["another's", "its own"])
def test_a_batch_is_prepared_again_for_budgets_of_its_accounts_alone(install, account, monkeypatch, whose):
    """One customer who makes keys with budgets in a loop must not hold up the batches of all others."""
    site = install()
    api, other = Api(site, account), Api(site, f"{account}-other")
    changed = other if whose == "another's" else api
    prepared = []

    def meanwhile(*args: Any) -> Any:
        prepared.append(len(prepared))
        if len(prepared) <= 3:
            changed.put(Budget(id=f"b{len(prepared)}", account=changed.account, amount=100, period="day"))
        return dedupe(*args)

    monkeypatch.setattr("tollkeeper.meter.ingest.dedupe", meanwhile)
    api.key("k1")
    api.ingest("e1", site.clock.now(), 7)
    assert len(prepared) == (1 if whose == "another's" else 4)
    for name in ("b1", "b2", "b3") if whose == "its own" else ():
        assert api.counter(f"budget:{name}") == 7
    assert verify(site).ok


def test_a_key_whose_budget_cannot_come_into_force_is_made_and_refused_until_it_is(install, account, blocked):
    """Its secret is shown once, so the answer has it; and it is not freer than its budget meanwhile."""
    site = install(store=blocked)
    site.scopes.sum_s_max = 0.05
    api = Api(site, account)
    api.key("k1")
    api.spend("k1", 70)
    commit_all(site)
    blocked.open.clear()
    applied = site.manage.apply(
        [
            Key(id=f"{account}-k2", account=account, plan=api.plan),
            Budget(id="b", account=account, amount=100, period="day"),
        ]
    )
    (secret,) = [issued.secret for issued in applied.issued]
    denial = site.holds.admit(secret, "POST", "/chat")
    assert (denial.reason, denial.limit, denial.status) == ("unavailable", "b", 503)
    assert denial.retry_after_s is not None
    with pytest.raises(Unavailable, match=r"sum up|busy"):
        api.budget("another")
    # Its caller learned that the budget is not in force yet; requests of its keys go on.
    blocked.open.set()
    site.scopes.sum_s_max = SUM_S_MAX
    eventually(lambda: {"budget:b", "budget:another"} <= site.ledger.scopes(account).keys())
    assert isinstance(site.holds.admit(secret, "POST", "/chat"), Admission)
    assert api.used("k1") == 70
    assert verify(site).ok


def test_a_key_without_its_budget_is_refused_after_a_restart_too(install, account, blocked):
    site = install(store=blocked)
    site.scopes.sum_s_max = 0.05
    api = Api(site, account)
    api.key("k1")
    api.spend("k1", 70)
    commit_all(site)
    blocked.open.clear()
    applied = site.manage.apply(
        [
            Key(id=f"{account}-k2", account=account, plan=api.plan),
            Budget(id="b", account=account, amount=100, period="day"),
        ]
    )
    (secret,) = [issued.secret for issued in applied.issued]
    site.close()
    site = install(store=blocked)
    site.scopes.sum_s_max = 0.05
    assert site.holds.admit(secret, "POST", "/chat").reason == "unavailable"
    blocked.open.set()
    site.scopes.sum_s_max = SUM_S_MAX
    eventually(lambda: "budget:b" in site.ledger.scopes(account))
    assert isinstance(site.holds.admit(secret, "POST", "/chat"), Admission)
