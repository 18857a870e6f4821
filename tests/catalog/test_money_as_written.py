"""M17: files and requests take money as people write it, and what an answer shows is accepted again."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.domain.test_catalog import ENTRIES, SMALLEST
from tollkeeper.api.entry_json import entry_json, plain_entry
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.catalog.entry_parsing import entry_from
from tollkeeper.catalog.money_amounts import money_told
from tollkeeper.domain.catalog import KINDS
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.money_fields import is_money_name, twin_of
from tollkeeper.errors import BadParameter, TollkeeperError

AMOUNTS = ("amount", "burst")


def as_people_write_it(shown):
    """Return an answer with its money as decimal text, each under the name that takes it."""
    written = {}
    for name, value in shown.items():
        if name != "metadata" and is_money_name(name) and value is not None:
            written[twin_of(name)] = format_nanos(int(value))
        elif name in AMOUNTS and shown.get("unit") == "nanos" and value is not None:
            written[name] = format_nanos(int(value))
        elif isinstance(value, list):
            written[name] = [as_people_write_it(part) if isinstance(part, dict) else part for part in value]
        else:
            written[name] = value
    return written


def test_every_kind_is_drawn():
    assert set(ENTRIES) == set(KINDS) == set(SMALLEST)


@given(st.sampled_from(sorted(KINDS)).flatmap(lambda kind: st.tuples(st.just(kind), ENTRIES[kind])))
def test_what_an_answer_shows_is_accepted_again(case):
    """Whatever an entry has, a PUT of what GET answers is that entry, and so is the same with money as decimals."""
    kind, body = case
    try:
        entry = entry_from(kind, plain_entry(kind, body))
    except TollkeeperError:
        # Of a text that cannot be stored, or an unknown profile: never answered.
        assume(False)
    if kind == "keys":
        # The hash is never answered, and when a key was made is said by the store and never changes.
        body = {name: value for name, value in body.items() if name not in ("sha256", "created_at")}
        entry = entry_from(kind, plain_entry(kind, body))
    shown = json.loads(json.dumps(entry_json(entry)))
    assert entry_from(kind, plain_entry(kind, shown)) == entry
    assert entry_from(kind, plain_entry(kind, as_people_write_it(shown))) == entry


FILE = """
[[plans]]
slug = "pro"
price = "49.00"
[[plans.limits]]
name = "spend"
amount = "1.50"
unit = "nanos"
window = "1h"
algorithm = "permits"
burst = "2.50"
[[plans.budgets]]
name = "monthly"
amount = "25.00"
[[accounts]]
id = "acme"
name = "Acme"
[[budgets]]
id = "b"
account = "acme"
amount = "25.00"
[[grants]]
id = "g"
account = "acme"
amount = "1000.00"
[[routes]]
id = "r"
method = "GET"
path = "/"
price = "0.0004"
[[prices]]
id = "p"
model = "m"
prompt_per_million = "2.50"
completion_nanos_per_million = 10_000_000_000
request = "0.04"
"""


def test_a_file_takes_money():
    plan, _, budget, grant, route, price = parse_declaration(FILE)
    assert plan.price_nanos == 49 * 10**9
    assert (plan.limits[0].amount, plan.limits[0].burst) == (1_500_000_000, 2_500_000_000)
    assert plan.budgets[0].amount == budget.amount == 25 * 10**9
    assert grant.amount_nanos == 1000 * 10**9
    assert route.price_nanos == 400_000
    assert (price.prompt_nanos_per_million, price.request_nanos) == (2_500_000_000, 40_000_000)
    told, warnings = money_told(plan)
    assert told["budgets[0].amount"] == "25.00"
    assert told["limits[0].burst"] == "2.50"
    assert warnings == []


@pytest.mark.parametrize("amount", ["25", '"25"'])
def test_nanos_stay_nanos_and_are_echoed_with_a_warning(amount):
    """`amount = 25` was taken as 25 nanos without a word."""
    file = f'[[budgets]]\nid = "b"\naccount = "a"\namount = {amount}\n'
    (budget,) = parse_declaration(file)
    assert budget.amount == 25
    told, warnings = money_told(budget)
    assert told == {"amount": "0.000000025"}
    assert len(warnings) == 1
    assert '"25.00"' in warnings[0]


def test_a_price_of_less_than_a_cent_is_no_slip():
    (route,) = parse_declaration('[[routes]]\nid = "r"\nmethod = "GET"\npath = "/"\nprice_nanos = 400\n')
    assert money_told(route) == ({"price_nanos": "0.0000004"}, [])


@pytest.mark.parametrize(
    ("table", "field", "says"),
    [
        ('[[budgets]]\nid = "b"\naccount = "a"\namount = 25.00', "budgets[0].amount", 'amount = "25.00"'),
        ('[[grants]]\nid = "g"\naccount = "a"\namount = 25.00', "grants[0].amount", 'amount = "25.00"'),
        ('[[grants]]\nid = "g"\naccount = "a"\namount_nanos = 2.5', "grants[0].amount_nanos", "nanos"),
        (
            '[[grants]]\nid = "g"\naccount = "a"\namount_nanos = "2.50"',
            "grants[0].amount_nanos",
            'amount = "25.00"',
        ),
        (
            '[[grants]]\nid = "g"\naccount = "a"\namount = "2.50"\namount_nanos = 3',
            "grants[0].amount",
            "leave one",
        ),
        (
            '[[plans]]\nslug = "p"\n[[plans.budgets]]\nname = "m"\namount = 25.00',
            "plans[0].budgets[0].amount",
            "nanos",
        ),
        ('[[routes]]\nid = "r"\nmethod = "GET"\npath = "/"\nprice = 0.01', "routes[0].price", "nanos"),
        ('[[budgets]]\nid = "b"\naccount = "a"\namount = "lots"', "budgets[0].amount", '"25.00"'),
    ],
)
def test_a_float_is_refused_with_the_unit_and_what_to_write(table, field, says):
    with pytest.raises(BadParameter) as refused:
        parse_declaration(table + "\n")
    assert refused.value.fields["field"] == field
    assert says in str(refused.value)


def test_an_amount_of_requests_takes_no_money():
    with pytest.raises(BadParameter):
        parse_declaration('[[budgets]]\nid = "b"\naccount = "a"\namount = "25.00"\nunit = "requests"\n')


def test_names_of_money_in_metadata_are_text_of_the_operator():
    (account,) = parse_declaration(
        '[[accounts]]\nid = "a"\nname = "A"\nmetadata = { cost_nanos = "x", cost = "y" }\n'
    )
    assert account.metadata == {"cost_nanos": "x", "cost": "y"}
