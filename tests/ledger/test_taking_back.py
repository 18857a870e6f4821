"""
Money that is given back, taken back, and spent over a grant's expiry: cases M11 and M18, through gate and ingest.

After each test the counters are the sums of the events, and the credit book is what it must be (`verify`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.adjustments import Adjustment, adjustment_record
from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Project, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Event
from tollkeeper.domain.instants import to_text
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import BadParameter, Conflict, EventConflict, NotFound, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.meter.adjustments import Adjusted
from tollkeeper.meter.decode import decode_events
from tollkeeper.ports import Losses
from tollkeeper.record_columns import table_of
from tollkeeper.testing import commit_all, faulty_ledger, lost_commits, set_up, verify

UNIT = 10**9
DAY_US = 86_400_000_000


class Bank:
    """One account with a credit key and a plain key, a budget over all and one of a project."""

    def __init__(self, site: Installation, account: str, secrets: dict[str, str] | None = None) -> None:
        self.site = site
        self.account = account
        self.secrets = secrets or set_up(
            site,
            Account(id=account, name="Acme"),
            Project(id="web", account=account),
            Key(id=f"{account}-credit", account=account, type="credit"),
            Key(id=f"{account}-plain", account=account, project="web"),
            Budget(id="all", account=account, amount=10_000 * UNIT, period="day"),
            Budget(id="web", account=account, project="web", amount=10_000 * UNIT, period="day"),
            Route(id="job", method="POST", path="/job"),
        )

    def grant(self, id_: str, units: int, **fields: Any) -> None:
        self.site.manage.put(Grant(id=id_, account=self.account, amount_nanos=units * UNIT, **fields))

    def admit(self, units: int, key: str = "credit") -> Any:
        usage = Usage(cost_nanos=units * UNIT)
        return self.site.holds.admit(self.secrets[f"{self.account}-{key}"], "POST", "/job", usage)

    def held(self, units: int) -> Admission:
        admission = self.admit(units)
        assert isinstance(admission, Admission), admission
        return admission

    def settle(self, admission: Any, units: int) -> None:
        future = CommitFuture()
        self.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=units * UNIT)), future)
        future.wait()

    def spend(self, units: int, key: str = "credit") -> None:
        self.settle(self.admit(units, key), units)

    def event(self, id_: str, units: int, *, ago_s: int = 0, key: str = "credit") -> None:
        at = to_text(self.site.clock.now() - timedelta(seconds=ago_s))
        event = {"id": id_, "time": at, "key_id": f"{self.account}-{key}", "cost_nanos": units * UNIT}
        result = self.site.ingest.take(decode_events([event], now_us=self.site.clock.now_us()))
        assert result.accepted == 1, result

    def adjust(self, units: int, id_: str = "adj", reason: str = "goodwill", **fields: Any) -> Adjusted:
        return self.site.adjustments.post(Adjustment(id_, self.account, units * UNIT, reason, **fields))

    def revoke(self, id_: str) -> str:
        return self.site.manage.revoke_grant(self.account, id_).action

    @property
    def balance(self) -> float:
        book = self.site.ledger.book(self.account)[0]
        return book.balance_nanos(self.site.clock.now()) / UNIT

    @property
    def left(self) -> dict[str, float]:
        return {g.grant_id: g.remaining_nanos / UNIT for g in self.site.ledger.book(self.account)[0].grants}

    def counter(self, counter_id: str) -> float:
        rows = self.site.ledger.counter_rows(self.account)
        return sum(used for (counter, _), used in rows.items() if counter == counter_id) / UNIT

    def usage(self) -> dict[str, float]:
        now_us = self.site.clock.now_us()
        query = UsageQuery(
            account_id=self.account,
            from_us=now_us - 40 * DAY_US,
            to_us=now_us + DAY_US,
            measures=("requests", "cost_nanos", "adjustments_nanos"),
        )
        totals = self.site.reports.usage(query).totals
        return {
            "requests": totals["requests"],
            "cost": totals["cost_nanos"] / UNIT,
            "adjusted": totals["adjustments_nanos"] / UNIT,
        }


@pytest.fixture
def bank(site: Installation, account: str) -> Iterator[Bank]:
    bank = Bank(site, account)
    yield bank
    verdict = verify(site)
    assert verdict.ok, verdict


# -- revoking a grant -----------------------------------------------------------------------------------


def test_a_chargeback_leaves_what_was_spent_as_overdraft(bank: Bank) -> None:
    """M11: 1,000.00 bought, 50.00 spent, charged back by the bank: -50.00, no request, no cost in usage."""
    bank.grant("top-up", 1000, source="top_up")
    bank.spend(50)
    before = bank.usage()
    assert bank.revoke("top-up") == "changed"
    assert bank.balance == -50
    assert bank.usage() == before == {"requests": 1, "cost": 50, "adjusted": 0}
    assert bank.revoke("top-up") == "unchanged"
    assert bank.balance == -50


def test_the_gate_sees_a_revocation_at_once(bank: Bank) -> None:
    bank.grant("top-up", 100)
    under_way = bank.held(30)
    bank.revoke("top-up")
    denial = bank.admit(1)
    assert isinstance(denial, Denial)
    assert denial.reason == "credit_exhausted"
    # What was admitted before is booked all the same.
    bank.settle(under_way, 30)
    assert bank.balance == -30
    bank.grant("other", 50)
    assert bank.balance == 20
    last = bank.held(20)
    assert isinstance(bank.admit(1), Denial)
    bank.settle(last, 0)


def test_what_a_revoked_grant_paid_is_drawn_on_the_others(bank: Bank) -> None:
    bank.grant("bounced", 100, priority=1)
    bank.grant("good", 200, priority=2)
    bank.spend(40)
    bank.revoke("bounced")
    assert bank.left == {"bounced": 0, "good": 160}
    assert bank.balance == 160


def test_a_revoked_grant_is_not_posted_again(bank: Bank) -> None:
    """A repeat of its PUT, or of the file that has it, gives no money."""
    bank.grant("top-up", 100)
    bank.revoke("top-up")
    bank.grant("top-up", 100)
    assert bank.balance == 0
    with pytest.raises(Conflict, match="revoke"):
        bank.site.manage.delete("grants", "top-up", bank.account)


def test_only_grants_of_the_account_can_be_revoked(bank: Bank) -> None:
    with pytest.raises(NotFound):
        bank.revoke("nothing")
    with pytest.raises(BadParameter):
        bank.site.manage.revoke_grant(None, "nothing")


def test_a_grant_that_a_crash_kept_from_its_balance_can_be_revoked(bank: Bank) -> None:
    bank.site.catalog.put(Grant(id="lost", account=bank.account, amount_nanos=7 * UNIT), 1)
    assert bank.revoke("lost") == "changed"
    assert bank.site.ledger.unposted_grants() == []
    assert bank.balance == 0


def test_a_revocation_is_there_or_not_whatever_the_ledger_does(bank: Bank) -> None:
    bank.grant("top-up", 100)
    with faulty_ledger(bank.site) as ledger:
        ledger.refuse()
        with pytest.raises(Unavailable):
            bank.revoke("top-up")
    assert bank.balance == 100
    with lost_commits(bank.site):
        assert bank.revoke("top-up") == "changed"
    assert bank.balance == 0
    assert bank.revoke("top-up") == "unchanged"


def test_a_revocation_and_an_adjustment_survive_a_restart(install: Any, account: str) -> None:
    first = Bank(install(), account)
    first.grant("a", 100)
    first.grant("b", 10)
    first.spend(30)
    first.revoke("a")
    first.adjust(5)
    first.site.close()
    again = Bank(install(), account, first.secrets)
    assert (again.balance, again.left) == (-15, {"a": 0, "b": 0})
    assert again.revoke("a") == "unchanged"
    assert again.adjust(5).repeated
    assert isinstance(again.admit(1), Denial)
    assert verify(again.site).ok


# -- a grant that expires -------------------------------------------------------------------------------


def expiring(bank: Bank) -> None:
    """100.00 that expire in a second, and 100.00 that were bought."""
    bank.grant("gift", 100, priority=1, expires_at=bank.site.clock.now() + timedelta(seconds=1))
    bank.grant("paid", 100, priority=2)


def test_a_hold_over_the_expiry_is_paid_by_the_grant(bank: Bank) -> None:
    """M18 in process: the request happened before. Paid money can be spent meanwhile, and afterwards, whole."""
    expiring(bank)
    admission = bank.admit(70)
    bank.site.clock.advance(seconds=2)
    other = bank.held(100)
    bank.site.holds.void(other)
    bank.settle(admission, 70)
    assert bank.left == {"gift": 30, "paid": 100}
    assert bank.balance == 100
    bank.spend(60)
    assert bank.left == {"gift": 30, "paid": 40}


@pytest.mark.parametrize("ttl_s", [60, 1], ids=["open", "expired"])
def test_a_durable_hold_over_the_expiry_is_paid_by_the_grant(bank: Bank, ttl_s: int) -> None:
    """Settled while it is open, and settled late."""
    expiring(bank)
    secret = bank.secrets[f"{bank.account}-credit"]
    found = bank.site.holds.authorize(
        secret, "POST", "/job", Usage(cost_nanos=70 * UNIT), CommitFuture(), ttl_s=ttl_s
    )
    assert not isinstance(found, Denial)
    admission, future = found
    future.wait()
    bank.site.clock.advance(seconds=3)
    bank.site.holds.expire()
    commit_all(bank.site)
    outcome = Outcome(usage=Usage(cost_nanos=80 * UNIT))
    settled, future_ = bank.site.holds.settle_hold(
        admission.id, outcome, CommitFuture(), account_id=bank.account
    )
    assert future_ is not None
    future_.wait()
    assert settled.record.cost_nanos == 80 * UNIT
    assert bank.left == {"gift": 20, "paid": 100}


def test_a_hold_over_the_expiry_and_a_restart_is_paid_by_the_grant(install: Any, account: str) -> None:
    first = Bank(install(), account)
    expiring(first)
    secret = first.secrets[f"{account}-credit"]
    found = first.site.holds.authorize(
        secret, "POST", "/job", Usage(cost_nanos=70 * UNIT), CommitFuture(), ttl_s=3600
    )
    assert not isinstance(found, Denial)
    found[1].wait()
    first.site.clock.advance(seconds=5)
    first.site.close()
    again = Bank(install(), account, first.secrets)
    assert isinstance(again.admit(101), Denial)
    other = again.held(100)
    again.site.holds.void(other)
    _, future = again.site.holds.settle_hold(
        found[0].id, Outcome(usage=Usage(cost_nanos=70 * UNIT)), CommitFuture(), account_id=account
    )
    assert future is not None
    future.wait()
    assert again.left == {"gift": 30, "paid": 100}
    assert verify(again.site).ok


def test_an_event_of_before_the_expiry_is_paid_by_the_grant(bank: Bank) -> None:
    """M18 by ingest: a log that comes late. A request of the expiry itself is too late for the grant."""
    expiring(bank)
    bank.site.clock.advance(seconds=10)
    bank.event("before", 60, ago_s=10)
    assert bank.left == {"gift": 40, "paid": 100}
    bank.event("at-expiry", 5, ago_s=9)
    bank.event("after", 6)
    assert bank.left == {"gift": 40, "paid": 89}
    # Beyond what the grant has, paid money pays.
    bank.event("much", 50, ago_s=10)
    assert bank.left == {"gift": 0, "paid": 79}


def test_a_batch_over_the_expiry_is_split_at_it(bank: Bank) -> None:
    expiring(bank)
    bank.site.clock.advance(seconds=10)
    now = bank.site.clock.now()
    events = [
        {
            "id": f"e{n}",
            "time": to_text(now - timedelta(seconds=n)),
            "key_id": f"{bank.account}-credit",
            "cost_nanos": UNIT,
        }
        for n in range(11)
    ]
    result = bank.site.ingest.take(decode_events(events, now_us=bank.site.clock.now_us()))
    assert result.accepted == 11
    assert bank.left == {"gift": 99, "paid": 90}


def test_a_voided_event_gives_its_money_back_to_what_was_valid_at_its_time(bank: Bank) -> None:
    """A void of today's request must not refill a grant that had expired when it was made."""
    expiring(bank)
    bank.spend(100)
    bank.site.clock.advance(seconds=10)
    bank.event("today", 30)
    assert bank.left == {"gift": 0, "paid": 70}
    bank.site.amend.void(bank.account, "today", "void-1")
    assert bank.left == {"gift": 0, "paid": 100}
    assert bank.balance == 100


