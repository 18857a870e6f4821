"""The declarative file: what it may say, what it does, and how it says what is wrong."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines import fresh_engine
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.catalog.changes import Change
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration, render_changes
from tollkeeper.catalog.entry_parsing import entry_from
from tollkeeper.catalog.manage import Manage
from tollkeeper.clock import SystemClock
from tollkeeper.domain.catalog import (
    KINDS,
    Account,
    Budget,
    Entry,
    Grant,
    Key,
    KeyState,
    Limit,
    Plan,
    PlanBudget,
    Price,
    Route,
    Subscription,
)
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.errors import BadInput, BadParameter, Conflict, Malformed
from tollkeeper.ports import CatalogStore

WHOLE = """
[[prices]]
id = "gpt-2026"
model = "gpt-x"
effective_at = 2026-01-01T00:00:00Z
prompt_nanos_per_million = 2_500_000_000

[[keys]]
id = "k1"
account = "acme"
project = "web"
subscription = "s1"
profile = "shoal"

[[keys]]
id = "k2"
account = "acme"
type = "credit"
sha256 = "abababababababababababababababababababababababababababababababab"

[[accounts]]
id = "acme"
name = "Acme"
plan = "pro"

[[projects]]
id = "web"
account = "acme"

[[plans]]
slug = "pro"
price_nanos = 49_000_000_000
limits = [{ name = "rpm", amount = 60, window = "1m" }]

[[plans.budgets]]
name = "spend"
amount = 10_000_000_000

[[subscriptions]]
id = "s1"
account = "acme"
plan = "pro"
started_at = 2026-01-31T12:00:00.5+02:00

[[budgets]]
id = "b1"
account = "acme"
key = "k1"
amount = 5

[[grants]]
id = "g1"
account = "acme"
amount_nanos = 5_000_000_000

[[routes]]
id = "r1"
method = "POST"
path = "/v1/scans/{id}"
credits = 2

[[models]]
id = "my-deployment"
is = "azure/gpt-4o"

[[markups]]
id = "m1"
plan = "pro"
factor = "1.2"

