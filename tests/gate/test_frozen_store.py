"""A store that does not answer holds only those who need what it has: the gate reads it without its lock."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.gate.memory_site import SPENT, Site
from tollkeeper.domain.catalog import Budget, Limit, Route
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.entitlements import scope_of_budget
from tollkeeper.domain.matching import Facts
from tollkeeper.errors import Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.testing import ManualClock

PATIENCE_S = 60
"""After so long a call that must not wait has failed."""
DAY_S = 86_400
CHAT = Route(id="chat", method="POST", path="/chat")


class FrozenSite(Site):
    """Its ledger stops answering, once, at one reading of account `a`: before or after it looked."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.method = ""
        self.looks_first = True
        self.reached, self.thawed = threading.Event(), threading.Event()
        self.fails = False

    def freeze(self, method: str, *, looks_first: bool = True, fails: bool = False) -> None:
        self.method, self.looks_first, self.fails = method, looks_first, fails

    def _read(self, method: str, *args: Any) -> Any:
        read = getattr(super(), method)
        if method != self.method or args[0] != "a":
            return read(*args)
        self.method = ""
        found = read(*args) if self.looks_first else None
        self.reached.set()
        assert self.thawed.wait(PATIENCE_S)
        if self.fails:
            raise Unavailable("The ledger is away.")
        return found if self.looks_first else read(*args)

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self._read("counter", account_id, counter_id, period_start_us)

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return self._read("slots", account_id, counter_id)

    def book(self, account_id: str) -> Any:
        return self._read("book", account_id)

    def meanwhile(self, call: Callable[[], Any]) -> Future[Any]:
        """Begin *call*; return when it waits for the ledger, or is over."""
        thread = ThreadPoolExecutor(1)
        future = thread.submit(call)
        future.add_done_callback(lambda _: self.reached.set())
        assert self.reached.wait(PATIENCE_S)
        thread.shutdown(wait=False)
        return future


@pytest.fixture
def site(clock: ManualClock):
    site = FrozenSite(clock)
    yield site
    site.thawed.set()


def begin_budget(site: FrozenSite, amount: int = 1_000) -> None:
    budget = Budget(id="new", account="a", amount=amount, period="day")
    site.gate.begin_budgets("a", [(scope_of_budget(budget), None)])


def hold_again(site: FrozenSite) -> Admission:
    key = site.gate.compiled_key("a.k")
    assert not isinstance(key, Denial)
    yesterday_us = site.clock.now_us() - DAY_S * 10**6
    facts = Facts("", {}, CHAT.event_kind, CHAT.method, CHAT.path)
    return site.gate.hold_again(key, CHAT, "h", Amounts(1, 1, 5, 0), yesterday_us, facts)


CALLS: dict[str, tuple[str, Callable[[FrozenSite], Any]]] = {
    "a new key's windows": ("slots", lambda site: site.admit("a.new")),
    "a new key's budget": ("counter", lambda site: site.admit("b.new") and site.admit("a.new")),
    "a balance": ("book", lambda site: site.admit("a.new")),
    "a window that belongs to no key": ("slots", lambda site: site.gate.keyless.spend("a", "calls", SPENT)),
    "where that one stands": ("slots", lambda site: site.gate.keyless.status("a", "calls", SPENT)),
    "a period that turned": ("counter", lambda site: site.admit("a.k")),
    "where a key stands after that": ("counter", lambda site: site.limit_statuses("a.k")),
    "a budget that comes into force": ("counter", begin_budget),
    "a hold of yesterday after a restart": ("counter", hold_again),
}


@pytest.mark.parametrize("what", sorted(CALLS))
def test_while_the_ledger_is_read_others_are_admitted(
    site: FrozenSite, clock: ManualClock, what: str
) -> None:
    method, call = CALLS[what]
    kept = (
        [site.admit("b.k"), site.admit("a.k")]
        if "new" not in what and what != "a balance"
        else [site.admit("b.k")]
    )
    clock.advance(seconds=DAY_S)
    # What the other key needs of the new day is in memory.
    assert isinstance(site.admit("b.k"), Admission)
    site.freeze(method)
    waits = site.meanwhile(lambda: call(site))
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(site.admit, "b.k")
        try:
            assert isinstance(other.result(PATIENCE_S), Admission)
        finally:
            site.thawed.set()
    assert not isinstance(waits.result(PATIENCE_S), Denial)
    del kept


