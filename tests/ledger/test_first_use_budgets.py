"""
Budgets whose periods open with the first use: "100 per 5h" is never more than 100 in five hours.

Whoever uses a budget first opens its period, at whichever door; the ledger remembers when, and counter, postings and
events agree on it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tests.faults.test_ledger_away import eventually
from tests.gate.test_races import in_threads
from tests.http.conftest import OPERATOR_KEY
from tests.http.conftest import Api as Caller
from tests.ledger.test_budget_scopes import Api, going_on
from tollkeeper.domain.catalog import PlanBudget
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.gate.gate import Admission
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import ChangeScopes
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import commit_all, faulty_ledger, lost_commits, unique, verify

FIRST = datetime(2026, 3, 18, 19, 58, tzinfo=UTC)
AMOUNT = 100
HOURS_5 = timedelta(hours=5)
WIDTH_US = 5 * 3600 * 10**6


@pytest.fixture
def api(site, account, clock) -> Iterator[Api]:
    clock.set(FIRST - timedelta(hours=1))
    api = Api(site, account)
    yield api
    assert verify(site).ok


@pytest.fixture
def five_hours(api, clock) -> Api:
    """An account of one key with 100 requests per 5h, an hour before they are used."""
    api.key("k1")
    api.budget(amount=AMOUNT, unit="requests", period="5h")
    clock.set(FIRST)
    return api


def requests(api: Api, count: int, name: str = "k1") -> int:
    """Ask *count* times and settle what was admitted; return how much that was."""
    admissions = [api.admit(name) for _ in range(count)]
    admitted = [admission for admission in admissions if isinstance(admission, Admission)]
    for admission in admitted:
        api.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=1)))
    return len(admitted)


def opened(api: Api, counter_id: str = "budget:b", period: str = "5h") -> list[tuple[datetime, datetime]]:
    """The periods that the ledger has, of an account all of whose budgets are in force."""
    commit_all(api.site)
    _, spans = api.site.ledger.opened_periods(api.account, counter_id, period, 0)
    return [(from_us(start), from_us(end)) for start, end in spans]


# -- M13: the same at each door -----------------------------------------------------------------------


class Doors:
    """One request at each door of a running installation."""

    def __init__(self, api: Api) -> None:
        self.api = api
        ensure_operator_key(api.site, OPERATOR_KEY)
        self.app = build_app(api.site)
        self.call = Caller(self.app)

    def gate(self, count: int) -> int:
        return requests(self.api, count)

    def http(self, count: int) -> int:
        admitted = 0
        secret = self.api.secrets[f"{self.api.account}-k1"]
        for _ in range(count):
            asked = {"key": secret, "method": "POST", "path": "/chat"}
            answer = self.call("POST", "/tk/v1/authorize", asked)
            if answer.status_code == 200:
                settled = {"hold_id": answer.json()["hold_id"], "account": self.api.account}
                assert self.call("POST", "/tk/v1/settle", settled).status_code == 200
                admitted += 1
            else:
                assert answer.status_code == 402, answer.text
        return admitted

    def ingest(self, count: int) -> int:
        """Events of requests that another gate let pass, as far as this one would have."""
        left = AMOUNT - (self.api.used("k1") or 0)
        at = to_text(self.api.site.clock.now())
        sent = [
            {"id": unique("e"), "time": at, "account": self.api.account, "key_id": f"{self.api.account}-k1"}
            for _ in range(min(left, count))
        ]
        if sent:
            taken = self.api.site.ingest.take(decode_events(sent, now_us=self.api.site.clock.now_us()))
            assert taken.accepted == len(sent)
        return len(sent)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("door", ["gate", "http", "ingest"])
def test_five_hours_are_five_hours_from_the_first_use(five_hours, clock, door):
    """19:58, and the next one at 00:58: midnight of UTC, where it was cut before, lies between."""
    doors = Doors(five_hours)
    ask = getattr(doors, door)
    passed = [ask(60), ask(60)]
    for at in (FIRST + timedelta(minutes=3), FIRST.replace(day=19, hour=0, minute=1)):
        clock.set(at)
        passed.append(ask(60))
    clock.set(FIRST + HOURS_5 - timedelta(microseconds=1))
    passed.append(ask(60))
    clock.set(FIRST + HOURS_5)
    passed += [ask(60), ask(60)]
    assert passed == [60, 40, 0, 0, 0, 60, 40]
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5), (FIRST + HOURS_5, FIRST + 2 * HOURS_5)]
    doors.app.close()


def test_nothing_opens_before_the_first_use_nor_after_the_last(five_hours, clock):
    """After a pause the next period opens with the next use, not at a multiple of five hours."""
    assert five_hours.used("k1") == 0
    assert opened(five_hours) == []
    assert requests(five_hours, 1) == 1
    clock.set(FIRST + timedelta(hours=7, minutes=11))
    assert five_hours.used("k1") == 0
    assert requests(five_hours, 150) == AMOUNT
    later = FIRST + timedelta(hours=7, minutes=11)
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5), (later, later + HOURS_5)]


def test_a_refused_request_opens_nothing(five_hours, clock):
    event = {"status": 429, "denied_reason": "rate_limited"}
    five_hours.ingest(unique("e"), FIRST, 0, **event)
    assert opened(five_hours) == []
    clock.advance(seconds=60)
    assert requests(five_hours, 1) == 1
    assert opened(five_hours)[0][0] == FIRST + timedelta(seconds=60)


# -- restarts and failures ----------------------------------------------------------------------------


def test_a_restart_opens_nothing_again(install, account, clock):
    """The window of the last process goes on, its holds in it, with what they use."""
    clock.set(FIRST - timedelta(hours=1))
    site = install()
    api = Api(site, account)
    api.key("k1")
    api.budget(amount=AMOUNT, unit="requests", period="5h")
    clock.set(FIRST)
    hold_id = unique("h")
    future = CommitFuture()
    secret = api.secrets[f"{account}-k1"]
    asked = (secret, "POST", "/chat", NO_USAGE, future)
    assert not isinstance(site.holds.authorize(*asked, hold_id=hold_id, ttl_s=4 * 3600), Denial)
    future.wait()
    clock.advance(seconds=60)
    assert requests(api, 50) == 50
    commit_all(site)
    site.close()
    clock.advance(seconds=3600)
    site = api.site = install()
    assert api.used("k1") == 51
    assert requests(api, 60) == 49
    future = CommitFuture()
    site.holds.settle_hold(hold_id, Outcome(), future)
    future.wait()
    assert api.used("k1") == 100
    clock.set(FIRST + HOURS_5 - timedelta(seconds=1))
    assert requests(api, 1) == 0
    clock.set(FIRST + HOURS_5)
    assert requests(api, 150) == AMOUNT
    assert [start for start, _ in opened(api)] == [FIRST, FIRST + HOURS_5]
    assert verify(site).ok


def test_an_opening_is_saved_with_the_first_commit_that_succeeds(five_hours, clock):
    """Whatever the ledger refuses in between, it never has a charge without the period that it is in."""
    admissions = [five_hours.admit("k1") for _ in range(10)]
    with faulty_ledger(five_hours.site) as ledger:
        ledger.refuse(3)
        for admission in admissions:
            assert isinstance(admission, Admission)
            five_hours.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=1)))
        eventually(lambda: five_hours.site.committer.idle and five_hours.site.gate.refusing is None)
    clock.advance(seconds=60)
    with lost_commits(five_hours.site, 2):
        assert requests(five_hours, 10) == 10
        commit_all(five_hours.site)
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5)]
    assert five_hours.counter() == 20


def test_counters_that_were_aligned_to_the_day_before_an_upgrade_begin_again(install, account, clock):
    """What was used in the last five hours counts in the period that it opened; the old rows say nothing any more."""
    clock.set(FIRST)
    site = install()
    api = Api(site, account)
    api.key("k1")
    api.budget(amount=AMOUNT, unit="requests", period="5h")
    assert requests(api, 30) == 30
    commit_all(site)
    with site.engine.begin() as tx:
        where = sa.text(
            "UPDATE scopes SET fingerprint = replace(fingerprint, 'first use ', ''), active_from_us = 0"
        )
        tx.execute(where)
        tx.execute(sa.text("DELETE FROM opened_periods"))
        ahead = to_us(FIRST + timedelta(minutes=2))
        tx.execute(sa.text("UPDATE counters SET period_start_us = :at"), {"at": ahead})
        tx.execute(sa.text("UPDATE postings SET period_start_us = :at"), {"at": ahead})
    site.close()
    clock.set(FIRST + timedelta(hours=1))
    site = api.site = install()
    eventually(lambda: isinstance(api.admit("k1"), Admission))
    assert opened(api) == [(FIRST, FIRST + HOURS_5)]
    assert api.counter() == 30
    assert requests(api, 150) == AMOUNT - 30
    assert verify(site).ok


# -- races --------------------------------------------------------------------------------------------


def test_at_the_opening_exactly_the_amount_passes_however_many_ask(five_hours, clock):
    for number in range(4):
        clock.set(FIRST + number * (HOURS_5 + timedelta(minutes=number)))
        found = in_threads([partial(five_hours.admit, "k1") for _ in range(300)])
        admitted = [answer for answer in found if isinstance(answer, Admission)]
        assert len(admitted) == AMOUNT
        for admission in admitted:
            five_hours.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=1)))
    assert len(opened(five_hours)) == 4


def test_gate_and_events_that_race_for_the_first_use_open_one_period(five_hours, clock):
    """Late events come while requests do; each period has all of its uses, and the sum of all is that of the events."""
    for number in range(6):
        now = FIRST + number * timedelta(hours=6)
        clock.set(now)

        def event(index: int, now: datetime = now) -> None:
            five_hours.ingest(unique("e"), now - timedelta(seconds=index % 3), 1)

        calls: list[Any] = [partial(event, index) for index in range(20)]
        calls += [partial(five_hours.admit, "k1") for _ in range(100)]
        found = in_threads(calls)
        for answer in found:
            if isinstance(answer, Admission):
                five_hours.site.holds.settle(answer, Outcome(usage=Usage(cost_nanos=1)))
    spans = opened(five_hours)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(end - start == HOURS_5 for start, end in spans if start >= FIRST and start in _nows())
    assert verify(five_hours.site).ok


def _nows() -> set[datetime]:
    return {FIRST + number * timedelta(hours=6) for number in range(6)}


# -- events out of time -------------------------------------------------------------------------------


def test_a_late_event_opens_a_period_of_the_past_and_none_of_now(five_hours, clock):
    assert requests(five_hours, 10) == 10
    clock.set(FIRST + timedelta(hours=6))
    assert requests(five_hours, 10) == 10
    five_hours.ingest(unique("e"), FIRST + timedelta(hours=1), 1)
    five_hours.ingest(unique("e"), FIRST + timedelta(hours=5, minutes=30), 1)
    five_hours.ingest(unique("e"), FIRST - timedelta(minutes=30), 1)
    assert opened(five_hours) == [
        (FIRST - timedelta(minutes=30), FIRST),
        (FIRST, FIRST + HOURS_5),
        (FIRST + timedelta(hours=5, minutes=30), FIRST + timedelta(hours=6)),
        (FIRST + timedelta(hours=6), FIRST + timedelta(hours=11)),
    ]
    assert five_hours.used("k1") == 10
    rows = five_hours.site.ledger.counter_rows(five_hours.account)
    assert sorted(rows.values()) == [1, 1, 10, 11]


def test_the_events_of_a_batch_open_periods_in_the_order_of_time(five_hours, clock):
    """Whatever the order of the lines and whosever key it was: else the second key's would be cut short."""
    five_hours.key("k2")
    clock.set(FIRST + timedelta(hours=11))
    hours = {"k1": (1.5, 7.0), "k2": (5.9, 0.0, 1.0)}
    sent = [
        {
            "id": unique("e"),
            "time": to_text(FIRST + timedelta(hours=at)),
            "account": five_hours.account,
            "key_id": f"{five_hours.account}-{name}",
        }
        for name, ats in hours.items()
        for at in ats
    ]
    five_hours.site.ingest.take(decode_events(sent, now_us=clock.now_us()))
    second = FIRST + timedelta(hours=5.9)
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5), (second, second + HOURS_5)]
    rows = five_hours.site.ledger.counter_rows(five_hours.account)
    assert sorted(rows.values()) == [2, 3]