# -- adjustments ----------------------------------------------------------------------------------------


def test_an_adjustment_moves_balance_and_budgets_and_is_no_request(bank: Bank) -> None:
    bank.grant("top-up", 100)
    bank.spend(40)
    adjusted = bank.adjust(25)
    assert not adjusted.repeated
    assert bank.balance == 85
    assert (bank.counter("budget:all"), bank.counter("credit")) == (15, 15)
    assert bank.usage() == {"requests": 1, "cost": 40, "adjusted": 25}
    bank.adjust(-125, "taken", reason="chargeback")
    assert bank.balance == -40
    assert bank.usage() == {"requests": 1, "cost": 40, "adjusted": -100}
    assert isinstance(bank.admit(1), Denial)


def test_more_than_was_ever_spent_can_be_given(bank: Bank) -> None:
    """Goodwill to an account that spent nothing: it can be spent, and is spent first."""
    bank.grant("top-up", 100)
    bank.adjust(25)
    assert bank.balance == 125
    admission = bank.held(125)
    bank.settle(admission, 30)
    assert bank.left == {"top-up": 95}
    assert bank.balance == 95


def test_an_adjustment_is_booked_once(bank: Bank) -> None:
    event_id = bank.adjust(25).record.id
    assert bank.adjust(25).repeated
    for other in ({"units": 26}, {"units": 25, "reason": "other"}, {"units": 25, "project_id": "web"}):
        with pytest.raises(EventConflict):
            bank.adjust(**other)
    assert bank.balance == 25
    # The same after it was delivered.
    bank.site.delivery.fresh(bank.account)
    assert bank.adjust(25).repeated
    with pytest.raises(EventConflict):
        bank.adjust(26)
    assert event_id == "adj"


