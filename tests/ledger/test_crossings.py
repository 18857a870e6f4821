"""
Where two features meet: values and periods of first use, top-ups of values and quantities, adjustments and all of them.

Each is tested alone elsewhere; here each test has two at once, and ends with counters that are the sums of the events.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.ledger.test_budget_scopes import Api
from tollkeeper.domain.adjustments import Adjustment
from tollkeeper.domain.catalog import Key, Markup, Match, Plan, Price
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import BadParameter, Conflict, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import AddCharges, Draft, Settle
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import commit_all, unique, verify

FIRST = datetime(2026, 3, 18, 19, 58, tzinfo=UTC)
HOURS_5 = timedelta(hours=5)
MINUTE = timedelta(minutes=1)


class Users(Api):
    """An account whose requests name a user and a model."""

    def ask(self, user: str = "", model: str = "", name: str = "k1", **used: Any) -> Admission | Denial:
        tags = {"user": user} if user else {}
        usage = Usage(model=model, **{"cost_nanos": 1, **used})
        secret = self.secrets[f"{self.account}-{name}"]
        return self.site.holds.admit(secret, "POST", "/chat", usage, tags)

    def use(self, user: str = "", model: str = "", count: int = 1, **used: Any) -> int:
        """Ask and settle *count* times; return how many were admitted."""
        admitted = 0
        for _ in range(count):
            found = self.ask(user, model, **used)
            if isinstance(found, Admission):
                outcome = Outcome(usage=Usage(model=model, **{"cost_nanos": 1, **used}))
                self.site.holds.settle(found, outcome)
                admitted += 1
        return admitted

    def events(self, *drawn: tuple[str, datetime], name: str = "k1", **fields: Any) -> None:
        """Book an event of each `(user, time)`, as one batch."""
        sent = [
            {
                "id": unique("e"),
                "time": to_text(at),
                "account": self.account,
                "key_id": f"{self.account}-{name}",
                "cost_nanos": 1,
                **({"tags": {"user": user}} if user else {}),
                **fields,
            }
            for user, at in drawn
        ]
        taken = self.site.ingest.take(decode_events(sent, now_us=self.site.clock.now_us()))
        assert taken.accepted == len(sent), taken

    def opened(
        self, value: str = "", budget: str = "b", period: str = "5h"
    ) -> list[tuple[datetime, datetime]]:
        """The periods that the ledger has of a budget, or of one value of it."""
        commit_all(self.site)
        name = f"budget:{budget}#{value}" if value else f"budget:{budget}"
        _, spans = self.site.ledger.opened_periods(self.account, name, period, 0)
        return [(from_us(start), from_us(end)) for start, end in spans]

    def charged(self, counter_id: str) -> int:
        """What a counter has in the ledger, all of its periods together."""
        commit_all(self.site)
        rows = self.site.ledger.counter_rows(self.account)
        return sum(used for (name, _), used in rows.items() if name == counter_id)

    def adjust(self, amount_nanos: int, at: datetime | None = None, **fields: Any) -> None:
        at_us = None if at is None else int(at.timestamp()) * 10**6
        self.site.adjustments.post(
            Adjustment(unique("a"), self.account, amount_nanos, "goodwill", at_us=at_us, **fields)
        )


@pytest.fixture
def api(site, account, clock) -> Iterator[Users]:
    clock.set(FIRST - 60 * MINUTE)
    api = Users(site, account)
    api.key("k1")
    api.key("k2")
    yield api
    verdict = verify(site)
    assert verdict.ok, verdict


@pytest.fixture
def five(api, clock) -> Users:
    """Three requests per 5h of each user."""
    api.budget(amount=3, unit="requests", period="5h", per="tag.user")
    clock.set(FIRST)
    return api


# -- values and periods of first use ------------------------------------------------------------------


def test_each_user_has_five_hours_from_the_own_first_use(five, clock):
    assert five.use("u1", count=5) == 3
    clock.set(FIRST + 60 * MINUTE)
    assert five.use("u2", count=5) == 3
    clock.set(FIRST + HOURS_5)
    assert (five.use("u1", count=5), five.use("u2")) == (3, 0)
    clock.set(FIRST + HOURS_5 + 60 * MINUTE)
    assert five.use("u2", count=5) == 3
    assert five.opened("u1") == [(FIRST, FIRST + HOURS_5), (FIRST + HOURS_5, FIRST + 2 * HOURS_5)]
    assert [start for start, _ in five.opened("u2")] == [FIRST + 60 * MINUTE, FIRST + HOURS_5 + 60 * MINUTE]
    assert five.opened() == []


def test_periods_of_values_go_on_after_a_restart(install, account, clock):
    clock.set(FIRST - 60 * MINUTE)
    site = install()
    api = Users(site, account)
    api.key("k1")
    api.budget(amount=3, unit="requests", period="5h", per="tag.user")
    clock.set(FIRST)
    assert api.use("u1", count=2) == 2
    commit_all(site)
    site.close()
    clock.set(FIRST + 2 * 60 * MINUTE)
    api.site = install()
    assert api.use("u1", count=5) == 1
    clock.set(FIRST + HOURS_5)
    assert api.use("u1", count=5) == 3
    assert [start for start, _ in api.opened("u1")] == [FIRST, FIRST + HOURS_5]
    assert verify(api.site).ok


def test_a_batch_opens_each_users_period_at_its_first_event_whichever_key_it_names(five, clock):
    clock.set(FIRST + 30 * MINUTE)
    five.events(("u2", FIRST + 20 * MINUTE), ("u1", FIRST + 10 * MINUTE), ("u2", FIRST + 5 * MINUTE))
    five.events(("u1", FIRST + MINUTE), ("u1", FIRST + 12 * MINUTE), name="k2")
    # A late one of a user whose period has begun opens a shorter one before it.
    assert five.opened("u1") == [
        (FIRST + MINUTE, FIRST + 10 * MINUTE),
        (FIRST + 10 * MINUTE, FIRST + 10 * MINUTE + HOURS_5),
    ]
    assert five.opened("u2") == [(FIRST + 5 * MINUTE, FIRST + 5 * MINUTE + HOURS_5)]
    assert five.use("u2", count=5) == 1
    assert (five.charged("budget:b#u1"), five.charged("budget:b#u2")) == (3, 3)


def test_a_request_that_a_budget_does_not_count_opens_none_of_its_periods(api, clock):
    api.budget(amount=2, unit="requests", period="5h", match=Match(models=["gpt-4o*"]))
    clock.set(FIRST)
    assert api.use(model="o3", count=4) == 4
    api.events(("", FIRST), model="o3")
    assert api.opened() == []
    clock.set(FIRST + MINUTE)
    assert api.use(model="gpt-4o", count=4) == 2
    assert api.opened() == [(FIRST + MINUTE, FIRST + MINUTE + HOURS_5)]


def test_a_budget_of_values_that_is_set_later_counts_from_the_first_use_of_each(api, clock):
    """Of the last five hours; what is older is over, and what comes later opens as ever."""
    api.events(("u1", FIRST - HOURS_5 - MINUTE))
    clock.set(FIRST)
    api.events(("u1", FIRST - 2 * MINUTE), ("u2", FIRST - 60 * MINUTE), ("u2", FIRST - 30 * MINUTE))
    api.events(("u3", FIRST + 4 * MINUTE))
    commit_all(api.site)
    api.budget(amount=3, unit="requests", period="5h", per="tag.user")
    assert api.opened("u1") == [(FIRST - 2 * MINUTE, FIRST - 2 * MINUTE + HOURS_5)]
    assert api.opened("u2") == [(FIRST - 60 * MINUTE, FIRST - 60 * MINUTE + HOURS_5)]
    assert api.opened("u3") == [(FIRST, FIRST + HOURS_5)]
    assert [api.charged(f"budget:b#u{user}") for user in (1, 2, 3)] == [1, 2, 1]
    assert [api.use(f"u{user}", count=5) for user in (1, 2, 3, 4)] == [2, 1, 2, 3]


def test_what_is_open_counts_in_the_period_of_its_value_when_a_budget_is_set(api, clock):
    clock.set(FIRST)
    held = [api.ask("u1"), api.ask("u1"), api.ask("u2")]
    clock.set(FIRST + MINUTE)
    api.budget(amount=3, unit="requests", period="5h", per="tag.user")
    assert (api.use("u1", count=5), api.use("u2", count=5)) == (1, 2)
    for admission in held:
        assert isinstance(admission, Admission)
        api.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=1)))
    assert (api.charged("budget:b#u1"), api.charged("budget:b#u2")) == (3, 3)
    assert api.opened("u1")[0][0] == FIRST


def test_a_settlement_joins_the_period_of_another_model_that_is_not_in_memory(api, clock):
    api.budget(amount=10, unit="requests", period="5h", per="model")
    clock.set(FIRST)
    assert api.use(model="o3") == 1
    clock.set(FIRST + MINUTE)
    held = api.ask(model="gpt-4o")
    assert isinstance(held, Admission)
    commit_all(api.site)
    later_us = api.site.clock.now_us() + 3600 * 10**6
    api.site.directory.openings.evict_idle(later_us)
    api.site.holds.settle(held, Outcome(usage=Usage(model="o3", cost_nanos=1)))
    assert (api.charged("budget:b#o3"), api.charged("budget:b#gpt-4o")) == (2, 0)
    assert [start for start, _ in api.opened("o3")] == [FIRST]


def test_a_settlement_opens_a_period_of_the_value_that_it_joins(five, clock):
    held = five.ask("u1")
    assert isinstance(held, Admission)
    clock.set(FIRST + MINUTE)
    five.site.holds.settle(held, Outcome(usage=Usage(cost_nanos=1), tags={"user": "u2"}))
    assert five.opened("u2") == [(FIRST, FIRST + HOURS_5)]
    assert (five.charged("budget:b#u1"), five.charged("budget:b#u2")) == (0, 1)
    assert (five.use("u1", count=5), five.use("u2", count=5)) == (3, 2)


# -- top-ups of values and of quantities --------------------------------------------------------------


def test_a_top_up_is_of_one_value(five, clock):
    toll = Tollkeeper(five.site)
    assert (five.use("u1", count=5), five.use("u2", count=5)) == (3, 3)
    posted = toll.top_up(five.account, "b", 2, id="t1", values={"tag.user": "u1"})
    assert (posted.counter, posted.allowed) == ("budget:b#u1", "5")
    assert (five.use("u1", count=5), five.use("u2", count=5)) == (2, 0)
    again = toll.top_up(five.account, "b", "2", id="t1", values={"tag.user": "u1"})
    assert again.repeated
    clock.set(FIRST + HOURS_5)
    assert five.use("u1", count=5) == 3


@pytest.mark.parametrize("values", [{}, {"tag.team": "t"}, {"tag.user": "u1", "model": "o3"}])
def test_a_top_up_of_a_budget_of_values_names_each_of_them(five, values):
    assert five.use("u1") == 1
    with pytest.raises(BadParameter, match="values"):
        Tollkeeper(five.site).top_up(five.account, "b", 2, id="t1", values=values)


def test_a_budget_without_values_takes_none(api):
    api.budget(amount=3, unit="requests", period="day")
    with pytest.raises(BadParameter, match="leave values out"):
        Tollkeeper(api.site).top_up(api.account, "b", 2, id="t1", values={"tag.user": "u1"})


def test_a_value_without_a_period_waits_for_its_top_up(five, clock):
    toll = Tollkeeper(five.site)
    assert five.use("u1") == 1
    with pytest.raises(Conflict, match="until_used"):
        toll.top_up(five.account, "b", 2, id="t1", values={"tag.user": "u2"})
    toll.top_up(five.account, "b", 2, id="t2", values={"tag.user": "u2"}, until_used=True)
    assert five.use("u2", count=9) == 5
    clock.set(FIRST + HOURS_5)
    assert five.use("u2", count=9) == 3


def test_the_own_amount_of_a_value_is_kept_while_its_top_up_lasts(api, clock):
    """What a day drew from it is decided by the amount of that day, not by today's."""
    api.budget(amount=3, unit="requests", period="day", per="tag.user")
    toll = Tollkeeper(api.site)
    toll.top_up(api.account, "b", 4, id="t1", values={"tag.user": "u1"}, until_used=True)
    assert api.use("u1", count=5) == 5
    api.budget(amount=1, unit="requests", period="day", per="tag.user")
    api.budget(amount=3, unit="requests", period="day", per="tag.user")
    clock.advance(seconds=86_400)
    api.budget(amount=1, unit="requests", period="day", per="tag.user")
    assert api.use("u1", count=9) == 3
    assert api.use("u2", count=9) == 1