def test_an_event_ahead_of_the_clock_shortens_no_period(five_hours, clock):
    """Else 100 in the minutes before it and 100 after it would be 200 in five hours."""
    five_hours.ingest(unique("e"), FIRST + timedelta(seconds=200), 1)
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5)]
    assert requests(five_hours, 150) == AMOUNT - 1
    clock.set(FIRST + timedelta(seconds=200))
    assert requests(five_hours, 150) == 0


def test_a_clock_that_is_set_back_gives_no_second_amount(five_hours, clock):
    assert requests(five_hours, 150) == AMOUNT
    clock.set(FIRST - timedelta(minutes=30))
    assert requests(five_hours, 150) == 0
    clock.set(FIRST - timedelta(hours=5))
    # More than five hours before: the budget was not in force yet, and none of its periods is near.
    assert isinstance(five_hours.admit("k1"), Admission | Denial)
    clock.set(FIRST + HOURS_5)
    assert requests(five_hours, 150) == AMOUNT


# -- budgets that come and go -------------------------------------------------------------------------


def test_a_budget_that_is_set_later_counts_from_the_first_use_of_its_last_span(api, clock):
    """What was used four hours ago counts in the period that it opened; what was used six hours ago is over."""
    api.key("k1")
    clock.set(FIRST - timedelta(hours=2))
    assert requests(api, 7) == 7
    clock.set(FIRST)
    assert requests(api, 30) == 30
    held = api.admit("k1")
    clock.set(FIRST + timedelta(hours=4))
    api.budget(amount=AMOUNT, unit="requests", period="5h")
    assert opened(api) == [(FIRST, FIRST + HOURS_5)]
    assert (api.counter(), api.used("k1")) == (30, 31)
    api.site.holds.settle(held, Outcome())
    assert requests(api, 100) == AMOUNT - 31
    clock.set(FIRST + HOURS_5)
    assert requests(api, 150) == AMOUNT


