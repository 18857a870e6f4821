"""What a limit or budget counts: patterns, facts, the ids of counters, and allow-lists."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.matching import (
    Conditions,
    Facts,
    Glob,
    Match,
    ModelList,
    check_routes,
    conditions_of,
    counter_of_values,
    described,
    folded,
    matcher_of,
    parse_per,
    scope_counter_of,
    values_of,
    within,
)

texts = st.text("ab*.", max_size=6)
patterns = st.text("ab*.", max_size=6)


@given(patterns, texts)
@example("*a*b", "aab")
@example("a*a", "a")
@example("*", "")
@example("a\nb*", "a\nb")
def test_a_pattern_matches_as_its_regular_expression_does(pattern: str, text: str) -> None:
    """`*` stands for any characters, none included; everything else for itself."""
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
    assert Glob(pattern).matches(text) == expected


def test_a_pattern_takes_linear_time() -> None:
    """A regular expression of twenty `*` would take years for this text."""
    assert not Glob("*a" * 20 + "b").matches("a" * 10_000)


@pytest.mark.parametrize(
    ("pattern", "model", "matches"),
    [
        ("gpt-4o*", "gpt-4o", True),
        ("gpt-4o*", "gpt-4o-mini", True),
        ("gpt-4o*", "GPT-4o", True),
        ("GPT-4O*", " gpt-4o ", True),
        ("gpt-4o*", "gpt-4", False),
        ("gpt-4o*", "openai/gpt-4o", False),
        ("*gpt-4o*", "openai/gpt-4o", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt_4o", "gpt-4o", False),
        ("gpt%", "gpt-4o", False),
        ("*", "o3", True),
        ("*", "", False),
        ("*", "  ", False),
    ],
)
def test_models_match_whatever_their_case(pattern: str, model: str, matches: bool) -> None:
    """`GPT-4o` gets the price of `gpt-4o`, so it must meet the limit of `gpt-4o` too."""
    conditions = conditions_of(Match(models=[pattern]))
    assert conditions is not None
    assert matcher_of(conditions).matches(Facts(model, {}, "request", "POST", "/")) is matches
    assert ModelList([pattern]).allows(model) is matches


def test_only_ascii_letters_are_folded() -> None:
    """The usage store folds these only: `İ` would become two characters here and stay one there."""
    assert folded("\u0130A\u212a") == "\u0130a\u212a"


@pytest.mark.parametrize(
    ("match", "matching"),
    [
        (Match(tags={"user": "u1"}), {"tags"}),
        (Match(tags={"user": "*"}), {"tags", "other tag"}),
        (Match(tags={"user": ""}), {"kind", "route", "model"}),
        (Match(tags={"user": "u*", "team": ""}), {"tags", "other tag"}),
        (Match(kinds=["sca*"]), {"kind"}),
        (Match(routes=["GET /files/*"]), {"route"}),
        (Match(routes=["* /files/*", "POST /chat"]), {"route", "tags", "other tag", "kind", "model"}),
        (Match(models=["o3", "gpt*"], tags={"user": "u1"}), set()),
        (Match(models=["o3"], kinds=["request"]), {"model"}),
    ],
)
def test_every_field_that_is_given_must_hold(match: Match, matching: set[str]) -> None:
    cases = {
        "tags": Facts("", {"user": "u1"}, "request", "POST", "/chat"),
        "other tag": Facts("", {"user": "u2"}, "request", "POST", "/chat"),
        "kind": Facts("", {}, "scan", "POST", "/chat"),
        "route": Facts("", {}, "request", "GET", "/files/a/b"),
        "model": Facts("o3", {"user": ""}, "request", "POST", "/chat"),
    }
    conditions = conditions_of(match)
    assert conditions is not None
    matcher = matcher_of(conditions)
    for _ in range(2):  # The second time from memory.
        assert {name for name, facts in cases.items() if matcher.matches(facts)} == matching


def test_the_id_of_a_route_stands_for_its_method_and_path() -> None:
    routes = {"chat": ("POST", "/v1/chat"), "files": ("*", "/v1/files/*")}
    conditions = conditions_of(Match(routes=["chat", "files", "gone"]), routes)
    assert conditions == Conditions(routes=("* /v1/files/*", "POST /v1/chat", "gone"))
    matcher = matcher_of(conditions)
    assert matcher.matches(Facts("", {}, "request", "PUT", "/v1/files/*"))
    assert not matcher.matches(Facts("", {}, "request", "gone", ""))


def test_equal_matches_have_one_form() -> None:
    """It is part of a budget's fingerprint: written in another order, the budget must not start again."""
    one = conditions_of(Match(models=["GPT-4o*", "o3"], tags={"a": "1", "b": "2"}))
    other = conditions_of(Match(models=["o3", "gpt-4o*", "o3"], tags={"b": "2", "a": "1"}))
    assert one == other
    assert conditions_of(Match()) is conditions_of(None) is None


