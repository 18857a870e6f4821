"""
Every method of every port fails, before and after its work, is repeated, delayed and overtaken.

Whatever fails, callers are told so by `Unavailable`; they ask again with the same ids; and in the end what was
acknowledged is recorded once, and counter = ledger = sum of events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from tests.conftest import Install
from tests.effort import effort
from tests.faults.test_backlog import asked, send
from tests.faults.test_ledger_away import Customer, eventually
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.ledger import SqlLedger
from tollkeeper.adapters.sql.outbox import SqlOutbox
from tollkeeper.domain.catalog import Budget, Grant
from tollkeeper.domain.events import Event
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import Unavailable
from tollkeeper.installation import Installation
from tollkeeper.ledger import relay
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ports import CatalogStore, Ledger, Outbox, UsageStore
from tollkeeper.testing import Faulty, commit_all, lost_commits, verify

TRIES: Final = 20
TOGETHER: Final = effort(16, 1)
"""Methods of a port that fail in one day, each once before every step."""


def methods(port: type, *but: str) -> list[str]:
    names = {name for kind in port.__mro__ for name, value in vars(kind).items() if callable(value)}
    return sorted(name for name in names if not name.startswith("_") and name not in but)


LEDGER: Final = methods(Ledger, "close")
OUTBOX: Final = methods(Outbox)
CATALOG: Final = methods(CatalogStore, "close")
USAGE: Final = methods(UsageStore, "close")


def insisting(call: Callable[[], Any]) -> Any:
    """Ask until there is an answer; nothing but `Unavailable` may come instead of one."""
    told: list[str] = []
    while len(told) < TRIES:
        try:
            return call()
        except Unavailable as exc:
            told.append(str(exc))
    raise AssertionError(f"it never answered: {told}")


class Day:
    """Everything that a customer and a provider do; `expected` is what must be counted in the end."""

    def __init__(self, site: Installation, account: str) -> None:
        self.site = site
        self.account = account
        self.customer = Customer(site, account)

    def steps(self) -> list[Callable[[], Any]]:
        site, account = self.site, self.account
        return [
            lambda: send(site, account, "e1", "e2", "e3"),
            self.request,
            lambda: self.customer.authorize(f"h-{account}"),
            lambda: self.settle(f"h-{account}"),
            lambda: self.customer.authorize("v"),
            lambda: self.void("v"),
            lambda: self.settle(f"h-{account}", None),
            lambda: site.amend.amend(
                account, "e1", "fix-e1", Event(id="e1", time=site.clock.now(), cost_nanos=11)
            ),
            lambda: site.amend.void(account, "e2", "fix-e2"),
            lambda: site.reports.usage(asked(account)),
            lambda: site.manage.apply([Budget(id="late", account=account, amount=10**9, period="day")]),
            lambda: site.manage.apply([Grant(id="paid", account=account, amount_nanos=50)]),
            lambda: send(site, account, "e3", "e4"),
            lambda: site.amend.price_unpriced(),
            lambda: site.reconcile.rebuild(),
            lambda: list(site.store.export(account, 0, 2**52)),
            lambda: site.manage.list("budgets", account=account),
            lambda: site.ledger.purge(site.clock.now_us()),
            lambda: site.reconcile.verify(),
        ]

    def request(self) -> None:
        admission = self.customer.admit()
        future = CommitFuture()
        self.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=5)), future)
        try:
            future.wait()
        except Unavailable:
            # The request is over: it is kept, and booked without being asked for again.
            commit_all(self.site)

    def settle(self, hold_id: str, account: str | None = "") -> None:
        owner = self.account if account == "" else account
        _, future = self.site.holds.settle_hold(
            hold_id, Outcome(usage=Usage(cost_nanos=3)), CommitFuture(), account_id=owner
        )
        if future is not None:
            future.wait()

    def void(self, hold_id: str) -> None:
        _, future = self.site.holds.void_hold(hold_id, CommitFuture(), account_id=self.account)
        if future is not None:
            future.wait()

    def check(self) -> None:
        """e1 (amended to 11), e3, e4, one request and one hold; e2 and v count nothing."""
        site = self.site
        eventually(lambda: "budget:late" in site.ledger.scopes(self.account))
        eventually(lambda: not site.ledger.unposted_grants())
        answer = insisting(lambda: site.reports.usage(asked(self.account)))
        assert (answer.complete, answer.totals) == (True, {"requests": 5, "cost_nanos": 11 + 2 + 5 + 3})
        verdict = verify(site)
        assert verdict.ok, verdict
        assert site.ledger.counter(self.account, "budget:b", 0)[0] == 21
        assert self.customer.used() == 21
        assert site.holds.open_count == 0
        assert (site.pending.record_count, site.committer.lost_tasks) == (0, 0)
        balance = site.ledger.book(self.account)[0].balance_nanos(site.clock.now())
        assert balance == 1_000_000 + 50 - 8


def live(day: Day, fault: Callable[[], None]) -> None:
    """Go through the day, with a fault at hand before each step."""
    for step in day.steps():
        fault()
        insisting(step)


def chained(target: Any, methods: Sequence[str]) -> list[Faulty]:
    """Return *target* with each of *methods* faulty: the last has all of them."""
    made: list[Faulty] = []
    for method in methods:
        made.append(Faulty(made[-1] if made else target, method))
    return made


@pytest.fixture
def opened(
    install: Install, usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Installation, list[Faulty]]]:
    """Open an installation one port of which is faulty in some methods. What tries again does so soon."""
    monkeypatch.setattr(relay, "RETRY_S", (0.02, 0.1, 0.5))

    def open_(port: str, *methods: str) -> tuple[Installation, list[Faulty]]:
        if port == "usage":
            made = chained(usage_store, methods)
            return install(store=made[-1]), made
        made = []
        kind = {"ledger": SqlLedger, "outbox": SqlLedger, "catalog": SqlCatalogStore}[port]

        def faulty(engine: Any) -> Any:
            target: Any = kind(engine)
            made.extend(chained(target.outbox if port == "outbox" else target, methods))
            if port != "outbox":
                return made[-1]
            target.outbox = made[-1]
            return target

        monkeypatch.setattr(f"tollkeeper.installation.{kind.__name__}", faulty)
        return install(), made

    return open_


PORTS: Final = {"ledger": LEDGER, "outbox": OUTBOX, "catalog": CATALOG, "usage": USAGE}


def places(*but: tuple[str, str]) -> list[Any]:
    """Return every port with its methods, `TOGETHER` at a time."""
    made = []
    for port, names in PORTS.items():
        kept = [name for name in names if (port, name) not in but]
        for start in range(0, len(kept), TOGETHER):
            some = kept[start : start + TOGETHER]
            made.append(pytest.param(port, some, id=f"{port}-{'-'.join(some)}"))
    return made


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("port", "names"), places())
def test_an_error_before_the_work_is_told_and_a_retry_does_it(
    opened: Any, account: str, port: str, names: list[str]
) -> None:
    """Once before every step; what runs by itself tries again by itself."""
    site, faulty = opened(port, *names)
    day = Day(site, account)

    def refuse(times: int = 1) -> None:
        for method in faulty:
            method.refuse(times)

    live(day, refuse)
    refuse(0)
    day.check()


# The ledger itself finds out what came of a commit, so its answer is lost below it; a key whose making was not
# answered is there, its secret lost: the caller rotates it.
@pytest.mark.drawn(2)
@pytest.mark.parametrize(("port", "names"), places(("ledger", "commit"), ("catalog", "add_key")))
def test_a_lost_answer_is_told_and_a_retry_does_nothing_twice(
    opened: Any, account: str, port: str, names: list[str]
) -> None:
    """The work is done and nobody knows; and then the network delivers it again."""
    site, faulty = opened(port, *names)
    day = Day(site, account)

    def lose(times: int = 1) -> None:
        for name, method in zip(names, faulty, strict=True):
            method.lose_replies(times)
            if (port, name) != ("catalog", "transaction"):
                method.repeat(times)

    live(day, lose)
    lose(0)
    day.check()


def test_lost_answers_to_commits_are_found_out(site: Installation, account: str) -> None:
    """Under every step, by the number of the commit: nobody is told a failure that was none."""
    day = Day(site, account)
    for step in day.steps():
        with lost_commits(site):
            insisting(step)
    day.check()


@pytest.mark.drawn(1)
@pytest.mark.parametrize("method", ["append", "known_ids", "record_columns", "report"])
def test_a_slow_usage_store_is_overtaken(opened: Any, account: str, method: str) -> None:
    """One call hangs for minutes; the gate goes on, others overtake it, and it counts once when it comes."""
    site, (faulty,) = opened("usage", method)
    day = Day(site, account)
    send(site, account, "e1", "e2")
    site.delivery.fresh(account)
    faulty.delay(1)
    if method == "append":
        late = threading.Thread(target=lambda: send(site, account, "e3"))
    elif method == "report":
        late = threading.Thread(target=lambda: site.reports.usage(asked(account)))
    else:
        late = threading.Thread(target=lambda: send(site, account, "e1", "e3"))
    late.start()
    assert faulty.delayed.wait(30)
    day.request()
    if method != "append":
        send(site, account, "e1", "e3")
    faulty.go_on()
    late.join(30)
    assert not late.is_alive()
    for step in day.steps()[2:]:
        insisting(step)
    day.check()


def test_every_method_of_the_ports_is_here() -> None:
    """A method that is added later must fail here too."""
    assert {"commit", "hold", "purge"} <= set(LEDGER)
    assert {"next_batch", "entries", "delivered"} <= set(OUTBOX)
    assert {"find_key_by_hash", "put", "transaction", "touch_keys"} <= set(CATALOG)
    assert {"append", "known_ids", "report", "rebuild"} <= set(USAGE)
    for port, made in (
        (Ledger, SqlLedger),
        (Outbox, SqlOutbox),
        (CatalogStore, SqlCatalogStore),
        (UsageStore, ClickHouseUsageStore),
    ):
        assert all(callable(getattr(made, name)) for name in methods(port))
