"""While the ledger cannot be written nothing is acknowledged; what was settled is not lost and not doubled."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Install
from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import (
    BadInput,
    BadParameter,
    HoldEnded,
    InvariantBroken,
    TollkeeperError,
    Unavailable,
)
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger import committer as committing
from tollkeeper.ledger.commit_future import CommitFuture, finish
from tollkeeper.ledger.commit_tasks import AddCharges, ChangeScopes
from tollkeeper.ledger.storable import check_storable
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import Faulty, faulty_ledger, set_up


class Customer:
    """One account with a key, a route that costs 7 and budgets over money and requests."""

    def __init__(self, site: Installation, account: str, amount: int = 1_000_000) -> None:
        self.site = site
        self.account = account
        self.secret = set_up(
            site,
            Account(id=account, name="A"),
            Key(id=f"{account}.k", account=account, type="credit"),
            Grant(id="g", account=account, amount_nanos=amount),
            Budget(id="b", account=account, amount=amount, period="total"),
            Route(id="chat", method="POST", path="/v1/chat", price_nanos=7),
        )[f"{account}.k"]

    def admit(self) -> Admission:
        found = self.site.holds.admit(self.secret, "POST", "/v1/chat")
        assert isinstance(found, Admission), found
        return found

    def authorize(self, hold_id: str) -> Admission:
        found = self.site.holds.authorize(
            self.secret, "POST", "/v1/chat", NO_USAGE, CommitFuture(), hold_id=hold_id
        )
        assert not isinstance(found, Denial), found
        found[1].wait()
        return found[0]

    def record(self, *ids: str) -> int:
        events = [
            {"id": id_, "time": self.site.clock.now().isoformat(), "account": self.account, "cost_nanos": 1}
            for id_ in ids
        ]
        return self.site.ingest.take(decode_events(events, now_us=self.site.clock.now_us())).accepted

    def totals(self) -> tuple[int, int]:
        """Requests and cost, after the counters were seen to say the same."""
        query = UsageQuery(
            account_id=self.account, from_us=0, to_us=2**52, measures=("requests", "cost_nanos")
        )
        answer = self.site.reports.usage(query)
        assert answer.complete
        assert self.site.ledger.counter(self.account, "budget:b", 0)[0] == answer.totals["cost_nanos"]
        return answer.totals["requests"], answer.totals["cost_nanos"]

    def used(self) -> int:
        """What the gate takes the budget to have been used, holds included."""
        compiled_key = self.site.gate.compiled_key(self.secret)
        assert not isinstance(compiled_key, Denial)
        statuses = self.site.gate.limit_statuses(compiled_key, self.site.clock.now_us())
        return next(status.used for status in statuses if status.name == "b")


@pytest.fixture
def customer(site: Installation, account: str) -> Customer:
    return Customer(site, account)


def wait_until_idle(site: Installation) -> None:
    """Return when the commit thread has nothing left: what is queued now and all that it kept."""
    future = CommitFuture()
    site.committer.submit(AddCharges({}, future))
    future.wait()


def eventually(met: Callable[[], bool]) -> None:
    """Wait for another thread, however long it is kept from running."""
    gate = threading.Event()
    for _ in range(6000):
        if met():
            return
        gate.wait(0.005)
    raise AssertionError("it never came to be")


@pytest.fixture
def away(site: Installation, customer: Customer) -> Iterator[Faulty]:
    """The ledger of the site; it can be refused."""
    with faulty_ledger(site) as ledger:
        yield ledger


# -- callers who wait ---------------------------------------------------------------------------------------


def test_who_waits_is_told_and_may_ask_again(customer: Customer, away: Faulty) -> None:
    """Nothing was booked, so the same call again books it, once."""
    away.refuse(1)
    with pytest.raises(Unavailable):
        customer.record("a", "b")
    assert customer.record("a", "b") == 2
    assert customer.record("a", "b") == 0
    assert customer.totals() == (2, 2)


def test_a_hold_that_was_not_committed_is_not_held(customer: Customer, away: Faulty) -> None:
    """The client got an error, so nothing may stay set aside for it."""
    away.refuse(1)
    with pytest.raises(Unavailable):
        customer.authorize("h")
    assert customer.used() == 0
    assert customer.site.holds.open_count == 0
    customer.authorize("h")
    assert customer.used() == 7


def test_a_settle_that_was_not_committed_leaves_the_hold_open(customer: Customer, away: Faulty) -> None:
    """The client asks again, and its event counts once."""
    customer.authorize("h")
    away.refuse(1)
    outcome = Outcome(usage=Usage(cost_nanos=5))
    _, future = customer.site.holds.settle_hold("h", outcome, CommitFuture())
    assert future is not None
    with pytest.raises(Unavailable):
        future.wait()
    assert customer.used() == 7
    _, future = customer.site.holds.settle_hold("h", outcome, CommitFuture())
    assert future is not None
    future.wait()
    assert customer.totals() == (1, 5)
    assert customer.used() == 5


def test_the_id_of_a_hold_that_was_voided_after_a_failed_settle_is_free(
    customer: Customer, away: Faulty
) -> None:
    """The settle left no event, so an event of that id is the first one."""
    customer.authorize("h")
    away.refuse(1)
    _, future = customer.site.holds.settle_hold("h", Outcome(), CommitFuture())
    assert future is not None
    with pytest.raises(Unavailable):
        future.wait()
    _, future = customer.site.holds.void_hold("h", CommitFuture())
    assert future is not None
    future.wait()
    assert customer.record("h") == 1


# -- what this process settled ------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
def test_what_was_settled_here_is_kept_and_booked_once(customer: Customer, away: Faulty, waits: bool) -> None:
    """The request is over and cannot be settled again: its record must outlive the failure."""
    admission = customer.admit()
    away.refuse(3)
    future = CommitFuture() if waits else None
    customer.site.holds.settle(admission, Outcome(), future)
    if future is not None:
        with pytest.raises(Unavailable):
            future.wait()
    with pytest.raises(HoldEnded):
        customer.site.holds.settle(admission, Outcome())
    eventually(lambda: away.calls > 0)
    assert customer.totals() == (1, 7)
    assert customer.used() == 7


def test_the_gate_refuses_while_records_wait_for_the_ledger(customer: Customer, away: Faulty) -> None:
    """More requests would only pile up in memory, unacknowledged; when the ledger is back they pass again."""
    admissions = [customer.admit() for _ in range(5)]
    away.refuse(1_000)
    for admission in admissions:
        customer.site.holds.settle(admission, Outcome())
    eventually(lambda: customer.site.gate.refusing is not None)
    refused = customer.site.holds.admit(customer.secret, "POST", "/v1/chat")
    assert isinstance(refused, Denial)
    assert (refused.reason, refused.status, refused.retry_after_s) == ("unavailable", 503, 1)
    away.refuse(0)
    eventually(lambda: customer.site.gate.refusing is None)
    customer.site.holds.settle(customer.admit(), Outcome())
    wait_until_idle(customer.site)
    assert customer.totals() == (6, 42)


def test_what_is_kept_is_booked_in_the_order_in_which_it_came(
    customer: Customer, away: Faulty, site: Installation
) -> None:
    """So that a later failure does not leave the oldest for last."""
    away.refuse(4)
    settled = []
    for _ in range(3):
        admission = customer.admit() if site.gate.refusing is None else None
        if admission is not None:
            settled.append(admission.id)
            site.holds.settle(admission, Outcome())
    eventually(lambda: away.calls > 0)
    wait_until_idle(site)
    assert site.delivery.fresh(customer.account)
    stored = site.store.records([(customer.account, id_) for id_ in settled])
    assert len(stored) == len(settled)


def test_one_bad_record_fails_alone(customer: Customer, site: Installation) -> None:
    """In the outbox it would hold up the records of everybody in its group."""
    good = [customer.admit() for _ in range(3)]
    outcomes: list[Any] = [
        Outcome(status=70_000),
        Outcome(usage=Usage(prompt_tokens=-1)),
        Outcome(usage=Usage(cost_nanos=2**80)),
        Outcome(usage=Usage(cost_nanos=1.5)),  # type: ignore[arg-type]
        Outcome(latency_us=0.5),  # type: ignore[arg-type]
        Outcome(tags={"a": 1}),  # type: ignore[dict-item]
        Outcome(error_type=b"x"),  # type: ignore[arg-type]
        Outcome(error_type="\ud800"),
    ]
    for outcome in outcomes:
        bad = customer.admit()
        with pytest.raises((TollkeeperError, TypeError)):
            settle(site, bad, outcome)
        site.holds.void(bad)
    for admission in good:
        site.holds.settle(admission, Outcome())
    wait_until_idle(site)
    assert customer.totals() == (3, 21)
    assert customer.used() == 21
    assert site.gate.refusing is None
    assert site.reconcile.verify().differences == []


def settle(site: Installation, admission: Admission, outcome: Outcome) -> None:
    """Settle as `Tollkeeper.settle(wait=True)` does."""
    future = CommitFuture()
    site.holds.settle(admission, outcome, future)
    future.wait()


class Refusing(Faulty):
    """A ledger that cannot take a group which opens a hold of a certain id."""

    def _call(self, group: Any) -> Any:
        if any(hold.hold_id == "bad" for hold in group.opened):
            raise InvariantBroken("this one does not balance")
        return self.target.commit(group)


def test_a_work_that_cannot_be_booked_does_not_hold_up_its_group(
    customer: Customer, site: Installation
) -> None:
    """The group is at fault, not the ledger: all others of it are booked, and it is found and told."""
    blocked = Blocking(site)
    first = customer.admit()
    with blocked:
        site.holds.settle(first, Outcome())
        blocked.entered.wait()
        futures = {}
        for hold_id in ("one", "bad", "two"):
            found = site.holds.authorize(
                customer.secret, "POST", "/v1/chat", NO_USAGE, CommitFuture(), hold_id=hold_id
            )
            assert not isinstance(found, Denial)
            futures[hold_id] = found[1]
        site.committer._ledger = Refusing(site.ledger, "commit")  # type: ignore[assignment]
    futures["one"].wait()
    futures["two"].wait()
    with pytest.raises(InvariantBroken):
        futures["bad"].wait()
    assert site.holds.open_count == 2
    assert {hold.hold_id for hold in site.ledger.open_holds()} == {"one", "two"}
    assert customer.used() == 21


class Blocking:
    """A ledger whose commits hang until the block ends, as on a disk that does not answer."""

    def __init__(self, site: Installation) -> None:
        self.site = site
        self.entered = threading.Event()
        self.released = threading.Event()
        self._committer: Any = site.committer
        self._ledger = site.ledger

    def commit(self, group: Any) -> Any:
        self.entered.set()
        self.released.wait()
        return self._ledger.commit(group)

    def __enter__(self) -> Blocking:
        self._committer._ledger = self
        return self

    def __exit__(self, *exc: object) -> None:
        if self._committer._ledger is self:
            self._committer._ledger = self._ledger
        self.released.set()


def test_memory_is_bounded_while_the_disk_hangs(
    customer: Customer, site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that neither returns nor fails must not let the queue grow for ever."""
    monkeypatch.setattr(committing, "QUEUE_MAX", 5)
    with Blocking(site) as blocked:
        site.holds.settle(customer.admit(), Outcome())
        blocked.entered.wait()
        admitted = 0
        for _ in range(50):
            found = site.holds.admit(customer.secret, "POST", "/v1/chat")
            if isinstance(found, Denial):
                assert found.reason == "unavailable"
                continue
            admitted += 1
            site.holds.settle(found, Outcome())
        assert admitted == 6
        with pytest.raises(Unavailable, match="Too much waits"):
            customer.record("a")
    eventually(lambda: site.committer.queued == 0 and site.gate.refusing is None)
    wait_until_idle(site)
    assert customer.totals() == (7, 49)


