"""Every kind of entry survives the trip through JSON, and every rule names the field that breaks it."""

from __future__ import annotations

import typing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.catalog import (
    KINDS,
    PRICE_NANOS_MAX,
    REFERENCES,
    REQUEST_NANOS_MAX,
    Entry,
    Invalid,
    Limit,
    PlanBudget,
    references,
)
from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.periods import WEEKDAYS

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,20}", fullmatch=True)
texts = st.text(max_size=20)
counts = st.integers(0, NANOS_MAX)
charges = st.integers(0, REQUEST_NANOS_MAX)
rates = st.integers(0, PRICE_NANOS_MAX)
maps = st.dictionaries(texts, texts, max_size=3)
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=offsets | st.just(UTC))
units = st.sampled_from(["requests", "tokens", "nanos", "credits"])
spans = st.sampled_from(["day", "week", "month", "year", "anniversary", "total", "30d", "5h", "15m"])
time_zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"])
weekdays = st.sampled_from(WEEKDAYS)


def _objects(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


patterns = st.lists(st.sampled_from(["gpt-4o*", "*", "o3", "GPT-4*mini"]), min_size=1, max_size=3)
matches = st.fixed_dictionaries(
    {},
    optional={
        "models": patterns,
        "tags": st.dictionaries(st.text(min_size=1, max_size=8), texts, min_size=1, max_size=2),
        "kinds": patterns,
        "routes": st.lists(st.sampled_from(["chat", "POST /v1/chat*", "* /v1/*"]), min_size=1, max_size=3),
    },
).filter(bool)
values_per = st.lists(st.sampled_from(["model", "tag.user", "tag.team"]), max_size=3, unique=True)


def _per(*owners: str) -> st.SearchStrategy[str | list[str]]:
    """One of *owners* alone, or with values, or values alone."""
    alone = st.sampled_from([*owners, "model", "tag.user"])
    with_values = st.tuples(st.sampled_from([[], *([owner] for owner in owners)]), values_per)
    return alone | with_values.map(lambda parts: parts[0] + parts[1]).filter(bool)


span_fields = {"period": spans, "time_zone": time_zones, "week_start": weekdays}
window_limits = _objects(
    {"amount": counts, "window": st.sampled_from(["1s", "1m", "5h", "366d"])},
    {
        "unit": units,
        "algorithm": st.sampled_from(["fixed", "sliding"]),
        "bucket": texts,
        "per": _per("key", "project", "account"),
        "match": matches,
    },
)
permit_limits = _objects(
    {"amount": counts, "algorithm": st.just("permits")}, {"burst": st.integers(1, NANOS_MAX)}
)
concurrency_limits = _objects({"amount": counts, "algorithm": st.just("concurrency")}, {})
plan_budgets = _objects(
    {"amount": counts | st.none()},
    {
        **span_fields,
        "unit": units,
        "per": _per("subscription", "key", "project", "account"),
        "match": matches,
    },
)


def _named(objects: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(objects, max_size=3).map(
        lambda items: [{**item, "name": f"n{index}"} for index, item in enumerate(items)]
    )


limits = _named(st.one_of(window_limits, permit_limits, concurrency_limits))
key_limits = st.tuples(limits, _per("key")).map(
    lambda drawn: [{**item, "per": drawn[1]} for item in drawn[0]]
)

ENTRIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "plans": _objects(
        {"slug": ids},
        {
            "name": texts,
            "limits": limits,
            "budgets": _named(plan_budgets),
            "layers": st.none() | st.lists(texts, max_size=3),
            "models": st.none() | patterns,
            "price_nanos": counts,
            "sellable": st.booleans(),
            "metadata": maps,
        },
    ),
    "accounts": _objects(
        {"id": ids, "name": texts},
        {
            "plan": ids,
            "time_zone": time_zones,
            "active": st.booleans(),
            "keyless_credit_at": instants,
            "sessions_reset_at": instants,
            "retention": st.sampled_from(["none", "1d", "90d", "12w"]),
            "metadata": maps,
        },
    ),
    "projects": _objects({"id": ids, "account": ids}, {"name": texts}),
    "subscriptions": _objects(
        {"id": ids, "account": ids, "plan": ids, "started_at": instants},
        {"expires_at": instants, "status": st.sampled_from(["active", "canceled"])},
    ),
    "keys": _objects(
        {"id": ids, "account": ids},
        {
            "project": ids,
            "name": texts,
            "role": st.sampled_from(["consumption", "management"]),
            "type": st.sampled_from(["subscription", "credit"]),
            "profile": texts,
            "subscription": ids,
            "plan": ids,
            "limits": key_limits,
            "models": st.none() | patterns,
            "state": st.sampled_from(["active", "inactive", "expired", "revoked", "deleted"]),
            "created_at": instants,
            "expires_at": instants,
            "sha256": st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
            "metadata": maps,
        },
    ).filter(lambda key: (key.get("role"), key.get("type")) != ("management", "credit")),
    "budgets": _objects(
        {"id": ids, "account": ids, "amount": counts},
        {
            **span_fields,
            "project": ids,
            "unit": units,
            "anchor_at": instants,
            "match": matches,
            "per": _per(),
        },
    ),
    "grants": _objects(
        {"id": ids, "account": ids, "amount_nanos": st.integers(1, NANOS_MAX)},
        {
            "source": st.sampled_from(["grant", "top_up"]),
            "priority": st.integers(0, 1_000_000),
            "expires_at": instants,
            "note": texts,
        },
    ),
    "routes": _objects(
        {
            "id": ids,
            "method": st.sampled_from(["GET", "POST", "*"]),
            "path": st.sampled_from(["/", "/v1/{id}", "/*"]),
        },
        {
            "event_kind": st.text(min_size=1, max_size=20),
            "credits": charges,
            "price_nanos": charges,
            "bucket": texts,
            "surface": texts,
            "layer": texts,
            "policy": texts,
            "profile": texts,
        },
    ),
    "models": _objects(
        {
            "id": st.sampled_from(["my-deployment", "team/chat:1", "a b", "ö@x"]),
            "is": st.sampled_from(["azure/gpt-4o", "us.amazon.nova-pro-v1:0"]),
        },
        {},
    ),
    "prices": _objects(
        {"id": ids, "model": st.text(min_size=1, max_size=20).filter(lambda model: "*" not in model)},
        {
            "account": ids,
            "effective_at": instants,
            "prompt_nanos_per_million": rates,
            "cached_prompt_nanos_per_million": rates,
            "completion_nanos_per_million": rates,
            "reasoning_nanos_per_million": rates,
            "cache_write_nanos_per_million": rates,
            "cache_write_1h_nanos_per_million": rates,
            "audio_prompt_nanos_per_million": rates,
            "audio_cached_prompt_nanos_per_million": rates,
            "image_prompt_nanos_per_million": rates,
            "audio_completion_nanos_per_million": rates,
            "image_completion_nanos_per_million": rates,
            "tiers": st.sets(st.integers(1, 10**12), max_size=3).map(
                lambda overs: [
                    {"over": over, "audio_prompt_nanos_per_million": over % 7} for over in sorted(overs)
                ]
            ),
            "rates": st.dictionaries(
                st.sampled_from(["seconds", "images", "own_unit"]),
                st.sampled_from(["0.006/60", "15.00 / 1000000", "7", 10**18]),
            ),
            "variant": st.text(max_size=64),
            "request_nanos": charges,
        },
    ),
    "markups": _objects(
        {"id": ids},
        {
            "account": ids,
            "model": st.sampled_from(["*", "claude-*", "*gpt*4*", "gpt-4o"]),
            "effective_at": instants,
            "factor": st.sampled_from(["0", "1", "1.2", "1000.000000000", "0.333333333"]),
            "request_nanos": charges,
        },
    ),
    "webhooks": _objects(
        {"id": ids, "account": ids, "url": st.sampled_from(["https://a.example/h?x=1", "http://[::1]:80"])},
        {
            "project": ids,
            "thresholds": st.sets(st.integers(1, 1000), min_size=1, max_size=20).map(sorted),
            "actions": st.just({}),
        },
    ),
}

kinds = st.sampled_from(sorted(KINDS))

SMALLEST: dict[str, dict[str, Any]] = {
    "plans": {"slug": "pro"},
    "accounts": {"id": "acme", "name": "Acme"},
    "projects": {"id": "p1", "account": "acme"},
    "subscriptions": {"id": "s1", "account": "acme", "plan": "pro", "started_at": "2026-01-01T00:00:00Z"},
    "keys": {"id": "k1", "account": "acme"},
    "budgets": {"id": "b1", "account": "acme", "amount": 1},
    "grants": {"id": "g1", "account": "acme", "amount_nanos": 1},
    "routes": {"id": "r1", "method": "GET", "path": "/v1"},
    "models": {"id": "team/chat", "is": "azure/gpt-4o"},
    "prices": {"id": "pr1", "model": "gpt-4o"},
    "markups": {"id": "m1"},
    "webhooks": {"id": "w1", "account": "acme", "url": "https://a.example"},
}


def _made(kind: str, body: dict[str, Any]) -> Entry:
    return msgspec.convert(body, KINDS[kind])


class TestRoundTrip:
    @given(kinds.flatmap(lambda kind: st.tuples(st.just(kind), ENTRIES[kind])))
    def test_an_entry_is_read_back_as_it_was_written(self, case):
        kind, body = case
        entry = _made(kind, body)
        entry.check()
        assert msgspec.json.decode(msgspec.json.encode(entry), type=KINDS[kind]) == entry
        assert msgspec.convert(msgspec.to_builtins(entry), KINDS[kind]) == entry
        assert entry.entry_id == body[entry.id_field]

    def test_every_kind_has_its_strategy_and_every_field_is_drawn(self):
        """A field added later must join the tests above."""
        assert set(ENTRIES) == set(KINDS)
        drawn = {
            "budgets": {"key"},  # Excludes project: see the rules below.
            "routes": {"free"},  # Excludes prices.
            "prices": {"factor"},  # Excludes rates.
            "markups": {"plan"},  # Excludes account.
        }
        for kind, entry_type in KINDS.items():
            schema = repr(ENTRIES[kind])
            for field in entry_type.__struct_fields__:
                assert repr(field) in schema or field in drawn.get(kind, ()), f"{kind}.{field}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_smallest_entry_of_each_kind_is_good(self, kind):
        _made(kind, SMALLEST[kind]).check()


class TestForm:
    @pytest.mark.parametrize("kind", KINDS)
    def test_an_unknown_field_is_refused(self, kind):
        """A misspelt limit that is silently dropped would let everybody through."""
        with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
            _made(kind, {**SMALLEST[kind], "colour": "red"})

    @pytest.mark.parametrize(
        "body",
        [{"limits": [{"name": "n", "amount": 1, "widow": "1m"}]}, {"budgets": [{"name": "n", "amont": 1}]}],
    )
    def test_an_unknown_field_inside_is_refused_with_its_path(self, body):
        with pytest.raises(
            msgspec.ValidationError, match=r"\$\.(limits|budgets)\[0\]|\$\.(limits|budgets)\[\.\.\.\]"
        ):
            _made("plans", {**SMALLEST["plans"], **body})

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_required_field_is_missed(self, kind):
        for field in SMALLEST[kind]:
            body = {name: value for name, value in SMALLEST[kind].items() if name != field}
            with pytest.raises(msgspec.ValidationError, match=field):
                _made(kind, body)

    @pytest.mark.parametrize(
        ("kind", "field", "value"),
        [
            ("grants", "amount_nanos", 0),
            ("grants", "amount_nanos", NANOS_MAX + 1),
            ("grants", "priority", -1),
            ("budgets", "amount", -1),
            ("budgets", "amount", 1.5),
            ("budgets", "unit", "x" * 65),
            ("routes", "price_nanos", REQUEST_NANOS_MAX + 1),
            ("routes", "credits", REQUEST_NANOS_MAX + 1),
            ("routes", "event_kind", ""),
            ("prices", "model", ""),
            ("prices", "prompt_nanos_per_million", PRICE_NANOS_MAX + 1),
            ("prices", "request_nanos", REQUEST_NANOS_MAX + 1),
            ("prices", "cache_write_1h_nanos_per_million", -1),
            ("prices", "variant", "x" * 65),
            ("prices", "rates", {"seconds": 0.5}),
            ("prices", "tiers", [{"over": 0}]),
            ("markups", "model", ""),
            ("markups", "factor", 1.2),
            ("markups", "request_nanos", -1),
            ("accounts", "name", "x" * 257),
            ("keys", "state", "asleep"),
        ],
    )
    def test_a_value_out_of_its_range_is_refused_with_its_path(self, kind, field, value):
        with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
            _made(kind, {**SMALLEST[kind], field: value})


NAIVE = datetime(2026, 1, 1)
TOO_LATE = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1)))
LIMIT = {"name": "rpm", "amount": 1}
BUDGET = {"name": "monthly", "amount": 1}

