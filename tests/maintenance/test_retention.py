"""Events expire as their account says: sums, ids, budgets and verify hold, and what is gone is said to be."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tollkeeper.domain.adjustments import Adjustment
from tollkeeper.domain.catalog import Account, Budget, Grant, Key
from tollkeeper.domain.events import Event
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.matching import Match
from tollkeeper.domain.requests import NO_USAGE, Outcome
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import BadParameter, DetailExpired, HoldUnknown, Unavailable
from tollkeeper.http.metrics import metrics_source, render_metrics
from tollkeeper.http.routes.calls import Maintenance
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.meter.decode import decode_events
from tollkeeper.settings import load
from tollkeeper.testing import KeptOpen, set_up, unique

DAY_US = 86_400_000_000
MARCH_8 = to_us(datetime(2026, 3, 8, tzinfo=UTC))
"""Ten days before the clock of the tests, a UTC midnight."""


def take(site: Installation, *events: dict[str, Any]) -> tuple[int, int, int]:
    """Take events into the usage store; return how many were accepted, known already and rejected."""
    taken = site.ingest.take(decode_events(list(events), now_us=site.clock.now_us()))
    site.relay.deliver_up_to(site.committer.outbox_seq)
    return taken.accepted, taken.duplicates, taken.rejected


def events_of(account: str, days: range, **fields: Any) -> list[dict[str, Any]]:
    """One event of each of some days of March."""
    return [
        {"id": f"e{day}", "account": account, "time": f"2026-03-{day:02}T10:00:00Z", "cost_nanos": day}
        | fields
        for day in days
    ]


def totals(site: Installation, account: str, **options: Any) -> Any:
    given = {"from_us": 0, "to_us": 2**61, "measures": ("requests", "cost_nanos")} | options
    report = site.reports.usage(UsageQuery(account_id=account, **given))
    return report.totals, report.complete, report.lacks_detail, report.detail_from_us


def differences(site: Installation, *accounts: str) -> list[Any]:
    """What verify finds of *accounts*, or of the store as a whole."""
    verdict = site.reconcile.verify()
    return [d for d in verdict.differences if d.account_id in accounts] + [
        line for line in verdict.store_differences if any(account in line for account in accounts)
    ]


def test_each_account_keeps_its_events_for_its_own_time(
    install: Callable[..., Installation], account: str
) -> None:
    """The setting, an account's own time, and none: totals stay, and an answer says where events end."""
    site = install(retention="10d")
    short, ever = unique("acct"), unique("acct")
    set_up(
        site,
        Account(id=account, name="A"),
        Account(id=short, name="S", retention="1w"),
        Account(id=ever, name="E", retention="none"),
        Grant(id="g", account=account, amount_nanos=10_000),
        Key(id=f"{account}.k", account=account, type="credit"),
        Budget(id="b", account=account, amount=10_000, period="month"),
    )
    assert take(site, *events_of(account, range(1, 18), key_id=f"{account}.k")) == (17, 0, 0)
    assert take(site, *events_of(short, range(1, 18)), *events_of(ever, range(1, 18))) == (34, 0, 0)
    before = [totals(site, one)[0] for one in (account, short, ever)]
    site.retention.run()
    after = [totals(site, one) for one in (account, short, ever)]
    assert [found[0] for found in after] == before
    assert [found[1:] for found in after] == [
        (True, False, MARCH_8),
        (True, False, MARCH_8 + 3 * DAY_US),
        (True, False, None),
    ]
    assert totals(site, account, granularity="minute")[1:3] == (False, True)
    assert totals(site, account, granularity="minute", from_us=MARCH_8)[1:3] == (True, False)
    assert differences(site, account, short, ever) == []
    # A new budget of the month counts what has expired.
    set_up(site, Budget(id="new", account=account, amount=10_000, period="month"))
    assert differences(site, account) == []
    counters = site.ledger.counter_rows(account)
    assert sorted(counters.values()) == [153, 153, 153]


def test_what_has_expired_is_not_counted_again_nor_corrected(site: Installation, account: str) -> None:
    """A retry repeats it; what asks for the record itself is told that it has expired."""
    set_up(site, Account(id=account, name="A", retention="10d"))
    old = events_of(account, range(1, 3))
    take(site, *old, *events_of(account, range(17, 18)))
    site.amend.amend(account, "e2", "am", Event(id="am", time="", cost_nanos=7))
    gift = Adjustment("adj", account, 5, "gift", at_us=MARCH_8 - DAY_US)
    site.adjustments.post(gift)
    site.relay.deliver_up_to(site.committer.outbox_seq)
    before = totals(site, account)[0]
    site.retention.run()
    assert take(site, *old, old[0] | {"time": "2026-03-17T00:00:00Z", "cost_nanos": 99}) == (0, 3, 0)
    # One whose record is there is compared as ever.
    assert take(site, *events_of(account, range(17, 18), cost_nanos=99)) == (0, 0, 1)
    with pytest.raises(DetailExpired, match="stays in all totals"):
        site.amend.void(account, "e1", "void")
    with pytest.raises(DetailExpired, match="'e1' has expired"):
        site.event_lookup.record("e1", site.event_lookup.owner("e1", account))
    with pytest.raises(DetailExpired):
        site.adjustments.post(gift)
    with pytest.raises(BadParameter, match="have expired"):
        site.price_preview.preview([], from_us=0, to_us=2**61, account_id=account)
    assert totals(site, account)[0] == before
    assert differences(site, account) == []