def test_ids_of_adjustments_events_holds_and_corrections_are_one_space(bank: Bank) -> None:
    bank.event("taken", 1)
    with pytest.raises(EventConflict):
        bank.adjust(5, "taken")
    bank.site.amend.void(bank.account, "taken", "a-correction")
    with pytest.raises(EventConflict):
        bank.adjust(5, "a-correction")
    bank.grant("g", 100)
    secret = bank.secrets[f"{bank.account}-credit"]
    found = bank.site.holds.authorize(
        secret, "POST", "/job", Usage(cost_nanos=UNIT), CommitFuture(), hold_id="a-hold"
    )
    assert not isinstance(found, Denial)
    found[1].wait()
    with pytest.raises(EventConflict):
        bank.adjust(5, "a-hold")
    bank.adjust(5, "mine")
    event = {
        "id": "mine",
        "time": to_text(bank.site.clock.now()),
        "account": bank.account,
        "cost_nanos": 1,
    }
    result = bank.site.ingest.take(decode_events([event], now_us=bank.site.clock.now_us()))
    assert (result.accepted, result.rejections[0].code) == (0, "event_conflict")


def test_an_adjustment_can_be_voided_and_not_amended(bank: Bank) -> None:
    bank.adjust(25)
    with pytest.raises(BadParameter, match="adjustment"):
        bank.site.amend.amend(bank.account, "adj", "c1", Event(id="-", time="-", cost_nanos=5))
    bank.site.amend.void(bank.account, "adj", "c2")
    assert bank.balance == 0
    assert (bank.counter("budget:all"), bank.usage()["adjusted"]) == (0, 0)
    # A retry of the adjustment finds it, as it is.
    assert bank.adjust(25).record.sign == -1