def test_a_budget_that_each_key_has_is_topped_up_for_one_of_them(api):
    api.budget(amount=2, unit="requests", per="key")
    toll = Tollkeeper(api.site)
    with pytest.raises(BadParameter, match="key="):
        toll.top_up(api.account, "b", 1, id="t1")
    posted = toll.top_up(api.account, "b", 1, id="t1", key=f"{api.account}-k1")
    assert (posted.counter, posted.allowed) == (f"budget:b/key:{api.account}-k1", "3")
    assert isinstance(api.ask(name="k2"), Admission)
    assert api.use(count=9) == 3


def test_a_budget_per_key_and_user_is_topped_up_for_one_of_both(api):
    api.budget(amount=2, unit="requests", per=["key", "tag.user"])
    key = f"{api.account}-k1"
    Tollkeeper(api.site).top_up(api.account, "b", 1, id="t1", key=key, values={"tag.user": "u1"})
    assert (api.use("u1", count=9), api.use("u2", count=9)) == (3, 2)


def test_a_budget_of_seconds_is_topped_up_in_seconds(api):
    api.budget(amount=100 * 10**6, unit="quantity.seconds", period="day")
    toll = Tollkeeper(api.site)
    assert api.use(quantities={"seconds": 60 * 10**6}) == 1
    refused = api.ask(quantities={"seconds": 61_500_000})
    assert isinstance(refused, Denial)
    assert refused.message == "Budget b is used up: 60 of 100 seconds used, 61.5 needed."
    posted = toll.top_up(api.account, "b", "21.5", id="t1")
    assert (posted.amount, posted.allowed) == ("21.5", "121.5")
    assert api.use(quantities={"seconds": 61_500_000}) == 1
    assert api.use(quantities={"seconds": 1}) == 0