def test_an_ending_that_is_repeated_after_its_event_expired_is_known(
    site: Installation, account: str
) -> None:
    """Its client learns that it was booked: "there is no hold" would have it book the request another way."""
    set_up(site, Account(id=account, name="A", retention="1d"))
    id_ = unique("hold")
    take(site, *events_of(account, range(1, 2), id=id_))
    site.retention.run()
    for owner in (account, None):
        with pytest.raises(DetailExpired, match="was settled, and its event has expired"):
            site.holds.settle_hold(id_, Outcome(status=200, usage=NO_USAGE), CommitFuture(), account_id=owner)
        with pytest.raises(DetailExpired, match="was settled, and its event has expired"):
            site.holds.void_hold(id_, CommitFuture(), account_id=owner)
    with pytest.raises(HoldUnknown):
        site.holds.void_hold(unique("hold"), CommitFuture(), account_id=account)


def test_metrics_tell_how_far_expiry_is(site: Installation, account: str) -> None:
    """What is due while the store fails, what was removed, and when nothing was left."""

    def metric(name: str) -> str | None:
        lines = render_metrics(metrics_source(site, Maintenance(), "0")).splitlines()
        return next((line.split()[1] for line in lines if line.startswith(f"{name} ")), None)

    set_up(site, Account(id=account, name="A", retention="1d"))
    take(site, *events_of(account, range(1, 4)))
    assert metric("tollkeeper_expiry_timestamp_seconds") is None
    expire, site.store.expire = site.store.expire, _fail  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        site.retention.run()
    assert metric("tollkeeper_expiry_due_records") == "3"
    site.store.expire = expire  # type: ignore[method-assign]
    while site.retention.round():
        pass
    assert metric("tollkeeper_expired_records_total") == "3"
    assert metric("tollkeeper_expiry_due_records") == "0"
    assert metric("tollkeeper_expiry_timestamp_seconds") == str(site.clock.now_us() // 1_000_000)


def _fail(days: Any) -> int:
    raise Unavailable("away")


def test_a_budget_that_only_events_tell_keeps_those_of_its_period(site: Installation, account: str) -> None:
    """It goes by tags: the running month stays until it ends; then it is compared with its postings."""
    set_up(
        site,
        Account(id=account, name="A", retention="1d"),
        Budget(id="t", account=account, amount=10_000, period="month", match=Match(tags={"team": "a"})),
    )
    tagged = {"tags": {"team": "a"}}
    february = [{"id": "f", "account": account, "time": "2026-02-27T10:00:00Z", "cost_nanos": 1, **tagged}]
    take(site, *february, *events_of(account, range(1, 4), **tagged))
    site.retention.run()
    assert site.store.detail_from_us(account) == to_us(datetime(2026, 2, 28, tzinfo=UTC))
    assert differences(site, account) == []
    site.clock.advance(seconds=20 * 86_400)  # type: ignore[attr-defined]
    site.retention.run()
    assert site.store.detail_from_us(account) == to_us(datetime(2026, 3, 4, tzinfo=UTC))
    verdict = site.reconcile.verify()
    assert (verdict.differences, verdict.expired) == ([], 1)


def test_an_account_that_is_to_keep_more_meanwhile_does(
    install: Callable[..., Installation], usage_store: Any, account: str
) -> None:
    """Between the plan and the step, as when there is much to remove; and while the store is away nothing is lost."""

    class Slow(KeptOpen):
        def expiring(self, before_us: Any) -> Any:
            days = self._target.expiring(before_us)
            if days:
                set_up(site, Account(id=account, name="A", retention="none"))
            return days

    site = install(store=Slow(usage_store))
    set_up(site, Account(id=account, name="A", retention="1d"))
    take(site, *events_of(account, range(1, 4)))
    site.retention.run()
    assert site.store.detail_from_us(account) is None
    assert totals(site, account, granularity="minute")[1:3] == (True, False)


@pytest.mark.parametrize("text", ["0d", "90", "1h", "d", "-1d", "99999d", " 90d", "none ", ""])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    """As a setting and as an account's own, with what to write."""
    with pytest.raises(BadParameter, match=r"retention.*such as 90d or 12w"):
        load({"retention": text}, environ={})
    with pytest.raises(ValueError, match=r"retention.*such as 90d or 12w"):
        Account(id="a", name="A", retention=text).check()
