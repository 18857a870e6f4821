"""Pending records are added to a query, once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.conftest import Install
from tollkeeper.domain.catalog import Account
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import Unavailable
from tollkeeper.installation import Installation
from tollkeeper.ledger import relay as relay_module
from tollkeeper.meter.amend import Amend
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import Faulty, unique
from tollkeeper.usage import freshness as freshness_module


@pytest.fixture(autouse=True)
def no_relay_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay delivers when the test asks it to: maintenance would, half a second after the start."""
    monkeypatch.setattr(relay_module, "GATHER_S", 60.0)
    monkeypatch.setattr(Amend, "price_unpriced", lambda amend: 0)


def asked(account: str | None) -> UsageQuery:
    measures = ("requests", "cost_nanos", "last_at")
    return UsageQuery(account_id=account, from_us=0, to_us=2**52, group_by=("account",), measures=measures)


def send(site: Installation, account: str, *ids: str, **fields: Any) -> None:
    at = datetime(2026, 3, 18, 11, tzinfo=UTC).isoformat()
    events = [{"id": id_, "time": at, "account": account, "cost_nanos": 2, **fields} for id_ in ids]
    site.manage.apply([Account(id=account, name=account)])
    assert site.ingest.take(decode_events(events, now_us=site.clock.now_us())).accepted == len(ids)


def requests(report: UsageReport) -> int:
    assert report.complete
    return int(report.totals["requests"])


class Calls:
    """Counts what *user*, the relay or the reports of an installation, asks of a method of the usage store."""

    def __init__(self, user: Any, method: str) -> None:
        self.port = user._store = Faulty(user._store, method)

    @property
    def count(self) -> int:
        return self.port.calls


def settled(site: Installation) -> Calls:
    """Let the relay learn that nothing is left from before, and count from here."""
    assert site.relay.deliver() == 0
    return Calls(site.relay, "append")


def test_it_is_answered_without_waiting_for_an_insert(site: Installation, account: str) -> None:
    appends = settled(site)
    send(site, account, "a", "b")
    send(site, unique("other"), "a")
    first = site.reports.usage(asked(account))
    assert first.rows == [
        {"account": account, "requests": 2, "cost_nanos": 4, "last_at": "2026-03-18T11:00:00.000000Z"}
    ]
    send(site, account, "c")
    assert requests(site.reports.usage(asked(account))) == 3
    assert appends.count == 0
    site.relay.flush(site.pending.newest_seq(None), 10)
    assert requests(site.reports.usage(asked(account))) == 3
    assert appends.count == 1


def test_all_accounts_at_once_have_it_too(site: Installation, account: str) -> None:
    appends = settled(site)
    send(site, account, "a")
    rows = site.reports.usage(asked(None)).rows
    assert [row["requests"] for row in rows if row["account"] == account] == [1]
    assert appends.count == 0


def test_while_a_batch_is_on_its_way_the_answer_waits_for_it_and_for_no_other(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness_module, "BATCH_WAIT_S", 30.0)
    appends = settled(site)
    appends.port.delay()
    send(site, account, "a")
    relaying = threading.Thread(target=site.relay.deliver)
    relaying.start()
    assert appends.port.delayed.wait(10)
    assert site.relay.mark() is None
    send(site, account, "b")
    found: list[UsageReport] = []
    asking = threading.Thread(target=lambda: found.append(site.reports.usage(asked(account))))
    asking.start()
    appends.port.go_on()
    asking.join(30)
    relaying.join(30)
    assert [requests(report) for report in found] == [2]
    assert appends.count == 1