@pytest.mark.parametrize(
    ("per", "owner", "values"),
    [
        ("key", "key", ()),
        ("tag.user", None, ("tag.user",)),
        (["model", "key"], "key", ("model",)),
        (["tag.user", "model"], None, ("model", "tag.user")),
        ([], None, ()),
    ],
)
def test_per_names_an_owner_and_values(
    per: str | list[str], owner: str | None, values: tuple[str, ...]
) -> None:
    assert parse_per(per) == (owner, values)


@pytest.mark.parametrize(
    "per", ["user", "tag.", "tag", ["key", "account"], ["model", "model"], "tag." + "x" * 65, ["tag.a"] * 2]
)
def test_per_refuses_what_it_does_not_know(per: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"per|owner|none of"):
        parse_per(per)


@pytest.mark.parametrize("route", ["POST v1/chat", " /v1", "POST  /v1"])
def test_a_route_is_an_id_or_method_and_path(route: str) -> None:
    with pytest.raises(ValueError, match="METHOD /path"):
        check_routes([route])
    check_routes(["chat", "POST /v1/*", "* *", "GET /a b"])


values = st.lists(st.text(max_size=40) | st.text("#~ab", max_size=4), min_size=1, max_size=3).map(tuple)


@given(values, values)
@example(("a", ""), ("", "a"))
@example(("a#b",), ("a", "b"))
@example(("~00",), ("~01",))
def test_each_value_has_a_counter_of_its_own(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Whatever callers put into tags: two values never share a counter, and no id is too long for its column."""
    if len(one) == len(other):
        assert (counter_of_values("budget:b", one) == counter_of_values("budget:b", other)) == (one == other)
    assert scope_counter_of(counter_of_values("budget:b", one)) == "budget:b"
    assert len(counter_of_values("", one).encode()) <= 34


def test_a_missing_value_is_a_value() -> None:
    facts = Facts(" GPT-4o", {"user": "U1"}, "request", "POST", "/")
    assert values_of(("model", "tag.user", "tag.team"), facts) == ("gpt-4o", "U1", "")


def test_people_read_what_is_meant() -> None:
    conditions = conditions_of(Match(models=["gpt-4o*", "o3"], tags={"tier": "free", "team": ""}))
    assert described(conditions, [("tag.user", "u1"), ("model", "")]) == (
        "model gpt-4o* or o3, no tag.team, tag.tier free, tag.user = u1, no model"
    )
    assert described(None) == ""


@given(st.lists(patterns, max_size=2), st.lists(patterns, max_size=2), texts)
@example(["a*"], ["*"], "ab")
@example(["a*b"], ["a*", "*b"], "ab")
def test_a_list_within_another_allows_no_more(mine: list[str], others: list[str], model: str) -> None:
    if within(mine, others) and ModelList(mine).allows(model):
        assert ModelList(others).allows(model)


def test_some_lists_are_within_others() -> None:
    assert within(["gpt-4o-mini", "GPT-4o*"], ["gpt-*"])
    assert within([], ["o3"])
    assert not within(["gpt-*"], ["gpt-4o*"])
    assert not within(["*"], ["o3", "gpt*"])