def test_a_budget_set_while_requests_go_on_misses_none(api):
    api.key("k1")
    api.key("k2")
    with going_on(api.site, lambda index: api.spend(f"k{index + 1}", 10 + index), threads=2):
        for number in range(4):
            api.budget(period=("5h", "month", "90m", "day")[number])
        api.site.manage.delete("budgets", "b", api.account)
        api.budget(period="5h")
    assert verify(api.site).ok
    assert api.used("k1") == api.counter()


def test_a_changed_amount_or_zone_keeps_the_running_period(five_hours, clock):
    assert requests(five_hours, 60) == 60
    clock.advance(seconds=3600)
    five_hours.budget(amount=80, unit="requests", period="5h")
    assert requests(five_hours, 60) == 20
    five_hours.budget(amount=80, unit="requests", period="5h", time_zone="Asia/Tokyo")
    assert (five_hours.counter(), five_hours.used("k1")) == (80, 80)
    assert requests(five_hours, 60) == 0
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5)]


def test_another_length_opens_its_own_period_from_what_was_used(five_hours, clock):
    assert requests(five_hours, 60) == 60
    clock.advance(seconds=1800)
    five_hours.budget(amount=AMOUNT, unit="requests", period="1h")
    assert opened(five_hours, period="1h") == [(FIRST, FIRST + timedelta(hours=1))]
    assert requests(five_hours, 60) == 40
    clock.set(FIRST + timedelta(hours=1))
    assert requests(five_hours, 150) == AMOUNT