def test_a_batch_that_moves_during_the_question_is_not_counted_twice(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(site)
    send(site, account, "a")
    report, questions = site.store.report, []

    def relayed_meanwhile(query: UsageQuery, with_pending: Any = ()) -> Any:
        questions.append(len(with_pending))
        if with_pending:
            site.relay.deliver()
        return report(query, with_pending)

    monkeypatch.setattr(site.store, "report", relayed_meanwhile)
    assert requests(site.reports.usage(asked(account))) == 1
    assert questions == [1, 0]


def test_an_insert_whose_answer_was_lost_is_not_counted_twice(site: Installation, account: str) -> None:
    appends = settled(site)
    send(site, account, "a")
    appends.port.lose_replies()
    with pytest.raises(Unavailable):
        site.relay.deliver()
    assert site.relay.mark() is None
    assert requests(site.reports.usage(asked(account))) == 1
    assert requests(site.reports.usage(asked(account))) == 1


def test_what_a_process_before_may_have_inserted_is_not_counted_twice(
    install: Install, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install()
    outbox = Faulty(site.relay._outbox, "delivered")
    monkeypatch.setattr(site.relay, "_outbox", outbox)
    settled(site)
    send(site, account, "a")
    outbox.refuse(10**6)
    with pytest.raises(Unavailable):
        site.relay.deliver()
    assert site.relay.mark() is None
    site.close()
    again = install()
    assert requests(again.reports.usage(asked(account))) == 1
    send(again, account, "b")
    assert requests(again.reports.usage(asked(account))) == 2


def test_who_asks_again_gets_the_new_events_too_and_the_store_is_not_asked(
    site: Installation, account: str
) -> None:
    appends, questions = settled(site), Calls(site.reports, "report")
    for everybody in (account, None):
        site.reports.usage(asked(everybody))
    before = requests(site.reports.usage(asked(None)))
    for number in range(1, 4):
        send(site, account, f"e{number}", cost_nanos=number)
        report = site.reports.usage(asked(account))
        assert report.rows == [
            {
                "account": account,
                "requests": number,
                "cost_nanos": number * (number + 1) // 2,
                "last_at": "2026-03-18T11:00:00.000000Z",
            }
        ]
        assert requests(site.reports.usage(asked(None))) == before + number
        site.relay.deliver()
    assert (questions.count, appends.count) == (2, 3)


def test_a_batch_that_is_on_its_way_keeps_nobody_waiting_who_asked_before(
    site: Installation, account: str
) -> None:
    appends, questions = settled(site), Calls(site.reports, "report")
    site.reports.usage(asked(account))
    appends.port.delay()
    send(site, account, "a")
    relaying = threading.Thread(target=site.relay.deliver)
    relaying.start()
    assert appends.port.delayed.wait(10)
    assert requests(site.reports.usage(asked(account))) == 1
    send(site, account, "b")
    assert requests(site.reports.usage(asked(account))) == 2
    assert questions.count == 1
    appends.port.go_on()
    relaying.join(30)
    assert requests(site.reports.usage(asked(account))) == 2


def test_what_the_store_took_meanwhile_the_store_must_tell(site: Installation, account: str) -> None:
    """The events are in no outbox any more, and the answer from before has them not."""
    settled(site)
    questions = Calls(site.reports, "report")
    site.reports.usage(asked(account))
    send(site, account, "a")
    assert site.relay.flush(site.pending.newest_seq(None), 10)
    send(site, account, "b")
    assert requests(site.reports.usage(asked(account))) == 2
    assert questions.count == 2


def test_what_the_store_took_of_others_is_no_matter(site: Installation, account: str) -> None:
    settled(site)
    questions = Calls(site.reports, "report")
    site.reports.usage(asked(account))
    send(site, unique("other"), "a")
    assert site.relay.flush(site.pending.newest_seq(None), 10)
    send(site, account, "b")
    assert requests(site.reports.usage(asked(account))) == 1
    assert questions.count == 1


def test_a_correction_goes_through_the_store(site: Installation, account: str) -> None:
    appends = settled(site)
    send(site, account, "a", "b")
    assert requests(site.reports.usage(asked(account))) == 2
    site.amend.void(account, "a", "v1")
    report = site.reports.usage(asked(account))
    assert (requests(report), report.totals["cost_nanos"]) == (1, 2)
    assert appends.count >= 1


@pytest.mark.parametrize(
    ("bound", "value"), [("LITTLE_RECORDS", 2), ("WAITING_MAX", 2), ("PAYLOAD_BYTES_MAX", 100)]
)
def test_much_goes_through_the_store(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(freshness_module, bound, value)
    appends = settled(site)
    send(site, account, "a", "b", "c")
    assert requests(site.reports.usage(asked(account))) == 3
    assert appends.count == 1


def test_a_ledger_that_cannot_be_read_does_not_stop_the_question(
    site: Installation, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(site)
    send(site, account, "a")
    outbox = Faulty(site.ledger.outbox, "entries")
    monkeypatch.setattr(site.reports._freshness, "_outbox", outbox)
    outbox.refuse()
    assert requests(site.reports.usage(asked(account))) == 1


class Waits:
    """In place of the event that a relay waits for while records gather: nothing is ever urgent."""

    def __init__(self, site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.last = 0
        self.of_each: list[int] = []
        """How often it was waited before each append."""
        self.more = threading.Condition()
        append, before = site.store.append, site.relay._urgent

        def counted(*args: Any, **options: Any) -> None:
            append(*args, **options)
            with self.more:
                self.of_each.append(self.last)
                self.more.notify_all()

        monkeypatch.setattr(site.relay, "_urgent", self)
        monkeypatch.setattr(site.relay._store, "append", counted)
        before.set()

    def wait(self, timeout_s: float) -> bool:
        self.count += 1
        return False

    def clear(self) -> None:
        self.last, self.count = self.count, 0

    def set(self) -> None:
        pass

    def until(self, appends: int) -> list[int]:
        with self.more:
            assert self.more.wait_for(lambda: len(self.of_each) >= appends, 30)
        return self.of_each


def test_little_gathers_longer(site: Installation, account: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is added to the query, which would otherwise wait for an insert."""
    assert site.relay.deliver() == 0
    waits = Waits(site, monkeypatch)
    monkeypatch.setattr(relay_module, "LITTLE_RECORDS", 3)
    send(site, account, *(f"a{number}" for number in range(3)))
    assert waits.until(1) == [relay_module.LITTLE_GATHERS]
    send(site, account, *(f"b{number}" for number in range(4)))
    assert waits.until(2) == [relay_module.LITTLE_GATHERS, 1]
