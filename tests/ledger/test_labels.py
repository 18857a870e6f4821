"""Distinct labels are bounded at each door; what a request costs, counts and repeats does not change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, Price, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Event, Record, Tokens
from tollkeeper.domain.labels import LABELS, OTHER
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import BadParameter, HoldEnded
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.labels import DAY_COST, Labels
from tollkeeper.meter.decode import decode_events
from tollkeeper.meter.ingest import IngestResult
from tollkeeper.profiles import load
from tollkeeper.record_columns import records_of, table_of
from tollkeeper.settings import Settings
from tollkeeper.testing import commit_all, set_up, unique, verify

VALUES = 4
DAY_US = 86_400_000_000


class Place:
    """One account with a budget, on an installation that keeps few distinct labels."""

    def __init__(self, site: Installation) -> None:
        self.site = site
        self.account = unique("acme")
        self.secrets = set_up(
            site,
            Account(id=self.account, name="Acme"),
            Plan(slug=f"{self.account}-plan", limits=[Limit(name="rpm", amount=40)]),
            Key(id=f"{self.account}-key", account=self.account, plan=f"{self.account}-plan"),
            Budget(id="b", account=self.account, amount=10**12, period="day"),
            Route(id="files", method="GET", path="/files/*", price_nanos=3),
            *(
                Price(id=f"m{index}", model=f"m{index}", request_nanos=100 + index)
                for index in range(3 * VALUES)
            ),
        )
        self.secret = self.secrets[f"{self.account}-key"]

    def record(self, *events: dict[str, object]) -> IngestResult:
        bodies = [{"account": self.account, "time": self.now()} | event for event in events]
        return self.site.ingest.take(decode_events(bodies, now_us=self.site.clock.now_us()))

    def now(self) -> str:
        return self.site.clock.now().isoformat().replace("+00:00", "Z")

    def fill(self) -> None:
        """Use up the account's labels of today."""
        result = self.record(
            *(
                {
                    "id": f"fill-{i}",
                    "method": f"M{i}",
                    "route": f"/fill/{i}",
                    "kind": f"k{i}",
                    "error_type": f"e{i}",
                    "denied_reason": f"d{i}",
                    "model": f"fill-{i}",
                    "cost_nanos": 0,
                }
                for i in range(VALUES)
            )
        )
        assert result.accepted == VALUES

    def booked(self, id_: str) -> Record:
        assert self.site.delivery.fresh(self.account)
        return self.site.store.records([(self.account, id_)])[self.account, id_]

    def cost(self) -> tuple[int, int]:
        """What the report and the ledger say was spent."""
        now_us = self.site.clock.now_us()
        report = self.site.reports.usage(
            UsageQuery(account_id=self.account, from_us=now_us - 40 * DAY_US, to_us=now_us + DAY_US)
        )
        rows = self.site.ledger.counter_rows(self.account)
        return report.totals["cost_nanos"], sum(
            used for (counter, _), used in rows.items() if counter == "budget:b"
        )

    def grouped(self, name: str) -> set[str]:
        now_us = self.site.clock.now_us()
        report = self.site.reports.usage(
            UsageQuery(
                account_id=self.account,
                from_us=now_us - 40 * DAY_US,
                to_us=now_us + DAY_US,
                group_by=(name,),
            )
        )
        return {str(row[name]) for row in report.rows}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    site = Installation(
        Settings(data_dir=str(path), distinct_values_per_day_max=VALUES, unknown_price="allow")
    )
    yield site
    # Of all tests at once: it compares all accounts.
    assert verify(site).ok
    site.close()


@pytest.fixture
def place(small):
    return Place(small)


# -- every door ----------------------------------------------------------------------------------------


def test_bulk_events_keep_so_many_labels_a_day(place):
    events = [
        {"id": f"e{i}", "route": f"/r/{i}", "kind": f"k{i}", "error_type": f"x{i}", "model": f"m{i}"}
        for i in range(3 * VALUES)
    ]
    assert place.record(*events[:5]).accepted == 5
    assert place.record(*events[5:]).accepted == len(events) - 5
    for name, prefix in (("route", "/r/"), ("kind", "k"), ("error_type", "x"), ("model", "m")):
        assert place.grouped(name) == {*(f"{prefix}{i}" for i in range(VALUES)), OTHER}, name
    # Each by its own price, kept or not.
    total = sum(100 + i for i in range(3 * VALUES))
    assert place.cost() == (total, total)
    assert place.booked("e11").cost_nanos == 111


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", LABELS)
def test_each_label_is_bounded(place, name):
    place.record(*({"id": f"e{i}", name: f"{name[:2]}{i}", "cost_nanos": 1} for i in range(3 * VALUES)))
    assert len({getattr(place.booked(f"e{i}"), name) for i in range(3 * VALUES)}) == VALUES + 1