RULES: list[tuple[str, dict[str, Any], str]] = [
    # A model's name may begin with any character that is seen.
    *[
        (kind, {KINDS[kind].id_field: " bad" if kind == "models" else "-bad"}, KINDS[kind].id_field)
        for kind in KINDS
    ],
    *[("projects", {"id": bad}, "id") for bad in ("", "a b", "a/b", "é", "x" * 129, "a\n")],
    *[("budgets", {"unit": unit}, "unit") for unit in ("euros", "", "quantity.", "quantity.S", "seconds")],
    ("plans", {"limits": [{"name": "rpm", "amount": 1, "unit": "euros"}]}, "limits[0].unit"),
    ("plans", {"budgets": [{"name": "b", "amount": 1, "unit": "euros"}]}, "budgets[0].unit"),
    ("accounts", {"time_zone": "Mars/Olympus"}, "time_zone"),
    ("accounts", {"time_zone": "../../etc/passwd"}, "time_zone"),
    ("accounts", {"time_zone": "Europe"}, "time_zone"),
    ("accounts", {"time_zone": ""}, "time_zone"),
    ("plans", {"limits": [LIMIT, {**LIMIT, "name": "a b"}]}, "limits[1].name"),
    ("plans", {"limits": [{**LIMIT, "window": "1 minute"}]}, "limits[0].window"),
    ("plans", {"limits": [{**LIMIT, "window": "367d"}]}, "limits[0].window"),
    ("plans", {"limits": [{**LIMIT, "burst": 5}]}, "limits[0].burst"),
    ("plans", {"limits": [{**LIMIT, "algorithm": "permits", "burst": 0}]}, "limits[0].burst"),
    ("plans", {"limits": [{**LIMIT, "algorithm": "concurrency", "unit": "tokens"}]}, "limits[0].unit"),
    ("plans", {"limits": [LIMIT, LIMIT]}, "limits[1].name"),
    ("plans", {"budgets": [{**BUDGET, "name": ""}]}, "budgets[0].name"),
    ("plans", {"budgets": [{**BUDGET, "period": "fortnight"}]}, "budgets[0].period"),
    ("plans", {"budgets": [{**BUDGET, "time_zone": "Nowhere"}]}, "budgets[0].time_zone"),
    ("plans", {"budgets": [{**BUDGET, "week_start": "Monday"}]}, "budgets[0].week_start"),
    ("plans", {"budgets": [BUDGET, BUDGET]}, "budgets[1].name"),
    ("subscriptions", {"started_at": NAIVE}, "started_at"),
    ("subscriptions", {"expires_at": NAIVE}, "expires_at"),
    ("subscriptions", {"expires_at": TOO_LATE}, "expires_at"),
    ("keys", {"expires_at": NAIVE}, "expires_at"),
    ("keys", {"sha256": "A" * 64}, "sha256"),
    ("keys", {"sha256": "a" * 63}, "sha256"),
    ("keys", {"limits": [{**LIMIT, "window": "0s"}]}, "limits[0].window"),
    ("keys", {"limits": [LIMIT, LIMIT]}, "limits[1].name"),
    ("keys", {"limits": [{**LIMIT, "per": "account"}]}, "limits[0].per"),
    ("keys", {"limits": [{**LIMIT, "per": "project"}]}, "limits[0].per"),
    ("budgets", {"period": "1w"}, "period"),
    ("budgets", {"time_zone": "Nowhere"}, "time_zone"),
    ("budgets", {"week_start": "someday"}, "week_start"),
    ("budgets", {"anchor_at": NAIVE}, "anchor_at"),
    ("budgets", {"project": "p1", "key": "k1"}, "key"),
    ("grants", {"expires_at": NAIVE}, "expires_at"),
    ("routes", {"method": "get"}, "method"),
    ("routes", {"path": "v1"}, "path"),
    ("routes", {"path": "/v1/*/x"}, "path"),
    ("routes", {"free": True, "price_nanos": 1}, "free"),
    ("routes", {"free": True, "credits": 1}, "free"),
    ("prices", {"effective_at": NAIVE}, "effective_at"),
    ("prices", {"model": "gpt-*"}, "model"),
    ("prices", {"tiers": [{"over": 5}, {"over": 5}]}, "tiers"),
    ("prices", {"tiers": [{"over": 5}, {"over": 4}]}, "tiers"),
    ("prices", {"rates": {"Seconds": 1}}, "rates.Seconds"),
    ("prices", {"rates": {"audio_prompt_tokens": 1}}, "rates.audio_prompt_tokens"),
    ("prices", {"rates": {"prompt_tokens": 1}}, "rates.prompt_tokens"),
    ("prices", {"rates": {f"unit{n}": 1 for n in range(33)}}, "rates"),
    *[
        ("prices", {"rates": {"seconds": bad}}, "rates.seconds")
        for bad in (
            -1,
            10**21 + 1,
            "",
            "0.04",
            "1/0",
            "1/",
            "/60",
            "-1/60",
            "1e3/60",
            "0.0000000001/1",
            "1/9999999999999",
        )
    ],
    ("prices", {"factor": "0.5"}, "factor"),
    ("prices", {"factor": "0.5", "variant": "Default"}, "factor"),
    ("prices", {"factor": "x", "variant": "batch"}, "factor"),
    ("prices", {"factor": "0.5", "variant": "batch", "request_nanos": 1}, "factor"),
    ("prices", {"factor": "0.5", "variant": "batch", "rates": {"seconds": 1}}, "factor"),
    ("prices", {"factor": "0.5", "variant": "batch", "cached_prompt_nanos_per_million": 0}, "factor"),
    ("prices", {"factor": "0.5", "variant": "batch", "model": "*****"}, "model"),
    ("markups", {"effective_at": NAIVE}, "effective_at"),
    ("markups", {"account": "a", "plan": "p"}, "plan"),
    ("markups", {"model": "*a*b*c*d*"}, "model"),
    *[
        ("markups", {"factor": bad}, "factor")
        for bad in ("", "1,2", "-1", "+1", "1.2e3", "1000.1", "1.0000000001", ".5", "1.", "\u0661")
    ],
]