[[webhooks]]
id = "w1"
account = "acme"
url = "https://a.example/alerts"
actions = { notify_admins = 90, disable_keys = 100 }
"""


class World:
    """A manage service, and everything that it told the world."""

    def __init__(self, store: CatalogStore) -> None:
        self.store = store
        self.told: list[Change] = []
        self.posted: list[Grant] = []
        self.manage = Manage(store, SystemClock(), on_change=self.told.extend, post_grant=self._post)

    def _post(self, grant: Grant) -> bool:
        if grant in self.posted:
            return False
        self.posted.append(grant)
        return True

    def everything(self) -> list[Entry]:
        return [entry for kind in KINDS for entry in self.store.entries(kind)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_engine("sqlite-memory", tmp_path) as engine:
        yield World(SqlCatalogStore(engine))


def test_the_smallest_file_is_one_account() -> None:
    assert parse_declaration('[[accounts]]\nid = "acme"\nname = "Acme"\n') == [
        Account(id="acme", name="Acme")
    ]
    assert parse_declaration("") == []


def test_a_whole_file_is_read_in_the_order_of_the_kinds() -> None:
    entries = parse_declaration(WHOLE)
    assert list(dict.fromkeys(entry.kind for entry in entries)) == list(KINDS)
    by_id = {entry.entry_id: entry for entry in entries}
    assert by_id["pro"] == Plan(
        slug="pro",
        price_nanos=49_000_000_000,
        limits=[Limit(name="rpm", amount=60, window="1m")],
        budgets=[PlanBudget(name="spend", amount=10_000_000_000)],
    )
    assert by_id["s1"] == Subscription(
        id="s1", account="acme", plan="pro", started_at=datetime(2026, 1, 31, 10, 0, 0, 500_000, tzinfo=UTC)
    )


def test_a_file_applied_again_changes_nothing(world: World) -> None:
    entries = parse_declaration(WHOLE)
    first = apply_declaration(entries, world.manage, dry_run=False)
    assert {change.action for change in first.changes} == {"created"}
    assert len(first.changes) == len(entries)
    # Grants are told last: their money is posted only after the rest is in force.
    told = sorted(first.changes, key=lambda change: change.kind == "grants")
    assert world.told == told
    secrets = {issued.entry.id: issued.secret for issued in first.issued}
    assert list(secrets) == ["k1", "k2"]
    assert secrets["k2"] is None
    stored = world.store.find_key_by_hash(hash_secret(secrets["k1"] or ""))
    assert stored is not None
    assert stored.entry.id == "k1"

    before = world.everything()
    second = apply_declaration(parse_declaration(WHOLE), world.manage, dry_run=False)
    assert {change.action for change in second.changes} == {"unchanged"}
    assert second.issued == []
    assert world.everything() == before
    assert world.told == told
    assert len(world.posted) == 1


def test_a_dry_run_tells_the_same_and_does_nothing(world: World) -> None:
    for text in (WHOLE, WHOLE.replace("amount = 60", "amount = 61")):
        entries, before, told = parse_declaration(text), world.everything(), list(world.told)
        dry = apply_declaration(entries, world.manage, dry_run=True)
        assert (world.everything(), world.told, dry.issued) == (before, told, [])
        real = apply_declaration(entries, world.manage, dry_run=False)
        assert dry.changes == real.changes


def test_changes_are_rendered_a_line_each(world: World) -> None:
    lines = render_changes(apply_declaration(parse_declaration(WHOLE), world.manage, dry_run=False).changes)
    assert sorted(lines)[:2] == ["+ accounts acme", "+ budgets b1"]
    changed = WHOLE.replace("amount = 60", "amount = 61").replace("49_000_000_000", "1")
    lines = render_changes(apply_declaration(parse_declaration(changed), world.manage, dry_run=False).changes)
    assert "~ plans pro: limits.rpm.amount 60 → 61, price 49.00 → 0.000000001" in lines
    assert "= keys k1" in lines
    assert render_changes([world.manage.delete("routes", "r1")]) == ["- routes r1"]


def test_a_file_that_fails_in_one_place_does_nothing(world: World) -> None:
    text = WHOLE + '\n[[budgets]]\nid = "b2"\naccount = "acme"\nproject = "nope"\namount = 1\n'
    with pytest.raises(BadParameter) as caught:
        apply_declaration(parse_declaration(text), world.manage, dry_run=False)
    assert caught.value.field == "budgets[1].project"
    assert (world.everything(), world.told, world.posted) == ([], [], [])


def test_a_file_cannot_revive_a_revoked_key(world: World) -> None:
    apply_declaration(parse_declaration(WHOLE), world.manage, dry_run=False)
    world.manage.set_key_state("acme", "k1", "revoked")
    named = WHOLE.replace('profile = "shoal"', 'profile = "shoal"\nstate = "active"')
    changes = apply_declaration(parse_declaration(named), world.manage, dry_run=False).changes
    noted = [change for change in changes if change.note]
    assert [(change.id, change.action) for change in noted] == [("k1", "unchanged")]
    assert render_changes(noted) == ["= keys k1 (the key is revoked for good: left as it is)"]
    assert world.manage.stored_key("acme", "k1").entry.state == "revoked"
    text = WHOLE.replace('profile = "shoal"', 'profile = "shoal"\nstate = "revoked"')
    changes = apply_declaration(parse_declaration(text), world.manage, dry_run=False).changes
    assert {change.action for change in changes} == {"unchanged"}


KEY = (
    '[[accounts]]\nid = "acme"\nname = "Acme"\n'
    '[[keys]]\nid = "k"\naccount = "acme"\n{}\n'
    '[[projects]]\nid = "{}"\naccount = "acme"\n'
)


def applied(world: World, text: str, *, dry_run: bool = False) -> list[str]:
    changes = apply_declaration(parse_declaration(text), world.manage, dry_run=dry_run).changes
    return [line for line in render_changes(changes) if not line.startswith("=") or "(" in line]


def test_a_file_changes_no_state_that_it_does_not_name(world: World) -> None:
    """What was set by hand in the course of things (a key, an account, a subscription) is not undone."""
    text = PLAN + ACCOUNT + '[[keys]]\nid = "k"\naccount = "acme"\n' + SUBSCRIPTION
    applied(world, text)
    world.manage.set_key_state("acme", "k", "inactive")
    world.manage.put(Account(id="acme", name="Acme", active=False))
    world.manage.put(entry_from("subscriptions", {**SUBSCRIBED, "status": "canceled"}))
    assert applied(world, text, dry_run=True) == applied(world, text) == []
    # Other fields are as the file says.
    assert applied(world, text.replace('name = "Acme"', 'name = "New"')) == [
        "~ accounts acme: name Acme → New"
    ]
    stated = (
        text.replace('name = "Acme"', 'name = "New"\nactive = true')
        .replace('id = "k"', 'id = "k"\nstate = "active"')
        .replace('id = "s"', 'id = "s"\nstatus = "active"')
    )
    assert applied(world, stated) == [
        "~ accounts acme: active false → true",
        "~ subscriptions s: status canceled → active",
        "~ keys k: state inactive → active",
    ]


@pytest.mark.parametrize("state", ["revoked", "deleted"])
@pytest.mark.parametrize("named", ["", 'state = "active"', 'name = "other"'])
def test_what_ended_for_good_stops_no_file(world: World, state: KeyState, named: str) -> None:
    """The rest of the file applies; the key has a note where the file says otherwise."""
    applied(world, KEY.format("", "p1"))
    world.manage.set_key_state("acme", "k", state)
    note = [f"= keys k (the key is {state} for good: left as it is)"] if named else []
    for dry_run in (True, False):
        assert sorted(applied(world, KEY.format(named, "p2"), dry_run=dry_run)) == ["+ projects p2", *note]
    assert world.manage.stored_key("acme", "k").entry == Key(id="k", account="acme", state=state)


REQUIRED: Final[dict[str, str]] = {
    "plans": 'slug = "pro"',
    "accounts": 'id = "acme"\nname = "Acme"',
    "projects": 'id = "web"\naccount = "acme"',
    "subscriptions": 'id = "s"\naccount = "acme"\nplan = "pro"\nstarted_at = 2026-01-01T00:00:00Z',
    "keys": 'id = "k"\naccount = "acme"',
    "budgets": 'id = "b"\naccount = "acme"\namount = 5',
    "grants": 'id = "g"\naccount = "acme"\namount_nanos = 5',
    "routes": 'id = "r"\nmethod = "GET"\npath = "/a"',
    "models": 'id = "mine"\nis = "gpt-4o"',
    "prices": 'id = "p"\nmodel = "house-1"',
    "markups": 'id = "m"\nfactor = "1.2"',
    "webhooks": 'id = "w"\naccount = "acme"\nurl = "https://example.com/hook"',
}
"""Per kind what a file must say of an entry."""
ELSEWHERE: Final[dict[str, dict[str, Any]]] = {
    "plans": {
        "name": "Pro",
        "limits": [{"name": "rpm", "amount": 6}],
        "budgets": [{"name": "spend", "amount": 7}],
        "layers": ["free"],
        "models": ["gpt-*"],
        "price_nanos": 9,
        "sellable": False,
        "metadata": {"a": "b"},
    },
    "accounts": {"plan": "pro", "time_zone": "Europe/Rome", "active": False, "metadata": {"a": "b"}},
    "projects": {"name": "Web"},
    "subscriptions": {"expires_at": "2027-01-01T00:00:00Z", "status": "canceled"},
    "keys": {
        "project": "web",
        "name": "Prod",
        "type": "credit",
        "profile": "shoal",
        "subscription": "s",
        "plan": "pro",
        "limits": [{"name": "rpm", "amount": 6}],
        "models": ["gpt-*"],
        "state": "inactive",
        "expires_at": "2027-01-01T00:00:00Z",
        "metadata": {"a": "b"},
    },
    "budgets": {
        "project": "web",
        "period": "week",
        "time_zone": "Europe/Rome",
        "week_start": "sunday",
        "anchor_at": "2026-01-01T00:00:00Z",
        "match": {"models": ["gpt-*"]},
        "per": "tag.user",
    },
    "grants": {"source": "top_up", "priority": 7, "expires_at": "2027-01-01T00:00:00Z", "note": "hello"},
    "routes": {
        "event_kind": "scan",
        "credits": 3,
        "price_nanos": 4,
        "bucket": "scans",
        "surface": "a",
        "layer": "b",
        "policy": "c",
        "profile": "shoal",
    },
    "models": {},
    "prices": {
        "account": "acme",
        "variant": "batch",
        "effective_at": "2026-01-01T00:00:00Z",
        "prompt_nanos_per_million": 5,
        "cached_prompt_nanos_per_million": 6,
        "completion_nanos_per_million": 7,
        "tiers": [{"over": 5, "prompt_nanos_per_million": 9}],
        "rates": {"seconds": 4},
        "request_nanos": 3,
    },
    "markups": {
        "account": "acme",
        "model": "gpt-*",
        "request_nanos": 4,
        "effective_at": "2026-01-01T00:00:00Z",
    },
    "webhooks": {"project": "web", "thresholds": [10, 50], "actions": {"disable_keys": 50}},
}
"""Per kind what was set over HTTP or on the command line, and the file does not say."""


def everything_set(world: World) -> None:
    for kind in KINDS:
        entry = entry_from(kind, {**tomllib.loads(REQUIRED[kind]), **ELSEWHERE[kind]})
        if isinstance(entry, Key):
            world.manage.issue_key(entry)
        else:
            world.manage.put(entry)


def test_every_kind_is_among_those_that_are_tested() -> None:
    assert set(REQUIRED) == set(ELSEWHERE) == set(KINDS)


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_a_file_changes_no_field_that_it_does_not_name(world: World, kind: str) -> None:
    """What another door set stays, field by field, and what the file says is set beside it."""
    everything_set(world)
    before = world.everything()
    text = f"[[{kind}]]\n{REQUIRED[kind]}\n"
    assert applied(world, text, dry_run=True) == applied(world, text) == []
    assert world.everything() == before
    for name, value in ELSEWHERE[kind].items():
        # The file may say the same, each field alone.
        lines = toml_line(name, value)
        assert applied(world, text + lines) == []


def toml_line(name: str, value: Any) -> str:
    if name.endswith("_at"):
        return f"{name} = {value}\n"
    if isinstance(value, dict):
        pairs = ", ".join(f"{key} = {json.dumps(part)}" for key, part in value.items())
        return f"{name} = {{ {pairs} }}\n"
    if isinstance(value, list) and isinstance(value[0], dict):
        parts = ["{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in part.items()) + " }" for part in value]
        return f"{name} = [{', '.join(parts)}]\n"
    return f"{name} = {json.dumps(value)}\n"


def test_an_empty_text_removes_a_value(world: World) -> None:
    everything_set(world)
    text = '[[keys]]\nid = "k"\naccount = "acme"\nexpires_at = ""\nlimits = ""\nplan = ""\n'
    assert applied(world, text) == [
        '~ keys k: plan pro → none, limits [{"name":"rpm","amount":6,"window":"1m","unit":"requests",'
        '"algorithm":"fixed","burst":null,"bucket":null,"match":null,"per":"key"}] → none, '
        "expires_at 2027-01-01T00:00:00Z → none"
    ]
    key = world.manage.stored_key("acme", "k").entry
    assert (key.plan, key.limits, key.expires_at, key.name) == (None, None, None, "Prod")
    with pytest.raises(BadParameter, match="is not an id"):
        parse_declaration('[[projects]]\nid = ""\naccount = "acme"\n')


def test_what_a_file_says_must_go_with_what_stays(world: World) -> None:
    everything_set(world)
    with pytest.raises(BadParameter, match="free route"):
        applied(world, f"[[routes]]\n{REQUIRED['routes']}\nfree = true\n")
    counted = '[[budgets]]\nid = "c"\naccount = "acme"\namount = 5\nunit = "requests"\n'
    assert applied(world, counted) == ["+ budgets c"]
    # An amount without its unit would be one of money.
    with pytest.raises(Conflict, match="unit"):
        applied(world, counted.replace('unit = "requests"\n', "").replace("= 5", '= "5.00"'))


def test_a_rotated_key_still_ends(world: World) -> None:
    """Its end was set by the rotation: a file that does not name expires_at gives it no new life."""
    applied(world, ACCOUNT + '[[keys]]\nid = "k"\naccount = "acme"\n')
    world.manage.rotate_key("acme", "k", 60)
    ends_at = world.manage.stored_key("acme", "k").entry.expires_at
    assert ends_at is not None
    assert applied(world, ACCOUNT + '[[keys]]\nid = "k"\naccount = "acme"\nname = "new"\n') == [
        '~ keys k: name "" → new'
    ]
    assert world.manage.stored_key("acme", "k").entry.expires_at == ends_at


PLAN = '[[plans]]\nslug = "pro"\n'
ACCOUNT = '[[accounts]]\nid = "acme"\nname = "Acme"\n'
SUBSCRIPTION = (
    '[[subscriptions]]\nid = "s"\naccount = "acme"\nplan = "pro"\nstarted_at = 2026-01-01T00:00:00Z\n'
)
SUBSCRIBED = {"id": "s", "account": "acme", "plan": "pro", "started_at": "2026-01-01T00:00:00Z"}
GRANT = '[[grants]]\nid = "g"\naccount = "acme"\n'


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ('[[acounts]]\nid = "a"', "acounts", "did you mean accounts?"),
        ("x = 1", "x", "the tables are plans, accounts"),
        ('[accounts]\nid = "a"', "accounts", "write [[accounts]]"),
        ("accounts = 5", "accounts", "write [[accounts]]"),
        ("accounts = [5]", "accounts[0]", "object"),
        ('[[accounts]]\nid = "a"', "accounts[0].name", "required"),
        (ACCOUNT + "nmae = 1", "accounts[0].nmae", "did you mean name?"),
        (ACCOUNT + "shoe_size = 1", "accounts[0].shoe_size", "known fields are id, name, plan"),
        (ACCOUNT + "active = 1", "accounts[0].active", "must be a boolean, not a whole number"),
        (
            ACCOUNT + "metadata = { a = 'x', b = 1 }",
            "accounts[0].metadata.b",
            "must be text, not a whole number",
        ),
        (ACCOUNT + "time_zone = 'Mars'", "accounts[0].time_zone", "is not an IANA"),
        (ACCOUNT + ACCOUNT, "accounts[1].id", "accounts[0]"),
        (PLAN + PLAN, "plans[1].slug", "plans[0]"),
        (PLAN + PLAN.replace("pro", "a b"), "plans[1].slug", "is not an id"),
        (
            PLAN + "limits = [{ name = 'a', amount = 1 }, { name = 'b', amount = 1, window = '1y' }]",
            "plans[0].limits[1].window",
            "is not a duration such as",
        ),
        (
            PLAN + "limits = [{ name = 'a', amount = 1, algo = 'x' }]",
            "plans[0].limits[0].algo",
            "did you mean algorithm?",
        ),
        (
            PLAN + "limits = [{ name = 'a', amount = 1, unit = 'x' }]",
            "plans[0].limits[0].unit",
            "must be one of requests, tokens",
        ),
        (PLAN + "limits = [{ name = 'a' }]", "plans[0].limits[0].amount", "required"),
        (
            PLAN + "budgets = [{ name = 'a', amount = 1, per = 'x' }]",
            "plans[0].budgets[0].per",
            "is none of subscription, key",
        ),
        (
            PLAN + "budgets = [{ name = 'a', amount = 1, period = 'fortnight' }]",
            "plans[0].budgets[0].period",
            "use day",
        ),
        (GRANT + "amount_nanos = 1.5", "grants[0].amount_nanos", "whole number"),
        (GRANT + "amount_nanos = 1e9", "grants[0].amount_nanos", "whole number"),
        (GRANT + "amount_nanos = nan", "grants[0].amount_nanos", "whole number"),
        (GRANT + "amount_nanos = 'five'", "grants[0].amount_nanos", "whole number"),
        (GRANT + "amount_nanos = -5", "grants[0].amount_nanos", ">= 1"),
        (GRANT + "amount_nanos = 9223372036854775808", "grants[0].amount_nanos", "<= 9223372036854775807"),
        (
            GRANT + "amount_nanos = 1\nexpires_at = 2026-01-01T00:00:00",
            "grants[0].expires_at",
            "must have an offset",
        ),
        (
            GRANT + "amount_nanos = 1\nexpires_at = 2026-01-01",
            "grants[0].expires_at",
            "must be a date-time such as",
        ),
        (GRANT + "amount_nanos = 1\nnote = 'a\\u0000b'".replace("'", '"'), "grants[0].note", "NUL"),
        (
            '[[keys]]\nid = "k"\naccount = "a"\nsha256 = "secret"',
            "keys[0].sha256",
            "must be 64 lower-case hex",
        ),
        ('[[keys]]\nid = "k"\naccount = "a"\n[[keys]]\nid = "k"\naccount = "b"', "keys[1].id", "keys[0]"),
        ('[[routes]]\nid = "r"\nmethod = "GET"\npath = "v1"', "routes[0].path", "must begin with /"),
    ],
)
def test_an_error_says_where_and_what_to_do(text: str, field: str, says: str) -> None:
    with pytest.raises(BadParameter) as caught:
        parse_declaration(text)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["[[accounts]", "a = 1\na = 2", "accounts = " + "[" * 100_000])
def test_what_is_not_toml_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_declaration(text)


def test_two_accounts_may_use_one_id_in_one_file() -> None:
    text = "".join(f'[[projects]]\nid = "web"\naccount = "{account}"\n' for account in ("acme", "beta"))
    assert len(parse_declaration(text)) == 2


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but our own errors gets out, whatever the file holds."""
    for declaration in (text, f"{ACCOUNT}{text}", f"[[accounts]]\nid = {_toml(text)}\nname = {_toml(text)}"):
        try:
            entries = parse_declaration(declaration)
        except BadInput:
            continue
        assert all(isinstance(entry, Entry) for entry in entries)


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
COUNTS = st.integers(0, NANOS_MAX)
INSTANTS = st.datetimes(
    datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(timezone(timedelta(hours=5, minutes=45)))
)
LIMITS = st.builds(
    Limit,
    name=IDS,
    amount=COUNTS,
    window=st.sampled_from(["60s", "5h"]),
    unit=st.sampled_from(["requests", "tokens"]),
)
ENTRIES = st.one_of(
    st.builds(
        Account,
        id=IDS,
        name=TEXTS,
        plan=st.none() | IDS,
        active=st.booleans(),
        metadata=st.dictionaries(TEXTS, TEXTS),
    ),
    st.builds(
        Plan,
        slug=IDS,
        name=TEXTS,
        limits=st.lists(LIMITS, max_size=3, unique_by=lambda limit: limit.name),
        layers=st.none() | st.lists(TEXTS, max_size=2),
        price_nanos=COUNTS,
    ),
    st.builds(
        Subscription, id=IDS, account=IDS, plan=IDS, started_at=INSTANTS, expires_at=st.none() | INSTANTS
    ),
    st.builds(Key, id=IDS, account=IDS, name=TEXTS, limits=st.none() | st.lists(LIMITS, max_size=1)),
    st.builds(
        Budget, id=IDS, account=IDS, project=st.none() | IDS, amount=COUNTS, anchor_at=st.none() | INSTANTS
    ),
    st.builds(Grant, id=IDS, account=IDS, amount_nanos=st.integers(1, NANOS_MAX), note=TEXTS),
    st.builds(Route, id=IDS, method=st.just("GET"), path=st.just("/"), layer=TEXTS, free=st.booleans()),
    st.builds(Price, id=IDS, model=st.text("abc-", min_size=1), effective_at=INSTANTS),
)


@given(st.lists(ENTRIES, max_size=4, unique_by=lambda entry: (entry.kind, entry.entry_id)))
def test_what_is_written_to_a_file_is_read_back(entries: list[Entry]) -> None:
    text = "".join(f"[[{entry.kind}]]\n{_fields(entry)}\n" for entry in entries)
    in_order = sorted(entries, key=lambda entry: list(KINDS).index(entry.kind))
    assert parse_declaration(text) == in_order


def _fields(entry: Any, separator: str = "\n") -> str:
    values = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return separator.join(f"{name} = {_toml(value)}" for name, value in values.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(_toml(part) for part in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_toml(name)} = {_toml(part)}' for name, part in value.items())} }}"
    if isinstance(value, Limit):
        return f"{{ {_fields(value, ', ')} }}"
    # JSON's strings, numbers and booleans are TOML's too, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