def test_a_request_of_this_process(place):
    place.fill()
    admission = place.site.holds.admit(place.secret, "GET", "/files/a")
    record = place.site.holds.settle(admission, Outcome(error_type="new", usage=Usage(5, model="m9")))
    commit_all(place.site)
    assert (record.error_type, record.model, record.cost_nanos) == ("new", "m9", 3 + 109)
    booked = place.booked(record.id)
    assert (booked.method, booked.route, booked.kind) == (OTHER, OTHER, OTHER)
    assert (booked.error_type, booked.model, booked.denied_reason) == (OTHER, OTHER, "")
    assert booked == record._replace(**{name: getattr(booked, name) for name in LABELS})
    assert place.cost() == (112, 112)


def test_a_hold_over_http_and_the_repeat_of_its_settle(place):
    place.fill()
    _, future = place.site.holds.authorize(
        place.secret, "GET", "/files/a", Usage(5, model="m9"), CommitFuture(), hold_id="h"
    )
    future.wait()

    def settle(**fields):
        outcome = Outcome(**({"error_type": "new"} | fields), usage=Usage(5, model="m9"))
        settled, future = place.site.holds.settle_hold("h", outcome, CommitFuture(), account_id=place.account)
        if future is not None:
            future.wait()
        return settled

    first = settle()
    assert (first.record.model, first.record.error_type, first.record.cost_nanos) == (OTHER, OTHER, 112)
    again = settle()
    assert again.replayed
    assert again.record == first.record
    for other in ({"error_type": ""}, {"status": 500}, {"latency_us": 9}):
        with pytest.raises(HoldEnded):
            settle(**other)
    assert place.cost() == (112, 112)


def test_a_hold_that_is_settled_late(place, monkeypatch):
    place.fill()
    _, future = place.site.holds.authorize(
        place.secret, "GET", "/files/a", Usage(model="m9"), CommitFuture(), hold_id="h", ttl_s=1
    )
    future.wait()
    now_us = place.site.clock.now_us()
    with monkeypatch.context() as later:
        later.setattr(place.site.holds, "_now_us", lambda: now_us + 2_000_000)
        place.site.holds.expire()
    commit_all(place.site)
    outcome = Outcome(usage=Usage(5, model="m9"))
    settled, future = place.site.holds.settle_hold("h", outcome, CommitFuture(), account_id=place.account)
    future.wait()
    assert (settled.record.model, settled.record.cost_nanos) == (OTHER, 112)


def test_a_denied_request(place):
    place.fill()
    found = [place.site.holds.admit(place.secret, "GET", "/files/a", Usage(model="m9")) for _ in range(41)]
    assert isinstance(found[-1], Denial)
    assert "rate_limited" not in place.grouped("denied_reason")
    assert OTHER in place.grouped("denied_reason")
    report = place.site.reports.usage(
        UsageQuery(
            account_id=place.account,
            from_us=place.site.clock.now_us() - DAY_US,
            to_us=place.site.clock.now_us() + DAY_US,
            measures=("denied",),
        )
    )
    assert report.totals["denied"] == VALUES + 1


def test_what_a_profile_records(place):
    """The method of such a call is the caller's."""
    context = place.site.context(load("shoal"))
    key = place.site.directory.key(f"{place.account}-key")
    for index in range(3 * VALUES):
        context.record(key, Route(id="x", method=f"M{index}", path="/x"), 200)
    assert place.grouped("method") == {*(f"M{i}" for i in range(VALUES)), OTHER}


def test_an_amendment_is_priced_by_what_it_states_and_stored_within_the_bound(place):
    place.record({"id": "a", "model": "m1", "tokens": {"prompt": 1}})
    place.fill()
    fix = Event(id="x", time="", model="m9", error_type="new")
    record = place.site.amend.amend(place.account, "a", "fix", fix).record
    assert (record.model, record.error_type, record.cost_nanos) == (OTHER, OTHER, 109)
    assert place.site.amend.amend(place.account, "a", "fix", fix).repeated
    assert place.cost() == (109, 109)