def test_a_budget_of_seconds_opens_with_what_it_counts(api, clock):
    match = Match(models=["whisper*"])
    api.budget(amount=100 * 10**6, unit="quantity.seconds", period="5h", per="tag.user", match=match)
    clock.set(FIRST)
    assert api.use("u1", "gpt-4o") == 1
    assert api.opened("u1") == []
    clock.set(FIRST + MINUTE)
    api.events(("u1", FIRST + MINUTE), model="whisper-1", quantities={"seconds": "90.5"})
    assert api.opened("u1") == [(FIRST + MINUTE, FIRST + MINUTE + HOURS_5)]
    assert api.charged("budget:b#u1") == 90_500_000
    assert isinstance(api.ask("u1", "whisper-1", quantities={"seconds": 10 * 10**6}), Denial)
    assert isinstance(api.ask("u2", "whisper-1", quantities={"seconds": 10 * 10**6}), Admission)


# -- adjustments and all of them ----------------------------------------------------------------------


def test_an_adjustment_opens_a_period_of_money_and_none_of_requests(api, clock):
    """Money that is given is in a period, or it would be nowhere; it is no request."""
    api.budget("money", amount=10, period="5h")
    api.budget("calls", amount=10, unit="requests", period="5h")
    clock.set(FIRST)
    api.adjust(5)
    assert api.opened(budget="money") == [(FIRST, FIRST + HOURS_5)]
    assert api.opened(budget="calls") == []
    assert (api.charged("budget:money"), api.charged("budget:calls")) == (-5, 0)
    clock.set(FIRST + MINUTE)
    assert api.use(count=20) == 10
    assert api.opened(budget="calls") == [(FIRST + MINUTE, FIRST + MINUTE + HOURS_5)]
    assert api.charged("budget:money") == 5