def test_each_key_of_a_plan_has_periods_of_its_own(api, clock):
    api.planned(PlanBudget(name="five", amount=3, unit="requests", period="5h", per="key"))
    api.key("k1")
    api.key("k2")
    clock.set(FIRST)
    assert requests(api, 5, "k1") == 3
    clock.set(FIRST + timedelta(hours=2))
    assert requests(api, 5, "k2") == 3
    clock.set(FIRST + HOURS_5)
    assert (requests(api, 5, "k1"), requests(api, 5, "k2")) == (3, 0)
    clock.set(FIRST + timedelta(hours=7))
    assert requests(api, 5, "k2") == 3


def test_a_corrected_event_stays_in_its_period(five_hours, clock):
    five_hours.budget("money", amount=10**9, period="5h")
    id_ = unique("e")
    five_hours.ingest(id_, FIRST, 700)
    clock.set(FIRST + timedelta(hours=6))
    five_hours.site.amend.void(five_hours.account, id_, unique("c"))
    commit_all(five_hours.site)
    rows = five_hours.site.ledger.counter_rows(five_hours.account)
    assert {at: used for at, used in rows.items() if used} == {}
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5)]


def deleted_and_set_again(api: Api, **fields: Any) -> None:
    api.site.manage.delete("budgets", "b", api.account)
    api.budget(**{"amount": AMOUNT, "unit": "requests", "period": "5h", **fields})


