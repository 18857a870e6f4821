"""The gate evicts idle keys and counters, and none that a decision, a hold or a commit still needs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.effort import effort
from tests.gate.memory_site import IDLE_S, SPENT, Site
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.gate.gate import Admission, CountedCall
from tollkeeper.testing import ManualClock


@pytest.fixture
def site(clock: ManualClock) -> Site:
    return Site(clock)


def test_memory_is_bounded_when_keys_come_once_and_never_again(site: Site, clock: ManualClock) -> None:
    """Each leaves five windows, a budget and a balance behind: for ever, they would fill the memory."""
    most = 0
    for number in range(2_000):
        admission = site.admit(f"acct{number}.once")
        assert isinstance(admission, Admission)
        if number % 3:
            site.settle(admission)
        else:
            site.void(admission)
        del admission
        if number % 10 == 9:
            site.commit()
        clock.advance(seconds=3)
        for _ in range(2):
            site.gate.evict_idle()
        most = max(most, site.counter_count)
    # All of the keys of ten minutes, and the longest window, an hour, of the others; 14,000 if all stayed.
    assert most < 200 * 7 + 1_200 + 1_000
    assert len(site.gate._keys.by_hash) <= IDLE_S // 3 + 20
    clock.advance(seconds=7_200)
    site.commit()
    for _ in range(40):
        site.gate.evict_idle()
    assert (site.counter_count, len(site.gate._keys.by_hash), site.gate._keys._hashes_by_account) == (
        0,
        0,
        {},
    )


def test_a_key_in_use_is_not_compiled_again(site: Site, clock: ManualClock) -> None:
    """To resolve a key reads the catalog: what is in use must stay at hand."""
    site.settle(admitted(site))
    compiled_key = site.gate.compiled_key("a.k")
    for _ in range(20):
        clock.advance(seconds=IDLE_S // 2)
        site.settle(admitted(site))
        site.commit()
        site.evict_idle()
    assert site.gate.compiled_key("a.k") is compiled_key


def test_an_open_hold_keeps_its_counters(site: Site, clock: ManualClock) -> None:
    """What it uses beyond its estimate counts where it was held, however long it was open."""
    admission = admitted(site, nanos=0)
    site.commit()
    clock.advance(seconds=7_200)
    site.evict_idle()
    assert site.counter_count == 7
    site.settle(admission, tokens=30, nanos=300)
    assert {status.name: status.used for status in site.limit_statuses("a.k")} == {
        "rpm": 0, "tpm": 0, "permits": 0, "open": 0, "shared": 0, "b": 300, "credit": 300,
    }  # fmt: skip


def test_what_is_not_committed_stays(site: Site, clock: ManualClock) -> None:
    """The ledger does not have it yet: read again, the budget and the balance would be full again."""
    site.settle(admitted(site), nanos=300)
    site.gate.take_last_used()
    clock.advance(seconds=7_200)
    site.evict_idle()
    assert {status.name: status.used for status in site.limit_statuses("a.k") if status.used} == {
        "b": 300,
        "credit": 300,
    }


def test_a_window_on_its_way_to_the_ledger_stays(site: Site, clock: ManualClock) -> None:
    """Until it is written its older form would be read."""
    site.gate.keyless.spend("a", "calls", SPENT)
    site.gate.dirty_windows()
    clock.advance(seconds=7_200)
    site.evict_idle()
    assert site.counter_count == 1
    site.gate.booked({}, {}, {}, -1)
    site.evict_idle()
    assert site.counter_count == 1
    site.gate.booked({}, {}, {}, 1)
    site.evict_idle()
    assert site.counter_count == 0


def test_a_window_that_is_not_over_stays(site: Site, clock: ManualClock) -> None:
    """It would have to be read from the ledger for the next key that shares it."""
    site.settle(admitted(site))
    site.commit()
    clock.advance(seconds=IDLE_S)
    site.evict_idle()
    assert [counter_id for _, counter_id in site.gate._counters.places()] == [
        "limit:account:plan:pro/shared:fixed:tokens:1h"
    ]


def test_a_change_reaches_what_was_admitted_before_its_key_was_let_go(site: Site, clock: ManualClock) -> None:
    """Nobody tells a key that is no longer remembered that its budgets changed."""
    admission = admitted(site)
    site.commit()
    clock.advance(seconds=IDLE_S)
    site.evict_idle()
    assert not admission.compiled_key.current
    assert site.gate.compiled_key("a.k") is not admission.compiled_key


def admitted(site: Site, **amounts: int) -> Admission:
    found = site.admit("a.k", **amounts)
    assert isinstance(found, Admission), found
    return found


NAMES = ("a.one", "a.two", "b.one")


class PruningModel(RuleBasedStateMachine):
    """Whatever is asked, a gate that forgets what is idle decides as one that never does."""

    @initialize()
    def start(self) -> None:
        self.clock = ManualClock()
        self.sites = (Site(self.clock), Site(self.clock))
        self.open: list[tuple[Admission, Admission]] = []

    @rule(name=st.sampled_from(NAMES), tokens=st.integers(0, 60), nanos=st.integers(0, 120))
    def admit(self, name: str, tokens: int, nanos: int) -> None:
        kept, pruned = (site.admit(name, tokens, nanos) for site in self.sites)
        if isinstance(kept, Denial):
            assert pruned == kept
        else:
            assert isinstance(pruned, Admission), pruned
            self.open.append((kept, pruned))

    @rule(account=st.sampled_from("ab"))
    def spend(self, account: str) -> None:
        kept, pruned = (
            site.gate.keyless.spend(account, "calls", SPENT, from_first=True) for site in self.sites
        )
        if isinstance(kept, Denial):
            assert pruned == kept
        else:
            # Each site has its own counter.
            assert isinstance(pruned, CountedCall)
            assert pruned.mark == kept.mark

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, 90), nanos=st.integers(0, 200))
    def settle(self, data: Any, tokens: int, nanos: int) -> None:
        for site, admission in zip(self.sites, self.taken(data), strict=True):
            site.settle(admission, tokens, nanos)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), nanos=st.integers(0, 200))
    def settle_and_fail(self, data: Any, nanos: int) -> None:
        """Its commit failed: the hold is open again."""
        pair = self.taken(data)
        for site, admission in zip(self.sites, pair, strict=True):
            assert site.gate.claim(admission)
            outcome = Outcome(usage=Usage(cost_nanos=nanos))
            record, _ = site.gate.settle(admission, outcome, self.clock.now_us())
            site.gate.unsettle(admission, record)
        self.open.append(pair)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def void(self, data: Any) -> None:
        for site, admission in zip(self.sites, self.taken(data), strict=True):
            site.void(admission)

    def taken(self, data: Any) -> tuple[Admission, Admission]:
        return self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))

    @rule()
    def commit(self) -> None:
        for site in self.sites:
            site.commit()

    @rule(seconds=st.integers(1, 30) | st.sampled_from((60, 61, 300, 90_000)))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    @rule()
    def change_the_catalog(self) -> None:
        for site in self.sites:
            site.gate.forget()

    @rule(seconds=st.sampled_from((0, IDLE_S, IDLE_S, 3_600)))
    def wait_and_prune(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)
        self.sites[1].evict_idle()

    # Not after every step: to look at a key compiles it, and so keeps its counters.
    @rule()
    def both_stand_alike(self) -> None:
        for name in NAMES:
            kept, pruned = (site.limit_statuses(name) for site in self.sites)
            assert pruned == kept

    def teardown(self) -> None:
        if hasattr(self, "sites"):
            self.both_stand_alike()


TestPruning = PruningModel.TestCase
TestPruning.settings = settings(max_examples=effort(24, 120), stateful_step_count=40, deadline=None)