def test_an_amendment_of_an_event_without_its_label_keeps_its_cost(place):
    """Its model is not known any more, and the price of none is not the price of this."""
    place.fill()
    place.record({"id": "a", "model": "m9", "tokens": {"prompt": 1}})
    amend = place.site.amend.amend
    assert amend(place.account, "a", "fix1", Event(id="x", time="", latency_ms=5)).record.cost_nanos == 109
    with pytest.raises(BadParameter, match="state the model"):
        amend(place.account, "a", "fix2", Event(id="x", time="", tokens=Tokens(prompt=7)))
    fixed = amend(place.account, "a", "fix3", Event(id="x", time="", tokens=Tokens(prompt=7), model="m8"))
    assert (fixed.record.cost_nanos, fixed.record.model) == (108, OTHER)
    place.record({"id": "b", "method": "GET", "route": "/files/b", "status": 200})
    assert place.booked("b").cost_nanos == 3
    with pytest.raises(BadParameter, match="state cost_nanos"):
        amend(place.account, "b", "fix4", Event(id="x", time="", status=500))
    assert amend(place.account, "b", "fix5", Event(id="x", time="", status=500, cost_nanos=0)).record
    assert place.cost() == (108, 108)


def test_a_price_that_comes_later_leaves_the_route_its_own(place):
    """An unpriced event has the price of its route already, and its route may not be known any more."""
    model = unique("late")
    place.record({"id": "a", "method": "GET", "route": "/x", "model": model, "cost_nanos": 0})
    place.record(*({"id": f"f{i}", "route": f"/fill/{i}", "cost_nanos": 0} for i in range(VALUES)))
    place.record(
        {
            "id": "b",
            "method": "GET",
            "route": "/files/b",
            "model": model,
            "status": 200,
            "tokens": {"prompt": 1},
        }
    )
    booked = place.booked("b")
    assert (booked.route, booked.model, booked.cost_nanos, booked.cost_state) == (OTHER, model, 3, "unpriced")
    set_up(place.site, Price(id=model, model=model, request_nanos=50))
    assert (place.booked("b").cost_nanos, place.booked("b").cost_state) == (53, "priced")


# -- repeats -------------------------------------------------------------------------------------------


def event(id_="a", **fields):
    return {
        "id": id_,
        "route": "/new",
        "model": "m9",
        "tokens": {"prompt": 1},
        "time": "2026-01-05T00:00:00Z",
    } | fields


def test_a_repeat_of_an_event_whose_labels_were_replaced_is_a_duplicate(place):
    place.fill()
    sent = event(time=place.now())
    assert place.record(sent, sent)[:2] == (1, 1)
    assert place.record(sent).duplicates == 1
    assert place.booked("a").model == OTHER
    assert place.record(sent).duplicates == 1
    # Also where labels are counted from zero, and the same text would be kept.
    place.site.ingest._labels = Labels(VALUES)
    try:
        assert place.record(sent).duplicates == 1
        assert place.record(event("b", time=sent["time"])).accepted == 1
        assert place.record(sent).duplicates == 1
    finally:
        place.site.ingest._labels = place.site.labels


def test_a_repeat_of_an_event_whose_labels_were_kept_is_a_duplicate_when_they_would_be_replaced(place):
    sent = event(time=place.now())
    place.record(sent)
    place.site.ingest._labels = Labels(VALUES)
    try:
        place.fill()
        assert place.record(sent).duplicates == 1
        assert place.booked("a").model == "m9"
        assert place.record(sent).duplicates == 1
    finally:
        place.site.ingest._labels = place.site.labels


def test_conflicts_in_other_fields_are_still_told(place):
    place.fill()
    sent = event(time=place.now())
    place.record(sent)
    place.booked("a")
    for changed in (
        {"status": 404},
        {"tokens": {"prompt": 2}},
        {"tags": {"a": "b"}},
        {"cost_nanos": 7},
        {"kind": ""},
    ):
        result = place.record(sent | changed)
        if changed == {"kind": ""}:
            # The default, `request`, was replaced too.
            assert result.duplicates == 1
        else:
            assert result.rejections[0].code == "event_conflict", changed
    without = {name: value for name, value in sent.items() if name != "model"}
    assert place.record(without).rejections[0].code == "event_conflict"
    assert place.record(event("fill-0", time=sent["time"])).rejections[0].code == "event_conflict"


