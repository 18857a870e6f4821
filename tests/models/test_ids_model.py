"""
A few ids that collide, through every door and in every order: one id is one event, and counter = ledger = events.

The oracle knows, per id, the state of its hold and what is booked under it; the installation is a real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.conftest import Install
from tests.effort import effort
from tests.ledger.test_holds import Api, cost
from tests.ledger.test_one_id import amend, assert_one_event_an_id, record
from tollkeeper.errors import EventConflict, HoldEnded, HoldUnknown, NotFound, TollkeeperError
from tollkeeper.testing import ManualClock, commit_all, unique

IDS = ("a", "b", "c")
ids = st.sampled_from(IDS)
settled_nanos = st.sampled_from((20, 21))
bulk_nanos = st.sampled_from((5, 6))
amended_nanos = st.sampled_from((8, 9))


class Booked(NamedTuple):
    """What an id names: an event that came by a settle or in bulk, or a correction of *event_id*."""

    door: str
    nanos: int
    event_id: str = ""
    changes: bool = False


class IdsModel(RuleBasedStateMachine):
    """Each call is answered as the oracle says, and repeated it is answered the same."""

    def __init__(self, install: Any, clock: ManualClock) -> None:
        super().__init__()
        self.install = install
        self.clock = clock

    @initialize()
    def start(self):
        self.api = Api(self.install(), unique("acct"))
        # Bulk events have one time, so that the same event is the same body.
        self.at_us = self.clock.now_us()
        self.holds: dict[str, str] = {}
        self.booked: dict[str, Booked] = {}
        self.costs: dict[str, int] = {}
        self.amended: set[str] = set()

    def expect(self, call: Any, error: type[TollkeeperError] | None) -> Any:
        """Make a call; one that is refused is refused again."""
        if error is None:
            return call()
        for _ in range(2):
            with pytest.raises(error):
                call()
        return None

    def event(self, id_: str) -> Booked | None:
        booked = self.booked.get(id_)
        return None if booked is None or booked.door == "correction" else booked

    @rule(id_=ids)
    def authorize(self, id_):
        free = id_ not in self.booked and self.holds.get(id_) in (None, "open")
        self.expect(lambda: self.api.authorize(id_, ttl_s=60), None if free else HoldEnded)
        if free:
            self.holds[id_] = "open"

    @rule(id_=ids, nanos=settled_nanos)
    def settle(self, id_, nanos):
        hold, event = self.holds.get(id_), self.event(id_)
        error: type[TollkeeperError] | None = None
        replayed = False
        if hold == "voided" or (hold == "expired" and id_ in self.booked):
            error = HoldEnded
        elif hold is None:
            replayed = event is not None and (
                id_ in self.amended or (event.door == "settle" and event.nanos == nanos)
            )
            if not replayed:
                error = HoldUnknown if event is None else HoldEnded
        settled = self.expect(lambda: self.api.settle(id_, cost(nanos)), error)
        if error is None:
            assert settled.replayed == replayed
            if not replayed:
                del self.holds[id_]
                self.booked[id_] = Booked("settle", nanos)
                self.costs[id_] = nanos
            assert self.api.settle(id_, cost(nanos)).replayed

    @rule(id_=ids)
    def void(self, id_):
        hold, event = self.holds.get(id_), self.event(id_)
        error: type[TollkeeperError] | None = None
        if hold == "expired" and id_ in self.booked:
            error = HoldEnded
        elif hold is None:
            error = HoldUnknown if event is None else HoldEnded
        self.expect(lambda: self.api.void(id_), error)
        if error is None:
            self.holds[id_] = "voided"
            self.api.void(id_)

    @rule()
    def expire(self):
        self.clock.advance(seconds=60)
        self.api.site.holds.expire()
        self.holds = {id_: "expired" if hold == "open" else hold for id_, hold in self.holds.items()}

    @rule(id_=ids, nanos=bulk_nanos)
    def ingest(self, id_, nanos):
        booked = self.booked.get(id_)
        if booked is None and self.holds.get(id_) != "open":
            expected = (1, 0, [])
            self.booked[id_] = Booked("bulk", nanos)
            self.costs[id_] = nanos
        elif id_ in self.amended or booked == Booked("bulk", nanos):
            expected = (0, 1, [])
        else:
            expected = (0, 0, ["event_conflict"])
        assert record(self.api, id_, nanos=nanos, now_us=self.at_us) == expected
        again = (0, 1, []) if expected[0] else expected
        assert record(self.api, id_, nanos=nanos, now_us=self.at_us) == again

    @rule(event_id=ids, id_=ids, nanos=amended_nanos)
    def amend(self, event_id, id_, nanos):
        error: type[TollkeeperError] | None = None
        booked = self.booked.get(id_)
        asked = Booked("correction", nanos, event_id)
        if self.event(event_id) is None:
            error = NotFound
        elif (booked is not None and booked != asked) or (booked is None and self.holds.get(id_) == "open"):
            error = EventConflict
        repeated = self.expect(lambda: amend(self.api, event_id, id_, nanos), error)
        if error is None:
            assert repeated == (booked == asked)
            if not repeated:
                self.booked[id_] = asked
                self.costs[event_id] = nanos
                self.amended.add(event_id)
            assert amend(self.api, event_id, id_, nanos)

    @rule()
    def restart(self):
        self.api.site.close()
        self.api.site = self.install()

    @rule()
    def deliver(self):
        commit_all(self.api.site)
        self.api.site.relay.deliver_up_to(self.api.site.committer.outbox_seq)

    def teardown(self):
        if not hasattr(self, "api"):
            return
        try:
            assert_one_event_an_id(self.api)
            assert self.api.charged() == sum(self.costs.values())
            assert self.api.requests() == len(self.costs)
            opened = sum(hold == "open" for hold in self.holds.values())
            assert (self.api.used("open"), self.api.site.holds.open_count) == (opened, opened)
        finally:
            # Or the run that shrinks a finding could not open the directory.
            self.api.site.close()


def test_one_id_is_one_event_whatever_the_doors_and_their_order(
    tmp_path: Path, usage_store: Any, clock: ManualClock, install: Install
) -> None:
    run_state_machine_as_test(
        lambda: IdsModel(install, clock),
        settings=settings(
            max_examples=effort(4, 30),
            stateful_step_count=effort(15, 30),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
