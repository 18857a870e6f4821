"""A correction keeps the old record, changes every total by the difference, and counts once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tollkeeper import Tollkeeper, UsageQuery
from tollkeeper.domain.catalog import Price
from tollkeeper.domain.events import Event, Record, Tokens
from tollkeeper.domain.instants import to_us
from tollkeeper.errors import BadParameter, EventConflict, NotFound, Unavailable
from tollkeeper.ledger import delivery
from tollkeeper.meter.amend import Correction

ALL = {"from_us": 0, "to_us": to_us(datetime(2200, 1, 1, tzinfo=UTC))}
_names = itertools.count()

SETUP = """
[[routes]]
id = "chat"
method = "POST"
path = "/v1/chat"
price_nanos = 10
[[prices]]
id = "m1"
model = "m1"
prompt_nanos_per_million = 1_000_000
completion_nanos_per_million = 2_000_000
[[prices]]
id = "m2"
model = "m2"
prompt_nanos_per_million = 7_000_000
[[prices]]
id = "image"
model = "image"
request_nanos = 40_000_000
"""


@pytest.fixture(scope="module")
def toll(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollkeeper]:
    """One engine for the module: chDB opens one path per process. Tests keep apart by account."""
    with Tollkeeper.open(str(tmp_path_factory.mktemp("amend"))) as toll:
        toll.apply(SETUP)
        yield toll


class Tenant:
    """A fresh account with a credit key, two grants and a budget over everything."""

    def __init__(self, toll: Tollkeeper) -> None:
        self.toll = toll
        self.id = a = f"acct{next(_names)}"
        toll.apply(f"""
            [[accounts]]
            id = "{a}"
            name = "A"
            [[keys]]
            id = "{a}.key"
            account = "{a}"
            type = "credit"
            [[grants]]
            id = "first"
            account = "{a}"
            amount_nanos = 100
            priority = 1
            [[grants]]
            id = "second"
            account = "{a}"
            amount_nanos = 100
            priority = 2
            [[budgets]]
            id = "all"
            account = "{a}"
            amount = 1_000_000
            period = "total"
            [[budgets]]
            id = "tokens"
            account = "{a}"
            amount = 1_000_000
            unit = "tokens"
            period = "total"
            [[budgets]]
            id = "requests"
            account = "{a}"
            amount = 1_000_000
            unit = "requests"
            period = "total"
        """)

    def record(self, id_: str, **fields: Any) -> None:
        event = {"id": id_, "time": "2026-05-15T10:00:00Z", "key_id": f"{self.id}.key"} | fields
        result = self.toll.record([event])
        assert result.accepted == 1, result

    def amend(self, event_id: str, correction_id: str, **changes: Any) -> Correction:
        event = Event(id="-", time="-", **changes)
        return self.toll.installation.amend.amend(self.id, event_id, correction_id, event)

    def void(self, event_id: str, correction_id: str) -> Correction:
        return self.toll.installation.amend.void(self.id, event_id, correction_id)

    def state(self) -> dict[str, int]:
        """What every reader sees, which must be the same everywhere."""
        query = UsageQuery(
            account_id=self.id, **ALL, measures=("requests", "tokens", "cost_nanos", "unpriced")
        )
        answer = self.toll.usage(query)
        assert answer.complete
        ledger = self.toll.installation.ledger
        counters = ledger.counter_rows(self.id)
        assert ledger.posting_sums(self.id) == counters
        assert counters.get(("budget:all", 0), 0) == answer.totals["cost_nanos"]
        assert counters.get(("budget:tokens", 0), 0) == answer.totals["tokens"]
        assert counters.get(("budget:requests", 0), 0) == answer.totals["requests"]
        assert counters.get(("credit", 0), 0) == answer.totals["cost_nanos"]
        assert ledger.book(self.id)[0].spent_nanos == answer.totals["cost_nanos"]
        return dict(answer.totals)

    def left(self) -> dict[str, int]:
        book = self.toll.installation.ledger.book(self.id)[0]
        return {g.grant_id: g.remaining_nanos for g in book.grants} | {"overdraft": book.overdraft_nanos}

    def kept(self, id_: str) -> list[tuple[int, int, int]]:
        """Every record of an event that is kept: revision, sign, cost."""
        pieces = self.toll.installation.store.export(self.id, **ALL)
        rows = [row for piece in pieces for row in piece.to_pylist() if row["id"] == id_]
        return sorted((row["revision"], -row["sign"], row["cost_nanos"]) for row in rows)


@pytest.fixture
def tenant(toll: Tollkeeper) -> Tenant:
    return Tenant(toll)


def test_totals_counters_and_credit_follow_an_amendment(tenant: Tenant) -> None:
    """Wherever one looks, only the difference was charged; what was booked before stays readable."""
    tenant.record("a", cost_nanos=50, tokens={"prompt": 10})
    tenant.record("b", cost_nanos=5)
    correction = tenant.amend("a", "fix1", cost_nanos=80, tokens=Tokens(completion=3))
    assert (correction.repeated, correction.record.revision, correction.record.cost_nanos) == (False, 1, 80)
    assert tenant.state() == {"requests": 2, "tokens": 13, "cost_nanos": 85, "unpriced": 0}
    tenant.amend("a", "fix2", cost_nanos=20)
    assert tenant.state() == {"requests": 2, "tokens": 13, "cost_nanos": 25, "unpriced": 0}
    assert tenant.kept("a") == [(0, -1, 50), (0, 1, 50), (1, -1, 80), (1, 1, 80), (2, -1, 20)]


def test_a_correction_counts_once(tenant: Tenant) -> None:
    """A caller that lost the answer sends it again, however late, also after another correction."""
    tenant.record("a", cost_nanos=50)
    assert not tenant.amend("a", "fix1", cost_nanos=80).repeated
    again = tenant.amend("a", "fix1", cost_nanos=80)
    assert (again.repeated, again.record.cost_nanos) == (True, 80)
    tenant.amend("a", "fix2", cost_nanos=30)
    late = tenant.amend("a", "fix1", cost_nanos=80)
    assert (late.repeated, late.record.cost_nanos) == (True, 30)
    assert tenant.state()["cost_nanos"] == 30


def test_a_correction_of_the_same_id_with_another_body_is_a_conflict(tenant: Tenant) -> None:
    """Its sender would take it for booked: another cost, another event, or another way of correcting."""
    tenant.record("a", cost_nanos=50, tokens={"prompt": 10})
    tenant.record("b", cost_nanos=50)
    tenant.amend("a", "fix", cost_nanos=80)
    tenant.void("b", "gone")
    before = tenant.state()
    changed: list[dict[str, Any]] = [
        {"cost_nanos": 81},
        {"estimated_cost_nanos": 80},
        {"cost_nanos": 80, "tokens": Tokens(prompt=11)},
        {"cost_nanos": 80, "status": 500},
        {"cost_nanos": 80, "credits": 1},
        {"cost_nanos": 80, "tags": {"a": "b"}},
    ]
    for changes in changed:
        with pytest.raises(EventConflict, match="another correction"):
            tenant.amend("a", "fix", **changes)
    for correct in (
        lambda: tenant.amend("b", "fix", cost_nanos=80),
        lambda: tenant.void("a", "fix"),
        lambda: tenant.void("a", "gone"),
        lambda: tenant.amend("b", "gone", cost_nanos=80),
    ):
        with pytest.raises(EventConflict, match="another correction"):
            correct()
    assert tenant.state() == before
    # What says the same in other words is the same.
    assert tenant.amend("a", "fix", cost_nanos=80, tokens=Tokens(prompt=10)).repeated
    assert tenant.void("b", "gone").repeated


def test_a_repeated_correction_is_one_whatever_the_prices_are_by_now(
    toll: Tollkeeper, tenant: Tenant
) -> None:
    """The price list is ours: the sender said nothing else than before."""
    model = f"{tenant.id}-m"
    route = {"method": "POST", "route": "/v1/chat", "status": 200}
    tenant.record("a", **route, model="m1", tokens={"prompt": 20})
    assert tenant.amend("a", "fix", model=model).record.cost_state == "unpriced"
    toll.apply(f"""
        [[prices]]
        id = "{model}"
        model = "{model}"
        prompt_nanos_per_million = 9_000_000
    """)
    again = tenant.amend("a", "fix", model=model)
    assert (again.repeated, again.record.cost_state) == (True, "priced")
    with pytest.raises(EventConflict):
        tenant.amend("a", "fix", model="m2")


def test_a_voided_event_is_in_no_total(tenant: Tenant) -> None:
    """And it stays voided: neither a second void nor an amendment takes it out again, nor brings it back."""
    tenant.record("a", cost_nanos=50, tokens={"prompt": 10})
    assert tenant.void("a", "v1").record.sign == -1
    assert tenant.state() == {"requests": 0, "tokens": 0, "cost_nanos": 0, "unpriced": 0}
    assert tenant.void("a", "v1").repeated
    with pytest.raises(NotFound, match="voided"):
        tenant.void("a", "v2")
    with pytest.raises(NotFound, match="voided"):
        tenant.amend("a", "fix", cost_nanos=1)
    assert tenant.state()["requests"] == 0
    assert tenant.kept("a") == [(0, -1, 50), (0, 1, 50)]


def test_a_retry_of_the_event_after_a_correction_is_a_repeat(tenant: Tenant) -> None:
    """The sender cannot know of the correction: its event must neither count again nor bring back the old."""
    tenant.record("a", cost_nanos=50)
    tenant.record("b", cost_nanos=50)
    tenant.amend("a", "fix", cost_nanos=80)
    tenant.void("b", "v")
    for id_ in ("a", "b"):
        event = {"id": id_, "time": "2026-05-15T10:00:00Z", "key_id": f"{tenant.id}.key", "cost_nanos": 50}
        result = tenant.toll.record([event])
        assert (result.accepted, result.duplicates) == (0, 1)
    assert tenant.state()["cost_nanos"] == 80


def test_ids_of_events_and_corrections_are_one_space(tenant: Tenant) -> None:
    """Else a correction would pass as a repeat of something else, and do nothing."""
    tenant.record("a", cost_nanos=50)
    tenant.record("b", cost_nanos=50)
    with pytest.raises(EventConflict):
        tenant.amend("a", "b", cost_nanos=1)
    tenant.amend("a", "fix", cost_nanos=80)
    event = {"id": "fix", "time": "2026-05-15T10:00:00Z", "key_id": f"{tenant.id}.key", "cost_nanos": 80}
    for _ in range(2):  # While the correction is in the outbox, and when it is delivered.
        assert [r.code for r in tenant.toll.record([event]).rejections] == ["event_conflict"]
        tenant.state()
    assert tenant.state() == {"requests": 2, "tokens": 0, "cost_nanos": 130, "unpriced": 0}


def test_another_accounts_event_cannot_be_corrected(toll: Tollkeeper, tenant: Tenant) -> None:
    """It does not exist, as far as this account is concerned."""
    other = Tenant(toll)
    other.record("theirs", cost_nanos=50)
    with pytest.raises(NotFound):
        tenant.void("theirs", "v")
    with pytest.raises(NotFound):
        tenant.amend("theirs", "fix", cost_nanos=1)
    assert other.state()["cost_nanos"] == 50


@pytest.mark.parametrize("field", ["account", "project", "key_id", "method", "route", "kind"])
def test_what_names_an_event_cannot_be_amended(tenant: Tenant, field: str) -> None:
    """It would move between counters; void it and send another."""
    tenant.record("a", cost_nanos=50)
    with pytest.raises(BadParameter) as caught:
        tenant.amend("a", "fix", **{field: "x"})
    assert caught.value.field == field
    assert tenant.state()["cost_nanos"] == 50


def test_a_job_has_an_estimate_first_and_its_actual_cost_later(tenant: Tenant) -> None:
    """Until the job ends its estimate counts, so that the budget cannot be passed meanwhile."""
    tenant.record("job", estimated_cost_nanos=70, kind="scan")
    query = UsageQuery(account_id=tenant.id, **ALL, measures=("cost_nanos", "estimated_cost_nanos"))
    assert tenant.toll.usage(query).totals == {"cost_nanos": 70, "estimated_cost_nanos": 70}
    assert tenant.amend("job", "progress", estimated_cost_nanos=90).record.cost_state == "estimated"
    assert tenant.state()["cost_nanos"] == 90
    done = tenant.amend("job", "done", cost_nanos=60, status=200, latency_ms=1234.5).record
    assert (done.cost_state, done.kind, done.latency_us) == ("given", "scan", 1_234_500)
    assert tenant.toll.usage(query).totals == {"cost_nanos": 60, "estimated_cost_nanos": 0}
    assert tenant.state()["cost_nanos"] == 60


def test_a_refund_refills_in_the_reverse_of_the_drawing_order(tenant: Tenant) -> None:
    """What was drawn last comes back first, and a debt is paid before any grant."""
    tenant.record("a", cost_nanos=150)
    tenant.record("b", cost_nanos=80)
    assert tenant.left() == {"first": 0, "second": 0, "overdraft": 30}
    tenant.amend("b", "fix1", cost_nanos=60)
    assert tenant.left() == {"first": 0, "second": 0, "overdraft": 10}
    tenant.amend("a", "fix2", cost_nanos=120)
    assert tenant.left() == {"first": 0, "second": 20, "overdraft": 0}
    tenant.void("a", "v")
    assert tenant.left() == {"first": 40, "second": 100, "overdraft": 0}
    assert tenant.state()["cost_nanos"] == 60


def test_concurrent_corrections_of_one_event_leave_one_in_force(tenant: Tenant) -> None:
    """Each sees what the one before left: nothing is taken out twice."""
    tenant.record("a", cost_nanos=50)
    start = threading.Barrier(8)
    got: list[Record] = []

    def correct(number: int) -> None:
        start.wait()
        got.append(tenant.amend("a", f"fix{number // 2}", cost_nanos=100 + number // 2).record)

    threads = [threading.Thread(target=correct, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    last = max(got, key=lambda record: record.revision)
    assert last.revision == 4
    assert tenant.state() == {"requests": 1, "tokens": 0, "cost_nanos": last.cost_nanos, "unpriced": 0}
    assert sum(-sign for _, sign, _ in tenant.kept("a")) == 1


def test_voids_at_once_take_it_out_once(tenant: Tenant) -> None:
    """Two operators press the button."""
    tenant.record("a", cost_nanos=50)
    tenant.record("b", cost_nanos=7)
    start = threading.Barrier(4)
    refused: list[NotFound] = []

    def void(number: int) -> None:
        start.wait()
        try:
            tenant.void("a", f"v{number}")
        except NotFound as exc:
            refused.append(exc)

    threads = [threading.Thread(target=void, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert tenant.state()["cost_nanos"] == 7


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("changes", "cost", "state"),
    [
        ({"tokens": Tokens(prompt=30)}, 40, "priced"),
        ({"tokens": Tokens(completion=4)}, 38, "priced"),
        ({"model": "m2"}, 150, "priced"),
        ({"model": "nobody-sells-this"}, 10, "unpriced"),
        ({"model": "nobody-sells-this", "tokens": Tokens(prompt=0)}, 10, "unpriced"),
        ({"model": "image", "tokens": Tokens(prompt=0)}, 40_000_010, "priced"),
        ({"model": "image", "tokens": Tokens(prompt=0), "status": 500}, 0, "priced"),
        ({"status": 500}, 20, "priced"),
        ({"cache": "hit"}, 0, "free"),
        ({"bytes_out": 5, "error_type": "late", "tags": {"a": "b"}}, 30, "priced"),
        ({"cost_nanos": 3}, 3, "given"),
        ({"tokens": Tokens(prompt=0)}, 10, "priced"),
    ],
)
def test_the_cost_is_found_anew_from_what_was_corrected(
    tenant: Tenant, changes: dict[str, Any], cost: int, state: str
) -> None:
    """As if the event had been sent like this in the first place."""
    route = {"method": "POST", "route": "/v1/chat", "status": 200}
    tenant.record("a", **route, model="m1", tokens={"prompt": 20})
    assert tenant.state()["cost_nanos"] == 30
    record = tenant.amend("a", "fix", **changes).record
    assert (record.cost_nanos, record.cost_state) == (cost, state)
    totals = tenant.state()
    assert (totals["cost_nanos"], totals["unpriced"]) == (cost, state == "unpriced")


def test_an_amended_event_without_a_price_is_priced_when_the_price_comes(tenant: Tenant) -> None:
    """Only what is in force is priced, and once."""
    model = f"{tenant.id}-m"
    tenant.record("a", model=model, tokens={"prompt": 10**6})
    tenant.record("b", model=model, tokens={"prompt": 10**6})
    tenant.record("c", model=model, tokens={"prompt": 10**6})
    tenant.amend("a", "fix", tokens=Tokens(prompt=2 * 10**6))
    tenant.void("b", "v")
    tenant.amend("c", "given", cost_nanos=1)
    tenant.toll.manage.put(Price(id=model, model=model, prompt_nanos_per_million=100))
    assert tenant.state() == {"requests": 2, "tokens": 3 * 10**6, "cost_nanos": 201, "unpriced": 0}


def test_a_store_that_is_behind_makes_corrections_wait(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While records are on their way nobody can tell what is in force: refuse, or correct the wrong one."""
    monkeypatch.setattr(delivery, "FLUSH_S", 0.05)
    store = tenant.toll.installation.store
    append = store.append

    def fail(*args: Any, **options: Any) -> None:
        raise Unavailable("the disk of the store is full")

    monkeypatch.setattr(store, "append", fail)
    tenant.record("a", cost_nanos=50)
    with pytest.raises(Unavailable):
        tenant.amend("a", "fix", cost_nanos=60)
    with pytest.raises(Unavailable):
        tenant.toll.installation.amend.price_unpriced()
    monkeypatch.setattr(store, "append", append)
    monkeypatch.setattr(delivery, "FLUSH_S", 5.0)
    assert tenant.amend("a", "fix", cost_nanos=60).record.cost_nanos == 60
    assert tenant.state()["cost_nanos"] == 60


def test_all_of_this_is_reconciled(toll: Tollkeeper) -> None:
    """Counter = ledger = sum of events, over what the tests above left."""
    verdict = toll.verify()
    assert verdict.ok, verdict