# -- columns and records agree; what is remembered is bounded ------------------------------------------

ROW = Record(
    "acme", "", "", 0, 0, "id", 0, 1, "", "request", "", "", 200, "", "", None, 0, "", 0, 0, 0, 0, "", 0, 0, 0,
    "free", "", {},
)  # fmt: skip
TODAY_US = 20_500 * DAY_US + 5
words = st.sampled_from(["", OTHER, *"abcdef"])
records = st.builds(
    lambda account, day, texts: ROW._replace(
        account_id=account,
        occurred_at_us=TODAY_US + day * DAY_US,
        received_at_us=TODAY_US,
        **dict(zip(LABELS, texts, strict=True)),
    ),
    st.sampled_from("xyz"),
    st.integers(-9, 1),
    st.tuples(*[words] * len(LABELS)),
)


@hypothesis_settings(deadline=None)
@given(st.lists(st.lists(records, max_size=40), max_size=4), st.integers(0, 4))
def test_columns_are_mapped_as_the_records_one_after_the_other(batches, values_max):
    in_columns, one_by_one = Labels(values_max), Labels(values_max)
    for batch in batches:
        table = in_columns.of_table(table_of(batch))
        assert table.schema == table_of(batch).schema
        assert records_of(table) == [one_by_one.of_record(record) for record in batch]
    assert in_columns.hash_count == one_by_one.hash_count


def test_columns_of_many_distinct_values_do_not_overflow():
    """The codes of seven columns with 5,000 values each are beyond 64 bits."""
    batch = [
        ROW._replace(
            account_id=f"a{i}",
            received_at_us=TODAY_US,
            occurred_at_us=TODAY_US,
            **{name: f"{name}{i}" for name in LABELS},
        )
        for i in range(5_000)
    ]
    assert records_of(Labels(1).of_table(table_of(batch))) == batch
    one = [record._replace(account_id="a") for record in batch]
    kept = records_of(Labels(10).of_table(table_of(one)))
    assert kept[:10] == one[:10]
    assert {record.model for record in kept[10:]} == {OTHER}


def test_what_is_remembered_is_bounded():
    """However many accounts, days and texts come, and in whatever order."""
    labels = Labels(3, hashes_max=1_000)
    per_day = 3 * (len(LABELS) + 4) + DAY_COST
    for i in range(5_000):
        labels.of_record(
            ROW._replace(
                account_id=f"a{i % 97}",
                occurred_at_us=TODAY_US - (i % 9_000) * DAY_US,
                received_at_us=TODAY_US + i // 500 * DAY_US,
                model=f"m{i}",
                route=f"/r{i}",
            )
        )
        assert labels.hash_count <= 1_000 + per_day
    assert labels.hash_count == sum(len(day) + DAY_COST for day in labels._days.values())
    assert len(labels._days) <= 1_000 // DAY_COST
    assert len(labels._reported) <= len(labels._days)


def test_old_days_are_no_way_to_more_labels():
    labels = Labels(3)
    seen = {
        labels.of_record(
            ROW._replace(occurred_at_us=TODAY_US - i * DAY_US, received_at_us=TODAY_US, model=f"m{i}-{j}")
        ).model
        for i in range(3, 500)
        for j in range(5)
    }
    assert len(seen) == 3 + 1


def test_passed_days_are_forgotten():
    labels = Labels(3)
    for day in range(400):
        at_us = TODAY_US + day * DAY_US
        for occurred_at_us in (at_us, at_us - 100 * DAY_US):
            labels.of_record(ROW._replace(occurred_at_us=occurred_at_us, received_at_us=at_us))
    assert len(labels._days) == 4


def test_zero_is_no_bound():
    labels = Labels(0)
    batch = [ROW._replace(model=f"m{i}") for i in range(20_000)]
    assert [labels.of_record(record) for record in batch] == batch
    assert labels.of_table(table_of(batch)).equals(table_of(batch))
    assert labels.hash_count == 0


def test_the_operator_hears_of_it_once(caplog):
    """A label with ids in it is a mistake that somebody wants to know of, without a line for each event."""
    labels = Labels(3)
    for i in range(50):
        labels.of_record(ROW._replace(model=f"m{i}"))
    (line,) = [record for record in caplog.records if record.message == "tollkeeper.labels.replaced"]
    assert (line.account, line.fields) == ("acme", ["model"])
