"""What a key permits follows from its plan, subscription, project and account; counters have stable names."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, PlanBudget, Subscription
from tollkeeper.domain.entitlements import budget_scopes, fingerprint_of, resolve, scope_of_budget
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.periods import period_of

ACME = Account(id="acme", name="Acme")
STARTED_AT = datetime(2026, 1, 31, 9, tzinfo=UTC)
SUBSCRIPTION = Subscription(id="s1", account="acme", plan="pro", started_at=STARTED_AT)
LIMITS = [
    Limit(name="rpm", amount=10),
    Limit(name="tpm", amount=10, unit="tokens", per="project"),
    Limit(name="all", amount=10, per="account"),
]


def key(**fields):
    return Key(**{"id": "k1", "account": "acme", **fields})


def resolved(entry, *, rotation_chain=("k1",), plan=None, budgets=(), subscription=None):
    return resolve(
        entry,
        rotation_chain=rotation_chain,
        account=ACME,
        subscription=subscription,
        plan=plan,
        budgets=budgets,
    )


def counter_ids(entitlement):
    return [scope.counter_id for scope in entitlement.limits]


def test_limits_count_per_key_project_or_account():
    plan = Plan(slug="pro", limits=LIMITS)
    assert counter_ids(resolved(key(project="web"), plan=plan)) == [
        "limit:key:k1:rpm",
        "limit:project:web:plan:pro/tpm",
        "limit:account:plan:pro/all",
    ]


def test_a_project_limit_of_a_key_without_project_counts_per_key():
    assert counter_ids(resolved(key(), plan=Plan(slug="pro", limits=LIMITS)))[1] == "limit:key:k1:tpm"


def test_a_key_may_bring_limits_of_its_own_even_none():
    plan = Plan(slug="pro", limits=LIMITS)
    assert counter_ids(resolved(key(limits=[Limit(name="own", amount=1)]), plan=plan)) == ["limit:key:k1:own"]
    assert resolved(key(limits=[]), plan=plan).limits == ()


def test_rotated_keys_share_the_counters_of_the_first_one():
    """Otherwise rotating would empty a limit."""
    plan = Plan(slug="pro", limits=LIMITS, budgets=[PlanBudget(name="spend", amount=1, per="key")])
    first = resolved(key(), rotation_chain=["k1", "k2"], plan=plan)
    second = resolved(key(id="k2"), rotation_chain=["k1", "k2"], plan=plan)
    assert counter_ids(first) == counter_ids(second)
    assert first.budgets == second.budgets


def test_only_credit_keys_of_consumers_draw_on_the_balance():
    assert resolved(key(type="credit")).draws_on_credit
    assert not resolved(key(type="subscription")).draws_on_credit
    assert not resolved(key(type="credit", role="management")).draws_on_credit


@pytest.mark.parametrize(
    ("project", "rotation_chain", "charged"),
    [
        (None, [], {"account"}),
        ("web", [], {"account", "web"}),
        ("web", ["k1"], {"account", "web", "key"}),
        (None, ["k0", "k1"], {"account", "key"}),
        ("app", ["k2"], {"account"}),
    ],
)
def test_an_event_is_charged_to_the_budgets_of_its_account_project_and_key(project, rotation_chain, charged):
    budgets = [
        Budget(id="account", account="acme", amount=1),
        Budget(id="web", account="acme", amount=1, project="web"),
        Budget(id="key", account="acme", amount=1, key="k1"),
    ]
    scopes = budget_scopes("acme", project, rotation_chain, subscription=None, plan=None, budgets=budgets)
    assert {scope.name for scope in scopes} == charged


PLANNED = Plan(
    slug="pro",
    budgets=[
        PlanBudget(name=per, amount=1, per=per)  # type: ignore[arg-type]
        for per in ("subscription", "key", "project", "account")
    ],
)


def test_limits_of_two_plans_are_two_limits():
    """An account may have keys on both: what one plan allows must not count against the other, by its name."""
    limit = Limit(name="rpm", amount=1, window="1m", per="account")
    pro, max_ = (
        counter_ids(resolved(key(), plan=Plan(slug=slug, limits=[limit]))) for slug in ("pro", "max")
    )
    assert pro != max_
    own = counter_ids(resolved(key(limits=[limit]), plan=Plan(slug="pro", limits=[limit])))
    assert own not in (pro, max_)


def test_a_limit_of_a_key_goes_on_when_its_plan_changes():
    """Another plan is no way to a fresh limit: what the key used in the window stays used."""
    limit = Limit(name="rpm", amount=1)
    plans = [Plan(slug=slug, limits=[limit]) for slug in ("pro", "max")]
    assert (
        len({*counter_ids(resolved(key(), plan=plans[0])), *counter_ids(resolved(key(), plan=plans[1]))}) == 1
    )


def planned_ids(project, rotation_chain, subscription):
    scopes = budget_scopes(
        "acme", project, rotation_chain, subscription=subscription, plan=PLANNED, budgets=()
    )
    return [scope.counter_id for scope in scopes]


def test_plan_budgets_have_a_pool_for_each_thing_of_per():
    assert planned_ids("web", ["k1"], SUBSCRIPTION) == [
        "plan:pro/subscription:subscription:s1",
        "plan:pro/key:key:k1",
        "plan:pro/project:project:web",
        "plan:pro/account:account:acme",
    ]


def test_without_a_subscription_its_pool_is_the_keys():
    assert planned_ids(None, ["k1"], None) == [
        "plan:pro/subscription:key:k1",
        "plan:pro/key:key:k1",
        # What has no project shares one budget: leaving the project out frees no key of it.
        "plan:pro/project:project:",
        "plan:pro/account:account:acme",
    ]


def test_an_event_without_a_key_counts_as_one_more_key_of_the_plan():
    assert planned_ids("web", [], None) == [
        "plan:pro/subscription:key:(none)",
        "plan:pro/key:key:(none)",
        "plan:pro/project:project:web",
        "plan:pro/account:account:acme",
    ]


def test_the_subscription_anchors_the_plans_budgets():
    plan = Plan(slug="pro", budgets=[PlanBudget(name="b", amount=1, period="anniversary")])
    (scope,) = resolved(key(), plan=plan, subscription=SUBSCRIPTION).budgets
    start_us, end_us = scope.span_us(to_us(datetime(2026, 3, 1, tzinfo=UTC)))
    assert start_us == to_us(datetime(2026, 2, 28, 9, tzinfo=UTC))
    assert end_us == to_us(datetime(2026, 3, 31, 9, tzinfo=UTC))


PERIODS = ("day", "week", "month", "quarter", "year", "anniversary", "anniversary_year", "30d", "total")


@given(
    st.sampled_from(PERIODS),
    st.sampled_from(("UTC", "Europe/Berlin", "America/New_York")),
    st.datetimes(datetime(2001, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),
)
def test_the_span_of_a_scope_is_the_period_that_holds_the_instant(period, zone, at):
    budget = Budget(id="b", account="acme", amount=1, period=period, time_zone=zone, anchor_at=STARTED_AT)
    start_us, end_us = scope_of_budget(budget).span_us(to_us(at))
    span = period_of(at, period, time_zone=zone, anchor_at=STARTED_AT)
    assert (start_us, end_us) == (to_us(span.start_at), to_us(span.end_at))
    assert start_us <= to_us(at) < end_us


@pytest.mark.parametrize(
    "change",
    [
        {"period": "day"},
        {"time_zone": "Europe/Berlin"},
        {"week_start": "sunday"},
        {"anchor_at": STARTED_AT},
        {"unit": "tokens"},
        {"project": "web"},
        {"key": "k1"},
    ],
)
def test_what_changes_the_events_that_a_budget_counts_changes_its_fingerprint(change):
    """A changed fingerprint makes the counter start again; one that is missed leaves a wrong sum for good."""
    plain = {"id": "b", "account": "acme", "amount": 1}
    before = scope_of_budget(Budget(**plain))
    assert fingerprint_of(scope_of_budget(Budget(**plain, **change))) != fingerprint_of(before)


def test_a_changed_amount_leaves_the_fingerprint():
    """Raising a budget forgets nothing of what was spent."""
    low, high = (scope_of_budget(Budget(id="b", account="acme", amount=n)) for n in (1, 2))
    assert fingerprint_of(low) == fingerprint_of(high)


@given(st.lists(st.sampled_from(["k1", "k2", "k3"]), unique=True), st.randoms(use_true_random=False))
def test_the_members_of_a_scope_are_told_apart_in_any_order(members, chance):
    scope = scope_of_budget(Budget(id="b", account="acme", amount=1))
    shuffled = list(members)
    chance.shuffle(shuffled)
    assert scope.of_members(members) == scope.of_members(shuffled)
    assert fingerprint_of(scope.of_members(members)) != fingerprint_of(scope.of_members([*members, "k4"]))


def test_a_budget_that_states_no_zone_has_that_of_its_account():
    india = Account(id="acme", name="Acme", time_zone="Asia/Kolkata")
    plan = Plan(
        slug="pro",
        budgets=[
            PlanBudget(name="theirs", amount=1, period="day"),
            PlanBudget(name="stated", amount=1, period="day", time_zone="Europe/Berlin"),
        ],
    )
    own = [
        Budget(id="own", account="acme", amount=1),
        Budget(id="utc", account="acme", amount=1, time_zone="UTC"),
    ]
    found = resolve(
        key(), rotation_chain=["k1"], account=india, subscription=None, plan=plan, budgets=own
    ).budgets
    zones = {scope.name: scope.time_zone for scope in found}
    assert zones == {
        "own": "Asia/Kolkata",
        "utc": "UTC",
        "theirs": "Asia/Kolkata",
        "stated": "Europe/Berlin",
    }


def test_a_period_from_first_use_is_told_from_one_that_was_aligned_to_the_day():
    """An installation from before has counters of aligned spans: these must not go on as if they were the same."""
    scope = scope_of_budget(Budget(id="b", account="acme", amount=1, period="5h"))
    assert "|first use 5h|" in fingerprint_of(scope)
    assert scope.first_use_us == 5 * 3_600_000_000


ids = st.lists(
    st.sampled_from(["a", "b", "key", "project", "account", "plan", "k1"]), min_size=1, max_size=4
).map(":".join)


@settings(max_examples=400)
@given(
    budget=ids,
    name=ids,
    slug=ids,
    key_id=ids,
    project=ids,
    per=st.sampled_from(["key", "project", "account"]),
)
@example(budget="b:key:k1", name="b", slug="p", key_id="k1", project="web", per="key")
def test_no_two_budgets_or_limits_make_the_same_counter(budget, name, slug, key_id, project, per):
    """Ids may have colons, also such that read like another budget's counter."""
    found = {}
    for of_budget, owner in ((budget, None), (name, "key"), (name, "project")):
        found["budget", of_budget, owner, *_owner(owner, key_id, project)] = Budget(
            id=of_budget, account="acme", amount=1, per=owner
        )
    scopes = {
        at: budget_scopes("acme", project, [key_id], subscription=None, plan=None, budgets=[entry])[
            0
        ].counter_id
        for at, entry in found.items()
    }
    halves = [(name, slug), *((head, tail) for head, _, tail in [name.partition(":")] if tail)]
    for of_name, of_plan in halves:
        plan = Plan(
            slug=of_plan,
            budgets=[PlanBudget(name=of_name, amount=1, per=per)],
            limits=[Limit(name=of_name, amount=1, per=per)],
        )
        for of_key in {key_id, f"{key_id}:{of_name}", "k1"}:
            for of_project in {project, f"{project}:plan:{of_plan}"}:
                entitlement = resolved(key(id=of_key, project=of_project), rotation_chain=[of_key], plan=plan)
                owner = _owner(per, of_key, of_project)
                scopes["plan", of_plan, of_name, per, *owner] = entitlement.budgets[0].counter_id
                source = () if per == "key" else (of_plan,)
                scopes["limit", *source, of_name, per, *owner] = entitlement.limits[0].counter_id
    assert len(set(scopes.values())) == len(scopes), scopes
    plain = {at: counter_id for at, counter_id in scopes.items() if ":" not in "".join(map(str, at))}
    for (kind, *parts), counter_id in plain.items():
        if kind == "budget" and parts[1] is None:
            assert counter_id == f"budget:{parts[0]}"
        if kind == "plan":
            assert counter_id == f"plan:{parts[0]}/{parts[1]}:{per}:{parts[-1]}"


def _owner(per, key_id, project):
    return [{"key": key_id, "project": project, "account": "acme"}[per]] if per else []
