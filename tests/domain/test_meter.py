"""What a request costs is decided once, and its record says so, whichever door it came through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.test_events import VALUES, charges, records
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import RECORD_FIELDS, ROUTE_CHARS_MAX, Record
from tollkeeper.domain.meter import (
    UNKNOWN_ROUTE,
    admitted_record,
    bounded_path,
    cost_of,
    counted_path,
    free_record,
    recharged,
    refused_record,
    same_body,
    same_outcome,
    units_of,
)
from tollkeeper.domain.pricing import ModelPrice, Tier
from tollkeeper.domain.requests import Outcome, Usage

CHAT = Route(id="chat", method="POST", path="/v1/chat", price_nanos=11, credits=3)
FREE = Route(id="status", method="GET", path="/v1/status", free=True)
M = ModelPrice("prices:m", 5, (Tier(0, 1_000_000, 0, 0, 0),))


def price_of(model: str, account_id: str, at_us: int) -> ModelPrice | None:
    assert model
    return M if model == "m" else None


def cost(route: Route = CHAT, usage: Usage = Usage(), status: int = 200, cache: str = "", **more: Any) -> Any:
    return cost_of(price_of, "acme", 0, route, usage, usage.model, status, cache, **more)


class TestCost:
    @pytest.mark.parametrize(
        ("model", "tokens", "failed", "used"),
        [
            ("m", 0, False, True),
            ("m", 1, False, True),
            ("m", 1, True, True),
            ("m", 0, True, False),
            ("", 5, False, False),
        ],
    )
    def test_a_request_uses_its_model_unless_it_failed_before_any_token(self, model, tokens, failed, used):
        _, state, _, version = cost(usage=Usage(tokens, model=model), status=500 if failed else 200)
        assert (state, version) == ("priced", "prices:m" if used else "route:chat")

    @pytest.mark.parametrize("status", [0, 200, 404, 500])
    @pytest.mark.parametrize("cache", ["", "hit", "miss"])
    def test_a_path_that_no_route_knows_is_free_without_a_model(self, status, cache):
        assert cost(UNKNOWN_ROUTE, status=status, cache=cache) == (0, "free", 0, "")

    def test_a_path_that_no_route_knows_is_charged_its_model(self):
        assert cost(UNKNOWN_ROUTE, Usage(7, model="m")) == (12, "priced", 0, "prices:m")
        assert cost(UNKNOWN_ROUTE, Usage(7, model="x")) == (0, "unpriced", 0, "")

    def test_a_route_of_the_catalog_named_unknown_is_a_route(self):
        assert cost(Route(id="unknown", method="*", path="/*", price_nanos=2)) == (
            2,
            "priced",
            0,
            "route:unknown",
        )

    @given(
        st.sampled_from([CHAT, FREE, UNKNOWN_ROUTE]), st.sampled_from(["", "m", "x"]), st.integers(0, 9),
        st.sampled_from([0, 200, 402, 429, 500]),
    )  # fmt: skip
    def test_a_refused_request_is_free_whatever_it_asked_for(self, route, model, tokens, status):
        assert cost(route, Usage(tokens, model=model), status, refused=True) == (0, "free", 0, "")

    @given(st.sampled_from([CHAT, FREE, UNKNOWN_ROUTE]), st.sampled_from([200, 500]), st.booleans(), charges)
    def test_a_stated_cost_stands_and_an_estimate_counts_until_then(self, route, status, refused, nanos):
        usage = Usage(3, model="x", cost_nanos=nanos, credits=4)
        assert cost(route, usage, status, "hit", refused=refused) == (nanos, "given", 4, "")
        estimated = cost(route, usage, status, "hit", refused=refused, estimate_nanos=nanos + 1)
        assert estimated == (nanos + 1, "estimated", 4, "")


class TestRecords:
    def test_the_record_of_an_admitted_request_has_each_value_in_its_place(self):
        """It is built by position."""
        usage = Usage(1, 2, 3, 4, "", None, None)
        outcome = Outcome(201, usage, "oops", 5, 6, "miss", {"a": "b"})
        record = admitted_record(
            price_of, "acme", "p", "k", 10, 20, "id", CHAT, "POST", "/v1/chat", 99, "m", {}, outcome
        )
        assert record == Record(
            account_id="acme", project_id="p", key_id="k", occurred_at_us=10, received_at_us=20, id="id",
            revision=0, sign=1, amendment_id="", kind="request", method="POST", route="/v1/chat", status=201,
            error_type="oops", denied_reason="", latency_us=5, bytes_out=6, model="m", prompt_tokens=1,
            cached_prompt_tokens=2, completion_tokens=3, reasoning_tokens=4, cache="miss", credits=3,
            cost_nanos=17, estimated_cost_nanos=99, cost_state="priced", price_version="prices:m",
            tags={"a": "b"},
        )  # fmt: skip
        assert type(record) is Record
        assert record.tokens == usage.tokens == 10
        assert same_outcome(record, outcome)

    @pytest.mark.parametrize(("stated", "cost"), [(None, 99), (7, 7)])
    def test_an_estimate_without_a_number_is_what_was_held(self, stated, cost):
        outcome = Outcome(usage=Usage(cost_nanos=stated), estimated=True)
        record = admitted_record(
            price_of, "acme", "", "k", 10, 20, "id", CHAT, "POST", "/v1/chat", 99, "", {}, outcome
        )
        assert (record.cost_nanos, record.cost_state) == (cost, "estimated")

    def test_a_refused_request_is_counted_and_costs_nothing(self):
        denial = Denial("rate_limited", "Too fast.")
        counted = free_record("acme", "p", "k", 10, "id", CHAT, "POST", "/v1/chat", 0)
        record = refused_record(counted, denial, "m")
        assert (record.status, record.error_type, record.denied_reason) == (
            429,
            "rate_limited",
            "rate_limited",
        )
        assert (record.cost_nanos, record.cost_state, record.price_version) == (0, "free", "")
        assert units_of(record) == {"requests": 0, "tokens": 0, "nanos": 0, "credits": 0}
        assert recharged(price_of, record, CHAT) == record

    def test_a_free_request_is_counted_and_costs_nothing(self):
        record = free_record("acme", "", "", 10, "id", CHAT, "POST", "/v1/chat", 200)
        assert units_of(record) == {"requests": 1, "tokens": 0, "nanos": 0, "credits": 0}

    @given(records)
    def test_a_reversal_takes_back_what_its_record_counts(self, record):
        taken = units_of(record._replace(sign=-record.sign))
        assert {unit: -amount for unit, amount in taken.items()} == units_of(record)


class TestPath:
    def test_a_known_route_counts_under_its_template(self):
        assert counted_path(Route(id="x", method="GET", path="/v1/{id}"), "/v1/7") == "/v1/{id}"

    @given(st.text(max_size=ROUTE_CHARS_MAX))
    def test_an_unknown_one_counts_under_the_path_as_it_was_called(self, path):
        assert counted_path(UNKNOWN_ROUTE, path) == path

    @given(
        st.text(st.characters(codec=None), max_size=3),
        st.integers(0, 2 * ROUTE_CHARS_MAX),
        st.text(max_size=3),
    )
    def test_any_path_becomes_text_that_a_store_can_hold(self, head, length, tail):
        """The gate takes what a server passes on; one bad path must not hold up the records of its group."""
        bounded = bounded_path(head + "a" * length + tail)
        assert len(bounded) <= ROUTE_CHARS_MAX
        assert bounded.encode().decode() == bounded
        assert bounded_path(bounded) == bounded

    def test_long_paths_stay_different(self):
        one, other = ("/" + "a" * 2_000 + end for end in "bc")
        assert bounded_path(one) != bounded_path(other)


OURS = frozenset({"received_at_us", "revision", "sign", "amendment_id", "price_version"})
PRICED_BY_US = frozenset({"cost_nanos", "cost_state", "credits"})
CALLERS = [name for name in RECORD_FIELDS if name not in OURS | PRICED_BY_US]


@st.composite
def changed_records(draw: st.DrawFn, names: list[str]) -> tuple[Record, Record, str]:
    record = draw(records)
    name = draw(st.sampled_from(names))
    value = draw(VALUES[name].filter(lambda value: value != getattr(record, name)))
    return record, record._replace(**{name: value}), name


class TestSameBody:
    def test_every_field_of_a_record_is_drawn(self):
        assert tuple(VALUES) == RECORD_FIELDS

    @given(records)
    def test_an_event_is_the_same_as_itself(self, record):
        assert same_body(record, record)

    @given(changed_records(CALLERS))
    def test_a_change_of_any_field_of_the_callers_is_seen(self, case):
        stored, given_, _ = case
        assert not same_body(stored, given_)
        assert not same_body(given_, stored)

    @given(records, records)
    def test_what_is_ours_does_not_count(self, stored, other):
        """A retry comes later, and perhaps after a change of prices: it is still the same event."""
        retried = stored._replace(**{name: getattr(other, name) for name in OURS})
        assert same_body(stored, retried)

    @given(records, charges, charges, st.sampled_from(["priced", "unpriced", "free", "estimated"]))
    def test_what_a_price_list_says_by_now_does_not_count(self, record, cost, credits_, state):
        stored = record._replace(cost_state="unpriced")
        assert same_body(stored, stored._replace(cost_nanos=cost, credits=credits_, cost_state=state))

    @given(records, charges)
    def test_a_cost_that_the_caller_gave_counts(self, record, cost):
        stored = record._replace(cost_state="given")
        assert same_body(stored, stored._replace(cost_nanos=cost)) == (cost == stored.cost_nanos)

    @given(records, charges, st.sampled_from(["priced", "unpriced", "free", "estimated"]))
    def test_giving_a_cost_or_not_is_a_difference(self, record, cost, state):
        stored = record._replace(cost_state="given")
        without = stored._replace(cost_state=state, cost_nanos=cost)
        assert not same_body(stored, without)
        assert not same_body(without, stored)