def test_a_budget_that_is_deleted_and_set_again_forgets_a_period_that_nothing_used(five_hours, clock):
    """A request that was voided had opened it. The gate must not go on in it: the ledger does not have it any more."""
    for _ in range(3):
        admission = five_hours.admit("k1")
        assert isinstance(admission, Admission)
        five_hours.site.holds.void(admission)
    deleted_and_set_again(five_hours)
    later = FIRST + timedelta(hours=1)
    clock.set(later)
    assert requests(five_hours, 60) == 60
    assert opened(five_hours) == [(later, later + HOURS_5)]
    clock.set(FIRST + HOURS_5)
    assert requests(five_hours, 60) == 40
    assert (five_hours.counter(), five_hours.used("k1")) == (100, 100)


def test_what_is_open_while_a_budget_is_deleted_and_set_again_counts_in_its_new_period(five_hours, clock):
    """Its old period was opened by a request that was voided; the new one is opened by the first that is still open."""
    first = five_hours.admit("k1")
    later = FIRST + timedelta(minutes=10)
    clock.set(later)
    held = [five_hours.admit("k1") for _ in range(30)]
    five_hours.site.holds.void(first)
    clock.set(FIRST + timedelta(minutes=20))
    deleted_and_set_again(five_hours)
    assert five_hours.used("k1") == 30
    assert requests(five_hours, 150) == 70
    for admission in held:
        five_hours.site.holds.settle(admission, Outcome())
    assert opened(five_hours) == [(later, later + HOURS_5)]
    assert (five_hours.counter(), five_hours.used("k1")) == (100, 100)


@pytest.mark.parametrize("period", ["90m", "day", "month"])
def test_what_is_open_while_a_budget_gets_another_period_counts_in_that(five_hours, clock, period):
    held = [five_hours.admit("k1") for _ in range(30)]
    clock.advance(seconds=60)
    five_hours.budget(amount=AMOUNT, unit="requests", period=period)
    assert five_hours.used("k1") == 30
    assert requests(five_hours, 150) == 70
    for admission in held:
        five_hours.site.holds.settle(admission, Outcome())
    assert (five_hours.counter(), five_hours.used("k1")) == (100, 100)


class _AfterChange:
    """The committer's listener; after each change of budgets the commit thread waits for the block to end."""

    def __init__(self, site: Installation) -> None:
        self.entered, self.may_end = threading.Event(), threading.Event()
        self._committer: Any = site.committer
        self._listener: Any = self._committer._listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def scopes_changed(self, change: ChangeScopes) -> None:
        self._listener.scopes_changed(change)
        self.entered.set()
        assert self.may_end.wait(60)

    def __enter__(self) -> _AfterChange:
        self._committer._listener = self
        return self

    def __exit__(self, *exc: object) -> None:
        self._committer._listener = self._listener
        self.may_end.set()