def test_an_adjustment_of_a_key_moves_what_its_requests_are_charged_to(bank: Bank) -> None:
    bank.grant("top-up", 100)
    bank.spend(10, "plain")
    assert (bank.counter("budget:web"), bank.balance) == (10, 100)
    bank.adjust(4, "for-plain", key_id=f"{bank.account}-plain")
    assert (bank.counter("budget:web"), bank.counter("budget:all"), bank.balance) == (6, 6, 100)
    bank.adjust(-3, "for-credit", key_id=f"{bank.account}-credit")
    assert (bank.counter("budget:web"), bank.counter("budget:all"), bank.balance) == (6, 9, 97)
    bank.adjust(1, "for-project", project_id="web")
    assert (bank.counter("budget:web"), bank.counter("budget:all"), bank.balance) == (5, 8, 98)


def test_a_repeat_is_answered_after_its_key_moved(bank: Bank) -> None:
    key_id = f"{bank.account}-plain"
    assert not bank.adjust(4, key_id=key_id).repeated
    before = bank.counter("budget:web")
    set_up(bank.site, Project(id="app", account=bank.account))
    set_up(bank.site, Key(id=key_id, account=bank.account, project="app"))
    assert bank.adjust(4, key_id=key_id).repeated
    assert bank.adjust(4, key_id=key_id, project_id="web").repeated
    for other in ({"units": 5}, {"units": 4, "project_id": "app"}):
        with pytest.raises(EventConflict):
            bank.adjust(key_id=key_id, **other)
    assert bank.counter("budget:web") == before


