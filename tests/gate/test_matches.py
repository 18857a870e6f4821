"""
Limits and budgets by model, tag and route, and a counter for each value: through the gate, by events, over a restart.

Case M12 of the money cases: 100 requests a day of `gpt-4o*` per key; 1.00 a day per `tag.user`; a key that may use
two models only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from tests.gate.test_races import in_threads
from tollkeeper.adapters.sql.webhook_tables import webhook_deliveries as messages
from tollkeeper.catalog.entry_parsing import entry_from
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import (
    Account,
    Actions,
    Budget,
    Entry,
    Key,
    Limit,
    Plan,
    PlanBudget,
    Project,
    Route,
    Webhook,
)
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import to_text
from tollkeeper.domain.matching import Facts, Match
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import BadParameter, Forbidden, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import ManualClock, commit_all, faulty_ledger, set_up, unique, verify

UNIT = 1_000_000_000
ROUTE = Route(id="chat", method="POST", path="/v1/chat")


def entries(account: str, *more: Entry, limits: list[Limit] | None = None, **plan: Any) -> list[Entry]:
    return [
        ROUTE,
        Account(id=account, name="Acme", plan=f"{account}-plan"),
        Plan(slug=f"{account}-plan", limits=limits or [], **plan),
        Key(id=f"{account}-k1", account=account),
        Key(id=f"{account}-k2", account=account),
        *more,
    ]


class Api:
    """The gate of a site for the keys of one account."""

    def __init__(self, site: Installation, account: str, *made: Entry) -> None:
        self.site = site
        self.account = account
        self.secrets = set_up(site, *made)

    def admit(self, model: str = "", user: str | None = None, key: str = "k1", nanos: int | None = 0) -> Any:
        tags = {} if user is None else {"user": user}
        usage = NO_USAGE if not model and nanos is None else Usage(model=model, cost_nanos=nanos)
        return self.site.holds.admit(self.secrets[f"{self.account}-{key}"], "POST", "/v1/chat", usage, tags)

    def use(
        self, model: str = "", user: str | None = None, key: str = "k1", nanos: int = 0
    ) -> Admission | Denial:
        """Admit a request and settle it as it was estimated."""
        found = self.admit(model, user, key, nanos)
        if isinstance(found, Admission):
            self.settle(found, nanos)
        return found

    def settle(
        self, admission: Admission, nanos: int = 0, model: str = "", user: str | None = None
    ) -> Record:
        tags = {} if user is None else {"user": user}
        return self.site.holds.settle(
            admission, Outcome(usage=Usage(model=model, cost_nanos=nanos), tags=tags)
        )

    def events(self, *drawn: tuple[str, str | None, int], key: str | None = None) -> None:
        """Book an event per model, user and cost."""
        result = Tollkeeper(self.site).record(
            [
                {
                    "id": unique("e"),
                    "time": to_text(self.site.clock.now()),
                    "account": self.account,
                    **({} if key is None else {"key_id": f"{self.account}-{key}"}),
                    "method": "POST",
                    "route": "/v1/chat",
                    "model": model,
                    "cost_nanos": cost,
                    "tags": {} if user is None else {"user": user},
                }
                for model, user, cost in drawn
            ]
        )
        assert result.rejected == 0, result.rejections

    def charged(self) -> dict[str, int]:
        """What each counter has in the ledger; periods summed."""
        commit_all(self.site)
        found: Counter[str] = Counter()
        for (counter_id, _), used in self.site.ledger.counter_rows(self.account).items():
            found[counter_id] += used
        return dict(found)

    def left(self, name: str, key: str = "k1", **facts: Any) -> tuple[int | None, int]:
        asked = Facts(facts.get("model", ""), facts.get("tags", {}), "", "", "")
        compiled = self.site.gate.compiled_key(self.secrets[f"{self.account}-{key}"])
        assert not isinstance(compiled, Denial)
        statuses = self.site.gate.limit_statuses(compiled, self.site.clock.now_us(), asked, every=True)
        return next((each.allowed, each.used) for each in statuses if each.name == name)

    def verify(self) -> None:
        verdict = verify(self.site)
        assert verdict.ok, verdict


Make = Callable[..., Api]


@pytest.fixture
def make(site: Installation, account: str) -> Make:
    return lambda *more, **plan: Api(site, account, *entries(account, *more, **plan))


GPT4O = Match(models=["gpt-4o*"])


# -- M12 ----------------------------------------------------------------------------------------------


def test_a_hundred_requests_a_day_of_some_models_per_key(make: Make, clock: ManualClock) -> None:
    api = make(limits=[Limit(name="gpt4o", amount=100, window="1d", match=GPT4O)])
    models = ["gpt-4o", "gpt-4o-mini", "GPT-4o", "gpt-4o-2024-08-06"]
    results = [api.use(models[n % 4]) for n in range(103)]
    assert [isinstance(result, Denial) for result in results] == [False] * 100 + [True] * 3
    denial = results[-1]
    assert (denial.status, denial.limit, denial.match) == (429, "gpt4o", "model gpt-4o*")
    assert "gpt4o (model gpt-4o*)" in denial.message
    # Other models, requests without one, and other keys are not counted.
    assert isinstance(api.use("gpt-4"), Admission)
    assert isinstance(api.use(), Admission)
    assert isinstance(api.use("gpt-4o", key="k2"), Admission)
    clock.advance(seconds=86_400)
    assert isinstance(api.use("gpt-4o"), Admission)
    api.verify()


def test_one_unit_a_day_per_end_user(make: Make, clock: ManualClock) -> None:
    api = make(budgets=[PlanBudget(name="user", amount=UNIT, period="day", per="tag.user")])
    for user in ("u1", "u2"):
        for n in range(4):
            # Each end user has one, whatever key it comes by.
            assert isinstance(api.use(user=user, key=f"k{n % 2 + 1}", nanos=UNIT // 4), Admission)
        denial = api.use(user=user, nanos=1)
        assert isinstance(denial, Denial)
        assert (denial.status, denial.limit, denial.match) == (402, "user", f"tag.user = {user}")
    # Requests without the tag share one.
    assert isinstance(api.use(nanos=UNIT), Admission)
    assert isinstance(api.use(nanos=1), Denial)
    base = f"plan:{api.account}-plan/user:account:{api.account}"
    assert api.charged() == {f"{base}#u1": UNIT, f"{base}#u2": UNIT, f"{base}#": UNIT}
    clock.advance(seconds=86_400)
    assert isinstance(api.use(user="u1", nanos=UNIT), Admission)
    api.verify()


def test_a_key_that_may_use_two_models_only(make: Make, account: str) -> None:
    api = make(
        Key(id=f"{account}-two", account=account, models=["gpt-4o-mini", "O3*"]), models=["gpt-*", "o3"]
    )
    assert isinstance(api.use("gpt-4o-mini", key="two"), Admission)
    assert isinstance(api.use("o3", key="two"), Admission)
    for model in ("gpt-4o", "o3-mini", "claude-sonnet-4-5"):
        denial = api.use(model, key="two")
        assert (denial.status, denial.reason) == (403, "model_not_allowed")
    # Not to say which model is not to be free of the list.
    assert (api.use("", key="two").reason, api.admit("", key="two", nanos=None).reason) == (
        "model_required",
        "model_required",
    )
    # The other keys of the plan may use all that the plan allows.
    assert isinstance(api.use("gpt-4o"), Admission)
    assert api.use("claude").reason == "model_not_allowed"


def test_a_free_route_needs_no_model(make: Make, account: str) -> None:
    """A list of models, a health check: what uses no model can say so, and only so."""
    api = make(Route(id="models", method="GET", path="/v1/models", free=True), models=["o3"])
    secret = api.secrets[f"{account}-k1"]
    assert isinstance(api.site.holds.admit(secret, "GET", "/v1/models"), Admission)


def test_refusals_come_in_their_order(make: Make) -> None:
    """A model that is not allowed is 403 before any limit is 429 or any budget 402."""
    api = make(
        limits=[Limit(name="none", amount=0, per="model")],
        budgets=[PlanBudget(name="nothing", amount=0, per="tag.user")],
        models=["o3"],
    )
    assert [api.use(model).status for model in ("gpt-4o", "o3")] == [403, 429]
    broke = Plan(slug=f"{api.account}-plan", budgets=[PlanBudget(name="nothing", amount=0, per="tag.user")])
    api.site.manage.put(broke)
    assert api.use("o3").status == 402


@pytest.mark.drawn(2)
@pytest.mark.parametrize("per", ["tag.user", ["key", "tag.user"], ["tag.user", "model"], "model"])
def test_events_charge_the_counters_that_requests_do(make: Make, per: str | list[str]) -> None:
    """Gate, ingest and verify name the same counters, whatever a tag holds."""
    users = ["u1", "u 2", "", "#", "~", "ü" * 200, "A", "a", None]
    models = ["gpt-4o", " GPT-4O ", "o3", ""]
    drawn = [(model, user, 5) for model in models for user in users]
    api = make(
        budgets=[
            PlanBudget(name="all", amount=None, per=per),
            PlanBudget(name="some", amount=None, per=per, match=Match(models=["gpt*"], tags={"user": "*"})),
        ]
    )
    for model, user, cost in drawn:
        assert isinstance(api.use(model, user, nanos=cost), Admission)
    by_gate = api.charged()
    api.verify()
    api.events(*drawn, key="k1")
    assert api.charged() == {counter_id: 2 * used for counter_id, used in by_gate.items()}
    api.verify()
    owners = 1 if per == ["key", "tag.user"] else 0
    assert all(f":key:{api.account}-k1#" in counter_id for counter_id in by_gate) == bool(owners)


def test_events_use_up_what_requests_may_use(make: Make, account: str) -> None:
    """The budget of an end user is one, whichever door its usage comes by."""
    api = make(Budget(id="user", account=account, amount=UNIT, period="day", per="tag.user", match=GPT4O))
    api.events(("gpt-4o", "u1", UNIT), ("o3", "u2", UNIT), ("GPT-4o-mini", "u3", UNIT // 2))
    assert api.use("gpt-4o", "u1", nanos=1).status == 402
    assert isinstance(api.use("o3", "u1", nanos=1), Admission)
    assert isinstance(api.use("gpt-4o", "u2", nanos=UNIT), Admission)
    assert api.use("gpt-4o", "u3", nanos=UNIT // 2 + 1).largest_fit == UNIT // 2
    api.verify()


# -- races --------------------------------------------------------------------------------------------


@pytest.mark.drawn(1)
@pytest.mark.parametrize("bound", ["limit", "budget", "money"])
def test_of_a_thousand_calls_exactly_those_pass_that_fit_each_value(make: Make, bound: str) -> None:
    """No value takes from another, and none overshoots, when counters are made while others ask."""
    fits, values = 7, 25
    if bound == "limit":
        api = make(limits=[Limit(name="l", amount=fits, window="1d", per=["tag.user", "model"])])
    else:
        unit, amount = ("requests", fits) if bound == "budget" else ("nanos", fits * 10)
        api = make(budgets=[PlanBudget(name="l", amount=amount, unit=unit, per=["model", "tag.user"])])
    calls = [
        (lambda user=f"u{n % values}", model=f"m{n % 2}": api.use(model, user, nanos=10))
        for n in range(1_000)
    ]
    results = in_threads(calls)
    passed = Counter((n % values, n % 2) for n, result in enumerate(results) if isinstance(result, Admission))
    asked = Counter((n % values, n % 2) for n in range(1_000))
    assert passed == {value: min(fits, count) for value, count in asked.items()}
    api.verify()


# -- a settlement that says otherwise -----------------------------------------------------------------


def test_a_settlement_moves_to_the_counters_of_its_record(make: Make) -> None:
    """The one that held gets its part back; the one of the record is charged, whether or not it fits."""
    api = make(
        limits=[Limit(name="gpt4o", amount=2, window="1d", match=GPT4O)],
        budgets=[PlanBudget(name="user", amount=100, period="day", per="tag.user")],
    )
    held = api.admit("gpt-4o", "u1", nanos=60)
    assert api.left("user", tags={"user": "u1"}) == (100, 60)
    record = api.settle(held, 150, model="o3", user="u2")
    assert (record.model, record.tags) == ("o3", {"user": "u2"})
    assert api.left("user", tags={"user": "u1"}) == (100, 0)
    assert api.left("user", tags={"user": "u2"}) == (100, 150)
    assert api.left("gpt4o") == (2, 0)
    assert isinstance(api.use("o3", "u2", nanos=1), Denial)
    assert isinstance(api.use("o3", "u1", nanos=100), Admission)
    # And the other way: what was held nowhere is counted where it was used.
    for _ in range(2):
        api.settle(api.admit("o3", "u3"), model="gpt-4o")
    assert api.left("gpt4o") == (2, 2)
    assert api.use("gpt-4o", "u3").status == 429
    api.verify()


def test_a_settlement_that_fails_leaves_the_hold_as_it_was(make: Make) -> None:
    api = make(
        limits=[Limit(name="calls", amount=5, window="1d", per="model")],
        budgets=[PlanBudget(name="user", amount=100, period="day", per="tag.user")],
    )
    secret = api.secrets[f"{api.account}-k1"]
    opened = api.site.holds.authorize(
        secret, "POST", "/v1/chat", Usage(model="o3", cost_nanos=40), CommitFuture(), tags={"user": "u1"}
    )
    assert not isinstance(opened, Denial)
    admission, future = opened
    future.wait()
    outcome = Outcome(usage=Usage(model="gpt-4o", cost_nanos=70), tags={"user": "u2"})
    with faulty_ledger(api.site) as ledger:
        ledger.refuse()
        failed = CommitFuture()
        api.site.holds.settle_hold(admission.id, outcome, failed)
        with pytest.raises(Unavailable):
            failed.wait()
        assert api.left("user", tags={"user": "u1"}) == (100, 40)
        assert api.left("user", tags={"user": "u2"}) == (100, 0)
        assert (api.left("calls", model="o3"), api.left("calls", model="gpt-4o")) == ((5, 1), (5, 0))
    done = CommitFuture()
    api.site.holds.settle_hold(admission.id, outcome, done)
    done.wait()
    assert api.left("user", tags={"user": "u1"}) == (100, 0)
    assert api.left("user", tags={"user": "u2"}) == (100, 70)
    assert (api.left("calls", model="o3"), api.left("calls", model="gpt-4o")) == ((5, 0), (5, 1))
    api.verify()


def test_a_late_settlement_counts_where_its_record_belongs(make: Make, clock: ManualClock) -> None:
    api = make(limits=[Limit(name="calls", amount=5, window="1d", per="tag.user")])
    secret = api.secrets[f"{api.account}-k1"]
    opened = api.site.holds.authorize(
        secret, "POST", "/v1/chat", NO_USAGE, CommitFuture(), ttl_s=1, tags={"user": "u1"}
    )
    assert not isinstance(opened, Denial)
    opened[1].wait()
    clock.advance(seconds=5)
    api.site.holds.expire()
    commit_all(api.site)
    done = CommitFuture()
    api.site.holds.settle_hold(opened[0].id, Outcome(tags={"user": "u2"}), done)
    done.wait()
    assert (api.left("calls", tags={"user": "u1"}), api.left("calls", tags={"user": "u2"})) == (
        (5, 0),
        (5, 1),
    )


# -- budgets that come into force ---------------------------------------------------------------------


def test_a_budget_set_later_counts_what_it_matches_of_its_period(make: Make) -> None:
    """From requests, from events, delivered or not, and from what is open at the moment."""
    api = make()
    for model, user in (("gpt-4o", "u1"), ("o3", "u1"), ("gpt-4o-mini", "u2"), ("gpt-4o", None)):
        assert isinstance(api.use(model, user, nanos=10), Admission)
    api.events(("gpt-4o", "u1", 100), ("claude", "u2", 1_000))
    api.verify()  # Delivers.
    api.events(("GPT-4o", "u2", 10_000))
    open_one = api.admit("gpt-4o", "u9", nanos=7)
    open_other = api.admit("o3", "u9", nanos=70)
    api.site.manage.put(
        Budget(id="b", account=api.account, amount=10**6, period="day", match=GPT4O, per="tag.user")
    )
    assert api.charged() == {"budget:b#u1": 110, "budget:b#u2": 10_010, "budget:b#": 10}
    assert api.left("b", tags={"user": "u9"}) == (10**6, 7)
    api.settle(open_one, 9)
    api.settle(open_other, 90)
    assert api.charged()["budget:b#u9"] == 9
    api.verify()
    # Another match is another sum, also for values that have none of it.
    api.site.manage.put(
        Budget(
            id="b",
            account=api.account,
            amount=10**6,
            period="day",
            match=Match(models=["o3"]),
            per="tag.user",
        )
    )
    assert {name: used for name, used in api.charged().items() if used} == {
        "budget:b#u1": 10,
        "budget:b#u9": 90,
    }
    api.verify()


def test_a_budget_follows_the_route_that_it_names(make: Make, account: str) -> None:
    """An id stands for the route as it is: when its path changes, so does what the budget counts."""
    api = make(
        Route(id=f"{account}-r", method="POST", path="/v1/other"),
        Budget(
            id="b", account=account, amount=10**6, unit="requests", period="day",
            match=Match(routes=[f"{account}-r"]),
        ),
    )  # fmt: skip
    assert isinstance(api.use("o3"), Admission)
    assert api.charged().get("budget:b", 0) == 0
    api.site.manage.delete("routes", "chat")
    api.site.manage.put(Route(id=f"{account}-r", method="POST", path="/v1/chat"))
    assert api.charged()["budget:b"] == 1
    assert isinstance(api.use("o3"), Admission)
    assert api.charged()["budget:b"] == 2
    api.verify()


@pytest.mark.drawn(1)
@pytest.mark.parametrize("owner", ["key", "project"])
def test_each_key_or_project_of_an_account_has_a_budget(make: Make, account: str, owner: str) -> None:
    api = make(
        Project(id="p1", account=account),
        Project(id="p2", account=account),
        Key(id=f"{account}-p1", account=account, project="p1"),
        Key(id=f"{account}-p2", account=account, project="p2"),
        Budget(id="b", account=account, amount=2, unit="requests", period="day", per=[owner, "model"]),
    )
    for key in ("p1", "p2"):
        for model in ("o3", "gpt-4o"):
            results = [api.use(model, key=key) for _ in range(3)]
            assert [isinstance(result, Admission) for result in results] == [True, True, False]
    owners = ("p1", "p2") if owner == "project" else (f"{account}-p1", f"{account}-p2")
    assert api.charged() == {
        f"budget:b/{owner}:{name}#{model}": 2 for name in owners for model in ("o3", "gpt-4o")
    }
    api.verify()
    api.events(("o3", None, 1), key="p1")
    assert api.charged()[f"budget:b/{owner}:{owners[0]}#o3"] == 3
    api.verify()


# -- restarts and memory ------------------------------------------------------------------------------


def test_counters_of_values_are_found_again_after_a_restart(install: Any, account: str) -> None:
    plan = {
        "limits": [
            Limit(name="fixed", amount=2, window="1d", per="tag.user"),
            Limit(name="sliding", amount=50, window="1d", algorithm="sliding", per=["key", "model"]),
            Limit(name="permits", amount=50, window="30d", algorithm="permits", per="model", match=GPT4O),
        ],
        "budgets": [PlanBudget(name="user", amount=100, period="day", per="tag.user")],
    }
    site = install()
    api = Api(site, account, *entries(account, **plan))
    for _ in range(2):
        assert isinstance(api.use("gpt-4o", "u1", nanos=20), Admission)
    secret = api.secrets[f"{account}-k1"]
    opened = site.holds.authorize(
        secret, "POST", "/v1/chat", Usage(model="gpt-4o", cost_nanos=30), CommitFuture(), tags={"user": "u2"}
    )
    assert not isinstance(opened, Denial)
    opened[1].wait()
    commit_all(site)
    site.close()
    again = Api.__new__(Api)
    again.site, again.account, again.secrets = install(), account, api.secrets
    user1, user2 = {"tags": {"user": "u1"}}, {"tags": {"user": "u2"}}
    assert (again.left("fixed", **user1), again.left("fixed", **user2)) == ((2, 2), (2, 1))
    assert again.left("sliding", model="gpt-4o") == (50, 3)
    assert again.left("permits", model="gpt-4o") == (50, 3)
    assert (again.left("user", **user1), again.left("user", **user2)) == ((100, 40), (100, 30))
    assert again.use("gpt-4o", "u1").limit == "fixed"
    done = CommitFuture()
    again.site.holds.settle_hold(opened[0].id, Outcome(usage=Usage(cost_nanos=35)), done)
    done.wait()
    assert again.left("user", **user2) == (100, 35)
    again.verify()


def test_counters_of_values_are_bounded_in_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound they go, and come back from the ledger as they were."""
    monkeypatch.setattr("tollkeeper.gate.registry.VALUES_MAX", 20)
    monkeypatch.setattr("tollkeeper.gate.request_plans.PLANS_MAX", 3)
    api = make(
        limits=[Limit(name="calls", amount=3, window="1d", per="tag.user")],
        budgets=[PlanBudget(name="money", amount=30, period="day", per="tag.user")],
    )
    registry = api.site.gate._counters
    for _ in range(3):
        for n in range(100):
            assert isinstance(api.use(user=f"u{n}", nanos=10), Admission)
            if n % 10 == 9:
                commit_all(api.site)
        assert len(registry._values) <= 20 + 2 * 10
        assert len(registry.places()) <= 20 + 2 * 10 + 10
    for n in range(100):
        denial = api.use(user=f"u{n}", nanos=0)
        assert isinstance(denial, Denial)
        assert (denial.limit, denial.used) == ("calls", 3)
    api.verify()


