"""The predicate of customers' keys: permitted means bounded by what no customer can multiply."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.bounds import Terms, inherited_objection, key_objection, project_objection
from tollkeeper.domain.catalog import Budget, Key, Plan, PlanBudget, Subscription

UNITS = ("nanos", "requests")
SUBSCRIPTION = Subscription(id="s", account="acme", plan="pro", started_at=datetime(2026, 1, 1, tzinfo=UTC))

planned = st.builds(
    PlanBudget,
    name=st.just("b"),
    amount=st.sampled_from([None, 5]),
    unit=st.sampled_from(UNITS),
    per=st.sampled_from(["subscription", "key", "project", "account"]),
)
budgets = st.lists(
    st.builds(
        lambda scope, unit: Budget(id="b", account="acme", amount=5, unit=unit, **scope),
        st.sampled_from([{}, {"project": "p"}, {"project": "q"}, {"key": "k1"}, {"key": "k2"}]),
        st.sampled_from(UNITS),
    ),
    max_size=3,
)
terms = st.builds(
    Terms,
    plan=st.none() | st.builds(Plan, slug=st.just("pro"), budgets=st.lists(planned, max_size=3)),
    subscription=st.sampled_from([None, SUBSCRIPTION]),
    budgets=budgets,
    has_credit=st.booleans(),
)
keys = st.builds(
    Key,
    id=st.just("k1"),
    account=st.just("acme"),
    type=st.sampled_from(["subscription", "credit"]),
    project=st.sampled_from([None, "p", "q"]),
)


@given(keys, terms)
def test_a_permitted_new_key_is_bounded_wherever_the_account_is(key: Key, given_: Terms) -> None:
    """Told by what bounds a sum: said again, in other words than the code's."""
    if key_objection(key, given_) is not None:
        return
    assert given_.plan is not None or key.type == "credit"
    plan_budgets = [] if given_.plan is None else [b for b in given_.plan.budgets if b.amount is not None]
    for unit in UNITS:
        alone = [b for b in plan_budgets if b.per == "key"]
        if given_.subscription is None:
            alone += [b for b in plan_budgets if b.per == "subscription"]
        bounded = (
            any(b.unit == unit for b in given_.budgets)
            or any(b.unit == unit for b in alone)
            or (unit == "nanos" and given_.has_credit)
        )
        by = (
            [
                b
                for b in given_.budgets
                if b.unit == unit and b.key is None and b.project in (None, key.project)
            ]
            + [b for b in plan_budgets if b.unit == unit and b not in alone]
            + ([key] if unit == "nanos" and key.type == "credit" else [])
        )
        assert by or not bounded


@given(keys, terms)
def test_what_a_key_has_it_may_keep(key: Key, given_: Terms) -> None:
    """A key that stays on its plan is bounded by its own budgets too: no less is permitted than for a new key."""
    if key_objection(key, given_) is None:
        assert key_objection(key, given_, rotation_chain=["k1"], same_plan=True) is None


@given(st.lists(planned, max_size=3), st.booleans(), budgets)
def test_projects_are_made_only_under_a_bound_of_all(
    planned: list[PlanBudget], subscribed: bool, budgets: list[Budget]
) -> None:
    """A budget per project alone would be multiplied."""
    permitted = project_objection([(Plan(slug="pro", budgets=planned), subscribed)], budgets) is None
    for unit in {b.unit for b in planned if b.per == "project" and b.amount is not None}:
        shared = any(
            b.unit == unit
            and b.amount is not None
            and (b.per == "account" or (b.per == "subscription" and subscribed))
            for b in planned
        ) or any(b.unit == unit and b.project is None and b.key is None for b in budgets)
        assert shared or not permitted


@given(keys, keys)
def test_a_key_passes_on_only_what_it_has(made: Key, maker: Key) -> None:
    """A key that makes keys changes neither type nor place."""
    same = (made.type, made.project) == (maker.type, maker.project)
    assert (inherited_objection(made, maker) is None) == same
