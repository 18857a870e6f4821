"""
A request from its admission to its one ending, on a real installation: retries, crashes, a ledger that fails.

After each test the counter of the ledger is the sum of the events (`verify`).
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Limit, Plan, Price, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Event
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import BadParameter, HoldEnded, HoldUnknown, IdempotencyConflict, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.ended_holds import Settled
from tollkeeper.testing import Faulty, commit_all, faulty_ledger, lost_commits, set_up, unique, verify

PRICE = 10
BUDGET = 1_000


class Api:
    """One account with a budget, limits and two keys; the calls of a client, each waiting for its commit."""

    def __init__(self, site: Installation, account: str, secrets: dict[str, str] | None = None) -> None:
        self.site = site
        self.account = account
        self.secrets = secrets or set_up(
            site,
            Account(id=account, name="Acme"),
            Plan(
                slug=f"{account}-plan",
                limits=[
                    Limit(name="rpm", amount=50, algorithm="sliding"),
                    Limit(name="tpm", amount=10_000, unit="tokens"),
                    Limit(name="open", amount=20, algorithm="concurrency"),
                ],
            ),
            Key(id=f"{account}-plain", account=account, plan=f"{account}-plan"),
            Key(id=f"{account}-credit", account=account, plan=f"{account}-plan", type="credit"),
            Budget(id="b", account=account, amount=BUDGET, period="day"),
            Grant(id="g", account=account, amount_nanos=600),
            Route(id="chat", method="POST", path="/chat/{room}", price_nanos=PRICE),
            Route(id="free", method="GET", path="/free", free=True),
        )

    def secret(self, name: str = "plain") -> str:
        return self.secrets[f"{self.account}-{name}"]

    def authorize(
        self, hold_id=None, usage=NO_USAGE, *, key="plain", path="/chat/{room}", **options
    ) -> Admission:
        found = self.site.holds.authorize(
            self.secret(key), "POST", path, usage, CommitFuture(), hold_id=hold_id, **options
        )
        assert not isinstance(found, Denial), found
        found[1].wait()
        return found[0]

    def settle(self, hold_id: str, outcome: Outcome = Outcome()) -> Settled:
        settled, future = self.site.holds.settle_hold(
            hold_id, outcome, CommitFuture(), account_id=self.account
        )
        if future is not None:
            future.wait()
        return settled

    def void(self, hold_id: str) -> None:
        _, future = self.site.holds.void_hold(hold_id, CommitFuture(), account_id=self.account)
        if future is not None:
            future.wait()

    def used(self, limit: str = "b", key: str = "plain") -> int:
        """What the gate has used or held of a limit."""
        compiled_key = self.site.gate.compiled_key(self.secret(key))
        assert not isinstance(compiled_key, Denial)
        statuses = self.site.gate.limit_statuses(compiled_key, self.site.clock.now_us())
        (used,) = [status.used for status in statuses if status.name == limit]
        return used

    def charged(self, counter_id: str = "budget:b") -> int:
        """What the ledger was charged."""
        rows = self.site.ledger.counter_rows(self.account)
        return sum(used for (counter, _), used in rows.items() if counter == counter_id)

    def requests(self) -> int:
        day_us = 86_400_000_000
        now_us = self.site.clock.now_us()
        query = UsageQuery(account_id=self.account, from_us=now_us - 40 * day_us, to_us=now_us + day_us)
        return self.site.reports.usage(query).totals["requests"]


@pytest.fixture
def api(site, account) -> Iterator[Api]:
    api = Api(site, account)
    yield api
    assert verify(site).ok


def cost(nanos: int, **fields) -> Outcome:
    return Outcome(usage=Usage(cost_nanos=nanos), **fields)


# -- in process --------------------------------------------------------------------------------------


def test_what_is_admitted_holds_its_estimate_and_settles_its_actual(api):
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1", Usage(10, 0, 20, 0, cost_nanos=300))
    assert (api.used(), api.used("tpm"), api.used("rpm"), api.used("open")) == (300, 30, 1, 1)
    record = api.site.holds.settle(admission, Outcome(usage=Usage(5, 0, 6, 0, cost_nanos=70)))
    assert (api.used(), api.used("tpm"), api.used("rpm"), api.used("open")) == (70, 11, 1, 0)
    assert (record.route, record.cost_nanos, record.estimated_cost_nanos) == ("/chat/{room}", 70, 300)
    commit_all(api.site)
    assert (api.charged(), api.requests()) == (70, 1)


def test_an_admission_ends_once(api):
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    api.site.holds.settle(admission, Outcome())
    with pytest.raises(HoldEnded):
        api.site.holds.settle(admission, Outcome())
    api.site.holds.void(admission)
    assert api.used() == PRICE
    other = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    api.site.holds.void(other)
    api.site.holds.void(other)
    with pytest.raises(HoldEnded):
        api.site.holds.settle(other, Outcome())
    assert api.used() == PRICE


def test_a_free_route_is_never_stopped_by_a_budget_yet_counted_by_it(api):
    """Its events are events of the account: a budget in requests counts them, and what they did cost."""
    api.site.manage.put(Budget(id="calls", account=api.account, amount=1, unit="requests", period="day"))
    for _ in range(3):
        admission = api.site.holds.admit(api.secret(), "GET", "/free")
        assert isinstance(admission, Admission)
        api.site.holds.settle(admission, Outcome())
    assert (api.used("calls"), api.used("rpm")) == (3, 3)
    denial = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    assert (denial.limit, denial.used, denial.allowed) == ("calls", 3, 1)
    paid = api.site.holds.admit(api.secret("credit"), "GET", "/free")
    api.site.holds.settle(paid, cost(40))
    commit_all(api.site)
    assert (api.charged(), api.charged("credit"), api.charged("budget:calls")) == (40, 40, 4)


def test_a_denial_is_counted_as_an_event_and_charges_nothing(api):
    api.site.manage.put(Budget(id="b", account=api.account, amount=PRICE, period="day"))
    first = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    for _ in range(4):
        denial = api.site.holds.admit(api.secret(), "POST", "/chat/1")
        assert (denial.status, denial.limit, denial.used, denial.allowed) == (402, "b", PRICE, PRICE)
    api.site.holds.settle(first, Outcome())
    commit_all(api.site)
    assert (api.charged(), api.used(), api.used("rpm")) == (PRICE, PRICE, 1)
    assert api.requests() == 5


def test_retry_after_is_when_the_window_lifts_and_not_a_second_earlier(api, clock):
    plan = api.site.manage.get("plans", f"{api.account}-plan")
    api.site.manage.put(Plan(slug=plan.slug, limits=[Limit(name="rpm", amount=2, window="1m")]))
    clock.advance(seconds=13, us=500)
    for _ in range(2):
        api.site.holds.settle(api.site.holds.admit(api.secret(), "POST", "/chat/1"), Outcome())
    denial = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    assert (denial.status, denial.retry_after_s, denial.allowed, denial.used) == (429, 47, 2, 2)
    clock.advance(seconds=46)
    again = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    assert (again.status, again.retry_after_s) == (429, 1)
    clock.advance(seconds=1)
    assert isinstance(api.site.holds.admit(api.secret(), "POST", "/chat/1"), Admission)


# -- over the service: one intent, one effect --------------------------------------------------------


def test_a_retried_authorize_gets_the_hold_that_it_made(api):
    first = api.authorize("one", Usage(cost_nanos=40))
    assert api.authorize("one", Usage(cost_nanos=40)) is first
    assert (api.used(), api.used("open")) == (40, 1)
    assert len(api.site.ledger.open_holds()) == 1


@pytest.mark.parametrize(
    "change",
    [{"usage": Usage(cost_nanos=41)}, {"path": "/chat/2"}, {"key": "credit"}],
)
def test_the_name_of_an_open_hold_serves_no_other_request(api, change):
    api.authorize("one", Usage(cost_nanos=40))
    with pytest.raises(IdempotencyConflict):
        api.authorize("one", **{"usage": Usage(cost_nanos=40), **change})
    assert api.used() == 40


def test_a_retried_settle_finds_its_event_on_its_way_to_the_store(api, monkeypatch):
    """Without its account it is looked for among the pending, then in the store: it may move in between."""
    site = api.site
    entries = site.ledger.outbox.entries

    def delivered_meanwhile(seqs):
        site.relay.deliver_up_to(site.committer.outbox_seq)
        return entries(seqs)

    monkeypatch.setattr(site.ledger.outbox, "entries", delivered_meanwhile)
    hold_id = unique("hold")
    api.authorize(hold_id)
    with site.relay.exclusive():
        api.settle(hold_id)
        settled, future = site.holds.settle_hold(hold_id, Outcome(), CommitFuture())
    assert (settled.replayed, future) == (True, None)


def test_a_retried_settle_gets_the_first_answer_and_counts_once(api):
    api.authorize("one")
    first = api.settle("one", cost(33))
    again = api.settle("one", cost(33))
    assert (first.replayed, again.replayed) == (False, True)
    assert again.record == first.record
    assert (api.used(), api.charged(), api.requests()) == (33, 33, 1)


def test_a_settled_hold_settles_no_other_outcome(api):
    api.authorize("one")
    api.settle("one", cost(33))
    for outcome in (cost(34), cost(33, status=500), Outcome(usage=Usage(1, cost_nanos=33))):
        with pytest.raises(HoldEnded):
            api.settle("one", outcome)
    with pytest.raises(HoldEnded):
        api.void("one")
    assert (api.used(), api.charged()) == (33, 33)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    "other",
    [
        {"latency_us": 6},
        {"bytes_out": 8},
        {"cache": "miss"},
        {"tags": {"team": "blue"}},
        {"error_type": "late"},
        {"estimated": True},
        {"usage": Usage(model="m2", cost_nanos=33)},
        {"usage": Usage(model="m1", cost_nanos=33, credits=5)},
        {"usage": Usage(model="m1")},
    ],
)
def test_a_settle_with_another_body_is_no_repeat(api, other):
    """Its sender would take for booked what was never heard of."""
    api.authorize("one")
    first = Outcome(
        usage=Usage(model="m1", cost_nanos=33), latency_us=5, bytes_out=7, cache="hit", tags={"team": "red"}
    )
    api.settle("one", first)
    with pytest.raises(HoldEnded, match="another outcome"):
        api.settle("one", first._replace(**other))
    assert api.settle("one", first).replayed
    assert api.charged() == 33


def test_a_retried_settle_is_a_repeat_though_its_event_was_corrected_since(api):
    """Its sender cannot know of the correction."""
    api.authorize("one")
    api.settle("one", cost(33))
    changes = Event(id="-", time="-", cost_nanos=40)
    api.site.amend.amend(api.account, "one", "fix", changes)
    assert api.site.delivery.fresh(api.account)
    assert api.settle("one", cost(33)).replayed
    assert api.charged() == 40


def test_a_voided_hold_frees_all_and_cannot_be_settled(api):
    api.authorize("one", Usage(50, cost_nanos=300))
    api.void("one")
    api.void("one")
    with pytest.raises(HoldEnded):
        api.settle("one")
    assert (api.used(), api.used("open"), api.used("tpm")) == (0, 0, 0)
    assert (api.charged(), api.requests()) == (0, 0)


def test_the_name_of_an_ended_hold_is_used_up(api, clock):
    api.authorize("settled")
    api.settle("settled")
    api.authorize("voided")
    api.void("voided")
    api.authorize("expired", ttl_s=1)
    clock.advance(seconds=1)
    api.site.holds.expire()
    commit_all(api.site)
    for name in ("settled", "voided", "expired"):
        with pytest.raises(HoldEnded):
            api.authorize(name)


def test_a_name_that_never_was_is_unknown(api):
    with pytest.raises(HoldUnknown):
        api.settle("nothing")
    with pytest.raises(HoldUnknown):
        api.void("nothing")


def test_another_accounts_hold_is_unknown(api):
    api.authorize("one")
    for end in (
        lambda: api.site.holds.settle_hold("one", Outcome(), CommitFuture(), account_id="other"),
        lambda: api.site.holds.void_hold("one", CommitFuture(), account_id="other"),
    ):
        with pytest.raises(HoldUnknown):
            end()


def test_a_name_that_two_accounts_use_is_not_guessed(api):
    """Neither while both holds are open nor when both have ended."""
    other = Api(api.site, f"{api.account}-2")
    name = f"{api.account}-name"
    for each in (api, other):
        each.authorize(name)
    for settles in (False, True):
        if settles:
            api.settle(name)
            other.settle(name)
        with pytest.raises(BadParameter, match="state the account"):
            api.site.holds.settle_hold(name, Outcome(), CommitFuture())
        with pytest.raises(BadParameter, match="state the account"):
            api.site.holds.void_hold(name, CommitFuture())


@pytest.mark.parametrize("ttl_s", [0, -1, 7 * 86_400 + 1])
def test_a_hold_lasts_a_second_to_a_week(api, ttl_s):
    with pytest.raises(BadParameter):
        api.authorize("one", ttl_s=ttl_s)
    assert api.used() == 0


# -- beyond the hold, and late -----------------------------------------------------------------------


def test_what_is_used_beyond_the_hold_is_booked_and_shown_never_clamped(api):
    api.authorize("one", Usage(cost_nanos=100))
    settled = api.settle("one", cost(BUDGET + 500))
    assert settled.beyond_hold_nanos == BUDGET + 400
    assert (api.used(), api.charged()) == (BUDGET + 500, BUDGET + 500)
    denial = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    assert (denial.limit, denial.used, denial.largest_fit) == ("b", BUDGET + 500, 0)


def test_a_credit_balance_can_be_overdrawn_by_what_was_really_used(api):
    api.authorize("one", Usage(cost_nanos=500), key="credit")
    api.settle("one", cost(650))
    book, _ = api.site.ledger.book(api.account)
    assert (book.overdraft_nanos, book.spent_nanos, api.charged("credit")) == (50, 650, 650)
    denial = api.site.holds.admit(api.secret("credit"), "POST", "/chat/1")
    assert (denial.reason, denial.status, denial.retry_after_s) == ("credit_exhausted", 402, None)
    api.site.manage.put(Grant(id="more", account=api.account, amount_nanos=50 + PRICE, source="top_up"))
    admission = api.site.holds.admit(api.secret("credit"), "POST", "/chat/1")
    assert isinstance(admission, Admission)
    assert isinstance(api.site.holds.admit(api.secret("credit"), "POST", "/chat/1"), Denial)
    api.site.holds.void(admission)


def expire(api: Api, clock) -> None:
    clock.advance(seconds=60)
    api.site.holds.expire()
    commit_all(api.site)


def test_an_expired_hold_frees_what_it_held(api, clock):
    api.authorize("one", Usage(cost_nanos=300), ttl_s=60)
    clock.advance(seconds=59)
    assert api.site.holds.expire() == 0
    assert api.used() == 300
    clock.advance(seconds=1)
    api.site.holds.expire()
    commit_all(api.site)
    assert (api.used(), api.used("open")) == (0, 0)
    assert api.site.ledger.hold(api.account, "one").state == "expired"


def test_a_hold_that_ended_before_its_expiry_is_kept_no_longer(api):
    def allocated() -> int:
        files = [tracemalloc.Filter(True, f"*/ledger/{name}.py") for name in ("holds", "open_holds")]
        left = tracemalloc.take_snapshot().filter_traces(files)
        return sum(found.count for found in left.statistics("lineno"))

    api.void(api.authorize(ttl_s=7 * 86_400).id)
    tracemalloc.start()
    try:
        # As many at once as the limit permits: they are seen, so 200 that stayed would be, too.
        for _ in range(10):
            open_ids = [api.authorize(ttl_s=7 * 86_400).id for _ in range(20)]
            assert allocated() >= 20
            for hold_id in open_ids:
                api.void(hold_id)
        assert allocated() < 100
    finally:
        tracemalloc.stop()
    assert api.site.holds.open_count == 0


def test_a_hold_settled_after_its_expiry_is_booked_whole_and_shown_as_overdraft(api, clock):
    at_us = api.authorize("one", Usage(cost_nanos=300), ttl_s=60).at_us
    expire(api, clock)
    settled = api.settle("one", cost(200))
    assert (settled.beyond_hold_nanos, settled.record.cost_nanos) == (200, 200)
    assert settled.record.occurred_at_us == at_us
    assert api.settle("one", cost(200)).replayed
    with pytest.raises(HoldEnded):
        api.settle("one", cost(201))
    assert (api.used(), api.charged(), api.requests()) == (200, 200, 1)


def test_a_late_settle_is_charged_to_the_day_of_its_request(api, clock):
    at_us = api.authorize("one", Usage(cost_nanos=300), ttl_s=60).at_us
    clock.advance(seconds=86_400)
    api.site.holds.expire()
    commit_all(api.site)
    api.settle("one", cost(200))
    (row,) = [at for at in api.site.ledger.counter_rows(api.account) if at[0] == "budget:b"]
    assert row[1] <= at_us < row[1] + 86_400_000_000
    assert api.used() == 0


def test_a_hold_over_midnight_is_charged_to_the_day_of_its_request(api, clock):
    at_us = api.authorize("one", Usage(cost_nanos=300)).at_us
    clock.advance(seconds=86_400)
    assert api.used() == 0
    api.settle("one", cost(250))
    ((_, start_us),) = [at for at in api.site.ledger.counter_rows(api.account) if at[0] == "budget:b"]
    assert start_us <= at_us < start_us + 86_400_000_000
    assert api.used() == 0


# -- a restart ---------------------------------------------------------------------------------------


def test_a_restart_keeps_open_holds_windows_budgets_and_balances(install, account, clock):
    api = Api(install(), account)
    api.authorize("held", Usage(20, 0, 30, 0, cost_nanos=200))
    api.authorize("credit", Usage(cost_nanos=150), key="credit", tags={"team": "red"})
    api.authorize("spent", Usage(7, cost_nanos=90), key="credit")
    api.settle("spent", Outcome(usage=Usage(8, cost_nanos=95)))
    api.authorize("gone")
    api.void("gone")
    api.authorize("soon", ttl_s=30)
    names = [
        ("b", "plain"),
        *((n, k) for n in ("rpm", "tpm", "open") for k in ("plain", "credit")),
        ("credit",) * 2,
    ]
    before = {name: api.used(*name) for name in names}
    api.site.close()

    clock.advance(seconds=1)
    api = Api(install(), account, api.secrets)
    assert {name: api.used(*name) for name in names} == {**before, ("credit", "credit"): 150}
    assert api.site.ledger.book(account)[0].spent_nanos == 95
    assert api.site.holds.open_count == 3
    with pytest.raises(HoldEnded):
        api.settle("gone")
    assert api.authorize("held", Usage(20, 0, 30, 0, cost_nanos=200)).id == "held"
    with pytest.raises(IdempotencyConflict):
        api.authorize("held", Usage(cost_nanos=1))
    assert api.settle("spent", Outcome(usage=Usage(8, cost_nanos=95))).replayed
    record = api.settle("credit", cost(100)).record
    assert (record.tags, record.key_id, record.route) == (
        {"team": "red"},
        f"{account}-credit",
        "/chat/{room}",
    )
    api.settle("held", Outcome(usage=Usage(1, 0, 1, 0, cost_nanos=10)))
    clock.advance(seconds=30)
    api.site.holds.expire()
    assert (api.used(), api.used("open"), api.used("open", "credit")) == (95 + 100 + 10, 0, 0)
    assert verify(api.site).ok
    assert api.charged() == 205


def test_a_window_is_not_emptied_by_a_restart(install, account):
    """Otherwise a crash would let a key start again."""
    api = Api(install(), account)
    for _ in range(50):
        api.site.holds.settle(api.site.holds.admit(api.secret(), "POST", "/chat/1"), cost(1))
    assert api.site.holds.admit(api.secret(), "POST", "/chat/1").limit == "rpm"
    api.site.close()
    api = Api(install(), account, api.secrets)
    assert api.site.holds.admit(api.secret(), "POST", "/chat/1").limit == "rpm"
    assert (api.used(), api.used("rpm")) == (50, 50)
    assert verify(api.site).ok


def test_a_hold_that_expired_while_nobody_ran_is_expired_at_the_next_look(install, account, clock):
    api = Api(install(), account)
    api.authorize("one", Usage(cost_nanos=300), ttl_s=60)
    api.site.close()
    clock.advance(seconds=61)
    api = Api(install(), account, api.secrets)
    api.site.holds.expire()
    commit_all(api.site)
    assert api.used() == 0
    assert api.settle("one", cost(20)).beyond_hold_nanos == 20
    assert verify(api.site).ok


def test_a_hold_of_a_key_that_was_revoked_can_be_settled(install, account):
    api = Api(install(), account)
    api.authorize("one")
    api.site.manage.set_key_state(None, f"{account}-plain", "revoked")
    assert api.site.holds.admit(api.secret(), "POST", "/chat/1").reason == "key_revoked"
    api.site.close()
    api = Api(install(), account, api.secrets)
    assert api.settle("one", cost(20)).record.cost_nanos == 20
    assert verify(api.site).ok
    assert api.charged() == 20


# -- a ledger that fails -----------------------------------------------------------------------------


@pytest.fixture
def ledger(api) -> Iterator[Faulty]:
    with faulty_ledger(api.site) as faulty:
        yield faulty


def test_an_authorize_that_cannot_be_committed_never_was(api, ledger):
    ledger.refuse()
    with pytest.raises(Unavailable):
        api.authorize("one", Usage(cost_nanos=40))
    assert (api.used(), api.used("open"), api.site.holds.open_count) == (0, 0, 0)
    assert api.authorize("one", Usage(cost_nanos=40)).id == "one"
    assert (api.used(), len(api.site.ledger.open_holds())) == (40, 1)


def test_a_settle_that_cannot_be_committed_leaves_the_hold_open(api, ledger):
    api.authorize("one", Usage(9, cost_nanos=40), key="credit")
    before = [api.used(name, "credit") for name in ("b", "credit", "tpm", "rpm", "open")]
    ledger.refuse()
    with pytest.raises(Unavailable):
        api.settle("one", Outcome(usage=Usage(3, cost_nanos=70)))
    assert [api.used(name, "credit") for name in ("b", "credit", "tpm", "rpm", "open")] == before
    assert api.charged() == 0
    assert not api.settle("one", Outcome(usage=Usage(3, cost_nanos=70))).replayed
    assert (api.used(), api.charged(), api.charged("credit"), api.requests()) == (70, 70, 70, 1)


def test_a_void_that_cannot_be_committed_leaves_the_hold_open(api, ledger):
    api.authorize("one", Usage(cost_nanos=40))
    ledger.refuse()
    with pytest.raises(Unavailable):
        api.void("one")
    assert api.used() == 40
    api.void("one")
    assert api.used() == 0
    assert api.site.ledger.hold(api.account, "one").state == "voided"


def test_a_late_settle_that_cannot_be_committed_can_be_tried_again(api, ledger, clock):
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    ledger.refuse()
    with pytest.raises(Unavailable):
        api.settle("one", cost(20))
    assert not api.settle("one", cost(20)).replayed
    assert (api.charged(), api.requests()) == (20, 1)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("step", ["authorize", "settle", "void", "late"])
def test_a_commit_whose_answer_is_lost_counts_once_however_often_it_is_retried(api, clock, step):
    """The database has committed when the connection breaks: the caller cannot know, and asks again."""

    def again(call):
        for _ in range(3):
            try:
                call()
            except Unavailable:
                continue

    if step != "authorize":
        api.authorize("one", Usage(cost_nanos=40), ttl_s=60)
    if step == "late":
        expire(api, clock)
    call = {
        "authorize": lambda: api.authorize("one", Usage(cost_nanos=40), ttl_s=60),
        "settle": lambda: api.settle("one", cost(20)),
        "void": lambda: api.void("one"),
        "late": lambda: api.settle("one", cost(20)),
    }[step]
    with lost_commits(api.site):
        again(call)
    again(call)
    assert len(api.site.ledger.open_holds()) == (step == "authorize")
    assert api.used() == {"authorize": 40, "settle": 20, "void": 0, "late": 20}[step]
    assert api.requests() == (step in ("settle", "late"))
    assert api.charged() == (20 if step in ("settle", "late") else 0)


def test_while_the_ledger_is_down_nothing_is_admitted_and_nothing_settled_is_lost(api, ledger):
    """Who settles in process cannot be asked again: it is kept, and nobody admitted until it is booked."""
    admissions = [api.site.holds.admit(api.secret(), "POST", "/chat/1") for _ in range(3)]
    ledger.refuse(10**6)
    for admission in admissions:
        api.site.holds.settle(admission, cost(30))
    with pytest.raises(Unavailable):
        commit_all(api.site)
    denial = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    assert (denial.reason, denial.status, denial.retry_after_s) == ("unavailable", 503, 1)
    assert api.charged() == 0
    ledger.refuse(0)
    commit_all(api.site)
    assert isinstance(api.site.holds.admit(api.secret(), "POST", "/chat/1"), Admission)
    assert (api.charged(), api.requests()) == (90, 3)


def test_a_hold_whose_expiry_cannot_be_committed_is_expired_later(api, ledger, clock):
    api.authorize("one", Usage(cost_nanos=300), ttl_s=60)
    ledger.refuse(2)
    clock.advance(seconds=60)
    api.site.holds.expire()
    for _ in range(3):
        try:
            commit_all(api.site)
        except Unavailable:
            continue
    assert api.used() == 0
    assert api.site.ledger.hold(api.account, "one").state == "expired"
    assert api.settle("one", cost(20)).beyond_hold_nanos == 20


def test_what_is_settled_while_closing_is_refused_and_open_again(install, account):
    api = Api(install(), account)
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    api.authorize("one")
    api.site.committer.close()
    with pytest.raises(Unavailable):
        api.site.holds.settle(admission, cost(500))
    with pytest.raises(Unavailable):
        api.settle("one", cost(500))
    with pytest.raises(Unavailable):
        api.void("one")
    with pytest.raises(Unavailable):
        api.authorize("two")
    assert (api.used(), api.used("open"), admission.state) == (2 * PRICE, 2, "open")
    api.site.holds.void(admission)
    assert api.used() == PRICE


# -- prices ------------------------------------------------------------------------------------------


def test_a_model_is_priced_when_admitted_and_when_settled(api):
    api.site.manage.put(
        Price(
            id=f"{api.account}-p",
            model="m",
            account=api.account,
            prompt_nanos_per_million=3_000_000,
            completion_nanos_per_million=5_000_000,
        )
    )
    expected = Usage(10, 0, 20, 0, "m")
    admission = api.authorize("one", expected)
    assert admission.amounts.nanos == PRICE + 10 * 3 + 20 * 5
    record = api.settle("one", Outcome(usage=Usage(10, 0, 2, 0))).record
    assert (record.model, record.cost_nanos, record.cost_state) == ("m", PRICE + 10 * 3 + 2 * 5, "priced")
    assert api.used() == record.cost_nanos


def test_a_model_without_a_price_is_refused_by_the_gate_and_kept_by_the_meter(api):
    denial = api.site.holds.admit(api.secret(), "POST", "/chat/1", Usage(1, model="no-such-model"))
    assert (denial.reason, denial.status) == ("price_unknown", 403)
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    record = api.site.holds.settle(admission, Outcome(usage=Usage(1, model="no-such-model")))
    assert (record.cost_state, record.cost_nanos) == ("unpriced", PRICE)


@pytest.mark.parametrize("over_http", [False, True], ids=["gate", "authorize"])
def test_a_price_per_request_is_charged_without_tokens(api, over_http):
    """An image has no tokens, and its price per request is what the budget must count."""
    model = f"{api.account}-image"
    api.site.manage.put(Price(id=model, model=model, account=api.account, request_nanos=200))
    nanos = PRICE + 200
    for number in range(BUDGET // nanos):
        if over_http:
            assert api.authorize(f"h{number}", Usage(model=model)).amounts.nanos == nanos
            record = api.settle(f"h{number}").record
        else:
            admission = api.site.holds.admit(api.secret(), "POST", "/chat/1", Usage(model=model))
            record = api.site.holds.settle(admission, Outcome())
        assert (record.cost_nanos, record.cost_state, record.price_version) == (
            nanos,
            "priced",
            f"prices:{model}",
        )
    denial = api.site.holds.admit(api.secret(), "POST", "/chat/1", Usage(model=model))
    assert (denial.status, denial.reason) == (402, "budget_exhausted")
    assert api.used() == BUDGET // nanos * nanos


def test_a_request_that_failed_before_it_used_a_token_costs_no_request_price(api):
    model = f"{api.account}-image"
    api.site.manage.put(Price(id=model, model=model, account=api.account, request_nanos=200))
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1", Usage(model=model))
    assert api.site.holds.settle(admission, Outcome(status=503)).cost_nanos == 0


def test_a_model_without_a_price_is_unpriced_without_tokens_too(api):
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    record = api.site.holds.settle(admission, Outcome(usage=Usage(model="no-such-model")))
    assert (record.cost_state, record.cost_nanos) == ("unpriced", PRICE)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("outcome", "nanos", "state"),
    [
        (Outcome(status=500), 0, "priced"),
        (Outcome(cache="hit"), 0, "free"),
        (Outcome(estimated=True), PRICE, "estimated"),
        (Outcome(usage=Usage(cost_nanos=5), estimated=True), 5, "estimated"),
        (Outcome(usage=Usage(cost_nanos=5), cache="hit"), 5, "given"),
        (Outcome(), PRICE, "priced"),
    ],
)
def test_what_a_request_costs_follows_from_its_outcome(api, outcome, nanos, state):
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/1")
    record = api.site.holds.settle(admission, outcome)
    assert (record.cost_nanos, record.cost_state) == (nanos, state)
    assert api.used() == nanos