def test_an_adjustment_moves_the_budgets_that_count_a_record_without_model_and_user(api):
    """It has none: of a budget per user it is of no user, and a budget of some models does not count it."""
    api.budget("user", amount=100, per="tag.user")
    api.budget("model", amount=100, match=Match(models=["*"]))
    api.budget("all", amount=100)
    api.budget("seconds", amount=10**6, unit="quantity.seconds")
    assert api.use("u1", "gpt-4o", count=2) == 2
    api.adjust(30)
    commit_all(api.site)
    found = {name: used for (name, _), used in api.site.ledger.counter_rows(api.account).items() if used}
    assert found.pop("credit") == -30
    assert found == {"budget:user#u1": 2, "budget:user#": -30, "budget:model": 2, "budget:all": -28}


def test_money_that_is_given_back_late_is_in_the_remainder_of_a_top_up(api, clock):
    """A day that drew from a top-up drew less, by what was given back to it later."""
    api.budget(amount=10)
    Tollkeeper(api.site).top_up(api.account, "b", "0.00000001", id="t1", until_used=True)
    assert api.use(count=99) == 20
    clock.advance(seconds=86_400)
    assert api.use(count=99) == 10
    yesterday = api.site.clock.now() - timedelta(days=1)
    api.adjust(4, yesterday.replace(microsecond=0))
    assert api.use(count=99) == 4


# -- prices, labels, and what is remembered -----------------------------------------------------------