def test_what_was_settled_before_counts_in_a_period_that_opens_at_the_same_moment(five_hours):
    """
    A budget is set again while settlements wait to be committed; the next request opens the period again, by a clock
    that stands still. Neither it nor any after it may be decided without them.
    """
    site = five_hours.site
    before = [five_hours.admit("k1") for _ in range(60)]
    site.manage.delete("budgets", "b", five_hours.account)
    with _AfterChange(site) as change:
        fields = {"amount": AMOUNT, "unit": "requests", "period": "5h"}
        setting = threading.Thread(target=five_hours.budget, kwargs=fields)
        # All but the commit that brings the budget into force: what is settled now comes behind it.
        committer: Any = site.committer
        commit = committer._ledger.commit
        queued = threading.Event()

        def commit_later(group: Any) -> Any:
            if group.scopes:
                for admission in before:
                    site.holds.settle(admission, Outcome())
                queued.set()
            return commit(group)

        with patch.object(committer, "_ledger", SimpleNamespace(commit=commit_later)):
            setting.start()
            assert change.entered.wait(60)
        assert queued.is_set()
        admitted = [five_hours.admit("k1") for _ in range(150)]
    setting.join()
    admissions = [one for one in admitted if isinstance(one, Admission)]
    for admission in admissions:
        site.holds.settle(admission, Outcome())
    assert len(admissions) == AMOUNT - 60
    assert (five_hours.counter(), five_hours.used("k1")) == (100, 100)
    assert opened(five_hours) == [(FIRST, FIRST + HOURS_5)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 6)),
        st.tuples(st.just("wait"), st.sampled_from((1, 600, 3_600, 9_000, 18_000, 18_001, 40_000))),
        st.tuples(st.just("event"), st.sampled_from((0, -5, -7_200, -18_000, -50_000, 120, 299))),
        st.tuples(st.just("hold"), st.integers(1, 3)),
        st.tuples(st.just("end"), st.booleans()),
        st.tuples(st.just("amount"), st.integers(1, 12)),
        st.tuples(st.just("evict"), st.none()),
    ),
    max_size=30,
)


@settings(
    max_examples=effort(4, 25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_whatever_happens_no_five_hours_have_more_than_the_amount(site, clock, steps):
    """Requests, holds, late and early events and changed amounts in any order, against lists of instants."""
    clock.set(FIRST)
    api = Api(site, unique("acct"))
    api.key("k1")
    amount = 8
    api.budget(amount=amount, unit="requests", period="5h")
    uses: list[int] = []
    spans: list[tuple[int, int]] = []
    held: list[tuple[Admission, int]] = []

    def open_at(at_us: int, now_us: int) -> tuple[int, int]:
        cursor = min(at_us, now_us)
        while True:
            span = next((s for s in spans if s[0] <= cursor < s[1]), None)
            if span is None:
                end = min([cursor + WIDTH_US, *(s[0] for s in spans if s[0] > cursor)])
                span = (cursor, end)
                spans.append(span)
            if at_us < span[1]:
                return span
            cursor = span[1]

    def used_now() -> int:
        now_us = clock.now_us()
        span = next((s for s in spans if s[0] <= now_us < s[1]), None)
        if span is None:
            return 0
        return sum(span[0] <= at < span[1] for at in [*uses, *(at for _, at in held)])

    for step, value in steps:
        if step == "wait":
            clock.advance(seconds=value)
        elif step == "event":
            at = clock.now() + timedelta(seconds=value)
            if at > FIRST - HOURS_5:
                open_at(to_us(at), clock.now_us())
                api.ingest(unique("e"), at, 1)
                uses.append(to_us(at))
        elif step in ("ask", "hold"):
            for _ in range(value):
                fits = used_now() < amount
                found = api.admit("k1")
                assert isinstance(found, Admission) == fits
                if isinstance(found, Admission):
                    open_at(clock.now_us(), clock.now_us())
                    held.append((found, clock.now_us()))
                    if step == "ask":
                        admission, at_us = held.pop()
                        site.holds.settle(admission, Outcome())
                        uses.append(at_us)
        elif step == "end" and held:
            admission, at_us = held.pop(0)
            if value:
                site.holds.settle(admission, Outcome())
                uses.append(at_us)
            else:
                site.holds.void(admission)
        elif step == "amount":
            amount = value
            api.budget(amount=amount, unit="requests", period="5h")
        elif step == "evict":
            commit_all(site)
            site.directory.openings.evict_idle(clock.now_us() + 10**12)
        assert api.used("k1") == used_now()
    commit_all(site)
    # Periods that nothing was charged to need no memory of their own.
    found = site.ledger.opened_periods(api.account, "budget:b", "5h", 0)[1]
    assert found == sorted(spans)
    for admission, _ in held:
        site.holds.void(admission)
    assert verify(site).ok
