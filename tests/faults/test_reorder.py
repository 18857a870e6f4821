"""What was sent first arrives last: at the usage store, at the ledger and from callers; all of it counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from tests.conftest import Install
from tests.faults.test_backlog import asked, send
from tests.faults.test_ledger_away import Customer
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.events import Event
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import TollkeeperError
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import commit_all, faulty_ledger, unique, verify


class Swapping:
    """A usage store that gets every other batch a second time, behind the one that was sent after it."""

    def __init__(self, target: ClickHouseUsageStore) -> None:
        self._target = target
        self.kept: tuple[pa.Table, str] | None = None
        self.order: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def append(self, records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        """Write, then what was kept of the one before."""
        self._target.append(records, token, begun_after=begun_after)
        self.order.append(token)
        if self.kept is not None:
            (late, late_token), self.kept = self.kept, None
            self._target.append(late, late_token)
            self.order.append(late_token)
        elif len(self.order) % 2:
            self.kept = (records, token)


def check(site: Installation, account: str, requests: int, cost_nanos: int) -> None:
    """Counter = ledger = events, each once."""
    answer = site.reports.usage(asked(account))
    assert (answer.complete, answer.totals) == (True, {"requests": requests, "cost_nanos": cost_nanos})
    assert site.ledger.counter(account, "budget:b", 0)[0] == cost_nanos
    verdict = verify(site)
    assert verdict.ok, verdict


def test_a_batch_that_arrives_again_after_later_ones_counts_once(
    install: Install, usage_store: ClickHouseUsageStore, account: str
) -> None:
    """The network delivers the first a second time, behind the second; its amendment is there already."""
    store = Swapping(usage_store)
    site = install(store=store)
    customer = Customer(site, account)
    for step in range(4):
        assert send(site, account, f"e{step}", f"f{step}").accepted == 2
        site.delivery.fresh(account)
        site.amend.amend(
            account, f"e{step}", f"fix{step}", Event(id=f"e{step}", time=site.clock.now(), cost_nanos=11)
        )
        site.delivery.fresh(account)
    assert len(store.order) != len(set(store.order)), "nothing came again"
    assert send(site, account, "f0", "f3").accepted == 0
    check(site, account, 8, 4 * (11 + 1))
    assert customer.used() == 48


@pytest.mark.drawn(1)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "swapped"])
def test_batches_in_swapped_order_sum_up_to_the_same(
    install: Install,
    usage_store: ClickHouseUsageStore,
    order: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The events' amendment and void are written before the events themselves, and the answer is the same."""
    made: list[tuple[pa.Table, str]] = []
    account = unique("acct")
    real = usage_store.append
    site = install()
    Customer(site, account)

    def note(records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        made.append((records, token))
        real(records, token, begun_after=begun_after)

    monkeypatch.setattr(usage_store, "append", note)
    send(site, account, "e1", "e2", "e3")
    site.delivery.fresh(account)
    site.amend.amend(account, "e1", "fix1", Event(id="e1", time=site.clock.now(), cost_nanos=11))
    site.amend.void(account, "e2", "fix2")
    site.delivery.fresh(account)
    expected = site.reports.usage(asked(account)).totals
    other = unique("acct")
    moved = [
        (
            rows.set_column(
                rows.schema.get_field_index("account_id"), "account_id", pa.array([other] * len(rows))
            ),
            t,
        )
        for rows, t in made
        if set(rows.column("account_id").to_pylist()) == {account}
    ]
    assert len(moved) >= 2
    parts = [moved[:1], moved[1:]]
    for place in order:
        for rows, token in parts[place]:
            real(rows.cast(made[0][0].schema), f"{other}:{token}")
    assert usage_store.report(asked(other)).totals == expected == {"requests": 2, "cost_nanos": 12}
    assert not [line for line in usage_store.differences() if other in line]


def test_an_amendment_before_its_event_is_refused_and_counts_when_it_comes_again(
    site: Installation, account: str
) -> None:
    """There is nothing to amend yet; and afterwards once, whichever comes again."""
    Customer(site, account)
    fix: Callable[[], Any] = lambda: site.amend.amend(  # noqa: E731
        account, "e1", "fix", Event(id="e1", time=site.clock.now(), cost_nanos=11)
    )
    with pytest.raises(TollkeeperError):
        fix()
    check(site, account, 0, 0)
    assert send(site, account, "e1").accepted == 1
    fix()
    fix()
    assert send(site, account, "e1").accepted == 0
    check(site, account, 1, 11)


def test_a_settle_overtakes_another_and_both_count(site: Installation, account: str) -> None:
    """The group of one waits before the ledger while the other settles and comes after it; each twice."""
    customer = Customer(site, account)
    first, second = customer.admit(), customer.admit()
    with faulty_ledger(site) as ledger:
        ledger.delay(1)
        late, early = CommitFuture(), CommitFuture()
        # The one admitted last is settled first.
        site.holds.settle(second, Outcome(usage=Usage(cost_nanos=5)), early)
        assert ledger.delayed.wait(30)
        site.holds.settle(first, Outcome(usage=Usage(cost_nanos=3)), late)
        ledger.go_on()
        early.wait()
        late.wait()
    commit_all(site)
    check(site, account, 2, 8)
    assert customer.used() == 8
    assert site.holds.open_count == 0