def test_an_event_of_a_key_that_was_admitted_pays_the_mark_up_of_its_plan(api):
    """What is remembered of an admitted key is what the catalog says: its price is the model's at both doors."""
    plan = f"{api.account}-marked"
    model = unique("model")
    api.put(
        Plan(slug=plan),
        Price(id=unique("p"), model=model, prompt_nanos_per_million=1_000_000),
        Markup(id=unique("m"), plan=plan, factor="3"),
    )
    api.put(Key(id=f"{api.account}-marked", account=api.account, plan=plan))
    secret = api.secrets[f"{api.account}-marked"]
    admission = api.site.holds.admit(secret, "POST", "/chat", Usage(prompt_tokens=100, model=model))
    assert isinstance(admission, Admission), admission
    future = CommitFuture()
    used = Outcome(usage=Usage(prompt_tokens=100, model=model))
    record = api.site.holds.settle(admission, used, future)
    future.wait()
    id_ = unique("e")
    event = {
        "id": id_,
        "time": to_text(api.site.clock.now()),
        "key_id": f"{api.account}-marked",
        "model": model,
        "tokens": {"prompt": 100},
    }
    taken = api.site.ingest.take(decode_events([event], now_us=api.site.clock.now_us()))
    assert taken.accepted == 1, taken
    assert api.site.delivery.fresh(api.account)
    stored = api.site.store.records([(api.account, id_)])[api.account, id_]
    assert (record.cost_nanos, stored.cost_nanos, stored.provider_cost_nanos) == (310, 300, 100)


def test_a_settlement_whose_labels_cannot_be_found_leaves_the_group_as_it_was(api):
    """A budget may decide which labels are stored; that is read before anything is charged."""
    found = api.ask()
    assert isinstance(found, Admission)
    record, charges = _settled(api, found)

    def away(record: Record) -> Record:
        raise Unavailable("away")

    draft = Draft(0, api.site.pending, 0, lambda record: charges, away)
    task = Settle(record, charges, 0, future=CommitFuture())
    with pytest.raises(Unavailable):
        task.add(draft)
    assert (draft.group.charges, draft.counted, draft.rows, draft.row_keys) == ({}, {}, [], [])


def _settled(api: Users, admission: Admission) -> tuple[Record, list[Any]]:
    finished = api.site.gate.finish(admission, Outcome(usage=Usage(cost_nanos=1)), api.site.clock.now_us())
    assert finished is not None
    return finished


def test_the_reason_of_an_adjustment_is_no_tag_of_a_request(api, site):
    """Providers use tags of these names too: money that is given is no request of such a value."""
    api.budget("reasons", period="day", per="tag.reason")
    api.budget("some", period="day", match=Match(tags={"reason": "*"}))
    api.budget("without", period="day", match=Match(tags={"reason": ""}))
    api.adjust(7)
    api.adjust(5, at=FIRST - 60 * MINUTE)
    assert [api.charged(f"budget:{name}") for name in ("some", "without")] == [0, -12]
    assert (api.charged("budget:reasons#"), api.charged("budget:reasons#goodwill")) == (-12, 0)
    # Summed up again, from the records that are delivered and those that are not.
    site.relay.deliver_up_to(site.committer.outbox_seq)
    api.adjust(1)
    api.budget("reasons", period="week", per="tag.reason")
    assert (api.charged("budget:reasons#"), api.charged("budget:reasons#goodwill")) == (-26, 0)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("period", ["1m_aligned", "1m"])
def test_verify_asks_the_usage_store_as_often_for_many_periods_as_for_few(
    api, site, clock, monkeypatch, period
):
    """One query for each period of each value would take hours where periods are short and values many."""
    monkeypatch.setattr("tollkeeper.ledger.scope_sums.CUTS_MAX", 7)
    asked = []
    charged_by = site.store.charged_by
    monkeypatch.setattr(site.store, "charged_by", lambda *of, **by: asked.append(1) or charged_by(*of, **by))

    def verified() -> int:
        asked.clear()
        site.relay.deliver_up_to(site.committer.outbox_seq)
        assert verify(site).ok
        return len(asked)

    api.budget(unit="requests", period=period, per="tag.user")
    for minute in range(10):
        clock.set(FIRST + minute * 2 * MINUTE)
        for user in ("u1", "u2", "u3"):
            api.use(user)
    count = verified()
    assert count <= 12
    # Late events, of which each opens a period, are summed up with as few.
    api.events(*((f"u{minute % 3}", FIRST + (minute * 2 - 1) * MINUTE) for minute in range(1, 10)))
    assert verified() <= 2 * count
    name, used = "budget:b#u1", site.ledger.counter_rows(api.account)
    at = next((at, start_us) for at, start_us in used if at == name)
    future = CommitFuture()
    site.committer.submit(AddCharges({(api.account, *at): 1}, future))
    future.wait()
    verdict = verify(site)
    assert [
        (d.expected + 1, d.what.startswith(("counter budget:b#u1", "budget budget:b#u1")))
        for d in verdict.differences
    ] == [(d.found, True) for d in verdict.differences]
    assert verdict.differences
    site.committer.submit(AddCharges({(api.account, *at): -1}, future := CommitFuture()))
    future.wait()