class TestRules:
    @pytest.mark.parametrize(("kind", "changes", "field"), RULES)
    def test_a_broken_rule_names_its_field(self, kind, changes, field):
        entry = _made(kind, {**SMALLEST[kind], **changes})
        with pytest.raises(Invalid) as raised:
            entry.check()
        assert raised.value.field == field
        assert str(raised.value)

    def test_a_free_route_and_a_key_budget_are_good(self):
        _made("routes", {**SMALLEST["routes"], "free": True}).check()
        _made("budgets", {**SMALLEST["budgets"], "key": "k1"}).check()

    def test_a_concurrency_limit_needs_no_good_window(self):
        Limit(name="c", amount=1, algorithm="concurrency", window="").check("limits[0]")

    def test_an_unlimited_plan_budget_is_stated_as_null(self):
        assert msgspec.convert({"name": "b", "amount": None}, PlanBudget).amount is None


class TestReferences:
    def test_kinds_come_after_those_that_they_name(self):
        """A set-up in this order never names an entry that does not exist yet."""
        order = list(KINDS)
        assert set(REFERENCES) == set(KINDS)
        for kind, named in REFERENCES.items():
            for field, target in named:
                assert field in KINDS[kind].__struct_fields__
                assert order.index(target) < order.index(kind), f"{kind}.{field}"

    def test_no_field_that_names_an_entry_is_forgotten(self):
        """A reference that is not listed would not be checked."""
        names = {"account", "project", "plan", "subscription", "key"}
        for kind, entry_type in KINDS.items():
            fields = set(typing.get_type_hints(entry_type)) & names
            assert fields == {field for field, _ in REFERENCES[kind]}

    def test_references_of_an_entry_are_those_that_it_states(self):
        key = _made("keys", {**SMALLEST["keys"], "plan": "pro"})
        assert list(references(key)) == [("account", "accounts", "acme"), ("plan", "plans", "pro")]
