"""A cached usage answer is as fresh as a new one, also while others write."""

from __future__ import annotations

import random
import threading
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from tollkeeper.domain.catalog import Account
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.ledger import relay as relay_module
from tollkeeper.meter.decode import decode_events
from tollkeeper.usage import report_cache as answers_module
from tollkeeper.usage.report_cache import CachedReport, ReportCache


def asked(account_id: str | None, **more: Any) -> UsageQuery:
    return UsageQuery(account_id=account_id, from_us=0, to_us=2**52, **more)


def answered(requests: int, **more: Any) -> UsageReport:
    row = {"key": "k", "requests": requests, "latency_ms_p50": 1.5, "last_at": None, "kinds": {"scan": 1}}
    return UsageReport(
        **{
            "rows": [row],
            "totals": {"requests": requests},
            "row_count": 1,
            "as_of_us": 5,
            "complete": True,
            **more,
        }
    )


def kept(answers: ReportCache, query: UsageQuery, report: UsageReport, seq: int = 3) -> None:
    answers.keep(answers.begin(query), query, report, seq)


def found(answers: ReportCache, query: UsageQuery) -> UsageReport | None:
    """Return the answer that still holds."""
    kept = answers.find(query)
    return kept.report if kept is not None and kept.holds else None


def test_an_answer_is_found_again_whole_and_by_its_own_question_only() -> None:
    answers = ReportCache()
    query = asked("acme", filters={"model": ("a",), "key": ("b",)})
    kept(answers, query, answered(7))
    same = asked("acme", filters={"key": ("b",), "model": ("a",)})
    assert answers.find(same) == CachedReport(answered(7), 3, True)
    for other in (asked("acme"), asked("beta", filters=query.filters), asked(None, filters=query.filters)):
        assert answers.find(other) is None


def test_who_changes_an_answer_changes_nobody_elses() -> None:
    answers = ReportCache()
    kept(answers, asked("acme"), answered(7))
    mine = found(answers, asked("acme"))
    assert mine is not None
    mine.rows[0]["requests"] = 0
    assert found(answers, asked("acme")) == answered(7)


def test_a_new_event_outdates_its_account_and_all_accounts_together_and_nobody_else() -> None:
    """What is outdated is the answer as of the last outbox row before the event."""
    answers = ReportCache()
    for account_id in ("acme", "beta", None):
        kept(answers, asked(account_id), answered(7))
    answers.invalidate(["acme"], 8)
    answers.invalidate(["acme"], 9)
    assert [answers.find(asked(account_id)) for account_id in ("acme", None)] == [
        CachedReport(answered(7), 8, False)
    ] * 2
    assert answers.find(asked("beta")) == CachedReport(answered(7), 3, True)
    kept(answers, asked("acme"), answered(8), 9)
    assert answers.find(asked("acme")) == CachedReport(answered(8), 9, True)


@pytest.mark.parametrize("account_id", ["acme", None])
def test_an_event_that_comes_while_an_answer_is_computed_keeps_it_from_being_remembered(
    account_id: str | None,
) -> None:
    answers = ReportCache()
    token = answers.begin(asked(account_id))
    answers.invalidate(["acme"], 4)
    later = answers.begin(asked(account_id))
    answers.keep(token, asked(account_id), answered(7), 3)
    assert answers.find(asked(account_id)) is None
    answers.keep(later, asked(account_id), answered(8), 5)
    assert found(answers, asked(account_id)) == answered(8)


def test_it_takes_no_more_than_its_bytes_and_lets_go_of_what_was_not_asked_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers_module, "BYTES_MAX", 4_000)
    monkeypatch.setattr(answers_module, "ANSWER_BYTES_MAX", 1_000)
    answers = ReportCache()
    for number in range(200):
        kept(answers, asked("acme", offset=number), answered(number))
        assert answers.bytes <= 4_000
        assert found(answers, asked("acme", offset=0)) == answered(0)
        if number == 100:
            answers.invalidate(["acme"], 4)
            kept(answers, asked("acme", offset=0), answered(0))
    assert found(answers, asked("acme", offset=199)) == answered(199)
    assert answers.find(asked("acme", offset=1)) is None
    kept(answers, asked("beta"), answered(1, rows=[{"key": "x" * 1_000}]))
    assert answers.find(asked("beta")) is None
    answers.invalidate_all()
    assert answers.bytes == 0


def test_a_sum_beyond_64_bits_is_answered_and_not_remembered() -> None:
    answers = ReportCache()
    kept(answers, asked("acme"), answered(2**70))
    assert answers.find(asked("acme")) is None
    assert answers.bytes == 0


def test_a_repeated_question_asks_the_store_once_also_when_there_are_new_events(
    site: Any, account: str, monkeypatch: Any
) -> None:
    stored = Counter()
    report = site.store.report

    def counted(*asked: Any) -> Any:
        stored["asked"] += 1
        return report(*asked)

    monkeypatch.setattr(site.store, "report", counted)
    send(site, account, "a")
    first, second = (site.reports.usage(asked(account)) for _ in range(2))
    assert (stored["asked"], first.totals) == (1, second.totals)
    send(site, account, "b")
    third = site.reports.usage(asked(account))
    assert (stored["asked"], third.totals["requests"]) == (1, 2)
    assert first.as_of_us <= second.as_of_us <= third.as_of_us


@pytest.mark.drawn(1)
@pytest.mark.parametrize("gather_s", [0.0, 0.02, 60.0])
def test_an_answer_has_all_that_was_acknowledged_before_the_question(
    site: Any, account: str, gather_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Writers and readers at once: each answer counts at least what was acknowledged, at most what was sent.

    Whether the relay is always on the move, at times, or only when it is asked.
    """
    monkeypatch.setattr(relay_module, "GATHER_S", gather_s)
    sent, acknowledged = [0], [0]
    lock, stop, wrong = threading.Lock(), threading.Event(), []

    def write(writer: int) -> None:
        chance = random.Random(writer)
        for number in range(25):
            count = chance.randrange(1, 4)
            with lock:
                sent[0] += count
            send(site, account, *(f"{writer}.{number}.{n}" for n in range(count)))
            with lock:
                acknowledged[0] += count

    def read() -> None:
        while not stop.is_set():
            least = acknowledged[0]
            answer = site.reports.usage(asked(account))
            if not (least <= answer.totals["requests"] <= sent[0] and answer.complete):
                wrong.append((least, answer, sent[0]))
                return

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    assert not wrong
    assert site.reports.usage(asked(account)).totals["requests"] == sent[0]


def send(site: Any, account: str, *ids: str) -> None:
    at = datetime(2026, 3, 18, 11, tzinfo=UTC)
    events = [{"id": id_, "time": at.isoformat(), "account": account, "cost_nanos": 2} for id_ in ids]
    site.manage.apply([Account(id=account, name=account)])
    result = site.ingest.take(decode_events(events, now_us=site.clock.now_us()))
    assert (result.accepted, result.rejections) == (len(ids), [])