def test_a_hold_keeps_the_counters_of_its_values(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others come meanwhile: it settles where it was held."""
    monkeypatch.setattr("tollkeeper.gate.registry.VALUES_MAX", 5)
    monkeypatch.setattr("tollkeeper.gate.request_plans.PLANS_MAX", 3)
    api = make(
        limits=[Limit(name="calls", amount=3, window="1d", per="tag.user")],
        budgets=[PlanBudget(name="money", amount=30, period="day", per="tag.user")],
    )
    held = api.admit(user="held", nanos=10)
    commit_all(api.site)
    for n in range(50):
        api.use(user=f"u{n}")
        commit_all(api.site)
    assert api.left("money", tags={"user": "held"}) == (30, 10)
    api.settle(held, 25)
    assert api.left("money", tags={"user": "held"}) == (30, 25)
    assert api.use(user="held", nanos=6).limit == "money"
    api.verify()


# -- labels and bounds --------------------------------------------------------------------------------


def test_a_model_that_a_budget_counts_is_stored_by_its_name(install: Any, account: str) -> None:
    """Beyond the bound of distinct labels others become `other`: then nothing could tell what was charged."""
    site = install(distinct_values_per_day_max=3)
    api = Api(
        site,
        account,
        *entries(account, Budget(id="b", account=account, amount=10**6, period="day", match=GPT4O)),
    )
    api.events(*((f"m{n}", None, 1) for n in range(20)), ("gpt-4o-a", None, 1), ("gpt-4o-b", None, 1))
    for model in ("gpt-4o-c", "m99", "gpt-4o-d"):
        assert isinstance(api.use(model, nanos=1), Admission)
    assert api.charged() == {"budget:b": 4}
    api.verify()


def test_what_a_customer_makes_is_never_freer(make: Make, account: str) -> None:
    """No door makes a key for more models, or one more of a budget that each key has for itself."""
    api = make(
        Key(id=f"{account}-mk", account=account, role="management", models=["gpt-4o*", "o3"]),
        Key(id=f"{account}-open", account=account, role="management"),
        budgets=[PlanBudget(name="sub", amount=100, period="day", per=["account", "tag.user"], match=GPT4O)],
    )
    by = Customer(account, f"{account}-mk")

    def issue(by: Customer, **fields: Any) -> Key:
        return api.site.manage.issue_key(Key(id=unique("k"), account=account, **fields), by=by).entry

    assert issue(by, models=["gpt-4o-mini", "O3"]).models == ["gpt-4o-mini", "O3"]
    for models in (None, ["gpt-*"], ["gpt-4o*", "claude"]):
        with pytest.raises(Forbidden, match="gpt-4o"):
            issue(by, models=models)
    assert issue(Customer(account, f"{account}-open")).models is None
    # A budget of some models per key is one more with each key; one of the account for the same is not.
    api.site.manage.put(Budget(id="per-key", account=account, amount=1, period="day", match=GPT4O, per="key"))
    with pytest.raises(Forbidden, match="per-key"):
        issue(Customer(account, f"{account}-open"))
    api.site.manage.put(
        Budget(id="other", account=account, amount=1, period="day", match=Match(models=["o3"]))
    )
    with pytest.raises(Forbidden, match="per-key"):
        issue(Customer(account, f"{account}-open"))
    api.site.manage.put(
        Budget(id="same", account=account, amount=9, period="day", match=Match(models=["GPT-4o*"]))
    )
    assert issue(Customer(account, f"{account}-open")).models is None


def test_a_customer_whose_keys_all_have_lists_makes_none_without(site: Installation, account: str) -> None:
    set_up(
        site,
        Plan(slug=f"{account}-p"),
        Account(id=account, name="Acme", plan=f"{account}-p"),
        Key(id=f"{account}-k", account=account, models=["gpt-4o*"]),
    )
    by = Customer(account)
    with pytest.raises(Forbidden, match="models"):
        site.manage.issue_key(Key(id=unique("k"), account=account), by=by)
    made = site.manage.issue_key(Key(id=unique("k"), account=account, models=["gpt-4o-mini"]), by=by)
    assert made.entry.models == ["gpt-4o-mini"]


def test_a_made_key_has_the_lists_of_its_makers(make: Make, account: str) -> None:
    api = make(Key(id=f"{account}-maker", account=account, models=["o3", "gpt-4o"]))
    made = api.site.manage.issue_key(
        Key(id=f"{account}-made", account=account), by=Customer(account, f"{account}-maker")
    )
    assert made.secret is not None
    api.secrets[f"{account}-made"] = made.secret
    assert isinstance(api.use("o3", key="made"), Admission)
    assert api.use("claude", key="made").reason == "model_not_allowed"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"match": {}}, "match"),
        ({"match": {"model": ["x"]}}, "match.model"),
        ({"match": {"models": [""]}}, r"match.models\[0\]"),
        ({"match": {"models": "gpt"}}, "match.models"),
        ({"match": {"tags": {"user": 1}}}, "match.tags.user"),
        ({"match": {"routes": ["no-such-route"]}}, r"match.routes\[0\]"),
        ({"match": {"routes": ["POST v1"]}}, "match.routes"),
        ({"per": "user"}, "per"),
        ({"per": "subscription"}, "per"),
        ({"per": ["key", "project"]}, "per"),
        ({"per": "key", "project": "p"}, "per"),
    ],
)
def test_an_error_names_its_field(make: Make, account: str, fields: dict[str, Any], field: str) -> None:
    api = make()
    with pytest.raises(BadParameter, match=f"^{field}: "):
        api.site.manage.put(entry_from("budgets", {"id": "b", "account": account, "amount": 1, **fields}))


def test_a_threshold_is_crossed_by_each_value_for_itself(make: Make, account: str) -> None:
    """One message per end user; and none ends the keys that all end users share."""
    api = make(
        Budget(id="b", account=account, amount=100, period="day", per="tag.user"),
        Webhook(
            id="w",
            account=account,
            url="https://127.0.0.1:9",
            thresholds=[50, 100],
            actions=Actions(disable_keys=100),
        ),
    )
    for user, nanos in (("u1", 100), ("u2", 60), ("u3", 10)):
        assert isinstance(api.use(user=user, nanos=nanos), Admission)
    commit_all(api.site)
    api.site.webhooks.compare()
    with api.site.engine.connect() as connection:
        columns = (messages.c.counter_id, messages.c.threshold, messages.c.body)
        stored = connection.execute(sa.select(*columns)).all()
    data = [json.loads(body)["data"] for _, _, body in stored]
    assert sorted((name, threshold) for name, threshold, _ in stored) == [
        ("budget:b#u1", 50),
        ("budget:b#u1", 100),
        ("budget:b#u2", 50),
    ]
    assert {(told["per"], told["value"]) for told in data} == {("tag.user", "u1"), ("tag.user", "u2")}
    assert [told["actions"] for told in data] == [[], [], []]
    api.site.webhooks.compare()
    assert isinstance(api.use(user="u2", nanos=1), Admission)


def test_thresholds_of_values_are_those_of_what_each_has_with_its_top_ups(
    make: Make, account: str, clock: ManualClock
) -> None:
    """What one end user bought moves the thresholds of no other, and what is left of it those of the next day."""
    api = make(
        Budget(id="b", account=account, amount=100, period="day", per="tag.user"),
        Webhook(id="w", account=account, url="https://127.0.0.1:9", thresholds=[50, 100]),
    )
    toll = Tollkeeper(api.site)

    def add(user: str, nanos: int, *, until_used: bool = False) -> None:
        amount, values = f"0.{nanos:09d}", {"tag.user": user}
        toll.top_up(account, "b", amount, id=unique("t"), until_used=until_used, values=values)

    def told(**used: int) -> list[tuple[str, int, str, str]]:
        """Use so much as each user; return `(value, threshold, used, limit)` of the messages since the last call."""
        for user, nanos in used.items():
            assert isinstance(api.use(user=user, nanos=nanos), Admission)
        commit_all(api.site)
        api.site.webhooks.compare()
        with api.site.engine.connect() as connection:
            bodies = connection.execute(sa.select(messages.c.body)).scalars().all()
        data = [json.loads(body)["data"] for body in bodies]
        found = {(d["value"], d["threshold"], d["used"], d["limit"], d["period"]["start"]) for d in data}
        new = sorted(found - before)
        before.update(found)
        return [message[:4] for message in new]

    before: set[tuple[Any, ...]] = set()
    add("u1", 100)
    add("u3", 100, until_used=True)
    assert told(u1=80, u2=80, u3=120) == [("u2", 50, "80", "100"), ("u3", 50, "120", "200")]
    add("u2", 300)
    # Now 50 % of u2 are 200, and that threshold of the day is told.
    assert told(u1=120, u2=120) == [("u1", 50, "200", "200"), ("u1", 100, "200", "200")]
    assert told(u2=200) == [("u2", 100, "400", "400")]
    clock.advance(seconds=86_400)
    # Of what u3 bought 20 were used; what u1 and u2 bought was for the day before.
    assert told(u1=50, u2=40, u3=89) == [("u1", 50, "50", "100")]
    assert told(u3=1) == [("u3", 50, "90", "180")]
    assert told(u3=90) == [("u3", 100, "180", "180")]
    assert isinstance(api.use(user="u3", nanos=1), Denial)
    api.verify()