@pytest.mark.parametrize("looks_first", [True, False])
def test_a_commit_while_a_period_is_read_counts_once(
    site: FrozenSite, clock: ManualClock, looks_first: bool
) -> None:
    """What the ledger answers may or may not contain it."""
    site.settle(admitted(site.admit("a.k")))
    site.commit()
    clock.advance(seconds=DAY_S)
    site.freeze("counter", looks_first=looks_first)
    waits = site.meanwhile(lambda: site.admit("a.k", nanos=1))
    # A batch that did not pass the gate.
    at = ("a", "budget:b", day_of(clock))
    site.used[at] += 150
    site.commits += 1
    site.gate.booked({at: 150}, {}, {}, site.commits)
    site.thawed.set()
    held = admitted(waits.result(PATIENCE_S))
    assert {s.name: s.used for s in site.limit_statuses("a.k")}["b"] == 151
    assert site.admit("a.k", nanos=250).largest_fit == 249
    del held


@pytest.mark.parametrize("looks_first", [True, False])
def test_a_commit_while_a_balance_is_read_counts_once(
    site: FrozenSite, clock: ManualClock, looks_first: bool
) -> None:
    site.freeze("book", looks_first=looks_first)
    waits = site.meanwhile(lambda: site.admit("a.k", nanos=1))
    site.settled = []
    book = Site.book(site, "a")[0].charged(150, clock.now())
    site.books["a"] = book
    site.commits += 1
    site.gate.booked({}, {}, {"a": book}, site.commits)
    site.thawed.set()
    held = admitted(waits.result(PATIENCE_S))
    (credit,) = (s for s in site.limit_statuses("a.k") if s.kind == "credit")
    assert (credit.allowed, credit.used) == (850, 1)
    del held


def test_a_window_that_others_filled_while_it_was_read_is_full(site: FrozenSite, clock: ManualClock) -> None:
    """Made, filled, saved and over meanwhile: what was read of it before must not make it empty again."""
    site.freeze("slots")
    waits = site.meanwhile(lambda: site.gate.keyless.spend("a", "calls", SPENT))
    for _ in range(SPENT.amount):
        assert not isinstance(site.gate.keyless.spend("a", "calls", SPENT), Denial)
    site.commit()
    clock.advance(seconds=7_200)
    site.evict_idle()
    site.thawed.set()
    assert isinstance(waits.result(PATIENCE_S), Denial)
    site.commit()
    site.evict_idle()
    assert site.counter_count == 0


def test_a_limit_that_was_lowered_while_its_window_was_read_stays_lowered(site: FrozenSite) -> None:
    """The reader has the limit as it was; another one made the window with the limit as it is."""
    site.freeze("slots")
    waits = site.meanwhile(lambda: site.gate.keyless.spend("a", "calls", SPENT))
    lowered = Limit(name="calls", amount=1, window="5m")
    site.gate.forget("a")
    assert not isinstance(site.gate.keyless.spend("a", "calls", lowered), Denial)
    site.thawed.set()
    assert isinstance(waits.result(PATIENCE_S), Denial)


@pytest.mark.parametrize("method", ["slots", "counter", "book"])
def test_a_reading_that_fails_leaves_nothing_behind(
    site: FrozenSite, clock: ManualClock, method: str
) -> None:
    site.freeze(method, fails=True)
    waits = site.meanwhile(lambda: site.admit("a.k"))
    site.thawed.set()
    assert isinstance(waits.exception(PATIENCE_S), Unavailable)
    # Its traceback refers to the counters.
    del waits
    gc.collect()
    site.settle(admitted(site.admit("a.k")))
    site.commit()
    clock.advance(seconds=7_200)
    site.evict_idle()
    assert site.counter_count == 0


def test_a_period_that_cannot_be_read_admits_nothing_and_takes_nothing(
    site: FrozenSite, clock: ManualClock
) -> None:
    held = admitted(site.admit("a.k"))
    clock.advance(seconds=DAY_S)
    before = {s.name: s.used for s in site.limit_statuses("a.k") if s.kind != "budget"}
    clock.advance(seconds=DAY_S)
    site.freeze("counter", fails=True)
    site.thawed.set()
    with pytest.raises(Unavailable):
        site.admit("a.k")
    assert {s.name: s.used for s in site.limit_statuses("a.k") if s.kind != "budget"} == before
    del held


def day_of(clock: ManualClock) -> int:
    return scope_of_budget(Budget(id="b", account="a", amount=1, period="day")).span_us(clock.now_us())[0]


def admitted(found: Admission | Denial) -> Admission:
    assert isinstance(found, Admission), found
    return found