def test_a_late_adjustment_counts_in_its_own_period(bank: Bank) -> None:
    now_us = bank.site.clock.now_us()
    bank.adjust(5, at_us=now_us - 2 * DAY_US)
    rows = bank.site.ledger.counter_rows(bank.account)
    # Of a period from before the budget was in force, only the balance knows.
    assert [used for (name, _), used in rows.items() if name == "credit"] == [-5 * UNIT]
    assert bank.balance == 5
    assert bank.adjust(5, at_us=now_us - 2 * DAY_US).repeated
    with pytest.raises(EventConflict):
        bank.adjust(5, at_us=now_us - DAY_US)
    # Left out, the time may be any.
    bank.site.clock.advance(seconds=5)
    assert bank.adjust(5).repeated


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"units": 0}, "amount"),
        ({"units": 10**7}, "amount"),
        ({"reason": "  "}, "reason"),
        ({"reason": "r" * 300}, "reason"),
        ({"id_": ""}, "id"),
        ({"id_": "i" * 200}, "id"),
        ({"event_id": "nothing"}, "event"),
        ({"key_id": "nothing"}, "key_id"),
        ({"project_id": "nothing"}, "project"),
        ({"at_us": 5}, "time"),
        ({"at_us": 10**18}, "time"),
    ],
)
def test_a_bad_adjustment_names_its_field(bank: Bank, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadParameter) as refused:
        bank.adjust(**{"units": 5, **fields})
    assert refused.value.fields["field"] == field
    assert bank.balance == 0


def test_an_adjustment_names_the_event_that_it_corrects(bank: Bank) -> None:
    bank.event("wrong", 7)
    record = bank.adjust(7, event_id="wrong").record
    assert record.tags == {"event": "wrong", "reason": "goodwill"}
    with pytest.raises(NotFound):
        bank.site.adjustments.post(Adjustment("x", "no-such-account", UNIT, "r"))


def test_an_adjustment_is_there_or_not_whatever_the_ledger_does(bank: Bank) -> None:
    with faulty_ledger(bank.site) as ledger:
        ledger.refuse()
        with pytest.raises(Unavailable):
            bank.adjust(5)
    assert bank.balance == 0
    with lost_commits(bank.site):
        bank.adjust(5)
    assert bank.adjust(5).repeated
    assert bank.balance == 5


def test_of_many_at_once_one_is_booked(bank: Bank) -> None:
    """Callers that retry at the same time, while others spend and the grant is revoked."""
    bank.grant("top-up", 1000)
    results: list[Adjusted] = []
    errors: list[BaseException] = []

    def call(work: Any) -> None:
        try:
            work()
        except BaseException as exc:
            errors.append(exc)

    works = [lambda: results.append(bank.adjust(25)) for _ in range(8)]
    works += [lambda: bank.spend(10) for _ in range(5)]
    works += [lambda: bank.adjust(-1, "other"), lambda: bank.adjust(-1, "other")]
    threads = [threading.Thread(target=call, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert sorted(result.repeated for result in results) == [False] + [True] * 7
    assert bank.balance == 1000 + 25 - 50 - 1
    revoked: list[str] = []
    threads = [threading.Thread(target=lambda: revoked.append(bank.revoke("top-up"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revoked) == ["changed"] + ["unchanged"] * 5
    assert bank.balance == 25 - 50 - 1


def test_an_adjustment_is_the_first_append_of_a_process(
    usage_store: ClickHouseUsageStore, account: str
) -> None:
    """That append is compared with what is there, by count: an adjustment is a record and no request."""
    record = adjustment_record(Adjustment("first", account, UNIT, "r"), 1_700_000_000_000_000)
    for _ in range(2):
        usage_store.append(table_of([record]), f"adjustment-of-{account}", begun_after=0)
        assert usage_store.losses() == Losses([], [])
        assert usage_store.differences() == []


# -- verify ---------------------------------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE pools SET surplus_nanos = surplus_nanos + 7 WHERE account_id = :account",
        "UPDATE grants SET remaining_nanos = remaining_nanos + 7 WHERE account_id = :account AND id = 'b'",
        "UPDATE grants SET revoked_at_us = NULL WHERE account_id = :account AND id = 'a'",
        "UPDATE counters SET used = used + 7 WHERE account_id = :account AND counter_id = 'credit'",
    ],
)
def test_verify_finds_what_does_not_add_up(site: Installation, account: str, damage: str) -> None:
    import sqlalchemy as sa

    bank = Bank(site, account)
    bank.grant("a", 10)
    bank.grant("b", 10)
    bank.spend(15)
    bank.revoke("a")
    bank.adjust(30)
    assert verify(site).ok
    with site.engine.begin() as tx:
        tx.execute(sa.text(damage), {"account": account})
    differences = verify(site).differences
    assert any(difference.account_id == account for difference in differences), differences
