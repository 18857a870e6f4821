"""The cache changes the cost of a report, never its meaning."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tests.effort import effort
from tests.usage.test_report import Calls
from tollkeeper.domain.catalog import Account
from tollkeeper.domain.events import Event
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.installation import Installation
from tollkeeper.ledger import relay as relay_module
from tollkeeper.meter.amend import Amend
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import unique
from tollkeeper.usage.report import Reports

START = datetime(2026, 3, 15, 11, tzinfo=UTC)
MEASURES = (
    ("requests", "cost_nanos", "latency_ms_max", "first_at", "last_at"),
    ("requests", "latency_ms_p95", "kinds"),
)
GROUPS = ((), ("model",), ("status", "model"))
STEPS = 30


def queries(account: str) -> list[UsageQuery]:
    """Return queries of the account and of all accounts, so few that each is asked often."""
    asked = UsageQuery(account_id=account, from_us=0, to_us=2**52, sort=("-requests",), limit=3)
    return [
        msgspec.structs.replace(
            asked, account_id=whose, measures=measures, group_by=group_by, granularity=granularity
        )
        for whose in (account, None)
        for measures, group_by, granularity in zip(
            (*MEASURES, MEASURES[0]), GROUPS, ("hour", None, "day"), strict=True
        )
    ]


def meaning(report: UsageReport) -> UsageReport:
    return msgspec.structs.replace(report, as_of_us=0, behind_s=0)


class Traffic:
    """Sends, corrects and delivers events of two accounts, at random."""

    def __init__(self, site: Installation, accounts: list[str], rng: random.Random) -> None:
        self.site, self.accounts, self.rng = site, accounts, rng
        self.ids: list[tuple[str, str]] = []
        self.count = 0

    def step(self) -> None:
        self.rng.choice((self.send, self.send, self.send, self.deliver, self.correct))()

    def send(self) -> None:
        account = self.rng.choice(self.accounts)
        events = [self.event(account) for _ in range(self.rng.choice((1, 1, 2, 300)))]
        decoded = decode_events(events, now_us=self.site.clock.now_us())
        assert self.site.ingest.take(decoded).accepted == len(events)

    def event(self, account: str) -> dict[str, object]:
        self.count += 1
        id_ = f"e{self.count}"
        self.ids.append((account, id_))
        at = START + timedelta(minutes=self.rng.randrange(3_000))
        return {
            "id": id_,
            "time": at.isoformat(),
            "account": account,
            "model": self.rng.choice(("a", "b", "c")),
            "status": self.rng.choice((200, 200, 429, 500)),
            "latency_ms": self.rng.choice((None, 1.5, 80.0)),
            "cost_nanos": self.rng.randrange(100),
        }

    def deliver(self) -> None:
        self.site.relay.deliver()

    def correct(self) -> None:
        if not self.ids:
            return
        self.count += 1
        account, id_ = self.ids.pop(self.rng.randrange(len(self.ids)))
        if self.rng.random() < 0.5:
            self.site.amend.void(account, id_, f"c{self.count}")
        else:
            changes = Event(id="-", time="2026-03-18T11:00:00Z", status=201, cost_nanos=7, latency_ms=0.5)
            self.site.amend.amend(account, id_, f"c{self.count}", changes)


@pytest.mark.parametrize("seed", range(effort(1, 5)))
def test_a_cached_report_is_the_one_that_the_store_would_give(
    site: Installation, account: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was sent, corrected and delivered since, in whichever order the same queries come."""
    monkeypatch.setattr(relay_module, "GATHER_S", 60.0)
    monkeypatch.setattr(Amend, "price_unpriced", lambda amend: 0)
    rng = random.Random(seed)
    accounts = [account, unique("other")]
    site.manage.apply([Account(id=id_, name=id_) for id_ in accounts])
    traffic = Traffic(site, accounts, rng)
    asked_of_store = Calls(site.reports, "report")
    asked = 0
    for _ in range(STEPS):
        traffic.step()
        for query in rng.sample(queries(account), 2):
            asked += 1
            cached = site.reports.usage(query)
            computed = Reports(site.store, site.reports._freshness, site.delivery, site.clock).usage(query)
            assert meaning(cached) == meaning(computed)
            assert cached.complete
    assert asked_of_store.count < asked