def test_a_defect_does_not_end_the_commit_thread(
    customer: Customer, site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything waits on that thread: were it gone, every caller would wait for ever."""

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(site.relay, "notify", fail)
        customer.record("a")
        patch.setattr(site.gate, "booked", fail)
        with pytest.raises(Unavailable, match="unknown"):
            customer.record("b")
    assert customer.record("b") == 0
    assert customer.record("c") == 1


# -- closing ------------------------------------------------------------------------------------------------


def test_closing_commits_what_is_queued(customer: Customer, install: Install, account: str) -> None:
    """Also when the ledger fails for a moment just then."""
    site = customer.site
    with faulty_ledger(site) as ledger:
        ledger.refuse(2)
        for admission in [customer.admit() for _ in range(5)]:
            site.holds.settle(admission, Outcome())
        site.close()
    again = install()
    assert again.reconcile.verify().ok
    assert again.ledger.counter(account, "budget:b", 0)[0] == 35


def test_closing_without_a_ledger_ends_and_says_what_was_lost(
    customer: Customer, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither hangs nor keeps silent; what was acknowledged is all there afterwards."""
    site = customer.site
    customer.record("acknowledged")
    with faulty_ledger(site) as ledger:
        admissions = [customer.admit() for _ in range(3)]
        ledger.refuse(1_000_000)
        for admission in admissions:
            site.holds.settle(admission, Outcome())
        with caplog.at_level(logging.ERROR, "tollkeeper.committer"):
            site.committer.close(timeout_s=0.1)
            site.close()
    (line,) = (r for r in caplog.records if r.getMessage() == "tollkeeper.committer.abandoned")
    assert (line.__dict__["lost"], site.committer.lost_tasks) == (3, 3)
    again = install()
    assert again.reconcile.verify().ok
    assert again.ledger.counter(customer.account, "budget:b", 0)[0] == 1


def test_after_closing_nothing_is_taken(customer: Customer) -> None:
    """A late caller gets an answer, not a wait."""
    admission = customer.admit()
    customer.site.close()
    with pytest.raises(Unavailable, match="closing"):
        customer.record("a")
    with pytest.raises(Unavailable, match="closing"):
        customer.site.holds.settle(admission, Outcome())
    customer.site.close()


def test_closing_twice_at_once_is_closing_once(customer: Customer, install: Install) -> None:
    """A signal handler and the end of a block may both close."""
    threads = [threading.Thread(target=customer.site.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    install()


# -- budgets that change meanwhile --------------------------------------------------------------------------


def test_what_was_admitted_before_a_budget_is_charged_to_it(customer: Customer, account: str) -> None:
    """It is committed after the budget came into force, and the counter is the sum of its events."""
    site = customer.site
    admission = customer.admit()
    set_up(site, Budget(id="new", account=account, amount=1_000, period="day"))
    site.holds.settle(admission, Outcome())
    wait_until_idle(site)
    assert customer.totals() == (1, 7)
    verdict = site.reconcile.verify()
    assert verdict.differences == []
    assert {used for (at, _), used in site.ledger.counter_rows(account).items() if at == "budget:new"} == {7}


def test_who_reads_the_new_version_of_the_budgets_reads_the_new_budgets(
    customer: Customer, site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a batch that was prepared in that moment would be charged to the old ones, and be taken."""
    listener: Any = site.committer._listener
    original, version = listener.scopes_changed, site.committer.scopes_version
    commit, seen = site.ledger.commit, []

    def read_just_before(group: Any) -> Any:
        site.directory.scopes(account, "", "")
        return commit(group)

    def read_just_after(change: ChangeScopes) -> None:
        original(change)
        budgets = {budget.counter_id for budget in site.directory.scopes(account, "", "").budgets}
        seen.append((change.accounts, budgets, site.committer.scopes_version))

    monkeypatch.setattr(site.ledger, "commit", read_just_before)
    monkeypatch.setattr(listener, "scopes_changed", read_just_after)
    set_up(site, Budget(id="new", account=account, amount=1_000, period="day"))
    assert seen == [({account}, {"budget:b", "budget:new"}, version)]
    assert site.committer.scopes_version == version + 1


def test_a_budget_set_while_a_store_is_away_comes_into_force_by_itself(
    install: Install, usage_store: Any, account: str
) -> None:
    """The catalog has it already, so that a repeat changes nothing: nobody would ever ask again."""
    store = Faulty(usage_store, "charged")
    site = install(store=store)
    customer = Customer(site, account)
    customer.record("a")
    store.refuse(1)
    with pytest.raises(Unavailable):
        set_up(site, Budget(id="late", account=account, amount=10, period="total"))
    eventually(lambda: "budget:late" in site.ledger.scopes(account))
    eventually(lambda: site.ledger.counter(account, "budget:late", 0)[0] == 1)
    assert site.reconcile.verify().differences == []


def test_a_budget_that_a_crash_kept_from_coming_into_force_does_at_the_next_start(
    install: Install, account: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended between the change of the catalog and that of the ledger."""
    site = install()
    # It would mend that itself, some time after its start.
    monkeypatch.setattr(site._catalog_changes._budgets, "_differs", lambda account_id: False)
    customer = Customer(site, account)
    customer.record("a")
    site.catalog.put(Budget(id="late", account=account, amount=10, period="total"), clock.now_us())
    assert not site.reconcile.verify().ok
    site.close()
    again = install()
    eventually(lambda: "budget:late" in again.ledger.scopes(account))
    eventually(lambda: again.ledger.counter(account, "budget:late", 0)[0] == 1)
    assert again.reconcile.verify().ok


def test_grants_that_a_crash_kept_from_being_posted_are_posted_at_the_next_start(
    install: Install, account: str, clock: Any
) -> None:
    """The customer has paid; also when the ledger fails once just then."""
    site = install()
    Customer(site, account, amount=100)
    site.catalog.put(Grant(id="paid", account=account, amount_nanos=50), clock.now_us())
    site.close()
    again = install()
    eventually(lambda: not again.ledger.unposted_grants())
    assert again.ledger.book(account)[0].balance_nanos(clock.now()) == 150


# -- futures ------------------------------------------------------------------------------------------------


def test_a_commit_future_can_be_waited_on_from_anywhere() -> None:
    """A retry of the same request may come to another loop or thread than the first."""
    loops: list[Any] = []

    async def make() -> CommitFuture:
        future = CommitFuture(asyncio.get_running_loop())
        loops.append(future)
        return await future.committed()  # type: ignore[no-any-return]

    got: list[Any] = []
    first = threading.Thread(target=lambda: got.append(asyncio.run(make())))
    first.start()
    eventually(lambda: bool(loops))
    (future,) = loops

    async def elsewhere() -> Any:
        return await future.committed()

    others = [
        threading.Thread(target=lambda: got.append(asyncio.run(elsewhere()))),
        threading.Thread(target=lambda: got.append(future.wait())),
    ]
    for thread in others:
        thread.start()
    future.result = 42
    finish([future])
    for thread in (first, *others):
        thread.join(30)
    assert got == [42, 42, 42]
    assert future.wait() == asyncio.run(elsewhere()) == 42


def test_a_caller_that_goes_away_does_not_stop_the_others() -> None:
    """One client hangs up; another asked the same."""

    async def run() -> Any:
        future = CommitFuture(asyncio.get_running_loop())
        gone, stays = asyncio.ensure_future(future.committed()), asyncio.ensure_future(future.committed())
        await asyncio.sleep(0)
        gone.cancel()
        future.error = Unavailable("no")
        finish([future])
        with pytest.raises(asyncio.CancelledError):
            await gone
        with pytest.raises(Unavailable, match="no"):
            await stays

    asyncio.run(run())


def test_a_loop_that_was_closed_is_no_harm_to_the_others() -> None:
    """The commit thread wakes many at once, and some have left without a word."""
    loop = asyncio.new_event_loop()
    orphan = CommitFuture(loop)
    loop.close()
    other = CommitFuture()
    finish([orphan, other])
    assert other.wait(0) is None


def test_who_waited_too_long_is_told_that_the_outcome_is_unknown() -> None:
    """It may still be booked: only a retry under the same id is safe."""
    with pytest.raises(Unavailable, match="unknown: retry with the same id"):
        CommitFuture().wait(0.001)


def test_bad_values_are_told_by_name() -> None:
    """A caller that settles with an invalid value must learn which value it was."""
    from tests.ledger.test_pending import record

    with pytest.raises(BadParameter, match="status") as caught:
        check_storable(record("a")._replace(status=1_000))
    assert isinstance(caught.value, BadInput)
